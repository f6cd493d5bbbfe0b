"""Reasoning in steps as token ids: what models of steps read, process reward and value, in training and as verifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.types import Message
from .chat import render_prompt

__all__ = ["lay_out_steps", "step_starts"]


def lay_out_steps(
    tokenizer: Any, prompt: Sequence[Message], steps: Sequence[str], *, tag: str, chat: bool
) -> tuple[list[int], list[int]]:
    """Return the ids of question, step, tag, step, tag, …, each tokenised by itself, and where each tag ends.

    The question is in the chat template, or (`chat=False`) plain text behind the start token, if there is one.
    """
    closing = tokenizer(tag, add_special_tokens=False)["input_ids"]
    if chat:
        ids = list(render_prompt(tokenizer, prompt))
    else:
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        plain = "\n\n".join(message.content for message in prompt)
        ids = start + tokenizer(plain, add_special_tokens=False)["input_ids"]
    positions = []
    for step in steps:
        ids += tokenizer(step, add_special_tokens=False)["input_ids"] + closing
        positions.append(len(ids) - 1)
    return ids, positions


def step_starts(tokenizer: Any, ids: Sequence[int], *, separator: str, closed: bool) -> tuple[int, ...]:
    """Return at which of a reply's tokens its steps begin, the first at 0: each with the separator that ends the one before.

    So what stands in front of a step ends with the last word of the step before, whether a separator or the end of the turn
    follows: the same state for a reply that goes on and for one that is complete. With `closed` the last token is the end
    of the turn, a step of its own. Steps without words are none: they belong to the next one.
    """
    pieces = _pieces(tokenizer, ids)
    begins = [0]
    for piece in pieces:
        begins.append(begins[-1] + len(piece))
    text, starts, spoken = "".join(pieces), [0], 0
    end = begins[-2] if closed else len(text)
    token = 0
    while 0 <= (at := text.find(separator, spoken)) < end:
        while begins[token + 1] <= at:
            token += 1
        if text[spoken:at].strip() and token > starts[-1]:
            starts.append(token)
        spoken = at + len(separator)
    if closed and text[spoken:end].strip() and len(ids) - 1 > starts[-1]:
        starts.append(len(ids) - 1)
    return tuple(starts)


def _pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds behind the one before it; of a character in several tokens the first has all."""

    def text(some: Sequence[int]) -> str:
        found: str = tokenizer.decode(some, clean_up_tokenization_spaces=False)
        return found

    alone = [text([one]) for one in ids]
    return [text(ids[t - 1 : t + 1])[len(alone[t - 1]) :] if t else alone[0] for t in range(len(ids))]
