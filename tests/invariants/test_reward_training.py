"""Reward models through the trainer: formulas by transformers alone, one trajectory, resume, what is saved and reported."""

import asyncio
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_models import folder, llama, preferences, tokenizer
from training_runs import killed_after, metrics, same, two_processes, weights
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config
from typer.testing import CliRunner

from posttrain.cli.main import app
from posttrain.core.errors import ConfigError, DataError, ModelError
from posttrain.core.types import Checkpoint, Example, Message
from posttrain.data.chat import render_text
from posttrain.models.load import load
from posttrain.preference.reward_model import RewardModel
from posttrain.stats.flops import forward_flops
from posttrain.training.heldout import split_by_question
from posttrain.verifiers import build_verifier

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

BASE = RewardModel(lr=3e-3, epochs=2, batch_size=4, save_every=2, dtype="float32")
PAIRS = [{**row, "margin": i % 3 / 2, "subset": "ab"[i % 2]} for i, row in enumerate(preferences(13))]
RANKED = [
    {"prompt": f"{i} + 1?", "responses": ["yes", f"It is {i + 1}", "no" * (2 + i % 3), "7"], "ranks": [2, 1, 2 + i % 2, 3]}
    for i in range(9)
]
SCORED = [{"prompt": row["prompt"], "responses": row["responses"], "scores": [-k for k in row["ranks"]]} for row in RANKED]
CASES = {
    "pairs": (BASE, PAIRS),
    "margin_centre": (replace(BASE, margin=2.0, centre=0.1), PAIRS),
    "rankings": (BASE, RANKED),
    "list": (replace(BASE, loss="list", centre=0.01), RANKED),
    "scores_lora_dropout": (replace(BASE, adapter="lora", rank=4, dropout=0.3, margin=0.5), SCORED),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


def conversation(prompt, text):
    turns = [Message(role="user", content=prompt), Message(role="assistant", content=text)]
    return tokenizer()(render_text(tokenizer(), turns, generation_prompt=False)).input_ids


def fresh(start, out):
    """The model that training begins with, as transformers has it: a run whose rate is too small to change anything."""
    made = replace(BASE, lr=1e-30, epochs=1)(start, PAIRS, out, seed=3)
    return AutoModelForSequenceClassification.from_pretrained(made.path, dtype=torch.float32).eval()


def reward(model, prompt, text):
    """Transformers' reward of one conversation alone: nothing is padded, so the last token is read."""
    ids = torch.tensor([conversation(prompt, text)])
    with torch.no_grad():
        return float(model(input_ids=ids).logits)


def verified(path, prompt, texts, **more):
    task = SimpleNamespace(name="t", instruction="", extract=lambda text: text, max_tokens=16)
    spec = ",".join([f"reward_model:model={path},dtype=float32", *(f"{k}={v}" for k, v in more.items())])
    found = asyncio.run(build_verifier(spec, task=task)(Example(id="1", question=prompt), texts))
    return [score.value for score in found]


@pytest.mark.parametrize("name", CASES)
def test_micro_batch_size_does_not_change_the_trajectory(name, start, tmp_path):
    method, data = CASES[name]
    if method.dropout:
        method = replace(method, dropout=0.0)  # masks are drawn for each micro-batch
    whole = replace(method, tokens_per_microbatch=100_000)(start, data, tmp_path / "whole", seed=3)
    one_by_one = replace(method, tokens_per_microbatch=1)(start, data, tmp_path / "one", seed=3)
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=5e-3, abs=1e-4)
    same(weights(whole), weights(one_by_one), rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(name, start, tmp_path):
    method, data = CASES[name]
    method = replace(method, eval_share=0.3, eval_every=1)
    expected = method(start, data, tmp_path / "whole", seed=3)
    killed_after(lambda: method(start, data, tmp_path / "killed", seed=3), 3)
    resumed = method(start, data, tmp_path / "killed", seed=3)
    same(weights(resumed), weights(expected), rtol=0, atol=0)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert (resumed.cost.usage, resumed.cost.flops) == (expected.cost.usage, expected.cost.flops)
    told = [json.loads((c.path / "posttrain.json").read_text())["held_out"] for c in (resumed, expected)]
    assert told[0] == told[1]


def test_two_processes_follow_the_trajectory_of_one_and_report_the_same(start, tmp_path):
    method, data = CASES["rankings"]
    small = replace(method, tokens_per_microbatch=80, eval_share=0.3)
    expected = small(start, data, tmp_path / "one", seed=3)
    assert two_processes(lambda: small(start, data, tmp_path / "two", seed=3), tmp_path / "meet") == [0, 0]
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=5e-3, abs=1e-4)
    two = Checkpoint(path=tmp_path / "two" / "checkpoint")
    same(weights(two), weights(expected), rtol=2e-2, atol=2e-3)
    told = [json.loads((c.path / "posttrain.json").read_text())["held_out"] for c in (two, expected)]
    assert told[0]["accuracy"] == told[1]["accuracy"]


