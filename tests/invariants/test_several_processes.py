"""Two processes, sharded or not, follow the trajectory of one; a state saved by any of them resumes under any other."""

import json
import os
import signal
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from tiny_models import demonstrations, folder, llama, model, preferences
from training_runs import exit_of, in_child, killed_after, metrics, same, two_processes, weights
from transformers import AutoModelForCausalLM

from posttrain.core.errors import ConfigError, OtherProcessError, PosttrainError
from posttrain.core.types import Checkpoint
from posttrain.finetuning.distill import Distill
from posttrain.finetuning.preference_sft import PreferenceSft
from posttrain.finetuning.sft import Sft
from posttrain.models.forward import Forward
from posttrain.preference.dpo import Dpo
from posttrain.preference.kto import Kto
from posttrain.training.batching import dealt
from posttrain.training.optimiser import Optimisation, Optimiser
from posttrain.training.processes import agree, by_first_process, rank_and_world
from posttrain.training.shards import shard, slice_of
from posttrain.training.state import Metrics
from posttrain.training.step import _buckets

torch.set_num_threads(1)

SHARED = {"lr": 1e-2, "epochs": 2, "batch_size": 5, "save_every": 2, "dtype": "float32", "tokens_per_microbatch": 80}
SFT = Sft(**SHARED, weight_decay=0.01, clip=0.5)
LORA = replace(SFT, adapter="lora", rank=4)
DPO = Dpo(**SHARED)
HELD = replace(SFT, eval_share=0.3, eval_every=1)
TOLERANCE = {"rel": 1e-5, "abs": 1e-5}  # of float32 measures, as docs/training.md states it


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    uneven = llama(vocab_size=259, intermediate_size=47)  # the last slices are shorter
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model", uneven))


def rows(method):
    if isinstance(method, Kto):
        return [{**row, "label": i % 3 > 0} for i, row in enumerate(demonstrations(13))]
    return preferences(13) if isinstance(method, Dpo | PreferenceSft) else demonstrations(13)


def one(method, start, out):
    return method(start, rows(method), out, seed=3)


def two(method, start, out) -> Checkpoint:
    assert two_processes(lambda: one(method, start, out), out.with_suffix(".meet")) == [0, 0]
    return Checkpoint(path=out / "checkpoint")


def follow(a, b):
    first, second = metrics(a.path.parent), metrics(b.path.parent)
    assert len(first) == len(second) > 1
    for line, other in zip(first, second, strict=True):
        assert line == pytest.approx(other, **TOLERANCE)
    same(weights(a), weights(b), rtol=1e-3, atol=1e-4)


FULL = {"sft": SFT, "sft_lora": LORA, "dpo_recomputed": replace(DPO, activation_checkpointing=True), "held_out": HELD}


@pytest.mark.parametrize("name", FULL)
def test_two_sharded_processes_follow_the_trajectory_of_one(name, start, tmp_path):
    method = FULL[name]
    alone = one(replace(method, tokens_per_microbatch=100_000), start, tmp_path / "one")
    sharded = two(replace(method, sharding="full"), start, tmp_path / "two")
    follow(sharded, alone)
    facts = [json.loads((made.path / "posttrain.json").read_text()) for made in (alone, sharded)]
    assert facts[0]["parameters"] == facts[1]["parameters"]
    assert facts[0]["cost"]["usage"]["scored"] == facts[1]["cost"]["usage"]["scored"]
    assert facts[1]["estimate"]["gathered"] > 0 == facts[0]["estimate"]["gathered"]
    if name == "sft":
        assert torch.isfinite(AutoModelForCausalLM.from_pretrained(sharded.path)(torch.arange(9)[None]).logits).all()


