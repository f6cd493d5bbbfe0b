"""The figures of what judges say: win rates, and one objective against another."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .alignment_table import number
from .figures import COLOUR, INK, MUTED, NARROW, PAPER, WIDE, Draw, Drawn, draw, row_axes
from .labels import place_labels
from .words import MEASURABLE, interval, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_alignment"]

Facts = Mapping[str, Any]


def draw_alignment(report: Facts, folder: Path) -> list[Drawn]:
    """Write the figures and return their forms for the page; nothing where nothing was judged."""
    found = report["alignment"]
    if not found:
        return []
    figures: list[tuple[str, str, str, Draw]] = []
    if found["win_rates"]:
        told = " ".join(rate["sentence"] for rate in found["win_rates"])
        figures.append(("win_rates", "Win rates, and the same at equal length (hollow)", f"Win rates. {told}", _win_rates))
    if found["objectives"] and len(found["objectives"]["names"]) > 1:
        figures.append(("objectives", "Objectives against each other", _alt(found["objectives"]), _objectives))
    return draw(figures, report, folder)


def _alt(found: Facts) -> str:
    told = "; ".join(
        f"{model['label']}: "
        + ", ".join(f"{name} {number(one['mean'])}" for name, one in model["scores"].items())
        + (", on the front" if model["front"] else "")
        for model in found["models"]
    )
    return f"Scatter plot of the models' means in each two objectives. {told}."


def _win_rates(figure: Figure, report: Facts, narrow: bool) -> None:
    rates = report["alignment"]["win_rates"]
    axes = row_axes(figure, rates, [f"{rate['label']}\nagainst {rate['against']}" for rate in rates], narrow)
    for height, rate in enumerate(rates):
        colour = COLOUR["preference"] if rate["p_holm"] < MEASURABLE else MUTED
        _span(axes, height - 0.12, rate["rate"], rate["ci95"], colour, colour)
        if rate["controlled"] is not None:
            _span(axes, height + 0.16, rate["controlled"], rate["controlled_ci95"], colour, PAPER)
        text = percent(rate["rate"]) if narrow else f"{percent(rate['rate'])} {interval(rate['ci95'])}"
        right = max(100 * rate["ci95"][1], 100 * (rate["controlled_ci95"] or rate["ci95"])[1])
        axes.text(right, height, f"  {text}", va="center", fontsize=8.5, color=INK)
    axes.axvline(50, color=INK, linewidth=1.0)
    axes.set_xlim(0, 135)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_xlabel("Preferred, % (grey: not measurable;\nhollow: at equal length)")


def _span(axes: Axes, height: float, at: float, bounds: Any, colour: str, face: str) -> None:
    axes.plot([100 * bound for bound in bounds], [height, height], color=colour, linewidth=1.6, zorder=2)
    axes.plot([100 * at], [height], "D", markersize=6, color=face, markeredgecolor=colour, markeredgewidth=1.4, zorder=3)


def _objectives(figure: Figure, report: Facts, narrow: bool) -> None:
    """Up to three panels, one for each two objectives; models of the front are filled."""
    found = report["alignment"]["objectives"]
    pairs = list(combinations(found["names"], 2))[:3]
    figure.set_size_inches(NARROW if narrow else WIDE, (3.4 if narrow else 3.9) * len(pairs))
    for panel, (across, up) in enumerate(pairs, 1):
        axes = figure.add_subplot(len(pairs), 1, panel)
        spots, spans = [], []
        for model in found["models"]:
            x, y = model["scores"][across], model["scores"][up]
            colour = COLOUR["preference"] if model["front"] else MUTED
            axes.plot(x["ci95"], [y["mean"]] * 2, color=colour, linewidth=1.3, zorder=2)
            axes.plot([x["mean"]] * 2, y["ci95"], color=colour, linewidth=1.3, zorder=2)
            face = colour if model["front"] else PAPER
            axes.plot([x["mean"]], [y["mean"]], "D", markersize=7, color=face, markeredgecolor=colour, zorder=3)
            spots.append((x["mean"], y["mean"]))
            spans.append((y["ci95"][0], y["ci95"][1]))
        axes.margins(0.22)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        names = [model["label"] for model in found["models"]]
        place_labels(axes, spots, names, spans, colours=(INK, MUTED, PAPER), size=8.5)
