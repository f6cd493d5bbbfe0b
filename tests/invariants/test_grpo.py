"""GRPO on tiny models: the first step by hand, skipped samples, one trajectory however cut, resume, KL, settings."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from tiny_models import ending_folder, tokenizer
from training_runs import killed_after, metrics, same, two_processes, weights

from posttrain.core.errors import ConfigError, DataError, ModelError, TrainingError
from posttrain.core.types import Checkpoint, Example, Message, Prompt, Sampling, Score
from posttrain.engines.local.replies import drawn
from posttrain.engines.meter import Account
from posttrain.models.load import load
from posttrain.models.shape import shape_of
from posttrain.preference import _parts, grpo
from posttrain.preference._rewards import Rewards, overlong_punishment
from posttrain.preference.grpo import Grpo
from posttrain.training.rollouts import Policy

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

ROWS = [{"prompt": f"{i} plus {i * 3 % 7}?", "answer": str(i)} for i in range(7)]
PATTERN = "[a-m]"
BASE = Grpo(
    task="reasoning_gym/chain_sum", rewards=(f"rule:parses=false,steps=false,regex='{PATTERN}'",), rollout_tokens=6, group=4,
    lr=1e-2, epochs=2, batch_size=3, save_every=2, dtype="float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=ending_folder(tmp_path_factory.mktemp("start") / "model"))


def sampled(net, rows, *, seed=3, step=0, temperature=1.0, group=4):
    how = Sampling(temperature=temperature, max_tokens=6)
    policy = Policy(draw=drawn, model=net, tokenizer=tokenizer(), shape=shape_of(net), sampling=how, seed=seed)
    asked = [Prompt(messages=(Message(role="user", content=row["prompt"]),)) for row in rows]
    return policy.rollouts(asked, step=step, samples=group)[0]


def logps_of(net, rollout, temperature=1.0):
    at = [i - 1 for i, mask in enumerate(rollout.encoded.mask) if mask]
    ids = torch.tensor([rollout.encoded.ids])
    logits = net(ids).logits[0, at].double() / temperature
    return logits.log_softmax(-1).gather(1, ids[0, [i + 1 for i in at], None])[:, 0]


def rewards_of(rollouts):
    return torch.tensor([[float(bool(re.search(PATTERN, r.completion.text))) for r in each] for each in rollouts]).double()


REDUCTIONS = {
    "sequence": lambda logps, n, tokens: logps.mean() / n,
    "token": lambda logps, n, tokens: logps.sum() / tokens,
    "constant": lambda logps, n, tokens: logps.sum() / (6 * n),
    "sum": lambda logps, n, tokens: logps.sum() / n,
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_step_is_worked_out_by_transformers_alone(reduction, temperature, start, tmp_path):
    """Σ c A log π has the gradient of the loss where the ratio is 1; samples of equal groups count in c all the same."""
    method = replace(BASE, batch_size=7, epochs=1, reduction=reduction, rollout_temperature=temperature)
    method(start, ROWS, tmp_path, seed=3)
    net = load(start.path, dtype="float32").model
    rollouts = sampled(net, ROWS, temperature=temperature)
    rewards = rewards_of(rollouts)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
    tokens = sum(r.encoded.trained for each in rollouts for r in each)
    loss = torch.zeros((), dtype=torch.double)
    for p, each in enumerate(rollouts):
        for k, rollout in enumerate(each):
            loss = loss - advantages[p, k] * REDUCTIONS[reduction](logps_of(net, rollout, temperature), 28, tokens)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).norm()
    row = metrics(tmp_path)[0]
    assert 0 < rewards.mean() < 1
    assert row["reward"] == row["reward_rule"] == pytest.approx(float(rewards.mean()))
    assert row["reward_std"] == pytest.approx(float(rewards.std(1).mean()))
    assert row["zero_variance"] == float((advantages == 0).all(1).double().mean())
    assert row["trained"] == pytest.approx(float((advantages != 0).double().mean()))
    assert row["reply_tokens"] == tokens / 28
    assert row["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert abs(row["mismatch"]) < 1e-5
    assert row["ratio_change"] == row["clipped"] == 0


def shown(folder):
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]


def test_what_was_sampled_is_written_with_what_it_was_given(start, tmp_path):
    method = replace(BASE, batch_size=7, epochs=1, show_rollouts=7, watched=("rule:parses=false,steps=false,regex='x'",))
    made = method(start, ROWS, tmp_path / "all", seed=3)
    found = shown(tmp_path / "all")
    assert sorted(line["row"] for line in found) == list(range(7))
    for line in found:
        assert line["step"] == 1
        assert line["messages"] == [{"role": "user", "content": ROWS[line["row"]]["prompt"]}]
        assert line["answer"] == ROWS[line["row"]]["answer"]
        assert all(sample["tokens"] <= 6 and sample["tokens"] >= 6 * sample["cut"] for sample in line["samples"])
        worth = [float(bool(re.search(PATTERN, sample["text"]))) for sample in line["samples"]]
        assert [sample["reward"] for sample in line["samples"]] == worth
        assert [sample["watched_rule"] for sample in line["samples"]] == [float("x" in s["text"]) for s in line["samples"]]
        assert len(line["samples"]) == 4
    given = [sample for line in found for sample in line["samples"]]
    (row,) = metrics(tmp_path / "all")
    assert row["reward"] == pytest.approx(sum(sample["reward"] for sample in given) / 28)
    assert row["cut"] == sum(sample["cut"] for sample in given) / 28
    assert row["reply_tokens"] == sum(sample["tokens"] for sample in given) / 28
    one = replace(method, show_rollouts=1)(start, ROWS, tmp_path / "one", seed=3)
    assert shown(tmp_path / "one") == found[:1]
    silent = replace(method, show_rollouts=0)(start, ROWS, tmp_path / "none", seed=3)
    assert not (tmp_path / "none" / "rollouts.jsonl").exists()
    same(weights(silent), weights(made), rtol=0, atol=0)
    assert silent.key == one.key == made.key


def test_skipping_samples_without_an_advantage_changes_nothing(start, tmp_path, monkeypatch):
    skipped = BASE(start, ROWS, tmp_path / "skipped", seed=3)
    assert {0, 1} < {row["trained"] for row in metrics(tmp_path / "skipped")}  # whole steps too, in which Adam goes on
    every = _parts.parts_of
    monkeypatch.setattr(grpo, "parts_of", lambda *args, **how: every(*args, **{**how, "every": True}))
    full = BASE(start, ROWS, tmp_path / "full", seed=3)
    assert all(row["trained"] == 1 for row in metrics(tmp_path / "full"))
    same(weights(skipped), weights(full), rtol=1e-4, atol=1e-6)


def test_a_step_without_any_difference_changes_no_weight_and_is_told(start, tmp_path, capsys):
    none = replace(BASE, rewards=("rule:parses=false,steps=false,regex='^'",), epochs=1)
    made = none(start, ROWS, tmp_path, seed=3)
    assert all(row["loss"] == row["grad_norm"] == row["tokens"] == 0 for row in metrics(tmp_path))
    same(weights(made), weights(Checkpoint(path=start.path)), rtol=0, atol=0)
    assert "3 of 3 steps had no gradient" in capsys.readouterr().err
    assert json.loads((made.path / "posttrain.json").read_text())["rewards"]["steps_without_gradient"] == 3


def test_the_reward_rises(start, tmp_path):
    made = replace(BASE, epochs=10, batch_size=7, group=8)(start, ROWS, tmp_path, seed=3)
    told = json.loads((made.path / "posttrain.json").read_text())["rewards"]
    assert told["reward_last"] > told["reward_first"] + 0.2


VARIANTS = {
    "grpo": {},
    "updates_with_kl": {"minibatches": 2, "iterations": 2, "kl": 0.1, "batch_size": 4},
    "kl_in_reward": {"kl": 0.05, "kl_in": "reward", "kl_estimator": "k1", "baseline": "zero", "scale": "batch"},
    "gspo_resample": {"ratio": "sequence", "iterations": 2, "clip_low": 3e-4, "clip_high": 4e-4, "resample": 2},
    "cispo_cut": {"surrogate": "cispo", "drop_cut": True, "overlong": 3, "reduction": "token", "truncate": 2.0},
    "rloo_lora": {
        "surrogate": "reinforce", "baseline": "leave_one_out", "scale": "one", "reduction": "sum", "adapter": "lora",
        "rank": 4, "kl": 0.1, "kl_estimator": "k2",
    },
}  # fmt: skip
QUICK = ("updates_with_kl", "rloo_lora")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in VARIANTS])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(name, start, tmp_path):
    chosen = replace(BASE, **VARIANTS[name])
    expected = chosen(start, ROWS, tmp_path / "whole", seed=3)
    killed_after(lambda: chosen(start, ROWS, tmp_path / "cut", seed=3), 3)  # behind the last saved state
    resumed = chosen(start, ROWS, tmp_path / "cut", seed=3)
    same(weights(resumed), weights(expected), rtol=0, atol=0)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert shown(tmp_path / "cut") == shown(tmp_path / "whole")  # what was written behind the saved state is there once
    assert [line["step"] for line in shown(tmp_path / "cut")] == [row["step"] for row in metrics(tmp_path / "cut")]
    assert (resumed.cost.usage, resumed.cost.flops) == (expected.cost.usage, expected.cost.flops)


@pytest.mark.parametrize("name", ["updates_with_kl", pytest.param("gspo_resample", marks=pytest.mark.slow)])
def test_micro_batch_size_does_not_change_the_trajectory(name, start, tmp_path):
    slow = replace(BASE, **VARIANTS[name], lr=1e-4)  # so that rounding does not flip a sample
    whole = replace(slow, tokens_per_microbatch=100_000)(start, ROWS, tmp_path / "whole", seed=3)
    one_by_one = replace(slow, tokens_per_microbatch=1)(start, ROWS, tmp_path / "one", seed=3)
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "one"), strict=True):
        assert a["reward"] == b["reward"]
        assert {k: v for k, v in a.items() if k != "tokens"} == pytest.approx(
            {k: v for k, v in b.items() if k != "tokens"}, rel=1e-3, abs=1e-5
        )  # tokens: a prompt is read once for each part of its samples
    same(weights(whole), weights(one_by_one), rtol=1e-2, atol=1e-4)


def test_two_processes_give_the_trajectory_of_one(start, tmp_path):
    chosen = replace(BASE, **VARIANTS["updates_with_kl"], lr=1e-4, eval_share=0.3, eval_every=2)
    chosen(start, ROWS, tmp_path / "one", seed=3)
    assert two_processes(lambda: chosen(start, ROWS, tmp_path / "two", seed=3), tmp_path / "meeting") == [0, 0]
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-6)
    for a, b in zip(shown(tmp_path / "one"), shown(tmp_path / "two"), strict=True):  # written once, by one process
        assert (a["step"], a["row"]) == (b["step"], b["row"])
        assert [sample["text"] for sample in a["samples"]] == [sample["text"] for sample in b["samples"]]


def test_kl_holds_the_policy_to_its_start(start, tmp_path):
    free, held = replace(BASE, epochs=4, kl=1e-9), replace(BASE, epochs=4, kl=1.0)
    free(start, ROWS, tmp_path / "free", seed=3)
    held(start, ROWS, tmp_path / "held", seed=3)
    lines = metrics(tmp_path / "free"), metrics(tmp_path / "held")
    assert lines[0][0]["kl"] == lines[1][0]["kl"] == pytest.approx(0, abs=1e-9)
    assert lines[1][-1]["kl"] < 0.7 * lines[0][-1]["kl"]
    for line in lines[0]:  # of tokens and of samples: the same sum
        assert line["kl_sample"] == pytest.approx(line["kl"] * line["reply_tokens"])


def test_an_adapter_is_held_to_the_start_and_a_second_one_too(start, tmp_path):
    """A merged first adapter is part of the second one's start: both begin with no KL."""
    method = replace(BASE, adapter="lora", rank=4, kl=0.1, epochs=2, lr=5e-2)
    first = method(start, ROWS, tmp_path / "first", seed=3)
    method(first, ROWS, tmp_path / "second", seed=3)
    for name in ("first", "second"):
        lines = metrics(tmp_path / name)
        assert lines[0]["kl"] == pytest.approx(0, abs=1e-9)
        assert lines[-1]["kl"] > 1e-6