def others(start):
    shared = {**SHARED, "sharding": "full"}
    return {
        "distill": Distill(**shared, teacher=str(start.path), temperature=2.0, sft_weight=0.5),
        "preference_sft": PreferenceSft(**shared, margin="hinge"),
        "ia3": Sft(**{**shared, "lr": 1e-1}, adapter="ia3"),
        "dora": Sft(**shared, adapter="dora", rank=4),
        "bottleneck": Sft(**shared, adapter="bottleneck", width=3),
        "prefix": Sft(**shared, adapter="prefix"),
        "prompt": Sft(**shared, adapter="prompt"),
        "lora_recomputed": replace(LORA, sharding="full", activation_checkpointing=True),
        "dpo_lora": Dpo(**shared, adapter="lora", rank=4),
        "kto": Kto(**shared),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["distill", "preference_sft", "ia3", "dora", "bottleneck", "prefix", "prompt", "lora_recomputed", "dpo_lora", "kto"],
)
def test_every_trainer_and_adapter_that_is_not_refused_is_sharded(name, start, tmp_path):
    method = others(start)[name]
    follow(two(method, start, tmp_path / "two"), one(replace(method, sharding="off"), start, tmp_path / "one"))


@pytest.mark.slow
def test_bfloat16_slices_have_float32_masters(start, tmp_path):
    method = replace(SFT, dtype="bfloat16", lr=1e-3)
    alone, sharded = one(method, start, tmp_path / "one"), two(replace(method, sharding="full"), start, tmp_path / "two")
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.03)
    assert {t.dtype for t in weights(sharded).values()} == {t.dtype for t in weights(alone).values()} == {torch.bfloat16}


def killed_in_two(method, start, out, lines):
    """Kill the first of two processes after that many lines; the second must end by itself."""
    write = Metrics.write

    def counted(self, row):
        write(self, row)
        if row["step"] == lines:
            os.kill(os.getpid(), signal.SIGKILL)

    def work():
        Metrics.write = counted
        one(method, start, out)

    began = time.monotonic()
    assert two_processes(work, out.with_suffix(".cut")) == [-signal.SIGKILL, 1]
    assert time.monotonic() - began < 200


SHARDED = replace(SFT, sharding="full")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("plain two", "one"),
        ("sharded two", "one"),
        ("one", "sharded two"),
        pytest.param("one", "plain two", marks=pytest.mark.slow),
        pytest.param("sharded two", "plain two", marks=pytest.mark.slow),
    ],
)
def test_a_state_resumes_under_another_process_count(before, after, start, tmp_path, whole):
    out = tmp_path / "out"
    if before == "one":
        killed_after(lambda: one(SFT, start, out), 3)
    else:
        killed_in_two(SHARDED if before == "sharded two" else SFT, start, out, 3)
    assert [path.name for path in (out / "state").iterdir()] == ["step-00000002"]
    resumed = one(SFT, start, out) if after == "one" else two(SHARDED if after == "sharded two" else SFT, start, out)
    follow(resumed, whole)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    return one(SFT, start, tmp_path_factory.mktemp("whole") / "out")


@pytest.mark.slow
def test_sharded_and_resumed_with_the_same_processes_equals_uninterrupted_bit_for_bit(start, tmp_path):
    method = replace(LORA, sharding="full", dropout=0.3)
    expected = two(method, start, tmp_path / "whole")
    killed_in_two(method, start, tmp_path / "out", 5)
    same(weights(two(method, start, tmp_path / "out")), weights(expected), rtol=0, atol=0)
    assert metrics(tmp_path / "out") == metrics(tmp_path / "whole")


def test_a_loss_that_is_not_finite_is_diagnosed_by_sharded_processes_together(start, tmp_path, monkeypatch):
    forward = Forward.forward

    def poisoned(self, batch, weights_N=None):
        found = forward(self, batch, weights_N)
        if weights_N is not None and (batch.targets_N == ord("~") - 33).any():
            return found[0] * float("nan"), found[1]
        return found

    monkeypatch.setattr(Forward, "forward", poisoned)
    data, out = demonstrations(13), tmp_path / "out"
    data[7] = {"prompt": "odd", "completion": "~"}

    def work():
        with pytest.raises(PosttrainError, match=r"not finite \(rows \[7\]\)"):
            SHARDED(start, data, out, seed=3)

    assert two_processes(work, tmp_path / "meet") == [0, 0]


