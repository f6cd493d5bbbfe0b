"""Rollouts from a server: whose weights they are of, what is trained of them, resume, overlap, several processes, errors."""

import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from policy_server import PolicyServer, policy_server
from tiny_models import ending_folder, plain_folder, tokenizer
from training_runs import killed_after, metrics, same, two_processes, weights

from posttrain.core.errors import ConfigError, PosttrainError, ServerError, TrainingError
from posttrain.core.types import Checkpoint, Message
from posttrain.data.chat import render_prompt
from posttrain.engines.openai import open_server, read_server
from posttrain.models.load import load
from posttrain.preference.grpo import Grpo
from posttrain.preference.ppo import Ppo
from posttrain.training.batching import step_rows
from posttrain.training.settings import key_config
from posttrain.training.step import Learner

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

ROWS = [{"prompt": f"{i} plus {i * 3 % 7}?", "answer": str(i)} for i in range(7)]
BASE = Grpo(
    task="reasoning_gym/chain_sum", rewards=("rule:parses=false,steps=false,regex='[a-m]'",), rollout_tokens=6, group=4,
    lr=1e-2, epochs=2, batch_size=3, save_every=2, dtype="float32",
)  # fmt: skip
AHEAD = replace(BASE, overlap=1, truncate=2.0)
PPO = Ppo(
    task=BASE.task, rewards=BASE.rewards, rollout_tokens=6, samples=2, lr=1e-2, value_lr=1e-2, epochs=2, batch_size=3,
    save_every=2, iterations=2, dtype="float32",
)  # fmt: skip
PPO_AHEAD = replace(PPO, overlap=1, truncate=2.0, kl_target=0.05, kl_horizon=20)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=plain_folder(tmp_path_factory.mktemp("start") / "model"))


def of(method, server: PolicyServer, **more):
    return replace(method, rollout_server=server.ref(**more))


def apart(out: Path) -> list[float]:
    """Of each step that trains anything, how far the server's log-probabilities are from the trainer's."""
    return [abs(row["mismatch"]) for row in metrics(out) if row["tokens"]]


def steps_asked(server: PolicyServer) -> list[int]:
    """The step whose weights answered, for each request in turn, without repetitions."""
    steps = [int(name.split("-")[1]) for name, *_ in server.asked]
    return [step for i, step in enumerate(steps) if i == 0 or steps[i - 1] != step]


@pytest.mark.parametrize("update", ["vllm", pytest.param("sglang", marks=pytest.mark.slow), "model_name"])
def test_every_step_is_drawn_with_the_weights_that_it_has(update, start, tmp_path):
    with policy_server(update=update, start=start.path) as server:
        made = of(BASE, server)(start, ROWS, tmp_path, seed=3)
    rows = metrics(tmp_path)
    assert len(rows) == 6
    assert len(apart(tmp_path)) >= 3
    assert max(apart(tmp_path)) < 1e-5
    assert steps_asked(server) == list(range(6))
    assert len(set(server.took)) == 6
    assert not (tmp_path / "rollout-weights").exists()
    assert made.cost.usage.generated > 0
    if update == "vllm":  # ids are told
        assert all("guessed" not in row for row in rows)


def test_a_server_that_keeps_its_weights_shows_in_the_mismatch(start, tmp_path):
    with policy_server(start=start.path, deaf=True) as server:
        of(BASE, server)(start, ROWS, tmp_path, seed=3)
    assert apart(tmp_path)[0] < 1e-5
    assert max(apart(tmp_path)[1:]) > 1e-3


def test_an_adapter_is_merged_into_what_is_sent(start, tmp_path):
    with policy_server(start=start.path) as server:
        of(replace(BASE, adapter="lora", rank=4), server)(start, ROWS, tmp_path, seed=3)
    assert len(apart(tmp_path)) >= 2
    assert max(apart(tmp_path)) < 1e-5


