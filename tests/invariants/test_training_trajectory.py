"""One trajectory: micro-batches, processes, kills and resumes change nothing but rounding (or nothing at all)."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import demonstrations, folder, preferences
from training_runs import exit_of, in_child, killed_after, metrics, same, weights

from posttrain.core.errors import ConfigError, DataError, TrainingError
from posttrain.core.types import Checkpoint
from posttrain.finetuning.sft import Sft
from posttrain.preference.dpo import Dpo

torch.set_num_threads(1)

SFT = Sft(lr=1e-2, epochs=2, batch_size=5, save_every=2, dtype="float32", weight_decay=0.01)
DPO = Dpo(lr=1e-2, epochs=2, batch_size=5, save_every=2, dtype="float32", label_smoothing=0.1)
METHODS = {
    "sft": (SFT, demonstrations(13)),
    "sft_lora_dropout": (replace(SFT, adapter="lora", dropout=0.3, rank=4), demonstrations(13)),
    "dpo": (DPO, preferences(13)),
    "dpo_lora_dropout": (replace(DPO, adapter="lora", dropout=0.3, rank=4), preferences(13)),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_micro_batch_size_does_not_change_the_trajectory(name, start, tmp_path):
    method, data = METHODS[name]
    whole = replace(method, tokens_per_microbatch=100_000)(start, data, tmp_path / "whole", seed=3)
    one_by_one = replace(method, tokens_per_microbatch=1)(start, data, tmp_path / "one", seed=3)
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-5)
    same(weights(whole), weights(one_by_one), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(name, start, tmp_path):
    method, data = METHODS[name]
    expected = method(start, data, tmp_path / "whole", seed=3)
    out = tmp_path / "killed"
    for at in (2, 3, 5):  # killed after these lines of metrics; 3 and 5 lie behind the last checkpoint of state
        run_and_kill(name, start, out, at)
        assert not (out / "checkpoint").exists()
    resumed = method(start, data, out, seed=3)
    same(weights(resumed), weights(expected), rtol=0, atol=0)
    assert metrics(out) == metrics(tmp_path / "whole")
    assert resumed.cost.usage == expected.cost.usage
    assert resumed.cost.flops == expected.cost.flops
    assert not (out / "state").exists()


def run_and_kill(name: str, start: Checkpoint, out: Path, lines: int) -> None:
    method, data = METHODS[name]
    killed_after(lambda: method(start, data, out, seed=3), lines)


def test_killed_while_a_checkpoint_is_written_falls_back_to_the_last_good_one(start, tmp_path):
    method, data = METHODS["sft"]
    expected = method(start, data, tmp_path / "whole", seed=3)
    out = tmp_path / "out"
    run_and_kill("sft", start, out, 3)
    assert [p.name for p in (out / "state").iterdir()] == ["step-00000002"]
    torn = out / "state" / ".writing-00000004"  # a later checkpoint cut off in the middle
    torn.mkdir()
    (torn / "state.pt").write_bytes(b"half")
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # and a line cut off
    same(weights(method(start, data, out, seed=3)), weights(expected), rtol=0, atol=0)
    assert metrics(out) == metrics(tmp_path / "whole")


def test_a_finished_run_is_returned_without_training(start, tmp_path, monkeypatch):
    method, data = METHODS["sft"]
    first = method(start, data, tmp_path / "out", seed=3)
    monkeypatch.setattr("posttrain.training.session.fit", lambda *_, **__: pytest.fail("trained again"))
    assert method(start, data, tmp_path / "out", seed=3) == first
    with pytest.raises(ConfigError, match="finished run with another"):
        method(start, data, tmp_path / "out", seed=4)


def test_an_unfinished_run_of_another_configuration_is_refused(start, tmp_path):
    method, data = METHODS["sft"]
    run_and_kill("sft", start, tmp_path / "out", 3)
    with pytest.raises(ConfigError, match="unfinished run with another"):
        replace(method, lr=1e-3)(start, data, tmp_path / "out", seed=3)


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_two_processes_follow_the_trajectory_of_one(name, start, tmp_path):
    method, data = METHODS[name]
    small = replace(method, tokens_per_microbatch=80)  # some steps have fewer micro-batches than processes
    expected = small(start, data, tmp_path / "one", seed=3)

    def process(rank):
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=rank, world_size=2)
        small(start, data, tmp_path / "two", seed=3)

    children = [in_child(lambda rank=rank: process(rank)) for rank in range(2)]
    assert [exit_of(child) for child in children] == [0, 0]
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-5)
    two = Checkpoint(path=tmp_path / "two" / "checkpoint")
    same(weights(two), weights(expected), rtol=1e-2, atol=1e-3)


def test_not_finite_stops_before_the_update_and_names_the_row(start, tmp_path, monkeypatch):
    method, data = METHODS["sft"]
    from posttrain.models.forward import Forward

    forward = Forward.forward

    def poisoned(self, batch, weights_N=None):
        found = forward(self, batch, weights_N)
        if weights_N is not None and (batch.targets_N == ord("~") - 33).any():  # byte-level: "~" is token 93
            return found[0] * float("nan"), found[1]
        return found

    monkeypatch.setattr(Forward, "forward", poisoned)
    data = [*data[:7], {"prompt": "odd", "completion": "~"}, *data[8:]]
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match=r"not finite \(rows \[7\]\)"):
        method(start, data, out, seed=3)
    done = metrics(out) if (out / "metrics.jsonl").exists() else []
    assert all(row["loss"] == row["loss"] for row in done)
    assert not (out / "checkpoint").exists()


def test_too_long_rows_are_an_error_or_counted(start, tmp_path):
    data = [*demonstrations(4), {"prompt": "long", "completion": "y" * 100}]
    with pytest.raises(DataError, match=r"row 4 has 1\d\d tokens, more than the 60 allowed"):
        replace(SFT, max_length=60)(start, data, tmp_path / "a", seed=0)
    made = replace(SFT, max_length=60, too_long="drop")(start, data, tmp_path / "b", seed=0)
    facts = json.loads((made.path / "posttrain.json").read_text())
    assert facts["data"]["dropped_too_long"] == 1
    assert facts["data"]["rows"] == 5
    pairs = [*preferences(3), {"prompt": "p", "chosen": "y" * 100, "rejected": "n"}]
    with pytest.raises(DataError, match=r"row 3 has \d+ tokens"):
        replace(DPO, max_length=60)(start, pairs, tmp_path / "c", seed=0)


def test_timings_come_last_in_a_metrics_line(start, tmp_path):
    began = time.perf_counter()
    SFT(start, demonstrations(6), tmp_path / "out", seed=0)
    rows = metrics(tmp_path / "out", timings=True)
    assert all(list(row)[-2:] == ["seconds", "tokens_per_second"] for row in rows)
    assert sum(row["seconds"] for row in rows) <= time.perf_counter() - began
