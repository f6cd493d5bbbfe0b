"""Win rates and objectives in a recipe: replies judged in both orders, by rewards, against references; resumed, priced."""

import json
from pathlib import Path

import pytest
import tiny_models
import torch
import yaml

from posttrain.cli.reporting import report_run
from posttrain.core.errors import ConfigError
from posttrain.ledger.store import load_ledger
from posttrain.pipeline.recipe import load_recipe
from posttrain.pipeline.run import run_recipe

torch.set_num_threads(1)
TASK = {"name": "letters", "splits": {"train": "train.jsonl", "test": "test.jsonl"}, "extract": "text", "grade": "exact",
        "instruction": ""}  # fmt: skip
RULE = '(rule:parses=false,steps=false,regex="[a-m]")'
HAS = 'rule:parses=false,steps=false,regex="[a-m]"'
PAIRWISE = 'pairwise:model=model,read=logprobs,prompt="{question} 1 {first} 2 {second}"'
STAGES = [
    {"name": "start", "label": "Start", "lever": "prompting", "eval": {"max_tokens": 8}},
    {"name": "samples", "eval": {"split": "train", "strategy": f"best_of_n:n=6,verifier={RULE}", "max_tokens": 24}},
    {"name": "pairs", "data": {"maker": "scored_pairs:per_question=2", "from": "samples"}},
    {"name": "reward", "train": {"method": "reward_model:lr=1e-3,batch_size=4", "data": "pairs"}},
    {"name": "best", "lever": "test-time", "eval": {"strategy": f"best_of_n:n=4,verifier={RULE}", "max_tokens": 8}},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("task.yaml").write_text(yaml.safe_dump(TASK))
    for name, n in (("train", 12), ("test", 5)):
        rows = [{"question": f"{name} {i}?", "answer": "abc"[i % 3] * (i + 1)} for i in range(n)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_models.ending_folder(tmp_path / "model")
    return tmp_path


def recipe(stages=STAGES, **more):
    values = {"name": "judged", "model": "model", "task": "task.yaml", "dtype": "float32", "stages": stages, **more}
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    return load_recipe(Path("recipe.yaml"))


def run(**more):
    return run_recipe(recipe(**more), Path("recipe.yaml"), Path("out"), report_run)


def test_win_rates_by_a_judge_in_both_orders_and_by_a_trained_reward_model(folder):
    by = [PAIRWISE, "reward_model:model=stage:reward"]
    blocks = [{"of": ["best"], "against": "start", "by": by}, {"of": ["start", "best"], "by": HAS}]
    report = run(win_rate=blocks)
    rates = report["alignment"]["win_rates"]
    assert [(r["of"], r["against"], r["by"]) for r in rates] == [
        ("best", "Start", by[0]), ("best", "Start", by[1]), ("start", "reference replies", HAS),
        ("best", "reference replies", HAS),
    ]  # fmt: skip
    folders = {path.name.partition("-")[2]: path for path in Path("out").iterdir() if path.name[:2].isdigit()}
    texts = {name: [s.text for s in load_ledger(folders[name]).samples] for name in ("start", "best")}
    golds = ["abc"[i % 3] * (i + 1) for i in range(5)]

    # the judge was asked twice of each two different texts, and charged for it in its own role
    judged = load_ledger(folders["win-best-against-start-1"]).rows
    for row, ours, theirs in zip(judged, texts["best"], texts["start"], strict=True):
        assert row.trace["lengths"] == [len(ours), len(theirs)]
        assert len(row.trace["said"]) == (0 if ours == theirs else 2)
        assert row.score in ((0.5,) if ours == theirs else (0.0, 0.5, 1.0))
        assert ("judge" in row.cost) == (ours != theirs)
    assert rates[0]["judge"]["tokens"] > 0
    assert rates[0]["judge"]["flops"] > 0

    # a reward model: the higher reward wins
    rewarded = load_ledger(folders["win-best-against-start-2"]).rows
    for row in rewarded:
        ours, theirs = row.trace["values"]
        assert row.score == (0.5 if ours == theirs else float(ours > theirs))
        assert row.cost["verifier"]["scored"] > 0
    assert all(str(folder) not in row.strategy for row in rewarded)
    assert rates[1]["rate"] == pytest.approx(sum(row.score for row in rewarded) / 5)

    # against the task's own replies, each of which has a letter that the rule looks for
    for rate, name in ((rates[2], "start"), (rates[3], "best")):
        hits = [bool(set("abcdefghijklm") & set(text)) for text in texts[name]]
        assert rate["rate"] == pytest.approx(sum(0.5 if hit else 0.0 for hit in hits) / 5)
        assert rate["mean_lengths"] == [sum(map(len, texts[name])) / 5, sum(map(len, golds)) / 5]
    assert max(r["p_holm"] for r in rates) <= 1.0
    assert all(r["p_holm"] >= r["p"] for r in rates)
    page = Path("out/report.html").read_text()
    assert "Win rates" in page
    assert rates[0]["sentence"].split(",")[0] in page
    assert "## Win rates" in Path("out/report.md").read_text()
    assert Path("out/figures/win_rates.png").is_file()
    assert json.loads(Path("out/report.json").read_text())["alignment"]["win_rates"] == rates


def test_judging_resumes_and_knows_what_it_rests_on(folder):
    asked = {"win_rate": {"of": ["best"], "against": "start", "by": "reward_model:model=stage:reward"}}
    first = run(**asked)["alignment"]
    place = Path("out/06-win-best-against-start")
    whole = (place / "ledger.jsonl").read_bytes()
    key = json.loads((place / "DONE.json").read_text())["key"]
    for name in ("ledger", "samples", "timings"):  # as if it had been killed after two rows
        lines = (place / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (place / f"{name}.jsonl").write_text("".join(lines[:2]))
    (place / "DONE.json").unlink()
    assert run(**asked)["alignment"] == first
    assert (place / "ledger.jsonl").read_bytes() == whole
    # weights and labels of the report rerun nothing; another reward model does
    changed = [dict(stage) for stage in STAGES]
    changed[3] = {"name": "reward", "train": {"method": "reward_model:lr=2e-3,batch_size=4", "data": "pairs"}}
    run(stages=changed, **asked)
    assert json.loads((place / "DONE.json").read_text())["key"] != key


def test_objectives_their_weighted_sum_and_the_front(folder):
    scores = {"letters": {"by": HAS, "weight": 2.0}, "likely": {"by": "likelihood:model=model", "weight": -1.0}}
    report = run(objectives={"of": ["start", "best"], "scores": scores})
    found = report["alignment"]["objectives"]
    assert found["names"] == ["letters", "likely"]
    assert found["questions"] == {"letters": 5, "likely": 5}
    for model in found["models"]:
        parts = {name: one["mean"] for name, one in model["scores"].items()}
        assert model["weighted"]["mean"] == pytest.approx(2 * parts["letters"] - parts["likely"])
        assert 0 <= model["front_share"] <= 1
    start, best = found["models"]
    assert best["scores"]["letters"]["mean"] >= start["scores"]["letters"]["mean"]  # it chose by that very rule
    assert best["weighted"]["difference"] == pytest.approx(best["weighted"]["mean"] - start["weighted"]["mean"])
    assert any(model["front"] for model in found["models"])
    assert Path("out/figures/objectives.svg").is_file()
    folder_of = Path("out/06-objective-letters-start")
    before = (folder_of / "DONE.json").read_text()
    scores["letters"]["weight"] = 1.0
    again = run(objectives={"of": ["start", "best"], "scores": scores, "scale": "standard"})["alignment"]["objectives"]
    assert (folder_of / "DONE.json").read_text() == before
    assert again["weights"]["letters"] == 1.0


def test_one_pool_of_samples_serves_every_n(folder):
    """With `cache: true` best of 1, 2, 4 draws nothing that best of 128 draws anew."""
    stages = [
        {
            "name": f"best-{n}",
            "lever": "test-time",
            "eval": {"strategy": f"best_of_n:n={n},verifier={RULE}", "max_tokens": 4},
        }
        for n in (1, 2, 4, 128)
    ]
    report = run(stages=stages, cache=True)
    folders = [Path(f"out/0{k}-best-{n}") for k, n in enumerate((1, 2, 4, 128), start=1)]
    pools = [[s.texts for s in load_ledger(path).samples] for path in folders]
    for small in pools[:-1]:
        assert [texts[: len(few)] for texts, few in zip(pools[-1], small, strict=True)] == small
    assert {len(texts) for texts in pools[-1]} == {128}
    generated = [sum(c["tokens"] for row in load_ledger(path).rows for c in row.candidates) for path in folders]
    replayed = [sum(t.replayed for t in load_ledger(path).timings) for path in folders]
    assert replayed == [0, *generated[:-1]]  # each size pays for its new samples only
    assert len(report["rungs"]) == 4


def test_what_is_asked_wrongly_is_said_before_anything_runs(folder):
    wrong = [
        ({"of": ["pairs"], "by": HAS}, "'pairs' is not an evaluation"),
        ({"of": ["bset"], "by": HAS}, "no earlier stage"),
        ({"of": ["best"], "against": "samples", "by": HAS}, "do not answer the same questions"),
        ({"of": ["best"], "against": "best", "by": HAS}, "compared with itself"),
        ({"of": ["best"], "against": "start", "by": "reward_model:model=stage:start"}, "not a training stage"),
    ]
    for block, told in wrong:
        with pytest.raises(ConfigError, match=told):
            recipe(win_rate=block)
    late = [
        ({"of": ["best"], "by": "pairwise"}, "say who judges"),
        ({"of": ["best"], "by": "pairwse:model=model"}, "did you mean|choose"),
        ({"of": ["best"], "by": "tournament:model=model"}, "name the judge 'pairwise'"),
    ]
    for block, told in late:
        with pytest.raises(ConfigError, match=told):
            run(win_rate=block)
    with pytest.raises(ConfigError, match="an objective needs what scores one by itself"):
        run(objectives={"of": ["best"], "scores": {"good": {"by": PAIRWISE}}})
    with pytest.raises(ConfigError, match="draw fewer"):
        run(win_rate={"of": ["best"], "against": "start", "by": HAS, "draw": 99})
    some = run(win_rate={"of": ["best"], "against": "start", "by": HAS, "draw": 3})
    assert some["alignment"]["win_rates"][0]["items"] == 3
