"""The report in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .alignment_table import print_alignment
from .apart_table import print_retention, print_training
from .rung import LEVERS
from .trained import columns, trained_rows
from .words import MEASURABLE, UNIT, duration, interval, percent, points, probability, si

__all__ = ["print_report"]

_STYLE = {
    "prompting": "blue",
    "test-time": "yellow",
    "fine-tuning": "green",
    "preference": "magenta",
    "combined": "red",
    "oracle": "dim",
}


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print the ladder of each task, what each lever brought, when it has paid, and what training kept."""
    steps = "" if report["others"] else report["steps"]
    tables = [report, *report["others"]] if report["rungs"] else []
    console.print(
        f"[bold]{escape(report['title'])}[/]" + (f"  [dim]n = {report['n']}[/]" if len(tables) == 1 else "") + "\n",
        highlight=False,
    )
    for table in tables:
        if len(tables) > 1:
            console.print(f"[bold]{escape(table['task'])}[/]  [dim]n = {table['n']}[/]", highlight=False)
        _print_ladder(table, console)
    if tables:
        console.print("[dim]◆ no other rung is both cheaper per query and as accurate[/]")
    if any(table["oracles"] for table in tables):
        console.print("[dim]Oracle rungs choose with the gold answer: what the samples hold, no method's accuracy.[/]")
    console.print(f"\n[bold]{escape(report['headline'])}[/] {escape(steps)}\n", highlight=False)
    for table in tables:
        if len(tables) > 1:
            console.print(f"[dim]{escape(table['task'])}[/]", highlight=False)
        _print_verdicts(table, console)
    print_alignment(report, console)
    print_retention(report, console)
    if report["trained"]:
        console.print(_trained(report["trained"], wide=console.width >= 120))
    print_training(report, console)


def _print_ladder(table: Mapping[str, Any], console: Console) -> None:
    for parts in (["accuracy", "cost"],) if console.width >= 120 else (["accuracy"], ["cost"]):
        console.print(_ladder(table, parts))
    for sentence in table["measured"]:
        console.print(f"[dim]{escape(sentence)}[/]", highlight=False)


def _print_verdicts(table: Mapping[str, Any], console: Console) -> None:
    for rung in table["rungs"]:
        if rung["verdict"]:
            mark = {True: "[green]+[/]", False: "[red]−[/]"}[rung["difference"]["difference"] > 0]
            mark = mark if rung["difference"]["p_holm"] < MEASURABLE else "[dim]·[/]"
            console.print(f" {mark} {escape(rung['verdict'])}", highlight=False)
    for found in table["break_even"]:
        console.print(f" [cyan]=[/] {escape(found['sentence'])}", highlight=False)


def _trained(stages: Sequence[Mapping[str, Any]], *, wide: bool) -> Table:
    """Return the table of training stages; a narrow one leaves out the settings and what only programs need."""
    heads = columns(stages)
    shown = [i for i, name in enumerate(heads) if wide or name not in ("method", "of all", "tokens", "FLOPs", "loss")]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i in shown:
        text = i < 2
        table.add_column(heads[i], justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in trained_rows(stages):
        table.add_row(*(escape(row[i]) for i in shown))
    return table


def _ladder(report: Mapping[str, Any], parts: Sequence[str]) -> Table:
    """Return the table with the columns of `parts`: "accuracy", "cost" or both."""
    unit = UNIT[report["unit"]]
    labels = {rung["name"]: rung["label"] for rung in report["rungs"]}
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("rung", overflow="fold", min_width=20)
    columns: dict[str, list[str]] = {
        "accuracy": ["accuracy\n95%", "points\n95% paired", "p\nHolm", "un-\nparsed", "cut by\nlength"],
        "cost": ["tokens\n/query", "FLOPs\n/query", f"{unit}\nonce", "time"],
    }
    for part in parts:
        for name in columns[part]:
            table.add_column(name, justify="right", no_wrap=True)
    for rung in [*report["rungs"], *report["oracles"]]:
        found = rung["difference"]
        what = LEVERS[rung["lever"]] + (f", against {escape(labels[found['against']])}" if found else "")
        label = f"[{_STYLE[rung['lever']]}]{escape(rung['label'])}[/]{' ◆' if rung['pareto'] else ''}"
        label += f"\n[dim]{what}[/]" if "accuracy" in parts else ""
        cells = {
            "accuracy": [
                f"{percent(rung['accuracy'])}\n[dim]{escape(interval(rung['ci95']))}[/]",
                f"{points(found['difference'])}\n[dim]{escape(interval(found['ci95']))}[/]" if found else "",
                probability(found["p_holm"]).removeprefix("= ") if found else "",
                percent(rung["unparsed_rate"]),
                percent(rung["truncated_rate"]),
            ],
            "cost": [
                si(rung["per_query"]["tokens"]),
                si(rung["per_query"]["flops"]) if rung["per_query"]["flops"] else "",
                si(rung["fixed"][report["unit"]]) if rung["fixed"][report["unit"]] else "",
                duration(rung["seconds"]),
            ],
        }
        table.add_row(label, *(cell for part in parts for cell in cells[part]))
    return table
