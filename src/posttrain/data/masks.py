"""Which tokens are trained: the assistant's words and the token that ends its turn, found in any chat template and checked.

Stock templates carry no `{% generation %}` markers, so the assistant's characters are located from outside. For turn i of
the rendered text T: render the conversation again with a sentinel in place of that turn's content; what stands before and
after the sentinel is the template's own text, and what T has in between is the content as the template shows it (it may
strip white space, or drop earlier reasoning). The result is then checked against the message itself, so a template that
does something unforeseen is a `DataError` that shows the place, never a wrong mask.

The rule at the seam: training ids are what generation would see. The ids up to the end of the generation prompt are those
of `render_prompt`; only if tokenising the whole text would merge characters across that seam (a prompt ending in a newline,
an answer beginning with one) the rest is tokenised apart. Masks are by position, never by token id: the padding token and
the end-of-turn token are often the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..core.errors import DataError
from ..core.types import Message
from .chat import ids_behind, render_text
from .checks import (
    check_trained,
    decode,
    refuse_double_start,
    refuse_dropped,
    refuse_foreign_specials,
    refuse_special_text,
    short,
    show_messages,
    specials_of,
    squash,
)

__all__ = ["Encoded", "encode_completion", "encode_conversation", "encode_text", "ids_of_answer"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a rendered conversation, and for each whether it is trained (`mask[t]`: token t is a target)."""

    ids: list[int]
    mask: list[bool]

    @property
    def trained(self) -> int:
        """How many tokens are trained."""
        return sum(self.mask)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Ids, the characters [start, end) of each, and the index of the first token after each seam."""

    ids: list[int]
    starts: list[int]
    ends: list[int]
    seams: list[int]


@dataclass(frozen=True, slots=True)
class _Span:
    """Characters of the rendered text: generation would begin at `seam`, training does at `start`; content ends at `end`."""

    seam: int
    start: int
    end: int
    where: str


def encode_conversation(tokenizer: Any, messages: Sequence[Message], *, train: Literal["all", "last"] = "all") -> Encoded:
    """Return the ids of a whole conversation; trained are every (or the last) assistant turn and its end token.

    Text that the template itself puts between the generation prompt and the content (Qwen3's empty `<think>` block) is
    not trained. Raises `DataError` when the template or the tokenizer leaves no mask that is certainly right.
    """
    turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
    if not turns:
        raise DataError(f"the conversation has no assistant turn to train on: {show_messages(messages)}")
    refuse_special_text(tokenizer, messages)
    text = render_text(tokenizer, messages, generation_prompt=False)
    refuse_dropped(messages, text)
    spans = [_locate(tokenizer, messages, i, text) for i in (turns if train == "all" else turns[-1:])]
    tokens = _tokenise(tokenizer, text, [span.seam for span in spans])
    mask = [False] * len(tokens.ids)
    for span, seam in zip(spans, tokens.seams, strict=True):
        first = seam if span.start == span.seam else next(t for t, end in enumerate(tokens.ends) if end > span.start)
        last = _end_token(tokenizer, text, tokens, first, span)
        check_trained(tokenizer, text, tokens.ids[first:last], span.start, span.end, span.where)
        mask[first : last + 1] = [True] * (last + 1 - first)
    refuse_double_start(tokenizer, tokens.ids)
    refuse_foreign_specials(tokenizer, text, tokens.ids)
    return Encoded(tokens.ids, mask)


def encode_completion(tokenizer: Any, prompt: Sequence[Message], completion: str) -> Encoded:
    """Return prompt ids, exactly those of `render_prompt`, followed by the trained completion and its end-of-turn token.

    The completion is written as the template writes it (its leading space, its stripping); where the template would change
    more than white space (insert or drop a reasoning block) it follows the generation prompt as it is.
    """
    turn = Message(role="assistant", content=completion)
    messages = [*prompt, turn]
    refuse_special_text(tokenizer, messages)
    opening = render_text(tokenizer, prompt, generation_prompt=True)
    text = render_text(tokenizer, messages, generation_prompt=False)
    refuse_dropped(prompt, opening)
    _, after = _around(tokenizer, messages, len(messages) - 1)
    as_is = not text.startswith(opening) or not text.endswith(after)
    as_is = as_is or squash(text[len(opening) : len(text) - len(after)]) != squash(completion)
    if as_is:
        text = opening + completion + after
    span = _Span(len(opening), len(opening), len(text) - len(after), "the completion")
    tokens = _tokenise(tokenizer, text, [span.seam])
    first = tokens.seams[0]
    last = _end_token(tokenizer, text, tokens, first, span)
    check_trained(tokenizer, text, tokens.ids[first:last], span.start, span.end, span.where)
    refuse_double_start(tokenizer, tokens.ids)
    refuse_foreign_specials(tokenizer, text, tokens.ids)
    return Encoded(tokens.ids[: last + 1], [t >= first for t in range(last + 1)])


def encode_text(tokenizer: Any, text: str) -> Encoded:
    """Return the ids of a text without turns, ended by the end token; all are trained but the first, which nothing precedes.

    The start token, if the tokenizer puts one before a text, is context.
    """
    refuse_special_text(tokenizer, [Message(role="user", content=text)])
    if tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer of '{tokenizer.name_or_path}' has no end token, so a text would never end")
    ids: list[int] = list(tokenizer(text)["input_ids"])
    if not ids or ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    refuse_double_start(tokenizer, ids)
    bare = ids[1:] if ids[0] == tokenizer.bos_token_id and len(ids) > 1 else ids
    check_trained(tokenizer, text, bare[:-1], 0, len(text), "the text")
    return Encoded(ids, [t > 0 for t in range(len(ids))])


def ids_of_answer(tokenizer: Any, messages: Sequence[Message], answer: Sequence[Message], *, ended: bool) -> list[int]:
    """Return the ids from behind the assistant's turn that ends `messages` to where its next one begins, behind an answer.

    With `ended` the turn's own end token has been written already, and the template's is left out.
    """
    refuse_special_text(tokenizer, answer)
    _, behind = _around(tokenizer, [*messages, *answer], len(messages) - 1, generation_prompt=True)
    refuse_dropped(answer, behind)
    ids = ids_behind(tokenizer, behind)
    if ended:
        first = next((t for t, id in enumerate(ids) if id in specials_of(tokenizer).ids), None)
        if first is not None and not decode(tokenizer, ids[:first]).strip():
            return ids[first + 1 :]
    return ids


# Where the assistant's characters are --------------------------------------------------------------------------------


def _around(tokenizer: Any, messages: Sequence[Message], turn: int, *, generation_prompt: bool = False) -> tuple[str, str]:
    """Return the template's text before and after the content of a turn, everything else being as it is."""
    sentinel = "70417765074182"  # digits: a template may change case
    while any(sentinel in message.content for message in messages):
        sentinel += "0"
    marked = [*messages[:turn], Message(role="assistant", content=sentinel), *messages[turn + 1 :]]
    text = render_text(tokenizer, marked, generation_prompt=generation_prompt)
    before, found, after = text.partition(sentinel)
    if not found or sentinel in after:
        times = "twice" if found else "not at all"
        raise DataError(
            f"the chat template of '{tokenizer.name_or_path}' shows assistant turn {turn} {times}: {show_messages(messages)}"
        )
    return before, after


def _locate(tokenizer: Any, messages: Sequence[Message], turn: int, text: str) -> _Span:
    content, where = messages[turn].content, f"assistant turn {turn}"
    before, after = _around(tokenizer, messages, turn)
    opening = render_text(tokenizer, messages[:turn], generation_prompt=True)
    agreed = _agreed(text, opening)
    if not text.endswith(after):
        after = after[len(after) - _agreed(text[::-1], after[::-1]) :]
    end = len(text) - len(after)
    if text.startswith(before) and len(before) <= end and _kept(text[len(before) : end], content):
        start = len(before)
    elif (
        agreed <= end and squash(text[:end]).endswith(squash(content)) and squash(content).endswith(squash(text[agreed:end]))
    ):
        start = agreed  # the template sets this content apart (Qwen3's reasoning), or the prompt has its opening tag
    else:
        shown = text[len(before) if text.startswith(before) else agreed : end]
        raise DataError(
            f"{where}: the chat template of '{tokenizer.name_or_path}' changes the content, so what is trained is unclear: "
            f"the message is {short(content)!r}, rendered is {short(shown)!r}"
        )
    seam = agreed if agreed == len(opening) and agreed <= start else start
    # White space between the generation prompt and the content is the model's to write; anything more is the template's.
    return _Span(seam, seam if not text[seam:start].strip() else start, end, where)


def _agreed(a: str, b: str) -> int:
    """Return how many characters two texts have in common from the start."""
    if a.startswith(b) or b.startswith(a):
        return min(len(a), len(b))
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)