def test_resampling_asks_more_prompts_and_trains_on_such_as_differ(start, tmp_path):
    replace(BASE, resample=3, epochs=1, batch_size=4)(start, ROWS, tmp_path / "more", seed=3)
    replace(BASE, epochs=1, batch_size=4)(start, ROWS, tmp_path / "plain", seed=3)
    more, plain = metrics(tmp_path / "more")[0], metrics(tmp_path / "plain")[0]
    assert plain["zero_variance"] > 0
    assert more["zero_variance"] == 0
    assert more["asked"] > 4
    assert more["generated"] > plain["generated"]


def test_the_overlong_punishment_by_hand():
    tokens = torch.tensor([1, 6, 7, 8, 10])
    assert overlong_punishment(tokens, limit=10, zone=4).tolist() == [0, 0, -0.25, -0.5, -1]


def test_several_rewards_are_added_with_their_weights_and_told_apart(start, tmp_path):
    rule = "rule:parses=false,steps=false,regex"
    replace(BASE, rewards=(f"2*{rule}='[a-m]'", f"-0.5*{rule}='[n-z]'", "0.1*rule"), epochs=1)(start, ROWS, tmp_path, seed=3)
    for row in metrics(tmp_path):
        parts = (2, "rule"), (-0.5, "rule#2"), (0.1, "rule#3")
        assert row["reward"] == pytest.approx(sum(weight * row[f"reward_{name}"] for weight, name in parts))


