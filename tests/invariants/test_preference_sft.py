"""SFT on judged responses through the trainer: formulas, one trajectory, resume, and its equality with plain SFT."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_models import demonstrations, folder, preferences, tokenizer
from training_runs import killed_after, metrics, same, weights
from transformers import AutoModelForCausalLM

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.types import Checkpoint, Message
from posttrain.data.masks import encode_completion
from posttrain.finetuning.preference_sft import PreferenceSft
from posttrain.finetuning.sft import Sft
from posttrain.models.load import load
from posttrain.models.sharing import shared_prefix
from posttrain.stats.flops import forward_flops, train_flops
from posttrain.training.heldout import split_by_question
from posttrain.training.state import Metrics

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

BASE = PreferenceSft(lr=1e-2, epochs=2, batch_size=5, save_every=2, dtype="float32")
PAIRS = preferences(13)
SCORED = [
    {"prompt": f"{i} plus 1?", "responses": ["yes", f"It is {i + 1}", "no" * (i % 3 + 1)], "scores": [0.2, 1.0, i % 2 / 2]}
    for i in range(7)
]
CASES = {
    "chosen": (BASE, PAIRS),
    "sigmoid": (replace(BASE, margin="sigmoid", margin_scale=2.0, margin_gap=0.5), PAIRS),
    "hinge_lora_dropout": (
        replace(BASE, margin="hinge", margin_gap=5.0, margin_weight=0.3, adapter="lora", rank=4, dropout=0.3), PAIRS
    ),
    "best": (replace(BASE, mode="best"), SCORED),
    "filtered": (replace(BASE, mode="filtered", threshold=0.5), SCORED),
    "weighted": (replace(BASE, mode="weighted", beta=0.5), SCORED),
    "weighted_data_lora": (replace(BASE, mode="weighted", beta=0.5, over="data", adapter="lora", rank=4), SCORED),
}  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


def encoded(prompt, response):
    return encode_completion(tokenizer(), [Message(role="user", content=prompt)], response)


def logps(model, prompt, response):
    """Return the log-probability of each trained token, by transformers alone."""
    found = encoded(prompt, response)
    with torch.no_grad():
        table = model(torch.tensor([found.ids])).logits[0].double().log_softmax(-1)
    return torch.stack([table[i - 1, found.ids[i]] for i, trained in enumerate(found.mask) if trained])


@pytest.mark.parametrize("name", ["chosen", "sigmoid", "weighted"])
def test_micro_batch_size_does_not_change_the_trajectory(name, start, tmp_path):
    method, data = CASES[name]
    whole = replace(method, tokens_per_microbatch=100_000)(start, data, tmp_path / "whole", seed=3)
    one_by_one = replace(method, tokens_per_microbatch=1)(start, data, tmp_path / "one", seed=3)
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-5)
    same(weights(whole), weights(one_by_one), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(name, start, tmp_path, monkeypatch):
    method, data = CASES[name]
    expected = method(start, data, tmp_path / "whole", seed=3)
    write = Metrics.write

    def stopping(self, row):
        write(self, row)
        if row["step"] == 3:  # behind the last saved state
            raise KeyboardInterrupt

    monkeypatch.setattr(Metrics, "write", stopping)
    if len(metrics(tmp_path / "whole")) > 3:
        with pytest.raises(KeyboardInterrupt):
            method(start, data, tmp_path / "cut", seed=3)
    monkeypatch.setattr(Metrics, "write", write)
    resumed = method(start, data, tmp_path / "cut", seed=3)
    same(weights(resumed), weights(expected), rtol=0, atol=0)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert (resumed.cost.usage, resumed.cost.flops) == (expected.cost.usage, expected.cost.flops)


def test_chosen_best_and_filtered_are_sft_on_those_responses(start, tmp_path):
    sft = Sft(lr=1e-2, epochs=2, batch_size=5, save_every=2, dtype="float32")
    wanted = {
        "chosen": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS],
        "best": [{"prompt": row["prompt"], "completion": row["responses"][1]} for row in SCORED],
        "filtered": [
            {"prompt": row["prompt"], "completion": response}
            for row in SCORED
            for response, score in zip(row["responses"], row["scores"], strict=True)
            if score >= 0.5
        ],
    }
    for name, rows in wanted.items():
        method, data = CASES[name]
        made = method(start, data, tmp_path / name, seed=3)
        plain = sft(start, rows, tmp_path / f"sft-{name}", seed=3)
        same(weights(made), weights(plain), rtol=0, atol=0)
        assert metrics(tmp_path / name) == metrics(tmp_path / f"sft-{name}")
        assert made.cost.flops == pytest.approx(plain.cost.flops)
        assert made.cost.usage == plain.cost.usage
    facts = json.loads((tmp_path / "filtered" / "checkpoint" / "posttrain.json").read_text())["data"]
    assert (facts["responses"], facts["prompts"]) == (21, 7)
    assert facts["not_selected"] == 21 - len(wanted["filtered"])


def test_equal_scores_weigh_as_plain_sft(start, tmp_path):
    level = [{**row, "scores": [0.5] * 3} for row in SCORED]
    rows = [{"prompt": row["prompt"], "completion": text} for row in SCORED for text in row["responses"]]
    made = CASES["weighted"][0](start, level, tmp_path / "weighted", seed=3)
    plain = Sft(lr=1e-2, epochs=2, batch_size=5, save_every=2, dtype="float32")(start, rows, tmp_path / "sft", seed=3)
    same(weights(made), weights(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("over", ["prompt", "data"])
def test_the_weighted_loss_is_the_formula_worked_out_by_transformers_alone(over, start, tmp_path):
    method = replace(BASE, mode="weighted", over=over, beta=0.5, epochs=1, batch_size=100)
    method(start, SCORED, tmp_path, seed=3)
    model = AutoModelForCausalLM.from_pretrained(start.path)
    scores = torch.tensor([row["scores"] for row in SCORED]).double()
    w = (scores / 0.5).softmax(-1) * 3 if over == "prompt" else (scores / 0.5).flatten().softmax(0).view(-1, 3) * 21
    sums, tokens = 0.0, 0
    for i, row in enumerate(SCORED):
        for j, response in enumerate(row["responses"]):
            values = logps(model, row["prompt"], response)
            sums -= w[i, j].item() * values.sum().item()
            tokens += len(values)
    assert metrics(tmp_path)[0]["loss"] == pytest.approx(sums / tokens, rel=1e-5)
    assert metrics(tmp_path)[0]["trained_tokens"] == tokens


@pytest.mark.parametrize("margin", ["hinge", "sigmoid"])
def test_the_margin_is_the_formula_worked_out_by_transformers_alone(margin, start, tmp_path):
    method = replace(BASE, margin=margin, margin_weight=0.3, margin_scale=2.0, margin_gap=0.5, epochs=1, batch_size=100)
    method(start, PAIRS, tmp_path, seed=3)
    model = AutoModelForCausalLM.from_pretrained(start.path)
    chosen, rejected = ([logps(model, row["prompt"], row[side]) for row in PAIRS] for side in ("chosen", "rejected"))
    difference = torch.stack([c.mean() - r.mean() for c, r in zip(chosen, rejected, strict=True)])
    m = 2 * difference - 0.5
    ranking = (torch.log1p((-m).exp()) if margin == "sigmoid" else torch.clamp(-m, min=0)).mean().item()
    entropy = -torch.cat(chosen).mean().item()
    row = metrics(tmp_path)[0]
    assert row["cross_entropy"] == pytest.approx(entropy, rel=1e-5)
    assert row["ranking"] == pytest.approx(ranking, rel=1e-4)
    assert row["loss"] == pytest.approx(entropy + 0.3 * ranking, rel=1e-5)
    assert row["margin"] == pytest.approx(difference.mean().item(), abs=1e-5)
    assert row["accuracy"] == pytest.approx((difference > 0).double().mean().item())
    assert row["trained_tokens"] == len(torch.cat(chosen))


def test_pairs_come_to_be_ranked_as_judged(start, tmp_path):
    replace(BASE, margin="sigmoid", margin_scale=2.0, epochs=6)(start, PAIRS, tmp_path, seed=3)
    rows = metrics(tmp_path)
    assert rows[-1]["margin"] > rows[0]["margin"]
    assert rows[-1]["accuracy"] == 1.0
    assert rows[-1]["cross_entropy"] < rows[0]["cross_entropy"]


KINDS = {"ia3": {}, "prefix": {"virtual_tokens": 3}, "bottleneck": {"width": 4}}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_adapter_learn_from_judgements(kind, start, tmp_path):
    for name in ("sigmoid", "weighted"):
        method, data = CASES[name]
        chosen = replace(method, adapter=kind, lr=5e-2, epochs=4, batch_size=100, save_every=0, **KINDS[kind])
        made = chosen(start, data, tmp_path / name, seed=3)
        rows = metrics(tmp_path / name)
        assert rows[-1]["loss"] < rows[0]["loss"]
        assert made.base == str(start.path)


def test_cost_of_pairs_shares_the_prompt_and_counts_both_responses(start, tmp_path):
    made = replace(BASE, margin="sigmoid", epochs=1)(start, PAIRS, tmp_path, seed=3)
    shape, flops = load(start.path).shape, 0.0
    for row in PAIRS:
        pair = [encoded(row["prompt"], row[side]) for side in ("chosen", "rejected")]
        shared = shared_prefix(pair)
        flops += 3 * forward_flops(shape, start=0, tokens=shared, logits=0)
        flops += 3 * sum(forward_flops(shape, start=shared, tokens=len(e.ids) - shared, logits=e.trained) for e in pair)
    assert made.cost.flops == pytest.approx(flops)
    best = replace(BASE, mode="best", epochs=1)(start, SCORED, tmp_path / "best", seed=3)
    own = [encoded(row["prompt"], row["responses"][1]) for row in SCORED]
    assert best.cost.flops == pytest.approx(sum(train_flops(shape, tokens=len(e.ids), logits=e.trained) for e in own))


def test_rejected_may_be_missing_without_a_margin(start, tmp_path):
    rows = [{"prompt": row["prompt"], "chosen": row["chosen"]} for row in PAIRS]
    made = BASE(start, rows, tmp_path / "a", seed=3)
    same(weights(made), weights(BASE(start, PAIRS, tmp_path / "b", seed=3)), rtol=0, atol=0)
    with pytest.raises(DataError, match="row 0: no 'rejected'"):
        replace(BASE, margin="hinge")(start, rows, tmp_path / "c", seed=3)
    with pytest.raises(DataError, match="row 0: no 'chosen'"):
        BASE(start, demonstrations(2), tmp_path / "d", seed=3)
    with pytest.raises(DataError, match="row 0: expected 'prompt', 'responses' and 'scores'"):
        replace(BASE, mode="best")(start, PAIRS, tmp_path / "e", seed=3)


def test_too_long_responses_are_an_error_or_counted(start, tmp_path):
    data = [*PAIRS[:3], {"prompt": "p", "chosen": "n", "rejected": "y" * 100}]
    assert BASE(start, data, tmp_path / "a", seed=0).cost.usage.scored > 0  # the rejected one is not used
    chosen = replace(BASE, margin="sigmoid", max_length=60)
    with pytest.raises(DataError, match=r"row 3 has 1\d\d tokens, more than the 60 allowed"):
        chosen(start, data, tmp_path / "b", seed=0)
    made = replace(chosen, too_long="drop")(start, data, tmp_path / "c", seed=0)
    assert json.loads((made.path / "posttrain.json").read_text())["data"]["dropped_too_long"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.5}, "beta = 0.5 has no effect with mode=chosen, margin=off"),
        ({"margin_gap": 0.5}, "margin_gap = 0.5 has no effect"),
        ({"mode": "best", "margin": "hinge"}, "margin = hinge has no effect with mode=best"),
        ({"mode": "best", "threshold": 0.1}, "threshold = 0.1 has no effect with mode=best"),
        ({"mode": "weighted", "beta": 0.0}, "beta = 0.0 must be positive"),
        ({"margin": "sigmoid", "margin_gap": -1.0}, "margin_gap = -1.0 not negative"),
    ],
)
def test_settings_that_are_wrong_or_have_no_effect(changes, message, start, tmp_path):
    with pytest.raises(ConfigError, match=message):
        replace(BASE, **changes)(start, PAIRS, tmp_path, seed=1)


@pytest.mark.parametrize("name", ["chosen", "sigmoid", "best", "filtered", "weighted", "weighted_data_lora"])
def test_held_out_rows_have_the_loss_of_training_on_them_and_decide_nothing_about_it(name, start, tmp_path):
    method, data = CASES[name]
    chosen = replace(method, eval_share=0.3, eval_every=2, sample_every=3, sample_tokens=4)
    made = chosen(start, data, tmp_path / "run", seed=3)
    held = split_by_question(data, 0.3, 3)
    asked, others = ([row for i, row in enumerate(data) if (i in held) == side] for side in (True, False))
    told = json.loads((made.path / "posttrain.json").read_text())
    found = {row["step"]: row["eval_loss"] for row in metrics(tmp_path / "run") if "eval_loss" in row}
    assert found
    assert told["evaluation"]["rows"] == len(asked)
    assert told["evaluation"]["best_loss"] == min(found.values())
    assert (tmp_path / "run" / "samples.jsonl").is_file()
    replace(method, adapter="full", epochs=1, batch_size=100)(made, asked, tmp_path / "there", seed=3)
    assert metrics(tmp_path / "there")[0]["loss"] == pytest.approx(told["evaluation"]["best_loss"], rel=1e-4)

    method(start, others, tmp_path / "plain", seed=3)
    assert [row["loss"] for row in metrics(tmp_path / "plain")] == [row["loss"] for row in metrics(tmp_path / "run")]
    file = tmp_path / "held.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    by_file = replace(method, eval_data=str(file), eval_every=2)(start, others, tmp_path / "file", seed=3)
    assert metrics(tmp_path / "file") == metrics(tmp_path / "run")
    same(weights(by_file), weights(made), rtol=0, atol=0)


def test_killed_between_evaluations_and_resumed_equals_uninterrupted(start, tmp_path):
    method, data = CASES["weighted"]
    chosen = replace(method, eval_share=0.3, eval_every=1)
    expected = chosen(start, data, tmp_path / "whole", seed=3)
    killed_after(lambda: chosen(start, data, tmp_path / "killed", seed=3), 3)
    resumed = chosen(start, data, tmp_path / "killed", seed=3)
    same(weights(resumed), weights(expected), rtol=0, atol=0)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert resumed.cost.usage == expected.cost.usage


def test_a_broken_held_out_row_is_named_by_its_file(start, tmp_path):
    file = tmp_path / "held.jsonl"
    file.write_text(json.dumps({"prompt": "a", "completion": "b", "score": "good"}) + "\n")
    with pytest.raises(DataError, match=r"held.jsonl: row 0: a score must be a finite number"):
        replace(BASE, mode="best", eval_data=str(file))(start, SCORED, tmp_path / "a", seed=3)
    file.write_text(json.dumps({"prompt": "a", "completion": "b", "score": 0}) + "\n")
    with pytest.raises(DataError, match=r"no response of the held-out rows has a score of at least threshold = 0\.5"):
        replace(BASE, mode="filtered", threshold=0.5, eval_data=str(file))(start, SCORED, tmp_path / "b", seed=3)
