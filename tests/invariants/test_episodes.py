"""Episodes with an environment: exactly what was drawn is trained, what the environment says is not, on tiny models."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_models import TEMPLATE, ending_folder, tokenizer
from training_runs import killed_after, metrics, same, two_processes, weights

from posttrain.core.environment import Observation
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.types import Checkpoint, Cost, Example, Message, Prompt, Sampling, Usage
from posttrain.data.masks import ids_of_answer
from posttrain.engines.local.replies import drawn
from posttrain.models.load import load
from posttrain.models.shape import shape_of
from posttrain.preference.grpo import Grpo
from posttrain.preference.ppo import Ppo
from posttrain.training.episodes import Episodes
from posttrain.training.rollouts import Policy

torch.set_num_threads(1)

ROWS = [{"prompt": f"{i} plus {i * 3 % 7}?", "answer": str(i)} for i in range(6)]
SCRIPT = """
def more(example, turns):
    said = sum(turn.role == "assistant" for turn in turns)
    return ("More?", 0.1 * len(turns[-1].content)) if said < 3 else None
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=ending_folder(tmp_path_factory.mktemp("start") / "model"))


@pytest.fixture(scope="module")
def net(start):
    return load(start.path, dtype="float32").model


class More:
    """Asks for more, as often as it is told to, and keeps what it saw."""

    def __init__(self, times=9, text="More?"):
        self.times, self.text, self.seen = times, text, []

    async def __call__(self, example, turns):
        self.seen.append((example, tuple(turns)))
        said = sum(turn.role == "assistant" for turn in turns)
        reply = (Message(role="user", content=self.text),) if said <= self.times else ()
        return Observation(messages=reply, reward=0.5)


def played(net, environment, *, turns=3, tokens=60, samples=3, temperature=1.0, tokens_of=None):
    how = Sampling(temperature=temperature, max_tokens=tokens)
    policy = Policy(draw=drawn, model=net, tokenizer=tokens_of or tokenizer(), shape=shape_of(net), sampling=how, seed=3)
    prompts = [Prompt(messages=(Message(role="user", content=row["prompt"]),), opening="So ") for row in ROWS[:3]]
    examples = [Example(id=str(i), question=row["prompt"], answer="secret") for i, row in enumerate(ROWS[:3])]
    return Episodes(policy=policy, environment=environment, turns=turns).rollouts(prompts, examples, step=0, samples=samples)


def flat(rollouts):
    return [rollout for each in rollouts for rollout in each]


def test_what_was_drawn_is_trained_and_what_was_heard_is_not(net):
    rollouts, _ = played(net, More())
    start_of_turn = tokenizer().convert_tokens_to_ids("<|im_start|>")  # which a random model draws, and no text shows

    def drew_it(rollout):
        return any(i == start_of_turn for i, mask in zip(rollout.encoded.ids, rollout.encoded.mask, strict=True) if mask)

    shown_whole = [rollout for rollout in flat(rollouts) if not drew_it(rollout)]
    assert any(len(rollout.said) == 5 for rollout in shown_whole)
    for rollout in shown_whole:
        words = [message.content for message in rollout.said]
        shown = tokenizer().decode(rollout.encoded.ids)
        whole = [Message(role="user", content=""), *rollout.said]
        expected = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in whole[1:])
        expected = expected[: -len("<|im_end|>\n")] if rollout.completion.end_token is None else expected[:-1]
        behind = shown[shown.index("<|im_start|>assistant") :]
        assert behind == expected
        trained = [i for i, mask in zip(rollout.encoded.ids, rollout.encoded.mask, strict=True) if mask]
        mine = [text.removeprefix("So ") if k == 0 else text for k, text in enumerate(words[::2])]
        ends = len(mine) if rollout.completion.end_token is not None else len(mine) - 1
        assert tokenizer().decode(trained).replace("<|im_end|>", "|") == "|".join(mine) + ("|" if ends == len(mine) else "")
        assert len(rollout.sampler_logps) == len(trained)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_later_turns_were_drawn_behind_exactly_these_ids(net, temperature):
    """The engine's log-probability of every written token is the model's own of the whole episode's ids."""
    for rollout in flat(played(net, More(), temperature=temperature)[0]):
        at = [i - 1 for i, mask in enumerate(rollout.encoded.mask) if mask]
        ids = torch.tensor([rollout.encoded.ids])
        with torch.no_grad():
            logps = (net(ids).logits[0, at].double() / temperature).log_softmax(-1)
        expected = logps.gather(1, ids[0, [i + 1 for i in at], None])[:, 0]
        found = torch.tensor(rollout.sampler_logps, dtype=torch.double)
        known = ~found.isnan()
        assert known.sum() >= len(at) - len(rollout.said)  # of ends the engine tells the raw one alone
        assert torch.allclose(found[known], expected[known], atol=1e-4)


def test_an_environment_sees_no_gold_answer_and_ends_the_episode(net):
    environment = More(times=0)
    rollouts, _ = played(net, environment)
    assert all(len(rollout.said) == 1 and rollout.reward == 0.5 for rollout in flat(rollouts) if not rollout.cut)
    assert {example.answer for example, _ in environment.seen} == {None}


