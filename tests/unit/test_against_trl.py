"""The comparison with TRL's GRPO (`benchmarks/against_trl`): rewards have no ties, rates by hand, the same work on both."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import tiny_models
import torch

from posttrain.core.errors import ConfigError
from posttrain.core.types import Example
from posttrain.engines.local import engine
from posttrain.preference import grpo as ours
from posttrain.training.batching import step_rows
from posttrain.training.rollouts import Policy
from posttrain.training.step import Learner
from posttrain.verifiers.function import Function

ROOT = Path(__file__).parents[2]
TEXTS = ["", "a", "b", "a", "a", "\ud800", "b", "a longer one"]


@pytest.fixture
def compared(monkeypatch):
    """The modules, with what a measurement replaces for its own process put back behind the test."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for place, name in ((Learner, "update"), (Policy, "rollouts"), (ours, "parts_of"), (engine, "end_ids")):
        monkeypatch.setattr(place, name, getattr(place, name))
    from against_trl import common, grpo, rewards

    return common, grpo, rewards


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "q.jsonl"
    asked = [f"How many\u2028apples are {i} and {i}{'?' * (i % 3)}" for i in range(12) for _ in range(2)]
    path.write_text("".join(json.dumps({"question": q}, ensure_ascii=False) + "\n" for q in asked), encoding="utf-8")
    return path


def test_no_texts_of_a_group_are_worth_the_same(compared):
    _, _, rewards = compared
    found = rewards.apart(None, TEXTS)
    assert len(set(found)) == len(TEXTS)
    assert found == rewards.apart(None, TEXTS)
    assert all(0 <= value < 1 for value in found)
    many = rewards.apart(None, [str(i % 50) for i in range(5000)])
    assert len(set(many)) == 5000
    assert sum(many) / 5000 == pytest.approx(0.5, abs=0.02)  # sd of the mean: 0.004
    assert len(set(rewards.apart(None, ["same"] * 8))) == 8


def test_both_sides_call_the_same_reward(compared):
    _, _, rewards = compared
    verifier = Function(call=f"{rewards.__file__}:apart")
    said = [[score.value for score in asyncio.run(verifier(Example(id="q", question=""), t))] for t in (TEXTS, TEXTS[::-1])]
    completions = [[{"role": "assistant", "content": text}] for text in TEXTS + TEXTS[::-1]]
    assert rewards.for_trl(8)(completions=completions, prompts=[]) == said[0] + said[1]


def test_only_marked_questions_are_flat_and_only_for_who_sees_the_gold_answer(compared):
    _, _, rewards = compared
    golds = {name: Example(id=name, question="", answer=name) for name in ("apart", rewards.FLAT)}
    verifier = Function(call=f"{rewards.__file__}:some_flat", gold=True, golds=golds)
    found = {n: [s.value for s in asyncio.run(verifier(golds[n].public(), TEXTS))] for n in golds}
    assert found["apart"] == rewards.apart(None, TEXTS)
    assert found[rewards.FLAT] == [0.5] * 8
    with pytest.raises(ConfigError, match="needs gold answers"):
        Function(call=f"{rewards.__file__}:some_flat", gold=True)


def test_questions_are_different_and_as_many_of_each_step_are_flat(compared, questions):
    _, grpo, rewards = compared
    rows = grpo.rows_of(questions, batch=4, steps=3, flat=1)
    assert len({row["prompt"] for row in rows}) == 12
    for s in range(3):
        step = [rows[i]["answer"] for i in step_rows(s, rows=12, batch_size=4, seed=0)]
        assert step.count(rewards.FLAT) == 1
    with pytest.raises(SystemExit, match="12 different questions, and 2 steps of 7 need 14"):
        grpo.rows_of(questions, batch=7, steps=2, flat=0)


def test_rates_by_hand(compared):
    """The first step does not count; of the others: 6 + 8 tokens written, (10 + 2) + (10 + 4) + (20 + 5) trained, in 4 s."""
    _, grpo, _ = compared
    steps = grpo.Steps(
        ends=[100.0, 101.5, 104.0], sampling=[50.0, 0.5, 0.75], drawn=[[(9, 9)], [(10, 2), (10, 4)], [(20, 3), (20, 5)]],
        trained=[[(9, 9)], [(10, 2), (10, 4)], [(20, 5)]],
    )  # fmt: skip
    found = grpo.rates(steps)
    assert found["tokens_per_second"] == (6 + 8 + 12 + 14 + 25) / 4
    assert (found["seconds_per_step"], found["sampling_seconds_per_step"], found["training_seconds_per_step"]) == (
        2.0, 0.625, 1.375,
    )  # fmt: skip
    assert found["generated_tokens_per_step"] == 7
    assert (found["trained_tokens_per_step"], found["trained_sequence_tokens_per_step"]) == (11 / 2, 51 / 2)
    assert (found["completions_per_step"], found["trained_completions_per_step"]) == (2, 1.5)


