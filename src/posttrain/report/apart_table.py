"""What stands beside the ladder in the terminal: general tasks before and after, variety, held-out rows and replies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .words import interval, percent, points, probability, share

__all__ = ["print_retention", "print_training"]


def print_retention(report: Mapping[str, Any], console: Console) -> None:
    """Print the general tasks before and after, what was forgotten, and how varied replies are."""
    found = report["retention"]
    if not found:
        return
    table = _table("general task", "model", "before", "after", "points\n95% paired", "p\nHolm", "un-\nparsed")
    for task in found["tasks"]:
        for i, change in enumerate(task["after"]):
            difference = change["difference"]
            table.add_row(
                f"{escape(task['task'])}\n[dim]n = {task['n']}[/]" if i == 0 else "",
                escape(change["label"]),
                f"{percent(task['before']['accuracy'])}\n[dim]{escape(interval(task['before']['ci95']))}[/]"
                if i == 0
                else "",
                f"{percent(change['accuracy'])}\n[dim]{escape(interval(change['ci95']))}[/]",
                f"{points(difference['difference'])}\n[dim]{escape(interval(difference['ci95']))}[/]",
                probability(difference["p_holm"]).removeprefix("= "),
                percent(change["unparsed_rate"]),
            )
    if found["tasks"]:
        console.print(table)
    if report["rungs"]:  # else it is the report's headline
        console.print(f"{escape(found['headline'])}\n", highlight=False)
    if found["diversity"]:
        console.print(_diversity(found))


def _diversity(found: Mapping[str, Any]) -> Table:
    table = _table(
        "sampled replies", "words\n/reply", "distinct-1", "distinct-2", "distinct-2\nin a question", "words/100\ndifferent"
    )
    for varied in found["diversity"]:
        shares = (varied[name] for name in ("distinct_1", "distinct_2", "distinct_2_within", "type_token_ratio"))
        label = f"{escape(varied['label'])}\n[dim]{varied['replies']} replies to {escape(varied['task'])}[/]"
        table.add_row(label, f"{varied['words']:.0f}", *(share(value) for value in shares))
    return table


def print_training(report: Mapping[str, Any], console: Console) -> None:
    """Print what each training reached on held-out rows, and the first prompt with what was replied before and after."""
    for trained in report["training"]:
        console.print(f"[bold]{escape(trained['label'])}[/]: {escape(trained['sentence'])}", highlight=False)
        for sample in trained["samples"][:1]:
            console.print(f"[dim]asked[/]  {escape(sample['asked'])}", highlight=False)
            for reply in sample["replies"]:
                console.print(f"[dim]step {reply['step']}[/]  {escape(reply['text'])}", highlight=False)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first, overflow="fold", min_width=16)
    for name in columns:
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=name != "model")
    return table