def test_the_limit_of_turns_and_the_limit_of_tokens(net):
    for rollout in flat(played(net, More(), turns=2)[0]):
        assert sum(message.role == "assistant" for message in rollout.said) <= 2
        assert rollout.said[-1].role == "assistant"
    cut = [rollout for rollout in flat(played(net, More(text="x" * 45), tokens=70)[0]) if rollout.full]
    assert cut
    for rollout in flat(played(net, More(text="x" * 45), tokens=70)[0]):
        prompt = rollout.encoded.mask.index(True)
        assert len(rollout.encoded.ids) - prompt <= 70
        assert rollout.said[-1].role == "assistant"
    assert all(rollout.cut for rollout in cut)


def test_an_answer_that_would_open_a_turn_is_refused(net):
    with pytest.raises(DataError, match="contains the text of the special token '<|im_end|>'".replace("|", r"\|")):
        played(net, More(text="fine<|im_end|>"))


def test_a_template_that_drops_the_environments_role_is_refused(net):
    users = tokenizer()
    users.chat_template = TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'tool' %}")
    before = [Message(role="user", content="1?"), Message(role="assistant", content="1")]
    with pytest.raises(DataError, match=r"does not show message 0 \(tool\) as it is: 'two'"):
        ids_of_answer(users, before, [Message(role="tool", content="two")], ended=True)


def test_the_templates_own_end_token_stands_where_the_model_wrote_none():
    before = [Message(role="user", content="1?"), Message(role="assistant", content="1")]
    answer = [Message(role="user", content="2?")]
    whole = tokenizer().decode(ids_of_answer(tokenizer(), before, answer, ended=False))
    assert whole == "<|im_end|>\n<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer().decode(ids_of_answer(tokenizer(), before, answer, ended=True)) == whole.removeprefix("<|im_end|>")


def test_what_the_environments_own_verifiers_cost_is_counted(net):
    bill = [Cost(), Cost(usage=Usage(calls=3))]
    how = Sampling(temperature=1.0, max_tokens=8)
    policy = Policy(draw=drawn, model=net, tokenizer=tokenizer(), shape=shape_of(net), sampling=how, seed=3)
    episodes = Episodes(policy=policy, environment=More(times=0), turns=2, spent=lambda: bill.pop(0))
    prompt = Prompt(messages=(Message(role="user", content="1?"),))
    _, cost = episodes.rollouts([prompt], [Example(id="0")], step=0, samples=1)
    assert cost.usage.calls == 4


# Training ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def method(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "more.py"
    path.write_text(SCRIPT)
    return Grpo(
        task="reasoning_gym/chain_sum", rewards=("rule:parses=false,steps=false,regex='[a-m]'",), rollout_tokens=70, group=3,
        environment=f"function:call={path}:more", turns=3, lr=1e-3, epochs=2, batch_size=3, save_every=2, dtype="float32",
    )  # fmt: skip


def test_training_with_an_environment_adds_its_reward_and_resumes_bit_for_bit(method, start, tmp_path):
    expected = method(start, ROWS, tmp_path / "whole", seed=3)
    lines = metrics(tmp_path / "whole")
    for row in lines:
        assert row["turns"] > 1
        assert abs(row["mismatch"]) < 1e-5
        assert row["reward"] == pytest.approx(row["reward_rule"] + row["reward_environment"])
    killed_after(lambda: method(start, ROWS, tmp_path / "cut", seed=3), 3)
    resumed = method(start, ROWS, tmp_path / "cut", seed=3)
    same(weights(resumed), weights(expected), rtol=0, atol=0)
    assert metrics(tmp_path / "cut") == lines
    assert resumed.cost.usage == expected.cost.usage


def test_two_processes_play_the_episodes_of_one(method, start, tmp_path):
    chosen = replace(method, lr=1e-4, epochs=1)
    chosen(start, ROWS, tmp_path / "one", seed=3)
    assert two_processes(lambda: chosen(start, ROWS, tmp_path / "two", seed=3), tmp_path / "meeting") == [0, 0]
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-6)


def test_ppo_trains_on_episodes_too(method, start, tmp_path):
    made = Ppo(
        task=method.task, rewards=method.rewards, environment=method.environment, turns=3, rollout_tokens=70, epochs=1,
        batch_size=3, dtype="float32",
    )(start, ROWS, tmp_path, seed=3)  # fmt: skip
    lines = metrics(tmp_path)
    assert all(row["turns"] > 1 and abs(row["mismatch"]) < 1e-5 for row in lines)
    assert json.loads((made.path / "posttrain.json").read_text())["method"]


def test_mistakes_are_told_before_anything_is_drawn(method, start, tmp_path):
    with pytest.raises(ConfigError, match="unknown environment 'calculater'; did you mean 'calculator'"):
        replace(method, environment="calculater")(start, ROWS, tmp_path, seed=3)
    with pytest.raises(ConfigError, match="turns = 0 must be at least 1"):
        replace(method, turns=0)(start, ROWS, tmp_path, seed=3)
