"""The report's figures, each drawn wide (files, desktop) and narrow (telephones), points labelled where they are."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.files import write_atomic
from .alternatives import alt_cost, alt_gains, alt_ladder
from .labels import place_labels
from .rung import LEVERS
from .words import MEASURABLE, UNIT, interval, percent, points, si

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Drawn", "draw", "draw_all", "figure_style", "render", "row_axes", "si_ticks"]

Facts = Mapping[str, Any]
Draw = Callable[["Figure", Facts, bool], None]

INK, MUTED, GRID, PAPER = "#1b1f24", "#5f6974", "#d9dee3", "#ffffff"
COLOUR = {  # Okabe and Ito's palette, told apart by colour-blind eyes; yellow darkened to stand out on white
    "prompting": "#0072b2",
    "test-time": "#d98200",
    "fine-tuning": "#009e73",
    "preference": "#b65c93",
    "combined": "#c44e00",
    "oracle": "#808a94",
}
MARKER = {"prompting": "o", "test-time": "s", "fine-tuning": "^", "preference": "D", "combined": "P", "oracle": "X"}
WIDE, NARROW = 7.4, 3.6  # inches; 72 points each


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A figure for the page: what it shows in words, and its two SVG forms."""

    name: str
    title: str
    alt: str
    wide: str
    narrow: str


def draw_all(report: Facts, folder: Path) -> list[Drawn]:
    """Write `<name>.png` and `<name>.svg` of every figure to `folder` and return their forms for the page."""
    unit = UNIT[report["unit"]]
    figures: list[tuple[str, str, str, Draw]] = []
    if report["others"]:
        report = _together(report)
    elif report["rungs"]:
        figures.append(("accuracy_by_cost", f"Accuracy against {unit} per query", alt_cost(report), _accuracy_by_cost))
    if report["rungs"]:
        figures.append(("ladder", "Accuracy of every rung", alt_ladder(report), _ladder))
    if any(rung["difference"] for rung in report["rungs"]):
        figures.append(("gains", "Gain over the rung it is compared with", alt_gains(report), _gains))
    return draw(figures, report, folder)


def draw(figures: Sequence[tuple[str, str, str, Draw]], report: Facts, folder: Path) -> list[Drawn]:
    """Write figures, each given by name, title, words and how it is drawn, and return their forms for the page."""
    drawn = []
    for name, title, alt, how in figures:
        wide, picture = render(how, report, kinds=("svg", "png"))
        write_atomic(folder / f"{name}.svg", wide)
        write_atomic(folder / f"{name}.png", picture)
        (narrow,) = render(how, report, narrow=True, kinds=("svg",))
        parts = {
            "wide": inline_svg(wide.decode(), f"{name}-wide", alt),
            "narrow": inline_svg(narrow.decode(), f"{name}-narrow", alt),
        }
        drawn.append(Drawn(name=name, title=title, alt=alt, **parts))
    return drawn


def _together(report: Facts) -> Facts:
    """Return the rungs of all tasks as those of one report, each with its task in its label."""
    tables = [report, *report["others"]]
    shown = {
        kind: [{**rung, "label": f"{table['task']}: {rung['label']}"} for table in tables for rung in table[kind]]
        for kind in ("rungs", "oracles")
    }
    return {**report, **shown}


