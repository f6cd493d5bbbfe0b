"""What training kept: general tasks before and after, how much was forgotten, and how varied replies are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import ConfigError
from ..data.diversity import distinct, segmental_type_token_ratio
from ..data.words import words
from ..stats.intervals import wilson
from ..stats.paired import Paired, pooled
from .rung import Rung
from .together import difference, paired_rows
from .words import forgetting_sentence

__all__ = ["retention"]


def retention(rungs: Sequence[Rung]) -> dict[str, Any] | None:
    """Compare every model with the start on each general task; None without such rungs.

    `tasks`: per task the start's accuracy (its first rung) and each model's, with the paired difference. `forgetting`: per
    model the mean over tasks of before − after (Chaudhry et al. 2018, arXiv 1801.10112, for a single step of training); its
    interval takes the tasks as given and their examples as drawn. `diversity`: see `_varied`. `differences` are those of
    the tasks, for a common adjustment of p.
    """
    kept, sampled = ([rung for rung in rungs if rung.lever == lever] for lever in ("retention", "diversity"))
    if not kept and not sampled:
        return None
    tasks: dict[str, list[Rung]] = {}
    for rung in kept:
        tasks.setdefault(rung.asked, []).append(rung)
    told: list[dict[str, Any]] = []
    pairs: dict[str, list[tuple[str, Paired]]] = {}
    for task, (start, *after) in tasks.items():
        if not after:
            raise ConfigError(f"retention: task '{task}' is answered once, by '{start.label}': answer it after training too")
        changes = []
        for rung in after:
            pairs.setdefault(rung.model, []).append((task, paired_rows(rung.rows, start.rows)))
            changes.append(_facts(rung) | {"difference": difference(rung, start)})
        told.append({"task": task, "n": len(start.rows), "before": _facts(start), "after": changes})
    forgetting = [_forgotten(model, found) for model, found in pairs.items()]
    return {
        "headline": " ".join(forgetting_sentence(found) for found in forgetting),
        "tasks": told,
        "forgetting": forgetting,
        "diversity": [_varied(rung) for rung in sampled],
        "differences": [change["difference"] for task in told for change in task["after"]],
    }


def _facts(rung: Rung) -> dict[str, Any]:
    right = math.fsum(row.score or 0.0 for row in rung.rows)
    n = len(rung.rows)
    return {
        "name": rung.name,
        "label": rung.label,
        "model": rung.model,
        "accuracy": right / n,
        "ci95": list(wilson(right, n)),
        "unparsed_rate": sum(row.unparsed for row in rung.rows) / n,
    }


def _forgotten(model: str, found: Sequence[tuple[str, Paired]]) -> dict[str, Any]:
    """Return the mean of before − after over the tasks, and the task that lost most."""
    mean, (low, high) = pooled([pair for _, pair in found])
    task, worst = min(found, key=lambda item: item[1].difference)
    return {
        "model": model,
        "tasks": len(found),
        "forgetting": -mean,
        "ci95": [-high, -low],
        "most": {"task": task, "forgetting": -worst.difference},
    }


def _varied(rung: Rung) -> Mapping[str, Any]:
    """Return how varied sampled replies are: distinct-n over all, and within the replies to one question; and their length.

    distinct-n falls with the amount of text, so it is to be read beside the length; the share of different words in
    segments of 100 words does not. Within a question and across questions: Kirk et al. 2023, arXiv 2310.06452.
    """
    texts = [text for replies in rung.texts for text in replies]
    within = [share for replies in rung.texts if len(replies) > 1 and (share := distinct(replies, 2)) is not None]
    return {
        "name": rung.name,
        "label": rung.label,
        "model": rung.model,
        "task": rung.asked,
        "replies": len(texts),
        "words": math.fsum(len(words(text)) for text in texts) / max(len(texts), 1),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "distinct_2_within": math.fsum(within) / len(within) if within else None,
        "type_token_ratio": segmental_type_token_ratio(texts),
    }
