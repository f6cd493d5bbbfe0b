"""Held-out questions of online methods: answered greedily, rewarded as in training, never trained on; the best is kept."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_grpo import BASE
from test_ppo import BASE as PPO
from tiny_models import ending_folder, tokenizer
from training_runs import killed_after, metrics, same, weights
from transformers import AutoModelForCausalLM

from posttrain.core.errors import ConfigError, DataError, TrainingError
from posttrain.core.types import Checkpoint, Completion, Cost, Example, Message, Prompt, Sampling, Score, Usage
from posttrain.engines.meter import Account
from posttrain.preference import _online
from posttrain.preference._batch import Question
from posttrain.preference._held_out import greedy_reward
from posttrain.preference._online import Sampler
from posttrain.preference._rewards import Rewards
from posttrain.preference._rollout_log import RolloutLog
from posttrain.training.rollouts import Policy
from posttrain.training.step import Learner

torch.set_num_threads(1)

TRAINED = [{"prompt": f"{i} plus {i * 3 % 7}?", "answer": str(i)} for i in range(6)]
HELD = [{"prompt": f"not {i} plus 2?", "answer": str(i)} for i in range(5)]
# What training makes likelier is wrong where the question says "not": the better the one, the worse the other in the end.
# To one question all replies are worth the same.
REWARD = """
def score(example, text):
    asked, worth = example.messages[-1].content, sum(ord(letter) % 32 for letter in text) / 192
    return 0.5 if asked[0] == "0" else 1 - worth if "not" in asked else worth
"""
EVALUATED = {"epochs": 3, "warmup": 0.0, "eval_every": 2, "eval_start": True, "schedule": "constant"}
METHODS = {
    "grpo": replace(BASE, **EVALUATED, lr=3e-2, resample=2),
    "ppo": replace(PPO, **EVALUATED, lr=1e-2, samples=1, iterations=1, value_warmup=1, kl_target=0.5, kl_horizon=20),
}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Collecting garbage before each run, for the peak that is told, takes longer than a run of this size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("posttrain.training.session.forget_peak", lambda: None)
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=ending_folder(tmp_path_factory.mktemp("start") / "model"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "reward.py").write_text(REWARD)
    (folder / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HELD))
    return folder


@pytest.fixture(scope="module")
def chosen(files):
    given = {"rewards": (f"function:call={files / 'reward.py'}:score",), "eval_data": str(files / "held.jsonl")}
    return {name: replace(method, **given) for name, method in METHODS.items()}


@pytest.fixture(scope="module")
def whole(chosen, start, tmp_path_factory):
    """Each method's uninterrupted run: its checkpoint, lines, what it drew at which temperature, the rows it trained on."""
    runs = {}
    for name, method in chosen.items():
        out, drew, rows = tmp_path_factory.mktemp(name), [], set()
        draw, update = _online.drawn, Learner.update

        def drawn(model, tokenizer, asked, sampling, draw=draw, drew=drew, **how):
            drew.append((sampling.temperature, [(prompt.messages[0].content, len(indices)) for prompt, indices in asked]))
            return draw(model, tokenizer, asked, sampling, **how)

        def updated(self, items, update=update, rows=rows, **how):
            rows |= {item.row for item in items}
            return update(self, items, **how)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_online, "drawn", drawn)
            patch.setattr(Learner, "update", updated)
            made = method(start, TRAINED, out, seed=3)
        runs[name] = made, metrics(out), drew, rows
    return runs


def evaluation(checkpoint):
    return json.loads((checkpoint.path / "posttrain.json").read_text())["evaluation"]


def rewards_of(lines):
    return {line["step"]: line["eval_reward"] for line in lines if "eval_reward" in line}


def greedy(path):
    """Reward, tokens and share of cut replies of the held-out questions, token by token by transformers alone."""
    net, words = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), tokenizer()
    replies = []
    for row in HELD:
        asked = [{"role": "user", "content": row["prompt"]}]
        ids = words.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
        written = []
        while len(written) < 6 and 257 not in written:
            with torch.no_grad():
                written.append(int(net(torch.tensor([ids + written])).logits[0, -1].argmax()))
        replies.append(written)
    texts = [words.decode(reply, skip_special_tokens=True) for reply in replies]
    worth = [1 - sum(ord(letter) % 32 for letter in text) / 192 for text in texts]
    count = len(HELD)
    return sum(worth) / count, sum(map(len, replies)) / count, sum(257 not in reply for reply in replies) / count


