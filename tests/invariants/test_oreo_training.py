"""OREO through its trainer: the formula, one trajectory, resume, both models saved, its value model in a search."""

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_models import folder, preferences, tokenizer
from training_runs import killed_after, metrics, same, two_processes, weights
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.protocols import Tools
from posttrain.core.types import Checkpoint, Example, Message, Prompt, Sampling
from posttrain.data.masks import encode_completion
from posttrain.engines.local import LocalEngine
from posttrain.models.load import load
from posttrain.pipeline.methods import build_strategy
from posttrain.preference.oreo import Oreo
from posttrain.preference.reward_model import RewardModel
from posttrain.tasks.equivalence import answer_key
from posttrain.tasks.extraction import extractor
from posttrain.verifiers import build_verifier

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

BASE = Oreo(
    lr=1e-3, value_lr=1e-2, epochs=2, batch_size=5, save_every=2, dtype="float32", beta=0.3, kl_weight=0.2, warmup=0.0,
    schedule="constant",
)  # fmt: skip
ROWS = [
    {
        "prompt": f"{i} plus {i % 4}?",
        "responses": [f"{i} and\n{i % 4}\n\nmake {i + i % 4}", "no" * (i % 3 + 1)],
        "scores": [1, 0],
    }
    for i in range(5)
]
CASES = {
    "token": BASE,
    "step_scaled": replace(BASE, level="step", reward_scale=2.0, reward_shift=-1.0),
    "response": replace(BASE, level="response", kl_weight=0.0),
    "token_lora": replace(BASE, adapter="lora", rank=4, lr=1e-2),
    "step_lora_dropout": replace(BASE, level="step", adapter="lora", rank=4, dropout=0.3, lr=1e-2),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Collecting garbage before each run, for the peak that is told, takes longer than a run of this size."""
    monkeypatch.setattr("posttrain.training.session.forget_peak", lambda: None)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


def value_of(checkpoint):
    return Checkpoint(path=checkpoint.path / "value")


def alike(a, b, **tolerance):
    same(weights(a), weights(b), **tolerance)
    same(weights(value_of(a)), weights(value_of(b)), **tolerance)


def starts_by_hand(text):
    """Where steps begin among the bytes of a text and the end of its turn."""
    found, spoken = [0], ""
    for at, letter in enumerate([*text.encode(), None]):
        if letter in (10, None):
            found += [at] * bool(spoken.strip())
            spoken = ""
        else:
            spoken += chr(letter)
    return found


def by_transformers(method, policy, value, reference, logps=lambda model, ids: model(ids).logits[0]):
    """The measures of one step over all responses, in float64 from three models' own forwards."""
    sums = dict.fromkeys(("residual", "reward", "value_first", "value_last", "log_ratio", "states", "kl"), 0.0)
    responses = [(row["prompt"], *pair) for row in ROWS for pair in zip(row["responses"], row["scores"], strict=True)]
    for prompt, text, score in responses:
        encoded = encode_completion(tokenizer(), [Message(role="user", content=prompt)], text)
        ids, actions = torch.tensor([encoded.ids]), [t for t, trained in enumerate(encoded.mask) if trained]
        with torch.no_grad():
            ours, theirs = (logps(model, ids).double().log_softmax(-1) for model in (policy, reference))
            values = value(ids).logits[0, :, 0].double()
        ratios = [float(ours[t - 1, encoded.ids[t]] - theirs[t - 1, encoded.ids[t]]) for t in actions]
        starts = {"token": range(len(actions)), "step": starts_by_hand(text), "response": [0]}[method.level]
        seen = [float(values[actions[s] - 1]) for s in starts]
        goal = method.reward_scale * score + method.reward_shift
        residuals = [v + method.beta * sum(ratios[s:]) - goal for v, s in zip(seen, starts, strict=True)]
        sums["residual"] += sum(d * d for d in residuals) / len(residuals)
        sums["reward"] += goal
        sums["value_first"] += seen[0]
        sums["value_last"] += seen[-1]
        sums["log_ratio"] += sum(ratios)
        sums["states"] += len(residuals)
        sums["kl"] += float((ours.exp() * (ours - theirs)).sum(-1)[[t - 1 for t in actions]].mean())
    return {name: total / len(responses) for name, total in sums.items()}


@pytest.mark.parametrize("name", ["step_scaled", "token_lora"])
def test_the_second_step_s_measures_by_transformers_alone(name, start, tmp_path):
    method = replace(CASES[name], batch_size=100)
    first = replace(method, epochs=1)(start, ROWS, tmp_path / "one", seed=3)
    method(start, ROWS, tmp_path / "two", seed=3)
    plain = AutoModelForTokenClassification.from_pretrained(first.path / "value", dtype=torch.float32).eval()
    assert plain.config.id2label == {0: "value"}
    models = [load(path, dtype="float32").model.eval() for path in (first.path, start.path)]
    expected = by_transformers(method, models[0], plain, models[1])
    lines = metrics(tmp_path / "two")
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-9)  # the start itself
    assert lines[0]["value_first"] == lines[0]["log_ratio"] == 0
    for measure, value in expected.items():
        assert lines[1][measure] == pytest.approx(value, rel=1e-3, abs=1e-6), measure
    assert expected["kl"] > 1e-4
    assert lines[1]["loss"] == pytest.approx(2 * expected["residual"] + method.kl_weight * expected["kl"], rel=1e-3)
    assert lines[1]["grad_norm"] == pytest.approx(
        (lines[1]["grad_norm_policy"] ** 2 + lines[1]["grad_norm_value"] ** 2) ** 0.5
    )


