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
from .shapes import Judgement

__all__ = ["check_encoding", "check_shapes", "check_turns", "read"]


def read(rows: Sequence[Mapping[str, Any]], where: str, report: Report, advance: Callable[[], object]) -> dict[int, Normal]:
    """Return the rows of a known shape by their number from 0; the others are an error."""
    known: dict[int, Normal] = {}
    broken: dict[int, str] = {}
    for number, row in enumerate(rows):
        try:
            known[number] = normalise(row, f"{where}, row {number + 1}")
        except DataError as error:
            broken[number] = str(error)
        advance()
    if broken:
        report.add("error", "shape", next(iter(broken.values())), list(broken))
    return known


def check_shapes(report: Report, known: Mapping[int, Normal]) -> None:
    """Count the shapes; preferences beside demonstrations are an error."""
    shapes = Counter("text" if isinstance(it, Plain) else type(it).__name__.lower() for it in known.values())
    report.shapes = dict(shapes.most_common())
    judged = [number for number, normal in known.items() if isinstance(normal, Judgement)]
    if judged and len(judged) < len(known):
        fewer = judged if 2 * len(judged) <= len(known) else [number for number in known if number not in set(judged)]
        report.add("error", "mixed shapes", "preferences and demonstrations in one set: no trainer takes both", fewer)


def check_turns(report: Report, known: Mapping[int, Normal]) -> None:
    """Find rows that are empty, one-sided, or oddly ordered, and preferences without a difference."""
    found: dict[tuple[Level, str, str], list[int]] = defaultdict(list)
    for number, normal in known.items():
        if isinstance(normal, Judgement | Demonstration) and not any(m.role == "user" for m in normal.prompt):
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
    known: Mapping[int, Normal],
    tokenizer: Any,
    context: int | None,
    train: Literal["all", "last"],
    advance: Callable[[], object],
) -> None:
    """Render and mask every row as training would; report lengths in tokens, refused rows, and rows too long."""
    tokens, trained, too_long = [], [], {}
    refused: dict[int, str] = {}
    for number, normal in known.items():
        try:
            encoded = encode_normal(tokenizer, normal, train=train)
        except DataError as error:
            refused[number] = str(error)
        else:
            tokens += [len(sequence.ids) for sequence in encoded]
            trained += [sequence.trained for sequence in encoded]
            longest = max(len(sequence.ids) for sequence in encoded)
            if context is not None and longest > context:
                too_long[number] = longest
        advance()
    if refused:
        first = next(iter(refused))
        report.add("error", "mask", f"row {first + 1}: {refused[first]}", list(refused))
    if too_long:
        message = f"longer than the model's context of {context} tokens, up to {max(too_long.values())}"
        report.add("error", "too long", message, list(too_long))
    report.lengths["tokens per sequence"] = percentiles(tokens) | ({} if context is None else {"context": context})
    report.lengths["trained tokens per sequence"] = percentiles(trained)
