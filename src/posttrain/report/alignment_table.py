"""Win rates and objectives as cells, and as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .words import interval, percent, probability, si

__all__ = ["WIN_COLUMNS", "number", "objective_columns", "objective_rows", "print_alignment", "win_rows"]

WIN_COLUMNS = (
    "replies of", "against", "judge", "questions", "win rate, 95%", "at equal length, 95%", "p (Holm)", "characters",
    "order flips", "first shown", "unread", "judge's tokens", "its FLOPs",
)  # fmt: skip
_NARROW = {"judge", "first shown", "unread", "judge's tokens", "its FLOPs"}  # left out of a narrow terminal


def number(value: float) -> str:
    """Return a score with three significant digits."""
    return f"{value:.3g}".replace("-", "−")


def win_rows(rates: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of `WIN_COLUMNS`, comparison by comparison; empty where there is nothing to tell."""
    rows: list[tuple[str, ...]] = []
    for rate in rates:
        flips, lengths = rate["flips"], rate["mean_lengths"]
        controlled = rate["controlled"]
        rows.append(
            (
                rate["label"],
                rate["against"],
                rate["by"],
                str(rate["items"]),
                f"{percent(rate['rate'])} {interval(rate['ci95'])}",
                "" if controlled is None else f"{percent(controlled)} {interval(rate['controlled_ci95'])}",
                probability(rate["p_holm"]).removeprefix("= "),
                "" if lengths is None else f"{lengths[0]:.0f} : {lengths[1]:.0f}",
                "" if flips is None else percent(flips["flip_rate"]),
                "" if rate["first_share"] is None else percent(rate["first_share"]),
                str(rate["unjudged"]),
                si(rate["judge"]["tokens"]),
                "" if rate["judge"]["flops"] is None else si(rate["judge"]["flops"]),
            )
        )
    return rows


def objective_columns(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the headings: one for each objective, then the sum."""
    weighed = [f"{name} (× {found['weights'][name]:g})" for name in found["names"]]
    return ("replies of", *weighed, "weighted sum", "to the first", "on the front", "of draws")


def objective_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of `objective_columns`, model by model."""
    rows = []
    for model in found["models"]:
        means = [*model["scores"].values(), model["weighted"]]
        apart = model["weighted"]["difference"]
        rows.append(
            (
                model["label"],
                *(f"{number(one['mean'])} {_bounds(one['ci95'])}" for one in means),
                "" if apart is None else f"{number(apart)} {_bounds(model['weighted']['difference_ci95'])}",
                "◆" if model["front"] else "",
                percent(model["front_share"]),
            )
        )
    return rows


def _bounds(bounds: Sequence[float]) -> str:
    return "[" + ", ".join(number(bound) for bound in bounds) + "]"


def print_alignment(report: Mapping[str, Any], console: Console) -> None:
    """Print win rates and objectives; nothing where nothing was judged."""
    found = report["alignment"]
    if not found:
        return
    wide = console.width >= 150
    if found["win_rates"]:
        shown = [i for i, name in enumerate(WIN_COLUMNS) if wide or name not in _NARROW]
        _print([WIN_COLUMNS[i] for i in shown], [[row[i] for i in shown] for row in win_rows(found["win_rates"])], console)
        for rate in found["win_rates"]:
            console.print(f" [dim]·[/] {escape(rate['sentence'])}", highlight=False)
    if found["objectives"]:
        _print(objective_columns(found["objectives"]), objective_rows(found["objectives"]), console)
        console.print("[dim]◆ no other is as good in every objective and better in one[/]")


def _print(columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, name in enumerate(columns):
        table.add_column(name.replace(", 95%", "\n95%"), justify="left" if i < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell.replace(" [", "\n[")) for cell in row))
    console.print(table)