def _kept(shown: str, content: str) -> bool:
    """Whether the template shows the content, or what is left of it after a closed block such as `<think>…</think>`."""
    shown, content = squash(shown), squash(content)
    dropped = content[: len(content) - len(shown)]
    return content.endswith(shown) and (not dropped or re.search(r"</\w+>$", dropped) is not None)


# From characters to tokens -------------------------------------------------------------------------------------------


def _tokenise(tokenizer: Any, text: str, seams: Sequence[int]) -> _Tokens:
    """Tokenise such that at each seam the ids so far are those of the text so far, as generation would see them."""
    done = _Tokens([], [], [], [])
    begin = 0
    ids, spans = _encode(tokenizer, text, 0)
    for seam in seams:
        so_far, so_far_spans = _encode(tokenizer, text[:seam], begin)
        if ids[: len(so_far)] != so_far:  # tokens merge across the seam: cut the text there
            _extend(done, so_far, so_far_spans)
            ids, spans = _encode_rest(tokenizer, text, seam, done.ids)
            begin, so_far = seam, []
        done.seams.append(len(done.ids) + len(so_far))
    _extend(done, ids, spans)
    return done


def _extend(tokens: _Tokens, ids: list[int], spans: list[tuple[int, int]]) -> None:
    tokens.ids.extend(ids)
    tokens.starts.extend(start for start, _ in spans)
    tokens.ends.extend(end for _, end in spans)


