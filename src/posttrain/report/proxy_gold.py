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


def course_of(label: str, lines: Sequence[Facts], evaluation: Facts | None = None) -> dict[str, Any] | None:
    """Return a training's course from its lines of metrics; None unless something was watched and the KL told.

    With evaluations on held-out questions (`evaluation`: what `posttrain.json` says of them) every point is one of these:
    the same questions each time, so that points compare. Else each step asked others, a few dozen samples: every point is
    the mean of the last tenth of all steps up to it. The KL is a sample's, in nats. The gold is what was watched first.
    """
    gold = next((name for line in lines for name in line if name.startswith(WATCHED)), None)
    told = [line for line in lines if gold in line and "kl" in line and "reward" in line]
    if gold is None or not told:
        return None
    width = max(1, len(told) // 10)
    points = _held_out(lines, gold, evaluation or {})
    where, over = "which was watched", "" if width == 1 else f" (means of {width} steps)"
    if points:
        where, over = f"watched on the same {(evaluation or {}).get('rows', 'held-out')} held-out questions", ""
    else:
        points = [_point(told[max(0, at - width + 1) : at + 1], gold) for at in range(width - 1, len(told))]
    best = max(points, key=lambda point: (point["gold"], -point["step"]))
    name, first, last = gold.removeprefix(WATCHED), points[0], points[-1]
    sentence = (
        f"{label}: {name}, {where}, was highest at step {best['step']}, {best['gold']:.3f} at a KL of "
        f"{best['kl']:z.2f}{over}; it began at {first['gold']:.3f} and ended at {last['gold']:.3f} at a KL of "
        f"{last['kl']:z.2f}, while the reward went from {first['proxy']:.3f} to {last['proxy']:.3f}."
    )
    return {"gold": name, "best_step": best["step"], "points": points, "sentence": sentence}


def _kl(line: Facts) -> float:
    return float(line["kl_sample"] if "kl_sample" in line else line["kl"])


def _point(lines: Sequence[Facts], gold: str) -> dict[str, Any]:
    """Return the means of some steps, at the last of them."""

    def mean(values: Sequence[float]) -> float:
        return float(sum(values)) / len(values)

    proxy, watched = mean([line["reward"] for line in lines]), mean([line[gold] for line in lines])
    return {"step": lines[-1]["step"], "kl": mean([*map(_kl, lines)]), "proxy": proxy, "gold": watched}


def _held_out(lines: Sequence[Facts], gold: str, evaluation: Facts) -> list[dict[str, Any]]:
    """Return a point for every evaluation, the start's first.

    The KL of the weights after step s is told by the samples of step s + 1, which they drew; those of the last step by the
    last step's own.
    """
    kl = {line["step"]: _kl(line) for line in lines if "kl" in line}
    start, found = evaluation.get("start", {}), []
    if "reward" in start and gold in start:
        found.append({"step": 0, "kl": 0.0, "proxy": start["reward"], "gold": start[gold]})
    for line in lines:
        step = line["step"]
        if "eval_reward" in line and f"eval_{gold}" in line and (step in kl or step + 1 in kl):
            proxy, watched = line["eval_reward"], line[f"eval_{gold}"]
            found.append({"step": step, "kl": kl.get(step + 1, kl.get(step, 0.0)), "proxy": proxy, "gold": watched})
    return found if any(point["step"] for point in found) else []


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
    below.set_xlabel("KL from the start, nats a sample")
