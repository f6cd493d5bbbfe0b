"""Checks of training rows one by one: shapes, turns, and whether they can be rendered and masked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from ..core.errors import DataError
from .explain import encode_normal
from .findings import Level, Report, percentiles
from .formats import Conversation, Demonstration, Normal, Plain, normalise
from .question_rows import Asked, asks, read_question
from .shapes import Judgement

__all__ = ["check_encoding", "check_shapes", "check_turns", "read"]

_NO_GOLD = (
    "no gold answer (no 'answer', and no 'answer' or 'gold' in 'example'): only rewards that need none can score the "
    "replies, such as a judge, a reward model or a rule"
)
_NAMES: dict[type[Any], str] = {Plain: "text", Asked: "question"}  # of other shapes the class's own


def read(
    rows: Sequence[Mapping[str, Any]], where: str, report: Report, advance: Callable[[], object]
) -> dict[int, Normal | Asked]:
    """Return the rows of a known shape by their number from 0; the others are an error."""
    known: dict[int, Normal | Asked] = {}
    broken: dict[int, str] = {}
    for number, row in enumerate(rows):
        try:
            here = f"{where}, row {number + 1}"
            known[number] = read_question(row, here) if asks(row) else normalise(row, here)
        except DataError as error:
            broken[number] = str(error)
        advance()
    if broken:
        report.add("error", "shape", next(iter(broken.values())), list(broken))
    return known


def check_shapes(report: Report, known: Mapping[int, Normal | Asked]) -> None:
    """Count the shapes; preferences beside demonstrations, or questions beside either, are an error."""
    shapes = Counter(_NAMES.get(type(it), type(it).__name__.lower()) for it in known.values())
    report.shapes = dict(shapes.most_common())
    asked = [number for number, normal in known.items() if isinstance(normal, Asked)]
    judged = [number for number, normal in known.items() if isinstance(normal, Judgement)]
    shown = [number for number, normal in known.items() if not isinstance(normal, Asked | Judgement)]
    _mixed(report, judged, shown, "preferences and demonstrations in one set: no trainer takes both")
    _mixed(report, asked, [*judged, *shown], "questions and rows with answers in one set: no trainer learns from both")


def _mixed(report: Report, some: Sequence[int], others: Sequence[int], message: str) -> None:
    if some and others:
        report.add("error", "mixed shapes", message, sorted(some if len(some) <= len(others) else others))


def check_turns(report: Report, known: Mapping[int, Normal | Asked]) -> None:
    """Find rows that are empty, one-sided, or oddly ordered, and questions without a gold answer."""
    found: dict[tuple[Level, str, str], list[int]] = defaultdict(list)
    for number, normal in known.items():
        if isinstance(normal, Asked) and normal.gold is None:
            found["warning", "no gold", _NO_GOLD].append(number)
        if isinstance(normal, Asked | Judgement | Demonstration) and not any(m.role == "user" for m in normal.prompt):
            found["warning", "one-sided", "nobody asks: the prompt has no user turn"].append(number)
        if not isinstance(normal, Conversation):
            continue
        roles = [message.role for message in normal.messages]
        if any(message.role == "assistant" and not message.content.strip() for message in normal.messages):
            found["error", "empty", "an assistant turn is empty: the model would learn to say nothing"].append(number)
        if any(message.role != "assistant" and not message.content.strip() for message in normal.messages):
            found["warning", "empty", "a turn that is not the assistant's is empty"].append(number)
        if "user" not in roles:
            found["warning", "one-sided", "nobody asks: the conversation has no user turn"].append(number)
        if roles[-1] != "assistant":
            found["warning", "one-sided", "the last turn is not the assistant's: it is never trained"].append(number)
        if any(a == b and a != "tool" for a, b in pairwise(roles)):
            found["warning", "turns", "two turns of the same role follow each other"].append(number)
    for (level, check, message), numbers in found.items():
        report.add(level, check, message, numbers)


def check_encoding(
    report: Report,
    known: Mapping[int, Normal | Asked],
    tokenizer: Any,
    context: int | None,
    train: Literal["all", "last"],
    advance: Callable[[], object],
) -> None:
    """Render and mask every row as training would; report lengths in tokens, refused rows, and rows too long.

    A question is too long when its prompt leaves no token for a reply.
    """
    tokens, trained, prompts = [], [], []
    too_long: dict[int, int] = {}
    no_room: dict[int, int] = {}
    refused: dict[int, str] = {}
    for number, normal in known.items():
        try:
            encoded = encode_normal(tokenizer, normal, train=train)
        except DataError as error:
            refused[number] = str(error)
        else:
            lengths = [len(sequence.ids) for sequence in encoded]
            longest = max(lengths)
            if isinstance(normal, Asked):
                prompts += lengths
                if context is not None and longest >= context:
                    no_room[number] = longest
            else:
                tokens += lengths
                trained += [sequence.trained for sequence in encoded]
                if context is not None and longest > context:
                    too_long[number] = longest
        advance()
    if refused:
        first = next(iter(refused))
        report.add("error", "mask", f"row {first + 1}: {refused[first]}", list(refused))
    if too_long:
        message = f"longer than the model's context of {context} tokens, up to {max(too_long.values())}"
        report.add("error", "too long", message, list(too_long))
    if no_room:
        message = f"no room for a reply: prompts of up to {max(no_room.values())} tokens in a context of {context}"
        report.add("error", "too long", message, list(no_room))
    limit = {} if context is None else {"context": context}
    if prompts:
        report.lengths["tokens per prompt"] = percentiles(prompts) | limit
    if tokens or not prompts:
        report.lengths["tokens per sequence"] = percentiles(tokens) | limit
        report.lengths["trained tokens per sequence"] = percentiles(trained)
