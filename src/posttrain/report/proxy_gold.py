"""What a policy was trained on (the proxy) and what was only watched (the gold) against the KL from its start.

Optimising a proxy helps what it stands for at first, and hurts it in the end (Gao et al. 2022, 2210.10760): the gold
rises, is highest, and falls while the proxy goes on rising.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import COLOUR, INK, MUTED, NARROW, PAPER, WIDE, Drawn, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["course_of", "draw_courses"]

Facts = Mapping[str, Any]
WATCHED = "watched_"


def course_of(label: str, lines: Sequence[Facts]) -> dict[str, Any] | None:
    """Return a training's course from its lines of metrics; None unless something was watched and the KL told.

    Single steps are a few dozen samples: every point is the mean of the last tenth of all steps up to it. The gold is what
    was watched first.
    """
    gold = next((name for line in lines for name in line if name.startswith(WATCHED)), None)
    told = [line for line in lines if gold in line and "kl" in line and "reward" in line]
    if gold is None or not told:
        return None
    width = max(1, len(told) // 10)

    def mean(name: str, at: int) -> float:
        part = told[max(0, at - width + 1) : at + 1]
        return float(sum(line[name] for line in part)) / len(part)

    points = [
        {"step": told[at]["step"], "kl": mean("kl", at), "proxy": mean("reward", at), "gold": mean(gold, at)}
        for at in range(width - 1, len(told))
    ]
    best = max(points, key=lambda point: (point["gold"], -point["step"]))
    name, first, last = gold.removeprefix(WATCHED), points[0], points[-1]
    over = "" if width == 1 else f" (means of {width} steps)"
    sentence = (
        f"{label}: {name}, which was watched, was highest at step {best['step']}, {best['gold']:.3f} at a KL of "
        f"{best['kl']:z.2f}{over}; it began at {first['gold']:.3f} and ended at {last['gold']:.3f} at a KL of "
        f"{last['kl']:z.2f}, while the reward went from {first['proxy']:.3f} to {last['proxy']:.3f}."
    )
    return {"gold": name, "best_step": best["step"], "points": points, "sentence": sentence}


def draw_courses(report: Facts, folder: Path) -> list[Drawn]:
    """Write a figure of each training that has a course."""
    drawn: list[Drawn] = []
    for stage in report["trained"]:
        if stage["course"] is not None:
            alt = f"Reward and {stage['course']['gold']} against the KL from the start. {stage['course']['sentence']}"
            title = f"{stage['label']}: what it was trained on, and what was watched"
            drawn += draw([(f"course_{stage['name']}", title, alt, _course)], stage["course"], folder)
    return drawn


def _course(figure: Figure, course: Facts, narrow: bool) -> None:
    """Two panels over one axis of KL: the proxy above, the gold below with its highest point marked."""
    figure.set_size_inches(NARROW if narrow else WIDE, 4.4)
    kl = [point["kl"] for point in course["points"]]
    best = next(point for point in course["points"] if point["step"] == course["best_step"])
    above, below = figure.subplots(2, sharex=True)
    for axes, name, colour, label in (
        (above, "proxy", COLOUR["preference"], "Reward (trained on)"),
        (below, "gold", COLOUR["fine-tuning"], f"{course['gold']} (watched)"),
    ):
        axes.plot(kl, [point[name] for point in course["points"]], "o-", color=colour, markersize=3.5, linewidth=1.2)
        axes.axvline(best["kl"], color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        axes.set_ylabel(label)
    style = {"markersize": 8, "color": PAPER, "markeredgecolor": INK, "markeredgewidth": 1.4}
    below.plot([best["kl"]], [best["gold"]], "o", zorder=4, **style)
    below.annotate(
        f"step {best['step']}", (best["kl"], best["gold"]), (6, -12), textcoords="offset points", fontsize=8.5, color=INK
    )
    below.set_xlabel("KL from the start, nats")
