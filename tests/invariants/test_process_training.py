"""Process reward models through the trainer: formula, one trajectory, resume, what is saved and reported."""

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_models import folder, llama, tokenizer
from training_runs import killed_after, metrics, same, two_processes, weights
from transformers import AutoModelForTokenClassification, GPT2Config

from posttrain.core.errors import DataError
from posttrain.core.types import Checkpoint, Example
from posttrain.preference.process_reward import ProcessReward
from posttrain.stats.first_wrong import first_below, step_report
from posttrain.training.heldout import split_by_question
from posttrain.verifiers import build_verifier

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

BASE = ProcessReward(lr=3e-3, epochs=2, batch_size=4, save_every=2, dtype="float32")


def row(i):
    """A sum in steps; of every second one a step is wrong, and it says so by its sign."""
    wrong = None if i % 2 else i // 2 % 3
    steps = [f"{i} and {k} make {i + k}" + ("!" if k == wrong else ".") for k in range(3)]
    return {"question": f"{i} plus?", "steps": steps, "mistake_index": wrong}


ROWS = [row(i) for i in range(14)]
SOFT = [{"prompt": r["question"], "completions": r["steps"], "labels": [1.0, None, 0.25]} for r in ROWS]
CASES = {
    "first_wrong": (BASE, ROWS),
    "after": (replace(BASE, after="wrong", chat=False, tag=" ки"), ROWS),
    "soft_lora_dropout": (replace(BASE, adapter="lora", rank=4, dropout=0.3), SOFT),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


def verified(path, question, steps, **more):
    task = SimpleNamespace(name="t", instruction="", extract=lambda text: text, max_tokens=16)
    spec = {"name": "process_reward", "model": str(path), "style": "token", "dtype": "float32", **more}
    found = asyncio.run(build_verifier(spec, task=task)(Example(id="1", question=question), ["\n".join(steps)]))
    return list(found[0].steps)


def by_transformers(model, question, steps):
    """Probabilities of the steps from the model's own forward of one row, laid out here by hand."""
    words = tokenizer()
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    ids, read = words(prompt).input_ids, []
    for step in steps:
        ids += words(step + "\n").input_ids
        read.append(len(ids) - 1)
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, read].double()


@pytest.mark.parametrize("name", CASES)
def test_micro_batch_size_does_not_change_the_trajectory(name, start, tmp_path):
    method, data = CASES[name]
    method = replace(method, dropout=0.0)
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
    told = [json.loads((c.path / "posttrain.json").read_text())["held_out"] for c in (resumed, expected)]
    assert told[0] == told[1]


