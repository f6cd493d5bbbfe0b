"""What training kept: forgetting, variety, several tasks in one report, held-out losses; on every page."""

import json
import math
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from posttrain.core.errors import ConfigError, DataError
from posttrain.ledger import Row
from posttrain.pipeline.recipe import Recipe, load_recipe
from posttrain.report.analysis import analyse
from posttrain.report.build import Rung, build_report, print_report
from posttrain.stats.paired import compare, holm, mcnemar, pooled, tango

NASTY = "<i>a|b</i>"


def rung(name: str, which: Sequence[int], of: str = "toy", n: int = 20, **changes: Any) -> Rung:
    values: dict[str, Any] = {
        "stage": "s",
        "model": "m",
        "prompt": "p",
        "strategy": "greedy",
        "seed": 0,
        "answer": "1",
        "unparsed": False,
        "cost": {"policy": {"calls": 1, "prompt": 10, "generated": 0, "scored": 0, "flops": 10.0}},
        "trace": changes.pop("trace", {}),
    }
    rows = [Row(task=of, example=f"{of}{i}", score=float(i in which), **values) for i in range(n)]
    return Rung(**{"name": name, "label": name, "lever": "retention", "rows": rows, "model": "m"} | changes)


def report(*rungs: Rung, **more: Any) -> dict[str, Any]:
    return analyse("T", rungs, meta={}, notes=(), **more)


KEPT = (
    rung("a0", range(10), "a", model="start"),
    rung("a1", range(1), "a", model="sft"),
    rung("b0", range(6), "b", model="start"),
    rung("b1", range(1, 8), "b", model="sft"),
)


def test_forgetting_is_the_mean_of_before_minus_after() -> None:
    found = report(*KEPT)["retention"]
    (a,), (b,) = (task["after"] for task in found["tasks"])
    assert (a["difference"]["gained"], a["difference"]["lost"]) == (0, 9)
    assert (b["difference"]["gained"], b["difference"]["lost"]) == (2, 1)
    assert tuple(a["difference"]["ci95"]) == tango(0, 9, 20)
    assert [a["difference"]["p_holm"], b["difference"]["p_holm"]] == holm([mcnemar(0, 9), mcnemar(2, 1)])
    (forgot,) = found["forgetting"]
    assert forgot["forgetting"] == pytest.approx((9 / 20 - 1 / 20) / 2)
    spread = math.sqrt((9 - 81 / 20) / 400 + (3 - 1 / 20) / 400) / 2
    assert forgot["ci95"] == pytest.approx([0.2 - 1.959964 * spread, 0.2 + 1.959964 * spread], abs=1e-6)
    assert forgot["most"] == {"task": "a", "forgetting": pytest.approx(0.45)}
    assert found["headline"].startswith("sft forgot 20.0 points [")
    assert found["headline"].endswith("in the mean of 2 general tasks, most on a (−45.0).")


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (range(18), "sft gained 40.0 points [18.5, 61.5] in the mean of 1 general task."),
        (range(1, 12), "sft gained 5.0 points [−"),
        (range(1, 11), "sft forgot 0.0 points [−"),
    ],
)
def test_gains_and_doubt_are_said(after: range, words: str) -> None:
    told = report(rung("a0", range(10), model="start"), rung("a1", after, model="sft"))["retention"]["headline"]
    assert words in told


def test_pooled_is_the_mean_and_never_certain() -> None:
    same = compare([1.0] * 10, [1.0] * 10)
    mean, (low, high) = pooled([same, same])
    assert mean == 0
    assert low == -high < 0
    with pytest.raises(ValueError, match="no differences"):
        pooled([])


def test_a_task_answered_once_is_an_error_and_other_examples_too() -> None:
    with pytest.raises(ConfigError, match="task 'toy' is answered once, by 'a0'"):
        report(rung("a0", range(3)))
    with pytest.raises(DataError, match="answer different"):
        report(rung("a0", range(3)), rung("a1", range(3), n=21))


def test_variety_of_sampled_replies() -> None:
    texts = [["red green blue", "red green blue"], ["one two three four", "five six seven"]]
    found = report(rung("d", range(2), n=2, lever="diversity", texts=texts))["retention"]["diversity"][0]
    assert (found["replies"], found["words"]) == (4, 13 / 4)
    assert found["distinct_1"] == 10 / 13
    assert found["distinct_2"] == 7 / 9
    assert found["distinct_2_within"] == pytest.approx((0.5 + 1.0) / 2)
    assert found["type_token_ratio"] is None