def test_the_loss_of_pairs_is_the_formula_worked_out_by_transformers_alone(start, tmp_path):
    model = fresh(start, tmp_path / "fresh")
    replace(CASES["margin_centre"][0], epochs=1, batch_size=100)(start, PAIRS, tmp_path / "run", seed=3)
    sides = [[reward(model, row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in PAIRS]
    ranking = [math.log1p(math.exp(-(c - r - 2.0 * row["margin"]))) for (c, r), row in zip(sides, PAIRS, strict=True)]
    centred = [(c + r) ** 2 for c, r in sides]
    first = metrics(tmp_path / "run")[0]
    assert first["loss"] == pytest.approx((sum(ranking) + 0.1 * sum(centred)) / 13, rel=1e-4)
    assert first["accuracy"] == pytest.approx(sum(c > r for c, r in sides) / 13)
    assert first["margin"] == pytest.approx(sum(c - r for c, r in sides) / 13, abs=1e-4)
    assert first["reward"] == pytest.approx(sum(map(sum, sides)) / 26, abs=1e-4)
    assert first["centring"] == pytest.approx(sum(centred) / 13, rel=1e-3)


def test_the_loss_of_rankings_is_the_mean_over_each_prompts_comparisons(start, tmp_path):
    model = fresh(start, tmp_path / "fresh")
    replace(BASE, epochs=1, batch_size=100)(start, RANKED, tmp_path / "run", seed=3)
    replace(BASE, epochs=1, batch_size=100)(start, SCORED, tmp_path / "scored", seed=3)
    total = 0.0
    for row in RANKED:
        r = [reward(model, row["prompt"], text) for text in row["responses"]]
        k = row["ranks"]
        pairs = [(i, j) for i in range(4) for j in range(4) if k[i] < k[j]]
        total += sum(math.log1p(math.exp(r[j] - r[i])) for i, j in pairs) / len(pairs) / len(RANKED)
    assert metrics(tmp_path / "run")[0]["loss"] == pytest.approx(total, rel=1e-4)
    assert metrics(tmp_path / "scored") == metrics(tmp_path / "run")


def test_a_ranking_of_two_is_a_pair(start, tmp_path):
    as_rankings = [{"prompt": r["prompt"], "responses": [r["rejected"], r["chosen"]], "ranks": [2, 1]} for r in PAIRS]
    BASE(start, PAIRS, tmp_path / "as_pairs", seed=3)
    for loss in ("pairs", "list"):
        replace(BASE, loss=loss)(start, as_rankings, tmp_path / loss, seed=3)
        for a, b in zip(metrics(tmp_path / loss), metrics(tmp_path / "as_pairs"), strict=True):
            assert a == pytest.approx(b, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_what_is_saved_gives_the_same_numbers_everywhere(architecture, tmp_path):
    sizes = {"vocab_size": 258, "pad_token_id": 257, "eos_token_id": 257, "bos_token_id": None}
    config = llama() if architecture == "llama" else GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **sizes)
    begin = Checkpoint(path=folder(tmp_path / "model", config))
    made = BASE(begin, PAIRS, tmp_path / "run", seed=3)
    saved = json.loads((made.path / "config.json").read_text())
    assert saved["architectures"][0].endswith("ForSequenceClassification")
    model = AutoModelForSequenceClassification.from_pretrained(made.path, dtype=torch.float32).eval()
    assert model.config.num_labels == 1
    texts = ["four", "It is surely twenty-two, I think.", "no", "no\n\nyes"]
    alone = [reward(model, "How many?", text) for text in texts]
    assert len({round(value, 3) for value in alone}) == len(texts)
    assert verified(made.path, "How many?", texts) == pytest.approx(alone, abs=1e-4)
    # in a padded batch transformers looks for the last token that is not padding: no conversation may end with that token
    saved_tokenizer = AutoTokenizer.from_pretrained(made.path)
    assert saved_tokenizer.pad_token_id == model.config.pad_token_id != conversation("How many?", "four")[-1]
    batch = saved_tokenizer.pad({"input_ids": [conversation("How many?", t) for t in texts]}, return_tensors="pt")
    with torch.no_grad():
        assert model(**batch).logits[:, 0].tolist() == pytest.approx(alone, abs=1e-4)


def test_conversations_that_end_with_the_end_token_which_is_the_padding_token(tmp_path):
    path = folder(tmp_path / "model")
    template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    words = AutoTokenizer.from_pretrained(path)
    assert words.pad_token == words.eos_token == "<|im_end|>"
    words.chat_template = template
    words.save_pretrained(path)
    made = BASE(Checkpoint(path=path), PAIRS, tmp_path / "run", seed=3)
    model = AutoModelForSequenceClassification.from_pretrained(made.path, dtype=torch.float32).eval()
    ids = [words(f"How many?<|im_end|>{text}<|im_end|>").input_ids for text in ("four", "four, or five")]
    backbone, head = model.model, model.score
    with torch.no_grad():
        at_the_end = [float(head(backbone(input_ids=torch.tensor([i])).last_hidden_state[0, -1])) for i in ids]
        batch = AutoTokenizer.from_pretrained(made.path).pad({"input_ids": ids}, return_tensors="pt")
        assert model(**batch).logits[:, 0].tolist() == pytest.approx(at_the_end, abs=1e-4)
    assert verified(made.path, "How many?", ["four", "four, or five"]) == pytest.approx(at_the_end, abs=1e-4)


def test_training_goes_on_from_a_reward_model_and_refuses_other_heads(start, tmp_path):
    first = BASE(start, PAIRS, tmp_path / "first", seed=3)
    kept = replace(BASE, lr=1e-30)(first, PAIRS, tmp_path / "again", seed=4)
    same(weights(kept), weights(first), rtol=0, atol=1e-12)
    model = AutoModelForSequenceClassification.from_pretrained(start.path, num_labels=3)
    model.save_pretrained(tmp_path / "three")
    tokenizer().save_pretrained(tmp_path / "three")
    with pytest.raises(ModelError, match="has 3 labels, but 1 are needed"):
        BASE(Checkpoint(path=tmp_path / "three"), PAIRS, tmp_path / "x", seed=3)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_an_adapter_is_saved_with_its_head_and_loads_by_peft_and_verifier(kind, start, tmp_path):
    from peft import AutoPeftModelForSequenceClassification

    made = replace(BASE, adapter=kind, rank=4, lr=2e-2)(start, PAIRS, tmp_path / "run", seed=3)
    assert made.base == str(start.path)
    texts = ["four", "It is surely twenty-two.", "no"]
    found = verified(made.path, "How many?", texts)
    model = AutoPeftModelForSequenceClassification.from_pretrained(made.path, num_labels=1, dtype=torch.float32).eval()
    model.get_base_model().config.pad_token_id = None
    assert found == pytest.approx([reward(model, "How many?", text) for text in texts], abs=1e-4)
    rows = metrics(tmp_path / "run")
    assert rows[-1]["loss"] < rows[0]["loss"]
    told = json.loads((made.path / "posttrain.json").read_text())["parameters"]
    assert 0 < told["share"] < 0.5
    further = replace(BASE, lr=1e-30)(made, PAIRS, tmp_path / "further", seed=3)  # its merger, as a whole model
    assert verified(further.path, "How many?", texts) == pytest.approx(found, abs=1e-4)


def test_held_out_rows_are_reported_with_the_best_weights(start, tmp_path):
    made = replace(BASE, epochs=6, eval_share=0.4, lr=1e-2)(start, PAIRS, tmp_path / "run", seed=3)
    facts = json.loads((made.path / "posttrain.json").read_text())
    held = [PAIRS[i] for i in sorted(split_by_question(PAIRS, 0.4, 3))]
    model = AutoModelForSequenceClassification.from_pretrained(made.path, dtype=torch.float32).eval()
    right = [reward(model, r["prompt"], r["chosen"]) > reward(model, r["prompt"], r["rejected"]) for r in held]
    told = facts["held_out"]
    assert told["accuracy"] == pytest.approx(sum(right) / len(right))
    assert told["comparisons"] == told["prompts"] == len(held)
    assert told["accuracy_ci95"][0] <= told["accuracy"] <= told["accuracy_ci95"][1]
    assert set(told["subsets"]) == {row["subset"] for row in held}
    assert sum(part["comparisons"] for part in told["subsets"].values()) == len(held)
    assert 0 <= told["ece"] <= 0.5
    assert told["longer_is_judged_better"] is not None
    assert facts["data"]["comparisons"] == 13 - len(held)
    rows = metrics(tmp_path / "run")
    assert rows[-1]["accuracy"] == 1.0


def test_other_judgements_are_reported_on_the_command_line(start, tmp_path):
    made = replace(BASE, epochs=6, eval_share=0.4, lr=1e-2)(start, PAIRS, tmp_path / "run", seed=3)
    held = [PAIRS[i] for i in sorted(split_by_question(PAIRS, 0.4, 3))]
    file = tmp_path / "held.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in held))
    command = ["data", "rewards", str(file), "--model", str(made.path), "--dtype", "float32"]
    found = json.loads(CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False).stdout)
    told = json.loads((made.path / "posttrain.json").read_text())["held_out"]
    for name in ("accuracy", "ece", "length_correlation", "longer_wins", "comparisons"):
        assert found[name] == pytest.approx(told[name], abs=1e-5)
    assert found["subsets"] == told["subsets"]
    assert "calibration error (ECE)" in CliRunner().invoke(app, command, catch_exceptions=False).stdout
    file.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, DataError) or "is a demonstration, but pairs" in refused.output


