"""From rungs to findings: paired differences, Holm, the Pareto front, break-even. Pure; the result is JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import ConfigError, DataError, did_you_mean
from ..ledger.row import Row
from ..stats.paired import Paired, compare, holm
from ..stats.pareto import break_even, pareto_front
from ..stats.summary import summarise
from .rung import Rung
from .words import break_even_sentence, budget_notes, headline, steps, verdict

__all__ = ["analyse", "paired_rows"]


def analyse(title: str, rungs: Sequence[Rung], *, meta: Mapping[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """Return the whole report as JSON values.

    Raises `DataError` when rungs answer different examples, `ConfigError` for an unknown or repeated rung name.
    """
    by_name = _by_name(rungs)
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
    compared = [found[rung.name] for rung in methods[1:]]
    adjusted = holm([facts["difference"]["p"] for facts in compared])
    for facts, p in zip(compared, adjusted, strict=True):
        facts["difference"]["p_holm"] = p
        facts["verdict"] = verdict(facts, found[facts["difference"]["against"]]["label"], unit)
    shown = [found[rung.name] for rung in methods]
    front = pareto_front([(facts["per_query"][unit], facts["accuracy"]) for facts in shown])
    for index in front:
        shown[index]["pareto"] = True
    return {
        "title": title,
        "task": first.rows[0].task,
        "n": len(first.rows),
        "unit": unit,
        "headline": headline(shown),
        "steps": steps(shown),
        "rungs": shown,
        "oracles": [found[rung.name] for rung in rungs if rung.oracle],
        "pareto": [shown[index]["name"] for index in front],
        "break_even": _break_evens(shown, unit),
        "totals": _totals(shown),
        "notes": [*notes, *budget_notes(shown)],
        "meta": dict(meta),
    }


def paired_rows(rung: Sequence[Row], reference: Sequence[Row]) -> Paired:
    """Compare two lists of rows of the same examples; a row without a score counts as wrong."""
    ours = {row.example: row.score or 0.0 for row in rung}
    theirs = {row.example: row.score or 0.0 for row in reference}
    try:
        return compare([ours[example] for example in theirs], list(theirs.values()))
    except ValueError as error:
        raise DataError(f"cannot compare the two evaluations: {error}") from None


def _by_name(rungs: Sequence[Rung]) -> dict[str, Rung]:
    if not rungs:
        raise ConfigError("a report needs at least one rung")
    by_name: dict[str, Rung] = {}
    for rung in rungs:
        if rung.name in by_name:
            raise ConfigError(f"two rungs are called '{rung.name}'")
        if not rung.rows:
            raise DataError(f"rung '{rung.name}' has no rows: its evaluation did not finish")
        by_name[rung.name] = rung
    first = rungs[0]
    asked = {row.example for row in first.rows}
    for rung in rungs:
        if len({row.example for row in rung.rows}) != len(rung.rows):
            raise DataError(f"rung '{rung.name}' has two rows for one example")
        odd = asked ^ {row.example for row in rung.rows}
        if odd:
            raise DataError(
                f"rungs '{first.name}' ({len(asked)} examples) and '{rung.name}' ({len(rung.rows)}) answer different "
                f"examples, for instance '{min(odd)}': a paired comparison needs the same ones"
            )
        if rung.rows[0].task != first.rows[0].task:
            raise DataError(
                f"rungs '{first.name}' and '{rung.name}' are of different tasks: {first.rows[0].task}, {rung.rows[0].task}"
            )
        if rung.against is not None and rung.against not in by_name:
            raise ConfigError(f"rung '{rung.name}' is compared with '{rung.against}'{did_you_mean(rung.against, by_name)}")
        if rung.against is not None and by_name[rung.against].oracle:
            raise ConfigError(f"rung '{rung.name}' is compared with the oracle '{rung.against}': an oracle is no method")
    return by_name


def _facts(rung: Rung) -> dict[str, Any]:
    summary = summarise(rung.rows, rung.timings, seconds=rung.seconds)
    told = summary.to_dict()
    fixed = rung.fixed
    return {
        "name": rung.name,
        "label": rung.label,
        "lever": "oracle" if rung.oracle else rung.lever,
        "model": rung.model,
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
    pair = paired_rows(rung.rows, reference.rows)
    return {
        "against": reference.name,
        "difference": pair.difference,
        "ci95": list(pair.ci95),
        "gained": pair.gained,
        "lost": pair.lost,
        "p": pair.p,
        "reference_fixed": reference.fixed.flops if unit == "flops" else reference.fixed.usage.tokens,
    }


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
