"""Every sampling strategy through a whole evaluation: rows that can be written, metered cost, statistics over the rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.engines.scripted import ScriptedEngine
from posttrain.ledger import Row, load_ledger
from posttrain.pipeline.evaluate import Evaluation, evaluate
from posttrain.pipeline.opening import open_engine
from posttrain.stats.allocation import fit, pool_of
from posttrain.stats.confidence import calibration
from posttrain.stats.gain import flips, gain_by_agreement
from posttrain.tasks.registry import load_task

TASK = load_task("reasoning_gym/chain_sum", data=None, seed=0, sizes={"test": 6})


def rows(strategy: str, folder: Path, prompt: str = "few_shot_cot:k=3") -> tuple[Row, ...]:
    engine = open_engine("scripted:replies=3").engine
    assert isinstance(engine, ScriptedEngine)
    asked = Evaluation(
        stage="s", task=TASK, examples=TASK.examples("test"), prompt=prompt, strategy=strategy, model="m", seed=1
    )
    evaluate(asked, engine, folder, title="t")
    return load_ledger(folder).rows


@pytest.mark.parametrize(
    "strategy",
    [
        "self_consistency:n=5,vote=verifier,verifier=rule",
        "self_consistency:n=5,vote=likelihood",
        "self_consistency:n=5,diversity=order,variants=3",
        "self_consistency:n=5,diversity=wording",
        "best_of_n:n=3,verifier=rule,aggregate=value,transform=sigmoid,weighted=true",
        "adaptive_consistency:n=9,wave=2",
        "confidence_sampling:n=9,warmup=3,wave=3,window=2",
        "confidence_sampling:n=5,mode=offline,measure=tail",
        "self_refine:rounds=2",
        "self_refine:rounds=1,verifier=exact",
        "verified_search:n=4,verifier=rule",
        "budget_forcing:max_tokens=20,end=null",
    ],
)
@pytest.mark.parametrize("prompt", ["few_shot_cot:k=3", "zero_shot_cot"])
def test_a_row_holds_what_happened(strategy: str, prompt: str, tmp_path: Path) -> None:
    if "order" in strategy and prompt == "zero_shot_cot":
        pytest.skip("no shots to reorder")
    for row in rows(strategy, tmp_path, prompt):
        assert row.error is None
        assert row.candidates
        assert row.cost["policy"]["generated"] > 0
        assert row.trace.get("oracle", False) is ("exact" in strategy)


def test_an_allocation_is_fitted_and_used(tmp_path: Path) -> None:
    pools = [pool_of(row, TASK.key) for row in rows("sample:n=8", tmp_path / "pool")]
    assert pools[0].tokens[0] == pytest.approx(6.0)  # five words and the end of turn
    table = fit(pools, budget=1e6, pilot=2, sizes=(2, 4, 8), bins=3)
    path = tmp_path / "table.json"
    path.write_text(table.to_json(), encoding="utf-8")
    used = rows(f"compute_optimal:table={path},pilot=2", tmp_path / "used")
    assert {row.trace["n"] for row in used} <= {entry.n for entry in table.rows}
    for row in used:
        n = row.trace["samples"]
        assert row.cost["policy"]["generated"] == 6 * n
        assert row.cost["policy"]["calls"] == (1 if n == 2 else 2)  # the pilot is not drawn again


def test_statistics_read_the_ledger_s_rows(tmp_path: Path) -> None:
    voted = rows("self_consistency:n=6", tmp_path / "a")
    bins = gain_by_agreement(voted, bins=2)
    assert sum(b.n for b in bins) == 6
    assert sum(b.vote * b.n for b in bins) == pytest.approx(sum(row.score or 0 for row in voted))
    refined = flips(rows("self_refine:rounds=2", tmp_path / "b"))
    assert refined.final - refined.first == pytest.approx(refined.wrong_to_right - refined.right_to_wrong)
    traced = rows("confidence_sampling:n=6,mode=offline,keep=1", tmp_path / "c")
    found = calibration([(row.trace["confidence"], [c["score"] for c in row.candidates]) for row in traced])
    assert found.n == 36
