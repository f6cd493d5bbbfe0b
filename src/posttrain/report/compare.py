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
from .together import paired_rows
from .words import interval, percent, points, probability, si

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
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("evaluation", overflow="fold", min_width=12)
    for name in (
        "accuracy\n95%",
        "points\n95% paired",
        "won :\nlost",
        "p\nHolm",
        "unparsed\ncut",
        "tokens/q\nFLOPs/q",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for facts in found["evaluations"]:
        pair = facts["difference"]
        more = "" if facts["answered"] == found["n"] else f" ({facts['answered']} answered)"
        what = f"{facts['model']}, {facts['prompt']}, {facts['strategy']}"
        table.add_row(
            f"{escape(facts['folder'])}{more}\n[dim]{escape(what)}[/]",
            f"{percent(facts['accuracy'])}\n[dim]{escape(interval(facts['ci95']))}[/]",
            f"{points(pair['difference'])}\n[dim]{escape(interval(pair['ci95']))}[/]" if pair else "",
            f"{pair['gained']} : {pair['lost']}" if pair else "",
            probability(pair["p_holm"]).removeprefix("= ") if pair else "",
            f"{percent(facts['unparsed_rate'])}\n{percent(facts['truncated_rate'])}",
            si(facts["per_query"]["tokens"])
            + (f"\n{si(facts['per_query']['flops'])}" if facts["per_query"]["flops"] else ""),
        )
    shown = console or Console()
    shown.print(
        f"[bold]{escape(found['task'])}[/]  [dim]n = {found['n']} shared; differences against the first[/]", highlight=False
    )
    shown.print(table)
