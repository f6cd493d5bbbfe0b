"""Direct labels beside points that cover neither each other, nor a marker, nor an interval."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

__all__ = ["place_labels"]

Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels

_GAP = 7.0  # points between a marker and its label
_RADII = (0.0, 6.0, 14.0, 24.0, 38.0, 56.0, 80.0, 110.0)


def place_labels(
    axes: Axes,
    spots: Sequence[tuple[float, float]],
    names: Sequence[str],
    spans: Sequence[tuple[float, float]],
    *,
    lines: Sequence[tuple[float, float]] = (),
    colours: tuple[str, str, str],
    size: float,
) -> list[Text]:
    """Write each name near its spot at the nearest free place, with a thin line to the spot when it is not adjacent.

    `spans` are the ends of the upright intervals through the spots, `lines` the corners of a path to keep clear of,
    `colours` those of text, line and paper. When no place is free the one with the least overlap is taken.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout engine decides the size of the axes now
    pixels = figure.dpi / 72
    frame = axes.get_window_extent()
    at = [tuple(axes.transData.transform(spot)) for spot in spots]
    taken: list[Box] = []
    for (x, y), (low, high), (centre, _) in zip(at, spans, spots, strict=True):
        taken.append((x - 6 * pixels, y - 6 * pixels, x + 6 * pixels, y + 6 * pixels))
        bottom, top = (float(axes.transData.transform((centre, end))[1]) for end in (low, high))
        taken.append((x - 1.5 * pixels, bottom, x + 1.5 * pixels, top))
    corners = [tuple(axes.transData.transform(corner)) for corner in lines]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        edge = 1.5 * pixels
        taken.append((min(x0, x1) - edge, min(y0, y1) - edge, max(x0, x1) + edge, max(y0, y1) + edge))
    written = []
    for index in sorted(range(len(spots)), key=lambda i: -at[i][1]):
        x, y = at[index]
        text = axes.text(0, 0, names[index], fontsize=size, color=colours[0], linespacing=1.05, zorder=1.2)
        text.set_bbox({"facecolor": colours[2], "edgecolor": "none", "pad": 0.5})  # the grid does not strike it through
        extent = text.get_window_extent()
        width, height = extent.width + 2 * pixels, extent.height + 2 * pixels
        best: tuple[float, float, Box] | None = None
        for box, distance in _places(x, y, width, height, pixels):
            outside = box[0] < frame.x0 or box[1] < frame.y0 or box[2] > frame.x1 or box[3] > frame.y1
            cover = sum(_overlap(box, other) for other in taken) + (1e6 if outside else 0.0)
            if best is None or (cover, distance) < best[:2]:
                best = (cover, distance, box)
        assert best is not None
        box = best[2]
        taken.append(box)
        left, bottom = axes.transData.inverted().transform((box[0] + pixels, box[1] + pixels))
        text.set_position((left, bottom))
        text.set_verticalalignment("bottom")
        if best[1] > 10 * pixels:
            _lead(axes, (x, y), box, colours[1])
        written.append(text)
    return written


def _places(x: float, y: float, width: float, height: float, pixels: float) -> Iterator[tuple[Box, float]]:
    """Yield boxes around a spot, adjacent ones first, right before left before above and below."""
    for radius in _RADII:
        for rank, angle in enumerate((0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90, 15, -15, 165, -165)):
            reach = (_GAP + radius) * pixels
            cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            middle_x = x + cosine * (reach + width / 2)
            middle_y = y + sine * (reach + height / 2)
            box = (middle_x - width / 2, middle_y - height / 2, middle_x + width / 2, middle_y + height / 2)
            yield box, radius * pixels + 0.1 * rank


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _lead(axes: Axes, spot: tuple[float, float], box: Box, colour: str) -> None:
    end = (min(max(spot[0], box[0]), box[2]), min(max(spot[1], box[1]), box[3]))
    (x0, y0), (x1, y1) = axes.transData.inverted().transform([spot, end])
    axes.plot([x0, x1], [y0, y1], color=colour, linewidth=0.7, zorder=1.5)
