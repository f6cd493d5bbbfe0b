"""Scores in the ledger, pairs from them, a reward model on these, and its checkpoint as a later stage's verifier."""

import json
from pathlib import Path

import pytest
import tiny_models
import torch
import yaml

from posttrain.cli.reporting import report_run
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.types import Example, Message, Prompt, Sampled
from posttrain.ledger.store import load_ledger
from posttrain.pipeline.recipe import EvalStage, load_recipe
from posttrain.pipeline.run import run_recipe
from posttrain.preference.scored_pairs import ScoredPairs

torch.set_num_threads(1)
TASK = {"name": "digits", "splits": {"train": "train.jsonl", "test": "test.jsonl"}, "extract": "number", "grade": "number"}
RULE = '(rule:parses=false,steps=false,regex="[a-m]")'
STAGES = [
    {"name": "zero-shot", "lever": "prompting", "eval": {"max_tokens": 8}},
    {"name": "samples", "eval": {"split": "train", "strategy": f"best_of_n:n=6,verifier={RULE}", "max_tokens": 24}},
    {"name": "pairs", "data": {"maker": "scored_pairs:per_question=2", "from": "samples"}},
    {"name": "reward", "train": {"method": "reward_model:lr=1e-3,batch_size=4,eval_share=0.3", "data": "pairs"}},
    {
        "name": "best",
        "lever": "test-time",
        "eval": {"strategy": "best_of_n:n=3,verifier=(reward_model:model=stage:reward)", "max_tokens": 8},
    },
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("task.yaml").write_text(yaml.safe_dump(TASK))
    for name, n in (("train", 12), ("test", 3)):
        rows = [{"question": f"{name} {i}?", "answer": str(i % 3)} for i in range(n)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_models.ending_folder(tmp_path / "model")
    return tmp_path


def recipe(stages):
    values = {"name": "rewards", "model": "model", "task": "task.yaml", "dtype": "float32", "stages": stages}
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    return load_recipe(Path("recipe.yaml"))


def run(stages):
    return run_recipe(recipe(stages), Path("recipe.yaml"), Path("out"), report_run)


def keys():
    """The stages' keys in order; what was set aside has another name."""
    folders = [Path("out") / f"0{i}-{stage['name']}" for i, stage in enumerate(STAGES, start=1)]
    return [json.loads((path / "DONE.json").read_text())["key"] for path in folders]


def test_a_reward_model_is_trained_on_scored_samples_and_chooses_in_a_later_stage(folder):
    report = run(STAGES)
    rows = load_ledger(Path("out/02-samples")).rows
    values = {candidate["value"] for row in rows for candidate in row.candidates}
    assert values == {0.0, 1.0}
    pairs = [json.loads(line) for line in Path("out/03-pairs/rows.jsonl").read_text().splitlines()]
    assert pairs
    assert all(set("abcdefghijklm") & set(p["chosen"]) and not set("abcdefghijklm") & set(p["rejected"]) for p in pairs)
    assert {p["margin"] for p in pairs} == {1.0}
    told = json.loads(Path("out/04-reward/checkpoint/posttrain.json").read_text())
    assert 0 <= told["held_out"]["accuracy"] <= 1
    best = load_ledger(Path("out/05-best")).rows
    assert all("stage:reward" in row.strategy and str(folder) not in row.strategy for row in best)
    assert all(row.cost["verifier"]["scored"] > 0 for row in best)
    assert all(len(row.candidates) == 3 and None not in [c["value"] for c in row.candidates] for row in best)
    # the reward model is part of what the rung cost before its first query
    rung = next(rung for rung in report["rungs"] if rung["name"] == "best")
    assert rung["fixed"]["flops"] > 0
    done = keys()
    changed = [dict(stage) for stage in STAGES]
    changed[3] = {"name": "reward", "train": {"method": "reward_model:lr=2e-3,batch_size=4,eval_share=0.3", "data": "pairs"}}
    run(changed)
    again = keys()
    assert done[:3] == again[:3]
    assert done[3] != again[3]
    assert done[4] != again[4]


def test_the_stage_a_verifier_names_must_be_an_earlier_training_stage(folder):
    with pytest.raises(ConfigError, match="reward"):
        recipe([STAGES[0], STAGES[4]])
    wrong = {"name": "best", "eval": {"strategy": "best_of_n:verifier=(reward_model:model=stage:zero-shot)"}}
    with pytest.raises(ConfigError, match="stage:zero-shot in its strategy is not a training stage"):
        recipe([STAGES[0], wrong])
    both = "best_of_n:verifier=(reward_model:model=stage:a-1)"
    assert EvalStage(strategy=both).scoring == ("a-1",)
    assert EvalStage().scoring == ()


def prompter(task, example, *, seed):
    return Prompt(messages=(Message(role="user", content=example.question),))


def sampled(name, texts, values, finishes=None):
    return Sampled(
        example=Example(id=name, question=f"{name}?"), texts=tuple(texts), values=tuple(values),
        scores=tuple(float(text.isupper()) for text in texts), answers=tuple(texts),
        finishes=tuple(finishes or ["stop"] * len(texts)),
    )  # fmt: skip


def test_best_against_worst_by_margin():
    items = [
        sampled("q", "abcde", [0.1, 3.0, None, -1.0, 2.0]),
        sampled("r", "ab", [1.0, 1.2]),
        sampled("s", "aab", [1.0, 1.0, 9.0], ["stop", "stop", "length"]),
    ]
    made = ScoredPairs(margin=0.5, per_question=3)(None, prompter, items, seed=0)
    found = [(r["id"], r["chosen"], r["rejected"], r["margin"]) for r in made.rows]
    assert found == [("q", "b", "d", 4.0), ("q", "e", "a", 1.9)]
    assert made.counts == {
        "questions": 3, "responses": 10, "cut": 1, "unscored": 1, "repeated": 1, "too_close": 2, "rows": 2
    }  # fmt: skip
    by_grade = ScoredPairs(by="grade")(None, prompter, [sampled("q", "aB", [])], seed=0)
    assert (by_grade.rows[0]["chosen"], by_grade.rows[0]["rejected"]) == ("B", "a")


def test_nothing_to_pair_says_why():
    with pytest.raises(DataError, match=r"has a score: sample with strategy best_of_n:verifier=…"):
        ScoredPairs()(None, prompter, [sampled("q", "ab", [])], seed=0)
    with pytest.raises(DataError, match="of 1 questions 1 have no two whole responses whose scores differ by 2"):
        ScoredPairs(margin=2)(None, prompter, [sampled("q", "ab", [1.0, 2.0])], seed=0)
