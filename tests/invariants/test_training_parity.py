"""Whole trajectories against TRL's trainers: same rows in the same order, same optimiser, float32."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import demonstrations, folder, preferences
from trl_runs import follow

from posttrain.core.types import Checkpoint
from posttrain.finetuning.sft import Sft
from posttrain.preference.dpo import Dpo

torch.set_num_threads(1)
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

STEPS, BATCH = 4, 6


def compare(ours, seen, theirs, checkpoint):
    assert len(ours) == len(seen) == STEPS
    for mine, their in zip(ours, seen, strict=True):
        assert mine["loss"] == pytest.approx(float(their["loss"]), rel=2e-3, abs=1e-4)
        assert mine["grad_norm"] == pytest.approx(float(their["grad_norm"]), rel=5e-3, abs=1e-4)
        assert mine["lr"] == pytest.approx(float(their["learning_rate"]), rel=1e-3)
    for name, tensor in load_file(checkpoint.path / "model.safetensors").items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-2, atol=2e-3, msg=name)


def run(method, rows, start, out):
    checkpoint = method(Checkpoint(path=start), rows, out, seed=5)
    return checkpoint, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


SHARED = {"lr": 1e-2, "schedule": "linear", "warmup": 0.0, "batch_size": BATCH, "dtype": "float32", "save_every": 0}


def test_sft_follows_trl(tmp_path):
    trl = pytest.importorskip("trl")
    start, rows = folder(tmp_path / "model"), demonstrations(STEPS * BATCH)
    checkpoint, ours = run(Sft(**SHARED), rows, start, tmp_path / "ours")
    seen, theirs = follow(
        trl.SFTTrainer,
        lambda **c: trl.SFTConfig(**c, completion_only_loss=True),
        rows,
        start,
        ["completion"],
        tmp_path / "trl",
        steps=STEPS,
        batch=BATCH,
    )
    compare(ours, seen, theirs, checkpoint)


def test_dpo_follows_trl(tmp_path):
    trl = pytest.importorskip("trl")
    start, rows = folder(tmp_path / "model"), preferences(STEPS * BATCH)
    checkpoint, ours = run(Dpo(**SHARED, beta=0.3), rows, start, tmp_path / "ours")

    def config(**common):
        return trl.DPOConfig(**common, beta=0.3)

    sides = ["chosen", "rejected"]
    seen, theirs = follow(trl.DPOTrainer, config, rows, start, sides, tmp_path / "trl", steps=STEPS, batch=BATCH)
    compare(ours, seen, theirs, checkpoint)
    for mine, their in zip(ours, seen, strict=True):
        assert mine["margin"] == pytest.approx(float(their["rewards/margins"]), rel=5e-3, abs=1e-3)
        assert mine["accuracy"] == pytest.approx(float(their["rewards/accuracies"]), abs=1e-6) or mine["step"] == 1