def test_cost_shares_the_prompt_and_counts_each_reply_once(start, tmp_path):
    made = replace(BASE, epochs=1)(start, RANKED, tmp_path / "run", seed=3)
    shape, flops = load(start.path).shape, 0.0
    for row in RANKED:
        ids = [conversation(row["prompt"], text) for text in row["responses"]]
        shared = next(i for i in range(1000) if len({tuple(s[: i + 1]) for s in ids}) > 1)
        flops += 3 * forward_flops(shape, start=0, tokens=shared, logits=0)
        flops += 3 * sum(forward_flops(shape, start=shared, tokens=len(s) - shared, logits=0) for s in ids)
        flops += 3 * 2 * 32 * 4  # the head
    assert made.cost.flops == pytest.approx(flops, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"margin": -1.0}, "margin = -1.0 and centre = 0.0 must not be negative"),
        ({"loss": "list", "margin": 1.0}, "margin = 1.0 belongs to loss=pairs"),
        ({"adapter": "prefix"}, "adapter=prefix: a model that gives numbers trains its head too"),
        ({"adapter": "qlora"}, "adapter=qlora: a model that gives numbers"),
        ({"sample_every": 2, "eval_share": 0.3}, "writes no samples"),
    ],
)
def test_settings_that_make_no_sense(changes, message, start, tmp_path):
    with pytest.raises(ConfigError, match=message):
        replace(BASE, **changes)(start, PAIRS, tmp_path, seed=1)


def test_rows_that_prefer_nothing_are_named(start, tmp_path):
    tied = {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 1]}
    with pytest.raises(DataError, match="row 1: all replies are tied or equal"):
        BASE(start, [PAIRS[0], tied], tmp_path / "a", seed=1)
    with pytest.raises(DataError, match="row 0: is a thumb, but a pair, a ranking or scored responses are needed"):
        BASE(start, [{"prompt": "a", "completion": "b", "label": True}], tmp_path / "b", seed=1)
    with pytest.raises(DataError, match=r"row 1 has \d+ tokens, more than the 60 allowed"):
        replace(BASE, max_length=60)(start, [PAIRS[0], {**PAIRS[1], "chosen": "x" * 99}], tmp_path / "c", seed=1)
    with pytest.raises(DataError, match=r"row 0: message 1 \(assistant\) contains the text of the special token"):
        BASE(start, [{**PAIRS[0], "chosen": "a<|im_end|>"}], tmp_path / "d", seed=1)
