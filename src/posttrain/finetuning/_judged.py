"""Scored responses: choosing or weighing the ones to learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from ..core.errors import DataError
from ..losses.judged import reward_weights
from ..training.judged import Judged

__all__ = ["best", "filtered", "need_choice", "weights"]


def best(found: Sequence[Judged]) -> list[Judged]:
    """Return each prompt's response with the highest score, the first of equal ones."""
    top: dict[int, Judged] = {}
    for judged in found:
        if judged.prompt not in top or judged.score > top[judged.prompt].score:
            top[judged.prompt] = judged
    return list(top.values())


def filtered(found: Sequence[Judged], threshold: float, of: str = "") -> list[Judged]:
    """Return the responses whose score is at least the threshold; none is a `DataError`."""
    kept = [judged for judged in found if judged.score >= threshold]
    if not kept:
        highest = max((judged.score for judged in found), default=math.nan)
        raise DataError(
            f"no response{of} has a score of at least threshold = {threshold:g} (the highest is {highest:g}): lower it"
        )
    return kept


def weights(found: Sequence[Judged], *, beta: float, over: Literal["prompt", "data"]) -> list[float]:
    """Return each response's weight, exp(score / beta) normalised to a mean of 1 (see `reward_weights`)."""
    scores_N = torch.tensor([judged.score for judged in found], dtype=torch.double)
    prompts_N = torch.tensor([judged.prompt for judged in found])
    values: list[float] = reward_weights(scores_N, prompts_N, beta=beta, over=over).tolist()
    return values


def need_choice(found: Sequence[Judged], mode: str) -> None:
    """Raise `DataError` when no prompt has two responses, so that there is nothing to compare."""
    if len({judged.prompt for judged in found}) == len(found):
        raise DataError(
            f"mode={mode} compares the responses to one prompt, but no prompt has two: use mode=filtered with a threshold, "
            "or mode=weighted with over=data"
        )
