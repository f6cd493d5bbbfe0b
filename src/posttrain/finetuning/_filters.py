"""Filters of replies: a verifier's spec with the least score that passes, as in `language>=0.9`."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from ..core.errors import ConfigError
from ..core.protocols import Task
from ..core.types import Example
from ..verifiers.build import build_verifier, check_spec

__all__ = ["passed", "read_filter"]


def read_filter(text: str, where: str) -> tuple[str, float]:
    """Return a filter's spec and threshold; raises `ConfigError` if it is not so written, unknown, or asks a model."""
    spec, sign, least = text.rpartition(">=")
    try:
        threshold = float(least)
    except ValueError:
        sign = ""
        threshold = 0.0
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


def passed(
    texts: Sequence[str], filters: Sequence[str], *, task: Task, example: Example, where: str
) -> tuple[list[str], dict[str, int]]:
    """Return the texts that pass all filters, and how many each filter stopped of those that passed the ones before it."""
    left, stopped = list(texts), {}
    for each in filters:
        spec, threshold = read_filter(each, where)
        verifier = build_verifier(spec, task=task, golds={example.id: example})
        scores = asyncio.run(verifier(example.public(), left)) if left else []
        kept = [text for text, score in zip(left, scores, strict=True) if score.value >= threshold]
        stopped[each] = len(left) - len(kept)
        left = kept
    return left, stopped
