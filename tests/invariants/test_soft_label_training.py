"""Soft labels through the trainers: symmetry, ties, one trajectory, what is told, and who refuses them."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_models import folder, preferences
from training_runs import metrics, same, weights

from posttrain.core.errors import DataError
from posttrain.core.types import Checkpoint
from posttrain.finetuning.preference_sft import PreferenceSft
from posttrain.preference.dpo import Dpo
from posttrain.preference.kto import Kto
from posttrain.preference.reward_model import RewardModel

torch.set_num_threads(1)

DPO = Dpo(lr=1e-2, epochs=2, batch_size=5, dtype="float32")
REWARD = RewardModel(lr=3e-3, epochs=2, batch_size=4, dtype="float32")
LABELS = (0.9, 0.5, 0.7, 1.0)
ROWS = [{**row, "preference": LABELS[i % 4]} for i, row in enumerate(preferences(13))]
TURNED = [{**row, "chosen": row["rejected"], "rejected": row["chosen"], "preference": 1 - row["preference"]} for row in ROWS]
CASES = {
    "dpo": DPO,
    "ipo": replace(DPO, loss="ipo"),
    "simpo": replace(DPO, loss="simpo", beta=2.0, gap=1.0),
    "reward": REWARD,
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


@pytest.mark.parametrize("name", CASES)
def test_a_pair_with_label_p_is_the_pair_turned_around_with_1_minus_p(name, start, tmp_path):
    one = CASES[name](start, ROWS, tmp_path / "one", seed=3)
    other = CASES[name](start, TURNED, tmp_path / "other", seed=3)
    same(weights(one), weights(other), rtol=1e-2, atol=1e-3)
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "other"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3, abs=1e-5)
        if a["step"] > 1:  # before, policy and reference are the same, and a margin's sign is the rounding's
            assert a["accuracy"] == pytest.approx(b["accuracy"])


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_certain_labels_are_no_labels_bit_for_bit(name, start, tmp_path):
    plain = CASES[name](start, preferences(7), tmp_path / "plain", seed=3)
    certain = [{**row, "preference": 1} for row in preferences(7)]
    same(weights(CASES[name](start, certain, tmp_path / "certain", seed=3)), weights(plain), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_micro_batch_size_does_not_change_the_trajectory(name, start, tmp_path):
    whole = replace(CASES[name], tokens_per_microbatch=100_000)(start, ROWS, tmp_path / "whole", seed=3)
    one_by_one = replace(CASES[name], tokens_per_microbatch=1)(start, ROWS, tmp_path / "one", seed=3)
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-4)
    same(weights(whole), weights(one_by_one), rtol=1e-2, atol=1e-3)


def test_ties_leave_the_start_where_it_is(start, tmp_path):
    """With m = 0 at the start σ(m) − ½ = 0: nothing is asked (but for rounding, which Adam would make steps of its own)."""
    ties = [{**row, "preference": 0.5} for row in preferences(6)]
    replace(DPO, lr=1e-6)(start, ties, tmp_path / "out", seed=3)
    lines = metrics(tmp_path / "out")
    assert all(line["loss"] == pytest.approx(0.693147, abs=1e-5) for line in lines)
    assert all(line["accuracy"] == 0.5 for line in lines)


def test_the_checkpoint_tells_how_many_labels_are_soft(start, tmp_path):
    made = DPO(start, ROWS, tmp_path / "out", seed=3)
    assert json.loads((made.path / "posttrain.json").read_text())["data"]["soft_labels"] == 10


def test_held_out_labels_count_as_the_likelier_order_and_ties_not_at_all(start, tmp_path):
    made = replace(REWARD, eval_share=0.5)(start, ROWS, tmp_path / "out", seed=3)
    held = json.loads((made.path / "posttrain.json").read_text())["held_out"]
    assert 0 < held["comparisons"] < 7
    ties = [{**row, "preference": 0.5} for row in ROWS]
    made = replace(REWARD, eval_share=0.5)(start, ties, tmp_path / "ties", seed=3)
    assert json.loads((made.path / "posttrain.json").read_text())["held_out"] == {"comparisons": 0}


@pytest.mark.parametrize(("trainer", "what"), [
    (replace(DPO, loss="hinge"), "dpo's loss=hinge takes only hard ones"),
    (replace(DPO, loss="robust", label_smoothing=0.1), "dpo's loss=robust takes only hard ones"),
    (replace(REWARD, loss="list"), "reward_model with loss=list takes only hard ones"),
    (replace(REWARD, margin=1.0), "reward_model with a margin of 1 takes only hard ones"),
    (Kto(dtype="float32"), "kto takes only desirable and undesirable responses"),
    (PreferenceSft(dtype="float32"), "preference_sft learns from what was chosen outright"),
], ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:30])  # fmt: skip
def test_who_takes_none_says_so_in_a_sentence(trainer, what, start, tmp_path):
    with pytest.raises(DataError, match=f"row 0: preference = 0.9 is a soft label, and {what}: make hard labels"):
        trainer(start, ROWS, tmp_path / "out", seed=3)
