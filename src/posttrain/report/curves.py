"""Curves drawn and tabulated: accuracy against samples, tokens and FLOPs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.files import write_atomic
from .figures import COLOUR, INK, MUTED, PAPER, figure_style, si_ticks
from .words import interval, percent, si

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curve_table", "draw_curves", "print_curves"]

Facts = Mapping[str, Any]
AXES = {
    "n": ("accuracy_by_n", "Samples per question, at most (log scale)"),
    "tokens": ("accuracy_by_tokens", "Tokens per question, prompt and verifier included (log scale)"),
    "flops": ("accuracy_by_flops", "FLOPs per question (log scale)"),
}
# Okabe and Ito's colours by strategy, dashes and markers by model: each can be told without the other
STROKES = ["#0072b2", "#d98200", "#009e73", "#b65c93", "#c44e00", "#56b4e9", "#7a6a00", INK]
DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2))]
MARKERS = "osD^vP"


def draw_curves(found: Facts, folder: Path) -> list[Path]:
    """Write `accuracy_by_{n,tokens,flops}.png` and `.svg` and return their paths; FLOPs only where they are known."""
    paths = []
    for axis, (name, label) in AXES.items():
        if axis == "flops" and found["unit"] != "flops":
            continue
        for kind in ("png", "svg"):
            path = folder / f"{name}.{kind}"
            write_atomic(path, _render(found, axis, label, kind))
            paths.append(path)
    return paths


def _render(found: Facts, axis: str, label: str, kind: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with figure_style():
        rows = -(-len(found["curves"]) // 2)  # of the legend
        figure = Figure(figsize=(7.4, 4.2 + 0.17 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure, found, axis, label)
        held = io.BytesIO()
        figure.savefig(held, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    return held.getvalue()


def _draw(figure: Figure, found: Facts, axis: str, label: str) -> None:
    axes = figure.add_subplot()
    models = list(dict.fromkeys(curve["model"] for curve in found["curves"]))
    methods = [curve["strategy"] for curve in found["curves"] if not curve["oracle"]]
    strokes = dict(zip(dict.fromkeys(methods), STROKES * len(methods), strict=False))
    for curve in found["curves"]:
        place = models.index(curve["model"])
        colour = COLOUR["oracle"] if curve["oracle"] else strokes[curve["strategy"]]
        name = curve["strategy"] + (" (oracle)" if curve["oracle"] else "")
        name = f"{curve['model']}: {name}" if len(models) > 1 else name
        dash = DASHES[place % len(DASHES)]
        _line(axes, curve["points"], axis, colour, dash, MARKERS[place % len(MARKERS)], name)
    axes.set_xscale("log", base=2 if axis == "n" else 10)
    axes.set_xlabel(label)
    axes.set_ylabel("Accuracy, %")
    if axis == "n":
        axes.set_xticks(found["sizes"], [str(size) for size in found["sizes"]])
        axes.minorticks_off()
    else:
        si_ticks(axes)
    title = f"{found['task']}\nn = {found['questions']} questions; bands: 95% over questions"
    axes.set_title(title, fontsize=8.5, color=MUTED, loc="left")
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8)


def _line(axes: Axes, points: Sequence[Facts], axis: str, colour: str, dash: Any, marker: str, name: str) -> None:
    ordered = sorted(points, key=lambda point: point[axis])
    costs = [point[axis] for point in ordered]
    rights = [100 * point["accuracy"] for point in ordered]
    lows, highs = ([100 * point["ci95"][end] for point in ordered] for end in (0, 1))
    axes.plot(
        costs, rights, color=colour, linestyle=dash, linewidth=1.7, marker=marker, markersize=5, label=name, zorder=3,
        markeredgecolor=PAPER, markeredgewidth=0.7,
    )  # fmt: skip
    if len(ordered) > 1:
        axes.fill_between(costs, lows, highs, color=colour, alpha=0.10, linewidth=0, zorder=1)
    else:
        axes.plot(costs * 2, [lows[0], highs[0]], color=colour, linewidth=1.3, alpha=0.6, zorder=2)


def curve_table(found: Facts) -> str:
    """Return the curves as a Markdown table."""
    flops = found["unit"] == "flops"
    head = ["model", "strategy", "n", "accuracy", "95% interval", "samples", "tokens", *(["FLOPs"] if flops else [])]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for cells in _cells(found):
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def print_curves(found: Facts, sentences: Sequence[str], console: Console) -> None:
    """Print the table, the sentences, and what belongs beside the accuracies."""
    console.print(f"[bold]{escape(found['task'])}[/]  [dim]n = {found['questions']} questions[/]", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("model", "strategy"):
        table.add_column(name, overflow="fold")
    for name in ("n", "accuracy", "95%", "samples", "tokens", *(["FLOPs"] if found["unit"] == "flops" else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for cells in _cells(found):
        table.add_row(*(escape(cell) for cell in cells))
    console.print(table)
    if any(curve["oracle"] for curve in found["curves"]):
        console.print("[dim]oracle: chosen with the gold answer; what the samples hold, no method's accuracy[/]")
    for pool in found["models"]:
        rates = f"unparsed {percent(pool['unparsed_rate'])}, cut by length {percent(pool['truncated_rate'])}"
        console.print(f"[dim]{escape(pool['model'])}, {escape(pool['samples'])}: {rates}[/]", highlight=False)
    for sentence in [*sentences, *found["notes"]]:
        console.print(f" [cyan]·[/] {escape(sentence)}", highlight=False)


def _cells(found: Facts) -> list[list[str]]:
    rows = []
    for curve in found["curves"]:
        name = curve["strategy"] + (" (oracle)" if curve["oracle"] else "")
        for point in curve["points"]:
            cells = [curve["model"], name, str(point["n"]), percent(point["accuracy"]), interval(point["ci95"])]
            cells += [f"{point['samples']:.3g}", si(point["tokens"])]
            rows.append(cells + ([si(point["flops"])] if found["unit"] == "flops" else []))
    return rows
