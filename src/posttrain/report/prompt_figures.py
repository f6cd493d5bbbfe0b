"""Figures about prompts: in-context learning curves, and what should not matter but does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.files import write_atomic
from .figures import GRID, INK, MUTED, PAPER, WIDE, render
from .words import si

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_icl", "draw_sensitivity"]

Facts = Mapping[str, Any]

# Okabe and Ito's palette, told apart by colour-blind eyes; yellow darkened to stand out on white
_COLOURS = ("#0072b2", "#d98200", "#009e73", "#b65c93", "#c44e00", "#3aa0c8", "#8a7a00", INK)


def draw_icl(found: Facts, folder: Path) -> list[Path]:
    """Write the curve, and with two or more models of known size accuracy against size; PNG and SVG each."""
    written = _write("icl_curve", _curve, found, folder)
    sizes = {line["parameters"] for line in found["lines"]}
    if None not in sizes and len(sizes) > 1:
        written += _write("icl_by_size", _by_size, found, folder)
    return written


def draw_sensitivity(found: Facts, folder: Path) -> list[Path]:
    """Write the accuracy of every variant, group by group."""
    return _write("sensitivity", _variants, found, folder)


def _write(name: str, draw: Callable[[Figure, Facts, bool], None], found: Facts, folder: Path) -> list[Path]:
    kinds = ("png", "svg")
    paths = [folder / f"{name}.{kind}" for kind in kinds]
    for path, content in zip(paths, render(draw, found, kinds=kinds), strict=True):
        write_atomic(path, content)
    return paths


def _curve(figure: Figure, found: Facts, narrow: bool) -> None:
    """Accuracy against shots as in figure 1.2 of Brown et al.: a line per model, dashed without instruction."""
    figure.set_size_inches(WIDE, 4.6)
    axes = figure.add_subplot()
    places = {k: at for at, k in enumerate(found["shots"])}
    colours = _colours(found["lines"])
    ends: list[tuple[float, str, str]] = []
    for number, line in enumerate(found["lines"]):
        colour, points = colours[line["model"]], line["points"]
        aside = 0.035 * (number - (len(found["lines"]) - 1) / 2)  # so that intervals do not cover each other
        x = [places[point["k"]] + aside for point in points]
        y = [100 * point["accuracy"] for point in points]
        axes.plot(x, y, color=colour, linewidth=1.8, linestyle="-" if line["instruction"] else (0, (4, 3)), zorder=3)
        for at, point in zip(x, points, strict=True):
            low, high = (100 * bound for bound in point["ci95"])
            axes.plot([at, at], [low, high], color=colour, linewidth=1.2, alpha=0.55, zorder=2, solid_capstyle="butt")
            face = PAPER if point["shots_dropped"] else colour
            axes.plot(
                [at], [100 * point["accuracy"]], marker="o", markersize=6, color=face, markeredgecolor=colour, zorder=4
            )
        ends.append((y[-1], _size(line) + ("" if line["instruction"] else ", no instruction"), colour))
    for point in found["tuned"]:
        y0 = 100 * point["accuracy"]
        axes.axhspan(*(100 * bound for bound in point["ci95"]), color=GRID, alpha=0.45, zorder=0.5, linewidth=0)
        axes.axhline(y0, color=MUTED, linewidth=1.3, linestyle=(0, (1, 2)), zorder=1)
        ends.append((y0, f"{point['model']}, fine-tuned", MUTED))
    axes.set_xticks(list(places.values()), [str(k) for k in places])
    axes.set_xlim(-0.2, max(len(places) - 1, 1) + 0.1)
    axes.set_xlabel("Examples in context" + (" (hollow: some were dropped to fit)" if _dropped(found) else ""))
    axes.set_ylabel("Accuracy, %" + (f", mean of {len(found['tasks'])} tasks" if len(found["tasks"]) > 1 else ""))
    _fit(axes, found)
    _ends(axes, ends)


def _by_size(figure: Figure, found: Facts, narrow: bool) -> None:
    """Accuracy against parameters as in figure 1.3 of Brown et al.: a line per number of shots, with the instruction."""
    figure.set_size_inches(WIDE, 4.6)
    axes = figure.add_subplot()
    lines = [line for line in found["lines"] if line["instruction"]] or list(found["lines"])
    lines.sort(key=lambda line: line["parameters"])
    ends = []
    for at, k in enumerate(found["shots"]):
        points = [line["points"][at] for line in lines]
        colour = _COLOURS[at % len(_COLOURS)]
        sizes, rights = [line["parameters"] for line in lines], [100 * point["accuracy"] for point in points]
        axes.plot(sizes, rights, color=colour, linewidth=1.8, marker="o", markersize=5.5, zorder=3)
        for size, point in zip(sizes, points, strict=True):
            axes.plot([size, size], [100 * bound for bound in point["ci95"]], color=colour, linewidth=1.1, alpha=0.5)
        ends.append((rights[-1], f"{k} shot{'' if k == 1 else 's'}", colour))
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks([line["parameters"] for line in lines], [si(line["parameters"]) for line in lines])
    axes.set_xlabel("Parameters (log scale)")
    axes.set_ylabel("Accuracy, %")
    _fit(axes, found)
    _ends(axes, ends)


def _variants(figure: Figure, found: Facts, narrow: bool) -> None:
    """A row per variant with its interval; bands from worst to best of each group."""
    shown = found["variants"]
    figure.set_size_inches(WIDE, 0.27 * len(shown) + 0.45 * len(found["groups"]) + 0.9)
    axes = figure.add_subplot()
    height, ticks, labels = 0.0, [], []
    for at, (group, told) in enumerate(found["groups"].items()):
        colour = _COLOURS[at % len(_COLOURS)]
        rows = [variant for variant in shown if variant["group"] == group]
        top = height - 0.5
        title = f"{group}: {100 * told['spread']:.1f} points between worst and best (by chance {100 * told['noise']:.1f})"
        text = axes.text(0.0, top, title, transform=axes.get_yaxis_transform(), fontsize=8.5, color=INK, va="bottom")
        text.set_bbox({"facecolor": PAPER, "edgecolor": "none", "pad": 0.5})  # the grid does not strike it through
        for variant in rows:
            low, high = (100 * bound for bound in variant["ci95"])
            axes.plot([low, high], [height, height], color=colour, linewidth=1.6, alpha=0.7, zorder=2)
            axes.plot([100 * variant["accuracy"]], [height], marker="o", markersize=6, color=colour, zorder=3)
            ticks.append(height)
            labels.append(variant["label"] if len(variant["label"]) <= 44 else variant["label"][:43] + "…")
            height += 1
        band: dict[str, Any] = {"color": colour, "alpha": 0.1, "zorder": 0.5, "linewidth": 0}
        axes.fill_betweenx([top, height - 0.5], 100 * told["worst"], 100 * told["best"], **band)
        height += 1.1
    axes.set_yticks(ticks, labels, fontsize=8.5, color=INK)
    axes.set_ylim(height - 1.4, -1.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"Accuracy, %, with 95% interval (n = {found['n']})")


def _colours(lines: Sequence[Facts]) -> dict[str, str]:
    names = dict.fromkeys(line["model"] for line in lines)
    return {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}


def _size(line: Facts) -> str:
    name = str(line["model"])
    return name if line["parameters"] is None else f"{name} ({si(line['parameters'])})"


def _dropped(found: Facts) -> bool:
    return any(point["shots_dropped"] for line in found["lines"] for point in line["points"])


def _fit(axes: Axes, found: Facts) -> None:
    bounds = [bound for line in found["lines"] for point in line["points"] for bound in point["ci95"]]
    bounds += [bound for point in found["tuned"] for bound in point["ci95"]]
    axes.set_ylim(max(100 * min(bounds) - 3, -2), min(100 * max(bounds) + 3, 102))


def _ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's name to its right, moved apart where they would touch."""
    low, high = axes.get_ylim()
    gap = 0.045 * (high - low)
    heights: list[float] = []
    ordered = sorted(ends)
    for y, _, _ in ordered:
        heights.append(max(y, heights[-1] + gap) if heights else y)
    over = max(heights[-1] - high, 0.0) if heights else 0.0
    for (_, name, colour), height in zip(ordered, heights, strict=True):
        place: dict[str, Any] = {"xy": (1.01, (height - over - low) / (high - low)), "xycoords": "axes fraction"}
        axes.annotate(name, **place, fontsize=8.5, color=colour, va="center", annotation_clip=False)