@pytest.mark.parametrize("name", ["response", "token_lora"])
def test_micro_batch_size_does_not_change_the_trajectory(name, start, tmp_path):
    method = CASES[name]
    whole = replace(method, tokens_per_microbatch=100_000)(start, ROWS, tmp_path / "whole", seed=3)
    one_by_one = replace(method, tokens_per_microbatch=1)(start, ROWS, tmp_path / "one", seed=3)
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=5e-3, abs=1e-4)
    alike(whole, one_by_one, rtol=2e-2, atol=2e-3)


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(start, tmp_path):
    method = CASES["step_lora_dropout"]
    expected = method(start, ROWS, tmp_path / "whole", seed=3)
    killed_after(lambda: method(start, ROWS, tmp_path / "killed", seed=3), 3)
    resumed = method(start, ROWS, tmp_path / "killed", seed=3)
    alike(resumed, expected, rtol=0, atol=0)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert resumed.cost.flops == expected.cost.flops
    assert method(start, ROWS, tmp_path / "killed", seed=3) == resumed  # finished: nothing is trained again


def test_two_processes_follow_the_trajectory_of_one(start, tmp_path):
    method = replace(CASES["token"], tokens_per_microbatch=80)
    expected = method(start, ROWS, tmp_path / "one", seed=3)
    assert two_processes(lambda: method(start, ROWS, tmp_path / "two", seed=3), tmp_path / "meet") == [0, 0]
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=5e-3, abs=1e-4)
    alike(Checkpoint(path=tmp_path / "two" / "checkpoint"), expected, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("name", ["token", "token_lora"])
def test_every_weight_of_both_models_moves_and_no_other(name, start, tmp_path):
    made = CASES[name](start, ROWS, tmp_path / "run", seed=3)
    before, after = weights(start), weights(made)
    if name == "token":
        assert all(not torch.equal(before[key], after[key]) for key in before)
    else:
        assert all("lora" in key and bool(after[key].any()) for key in after)
    valued = weights(value_of(made))
    assert bool(valued.pop("score.weight").any() and valued.pop("score.bias").any())
    assert valued.keys() == {key for key in before if "lm_head" not in key}
    assert all(not torch.equal(before[key], value) for key, value in valued.items())
    told = json.loads((made.path / "posttrain.json").read_text())
    assert told["value"]["start"]["path"] == str(start.path)
    assert (told["data"]["prompts"], told["data"]["responses"], told["data"]["dropped_too_long"]) == (5, 10, 0)
    base = sum(value.numel() * 4 for value in before.values())
    held = base * (name == "token")  # a frozen copy; of an adapter the base itself
    both = sum(value.numel() * 4 for value in weights(value_of(made)).values())
    trained = told["parameters"]["trained"] * 4
    assert told["estimate"]["weights"] == base + trained * (name != "token") + both + held
    assert told["estimate"]["adam"] == 2 * (trained + both)


def test_a_reward_model_is_the_first_value_model_and_belongs_to_the_run(start, tmp_path):
    reward = RewardModel(lr=1e-2, dtype="float32", batch_size=4)(start, preferences(8), tmp_path / "reward", seed=1)
    method = replace(BASE, value_start=str(reward.path), epochs=1)
    method(start, ROWS, tmp_path / "run", seed=3)
    first = metrics(tmp_path / "run")[0]
    assert first["value_first"] != 0 == first["log_ratio"]
    again = replace(method, value_start=str(tmp_path / "run" / "checkpoint" / "value"))
    with pytest.raises(ConfigError, match="finished run with another configuration"):
        again(start, ROWS, tmp_path / "run", seed=3)


def test_an_adapter_that_stays_one_is_its_own_reference_and_its_base_the_value_model_s_start(start, tmp_path):
    method = replace(BASE, adapter="bottleneck", width=4, epochs=1, batch_size=10)
    first = method(start, ROWS, tmp_path / "first", seed=3)
    second = method(first, ROWS, tmp_path / "second", seed=3)
    (line,) = metrics(tmp_path / "second")
    assert line["kl"] == line["log_ratio"] == line["value_first"] == 0
    told = json.loads((second.path / "posttrain.json").read_text())
    assert told["value"]["start"]["path"] == str(start.path.resolve())


def test_right_responses_become_likelier_than_wrong_ones_and_states_tell_them_apart(start, tmp_path):
    rows = [{**row, "responses": [row["responses"][0], f"{i} no"]} for i, row in enumerate(ROWS)]
    method = replace(BASE, epochs=15, batch_size=10, level="step", beta=0.1, kl_weight=0.01)
    made = method(start, rows, tmp_path / "run", seed=3)
    lines = metrics(tmp_path / "run")
    assert lines[-1]["residual"] < 0.5 * lines[0]["residual"]
    policy, before = (AutoModelForCausalLM.from_pretrained(at.path, dtype=torch.float32).eval() for at in (made, start))

    def change(prompt, text):
        encoded = encode_completion(tokenizer(), [Message(role="user", content=prompt)], text)
        ids, at = torch.tensor([encoded.ids]), torch.tensor([t for t, trained in enumerate(encoded.mask) if trained])
        with torch.no_grad():
            now, then = (m(ids).logits[0].log_softmax(-1)[at - 1, ids[0, at]].sum() for m in (policy, before))
        return float(now - then)

    def values(prompt, texts):
        task = SimpleNamespace(name="t", instruction="", extract=lambda text: text, max_tokens=16)
        spec = f"value:model={made.path}/value,dtype=float32"
        found = asyncio.run(build_verifier(spec, task=task)(Example(id="1", question=prompt), texts))
        return [score.value for score in found]

    for row in rows:
        right, wrong = (change(row["prompt"], text) for text in row["responses"])
        assert right > wrong
        good, bad = values(row["prompt"], row["responses"])
        assert good > bad


def test_beam_search_keeps_what_the_value_model_expects_most_of(start, tmp_path):
    made = replace(BASE, epochs=1)(start, ROWS, tmp_path / "run", seed=3)
    valued = AutoModelForTokenClassification.from_pretrained(made.path / "value", dtype=torch.float32).eval()
    task = SimpleNamespace(name="t", instruction="", extract=lambda text: text, max_tokens=16)
    example, spec = Example(id="e", question="2 plus 2?"), f"value:model={made.path}/value,separator=e,dtype=float32"
    verifier = build_verifier(spec, task=task)

    def by_hand(text):
        prompt = tokenizer()(f"<|im_start|>user\n{example.question}<|im_end|>\n<|im_start|>assistant\n").input_ids
        with torch.no_grad():
            table = valued(torch.tensor([prompt + tokenizer()(text).input_ids])).logits[0, :, 0]
        letters = text.encode()
        ends = [at for at, letter in enumerate(letters) if letter == ord("e") and letters[:at].rpartition(b"e")[2].strip()]
        return [float(table[len(prompt) + at - 1]) for at in (*ends, len(letters))]

    for text in ("one", "ab\ncd", "aecd", "abee cde f"):
        (score,) = asyncio.run(verifier(example, [text]))
        assert list(score.steps) == pytest.approx(by_hand(text), abs=1e-5)
        assert score.value == score.steps[-1]
    (nothing,) = asyncio.run(verifier(example, [" "]))
    assert nothing.value != nothing.value

    loaded = load(made.path, dtype="float32")
    engine = LocalEngine(loaded.model, loaded.tokenizer, fingerprint="x", slots=8)
    settings = f"width=2,expand=2,steps=3,step_tokens=4,temperature=1.0,separator=e,verifier=({spec})"
    strategy = build_strategy(f"beam_search:{settings}")
    asked = Prompt(messages=(Message(role="user", content=example.question),))

    def searched(by):
        sampling, named = Sampling(max_tokens=12), {strategy.verifier: by}
        tools = Tools(engine=engine, extract=extractor("text"), key=answer_key, sampling=sampling, verifiers=named)
        return asyncio.run(strategy(asked, example, tools, seed=0))

    kept = []
    found, turned = searched(_Noted(verifier, 1, kept)), searched(_Noted(verifier, -1, []))
    assert found.trace["pruned"] > 0
    assert found.text != turned.text
    assert len(kept) >= 4
    for text, value in kept:  # unfinished replies, as the search asks
        assert value == pytest.approx(by_hand(text)[-1], abs=1e-4)


class _Noted:
    """The verifier, or its opposite, with what it was asked and said."""

    oracle = False

    def __init__(self, verifier, sign, noted):
        self.verifier, self.sign, self.noted = verifier, sign, noted

    async def __call__(self, example, texts):
        scores = await self.verifier(example, texts)
        self.noted += [(text, score.value) for text, score in zip(texts, scores, strict=True)]
        return [replace(s, value=self.sign * s.value, steps=tuple(self.sign * x for x in s.steps)) for s in scores]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta = 0.0 must be positive"),
        ({"kl_weight": -1.0}, "kl_weight = -1.0 not negative"),
        ({"separator": "x"}, "cuts steps, with level=step only"),
        ({"sharding": "full"}, "sharding=full does not go with a value model"),
    ],
)
def test_impossible_settings(changes, message, start, tmp_path):
    with pytest.raises(ConfigError, match=message):
        replace(BASE, **changes)(start, ROWS, tmp_path, seed=3)


def test_rewards_that_are_all_one_are_an_error(start, tmp_path):
    with pytest.raises(DataError, match="all 2 responses have the score of one reward, 1: there is nothing to tell apart"):
        BASE(start, [{**ROWS[0], "scores": [1, 1]}], tmp_path, seed=3)
