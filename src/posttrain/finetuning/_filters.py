"""Filters of replies: a verifier's spec with the least score that passes, as in `language>=0.9`."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import ConfigError
from ..core.protocols import Task, Verifier
from ..core.types import Example
from ..verifiers.build import build_verifier, check_spec

__all__ = ["Filter", "filters_for", "passed", "read_filter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A verifier, the least score that passes, and both as they were written."""

    written: str
    verifier: Verifier
    threshold: float


def read_filter(text: str, where: str) -> tuple[str, float]:
    """Return a filter's spec and threshold; raises `ConfigError` if it is not so written, unknown, or asks a model."""
    spec, sign, least = text.rpartition(">=")
    try:
        threshold = float(least)
    except ValueError:
        threshold, sign = 0.0, ""
    spec = spec.strip()
    if spec.startswith("(") and spec.endswith(")"):
        spec = spec[1:-1]
    if not sign or not spec:
        raise ConfigError(f"{where}: filter '{text}': write VERIFIER>=NUMBER, as in format>=1 or (repetition:n=4)>=-0.2")
    if "engine" in {f.name for f in dataclasses.fields(check_spec(spec))}:
        raise ConfigError(
            f"{where}: filter '{text}': asks a model, whose cost nobody would count: score the replies in the evaluation "
            "(best_of_n:verifier=…) and choose by value with scored_responses"
        )
    return spec, threshold


def filters_for(written: Sequence[str], task: Task, examples: Sequence[Example], where: str) -> list[Filter]:
    """Return the filters, ready for replies to these examples."""
    golds = {example.id: example for example in examples}
    read = [(each, *read_filter(each, where)) for each in written]
    return [
        Filter(written=each, verifier=build_verifier(spec, task=task, golds=golds), threshold=threshold)
        for each, spec, threshold in read
    ]


def passed(texts: Sequence[str], filters: Sequence[Filter], example: Example) -> tuple[list[str], dict[str, int]]:
    """Return the texts that pass all filters, and how many each filter stopped of those that passed the ones before it."""
    left, stopped = list(texts), {}
    for each in filters:
        scores = asyncio.run(each.verifier(example.public(), left)) if left else []
        kept = [text for text, score in zip(left, scores, strict=True) if score.value >= each.threshold]
        stopped[each.written] = len(left) - len(kept)
        left = kept
    return left, stopped
