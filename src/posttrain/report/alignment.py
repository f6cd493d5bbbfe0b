"""What judges say: how often replies are preferred, and how models stand in several objectives at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.types import Cost, Usage
from ..ledger.row import Row
from ..stats.intervals import bootstrap
from ..stats.paired import holm
from ..stats.pareto import undominated
from ..stats.resample import question_weights
from ..stats.win_rate import Outcome, win_rate
from .words import interval, percent

__all__ = ["Judged", "alignment", "outcomes_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Replies that were judged. `against` is what they were compared with; None: they were scored for `objective`."""

    name: str
    of: str  # the evaluation's name, and label
    label: str
    by: str
    rows: Sequence[Row]
    against: str | None = None
    objective: str | None = None


def alignment(
    judged: Sequence[Judged], *, weights: Mapping[str, float] | None = None, scale: str = "raw"
) -> dict[str, Any] | None:
    """Return win rates and objectives as JSON values; None where nothing was judged.

    `win_rates`: see `stats.win_rate.win_rate`, with `p_holm` over all of them and what the judge cost by comparison.
    `objectives`: see `_objectives`. Raises `DataError` when the models of one objective were asked different questions.
    """
    compared = [one for one in judged if one.against is not None]
    scored = [one for one in judged if one.objective is not None]
    if not compared and not scored:
        return None
    rates = [_facts(one) | win_rate(outcomes_of(one.rows)) for one in compared]
    for rate, p in zip(rates, holm([rate["p"] for rate in rates]), strict=True):
        rate["p_holm"] = p
        rate["sentence"] = _sentence(rate)
    return {"win_rates": rates, "objectives": _objectives(scored, weights or {}, scale) if scored else None}


def outcomes_of(rows: Sequence[Row]) -> list[Outcome]:
    """Return the rows of a judging stage as comparisons."""
    return [
        Outcome(
            item=row.example,
            win=0.5 if row.score is None else row.score,
            lengths=tuple(row.trace["lengths"]),
            said=tuple(row.trace.get("said", ())),
            judged=not row.unparsed,
        )
        for row in rows
    ]


def _facts(one: Judged) -> dict[str, Any]:
    cost = sum((row.cold() for row in one.rows), Cost())
    known = cost.flops > 0 or cost.usage == Usage()
    return {
        "name": one.name,
        "of": one.of,
        "label": one.label,
        "against": one.against,
        "by": one.by,
        "judge": {"tokens": cost.usage.tokens, "flops": cost.flops if known else None, "calls": cost.usage.calls},
    }


def _sentence(rate: Mapping[str, Any]) -> str:
    text = f"{rate['label']} is preferred to {rate['against']} in {percent(rate['rate'])} {interval(rate['ci95'])} "
    text += f"of {rate['items']} questions"
    low, high = rate["ci95"]
    text += "" if high < 0.5 or low > 0.5 else ", which is no measurable preference"
    if rate["controlled"] is not None:
        text += f"; at equal length {percent(rate['controlled'])} {interval(rate['controlled_ci95'])}"
    if rate["flips"] is not None:
        text += f"; the judge changed its mind with the order in {percent(rate['flips']['flip_rate'])} of them"
    return text + "."


def _objectives(scored: Sequence[Judged], weights: Mapping[str, float], scale: str) -> dict[str, Any]:
    """Return each model's mean in each objective, their weighted sum, and which models no other dominates.

    `weighted`: Σ_k w_k s_k / u_k over objectives k, u_k = 1 or, with `scale=standard`, the standard deviation of all scores
    of k. Intervals are bootstraps over questions; `difference` is to the first model, paired. `front`: no other model's
    means are as good in every objective and better in one. `front_share`: in what share of bootstrap draws of the
    questions, the same for all models, that holds; near 1 or 0 the questions tell it, between them they do not.
    """
    names = list(dict.fromkeys(one.objective for one in scored if one.objective is not None))
    models = {one.of: one.label for one in scored}
    by = {(one.of, one.objective): one for one in scored}
    asked = [row.example for row in scored[0].rows]
    table_MKN = np.full((len(models), len(names), len(asked)), np.nan)
    for m, model in enumerate(models):
        for k, name in enumerate(names):
            found = by.get((model, name))
            values = {row.example: row.trace["values"][0] for row in found.rows} if found is not None else {}
            if list(values) != asked:
                raise DataError(f"objective '{name}': '{model}' was not scored on the same questions as '{scored[0].of}'")
            table_MKN[m, k] = [math.nan if value is None else value for value in values.values()]
    known_N = np.isfinite(table_MKN).all(axis=(0, 1))  # a question that some score lacks is in no mean
    if not known_N.any():
        raise DataError("objectives: there is no question that every model has a score for in every objective")
    kept_MKN = table_MKN[:, :, known_N]
    unit_K = kept_MKN.std(axis=(0, 2)) if scale == "standard" else np.ones(len(names))
    weight_K = np.array([weights.get(name, 1.0) for name in names]) / np.where(unit_K > 0, unit_K, 1.0)
    sum_MN = np.einsum("k,mkn->mn", weight_K, kept_MKN)
    mean_MK = kept_MKN.mean(axis=2)
    on = undominated(mean_MK.tolist())
    drawn_DMK = np.einsum("dn,mkn->dmk", question_weights(kept_MKN.shape[2], 1000), kept_MKN)
    fronts = [undominated(points.tolist()) for points in drawn_DMK]
    told = []
    for m, (model, label) in enumerate(models.items()):
        told.append(
            {
                "of": model,
                "label": label,
                "scores": {name: _mean(kept_MKN[m, k], kept_MKN[0, k], m) for k, name in enumerate(names)},
                "weighted": _mean(sum_MN[m], sum_MN[0], m),
                "front": m in on,
                "front_share": sum(m in front for front in fronts) / len(fronts),
            }
        )
    return {
        "names": names,
        "by": {name: next(one.by for one in scored if one.objective == name) for name in names},
        "weights": {name: weights.get(name, 1.0) for name in names},
        "scale": scale,
        "questions": int(known_N.sum()),
        "left_out": int((~known_N).sum()),
        "models": told,
    }


def _mean(values_N: Any, first_N: Any, m: int) -> dict[str, Any]:
    apart = (values_N - first_N).tolist()
    return {
        "mean": float(values_N.mean()),
        "ci95": list(bootstrap(values_N.tolist())),
        "difference": float(np.mean(apart)) if m else None,
        "difference_ci95": list(bootstrap(apart)) if m else None,
    }