def _encode(tokenizer: Any, text: str, begin: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenise `text[begin:]`; not from the start of the text, as what follows a special token, not as a first word."""
    anchor = specials_of(tokenizer).anchor or "" if begin else ""
    encoded = tokenizer(anchor + text[begin:], add_special_tokens=False, return_offsets_mapping=True)
    shift, skip = begin - len(anchor), 1 if anchor else 0
    ids: list[int] = encoded["input_ids"][skip:]
    return ids, [(start + shift, end + shift) for start, end in encoded["offset_mapping"][skip:]]


def _encode_rest(tokenizer: Any, text: str, begin: int, before: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenise `text[begin:]` such that, put after the ids `before`, it reads exactly as the whole text does."""
    whole = decode(tokenizer, _encode(tokenizer, text, 0)[0])
    for at in (begin, begin + 1) if text[begin : begin + 1] == " " else (begin,):  # some tokenizers add a space themselves
        ids, spans = _encode(tokenizer, text, at)
        if decode(tokenizer, before + ids) == whole:
            return ids, spans
    around = text[max(0, begin - 40) : begin + 40]
    raise DataError(
        f"the tokenizer of '{tokenizer.name_or_path}' cannot write what follows the prompt apart from it, near {around!r}: "
        "begin the answer without white space"
    )


def _end_token(tokenizer: Any, text: str, tokens: _Tokens, first: int, span: _Span) -> int:
    """Return the index of the special token that ends the turn; only white space may stand between it and the content."""
    specials = specials_of(tokenizer).ids
    for t in range(first, len(tokens.ids)):
        if tokens.ends[t] <= span.end:
            continue
        if tokens.ids[t] in specials and not text[span.end : tokens.starts[t]].strip():
            return t
        if text[span.end : tokens.ends[t]].strip():
            break
    raise DataError(
        f"{span.where}: the chat template of '{tokenizer.name_or_path}' ends the turn with no special token, so the model "
        f"would never learn to stop; after the content comes {short(text[span.end : span.end + 40])!r}"
    )
