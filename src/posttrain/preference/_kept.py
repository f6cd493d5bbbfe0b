"""Numbers that an objective noted for each held-out row, from all processes, for what is not a sum over rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist

from ..training.processes import rank_and_world
from ..training.step import Learner

__all__ = ["numbers_of"]


def numbers_of(learner: Learner, items: Sequence[Any], noted: dict[int, list[float]]) -> Mapping[int, list[float]]:
    """Evaluate the items once more, with the weights that are exported, and return what was noted of each by its row."""
    noted.clear()
    learner.evaluate(items)
    world = rank_and_world()[1]
    if world == 1:
        return noted
    parts: list[dict[int, list[float]]] = [{} for _ in range(world)]
    dist.all_gather_object(parts, noted)
    return {row: values for part in parts for row, values in part.items()}
