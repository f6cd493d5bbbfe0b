"""What curves say, in plain sentences: savings, levels reached, crossings; what never happens is said as plainly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .words import UNIT, interval, percent, points, si

__all__ = ["curve_sentences"]

Facts = Mapping[str, Any]


def curve_sentences(found: Facts) -> list[str]:
    """Return the findings of `curve.json`: savings at the largest n, then the crossings."""
    largest = [one for one in found["savings"] if one["n"] == max(found["sizes"])]
    told = [saving_sentence(one, several=len(found["models"]) > 1) for one in largest]
    for one in found["crossings"]:
        told.append(reach_sentence(one) if one["kind"] == "reach" else equal_cost_sentence(one))
    return told


def saving_sentence(one: Facts, *, several: bool) -> str:
    """Return what adaptive or compute-optimal spending saves against uniform spending."""
    who = f"{one['model']}, {one['strategy']}" if several else one["strategy"]
    difference = f"{points(one['difference'])} points {interval(one['difference_ci95'])}"
    share = f"{percent(one['cost_ratio'])} {interval(one['cost_ratio_ci95'])} of its {one['unit']}"
    text = f"{who} against {one['uniform']} at n = {one['n']} ({percent(one['uniform_accuracy'])}): {difference} for {share}"
    return text + (
        f"; at equal accuracy it needs {percent(one['fraction'])} {interval(one['fraction_ci95'])} of the {one['unit']}."
    )


def reach_sentence(one: Facts) -> str:
    """Return where a model's curve has the accuracy of a better model's single sample, if it ever has."""
    unit = UNIT[one["unit"]]
    better = f"{_model(one)} (one sample: {percent(one['target'])} at {si(one['reference_cost'])} {unit})"
    who = f"{one['model']} with {one['strategy']}"
    if one["ratio"] is None:
        text = f"{who} does not reach {better} with up to {one['n']} samples: {percent(one['best'])} at most"
        return text + (f", and in {percent(one['never'])} of the resamples it does not." if one["never"] < 1 else ".")
    ratio = one["ratio"]
    compute = f"1/{_times(1 / ratio)} of" if ratio <= 1 else f"{_times(ratio)} times"
    low, high = one["ci95"]
    bounds = f"[{_share(low)}, {_share(high)}] of it" if high is not None else f"from {_share(low)} of it, no upper bound"
    text = f"{who} equals {better} at {compute} its {unit}" + (" or less" if one["at_start"] else "")
    text += f" ({si(one['cost'])}; interval {bounds})"
    return text + (f"; in {percent(one['never'])} of the resamples it never does." if one["never"] > 0 else ".")


def equal_cost_sentence(one: Facts) -> str:
    """Return where two models' curves cross at equal cost, or which is above throughout."""
    unit = UNIT[one["unit"]]
    both = f"{one['model']} and {one['other']} with {one['strategy']}"
    if one["span"] is None:
        return f"{both}: no {unit} in common, so nothing can be said at equal cost."
    low, high = (si(cost) for cost in one["span"])
    if one["above"] is None:
        return f"{both}: the same accuracy at equal {unit} from {low} to {high}."
    if one["cost"] is None:
        winner, share = _winner(one)
        text = f"{both} do not cross: at equal {unit}, from {low} to {high}, {winner} is above throughout"
        return text + f" (at {high} in {percent(share)} of the resamples)."
    winner, share = _winner(one)
    bounds = f" [{', '.join(si(cost) for cost in one['ci95'])}]" if one["ci95"] else ""
    text = f"{both} cross at {si(one['cost'])}{bounds} {unit}: beyond it, as far as {high}, {winner} is above"
    text += f" (at {high} in {percent(share)} of the resamples)"
    return text + (f"; in {percent(one['never'])} of the resamples they do not cross." if one["never"] > 0 else ".")


def _winner(one: Facts) -> tuple[str, float]:
    share = one["above_share"]
    return (one["model"], share) if one["above"] else (one["other"], 1 - share)


def _model(one: Facts) -> str:
    ratio = one["size_ratio"]
    if ratio is None:
        return str(one["reference"])
    if 0.98 <= ratio <= 1.02:
        return f"{one['reference']}, a model of its own size"
    size = f"a model {_times(ratio)} times larger" if ratio > 1 else f"a model {_times(1 / ratio)} times smaller"
    return f"{one['reference']}, {size}"


def _times(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _share(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"
