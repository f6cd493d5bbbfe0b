"""Every prompter composes with every strategy: all pairs answer, through whatever files the two folders hold."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.core.protocols import Tools
from posttrain.core.specs import available, lookup
from posttrain.core.types import Answer, Example, Prompt, Sampling
from posttrain.engines.fitting import Fitting
from posttrain.engines.meter import Account, Metered
from posttrain.engines.scripted import ScriptedEngine
from posttrain.pipeline.methods import build_prompter, build_strategy
from posttrain.stats.allocation_table import Row, Table
from posttrain.tasks import load_task
from posttrain.verifiers.build import build_verifier

PROMPTING, TEST_TIME = "posttrain.prompting", "posttrain.test_time"
REQUIRED = {"instructed": "instructed:text=Add."}  # settings without which a prompter is none
VARIANTS = [
    "few_shot:k=2,style=text,select=nearest,order=nearest_last",
    "few_shot_cot:k=3,select=balanced,order=7",
    "instructed:text=Add.,prompt=zero_shot_cot,place=system",
]
PROMPTS = [REQUIRED.get(name, name) for name in available(PROMPTING)] + VARIANTS
STRATEGIES = available(TEST_TIME)
TABLE = Table(
    pilot=4,
    difficulty="entropy",
    verifier=None,
    rows=(
        Row(upto=0.1, rule="majority", n=4, share=0.5, accuracy=0.9, tokens=30.0),
        Row(upto=None, rule="majority", n=8, share=0.5, accuracy=0.6, tokens=60.0),
    ),
    accuracy=0.75,
    tokens=45.0,
    questions=10,
)


def respond(prompt: Prompt, sample: int, seed: int) -> str:
    """Right in two of three samples; a turn that was begun is ended, and steps are lines."""
    asked = prompt.messages[-1].content
    found = re.findall(r"-?\d+(?: [+-] \d+)+", asked)
    total = sum(int(part) for part in re.findall(r"[+-]? ?\d+", found[-1].replace(" ", ""))) if found else 0
    value = total + (sample % 3 == 2)
    if prompt.pieces and isinstance(prompt.pieces[-1], str):  # the cue of the second stage
        return f" {value}."
    return f"It is a sum.\n\nAnswer: {value}" if not prompt.begun else f" It is a sum.\n\nAnswer: {value}"


@pytest.fixture(scope="module")
def task() -> Any:
    return load_task("reasoning_gym/chain_sum:min_terms=2,max_terms=3,max_digits=2,train=60,test=8")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_pair_answers(prompt: str, strategy: str, task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "allocation.json").write_text(TABLE.to_json())  # what compute_optimal reads where it is told nothing else
    prompter, chosen = build_prompter(prompt), build_strategy(strategy)
    engine = ScriptedEngine({}, respond=respond)
    assert (prompter.needs | lookup(strategy, TEST_TIME, "strategy").needs) <= engine.can  # type: ignore[attr-defined]
    example: Example = task.examples("test")[0]
    asked = prompter(task, example.public(), seed=0)
    account = Account()
    tools = _tools(task, example, Fitting(engine), account, chosen)
    answer = asyncio.run(chosen(asked, example.public(), tools, seed=0))
    assert isinstance(answer, Answer)
    assert answer.candidates
    assert answer.answer is None or task.key(answer.answer)
    assert account.total.usage.generated > 0
    assert isinstance(answer.trace, dict)
    if strategy in ("greedy", "self_consistency"):  # where the right answer is the only outcome
        assert task.grade(example, answer.answer) == 1.0


def _tools(task: Any, example: Example, engine: Any, account: Account, strategy: Any) -> Tools:
    metered = Metered(engine, account, "verifier")
    wanted = getattr(strategy, "verifiers", ())
    return Tools(
        engine=Metered(engine, account, "policy"),
        extract=task.extract,
        key=task.key,
        sampling=Sampling(max_tokens=64),
        verifiers={spec: build_verifier(spec, task=task, engine=metered, golds={example.id: example}) for spec in wanted},
    )


def test_all_files_are_covered() -> None:
    assert {spec.partition(":")[0] for spec in PROMPTS} == set(available(PROMPTING))
    assert {"greedy", "sample", "self_consistency", "best_of_n"} <= set(STRATEGIES)