@pytest.mark.parametrize(
    ("method", "lines"),
    [
        pytest.param(BASE, 3, id="in_step"),
        pytest.param(AHEAD, 3, id="ahead"),
        pytest.param(PPO_AHEAD, 3, id="ppo_ahead"),
        pytest.param(AHEAD, 1, id="ahead_from_nothing", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(method, lines, start, tmp_path):
    with policy_server(start=start.path) as server:
        expected = of(method, server)(start, ROWS, tmp_path / "whole", seed=3)
    with policy_server(start=start.path) as server:
        killed_after(lambda: of(method, server)(start, ROWS, tmp_path / "cut", seed=3), lines)
    with policy_server(start=plain_folder(tmp_path / "other", seed=9)) as server:  # another one, with other weights
        resumed = of(method, server)(start, ROWS, tmp_path / "cut", seed=3)
        assert steps_asked(server)[0] == (lines // 2) * 2  # only what came after the saved state
    same(weights(resumed), weights(expected), rtol=0, atol=0)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    if isinstance(method, Ppo):  # the weight of the KL has moved in every step, and went on from where it was
        assert len({row["kl_weight"] for row in metrics(tmp_path / "cut")}) == 6
    tokens = [replace(made.cost.usage, calls=0) for made in (resumed, expected)]
    assert tokens[0] == tokens[1]


def test_ahead_is_one_step_behind_in_its_weights_and_weighs_for_it(start, tmp_path):
    with policy_server(start=start.path) as server:
        of(AHEAD, server)(start, ROWS, tmp_path / "ahead", seed=3)
        per_step = {row: sum(int(name.split("-")[1]) == row for name, *_ in server.asked) for row in range(6)}
    full, rest = 3 * 4, 1 * 4  # samples of a step; the third of each epoch has one row
    assert per_step == {0: full + full, 1: rest, 2: full, 3: full, 4: rest, 5: 0}
    assert apart(tmp_path / "ahead")[0] < 1e-5
    assert max(apart(tmp_path / "ahead")[1:]) > 1e-3


def test_rollouts_are_drawn_while_the_step_trains(start, tmp_path, monkeypatch):
    """Here a step's update waits until the server has answered for the next step: drawn afterwards, it never would."""
    update = Learner.update
    samples = [12, 12, 4]  # of each step: three, three and one row

    def patient(self, items, *, step, lr):
        until = time.monotonic() + 60
        while len(server.asked) < sum(samples[: step + 2]) and time.monotonic() < until:
            time.sleep(0.01)
        assert len(server.asked) == sum(samples[: step + 2])
        return update(self, items, step=step, lr=lr)

    monkeypatch.setattr(Learner, "update", patient)
    with policy_server(start=start.path) as server:
        of(replace(AHEAD, epochs=1), server)(start, ROWS, tmp_path, seed=3)


def second_step(method, start, tmp_path):
    """Train two steps of all rows, the second drawn ahead. Returns the model after the first step, and of each sample of the
    second its reward, log π₁ as transformers has it from that model, and log μ₀ as the server told it.
    """
    with policy_server(start=start.path) as server:
        whole = of(replace(method, batch_size=7, save_every=1), server)
        killed_after(lambda: whole(start, ROWS, tmp_path / "cut", seed=3), 2)
        first = replace(whole, epochs=1)(start, ROWS, tmp_path / "first", seed=3)
    facts = json.loads((tmp_path / "cut" / "state" / "step-00000001" / "facts.json").read_text())["fresh"]
    known, net, found = tokenizer(), load(first.path, dtype="float32").model, []
    for row, each in zip(step_rows(1, rows=7, batch_size=7, seed=3), facts.get("sampler", facts)["drawn"], strict=True):
        asked = render_prompt(known, [Message(role="user", content=ROWS[row]["prompt"])])
        for said in each:
            ends = [] if said["end_token"] is None else [said["end_token"]]
            new = [*said["tokens"], *ends]
            sampler = torch.tensor([*said["logprobs"], *([said["end_logprob"]] if ends else [])]).double()
            logits = net(torch.tensor([[*asked, *new]])).logits[0, len(asked) - 1 : -1].double()
            logps = logits.log_softmax(-1).gather(1, torch.tensor(new)[:, None])[:, 0]
            found.append((float(bool(re.search("[a-m]", said["text"]))), logps, sampler))
    return net, found


def gradient_norm(net) -> float:
    return float(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).norm())


def test_a_step_ahead_is_worked_out_by_transformers_alone(start, tmp_path):
    """The second step: samples of W₀, trained from W₁ with the gradient Σ c A min(π₁ / μ₀, 2) ∇log π₁."""
    net, drawn = second_step(AHEAD, start, tmp_path)
    rewards = torch.tensor([reward for reward, *_ in drawn]).double().view(7, 4)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
    loss, weighed = torch.zeros((), dtype=torch.double), []
    for advantage, (_, logps, sampler) in zip(advantages.flatten(), drawn, strict=True):
        weight = (logps.detach() - sampler).exp().clamp(max=2.0)
        weighed += weight.tolist()
        loss = loss - advantage * (weight * logps).mean() / 28
    loss.backward()
    assert max(weighed) == 2.0 > min(weighed)
    assert metrics(tmp_path / "cut")[1]["grad_norm"] == pytest.approx(gradient_norm(net), rel=1e-4)


def test_a_step_of_ppo_ahead_is_worked_out_by_transformers_alone(start, tmp_path):
    """Without KL, whitening and a value model that learns A is the reward: −mean of R min(π₁ / μ₀, 2) ∇log π₁."""
    plain = replace(PPO_AHEAD, kl=0.0, kl_target=0.0, whiten=False, lam=1.0, value_lr=1e-30, iterations=1, samples=4)
    net, drawn = second_step(plain, start, tmp_path)
    weights_N = torch.cat([(logps.detach() - sampler).exp().clamp(max=2.0) for _, logps, sampler in drawn])
    rewards_N = torch.cat([torch.full_like(sampler, reward) for reward, _, sampler in drawn])
    (-(rewards_N * weights_N * torch.cat([logps for _, logps, _ in drawn])).mean()).backward()
    assert float(weights_N.max()) == 2.0 > float(weights_N.min())
    row = metrics(tmp_path / "cut")[1]
    assert row["value"] == pytest.approx(0.0, abs=1e-20)
    assert row["grad_norm_policy"] == pytest.approx(gradient_norm(net), rel=1e-4)
    assert row["policy_loss"] == pytest.approx(-float((rewards_N * weights_N).mean()), rel=1e-4)


def test_the_fingerprint_names_the_weights(start):
    with policy_server(start=start.path) as server:
        engine = open_server(read_server(server.ref()))
        assert "update" in engine.can
        before = engine.fingerprint
        engine.update_from(start.path)
        assert engine.fingerprint == f"{before}:{start.path.name}"
        fixed = open_server(read_server(f"openai:url={server.url}"))
        assert "update" not in fixed.can
        with pytest.raises(ConfigError, match="how does the server take new weights"):
            fixed.update_from(start.path)
    with pytest.raises(ServerError, match="no server answers"):
        engine.update_from(start.path)


def test_what_cannot_be_told_is_left_out_and_counted(start, tmp_path):
    """Without ids the text is read: half characters, of which random models write many, cannot be."""
    every = replace(BASE, epochs=1, batch_size=7, group=8, rollout_temperature=1.3)
    with policy_server(ids=False, logprobs=False, start=start.path) as server:
        of(every, server)(start, ROWS, tmp_path / "text", seed=3)
    with policy_server(start=start.path) as server:
        of(every, server)(start, ROWS, tmp_path / "ids", seed=3)
    read, told = metrics(tmp_path / "text")[0], metrics(tmp_path / "ids")[0]
    assert 0 < read["guessed"] < 0.5
    assert read["reward"] == told["reward"]  # the same texts
    assert read["tokens"] < told["tokens"]
    with policy_server(ids=False, start=start.path) as server:
        babbling = Checkpoint(path=ending_folder(tmp_path / "babbling"))
        with pytest.raises(TrainingError, match="it cannot be told which tokens the server drew"):
            of(every, server)(babbling, ROWS, tmp_path / "none", seed=3)


def test_more_is_asked_of_the_same_weights_within_a_step(start, tmp_path):
    more = replace(BASE, resample=2, group=2, epochs=1)
    with policy_server(start=start.path) as server:
        of(more, server)(start, ROWS, tmp_path, seed=3)
        assert steps_asked(server) == [0, 1, 2]
        assert len(server.asked) == 2 * sum(row["asked"] for row in metrics(tmp_path)) > 2 * 7
    assert max(apart(tmp_path)) < 1e-5


@pytest.mark.slow
def test_two_processes_follow_the_trajectory_of_one(start, tmp_path):
    with policy_server(start=start.path) as server:
        for method, name in ((BASE, "plain"), (AHEAD, "ahead")):
            expected = of(method, server)(start, ROWS, tmp_path / name, seed=3)
            out = tmp_path / f"{name}-two"
            codes = two_processes(lambda m=method, o=out: of(m, server)(start, ROWS, o, seed=3), tmp_path / f"meet-{name}")
            assert codes == [0, 0]
            found = Checkpoint(path=out / "checkpoint")
            same(weights(found), weights(expected), rtol=1e-4, atol=1e-5)
            for a, b in zip(metrics(out), metrics(tmp_path / name), strict=True):
                assert a["reward"] == pytest.approx(b["reward"])


def test_ppo_takes_a_server_too(start, tmp_path):
    with policy_server(start=start.path) as server:
        of(replace(PPO, epochs=1, kl=0.0), server)(start, ROWS, tmp_path, seed=3)
        assert steps_asked(server) == [0, 1, 2]
    assert all("policy_loss" in row for row in metrics(tmp_path))


def test_settings_at_their_defaults_leave_the_keys_of_finished_runs_alone():
    """`truncate` was grpo's from the beginning, and ppo's is new."""
    assert not {"overlap", "truncate"} & key_config(PPO).keys()
    assert {"overlap", "truncate"} <= key_config(PPO_AHEAD).keys()
    assert {"overlap", "truncate"} & key_config(BASE).keys() == {"truncate"}


def test_held_out_questions_are_answered_here(start, tmp_path):
    with policy_server(start=start.path) as server:
        of(replace(BASE, eval_share=0.3, eval_every=1, epochs=1), server)(start, ROWS, tmp_path, seed=3)
        assert len(server.asked) == 4 * 5  # the samples of five training questions
    assert all("eval_reward" in row for row in metrics(tmp_path))


def test_where_the_server_is_does_not_decide_the_run(start, tmp_path):
    with policy_server(start=start.path) as server:
        of(BASE, server)(start, ROWS, tmp_path, seed=3)
    done = replace(BASE, rollout_server="openai:url=http://elsewhere:1/v1,update=sglang")(start, ROWS, tmp_path, seed=3)
    assert done.path == tmp_path / "checkpoint"
    with pytest.raises(ConfigError, match="another configuration"):
        BASE(start, ROWS, tmp_path, seed=3)


UNABLE = {
    "is no server": {"rollout_server": "scripted"},
    "does not say how it takes new weights": {"rollout_server": "openai:toy,url=http://h/v1"},
    "together tells no sample's own tokens": {"rollout_server": "openai:toy,url=http://h/v1,update=vllm,together=true"},
    "overlap = 2 must be 0 or 1": {"overlap": 2},
    "overlap needs rollout_server": {"overlap": 1},
    "truncate = -1 must be at least 0": {"truncate": -1},
    "set truncate": {"overlap": 1, "rollout_server": "openai:url=http://h/v1,update=vllm"},
    "leave one out": {
        "overlap": 1, "truncate": 2.0, "resample": 1, "rollout_server": "openai:url=http://h/v1,update=vllm",
    },
    "known at rollout_temperature=1 alone": {
        "truncate": 2.0, "rollout_temperature": 0.7, "rollout_server": "openai:url=http://h/v1,update=vllm",
    },
    "environment continues": {"environment": "calculator", "rollout_server": "openai:url=http://h/v1,update=vllm"},
    "adapter=prefix is no change": {"adapter": "prefix", "rollout_server": "openai:url=http://h/v1,update=vllm"},
}  # fmt: skip


@pytest.mark.parametrize("sentence", UNABLE)
def test_what_cannot_be_is_said_before_anything_is_asked(sentence, start, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        replace(BASE, **UNABLE[sentence])(start, ROWS, tmp_path, seed=3)


REFUSALS = {
    "VLLM_SERVER_DEV_MODE=1": ({"update": "vllm"}, {"/collective_rpc": (404, {"detail": "Not Found"})}),
    "its prefix cache is in use": ({"update": "vllm"}, {"/reset_prefix_cache": (200, {"success": False})}),
    "different shape.*update=sglang is for an SGLang server": (
        {"update": "sglang"}, {"/update_weights_from_disk": (200, {"success": False, "message": "different shape"})},
    ),
    "no such folder": ({"update": "sglang"}, {"/update_weights_from_disk": (400, {"message": "no such folder"})}),
    "whatever model is asked for": ({"update": "model_name", "deaf": True}, {}),
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSALS)
def test_a_server_that_does_not_take_weights_is_one_sentence(sentence, start, tmp_path):
    changes, refuses = REFUSALS[sentence]
    with (
        policy_server(start=start.path, refuses=refuses, **changes) as server,
        pytest.raises(ServerError, match=sentence) as raised,
    ):
        of(BASE, server)(start, ROWS, tmp_path, seed=3)
    assert "did not take the weights in" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "rollout-weights").exists()


def test_weighing_needs_log_probabilities(start, tmp_path):
    with (
        policy_server(start=start.path, logprobs=False) as server,
        pytest.raises(PosttrainError, match="truncate weighs tokens by the log-probabilities"),
    ):
        of(AHEAD, server)(start, ROWS, tmp_path, seed=3)


def test_a_prompt_that_is_read_differently_stops_the_run(start, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(start.path, other)
    template = Path(other / "chat_template.jinja")
    template.write_text(template.read_text().replace("<|im_start|>assistant\n", "<|im_start|>assistant:\n"))
    with (
        policy_server(start=other, deaf=True) as server,
        pytest.raises(ServerError, match="with the tokenizer and chat template of the model that is trained"),
    ):
        of(BASE, server)(start, ROWS, tmp_path / "run", seed=3)


def test_a_state_holds_what_was_drawn_ahead(start, tmp_path):
    with policy_server(start=start.path) as server:
        killed_after(lambda: of(AHEAD, server)(start, ROWS, tmp_path, seed=3), 3)
    facts = json.loads((tmp_path / "state" / "step-00000002" / "facts.json").read_text())
    assert facts["fresh"]["step"] == 2
    assert [len(each) for each in facts["fresh"]["drawn"]] == [4]
