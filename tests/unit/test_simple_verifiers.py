"""Verifiers: the exact one is an oracle, rules and likelihood are not."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from posttrain.core.errors import CapabilityError, ConfigError, DataError
from posttrain.core.types import Example, Score
from posttrain.engines.scripted import ScriptedEngine
from posttrain.tasks import load_task
from posttrain.verifiers import build_verifier
from posttrain.verifiers.rule import equations

TASK = load_task("reasoning_gym/chain_sum:max_terms=3,max_digits=2,test=5")


def score(verifier, texts: Sequence[str], example: Example | None = None) -> list[Score]:
    return asyncio.run(verifier(example or TASK.examples("test")[0].public(), texts))


def test_exact_grades_behind_the_public_example() -> None:
    golds = {example.id: example for example in TASK.examples("test")}
    verifier = build_verifier("exact", task=TASK, golds=golds)
    assert verifier.oracle
    for example in golds.values():
        values = score(verifier, [f"Answer: {example.answer}", "Answer: 12345", "hm"], example.public())
        assert values == [Score(value=1.0), Score(value=0.0), Score(value=0.0)]
    with pytest.raises(DataError, match="no gold answer for example 'other'"):
        score(verifier, ["x"], Example(id="other"))


def test_likelihood_is_the_geometric_mean_per_token() -> None:
    engine = ScriptedEngine({}, logprobs=lambda asked, words: [math.log(0.5), math.log(0.125)][: len(words)])
    verifier = build_verifier("likelihood", task=TASK, engine=engine)
    assert not verifier.oracle
    values = score(verifier, ["two words", "", "one"])
    assert [value.value for value in values] == pytest.approx([0.25, 0.0, 0.5])


def test_rule() -> None:
    verifier = build_verifier("rule", task=TASK)
    assert not verifier.oracle
    assert score(verifier, ["3 + 4 = 7\n7 - 2 = 5\nAnswer: 5", "3 + 4 = 8\n8 - 2 = 6\nAnswer: 6", "hm", "Answer: 5"]) == [
        Score(value=1.0, steps=(1.0, 1.0)),
        Score(value=0.75, steps=(0.0, 1.0)),
        Score(value=0.5, steps=()),
        Score(value=1.0, steps=()),
    ]
    only = build_verifier("rule:parses=false,steps=false,regex='^Answer:'", task=TASK)
    assert score(only, ["x\nAnswer: 5", "5"]) == [Score(value=1.0), Score(value=0.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 + 4 * 2 = 11", [True]),  # products first
        ("10 / 4 = 2.5, 10 / 3 = 3.33 and 10/4=3", [True, True, False]),
        ("$16 - $3 - $4 = $9", [True]),
        ("1,000 x 2 = 2,000", [True]),
        ("5 - -3 = 8", [True]),
        ("7 / 0 = 7", []),
        ("the sum = 7", []),
        ("2 + 2 = 4 + 1 = 5", [True, True]),
        ("x = 5", []),
        ("gcd(12, 8) = 4", []),
        ("3 × 4 = 12", [True]),
        ("(2 + 3) * 4 = 20, 2 * (3 + 4) = 10", [True, False]),
        ("(so 2 + 3 = 5)", [True]),
        ("1. 3 + 4 = 7", [True]),
        ("a price (2 + 3) + 4) = 9", []),  # unbalanced: not an equation
        ("0.1 + 0.2 = 0.3", [True]),
        ("3 - 8 = -5\n-5 + 1 = -4\n-5 - 1 = -4", [True, True, False]),
        ("-$5 - 1 = -$6", [True]),
        ("8 x 1 1/2 = 12, 60 students x 2/3 = 40", []),  # mixed numbers and units inside: not read
        ("x + 2 * 3 = 6A", []),
        ("9" * 5000 + " + 1 = 2", []),
    ],
)
def test_equations(text: str, expected: list[bool]) -> None:
    assert equations(text) == expected


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("exct", ConfigError, "unknown verifier 'exct'; did you mean 'exact'"),
        ("build", ConfigError, "unknown verifier 'build'"),
        ("exact", ConfigError, "verifier 'exact' needs gold answers"),
        ("exact:task=x", ConfigError, "unknown key 'task'|needs gold answers"),
        ("likelihood", ConfigError, "verifier 'likelihood' needs an engine"),
        ("rule:step=true", ConfigError, "unknown key 'step'; did you mean 'steps'"),
        ("rule:steps=maybe", ConfigError, "steps: .*boolean"),
        ("rule:parses=false,steps=false", ConfigError, "every rule is off"),
        ('rule:regex="("', ConfigError, "not a regular expression"),
    ],
)
def test_user_errors(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_verifier(spec, task=TASK)


def test_an_engine_that_cannot_score_is_refused() -> None:
    with pytest.raises(CapabilityError, match="needs an engine that can do: score"):
        build_verifier("likelihood", task=TASK, engine=ScriptedEngine({}, can=frozenset()))


def test_a_verifier_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "short.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from posttrain.core.types import Score\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Short:\n"
        "    oracle: ClassVar[bool] = False\n"
        "    limit: int = 10\n"
        "    async def __call__(self, example, texts):\n"
        "        return [Score(value=float(len(text) <= self.limit)) for text in texts]\n"
    )
    verifier = build_verifier(f"Short@{tmp_path}/short.py:limit=3", task=TASK)
    assert score(verifier, ["abc", "abcd"]) == [Score(value=1.0), Score(value=0.0)]
