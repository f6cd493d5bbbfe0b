"""The figure of the gain by model size: each size's accuracy before and after training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .alternatives import alt_sizes
from .figures import COLOUR, INK, MUTED, NARROW, PAPER, WIDE, Drawn, draw
from .words import MEASURABLE, points, si

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_sizes", "pairs_by_size"]

Facts = Mapping[str, Any]
TRAINED = ("fine-tuning", "preference")


def pairs_by_size(report: Facts) -> list[tuple[Facts, Facts]]:
    """Return (before, after) of every trained rung that is compared with one of its own size, the smallest first.

    Nothing unless two sizes or more have such a pair, and none twice: which of two gains would be the size's own?
    """
    rungs = {rung["name"]: rung for rung in report["rungs"]}
    pairs = []
    for after in report["rungs"]:
        if after["lever"] not in TRAINED or not after["difference"] or after["parameters"] is None:
            continue
        before = rungs[after["difference"]["against"]]
        if before["parameters"] == after["parameters"]:
            pairs.append((before, after))
    sizes = [after["parameters"] for _, after in pairs]
    if len(sizes) < 2 or len(set(sizes)) < len(sizes):
        return []
    return sorted(pairs, key=lambda pair: int(pair[1]["parameters"]))


def draw_sizes(report: Facts, folder: Path) -> list[Drawn]:
    """Write the figure and return its forms for the page; nothing where sizes are not compared."""
    pairs = pairs_by_size(report)
    if not pairs:
        return []
    title = "Gain by model size: before (hollow) and after training"
    return draw([("gain_by_size", title, alt_sizes(pairs), _by_size)], report, folder)


def _by_size(figure: Figure, report: Facts, narrow: bool) -> None:
    """A line through what the sizes reach before, and one through what they reach after training."""
    figure.set_size_inches(NARROW if narrow else WIDE, 3.6 if narrow else 4.2)
    axes = figure.add_subplot()
    pairs = pairs_by_size(report)
    sizes = [after["parameters"] for _, after in pairs]
    for at, (name, dashes) in enumerate((("before", (0, (4, 3))), ("after", "solid"))):
        rights = [100 * pair[at]["accuracy"] for pair in pairs]
        colour = COLOUR["fine-tuning"] if at else MUTED
        axes.plot(sizes, rights, color=colour, linewidth=1.6, linestyle=dashes, zorder=2, label=name)
        for size, pair, right in zip(sizes, pairs, rights, strict=True):
            axes.plot([size, size], [100 * bound for bound in pair[at]["ci95"]], color=colour, linewidth=1.2, alpha=0.6)
            axes.plot([size], [right], "o", markersize=7, color=colour if at else PAPER, markeredgecolor=colour, zorder=3)
    for size, (_, after) in zip(sizes, pairs, strict=True):
        sure = after["difference"]["p_holm"] < MEASURABLE
        axes.annotate(
            points(after["difference"]["difference"]),
            (size, 100 * after["ci95"][1]),
            xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8.5, color=INK if sure else MUTED,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(sizes, [si(size) for size in sizes])
    axes.set_xlim(sizes[0] / 1.5, sizes[-1] * 1.5)
    axes.set_ylim(-2, min(106, 100 * max(after["ci95"][1] for _, after in pairs) + 12))
    axes.set_xlabel("Parameters (log scale)")
    axes.set_ylabel("Accuracy, %, with 95% interval")
    axes.legend(frameon=False, fontsize=8.5, loc="upper left")
