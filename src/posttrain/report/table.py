"""The report in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .rung import LEVERS
from .words import MEASURABLE, UNIT, accuracy, duration, interval, percent, points, probability, si

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
    """Print the ladder, what each lever brought, and when what was paid once has paid."""
    console.print(_ladder(report))
    if report["oracles"]:
        console.print("[dim]Oracle rungs choose with the gold answer: what the samples hold, no method's accuracy.[/]")
    console.print(f"\n[bold]{escape(report['headline'])}[/]", highlight=False)
    for rung in report["rungs"]:
        if rung["verdict"]:
            mark = {True: "[green]+[/]", False: "[red]−[/]"}[rung["difference"]["difference"] > 0]
            mark = mark if rung["difference"]["p_holm"] < MEASURABLE else "[dim]·[/]"
            console.print(f" {mark} {escape(rung['verdict'])}", highlight=False)
    for found in report["break_even"]:
        console.print(f" [cyan]=[/] {escape(found['sentence'])}", highlight=False)


def _ladder(report: Mapping[str, Any]) -> Table:
    unit = report["unit"]
    labels = {rung["name"]: rung["label"] for rung in report["rungs"]}
    title = f"{escape(report['title'])}  [dim]n = {report['n']}[/]"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    table.add_column("rung", min_width=12, overflow="fold")
    table.add_column("accuracy, 95%", min_width=13)
    table.add_column("points, 95%", min_width=13)
    table.add_column("p Holm", justify="right")
    table.add_column("unparsed", justify="right")
    table.add_column("cut", justify="right")
    table.add_column("tokens\n/query", justify="right")
    table.add_column("FLOPs\n/query", justify="right")
    table.add_column(f"{UNIT[unit]}\nonce", justify="right")
    table.add_column("time", justify="right")
    for rung in [*report["rungs"], *report["oracles"]]:
        found = rung["difference"]
        change = f"{points(found['difference'])} {interval(found['ci95'])}" if found else ""
        if found and found["against"] != report["rungs"][0]["name"]:
            change += f"\n[dim]against {escape(labels[found['against']])}[/]"
        style = _STYLE[rung["lever"]]
        table.add_row(
            f"[{style}]{escape(rung['label'])}[/]{' ◆' if rung['pareto'] else ''}\n[dim]{LEVERS[rung['lever']]}[/]",
            accuracy(rung),
            change,
            probability(found["p_holm"]).removeprefix("= ") if found else "",
            percent(rung["unparsed_rate"]),
            percent(rung["truncated_rate"]),
            si(rung["per_query"]["tokens"]),
            si(rung["per_query"]["flops"]) if rung["per_query"]["flops"] else "",
            si(rung["fixed"][unit]) if rung["fixed"][unit] else "",
            duration(rung["seconds"]),
        )
    table.caption = "◆ no other rung is both cheaper per query and as accurate"
    table.caption_justify = "left"
    return table