def test_tasks_are_told_apart_and_p_is_adjusted_over_all() -> None:
    ladder = [
        rung("x0", range(4), "x", lever="prompting"),
        rung("y0", range(4), "y", lever="prompting"),
        rung("x1", range(16), "x", lever="fine-tuning"),
        rung("y1", range(5), "y", lever="fine-tuning", task="why"),
    ]
    with pytest.raises(ConfigError, match="different tasks: x, y"):
        report(*ladder[:3], rung("y1", range(5), "x", lever="fine-tuning", against="y0"))
    ladder[1] = rung("y0", range(4), "y", lever="prompting", task="why")
    found = report(*ladder, *KEPT)
    assert (found["task"], [table["task"] for table in found["others"]]) == ("x", ["why"])
    assert found["comparisons"] == 4
    p = [table["rungs"][1]["difference"] for table in (found, *found["others"])]
    p += [task["after"][0]["difference"] for task in found["retention"]["tasks"]]
    assert [each["p_holm"] for each in p] == holm([each["p"] for each in p])
    assert found["headline"] == "2 tasks. Measurable gains: x (x1 +60.0)."
    assert "differences" not in found["retention"]
    assert found["totals"]["tokens"] == 4 * 200
    json.dumps(found, allow_nan=False)


def test_every_page_shows_all_parts(tmp_path: Path) -> None:
    sample = {"asked": "Hello?", "replies": [{"step": 0, "text": "before it"}, {"step": 9, "text": "after it"}]}
    trained = {"name": "sft", "label": NASTY, "sentence": "loss fell.", "samples": [sample]}
    measures = {"measures": {"loose": [1, 2]}}
    rungs = [
        rung("x0", range(4), "x", lever="prompting", trace=measures),
        rung("x1", range(16), "x", lever="fine-tuning", label=NASTY),
        rung("y0", range(4), "y", lever="prompting"),
        rung("y1", range(5), "y", lever="fine-tuning"),
        *KEPT,
        rung("d0", range(2), n=2, lever="diversity", texts=[["so it is", "or not"]] * 2, label="start"),
    ]
    found = build_report("T", rungs, tmp_path, meta={}, notes=(), training=[trained])
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {"ladder", "gains", "retention"}
    console = Console(width=140, record=True, file=(tmp_path / "shown").open("w"))
    with console.file:
        print_report(found, console)
        shown = console.export_text()
    html, markdown = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for page in (shown, html, markdown):
        text = " ".join(unescape(page).split())
        for words in ("loose 50.0%", found["retention"]["headline"], "loss fell.", "before it", "after it", "distinct-2",
                      found["headline"]):  # fmt: skip
            assert words in text, words
    assert NASTY not in html
    narrow = Console(width=80, record=True, file=(tmp_path / "narrow").open("w"))
    with narrow.file:
        print_report(found, narrow)
        assert max(map(len, narrow.export_text().splitlines())) <= 80


def test_a_report_of_training_alone(tmp_path: Path) -> None:
    trained = {
        "name": "sft",
        "label": "SFT",
        "method": "sft",
        "held_out": None,
        "losses": [],
        "sentence": "fell.",
        "samples": [],
    }
    found = build_report("T", [], tmp_path, meta={}, notes=(), training=[trained])
    assert (found["rungs"], found["totals"], found["retention"]) == ([], None, None)
    with (tmp_path / "shown").open("w") as file:
        print_report(found, Console(width=100, file=file))
    assert "SFT" in (tmp_path / "report.html").read_text()


STAGES = [{"name": "rows", "data": {"file": "x.jsonl"}}, {"name": "one", "train": {"method": "sft", "data": "rows"}},
          {"name": "two", "train": {"method": "sft", "data": "rows"}}]  # fmt: skip


def recipe(path: Path, **block: Any) -> Recipe:
    tasks = {"a": {"task": "svamp"}, "b": {"task": "mmlu"}}
    values = {"name": "r", "model": "m", "tasks": tasks, "stages": STAGES, "retention": block}
    path.write_text(yaml.safe_dump(values))
    return load_recipe(path)


def test_the_block_becomes_stages_once(tmp_path: Path) -> None:
    made = recipe(tmp_path / "r.yaml", tasks=["a", "b"], models=["two"], draw=7, diverse="b", max_tokens=9)
    names = [stage.name for stage in made.stages[3:]]
    assert names == ["retention-a-start", "retention-b-start", "diversity-start",
                     "retention-a-two", "retention-b-two", "diversity-two"]  # fmt: skip
    last = made.stages[-1]
    assert last.eval is not None
    assert (last.model, last.lever, last.eval.task, last.eval.draw) == ("two", "diversity", "b", 32)
    assert last.eval.strategy == "sample:n=4,temperature=1"
    resolved = Recipe.model_validate(made.model_dump(mode="json", by_alias=True, exclude_none=True))
    assert [stage.name for stage in resolved.stages] == [stage.name for stage in made.stages]
    every = recipe(tmp_path / "r.yaml", tasks=["a"], samples=0)
    assert [stage.name for stage in every.stages[3:]] == [f"retention-a-{name}" for name in ("start", "one", "two")]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"tasks": ["c"]}, "'c' is not one of 'tasks'"),
        ({"tasks": []}, "tasks"),
        ({"tasks": ["a"], "models": ["three"]}, "needs 'three', which is no earlier stage"),
        ({"tasks": ["a"], "samples": 1}, "'samples' must be 0, or at least 2"),
        ({"tasks": ["a"], "sample": 1}, "did you mean 'samples'"),
    ],
)
def test_a_wrong_block_is_said(tmp_path: Path, block: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(tmp_path / "r.yaml", **block)