def inline_svg(svg: str, prefix: str, alt: str) -> str:
    """Make an SVG fit a page: no prologue, ids of its own, colours from the page's variables, a text for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\1{prefix}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1)
    for name, colour in {"ink": INK, "muted": MUTED, "grid": GRID, "paper": PAPER, **COLOUR}.items():
        svg = svg.replace(colour, f"var(--{name}, {colour})")
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def render(draw: Draw, report: Facts, *, narrow: bool = False, kinds: Sequence[str]) -> list[bytes]:
    """Draw a figure once and return it in each of these formats."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    files = []
    with figure_style():
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, report, narrow)
        for kind in kinds:
            held = io.BytesIO()
            figure.savefig(held, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
            files.append(held.getvalue())
    return files


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw in the house style inside this context."""
    import matplotlib

    settings: Any = {
        "text.parse_math": False,  # a dollar sign in a label is a dollar sign
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.color": INK,
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "axes.facecolor": PAPER,
        "figure.facecolor": PAPER,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "posttrain",
        "hatch.linewidth": 0.8,
    }
    with matplotlib.rc_context(settings):
        yield


def _accuracy_by_cost(figure: Figure, report: Facts, narrow: bool) -> None:
    figure.set_size_inches(NARROW if narrow else WIDE, 4.4 if narrow else 4.6)
    axes = figure.add_subplot()
    unit = report["unit"]
    costs = [rung["per_query"][unit] for rung in report["rungs"]]
    rights = [100 * rung["accuracy"] for rung in report["rungs"]]
    if min(costs) > 0:
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.9, max(costs) * 1.9)
    for rung, cost, right in zip(report["rungs"], costs, rights, strict=True):
        _dot(axes, cost, right, [100 * bound for bound in rung["ci95"]], rung["lever"], upright=True)
    front = sorted((cost, right) for rung, cost, right in zip(report["rungs"], costs, rights, strict=True) if rung["pareto"])
    steps = front[:1]
    for cost, right in front[1:]:
        steps += [(cost, steps[-1][1]), (cost, right)]
    axes.plot(*zip(*steps, strict=True), color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1.1)
    low, high = (min(rung["ci95"][0] for rung in report["rungs"]), max(rung["ci95"][1] for rung in report["rungs"]))
    pad = 7 * max(high - low, 0.05)
    axes.set_ylim(max(100 * low - pad, -2), min(100 * high + pad, 102))
    axes.set_xlabel(f"{UNIT[unit]} per query, cold" + (" (log scale)" if min(costs) > 0 else ""))
    axes.set_ylabel("Accuracy, %")
    si_ticks(axes)
    _legend(figure, report["rungs"], narrow)
    names = [str(number) if narrow else _balanced(rung["label"], 24) for number, rung in enumerate(report["rungs"], 1)]
    spans = [(100 * rung["ci95"][0], 100 * rung["ci95"][1]) for rung in report["rungs"]]
    spots = list(zip(costs, rights, strict=True))
    place_labels(axes, spots, names, spans, lines=steps, colours=(INK, MUTED, PAPER), size=9.0 if narrow else 8.5)


def _ladder(figure: Figure, report: Facts, narrow: bool) -> None:
    shown = [*report["rungs"], *report["oracles"]]
    axes = row_axes(figure, shown, [rung["label"] for rung in shown], narrow)
    for height, rung in enumerate(shown):
        colour, oracle = COLOUR[rung["lever"]], rung["lever"] == "oracle"
        looks: dict[str, Any] = {"color": PAPER, "edgecolor": colour, "hatch": "////"} if oracle else {"color": colour}
        axes.barh(height, 100 * rung["accuracy"], height=0.5 if narrow else 0.62, zorder=2, **looks)
        low, high = (100 * bound for bound in rung["ci95"])
        axes.plot([low, high], [height, height], color=INK, linewidth=1.3, zorder=3, solid_capstyle="butt")
        axes.text(high + 1.2, height, percent(rung["accuracy"]), va="center", fontsize=9)
    top = max(rung["ci95"][1] for rung in shown)
    axes.set_xlim(0, 100 * top * (1.22 if narrow else 1.12) + 1)
    if report["oracles"]:
        axes.axhline(len(report["rungs"]) - (0.7 if narrow else 0.5), color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
    axes.set_xlabel("Accuracy, %, with 95% interval")
    _legend(figure, shown, narrow)


def _gains(figure: Figure, report: Facts, narrow: bool) -> None:
    names = {rung["name"]: rung["label"] for rung in report["rungs"]}
    shown = [rung for rung in report["rungs"] if rung["difference"]]
    labels = [f"{rung['label']}\nagainst {names[rung['difference']['against']]}" for rung in shown]
    axes = row_axes(figure, shown, labels, narrow)
    for height, rung in enumerate(shown):
        found = rung["difference"]
        bounds = [100 * bound for bound in found["ci95"]]
        hollow = found["p_holm"] >= MEASURABLE
        _dot(axes, 100 * found["difference"], height, bounds, rung["lever"], upright=False, hollow=hollow)
        text = points(found["difference"]) if narrow else f"{points(found['difference'])} {interval(found['ci95'])}"
        axes.text(bounds[1], height, f"  {text}", va="center", fontsize=8.5, color=MUTED if hollow else INK)
    low = min(0.0, *(rung["difference"]["ci95"][0] for rung in shown))
    high = max(0.0, *(rung["difference"]["ci95"][1] for rung in shown))
    span = 100 * max(high - low, 0.01)
    axes.set_xlim(100 * low - 0.05 * span, 100 * high + (0.3 if narrow else 0.36) * span)
    axes.axvline(0, color=INK, linewidth=1.0)
    axes.set_xlabel("Points, with 95% paired interval\n(hollow: not measurable)")
    _legend(figure, shown, narrow)


def row_axes(figure: Figure, shown: Sequence[Facts], labels: Sequence[str], narrow: bool) -> Axes:
    """Set up one row per rung, the first on top; narrow rows carry their label above instead of at the side."""
    figure.set_size_inches(NARROW if narrow else WIDE, (0.62 if narrow else 0.46) * len(shown) + 1.25)
    axes = figure.add_subplot()
    axes.set_ylim(len(shown) - 0.4, -0.75 if narrow else -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if narrow:
        axes.set_yticks([])
        for height, label in enumerate(labels):
            one = textwrap.shorten(label.replace("\n", " "), 48, placeholder="…")
            place = (0.0, height - 0.32)
            text = axes.text(*place, one, transform=axes.get_yaxis_transform(), fontsize=8.5, va="bottom", ha="left")
            text.set_bbox({"facecolor": PAPER, "edgecolor": "none", "pad": 0.5})
    else:
        wrapped = [
            "\n".join(line for part in label.split("\n") for line in textwrap.wrap(part, 34, max_lines=2, placeholder="…"))
            for label in labels
        ]
        axes.set_yticks(range(len(shown)), wrapped, color=INK, fontsize=8.5)
    return axes


def _dot(
    axes: Axes, x: float, y: float, bounds: Sequence[float], lever: str, *, upright: bool, hollow: bool = False
) -> None:
    colour = COLOUR[lever]
    line = ([x, x], bounds) if upright else (bounds, [y, y])
    axes.plot(*line, color=colour, linewidth=1.6, alpha=0.75, zorder=2, solid_capstyle="butt")
    face = PAPER if hollow else colour
    axes.plot(
        [x], [y], marker=MARKER[lever], markersize=7.5, color=face, markeredgecolor=colour, markeredgewidth=1.4, zorder=4
    )


def _legend(figure: Figure, shown: Sequence[Facts], narrow: bool) -> None:
    from matplotlib.lines import Line2D

    levers = [lever for lever in LEVERS if any(rung["lever"] == lever for rung in shown)]
    handles = [
        Line2D([], [], linestyle="", marker=MARKER[lever], color=COLOUR[lever], markersize=6.5, label=LEVERS[lever])
        for lever in levers
    ]
    columns = 2 if narrow else min(len(levers), 3)
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        handletextpad=0.2,
        columnspacing=1.0,
    )


def si_ticks(axes: Axes) -> None:
    """Label the axis of costs with SI prefixes, few enough to read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if axes.get_xscale() == "log":
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0,) if high / low > 300 else (1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(si(float(f"{value:.6g}")))))


def _balanced(label: str, width: int) -> str:
    """Break a long label into at most three lines of about equal length."""
    lines = min(-(-len(label) // width), 3)
    wide = max(min(len(label) // lines + 3, width), 12)
    return "\n".join(textwrap.wrap(label, wide, max_lines=3, placeholder="…")) if lines > 1 else label


def _short(number: str) -> str:
    """Drop decimals that are all zero: a tick is a round number."""
    return re.sub(r"\.0+(?= |$)", "", number)
