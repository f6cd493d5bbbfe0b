"""The loss of a reward model against TRL's trainer: same start, same pairs, one batch, float32."""

from dataclasses import replace

import pytest
import torch
from tiny_models import folder, preferences
from training_runs import metrics
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from posttrain.core.types import Checkpoint
from posttrain.preference.reward_model import RewardModel

torch.set_num_threads(1)
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

PAIRS = [{**row, "margin": i % 3 / 2} for i, row in enumerate(preferences(8))]


@pytest.mark.parametrize("centre", [0.0, 0.1])
def test_the_loss_is_trls(centre, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    start = Checkpoint(path=folder(tmp_path / "model"))
    method = RewardModel(margin=1.0, centre=centre, batch_size=100, dtype="float32")
    begun = replace(method, lr=1e-30)(start, PAIRS, tmp_path / "begun", seed=5)
    method(start, PAIRS, tmp_path / "ours", seed=5)

    def turns(row, side):
        return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]

    rows = [{**{side: turns(row, side) for side in ("chosen", "rejected")}, "margin": row["margin"]} for row in PAIRS]
    config = trl.RewardConfig(
        output_dir=str(tmp_path / "trl"), per_device_train_batch_size=len(rows), report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, max_length=None, center_rewards_coefficient=centre or None, disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(begun.path, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(begun.path),
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model.eval(), inputs)
    assert metrics(tmp_path / "ours")[0]["loss"] == pytest.approx(float(loss), rel=1e-5)
    loss.backward()
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]))
    assert metrics(tmp_path / "ours")[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-3)
