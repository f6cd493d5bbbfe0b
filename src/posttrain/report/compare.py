"""Comparing finished evaluations: paired over the examples they share, each against the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.errors import DataError
from ..ledger.store import Loaded, load_ledger
from ..stats.paired import holm
from ..stats.summary import summarise
from .analysis import paired_rows
from .words import accuracy, interval, percent, points, probability, si

__all__ = ["compare_ledgers", "print_comparison"]


def compare_ledgers(folders: Sequence[Path]) -> dict[str, Any]:
    """Compare evaluations on the examples that all of them have answered; differences are against the first.

    Raises `DataError` for ledgers of different tasks or without a common example.
    """
    loaded = [load_ledger(folder) for folder in folders]
    for folder, one in zip(folders, loaded, strict=True):
        if not one.rows:
            raise DataError(f"{folder}: the ledger has no finished row")
        if one.rows[0].task != loaded[0].rows[0].task:
            raise DataError(
                f"{folders[0]} and {folder} are of different tasks: {loaded[0].rows[0].task}, {one.rows[0].task}"
            )
    shared = set.intersection(*({row.example for row in one.rows} for one in loaded))
    if not shared:
        raise DataError("the evaluations have no example in common: compare runs of the same task, split and seed")
    found = [_facts(folder, one, shared) for folder, one in zip(folders, loaded, strict=True)]
    first = [row for row in loaded[0].rows if row.example in shared]
    for facts, one in zip(found[1:], loaded[1:], strict=True):
        pair = paired_rows([row for row in one.rows if row.example in shared], first)
        facts["difference"] = {
            "difference": pair.difference,
            "ci95": list(pair.ci95),
            "gained": pair.gained,
            "lost": pair.lost,
            "p": pair.p,
        }
    adjusted = holm([facts["difference"]["p"] for facts in found[1:]])
    for facts, p in zip(found[1:], adjusted, strict=True):
        facts["difference"]["p_holm"] = p
    return {"task": first[0].task, "n": len(shared), "evaluations": found}


def _facts(folder: Path, loaded: Loaded, shared: set[str]) -> dict[str, Any]:
    kept = [index for index, row in enumerate(loaded.rows) if row.example in shared]
    rows = [loaded.rows[index] for index in kept]
    told = summarise(rows, [loaded.timings[index] for index in kept]).to_dict()
    left = ("accuracy", "ci95", "n", "unparsed_rate", "truncated_rate", "error_rate", "cost")
    return {
        "folder": str(folder),
        "model": rows[0].model,
        "prompt": rows[0].prompt,
        "strategy": rows[0].strategy,
        "seed": rows[0].seed,
        "answered": len(loaded.rows),
        **{name: told[name] for name in left},
        "per_query": {name: told["per_query"][name] for name in ("calls", "tokens", "generated", "flops")},
        "difference": None,
    }


def print_comparison(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a comparison as a table."""
    title = f"{escape(found['task'])}  [dim]{found['n']} shared examples; differences against the first[/]"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for name in ("evaluation", "accuracy, 95%", "points, 95%"):
        table.add_column(name, overflow="fold")
    for name in ("won : lost", "p Holm", "unparsed", "cut", "tokens\n/query", "FLOPs\n/query"):
        table.add_column(name, justify="right")
    for facts in found["evaluations"]:
        pair = facts["difference"]
        more = "" if facts["answered"] == found["n"] else f" ({facts['answered']} answered)"
        what = f"{facts['model']}, {facts['prompt']}, {facts['strategy']}"
        table.add_row(
            f"{escape(facts['folder'])}{more}\n[dim]{escape(what)}[/]",
            accuracy(facts),
            f"{points(pair['difference'])} {interval(pair['ci95'])}" if pair else "",
            f"{pair['gained']} : {pair['lost']}" if pair else "",
            probability(pair["p_holm"]).removeprefix("= ") if pair else "",
            percent(facts["unparsed_rate"]),
            percent(facts["truncated_rate"]),
            si(facts["per_query"]["tokens"]),
            si(facts["per_query"]["flops"]) if facts["per_query"]["flops"] else "",
        )
    (console or Console()).print(table)
