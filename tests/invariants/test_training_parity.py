"""Whole trajectories against TRL's trainers: same rows in the same order, same optimiser, float32."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import demonstrations, folder, preferences
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from posttrain.core.types import Checkpoint, Message
from posttrain.data.chat import render_text
from posttrain.finetuning.sft import Sft
from posttrain.preference.dpo import Dpo
from posttrain.training.batching import step_rows

torch.set_num_threads(1)
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

STEPS, BATCH = 4, 6


def in_order(trainer):
    class InOrder(trainer):
        def _get_train_sampler(self, dataset=None):
            return torch.utils.data.SequentialSampler(self.train_dataset if dataset is None else dataset)

    return InOrder


def follow(trainer, config, rows, start, columns, out):
    """Train with TRL on rendered text (its end-of-sequence token is the end of turn); return losses, norms, weights."""
    from datasets import Dataset

    tokenizer = AutoTokenizer.from_pretrained(start)
    order = [i for s in range(STEPS) for i in step_rows(s, rows=len(rows), batch_size=BATCH, seed=5)]

    def rendered(row):
        prompt = render_text(tokenizer, [Message(role="user", content=row["prompt"])], generation_prompt=True)
        return {"prompt": prompt, **{c: row[c] for c in columns}}

    seen = []

    class Keep(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            if logs and "loss" in logs:
                seen.append(logs)

    common = {
        "output_dir": str(out), "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "learning_rate": 1e-2,
        "num_train_epochs": 1, "lr_scheduler_type": "linear", "warmup_steps": 0, "logging_steps": 1, "report_to": [],
        "save_strategy": "no", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_length": None,
        "disable_tqdm": True,
    }  # fmt: skip
    made = in_order(trainer)(
        model=AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
        args=config(**common),
        train_dataset=Dataset.from_list([rendered(rows[i]) for i in order]),
        processing_class=tokenizer,
        callbacks=[Keep()],
    )
    made.train()
    return seen, {name: p.detach() for name, p in made.model.named_parameters()}


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
    )
    compare(ours, seen, theirs, checkpoint)


def test_dpo_follows_trl(tmp_path):
    trl = pytest.importorskip("trl")
    start, rows = folder(tmp_path / "model"), preferences(STEPS * BATCH)
    checkpoint, ours = run(Dpo(**SHARED, beta=0.3), rows, start, tmp_path / "ours")

    def config(**common):
        return trl.DPOConfig(**common, beta=0.3)

    seen, theirs = follow(trl.DPOTrainer, config, rows, start, ["chosen", "rejected"], tmp_path / "trl")
    compare(ours, seen, theirs, checkpoint)
    for mine, their in zip(ours, seen, strict=True):
        assert mine["margin"] == pytest.approx(float(their["rewards/margins"]), rel=5e-3, abs=1e-3)
        assert mine["accuracy"] == pytest.approx(float(their["rewards/accuracies"]), abs=1e-6) or mine["step"] == 1
