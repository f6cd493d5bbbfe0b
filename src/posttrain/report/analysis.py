"""From rungs to findings: paired differences, Holm, the Pareto front, break-even. Pure; the result is JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import ConfigError
from ..stats.paired import holm
from ..stats.pareto import break_even, pareto_front
from ..stats.summary import summarise
from .retention import retention
from .rung import APART, Rung
from .together import by_task, difference
from .words import across, break_even_sentence, budget_notes, headline, measured, steps, verdict

__all__ = ["analyse"]


def analyse(
    title: str,
    rungs: Sequence[Rung],
    *,
    meta: Mapping[str, Any],
    notes: Sequence[str],
    training: Sequence[Mapping[str, Any]] = (),
    judged: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the whole report as JSON values.

    The first rung's task is the report's; rungs of others stand under `others`, task by task. Raises `DataError` when rungs
    of one task answer different examples, `ConfigError` for an unknown or repeated rung name.
    """
    if not rungs and not training and not judged:
        raise ConfigError("a report needs at least one rung")
    tasks = by_task(rungs)
    ladders = [[rung for rung in group if rung.lever not in APART] for group in tasks]
    tables = [_table(ladder) for ladder in ladders if ladder]
    kept = retention(rungs)
    compared = [facts for table in tables for facts in table.shown[1:]]
    differences = [*(facts["difference"] for facts in compared), *(kept["differences"] if kept else ())]
    for found, p in zip(differences, holm([found["p"] for found in differences]), strict=True):
        found["p_holm"] = p
    told = [_told(table) for table in tables] or [_NOTHING]
    first, others = told[0], told[1:]
    return {
        "title": title,
        **first,
        "headline": across(told) if others else first["headline"] or (kept["headline"] if kept else ""),
        "first_headline": first["headline"],
        "others": others,
        "retention": kept and {name: value for name, value in kept.items() if name != "differences"},
        "training": list(training),
        "alignment": judged,
        "totals": _totals([facts for table in tables for facts in table.shown]) if tables else None,
        "comparisons": len(differences),
        "notes": [*notes, *budget_notes([rung for table in told for rung in table["rungs"]])],
        "meta": dict(meta),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The rungs of one task: those that are methods, the first of them the reference, and oracles."""

    rungs: Sequence[Rung]
    shown: list[dict[str, Any]]
    oracles: list[dict[str, Any]]
    unit: str


_NOTHING: dict[str, Any] = {
    "task": "",
    "n": 0,
    "unit": "tokens",
    "headline": "",
    "steps": "",
    "rungs": [],
    "oracles": [],
    "pareto": [],
    "break_even": [],
    "measured": [],
}


def _table(rungs: Sequence[Rung]) -> _Table:
    """Compare the rungs of one task; what needs the adjusted p is told later."""
    by_name = {rung.name: rung for rung in rungs}
    first = rungs[0]
    if first.oracle:
        raise ConfigError(f"the first rung '{first.name}' is an oracle: put a method first, others are compared with it")
    methods = [rung for rung in rungs if not rung.oracle]
    found = {rung.name: _facts(rung) for rung in rungs}
    unit = "flops" if all((found[rung.name]["per_query"]["flops"] or 0) > 0 for rung in methods) else "tokens"
    for rung in methods[1:]:
        reference = by_name[rung.against or first.name]
        found[rung.name]["difference"] = _difference(rung, reference, unit)
        found[rung.name]["over_first"] = _difference(rung, first, unit)
        found[rung.name]["cost_ratio"] = _ratio(found[rung.name], found[reference.name], unit)
    return _Table(
        rungs=rungs,
        shown=[found[rung.name] for rung in methods],
        oracles=[found[rung.name] for rung in rungs if rung.oracle],
        unit=unit,
    )


def _told(table: _Table) -> dict[str, Any]:
    """Return what the report says of one task, once p is adjusted."""
    shown, unit = table.shown, table.unit
    labels = {facts["name"]: facts["label"] for facts in shown}
    for facts in shown[1:]:
        facts["verdict"] = verdict(facts, labels[facts["difference"]["against"]], unit)
    front = pareto_front([(facts["per_query"][unit], facts["accuracy"]) for facts in shown])
    for index in front:
        shown[index]["pareto"] = True
    return {
        "task": table.rungs[0].asked,
        "n": len(table.rungs[0].rows),
        "unit": unit,
        "headline": headline(shown),
        "steps": steps(shown),
        "rungs": shown,
        "oracles": table.oracles,
        "pareto": [shown[index]["name"] for index in front],
        "break_even": _break_evens(shown, unit),
        "measured": measured(shown),
    }


def _facts(rung: Rung) -> dict[str, Any]:
    summary = summarise(rung.rows, rung.timings, seconds=rung.seconds)
    told = summary.to_dict()
    fixed = rung.fixed
    return {
        "name": rung.name,
        "label": rung.label,
        "lever": "oracle" if rung.oracle else rung.lever,
        "model": rung.model,
        "parameters": rung.parameters,
        "prompt": rung.prompt,
        "strategy": rung.strategy,
        "samples": max(len(row.candidates) for row in rung.rows),
        "accuracy": told["accuracy"],
        "ci95": told["ci95"],
        "n": told["n"],
        "unparsed_rate": told["unparsed_rate"],
        "truncated_rate": told["truncated_rate"],
        "error_rate": told["error_rate"],
        "budget_rate": told["budget_rate"],
        "measures": told["measures"],
        "per_query": told["per_query"],
        "usage": told["usage"],
        "spent": told["spent"],
        "seconds": rung.seconds,
        "fixed": {"tokens": fixed.usage.tokens, "flops": fixed.flops, "seconds": fixed.seconds},
        "difference": None,
        "over_first": None,
        "cost_ratio": None,
        "pareto": False,
        "verdict": "",
        "note": rung.note,
    }


def _totals(shown: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return what the evaluations cost cold and what was really computed, oracles (nobody's samples anew) left out.

    FLOPs are null when they are unknown for one of them.
    """
    known = all(facts["spent"]["flops"] is not None for facts in shown)
    return {
        "tokens": sum(facts["n"] * facts["per_query"]["tokens"] for facts in shown),
        "tokens_spent": sum(facts["spent"]["tokens"] for facts in shown),
        "flops": math.fsum(facts["n"] * facts["per_query"]["flops"] for facts in shown) if known else None,
        "flops_spent": math.fsum(facts["spent"]["flops"] for facts in shown) if known else None,
        "seconds": math.fsum(facts["seconds"] for facts in shown),
    }


def _difference(rung: Rung, reference: Rung, unit: str) -> dict[str, Any]:
    fixed = reference.fixed.flops if unit == "flops" else reference.fixed.usage.tokens
    return {**difference(rung, reference), "reference_fixed": fixed}


def _ratio(facts: Mapping[str, Any], reference: Mapping[str, Any], unit: str) -> float | None:
    base = reference["per_query"][unit]
    return facts["per_query"][unit] / base if base > 0 else None


def _break_evens(shown: Sequence[dict[str, Any]], unit: str) -> list[dict[str, Any]]:
    """For every method with a fixed cost: against the best one that has less to pay once, and the best that has nothing.

    Only methods of equal or lower accuracy are alternatives: a cheaper and better one leaves nothing to pay back.
    """
    paying: list[dict[str, Any]] = []
    for facts in shown:
        if facts["fixed"][unit] <= 0:
            continue
        cheaper = [other for other in shown if other["fixed"][unit] < facts["fixed"][unit]]
        lower = [other for other in cheaper if other["accuracy"] <= facts["accuracy"]]
        others = [_best(lower, unit), _best([other for other in lower if other["fixed"][unit] == 0], unit)]
        if others[0] is None or others[1] is None or others[1] is others[0]:
            others = others[:1]
        for other in others:
            paying.append(_break_even(facts, other, unit))
    return paying


def _best(found: Sequence[dict[str, Any]], unit: str) -> dict[str, Any] | None:
    return max(found, key=lambda other: (other["accuracy"], -other["per_query"][unit]), default=None)


def _break_even(facts: Mapping[str, Any], other: Mapping[str, Any] | None, unit: str) -> dict[str, Any]:
    pays: dict[str, Any] = {
        "rung": facts["name"],
        "against": None,
        "queries": None,
        "more_once": None,
        "saved_per_query": None,
    }
    if other is not None:
        ours, theirs = facts["per_query"][unit], other["per_query"][unit]
        queries = break_even(facts["fixed"][unit], ours, other["fixed"][unit], theirs)
        pays |= {
            "against": other["name"],
            "queries": queries if math.isfinite(queries) else None,
            "more_once": facts["fixed"][unit] - other["fixed"][unit],
            "saved_per_query": theirs - ours,
        }
    return pays | {"sentence": break_even_sentence(pays, facts, other, unit)}
