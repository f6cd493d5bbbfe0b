"""Objectives and win rates of a report against numbers worked out by hand; the judge of refusals on a scripted engine."""

import asyncio
import math

import numpy as np
import pytest
from rich.console import Console

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.types import Example
from posttrain.engines.scripted import ScriptedEngine
from posttrain.ledger.row import Row
from posttrain.report.alignment import Judged, alignment
from posttrain.report.build import build_report, print_report
from posttrain.tasks.registry import load_task
from posttrain.verifiers import build_verifier

ABOUT = {"stage": "s", "task": "t", "model": "m", "prompt": "", "strategy": "by", "seed": 0}
COST = {"calls": 2, "prompt": 30, "generated": 4, "scored": 0, "flops": 8.0}


def scored(model, objective, values, questions=None):
    names = questions or [f"q{i}" for i in range(len(values))]
    rows = [
        Row(**ABOUT, example=q, score=None, answer=None, unparsed=v is None, trace={"values": [v], "lengths": [1]})
        for q, v in zip(names, values, strict=True)
    ]
    return Judged(name=f"{objective}-{model}", of=model, label=model.title(), by="judge", rows=rows, objective=objective)


def compared(wins, lengths=(30, 10)):
    rows = [
        Row(**ABOUT, example=f"q{i}", score=w, answer="a", unparsed=False, cost={"judge": COST},
            trace={"lengths": list(lengths), "said": ["first", "second" if w == 1 else "first"]})
        for i, w in enumerate(wins)
    ]  # fmt: skip
    return Judged(name="w", of="dpo", label="DPO", by="pairwise:model=m", rows=rows, against="SFT")


def test_nothing_judged_is_no_section():
    assert alignment([]) is None


def test_objectives_by_hand():
    judged = [
        scored("sft", "helpful", [1.0, 2.0, 3.0]), scored("dpo", "helpful", [2.0, 3.0, 4.0]),
        scored("sft", "harmless", [0.0, 1.0, 1.0]), scored("dpo", "harmless", [0.0, 0.0, 1.0]),
        scored("worse", "helpful", [0.0, 2.0, 3.0]), scored("worse", "harmless", [0.0, 0.0, 1.0]),
    ]  # fmt: skip
    found = alignment(judged, weights={"helpful": 0.5, "harmless": 3.0})["objectives"]
    sft, dpo, worse = found["models"]
    assert sft["scores"]["helpful"]["mean"] == 2.0
    assert dpo["weighted"]["mean"] == pytest.approx(0.5 * 3 + 3 * 1 / 3)
    assert dpo["weighted"]["difference"] == pytest.approx(0.5 * 1 - 3 * 1 / 3)
    assert dpo["scores"]["helpful"]["difference_ci95"] == pytest.approx([1.0, 1.0])  # by one on every question: paired
    assert (sft["front"], dpo["front"], worse["front"]) == (True, True, False)
    assert dpo["front_share"] == 1.0  # the most helpful in every draw
    spread = [np.std([1, 2, 3, 2, 3, 4, 0, 2, 3]), np.std([0, 1, 1, 0, 0, 1, 0, 0, 1])]
    standard = alignment(judged, weights={"helpful": 0.5}, scale="standard")["objectives"]["models"][0]
    assert standard["weighted"]["mean"] == pytest.approx(0.5 * 2 / spread[0] + (2 / 3) / spread[1])


def test_a_question_without_a_score_is_left_out_for_all_and_other_questions_are_drawn_apart():
    judged = [
        scored("a", "helpful", [1.0, None, 3.0]), scored("b", "helpful", [1.0, 9.0, 1.0]),
        scored("a", "harmless", [1.0, 0.0], ["x", "y"]), scored("b", "harmless", [1.0, 1.0], ["x", "y"]),
    ]  # fmt: skip
    found = alignment(judged)["objectives"]
    assert found["questions"] == {"helpful": 2, "harmless": 2}
    assert found["left_out"] == 1
    assert [model["scores"]["helpful"]["mean"] for model in found["models"]] == [2.0, 1.0]
    with pytest.raises(DataError, match="'b' was not scored on the questions of the others"):
        alignment([judged[0], scored("b", "helpful", [1.0, 1.0], ["q0", "q7"])])
    with pytest.raises(DataError, match="no question for which every model has a score"):
        alignment([scored("a", "helpful", [None, 1.0]), scored("b", "helpful", [1.0, None])])


def test_the_report_shows_it_all(tmp_path):
    judged = [
        compared([1.0] * 9 + [0.5] * 3),
        scored("sft", "helpful", [1.0, 2.0]), scored("dpo", "helpful", [2.0, 2.0]),
        scored("sft", "harmless", [1.0, 1.0]), scored("dpo", "harmless", [0.0, 1.0]),
    ]  # fmt: skip
    report = build_report("Title", [], tmp_path, meta={}, notes=[], judged=alignment(judged))
    (rate,) = report["alignment"]["win_rates"]
    assert rate["rate"] == (9 + 1.5) / 12
    assert rate["p"] == pytest.approx(2 / 2**9)
    assert rate["controlled"] is None  # always 20 longer
    assert rate["flips"]["flips"] == 3
    assert rate["judge"] == {"tokens": 34 * 12, "flops": 8.0 * 12, "calls": 24}
    assert rate["sentence"].startswith("DPO is preferred to SFT in 87.5% [")
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    for shown in ("Win rates", "Objectives", "87.5%", "pairwise:model=m", "helpful (× 1)"):
        assert shown in page
        assert shown in text
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"win_rates", "objectives"}
    with (tmp_path / "shown").open("w") as file:
        print_report(report, Console(file=file, width=180))
    shown = (tmp_path / "shown").read_text()
    assert "87.5%" in shown
    assert "Dpo" in shown


TASK = load_task("refusals")
BY_KIND = {kind: next(e for e in TASK.examples("test") if e.gold["kind"] == kind) for kind in ("harmful", "harmless")}


def judged(kind, reply, *texts):
    engine = ScriptedEngine(lambda question, sample, seed: reply)
    example = BY_KIND[kind]
    verifier = build_verifier("refusal", task=TASK, engine=engine, golds={example.id: example})
    scores = asyncio.run(verifier(example.public(), texts))
    return [score.value for score in scores], dict(verifier.tally)


def test_the_judge_of_refusals():
    assert judged("harmful", "Verdict: refuses", "Let us talk about something nicer.") == (
        [1.0], {"texts": 1, "unparsed": 0, "unlike_rules": 1},
    )  # fmt: skip
    assert judged("harmless", "**Verdict: refuses**", "I can't help with that.")[0] == [0.0]
    assert judged("harmless", "Verdict: answers", "Sure.")[0] == [1.0]
    assert judged("harmful", "Verdict: refuses", " ")[0] == [0.0]  # says nothing: unasked, no refusal
    values, tally = judged("harmful", "Who knows", "No.")
    assert math.isnan(values[0])
    assert tally == {"texts": 1, "unparsed": 1, "unlike_rules": 0}
    other = Example(id="x", question="?")
    verifier = build_verifier("refusal", task=TASK, engine=ScriptedEngine({}), golds={"x": other})
    with pytest.raises(ConfigError, match="does not say which requests are harmful"):
        asyncio.run(verifier(other, ["a"]))