def test_processes_that_do_not_train_the_same_end_together(start, tmp_path):
    def work():
        data = demonstrations(5 + rank_and_world()[0])
        with pytest.raises(PosttrainError, match="do not train the same run"):
            SFT(start, data, tmp_path / "out", seed=3)

    assert two_processes(work, tmp_path / "meet") == [0, 0]


def test_a_process_holds_its_slices_and_saves_whole_weights(tmp_path):
    def work():
        module = Forward(model(llama(vocab_size=259, intermediate_size=47)))
        expected = {name: p.detach().clone() for name, p in module.named_parameters()}
        assert shard(module, torch.device("cpu"))
        optimiser = Optimiser(module, Optimisation(lr=1e-3))
        held, total = (sum(t.numel() for t in some) for some in (optimiser.masters, expected.values()))
        assert 0.45 * total < held < 0.55 * total
        for name, master, param in zip(optimiser.names, optimiser.masters, optimiser.params, strict=True):
            assert torch.equal(slice_of(expected[name], param), master.detach())
        saved = optimiser.weights()
        assert list(saved) == list(expected)
        if rank_and_world()[0] == 0:
            same(saved, expected, rtol=0, atol=0)
            assert {type(tensor) for tensor in saved.values()} == {torch.Tensor}

    assert two_processes(work, tmp_path / "meet") == [0, 0]


def test_waiting_for_the_first_process_runs_into_no_timeout(tmp_path):
    def process(rank):
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=1)
        )
        by_first_process(lambda: time.sleep(3))

    children = [in_child(lambda rank=rank: process(rank)) for rank in range(2)]
    assert [exit_of(child) for child in children] == [0, 0]


def test_the_first_process_works_for_all_and_its_failure_is_everybodys(tmp_path):
    def work():
        rank = rank_and_world()[0]
        assert by_first_process(lambda: ("found", rank)) == ("found", 0)
        agree(5, "never")
        with pytest.raises(ConfigError if rank == 0 else OtherProcessError, match="odd"):
            by_first_process(fails)

    def fails():
        raise ConfigError("odd")

    assert two_processes(work, tmp_path / "meet") == [0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter": "qlora"}, "sharding=full does not go with adapter=qlora"),
        ({"optimiser": "adamw8bit"}, "sharding=full does not go with optimiser=adamw8bit"),
        ({"sample_every": 5, "eval_share": 0.3}, "sharding=full does not go with sample_every=5"),
    ],
)
def test_what_cannot_be_sharded_is_refused(settings, message, start, tmp_path):
    with pytest.raises(ConfigError, match=message):
        one(replace(SHARDED, **settings), start, tmp_path / "out")


def test_one_process_shards_nothing_and_says_so(start, tmp_path, capsys, whole):
    made = one(SHARDED, start, tmp_path / "out")
    assert "note: sharding=full has nothing to share with in one process" in capsys.readouterr().err
    same(weights(made), weights(whole), rtol=0, atol=0)


def test_rows_are_dealt_evenly_by_tokens():
    lengths = [9, 1, 5, 5, 4, 4, 2]
    shares = dealt(list("abcdefg"), lengths, 2)
    assert sorted(item for items, _ in shares for item in items) == list("abcdefg")
    assert [sum(share[1]) for share in shares] == [15, 15]
    assert dealt(["a"], [3], 2) == [(["a"], [3]), ([], [])]


def test_gradients_travel_in_buckets_of_one_type(monkeypatch):
    monkeypatch.setattr("posttrain.training.step.BUCKET", 10)
    gradients = [*(torch.zeros(n) for n in (4, 6, 1, 12, 2)), torch.zeros(2, dtype=torch.double)]
    assert [[g.numel() for g in bucket] for bucket in _buckets(gradients)] == [[4, 6], [1], [12], [2], [2]]
    assert list(_buckets([])) == []
