"""What judges say: how often replies are preferred, and how models stand in several objectives at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError
from ..core.types import Cost, Usage
from ..ledger.row import Row
from ..stats.paired import holm
from ..stats.pareto import undominated
from ..stats.resample import interval as percentiles
from ..stats.resample import question_weights
from ..stats.win_rate import Outcome, win_rate
from .words import interval, percent

__all__ = ["Judged", "alignment", "outcomes_of"]

Array = NDArray[np.float64]
_DRAWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Replies that were judged. `against` is what they were compared with; None: they were scored for `objective`."""

    name: str
    of: str  # the evaluation's name, and label; for objectives: the first of the model's evaluations
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

    `weighted`: Σ_k w_k m_k / u_k over the means m_k of objectives k, u_k = 1 or, with `scale=standard`, the standard
    deviation of all scores of k. Intervals are bootstraps over questions, the same draws for all models, and for objectives
    on the same questions; `difference` is to the first model. `front`: no other model's means are as good in every objective
    and better in one; `front_share`: in what share of the draws that holds: near 1 or 0 the questions tell it.
    """
    names = list(dict.fromkeys(one.objective for one in scored if one.objective is not None))
    models = {one.of: one.label for one in scored}
    tables = {name: _table([one for one in scored if one.objective == name], list(models)) for name in names}
    kept, drawn, left_out = {}, {}, 0
    for number, questions in enumerate(dict.fromkeys(questions for questions, _ in tables.values())):
        inside = [name for name in names if tables[name][0] == questions]
        known_N = np.isfinite([tables[name][1] for name in inside]).all(axis=(0, 1))
        if not known_N.any():
            raise DataError(f"objective '{inside[0]}': there is no question for which every model has a score")
        left_out += int((~known_N).sum())
        weights_DN = question_weights(int(known_N.sum()), _DRAWS, number)
        for name in inside:
            kept[name] = tables[name][1][:, known_N]
            drawn[name] = weights_DN @ kept[name].T
    drawn_DMK = np.stack([drawn[name] for name in names], axis=2)
    mean_MK = np.stack([kept[name].mean(axis=1) for name in names], axis=1)
    spread_K = np.array([kept[name].std() for name in names])
    unit_K = np.where(spread_K > 0, spread_K, 1.0) if scale == "standard" else np.ones(len(names))
    weight_K = np.array([weights.get(name, 1.0) for name in names]) / unit_K
    fronts = [undominated(points.tolist()) for points in drawn_DMK]
    on = undominated(mean_MK.tolist())
    sums_M, sums_DM = mean_MK @ weight_K, drawn_DMK @ weight_K
    return {
        "names": names,
        "by": {name: next(one.by for one in scored if one.objective == name) for name in names},
        "weights": {name: weights.get(name, 1.0) for name in names},
        "scale": scale,
        "questions": {name: kept[name].shape[1] for name in names},
        "left_out": left_out,
        "models": [
            {
                "of": model,
                "label": label,
                "scores": {name: _mean(mean_MK[:, k], drawn_DMK[:, :, k], m) for k, name in enumerate(names)},
                "weighted": _mean(sums_M, sums_DM, m),
                "front": m in on,
                "front_share": sum(m in front for front in fronts) / len(fronts),
            }
            for m, (model, label) in enumerate(models.items())
        ],
    }


def _table(scored: Sequence[Judged], models: Sequence[str]) -> tuple[tuple[str, ...], Array]:
    """Return the questions of one objective and its scores [models, questions], nan where there is none."""
    by = {one.of: {row.example: row.trace["values"][0] for row in one.rows} for one in scored}
    questions = tuple(next(iter(by.values())))
    for model in models:
        if tuple(by.get(model, ())) != questions:
            raise DataError(f"objective '{scored[0].objective}': '{model}' was not scored on the questions of the others")
    return questions, np.array([[math.nan if v is None else v for v in by[model].values()] for model in models])


def _mean(mean_M: Array, drawn_DM: Array, m: int) -> dict[str, Any]:
    return {
        "mean": float(mean_M[m]),
        "ci95": list(percentiles(drawn_DM[:, m])),
        "difference": float(mean_M[m] - mean_M[0]) if m else None,
        "difference_ci95": list(percentiles(drawn_DM[:, m] - drawn_DM[:, 0])) if m else None,
    }