def test_two_processes_follow_the_trajectory_of_one_and_report_the_same(start, tmp_path):
    method, data = CASES["first_wrong"]
    small = replace(method, tokens_per_microbatch=80, eval_share=0.3)
    expected = small(start, data, tmp_path / "one", seed=3)
    assert two_processes(lambda: small(start, data, tmp_path / "two", seed=3), tmp_path / "meet") == [0, 0]
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=5e-3, abs=1e-4)
    two = Checkpoint(path=tmp_path / "two" / "checkpoint")
    same(weights(two), weights(expected), rtol=2e-2, atol=2e-3)
    told = [json.loads((c.path / "posttrain.json").read_text())["held_out"] for c in (two, expected)]
    assert told[0]["step_accuracy"] == told[1]["step_accuracy"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_loss_and_saved_folder_by_transformers_alone(architecture, tmp_path):
    sizes = {"vocab_size": 258, "pad_token_id": 257, "eos_token_id": 257, "bos_token_id": None}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    config = llama() if architecture == "llama" else GPT2Config(**small, **still, **sizes)
    begin = Checkpoint(path=folder(tmp_path / "model", config))
    begun = replace(BASE, lr=1e-30, epochs=1)(begin, ROWS, tmp_path / "begun", seed=3)
    model = AutoModelForTokenClassification.from_pretrained(begun.path, dtype=torch.float32).eval()
    assert model.config.id2label == {0: "wrong", 1: "right"}
    replace(BASE, epochs=1, batch_size=100)(begin, ROWS, tmp_path / "run", seed=3)
    losses, agreed = [], []
    for r in ROWS:
        logps = by_transformers(model, r["question"], r["steps"]).log_softmax(-1)
        last = 3 if r["mistake_index"] is None else r["mistake_index"]
        for k in range(min(3, last + 1)):
            losses.append(-float(logps[k, int(k < last)]))
            agreed.append((logps[k, 1] >= logps[k, 0]) == (k < last))
    first = metrics(tmp_path / "run")[0]
    assert first["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert first["steps"] == len(losses)
    assert first["step_accuracy"] == pytest.approx(float(sum(agreed)) / len(agreed))
    chances = by_transformers(model, "2 plus?", ["one", "and two"]).softmax(-1)[:, 1].tolist()
    assert verified(begun.path, "2 plus?", ["one", "and two"]) == pytest.approx(chances, abs=1e-4)


def test_an_adapter_with_its_head_is_read_by_the_verifier(start, tmp_path):
    made = replace(BASE, adapter="lora", rank=4, lr=2e-2, epochs=8)(start, ROWS, tmp_path / "run", seed=3)
    rows = metrics(tmp_path / "run")
    assert rows[-1]["loss"] < rows[0]["loss"]
    found = verified(made.path, ROWS[0]["question"], ROWS[0]["steps"], label="right")
    assert len(found) == 3
    assert found == pytest.approx(verified(made.path, ROWS[0]["question"], ROWS[0]["steps"]))


def test_held_out_solutions_are_reported_and_wrong_steps_are_found(start, tmp_path):
    rows = [row(i) for i in range(60)]
    made = replace(BASE, epochs=12, batch_size=8, lr=1e-2, eval_share=0.25)(start, rows, tmp_path / "run", seed=3)
    told = json.loads((made.path / "posttrain.json").read_text())["held_out"]
    held = [rows[i] for i in sorted(split_by_question(rows, 0.25, 3))]
    assert told["solutions"] == len(held)
    hits = 0
    for r in held:
        place = first_below(verified(made.path, r["question"], r["steps"]))
        hits += place is not None and place == r["mistake_index"]
    there = sum(r["mistake_index"] is not None for r in held)
    assert told["first_wrong"]["recall"] == pytest.approx(hits / there)
    assert told["first_wrong"]["f1"] > told["majority_f1"]
    assert told["step_accuracy"] > told["majority_step_accuracy"]


def test_reports_by_hand():
    chances = [[0.9, 0.2, 0.9], [0.8, 0.7], [0.1, 0.1], [0.9, 0.4]]
    labels = [[1.0, 0.0, None], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    told = step_report(chances, labels)
    assert (told["solutions"], told["with_a_wrong_step"], told["steps"]) == (4, 2, 8)
    assert told["step_accuracy"] == 6 / 8
    assert told["majority_step_accuracy"] == 6 / 8
    assert told["first_wrong"] == {"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5}
    assert told["majority_f1"] == pytest.approx(2 * 2 / (4 + 2))  # always step 1
    assert told["harmonic"] == pytest.approx(1 / 2)
    assert step_report([[0.9]], [[1.0]])["harmonic"] is None
    assert "within" not in told
    # Weakest steps 0.2, 0.7, 0.1, 0.4; flawless: the second and fourth. Question a: 0.2 < 0.7 (right). b: 0.1 < 0.4 (right).
    assert step_report(chances, labels, ["a", "a", "b", "b"])["within"] == {"pairs": 2, "ranked_right": 1.0}
    chances[2] = [0.9, 0.6]  # now the flawed solution of b has a weakest step above 0.4
    assert step_report(chances, labels, ["a", "a", "b", "b"])["within"] == {"pairs": 2, "ranked_right": 0.5}
    chances[2] = [0.4, 0.6]
    assert step_report(chances, labels, ["a", "a", "b", "b"])["within"] == {"pairs": 2, "ranked_right": 0.75}
    assert step_report(chances, labels, ["a", "b", "b", "c"])["within"] == {"pairs": 1, "ranked_right": 1.0}
    assert step_report(chances, labels, ["a", "b", "c", "d"])["within"] is None
    with pytest.raises(ValueError, match="no step is judged"):
        step_report([[0.9]], [[None]])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"question": "a", "steps": [], "mistake_index": 0}, "the steps must be a list of texts"),
        ({"question": "a", "steps": ["b"], "mistake_index": 1}, "'mistake_index': must be from 0 to 0, or null"),
        ({"question": "a", "steps": ["b"], "labels": [True, False]}, "'labels': must be a list of 1"),
        ({"question": "a", "steps": ["b"], "labels": [2]}, "numbers from 0 to 1"),
        ({"question": "a", "steps": ["b"], "labels": [None]}, "no step is judged; remove the row"),
        ({"steps": ["b"], "labels": [1]}, "no 'prompt' or 'question'"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "is a preference, but 'steps'"),
        ({"question": "a", "steps": ["<|im_end|>"], "labels": [1]}, "contains the text of the special token"),
    ],
)
def test_broken_rows_are_named(broken, message, start, tmp_path):
    with pytest.raises(DataError, match=rf"row 1.*{message}"):
        BASE(start, [ROWS[0], broken], tmp_path, seed=3)
