"""The figure of retention: on each general task the start's accuracy, and where each training took it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .alternatives import alt_retention
from .figures import COLOUR, INK, MUTED, PAPER, Drawn, draw, row_axes
from .words import MEASURABLE, interval, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_retention"]

Facts = Mapping[str, Any]


def draw_retention(report: Facts, folder: Path) -> list[Drawn]:
    """Write the figure and return its forms for the page; nothing without general tasks."""
    if not report["retention"] or not report["retention"]["tasks"]:
        return []
    title = "General tasks before (hollow) and after training"
    return draw([("retention", title, alt_retention(report), _retention)], report, folder)


def _retention(figure: Figure, report: Facts, narrow: bool) -> None:
    """A row per task and model: a line from before to after, grey where the difference is not measurable."""
    shown = [(task["before"], change, task["task"]) for task in report["retention"]["tasks"] for change in task["after"]]
    labels = [f"{task}\n{change['label']}" for _, change, task in shown]
    axes = row_axes(figure, [change for _, change, _ in shown], labels, narrow)
    for height, (before, change, _) in enumerate(shown):
        found = change["difference"]
        ends = [100 * before["accuracy"], 100 * change["accuracy"]]
        sure = found["p_holm"] < MEASURABLE
        colour = MUTED if not sure else COLOUR["combined"] if found["difference"] < 0 else COLOUR["fine-tuning"]
        axes.plot(ends, [height, height], color=colour, linewidth=2.0, zorder=2, solid_capstyle="butt")
        for at, face in zip(ends, (PAPER, colour), strict=True):
            axes.plot([at], [height], "o", markersize=7.5, color=face, markeredgecolor=colour, markeredgewidth=1.4, zorder=3)
        text = points(found["difference"]) if narrow else f"{points(found['difference'])} {interval(found['ci95'])}"
        axes.text(max(ends) + 1.5, height, f" {text}", va="center", fontsize=8.5, color=INK if sure else MUTED)
    top = max(100 * max(before["accuracy"], change["accuracy"]) for before, change, _ in shown)
    axes.set_xlim(-1, max(top * (1.35 if narrow else 1.3), 10))
    axes.set_xlabel("Accuracy, %, and the paired difference\n(grey: not measurable)")
