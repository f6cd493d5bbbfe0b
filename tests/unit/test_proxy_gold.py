"""The course of a training: proxy and gold against KL, the step where the gold was highest, on every page of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.report.build import Trained, build_report
from posttrain.report.proxy_gold import course_of

LINES = [
    {
        "step": s,
        "kl": 0.1 * s,
        "reward": 1.0 * s,
        "watched_exact": 0.5 - 0.002 * (s - 12) ** 2,
        "watched_b": 1.0,
        "loss": 0.0,
    }
    for s in range(1, 21)
]


def test_the_step_where_the_gold_was_highest_by_hand() -> None:
    course = course_of("PPO", LINES)
    assert course is not None
    assert course["gold"] == "exact"
    assert len(course["points"]) == 19  # means of two steps
    # gold of steps s - 1 and s: highest where both are nearest to 12, the earlier of two that are level
    assert course["best_step"] == 12
    assert course["points"][0] == {"step": 2, "kl": pytest.approx(0.15), "proxy": 1.5, "gold": pytest.approx(0.279)}
    assert course["sentence"] == (
        "PPO: exact, which was watched, was highest at step 12, 0.499 at a KL of 1.15 (means of 2 steps); it began at 0.279 "
        "and ended at 0.387 at a KL of 1.95, while the reward went from 1.500 to 19.500."
    )


def test_evaluations_on_held_out_questions_are_the_points_where_there_are_any() -> None:
    lines = [dict(line, kl_sample=line["kl"] * 10) for line in LINES]
    for step, gold, reward in ((5, 0.4, 1.5), (10, 0.6, 2.5), (20, 0.3, 3.5)):
        lines[step - 1] |= {"eval_reward": reward, "eval_watched_exact": gold}
    start = {"reward": 0.5, "watched_exact": 0.45, "reply_tokens": 9.0}
    course = course_of("PPO", lines, {"rows": 160, "start": start})
    assert course is not None
    # the weights after step 5 drew the samples of step 6, whose KL is 10 * 0.1 * 6; those of step 20 drew none
    assert course["points"] == [
        {"step": 0, "kl": 0.0, "proxy": 0.5, "gold": 0.45},
        {"step": 5, "kl": pytest.approx(6.0), "proxy": 1.5, "gold": 0.4},
        {"step": 10, "kl": pytest.approx(11.0), "proxy": 2.5, "gold": 0.6},
        {"step": 20, "kl": pytest.approx(20.0), "proxy": 3.5, "gold": 0.3},
    ]
    assert course["sentence"] == (
        "PPO: exact, watched on the same 160 held-out questions, was highest at step 10, 0.600 at a KL of 11.00; it began "
        "at 0.450 and ended at 0.300 at a KL of 20.00, while the reward went from 0.500 to 3.500."
    )
    late = course_of("PPO", lines, {"rows": 160})  # without an evaluation of the start
    assert late is not None
    assert [point["step"] for point in late["points"]] == [5, 10, 20]


def test_without_something_watched_or_a_kl_there_is_no_course() -> None:
    assert course_of("PPO", [{"step": 1, "loss": 1.0}]) is None
    assert course_of("PPO", [{name: value for name, value in line.items() if name != "kl"} for line in LINES]) is None
    assert course_of("PPO", []) is None


def test_the_report_tells_and_draws_it(tmp_path: Path) -> None:
    made = Trained(
        name="ppo", label="PPO <a>", method="ppo", weights=1, share=1.0, peak_bytes=1, seconds=1.0, tokens=1, flops=1.0,
        steps=20, losses=(1.0, 0.5), course=course_of("PPO <a>", LINES),
    )  # fmt: skip
    told = {
        "name": "ppo",
        "label": "PPO <a>",
        "method": "ppo",
        "held_out": None,
        "losses": [],
        "sentence": "",
        "samples": [],
    }
    build_report("T", [], tmp_path, meta={}, notes=[], training=[told], trained=[made])
    assert "exact, which was watched, was highest at step 12" in (tmp_path / "report.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert "PPO &lt;a&gt;: exact, which was watched" in page
    assert page.count('id="courses"') == 1
    assert page.count("course_ppo-wide-figure_1") >= 1
    assert (tmp_path / "figures" / "course_ppo.png").read_bytes().startswith(b"\x89PNG")