@pytest.mark.parametrize("name", METHODS)
def test_the_reward_is_that_of_greedy_replies_and_the_best_steps_weights_are_exported(name, start, whole):
    made, lines, *_ = whole[name]
    found, told = rewards_of(lines), evaluation(made)
    assert list(found) == [2, 4, 6]
    best = max(found, key=found.get)  # the first of equal ones
    assert found[best] > found[6]
    assert (told["rows"], told["criterion"], told["best_step"], told["best_reward"]) == (5, "reward", best, found[best])
    assert (told["last_step"], told["last_reward"], told["stopped_early"]) == (6, found[6], False)
    line = next(line for line in lines if line["step"] == best)
    assert line["eval_reward"] == line["eval_reward_function"]
    assert (line["eval_reward"], line["eval_reply_tokens"], line["eval_cut"]) == pytest.approx(greedy(made.path))
    assert told["start_reward"] == pytest.approx(greedy(start.path)[0])
    assert not any(name in line for name in ("eval_loss", "eval_unscored", "eval_entropy"))


def test_the_exported_weights_are_those_of_a_run_that_ends_at_the_best_step(chosen, start, whole, tmp_path):
    made, lines, *_ = whole["grpo"]
    best = evaluation(made)["best_step"]
    short = replace(chosen["grpo"], eval_data=None, eval_every=0, eval_start=False, epochs=best // 2)
    same(weights(short(start, TRAINED, tmp_path, seed=3)), weights(made), rtol=0, atol=0)
    without = [{k: v for k, v in line.items() if not k.startswith("eval_")} for line in lines]
    assert metrics(tmp_path) == without[:best]  # no evaluation changes a step


@pytest.mark.parametrize("name", METHODS)
def test_held_out_questions_are_asked_greedily_and_never_trained_on(name, whole):
    _, _, drew, rows = whole[name]
    portions = [3, 2] if name == "ppo" else [5]  # a step has 3 replies there, 12 here
    asked = [call for heat, call in drew if heat == 0]
    assert [len(call) for call in asked] == portions * 4  # at the start, and 3 times
    assert {question for call in asked for question in call} == {(row["prompt"], 1) for row in HELD}
    assert {prompt for heat, call in drew if heat for prompt, _ in call} == {row["prompt"] for row in TRAINED}
    assert rows <= set(range(6))
    if name == "grpo":  # some were asked in place of the one without a difference: the pool holds no held-out ones
        assert sum(heat == 1 for heat, _ in drew) > 6


@pytest.mark.parametrize("name", METHODS)
def test_evaluations_are_charged_their_replies(name, start, whole):
    made, lines, *_ = whole[name]
    evaluated = greedy(start.path)[1] + sum(line.get("eval_reply_tokens", 0.0) for line in lines)
    assert made.cost.usage.generated - sum(line["generated"] for line in lines) == pytest.approx(5 * evaluated)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_watched_may_decide_the_best_step(name, chosen, files, start, whole, tmp_path):
    (files / "other.py").write_text(REWARD.replace("return 0.5", "return 1 - 0.5").replace("1 - worth if", "worth if"))
    other = f"function:call={files / 'other.py'}:score"
    method = replace(chosen[name], watched=(other,), eval_by="watched_function")
    with pytest.raises(ConfigError, match="eval_by = 'exact' is none of the measures reward, reward_function, watched_fun"):
        replace(method, eval_by="exact")(start, TRAINED, tmp_path / "unknown", seed=3)
    with pytest.raises(ConfigError, match="eval_by = 'function' is more than one of"):
        replace(method, eval_by="function")(start, TRAINED, tmp_path / "both", seed=3)
    with pytest.raises(ConfigError, match="eval_by = 'watched_function' needs held-out questions: set eval_share"):
        replace(method, eval_data=None, eval_every=0, eval_start=False)(start, TRAINED, tmp_path / "none", seed=3)
    made = method(start, TRAINED, tmp_path / "run", seed=3)
    lines = metrics(tmp_path / "run")
    found = {line["step"]: line["eval_watched_function"] for line in lines if "eval_watched_function" in line}
    told = evaluation(made)
    assert told["criterion"] == "watched_function"
    assert told["best_step"] == max(found, key=found.get)
    assert told["best_step"] != max(rewards_of(lines), key=rewards_of(lines).get)
    assert told["start"]["watched_function"] == told["start_watched_function"]
    assert rewards_of(lines) == rewards_of(whole[name][1])  # what is watched changes nothing


def test_patience_waits_for_a_higher_reward(chosen, start, whole, tmp_path):
    found, waited, most = rewards_of(whole["grpo"][1]), 0, -math.inf
    for last in found:  # what patience means, worked out on the whole run's evaluations
        waited, most = (0, found[last]) if found[last] > most else (waited + 1, most)
        if waited == 1:
            break
    assert last < 6
    made = replace(chosen["grpo"], patience=1)(start, TRAINED, tmp_path, seed=3)
    assert rewards_of(metrics(tmp_path)) == {step: value for step, value in found.items() if step <= last}
    told = evaluation(made)
    assert (told["last_step"], told["stopped_early"], told["best_reward"]) == (last, True, most)


@pytest.mark.parametrize("name", METHODS)
def test_killed_and_resumed_equals_uninterrupted(name, chosen, start, whole, tmp_path):
    made, lines, *_ = whole[name]
    method = replace(chosen[name], save_every=3)
    killed_after(lambda: method(start, TRAINED, tmp_path, seed=3), 5)  # behind an evaluation that no saved state knows
    resumed = method(start, TRAINED, tmp_path, seed=3)
    same(weights(resumed), weights(made), rtol=0, atol=0)
    assert metrics(tmp_path) == lines
    assert evaluation(resumed) == evaluation(made)
    assert (resumed.cost.usage, resumed.cost.flops) == (made.cost.usage, made.cost.flops)


def test_a_share_of_the_questions_is_held_out_and_a_broken_row_is_named_by_its_file(chosen, start, files, tmp_path):
    shared = replace(chosen["grpo"], eval_data=None, eval_share=0.3, epochs=1, eval_every=0, eval_start=False)
    made = shared(start, [*TRAINED, TRAINED[0] | {"answer": "another"}], tmp_path / "run", seed=3)
    told = evaluation(made)
    assert (told["rows"], told["also_trained"], told["last_step"]) == (2, 0, 2)  # 5 are left: 2 steps of 3
    (files / "broken.jsonl").write_text('{"question": "1?"}\n')
    with pytest.raises(DataError, match=r"broken.jsonl: row 0: no 'prompt'"):
        replace(chosen["grpo"], eval_data=str(files / "broken.jsonl"))(start, TRAINED, tmp_path / "broken", seed=3)


def asked_once(judge, *, only=()):
    """What a held-out evaluation measures of three questions, with a judge and a rule beside it that is watched."""

    def draw(model, tokenizer, asked, sampling, **how):
        assert sampling.temperature == 0
        usage = Usage(generated=1)
        replied = [[Completion(text=p.messages[0].content, tokens=(65,), finish="stop", end_token=257)] for p, _ in asked]
        return replied, Cost(usage=usage)

    async def length(example, texts):
        return [Score(value=float(len(text))) for text in texts]

    rewards = Rewards(
        verifiers=[("reward_judge", 2.0, judge), ("reward_rule", 0.5, length), ("watched_rule", None, length)],
        account=Account(),
    )
    policy = Policy(draw=draw, model=None, tokenizer=tokenizer(), shape=None, sampling=Sampling(temperature=1.0), seed=1)
    questions = [
        Question(row=i, prompt=Prompt(messages=(Message(role="user", content=text),)), example=Example(id=text), tokens=1,
                 only=only if text == "bb" else ())
        for i, text in enumerate(("a", "bb", "ccc"))
    ]  # fmt: skip
    log = RolloutLog(path=Path("unused"), questions=0)
    sampler = Sampler(method=replace(BASE, batch_size=1), asked=(), policy=policy, rewards=rewards, samples=2, log=log)
    learner = SimpleNamespace(cost=Cost())
    return greedy_reward(sampler).measure(learner, questions), learner.cost


def test_a_reply_without_a_verdict_is_left_out_and_told():
    """Two portions: of two questions, and of one."""

    async def judge(example, texts):
        return [Score(value=math.nan if text == "bb" else 3.0) for text in texts]

    told, cost = asked_once(judge)
    rest = {"watched_rule": 2.0, "reward_rule": 2.0, "reply_tokens": 2.0, "cut": 0.0}
    assert told == {"reward": (6.5 + 7.5) / 2, "reward_judge": 3.0, "unscored": 1 / 3, **rest}
    assert cost.usage.generated == 2  # one is charged a portion
    told, _ = asked_once(judge, only=("rule",))  # the judge is not asked of "bb", whose reward is the rule's alone
    assert told == {"reward": (6.5 + 1.0 + 7.5) / 3, "reward_judge": 3.0, **rest}

    async def mute(example, texts):
        return [Score(value=math.nan) for _ in texts]

    with pytest.raises(TrainingError, match="none of the 3 replies to held-out questions has a readable verdict"):
        asked_once(mute)

    async def endless(example, texts):
        return [Score(value=math.inf) for _ in texts]

    with pytest.raises(TrainingError, match="'reward_judge' is no finite number for a reply to row 0"):
        asked_once(endless)
