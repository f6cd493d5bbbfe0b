"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["show_methods", "show_pairs", "show_result"]


def show_pairs(left: str, right: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print two columns."""
    table = Table(left, right, box=None, pad_edge=False)
    for name, what in rows:
        table.add_row(name, what)
    Console().print(table)


def show_methods(found: Sequence[Mapping[str, Any]]) -> None:
    """Print the methods by lever: what each is, its settings, what it needs and costs, how it fails, if it is measured."""
    console = Console()
    for lever in dict.fromkeys(method["lever"] for method in found):
        table = Table(title=lever, title_justify="left", title_style="bold", show_lines=True)
        for column in ("method", "what, where from", "settings", "costs; fails when"):
            table.add_column(column, overflow="fold")
        for method in found:
            if method["lever"] != lever:
                continue
            what = method["summary"] + (f"\n[dim]{method['paper']}[/]" if method["paper"] else "")
            what += f"\nneeds an engine with: {method['needs']}" if method["needs"] else ""
            what += "".join(f"\n{other}: {spec}" for other, spec in method["known_as"].items())
            settings = [*method["settings"], *(["and those of every trainer (docs: training)"] if method["shared"] else [])]
            price = "\n".join(text for text in (method["cost"], method["fails"]) if text)
            name = f"[bold]{method['name']}[/]" + ("" if method["measured"] else "\n[yellow]not measured yet[/]")
            table.add_row(name, what, "\n".join(settings), price)
        console.print(table)


def show_result(result: Mapping[str, Any]) -> None:
    """Print one evaluation."""
    low, high = result["ci95"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row(
        "accuracy", f"[bold]{result['accuracy']:.1%}[/]  (95% interval {low:.1%} to {high:.1%}, n = {result['n']})"
    )
    if result["oracle"]:
        table.add_row("", "[yellow]an oracle chose with the gold answers: pass@N, no method's accuracy[/]")
    for name, found in result["measures"].items():
        low, high = found["ci95"]
        table.add_row(name, f"{found['value']:.1%}  (95% interval {low:.1%} to {high:.1%}, of {found['of']})")
    table.add_row("unparsed", f"{result['unparsed_rate']:.1%}")
    table.add_row("cut by length", f"{result['truncated_rate']:.1%}")
    if result["shots_dropped"]["examples"]:
        table.add_row(
            "shots dropped",
            "{shots} in {examples} prompts that did not fit the context".format_map(result["shots_dropped"]),
        )
    if result["budget_rate"]:
        table.add_row("ended by the budget", f"{result['budget_rate']:.1%}")
    for role, usage in result["usage"].items():
        table.add_row(
            role, f"{usage['prompt']:,} prompt + {usage['generated']:,} generated tokens in {usage['calls']:,} calls"
        )
    table.add_row(
        "cost",
        f"{result['cost']['tokens']:,} tokens"
        + (f", {result['flops']:.3g} FLOPs" if result["flops"] else ", FLOPs unknown"),
    )
    table.add_row("seconds", f"{result['seconds']:.1f}")
    table.add_row("prompt, strategy", f"{result['prompt']}, {result['strategy']}")
    table.add_row("ledger", result["ledger"])
    Console().print(table)