def test_ratios_are_higher_where_ours_is_faster(compared):
    common, grpo, _ = compared
    a = [{"tokens_per_second": 30.0, "seconds_per_step": 2.0, "peak_gb": 1.0} for _ in range(3)]
    b = [{"tokens_per_second": t, "seconds_per_step": 60 / t, "peak_gb": 4.0} for t in (10.0, 15.0, 20.0)]
    assert common.ratios(a, b, grpo.MEASURES) == {
        "speed_ratio": 2.0, "speed_ratio_range": [1.5, 3.0], "seconds_ratio": 2.0, "seconds_ratio_range": [1.5, 3.0],
        "memory_ratio": 0.25, "memory_ratio_range": [0.25, 0.25],
    }  # fmt: skip


def job_of(questions, start, **changes):
    base = {
        "mode": "grpo", "side": "posttrain", "data": str(questions), "model": str(start), "batch": 4, "steps": 2,
        "samples": 3, "tokens": 16, "dtype": "float32", "full": True, "flat": 0, "every": False,
    }  # fmt: skip
    return {**base, **changes}


@pytest.mark.parametrize(("flat", "every", "trained"), [(0, False, 12), (2, False, 6), (2, True, 12)])
def test_what_is_drawn_and_trained_is_what_was_meant(compared, questions, tmp_path, flat, every, trained):
    _, grpo, _ = compared
    torch.set_num_threads(1)
    start = tiny_models.ending_folder(tmp_path / "model")
    found = grpo.measure(job_of(questions, start, flat=flat, every=every), tmp_path / "run")
    assert (found["completions_per_step"], found["trained_completions_per_step"]) == (12, trained)
    assert (found["generated_tokens_per_step"], found["trained_tokens_per_step"]) == (12 * 16, trained * 16)
    told = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert told["zero_variance"] == flat / 4
    assert 0 < found["sampling_seconds_per_step"] < found["seconds_per_step"]


def test_completions_end_by_themselves_where_they_may(compared, questions, tmp_path):
    _, grpo, _ = compared
    start = tiny_models.ending_folder(tmp_path / "model")
    found = grpo.measure(job_of(questions, start, full=False), tmp_path / "run")
    assert 12 <= found["generated_tokens_per_step"] < 12 * 16
    assert found["trained_completions_per_step"] == 12


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("device_batch", [4, 12])
def test_trl_is_asked_the_same_questions_for_as_many_tokens(compared, questions, tmp_path, device_batch):
    pytest.importorskip("trl")
    _, grpo, _ = compared
    start = tiny_models.ending_folder(tmp_path / "model")
    job = job_of(questions, start, device_batch=device_batch, attention="eager")
    rows = grpo.rows_of(questions, batch=4, steps=2, flat=0)
    theirs = grpo.measure_trl(job, rows, tmp_path / "theirs")
    mine = grpo.measure_posttrain(job, rows, tmp_path / "mine")
    assert theirs.drawn == mine.drawn
    assert [sorted(step) for step in theirs.trained] == [sorted(step) for step in mine.trained]
    assert len(theirs.ends) == len(mine.ends) == len(theirs.sampling) == len(mine.sampling) == 2


REWARD = "rule:parses=false,steps=false,regex='[a-e]'"


def a_training(tmp_path):
    """The job of `benchmarks/skip_flat.py` for a tiny training, as its posttrain.json would say it."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i} and {i}?", "answer": str(i)}) + "\n" for i in range(12)))
    method = ours.Grpo(
        task="reasoning_gym/chain_sum", rewards=(REWARD,), group=2, rollout_tokens=3, batch_size=4, dtype="float32", lr=1e-2,
        eval_share=0.2,
    )  # fmt: skip
    start = tiny_models.ending_folder(tmp_path / "model")
    config = json.loads(json.dumps(asdict(method)))
    return {"config": config, "data": str(data), "start": str(start), "steps": 3, "threads": 1, "seed": 3}


def test_flat_ones_are_skipped_and_trained_with_the_same_loss_and_gradient(compared, tmp_path, monkeypatch):
    import skip_flat

    job = a_training(tmp_path)
    skipped = skip_flat.measure({**job, "every": False})
    every = skip_flat.measure({**job, "every": True})
    assert len(skipped["steps"]) == len(every["steps"]) == 2  # the first one warms up
    assert every["trained_completions_per_step"] == every["completions_per_step"] == 8
    kept = [step["trained"] for step in skipped["steps"]]
    assert kept == pytest.approx([1 - step["zero_variance"] for step in skipped["steps"]])
    assert min(kept) < 1
    assert max(kept) > 0
    for a, b in zip(skipped["steps"], every["steps"], strict=True):
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-7)
    skip_flat.check(skipped, every)


@pytest.mark.parametrize(("name", "value"), [("reward", 0.4), ("grad_norm", 1.2), ("loss", 0.5)])
def test_sides_that_differ_in_more_are_refused(compared, name, value):
    import skip_flat

    step = {"loss": 0.1, "grad_norm": 1.0, "reward": 0.5, "zero_variance": 0.5, "trained": 0.5, "reply_tokens": 3.0}
    skip_flat.check({"steps": [step]}, {"steps": [step | {"trained": 1.0, "grad_norm": 1.01}]})
    with pytest.raises(SystemExit, match="differ in more than what they trained"):
        skip_flat.check({"steps": [step]}, {"steps": [step | {name: value}]})
