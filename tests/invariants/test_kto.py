"""KTO through its trainer: the formula, the baseline over the whole step, one trajectory, resume."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch
from tiny_models import folder, preferences, tokenizer
from training_runs import killed_after, metrics, same, two_processes, weights
from transformers import AutoModelForCausalLM

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.types import Checkpoint, Message
from posttrain.data.masks import encode_completion
from posttrain.data.rows import rows_for
from posttrain.models.load import load
from posttrain.preference._mismatched import partners, steps_of
from posttrain.preference.kto import Kto
from posttrain.stats.flops import forward_flops

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

BASE = Kto(lr=1e-2, epochs=2, batch_size=5, save_every=2, dtype="float32", schedule="constant", warmup=0.0)
ROWS = [
    {
        "prompt": f"{i} plus {i % 4}?",
        "completion": f"It is {i + i % 4}" if i % 3 else "no" * (i % 2 + 1),
        "label": bool(i % 3),
    }
    for i in range(13)
]
PAIRS = preferences(6)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


def logp(model, prompt, response):
    """Return the summed log-probability of the trained tokens, by transformers alone."""
    found = encode_completion(tokenizer(), [Message(role="user", content=prompt)], response)
    with torch.no_grad():
        table = model(torch.tensor([found.ids])).logits[0].double().log_softmax(-1)
    return sum(table[i - 1, found.ids[i]].item() for i, trained in enumerate(found.mask) if trained)


@pytest.mark.parametrize("size", range(13))
def test_partners_are_of_other_prompts_and_each_is_used_once(size):
    draw = random.Random(size)
    for _ in range(50):
        check_partners([draw.randrange(5) for _ in range(size)])


def check_partners(prompts):
    found = partners(prompts)
    assert all(prompts[one] != prompts[other] for one, other in found.items())
    assert len(set(found.values())) == len(found)
    largest = max((prompts.count(prompt) for prompt in prompts), default=0)
    assert len(found) == min(len(prompts), 2 * (len(prompts) - largest))


def test_loss_and_baseline_are_the_formula_worked_out_by_transformers_alone(start, tmp_path):
    method = replace(BASE, batch_size=100, beta=0.3, desirable_weight=1.2, undesirable_weight=0.8)
    one = replace(method, epochs=1)(start, ROWS, tmp_path / "one", seed=3)
    method(start, ROWS, tmp_path / "two", seed=3)
    policy, reference = (AutoModelForCausalLM.from_pretrained(c.path) for c in (one, start))

    def change(i, j):
        return logp(policy, ROWS[i]["prompt"], ROWS[j]["completion"]) - logp(
            reference, ROWS[i]["prompt"], ROWS[j]["completion"]
        )

    order = steps_of(13, batch_size=100, epochs=2, seed=3)[1]
    met = {order[a]: order[b] for a, b in partners([ROWS[i]["prompt"] for i in order]).items()}
    assert len(met) == 13
    baseline = max(0.0, sum(change(i, j) for i, j in met.items()) / 13)
    loss, right = 0.0, 0
    for i, row in enumerate(ROWS):
        h = change(i, i)
        loss += (1.2 if row["label"] else 0.8) / (1 + math.exp((1 if row["label"] else -1) * 0.3 * (h - baseline)))
        right += (h > baseline) == row["label"]
    first, second = metrics(tmp_path / "two")
    labels = [row["label"] for row in ROWS]
    assert first["loss"] == pytest.approx((1.2 * sum(labels) + 0.8 * (13 - sum(labels))) / 2 / 13, rel=1e-5)
    assert first["baseline"] == pytest.approx(0.0, abs=1e-4)
    assert second["loss"] == pytest.approx(loss / 13, rel=1e-4)
    assert second["baseline"] == pytest.approx(baseline, rel=1e-3, abs=1e-4)
    assert second["accuracy"] == pytest.approx(right / 13)
    assert second["desirable"] == pytest.approx(sum(labels) / 13)
    wanted = [change(i, i) for i in range(13) if labels[i]]
    assert second["change_desirable"] == pytest.approx(sum(wanted) / len(wanted), rel=1e-3)
    assert second["reward_desirable"] == pytest.approx(0.3 * sum(wanted) / len(wanted), rel=1e-3)


@pytest.mark.parametrize("rows", [ROWS, PAIRS], ids=["labelled", "pairs"])
def test_neither_micro_batches_nor_processes_change_the_trajectory(rows, start, tmp_path):
    def train(name, tokens):
        return replace(BASE, tokens_per_microbatch=tokens)(start, rows, tmp_path / name, seed=3)

    whole, one_by_one = train("whole", 100_000), train("one", 1)
    assert two_processes(lambda: train("two", 60), tmp_path / "meeting") == [0, 0]
    assert max(line["baseline"] for line in metrics(tmp_path / "whole")) > 0.01  # there is something to get wrong
    for name in ("one", "two"):
        for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / name), strict=True):
            assert a == pytest.approx(b, rel=2e-3, abs=1e-4)
    same(weights(whole), weights(one_by_one), rtol=1e-2, atol=1e-3)
    same(weights(whole), weights(Checkpoint(path=tmp_path / "two" / "checkpoint")), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "changes", [{}, {"adapter": "lora", "rank": 4, "dropout": 0.3}, {"eval_share": 0.3, "eval_every": 2}]
)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(changes, start, tmp_path):
    method = replace(BASE, **changes)
    expected = method(start, ROWS, tmp_path / "whole", seed=3)
    killed_after(lambda: method(start, ROWS, tmp_path / "cut", seed=3), lines=3)
    resumed = method(start, ROWS, tmp_path / "cut", seed=3)
    same(weights(resumed), weights(expected), rtol=0, atol=0)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert (resumed.cost.usage, resumed.cost.flops) == (expected.cost.usage, expected.cost.flops)


def test_held_out_rows_have_a_baseline_of_their_own(start, tmp_path):
    made = replace(BASE, eval_share=0.3, eval_start=True)(start, ROWS, tmp_path, seed=3)
    facts = json.loads((made.path / "posttrain.json").read_text())
    lines = [line for line in metrics(tmp_path) if "eval_baseline" in line]
    assert len(lines) == 2
    assert facts["evaluation"]["rows"] >= 2
    assert facts["evaluation"]["start_loss"] == pytest.approx(0.5, abs=1e-5)  # at the start: σ(0), weights of 1


def test_a_pair_gives_a_desirable_and_an_undesirable_response(start, tmp_path):
    singles = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in PAIRS
        for side in ("chosen", "rejected")
    ]
    of_pairs, of_singles = (
        BASE(start, rows, tmp_path / name, seed=3) for name, rows in (("pairs", PAIRS), ("singles", singles))
    )
    same(weights(of_pairs), weights(of_singles), rtol=0, atol=0)
    facts = json.loads((of_pairs.path / "posttrain.json").read_text())["data"]
    assert (facts["responses"], facts["desirable"]) == (12, 6)


def test_it_learns(start, tmp_path):
    replace(BASE, epochs=8)(start, ROWS, tmp_path, seed=3)
    first, last = metrics(tmp_path)[0], metrics(tmp_path)[-1]
    assert last["loss"] < first["loss"]
    assert last["reward_desirable"] > last["reward_undesirable"]


def test_cost_is_one_reference_and_four_passes_a_token(start, tmp_path):
    rows = [row for row in ROWS if row["label"]][:4]
    made = replace(BASE, epochs=1, batch_size=4)(start, rows, tmp_path, seed=3)
    loaded = load(start.path)
    encoded = [
        encode_completion(loaded.tokenizer, [Message(role="user", content=r["prompt"])], r["completion"]) for r in rows
    ]
    passes = 4 * sum(forward_flops(loaded.shape, start=0, tokens=len(e.ids), logits=e.trained) for e in encoded)
    reference = json.loads((tmp_path / "reference" / "0.jsonl").read_text().splitlines()[0])["cost"]["flops"]
    assert made.cost.flops >= passes + reference  # the reference may be in several lines
    assert made.cost.flops < passes * 1.6


@pytest.mark.parametrize(("rows", "told"), [
    ([{"prompt": "a", "completion": "b"}], "row 0: expected 'prompt', 'completion' and a 'label'"),
    ([{"prompt": "a", "completion": "b", "label": 1}], "'label' that is true or false"),
    ([{"prompt": "a", "completion": "y" * 300, "label": True}], "row 0 has .* tokens, more than"),
])  # fmt: skip
def test_rows_that_cannot_be_read_are_named(rows, told, start, tmp_path):
    with pytest.raises(DataError, match=told):
        BASE(start, rows, tmp_path, seed=0)


@pytest.mark.parametrize(("change", "told"), [
    ({"batch_size": 1}, "batch_size = 1"), ({"beta": 0.0}, "beta = 0.0"), ({"desirable_weight": 0.0}, "desirable_weight"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(change, told, start, tmp_path):
    with pytest.raises(ConfigError, match=told):
        replace(BASE, **change)(start, ROWS, tmp_path, seed=0)


def test_labels_stay_with_rows_of_any_shape():
    rows = rows_for(
        BASE, [{"question": "q", "answer": "a", "label": False}, {"prompt": "p", "chosen": "a", "rejected": "b"}], "x"
    )
    assert rows[0] == {"prompt": [{"role": "user", "content": "q"}], "completion": "a", "label": False}
    assert rows[1]["chosen"] == "a"


def test_a_step_of_one_prompt_alone_has_no_baseline(start, tmp_path):
    rows = [{**row, "prompt": "same?"} for row in ROWS[:6]]
    BASE(start, rows, tmp_path, seed=3)
    assert all(line["baseline"] == 0 for line in metrics(tmp_path))
