"""Verifiers in an evaluation: their work is charged to their own role, and what they could not read is in the trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers

from posttrain.engines.purse import Allowance
from posttrain.engines.scripted import ScriptedEngine
from posttrain.ledger.store import load_ledger
from posttrain.pipeline.evaluate import Evaluation, evaluate
from posttrain.pipeline.points import Bench, Models
from posttrain.pipeline.recipe import Recipe
from posttrain.pipeline.stages import Workshop
from posttrain.tasks import load_task

TASK = load_task("reasoning_gym/chain_sum:max_terms=2,max_digits=1,test=6")


def rows(folder: Path, strategy: str, engine: Any, **more: Any) -> Any:
    evaluation = Evaluation(
        stage="e",
        task=TASK,
        examples=TASK.examples("test"),
        prompt="zero_shot",
        strategy=strategy,
        model="m",
        seed=0,
        **more,
    )
    evaluate(evaluation, engine, folder, title="e")
    return load_ledger(folder).rows


def test_a_reward_model_is_charged_as_verifier_and_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.models import scorers

    loads: list[Any] = []
    real = scorers.load_classifier
    monkeypatch.setattr(scorers, "load_classifier", lambda *a, **k: loads.append(a) or real(*a, **k))
    config = tiny_models.llama(max_position_embeddings=1024)
    config.num_labels = 1
    torch.manual_seed(0)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "rm")
    tiny_models.tokenizer().save_pretrained(tmp_path / "rm")
    policy = ScriptedEngine(lambda asked, sample, seed: f"Answer: {sample}")
    found = rows(tmp_path / "e", f"best_of_n:n=3,verifier=(reward_model:model={tmp_path / 'rm'})", policy)
    assert len(loads) == 1
    assert all(row.cost["policy"]["calls"] == 1 and row.cost["verifier"]["calls"] == 3 for row in found)
    assert all(row.cost["verifier"]["scored"] > 300 and row.cost["verifier"]["flops"] > 0 for row in found)
    assert all("oracle" not in row.trace for row in found)


def test_a_budget_counts_what_a_reward_model_reads_and_no_more(tmp_path: Path) -> None:
    config = tiny_models.llama(max_position_embeddings=1024)
    config.num_labels = 1
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "rm")
    tiny_models.tokenizer().save_pretrained(tmp_path / "rm")
    policy = ScriptedEngine(lambda asked, sample, seed: f"Answer: {sample}")
    strategy = f"best_of_n:n=3,verifier=(reward_model:model={tmp_path / 'rm'})"

    def spent(row: Any) -> int:
        return sum(cost[name] for cost in row.cost.values() for name in ("prompt", "generated", "scored"))

    free = rows(tmp_path / "free", strategy, policy, max_tokens=8)
    enough = Allowance(example=max(map(spent, free)))
    exact = rows(tmp_path / "exact", strategy, policy, max_tokens=8, allowance=enough)
    assert [row.cost for row in exact] == [row.cost for row in free]
    assert all("budget" not in row.trace for row in exact if spent(row) < enough.example)
    less = rows(tmp_path / "less", strategy, policy, max_tokens=8, allowance=Allowance(example=min(map(spent, free)) - 1))
    assert all(row.trace["budget"] == "spent" and row.cost.get("verifier", {"calls": 0})["calls"] < 3 for row in less)


def test_a_judge_is_charged_as_judge_and_what_it_could_not_say_is_counted(tmp_path: Path) -> None:
    def reply(asked: str, sample: int, seed: int) -> str:
        if asked.startswith("Rate"):
            return "Rating: 9" if "Answer: 1" in asked else "Hm."
        return f"Answer: {sample}"

    found = rows(tmp_path / "own", "best_of_n:n=3,verifier=judge", ScriptedEngine(reply))
    assert {row.answer for row in found} == {"1"}
    assert all(row.trace["verifiers"] == {"judge": {"texts": 3, "unparsed": 2, "rated": 1}} for row in found)
    assert all(row.trace["unscored"] == 2 and row.cost["judge"]["calls"] == 3 for row in found)
    spec = "(judge:model=(scripted:replies=5))"  # a model of its own, opened by its reference
    other = rows(tmp_path / "other", f"best_of_n:n=2,verifier={spec}", ScriptedEngine(reply))
    assert all(row.cost["judge"]["calls"] == 2 and row.trace["unscored"] == 2 for row in other)


def test_an_oracle_says_so_and_counts_timeouts(tmp_path: Path) -> None:
    found = rows(tmp_path / "e", "best_of_n:n=2,verifier=math", ScriptedEngine(lambda *_: "Answer: 5"))
    assert all(row.trace["oracle"] is True for row in found)
    assert all(row.trace["verifiers"]["math"] == {"texts": 2, "unparsed": 0, "timeouts": 0} for row in found)


def test_other_weights_of_a_verifier_are_another_stage(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "ranked",
            "model": "scripted",
            "task": "reasoning_gym/chain_sum:max_terms=2,max_digits=1",
            "stages": [
                {"name": "ranked", "eval": {"strategy": f"best_of_n:n=3,verifier=(reward_model:model={tmp_path / 'rm'})"}}
            ],
        }
    )

    def keys(seed: int) -> list[str]:
        config = tiny_models.llama(max_position_embeddings=1024)
        config.num_labels = 1
        torch.manual_seed(seed)
        transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "rm")
        tiny_models.tokenizer().save_pretrained(tmp_path / "rm")
        bench = Bench(tmp_path, TASK, Models(), strategy=recipe.stages[0].eval.strategy)  # type: ignore[union-attr]
        return [Workshop(recipe, tmp_path).key(recipe.stages[0]), bench.key("scripted", "zero_shot", [])]

    first = keys(seed=0)
    assert keys(seed=0) == first
    assert all(a != b for a, b in zip(keys(seed=1), first, strict=True))
