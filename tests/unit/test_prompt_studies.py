"""Sensitivity and in-context learning curves: known accuracies come out, on the same examples, and nothing runs twice."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from test_prompt_search import Given, Sums, right
from typer.testing import CliRunner

from posttrain.cli.main import app
from posttrain.core.errors import ConfigError
from posttrain.core.types import Example, ModelShape, Prompt
from posttrain.engines.scripted import ScriptedEngine
from posttrain.pipeline.icl_curve import IclCurve, icl_curve
from posttrain.pipeline.methods import build_prompter
from posttrain.pipeline.points import Bench
from posttrain.pipeline.sensitivity import Sensitivity, sensitivity
from posttrain.report.prompt_figures import draw_icl, draw_sensitivity

RUNNER = CliRunner()


def shots_in(prompt: Prompt) -> int:
    return sum("Answer: " in message.content for message in prompt.messages if message.role == "assistant")


@dataclass
class Policy:
    """Right with a chance that the prompt decides."""

    chance: Any
    calls: list[Prompt] = field(default_factory=list)

    def __call__(self, prompt: Prompt, sample: int, seed: int) -> str:
        self.calls.append(prompt)
        asked = re.findall(r"(\d+) and (\d+)", prompt.messages[-1].content)[-1]
        answer = int(asked[0]) + int(asked[1])
        return f"Answer: {answer if right(f'{asked[0]} and {asked[1]}', self.chance(prompt)) else 0}"


def engine(chance: Any, parameters: int = 9) -> tuple[ScriptedEngine, Policy]:
    policy = Policy(chance)
    shape = ModelShape(parameters=parameters, matmul_params=5, head_params=2, layers=1, attention_width=4)
    return ScriptedEngine({}, respond=policy, shape=shape), policy


def share(chance: float, task: Sums) -> float:
    """The accuracy that `right` gives: known, for it is a function of the question."""
    questions = [example.question for example in task.examples("test")]
    return sum(right(question, chance) for question in questions) / len(questions)


def test_sensitivity_finds_the_known_spread(tmp_path: Path) -> None:
    def chance(prompt: Prompt) -> float:
        text = prompt.messages[-1].content
        if text.startswith("Bad"):
            return 0.2
        if text.startswith("Good"):
            return 0.9
        if "###" in text:
            return 0.4
        return 0.6

    task = Sums(test=100)
    made, policy = engine(chance)
    bench = Bench(out=tmp_path, task=task, models=Given(engines={"m": made}))
    plan = Sensitivity(prompt="few_shot:k=3", orders=4, wordings=("Good one.", "Bad one.", "Other."))
    found = sensitivity(plan, bench, task.examples("test"), model="m")
    assert json.loads(json.dumps(found)) == json.loads((tmp_path / "sensitivity.json").read_text())
    groups = found["groups"]
    assert {name: told["variants"] for name, told in groups.items()} == {"order": 4, "wording": 4, "format": 6}
    assert (groups["order"]["spread"], groups["order"]["p"]) == (0, 1)
    assert groups["wording"]["worst"] == pytest.approx(share(0.2, task))
    assert groups["wording"]["best"] == pytest.approx(share(0.9, task))
    assert groups["wording"]["spread"] == pytest.approx(share(0.9, task) - share(0.2, task))
    low, high = groups["wording"]["spread_ci95"]
    assert low < groups["wording"]["spread"] < high
    assert groups["wording"]["noise"] < 0.2 < groups["wording"]["spread"]
    assert groups["wording"]["p"] < 0.001
    assert groups["format"]["worst"] == pytest.approx(share(0.4, task))
    # the prompt as given is the first of each group and was run once: 4 + 3 + 5 evaluations
    assert found["all"]["variants"] == 12
    assert len(policy.calls) == 12 * 100
    assert [v["prompt"] for v in found["variants"]].count("few_shot:k=3") == 3
    drawn = draw_sensitivity(found, tmp_path / "figures")
    assert [path.name for path in drawn] == ["sensitivity.png", "sensitivity.svg"]
    svg = drawn[1].read_text()
    assert "Bad one." in svg
    assert f"{100 * groups['wording']['spread']:.1f} points between worst and best" in svg
    # again: nothing runs
    sensitivity(plan, bench, task.examples("test"), model="m")
    fresh = Bench(out=tmp_path, task=task, models=Given(engines={}))
    assert sensitivity(plan, fresh, task.examples("test"), model="m") == found
    assert len(policy.calls) == 1200


def test_variants_are_what_they_say() -> None:
    task, example = Sums(), Example(id="e", question="1 and 2")
    variants = Sensitivity(prompt="few_shot:k=4,order=3", orders=6, wordings=("Add.",)).variants()
    by_group: dict[str, list[Prompt]] = {}
    for variant in variants:
        made = build_prompter(variant.prompt)(task, example, seed=0)
        by_group.setdefault(variant.group, []).append(made)
    orders = [[m.content for m in prompt.messages[1:-1:2]] for prompt in by_group["order"]]
    assert len({tuple(order) for order in orders}) == 6
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert by_group["wording"][1].messages[-1].content.startswith("Add.\n\n1 and 2")
    assert len({prompt.messages for prompt in by_group["format"]}) == 6
    # two shots have two orders, however many are asked for
    two = Sensitivity(prompt="few_shot:k=2", orders=9, wordings=(), formats=False).variants()
    assert len(two) == 2
    zero = Sensitivity(prompt="zero_shot", wordings=()).variants()
    assert [variant.label for variant in zero] == ["task's instruction (as given)", "no instruction"]
    with pytest.raises(ConfigError, match="nothing of 'zero_shot_cot' is varied"):
        Sensitivity(prompt="zero_shot_cot", wordings=()).variants()
    with pytest.raises(ConfigError, match="without 'instructed'"):
        Sensitivity(prompt="instructed:text=a").variants()


def test_the_curve_has_the_known_accuracies(tmp_path: Path) -> None:
    def small(prompt: Prompt) -> float:
        return min(0.1 + 0.1 * shots_in(prompt), 0.5)

    def large(prompt: Prompt) -> float:
        told = 'Finish with "Answer: ".' in prompt.messages[-1].content
        return (0.5 if told else 0.3) + 0.1 * shots_in(prompt)

    task = Sums(test=80)
    (one, calls), (two, _), (best, tuned_calls) = engine(small, 1_000_000), engine(large, 5_000_000), engine(lambda _: 1.0)
    models = Given(engines={"small": one, "large": two, "tuned": best})
    benches = [(Bench(out=tmp_path, task=task, models=models), task.examples("test"))]
    curve = IclCurve(shots=(4, 0, 1, 2))
    found = icl_curve(curve, benches, tmp_path, models=["small", "large"], tuned=["tuned"])
    assert json.loads(json.dumps(found)) == json.loads((tmp_path / "icl_curve.json").read_text())
    assert models.opened == ["small"] * 8 + ["large"] * 8 + ["tuned"]  # one after the other
    lines = {(line["model"], line["instruction"]): line["points"] for line in found["lines"]}
    for k, chances in {0: (0.1, 0.5, 0.3), 1: (0.2, 0.6, 0.4), 2: (0.3, 0.7, 0.5), 4: (0.5, 0.9, 0.7)}.items():
        at = [0, 1, 2, 4].index(k)
        for key, chance in zip((("small", True), ("large", True), ("large", False)), chances, strict=True):
            point = lines[key][at]
            assert point["k"] == k
            assert point["accuracy"] == pytest.approx(share(chance, task))
            assert point["ci95"][0] < point["accuracy"] < point["ci95"][1]
    assert found["tuned"][0]["accuracy"] == 1.0
    assert all(len(prompt.messages) == 1 for prompt in tuned_calls.calls)
    assert [line["parameters"] for line in found["lines"]] == [1_000_000, 1_000_000, 5_000_000, 5_000_000]
    drawn = {path.name: path for path in draw_icl(found, tmp_path / "figures")}
    assert set(drawn) == {"icl_curve.png", "icl_curve.svg", "icl_by_size.png", "icl_by_size.svg"}
    svg = drawn["icl_curve.svg"].read_text()
    for name in ("small (1.00 M)", "large (5.00 M), no instruction", "tuned, fine-tuned", "Examples in context"):
        assert name in svg, name
    assert "4 shots" in drawn["icl_by_size.svg"].read_text()
    asked = len(calls.calls)
    again = Bench(out=tmp_path, task=task, models=Given(engines={}))
    assert icl_curve(curve, [(again, task.examples("test"))], tmp_path, models=["small", "large"], tuned=["tuned"]) == found
    assert len(calls.calls) == asked


def test_several_tasks_count_the_same(tmp_path: Path) -> None:
    made, _ = engine(lambda prompt: 1.0 if "50" in prompt.messages[-1].content else 0.0)

    @dataclass
    class Other(Sums):
        name: str = "other"

        def grade(self, example: Example, answer: str | None) -> float:
            return 0.0

    models = Given(engines={"m": made})
    benches = [
        (Bench(out=tmp_path, task=task, models=models), task.examples("test")) for task in (Sums(test=20), Other(test=80))
    ]
    curve = IclCurve(shots=(0, 1), instructions=(True,))
    found = icl_curve(curve, benches, tmp_path, models=["m"])
    point = found["lines"][0]["points"][0]
    assert point["accuracy"] == 0.5
    assert point["n"] == 100
    assert {name: part["accuracy"] for name, part in point["tasks"].items()} == {"sums": 1.0, "other": 0.0}
    assert "mean of 2 tasks" in draw_icl(found, tmp_path)[1].read_text()


def test_dropped_shots_are_told(tmp_path: Path) -> None:
    from test_fitting import Short

    task = Sums(test=10)
    models = Given(engines={"m": Short(60)})
    benches = [(Bench(out=tmp_path, task=task, models=models), task.examples("test"))]
    found = icl_curve(IclCurve(shots=(0, 1, 16), instructions=(True,)), benches, tmp_path, models=["m"])
    assert [point["shots_dropped"] for point in found["lines"][0]["points"]] == [0, 0, 10]
    assert "hollow" in draw_icl(found, tmp_path)[1].read_text()


def test_user_errors() -> None:
    for shots in ((), (1, 1), (-1,)):
        with pytest.raises(ConfigError, match="different numbers from 0"):
            IclCurve(shots=shots)
    with pytest.raises(ConfigError, match="'zero_shot' has no number of shots"):
        IclCurve(prompt="zero_shot")


TASK = "reasoning_gym/chain_sum:min_terms=2,max_terms=3"


def invoke(*arguments: str) -> str:
    done = RUNNER.invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = ("--model", "scripted", "--task", TASK, "--limit", "12")
    small = ("--candidates", "4", "--select", "12", "--first", "6", "--instruction", "Add the numbers.")
    found = json.loads(invoke("prompt-search", *base, *small, "--json"))
    assert found["report"]["winner"]["n"] == 12
    assert "instructed:file=runs/prompt-search/prompt_search.json" in invoke("prompt-search", *base, *small).replace(
        "\n", ""
    )
    result = json.loads(invoke("eval", *base, "--prompt", "instructed:file=runs/prompt-search/prompt_search.json", "--json"))
    assert result["accuracy"] == found["report"]["winner"]["accuracy"]
    told = json.loads(invoke("sensitivity", *base, "--prompt", "few_shot:k=2", "--wording", "Add.", "--json"))
    assert set(told["groups"]) == {"order", "wording", "format"}
    assert (tmp_path / "runs" / "sensitivity" / "figures" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert "by chance" in invoke("sensitivity", *base, "--prompt", "few_shot:k=2", "--wording", "Add.")
    curve = json.loads(invoke("icl-curve", *base, "--shots", "0,2", "--tuned", "scripted:replies=2", "--json"))
    assert [len(line["points"]) for line in curve["lines"]] == [2, 2]
    assert (tmp_path / "runs" / "icl-curve" / "figures" / "icl_curve.svg").is_file()
    assert "fine-tuned" in invoke("icl-curve", *base, "--shots", "0,2", "--tuned", "scripted:replies=2")
    for arguments, message in (
        (("icl-curve", *base, "--shots", "0,x"), "give numbers with commas"),
        (("icl-curve", *base, "--instruction", "maybe"), "choose with, without or both"),
        (("icl-curve", *base, "--task", "gsm8k", "--data", "x"), "--data belongs to one task"),
        (("prompt-search", *base, "--score", "luck"), "prompt-search: score"),
        (("sensitivity", *base, "--prompt", "few_shots"), "did you mean 'few_shot'"),
    ):
        with pytest.raises(ConfigError, match=message):
            RUNNER.invoke(app, arguments, catch_exceptions=False)
    assert math.isfinite(found["seconds"])
