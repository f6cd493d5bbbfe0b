"""PPO on tiny models: a step by hand, one trajectory however cut, resume with an adaptive KL, what is saved, settings."""

import json
import re
from dataclasses import replace

import pytest
import torch
from test_grpo import PATTERN, ROWS, logps_of, rewards_of, sampled
from tiny_models import ending_folder, preferences
from training_runs import killed_after, metrics, same, two_processes, weights
from transformers import AutoModelForTokenClassification

from posttrain.core.errors import ConfigError
from posttrain.core.types import Checkpoint
from posttrain.losses.gae import advantages, whitened
from posttrain.models.actor_critic import load_value
from posttrain.models.load import load
from posttrain.models.scoring import score_head
from posttrain.preference.ppo import Ppo
from posttrain.preference.reward_model import RewardModel

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

BASE = Ppo(
    task="reasoning_gym/chain_sum", rewards=(f"rule:parses=false,steps=false,regex='{PATTERN}'",), rollout_tokens=6,
    samples=2, lr=5e-3, value_lr=2e-2, epochs=2, batch_size=3, save_every=2, dtype="float32", iterations=2, kl=0.1,
    warmup=0.0,
)  # fmt: skip
VARIANTS = {
    "adaptive": {"kl_target": 0.5, "kl_horizon": 20, "minibatches": 2, "watched": ("length:max=4",), "value_warmup": 1},
    "loss_lora": {"kl_in": "loss", "adapter": "lora", "rank": 4, "kl_target": 0.05, "kl_horizon": 20, "value_warmup": 2},
    "drop_cut": {"drop_cut": True, "kl": 0.0, "reward_scale": 3.0, "reward_clip": 2.0, "whiten": False, "value_clip": 0.0},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Collecting garbage before each run, for the peak that is told, takes longer than a run of this size."""
    monkeypatch.setattr("posttrain.training.session.forget_peak", lambda: None)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=ending_folder(tmp_path_factory.mktemp("start") / "model"))


@pytest.fixture(scope="module")
def opinion(start, tmp_path_factory):
    """A value model with an opinion: a random head."""
    path = tmp_path_factory.mktemp("value")
    loaded = load_value(start.path, dtype="float32")
    torch.manual_seed(1)
    with torch.no_grad():
        score_head(loaded.model).weight.normal_(0, 0.3)
    loaded.model.save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)
    return str(path)


def value_of(checkpoint):
    return Checkpoint(path=checkpoint.path / "value")


def alike(a, b, **tolerance):
    same(weights(a), weights(b), **tolerance)
    same(weights(value_of(a)), weights(value_of(b)), **tolerance)


def values_of(net, rollout):
    at = [i - 1 for i, mask in enumerate(rollout.encoded.mask) if mask]
    return net(torch.tensor([rollout.encoded.ids])).logits[0, at, 0].double()


def norm_of(net):
    return float(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).norm())


@pytest.mark.parametrize("changes", [{}, {"kl_in": "loss", "rollout_temperature": 0.7}], ids=["in_reward", "in_loss"])
def test_the_second_step_is_worked_out_by_transformers_alone(changes, start, opinion, tmp_path):
    """Its first update: the ratio is 1, the value model where it was, the policy away from its start."""
    method = replace(
        BASE, batch_size=7, iterations=1, cut_penalty=0.5, reward_scale=2.0, value_weight=0.3, value_start=opinion, **changes
    )
    first = replace(method, epochs=1)(start, ROWS, tmp_path / "one", seed=3)
    method(start, ROWS, tmp_path / "two", seed=3)
    heat = method.rollout_temperature
    policy, reference = (load(at.path, dtype="float32").model.eval() for at in (first, start))
    valued = AutoModelForTokenClassification.from_pretrained(first.path / "value", dtype=torch.float32).eval()
    rollouts = sampled(policy, ROWS, step=1, temperature=heat, group=2)
    flat, worth = [r for each in rollouts for r in each], rewards_of(rollouts).flatten().tolist()
    assert {r.cut for r in flat} == {True, False}
    logps = [logps_of(policy, r, heat) for r in flat]
    prices = [ours.detach() - logps_of(reference, r, heat).detach() for ours, r in zip(logps, flat, strict=True)]
    values = [values_of(valued, r) for r in flat]
    before = torch.cat(values).detach()
    rewards = [-0.1 * price * (method.kl_in == "reward") for price in prices]
    for each, r, value in zip(rewards, flat, worth, strict=True):
        each[-1] += 2 * value - 0.5 * r.cut
    owner = torch.repeat_interleave(torch.tensor([len(each) for each in rewards]))
    plain, returns = advantages(torch.cat(rewards), before, owner, gamma=1.0, lam=0.95)
    push = -whitened(plain) + (0.1 * (torch.cat(prices) + 1) if method.kl_in == "loss" else 0)  # ∇(ρ k1) = (k1 + 1) ∇log π
    (push * torch.cat(logps)).mean().backward()
    fitted = 0.5 * (torch.cat(values) - returns).square().mean()
    (0.3 * fitted).backward()
    row = metrics(tmp_path / "two")[1]
    assert row["kl"] == pytest.approx(float(torch.stack([price.sum() for price in prices]).mean()), rel=1e-3)
    assert row["kl"] > 1e-3
    assert row["kl_weight"] == 0.1
    assert row["reward"] == pytest.approx(sum(worth) / 14)
    assert row["value"] == pytest.approx(float(before.mean()), rel=1e-3)
    assert row["value_loss"] == pytest.approx(float(fitted.detach()), rel=1e-3)
    price = 0.1 * float(torch.cat(prices).mean()) * (method.kl_in == "loss")
    assert row["policy_loss"] == pytest.approx(price, abs=2e-4)  # whitened advantages have the mean 0
    assert row["loss"] == pytest.approx(row["policy_loss"] + 0.3 * row["value_loss"])
    assert row["grad_norm_policy"] == pytest.approx(norm_of(policy), rel=2e-3)
    assert row["grad_norm_value"] == pytest.approx(norm_of(valued), rel=2e-3)
    assert row["ratio_change"] == row["clipped"] == row["value_clipped"] == 0
    assert abs(row["mismatch"]) < 1e-4
    explained = 1 - float(plain.var() / returns.var())
    assert row["explained"] == pytest.approx(explained, abs=1e-3)


@pytest.mark.parametrize(
    "name", ["adaptive", *(pytest.param(name, marks=pytest.mark.slow) for name in ("loss_lora", "drop_cut"))]
)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(name, start, tmp_path):
    chosen = replace(BASE, **VARIANTS[name])
    expected = chosen(start, ROWS, tmp_path / "whole", seed=3)
    killed_after(lambda: chosen(start, ROWS, tmp_path / "cut", seed=3), 3)  # behind the last saved state
    resumed = chosen(start, ROWS, tmp_path / "cut", seed=3)
    alike(resumed, expected, rtol=0, atol=0)
    lines = metrics(tmp_path / "whole")
    assert metrics(tmp_path / "cut") == lines
    assert (tmp_path / "cut" / "rollouts.jsonl").read_text() == (tmp_path / "whole" / "rollouts.jsonl").read_text()
    assert (resumed.cost.usage, resumed.cost.flops) == (expected.cost.usage, expected.cost.flops)
    if chosen.kl_target:
        assert len({line["kl_weight"] for line in lines}) == len(lines)  # the weight has moved in every step
    if chosen.value_warmup:
        alone = chosen.value_warmup
        assert ["policy_loss" in line for line in lines] == [False] * alone + [True] * (len(lines) - alone)
        assert all(line["kl"] == 0 for line in lines[: alone + 1])  # no weight of the policy has moved
        assert lines[alone + 1]["kl"] != 0
    if chosen.watched:
        assert all("watched_length" in line and line["reward"] == line["reward_rule"] for line in lines)


# So that rounding does not flip a sample. Some questions are held out.
SLOW = replace(BASE, **VARIANTS["adaptive"], lr=1e-4, epochs=1, eval_share=0.3, eval_every=1)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """The trajectory in whole micro-batches and one process."""
    out = tmp_path_factory.mktemp("whole")
    return SLOW(start, ROWS, out, seed=3), metrics(out)


def test_micro_batch_size_does_not_change_the_trajectory(start, whole, tmp_path):
    made, lines = whole
    one_by_one = replace(SLOW, tokens_per_microbatch=1)(start, ROWS, tmp_path, seed=3)
    for a, b in zip(lines, metrics(tmp_path), strict=True):
        assert {k: v for k, v in a.items() if k != "tokens"} == pytest.approx(
            {k: v for k, v in b.items() if k != "tokens"}, rel=1e-3, abs=1e-5
        )  # tokens: a prompt is read once for each part of its samples
    alike(made, one_by_one, rtol=1e-2, atol=1e-3)


def test_two_processes_give_the_trajectory_of_one(start, whole, tmp_path):
    made, lines = whole
    assert two_processes(lambda: SLOW(start, ROWS, tmp_path / "two", seed=3), tmp_path / "meeting") == [0, 0]
    for a, b in zip(lines, metrics(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
    alike(Checkpoint(path=tmp_path / "two" / "checkpoint"), made, rtol=1e-2, atol=1e-3)


def test_the_reward_rises_and_the_value_model_learns_what_to_expect(start, tmp_path):
    method = replace(BASE, epochs=8, batch_size=7, samples=3, iterations=1, kl=0.01, save_every=0, lr=1e-2)
    made = method(start, ROWS, tmp_path, seed=3)
    told = json.loads((made.path / "posttrain.json").read_text())
    assert told["rewards"]["reward_last"] > told["rewards"]["reward_first"] + 0.2
    lines = metrics(tmp_path)
    assert lines[0]["value"] == 0
    assert lines[-1]["value"] == pytest.approx(lines[-1]["reward"], abs=0.4)
    assert lines[-1]["value_loss"] < 0.7 * lines[0]["value_loss"]
    valued = AutoModelForTokenClassification.from_pretrained(made.path / "value", dtype=torch.float32)
    assert valued.config.id2label == {0: "value"}


@pytest.mark.slow
def test_a_stronger_kl_holds_the_policy_closer(start, tmp_path):
    lines = []
    for kl in (1e-9, 5.0):
        replace(BASE, epochs=8, kl=kl, batch_size=7, save_every=0, lr=2e-3)(start, ROWS, tmp_path / str(kl), seed=3)
        lines.append(metrics(tmp_path / str(kl)))
    assert lines[0][0]["kl"] == lines[1][0]["kl"] == 0
    assert lines[1][-1]["kl"] < 0.6 * lines[0][-1]["kl"]


def test_a_reward_model_rewards_and_begins_the_value_model(start, tmp_path):
    reward = RewardModel(lr=1e-2, dtype="float32", batch_size=4)(start, preferences(8), tmp_path / "reward", seed=1)
    spec = f"reward_model:model='{reward.path}',dtype=float32"
    method = replace(
        BASE, rewards=(spec,), value_start=str(reward.path), epochs=1, batch_size=7, watched=("rule", "length:max=4")
    )
    method(start, ROWS, tmp_path / "run", seed=3)
    (line,) = metrics(tmp_path / "run")
    assert line["value"] != 0
    assert line["reward"] == line["reward_reward_model"]
    assert {name for name in line if re.match("watched_", name)} == {"watched_rule", "watched_length"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "samples = 0 must be at least 1"),
        ({"lam": 1.5}, r"lam = 1.5 must be in \[0, 1\]"),
        ({"value_weight": 0.0}, "value_weight = 0.0 must be positive"),
        ({"cut_penalty": -1.0}, "cut_penalty = -1.0 must not be negative"),
        ({"kl": 0.0, "kl_target": 3.0}, "kl = 0 stays 0"),
        ({"value_warmup": 2, "weight_decay": 0.1}, "would shrink the policy's weights"),
        ({"watched": ("2*exact",)}, "what is watched does not count"),
        ({"watched": ("exakt",)}, "did you mean 'exact'"),
        ({"sharding": "full"}, "sharding=full does not go with a value model"),
    ],
)
def test_settings_out_of_range(changes, message, start, tmp_path):
    with pytest.raises(ConfigError, match=message):
        replace(BASE, **changes)(start, ROWS, tmp_path, seed=1)