def test_a_judge_behind_a_service_is_a_reward(start, tmp_path):
    """Every step has an event loop of its own, and the engine is opened once."""
    rules = replace(BASE, epochs=1, watched=("judge:model=scripted",))
    with pytest.raises(TrainingError, match="'watched_judge' has no readable verdict on 12 of the 12 replies of this step"):
        rules(start, ROWS, tmp_path, seed=3)  # made-up answers hold no grade: it was asked, and that is told


def test_a_reply_without_a_verdict_counts_as_the_mean_of_the_others():
    async def judge(example, texts):
        return [Score(value=float(text) if text else math.nan) for text in texts]

    rewards = Rewards(verifiers=[("reward_judge", 2.0, judge)], account=Account())
    asked = [Example(id="0"), Example(id="1")]
    found = rewards(asked, [["1", "", "5"], ["2", "2", "4"]], [0, 1], [(), ()])
    assert found.total_PK.tolist() == [[2, 6, 10], [4, 4, 8]]
    found = rewards(asked, [["1", "3"], ["", ""]], [5, 7], [(), ()])  # half have one: the step's mean, and no advantage
    assert found.total_PK.tolist() == [[2, 6], [4, 4]]
    with pytest.raises(
        TrainingError, match="'reward_judge' has no readable verdict on 3 of the 4 replies of this step, the"
    ):
        rewards(asked, [["1", ""], ["", ""]], [5, 7], [(), ()])
    with pytest.raises(TrainingError, match="reply to row 5"):
        rewards(asked, [["1", "inf"], ["1", "2"]], [5, 7], [(), ()])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": 1}, "samples of a prompt are compared with each other"),
        ({"task": ""}, "no task: set task="),
        ({"rewards": ("exakt",)}, "unknown verifier or judge 'exakt'; did you mean 'exact'"),
        ({"rewards": ("0*exact",)}, "a weight must be a number other than 0"),
        ({"rewards": ("pairwise",)}, "compares two texts and scores none by itself"),
        ({"rewards": ()}, "name at least one verifier"),
        ({"overlong": 6}, "leaves no length that is not punished"),
        ({"minibatches": 4}, "more than batch_size = 3 prompts"),
        ({"surrogate": "reinforce", "iterations": 2}, "after the first update they are of an older one"),
        ({"surrogate": "cispo", "dual_clip": 3.0}, "dual_clip belongs to surrogate=clip"),
        ({"surrogate": "cispo", "ratio": "sequence"}, "ratio=sequence belongs to surrogate=clip"),
        ({"kl_in": "reward"}, "kl_in=reward needs kl"),
        ({"group": 1, "baseline": "zero", "scale": "one", "resample": 1}, "resample looks for samples that differ"),
        ({"clip_low": 0.0}, r"clip_low = 0.0 must be in \(0, 1\]"),
        ({"rollout_temperature": 0.0}, "greedy replies to one prompt are all the same"),
        ({"sharding": "full"}, "sharding=full does not go with samples of the model in training"),
    ],
)
def test_settings_out_of_range(changes, message, start, tmp_path):
    with pytest.raises((ConfigError, ModelError), match=message):
        replace(BASE, **changes)(start, ROWS, tmp_path, seed=1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "1?"}], "row 0: no 'prompt'; the maker `questions` makes such rows"),
        ([{"prompt": "1?", "example": {"answer": "2"}}], "row 0, 'example': no 'id'"),
        ([{"prompt": "1?" * 200, "answer": "2"}], "row 0 with its rollout_tokens has"),
    ],
)
def test_rows_that_ask_nothing(rows, message, start, tmp_path):
    with pytest.raises(DataError, match=message):
        BASE(start, rows, tmp_path, seed=1)
