"""A whole recipe on a tiny model: every kind of stage, the report, skipping, resuming after kill -9, changing a setting."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import tiny_models
import yaml
from forked import Command, posttrain

RECIPE = {
    "name": "tiny",
    "task": "reasoning_gym/chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=1",
    "dtype": "float32",
    "examples": {"test": 6, "train": 12},
    "stages": [
        {"name": "zero-shot", "lever": "prompting", "eval": {"max_tokens": 8}},
        {"name": "worked", "data": {"maker": "worked_examples:n=12"}},
        {
            "name": "sft",
            "train": {"method": "sft:lr=1e-3,batch_size=4,epochs=4,save_every=1,dtype=float32", "data": "worked"},
        },
        {
            "name": "sft-vote",
            "lever": "test-time",
            "model": "sft",
            "oracle_of": "pass@3",
            "eval": {"strategy": "self_consistency:n=3", "max_tokens": 8},
        },
        {"name": "pairs", "data": {"file": "pairs.jsonl"}},
        {"name": "dpo", "model": "sft", "train": {"method": "dpo:batch_size=4,dtype=float32", "data": "pairs"}},
        {"name": "dpo-greedy", "lever": "preference", "model": "dpo", "eval": {"max_tokens": 8}},
    ],
}


def write_recipe(folder: Path, change: dict[str, object] | None = None) -> None:
    recipe = json.loads(json.dumps(RECIPE)) | {"model": str(folder / "model")} | (change or {})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


@pytest.fixture(scope="module", autouse=True)
def figures_are_drawn_and_not_saved() -> None:
    """Not here: these are a user's own."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    tiny_models.folder(folder / "model")
    rows = [json.dumps(row) for row in tiny_models.preferences(8)]
    (folder / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    write_recipe(folder)
    done = run(folder, "whole")
    assert done.returncode == 0, done.stderr
    return folder


def run(folder: Path, out: str) -> subprocess.CompletedProcess[str]:
    return posttrain("run", "recipe.yaml", "--out", out, cwd=folder)


def results(folder: Path) -> dict[str, bytes]:
    """Everything that has to be equal between two runs: rows, texts, training metrics, weights."""
    names = ("ledger.jsonl", "samples.jsonl", "rows.jsonl", "model.safetensors")
    return {str(path.relative_to(folder)): path.read_bytes() for name in names for path in sorted(folder.rglob(name))}


def test_the_run_directory_tells_all(workplace: Path) -> None:
    out = workplace / "whole"
    for name in ("recipe.yaml", "resolved.yaml", "manifest.json", "report.json", "report.html", "report.md"):
        assert (out / name).is_file(), name
    assert list((out / "figures").glob("*.png"))
    report = json.loads((out / "report.json").read_text())
    assert [rung["name"] for rung in report["rungs"]] == ["zero-shot", "sft-vote", "dpo-greedy"]
    assert [rung["name"] for rung in report["oracles"]] == ["sft-vote-oracle"]
    manifest = json.loads((out / "manifest.json").read_text())["starts"][0]
    assert {"code", "packages", "hardware", "seed", "command"} <= manifest.keys()
    assert all((out / stage).is_dir() for stage in ("01-zero-shot", "03-sft", "07-dpo-greedy"))


def test_fixed_costs_follow_the_ancestors(workplace: Path) -> None:
    costs = {}
    for folder in (workplace / "whole").glob("*-*"):
        costs[folder.name[3:]] = json.loads((folder / "DONE.json").read_text())["cost"]["flops"]
    rungs = {rung["name"]: rung for rung in json.loads((workplace / "whole" / "report.json").read_text())["rungs"]}
    assert rungs["zero-shot"]["fixed"]["flops"] == 0
    assert rungs["sft-vote"]["fixed"]["flops"] == pytest.approx(costs["sft"])
    assert rungs["dpo-greedy"]["fixed"]["flops"] == pytest.approx(costs["sft"] + costs["dpo"])


def test_what_is_finished_is_reported_and_nothing_is_run(workplace: Path) -> None:
    shutil.copytree(workplace / "whole", workplace / "partial")
    (workplace / "partial" / "05-pairs" / "DONE.json").unlink()
    (workplace / "partial" / "report.json").unlink()
    before = results(workplace / "partial")
    done = posttrain("run", "recipe.yaml", "--out", "partial", "--finished", cwd=workplace)
    assert done.returncode == 0, done.stderr
    report = json.loads((workplace / "partial" / "report.json").read_text())
    assert [rung["name"] for rung in report["rungs"]] == ["zero-shot", "sft-vote"], "dpo-greedy needs the pairs"
    assert "3 of 7 stages were not finished: pairs, dpo, dpo-greedy." in report["notes"]
    assert results(workplace / "partial") == before
    assert not (workplace / "partial" / "05-pairs" / "DONE.json").exists()
    whole = posttrain("run", "recipe.yaml", "--out", "whole", "--finished", cwd=workplace)
    assert whole.returncode == 0, whole.stderr
    assert not any("not finished" in note for note in json.loads((workplace / "whole" / "report.json").read_text())["notes"])


@pytest.mark.parametrize(("more", "said"), [
    (["--out", "nowhere"], "nowhere is no run's folder: name it with --out, or leave --finished out to start the run"),
    (["--out", "whole", "--reuse", "whole"], "--finished runs nothing, so --reuse has nothing to take over"),
    (["--out", "whole", "--set", "seed=5"], "whole: no stage is finished with these settings"),
])  # fmt: skip
def test_what_is_finished_of_nothing_is_one_sentence(workplace: Path, more: list[str], said: str) -> None:
    done = posttrain("run", "recipe.yaml", "--finished", *more, cwd=workplace)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (workplace / "nowhere").exists()


def test_run_again_skips_everything(workplace: Path) -> None:
    before = results(workplace / "whole")
    done = run(workplace, "whole")
    assert done.returncode == 0, done.stderr
    assert "0 stages run, 7 skipped" in done.stderr.replace("\n", " ")
    assert results(workplace / "whole") == before


@pytest.mark.parametrize("stage", ["03-sft/metrics.jsonl", pytest.param("04-sft-vote/ledger.jsonl", marks=pytest.mark.slow)])
def test_killed_and_run_again_equals_uninterrupted(workplace: Path, stage: str) -> None:
    out = workplace / f"cut-{stage[:2]}"
    watched = out / stage
    for _ in range(5):  # on a busy machine the stage may be over before it is seen to have begun
        shutil.rmtree(out, ignore_errors=True)
        process = Command("run", "recipe.yaml", "--out", out.name, cwd=workplace)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.running() and not (watched.is_file() and watched.stat().st_size):
            time.sleep(0.002)
        process.kill()
        if not (watched.parent / "DONE.json").exists():
            break
    assert watched.is_file()
    assert not (watched.parent / "DONE.json").exists()
    done = run(workplace, out.name)
    assert done.returncode == 0, done.stderr
    assert results(out) == results(workplace / "whole")


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_share_the_stages_of_one_folder(workplace: Path, killed: bool) -> None:
    out = workplace / f"shared-{killed}"
    both = [Command("run", "recipe.yaml", "--out", out.name, cwd=workplace) for _ in range(2)]
    if killed:  # the other finishes what it was at
        time.sleep(1.0)
        both[0].kill()
    ended = [one.wait() for one in both[killed:]]
    assert [one.returncode for one in ended] == [0] * len(ended), ended
    assert results(out) == results(workplace / "whole")
    told = [re.search(r"(\d+) stages run, (\d+) skipped", one.stderr.replace("\n", " ")) for one in ended]
    assert all(int(counts[1]) + int(counts[2]) == 7 for counts in told if counts)
    if not killed:  # no stage ran twice, and both did something
        ran = [int(counts[1]) for counts in told if counts]
        assert sum(ran) == 7
        assert min(ran) > 0
    assert not list(out.glob("*.old-*"))
    report = json.loads((out / "report.json").read_text())
    whole = json.loads((workplace / "whole" / "report.json").read_text())
    assert [rung["name"] for rung in report["rungs"]] == [rung["name"] for rung in whole["rungs"]]


def test_what_another_run_finished_is_taken_over(workplace: Path) -> None:
    """One more stage in the middle, another later on: the rest is the other run's, whatever its number."""
    stages = json.loads(json.dumps(RECIPE["stages"]))
    stages.insert(1, {"name": "one-shot", "lever": "prompting", "eval": {"prompt": "few_shot:k=1", "max_tokens": 8}})
    stages[6]["train"]["method"] += ",beta=0.3"
    write_recipe(workplace, {"stages": stages})
    try:
        done = posttrain("run", "recipe.yaml", "--out", "grown", "--reuse", "whole", cwd=workplace)
        again = run(workplace, "grown")
        wrong = posttrain("run", "recipe.yaml", "--out", "grown", "--reuse", "model", cwd=workplace)
    finally:
        write_recipe(workplace)
    assert done.returncode == again.returncode == 0, done.stderr
    assert "3 stages run, 5 skipped" in done.stderr.replace("\n", " ")  # one-shot, dpo, and the answers of the new dpo
    assert "0 stages run, 8 skipped" in again.stderr.replace("\n", " ")
    grown, whole = results(workplace / "grown"), results(workplace / "whole")
    assert grown["05-sft-vote/ledger.jsonl"] == whole["04-sft-vote/ledger.jsonl"]
    assert grown["04-sft/checkpoint/model.safetensors"] == whole["03-sft/checkpoint/model.safetensors"]
    assert grown["07-dpo/checkpoint/model.safetensors"] != whole["06-dpo/checkpoint/model.safetensors"]
    made = json.loads((workplace / "grown" / "04-sft" / "DONE.json").read_text())
    assert made == json.loads((workplace / "whole" / "03-sft" / "DONE.json").read_text())
    assert {"code", "hardware", "packages"} == made["made_by"].keys()
    with (workplace / "grown" / "05-sft-vote" / "ledger.jsonl").open("a") as ledger:  # rows are never shared
        ledger.write("{}\n")
    assert results(workplace / "whole") == whole
    rungs = json.loads((workplace / "grown" / "report.json").read_text())["rungs"]
    assert [rung["name"] for rung in rungs] == ["zero-shot", "one-shot", "sft-vote", "dpo-greedy"]
    assert wrong.returncode == 2
    assert "--reuse model: no run folder" in wrong.stderr.replace("\n", " ")


def test_a_changed_setting_runs_anew_and_keeps_the_old(workplace: Path) -> None:
    out = workplace / "changed"
    shutil.copytree(workplace / "whole", out)
    changed = json.loads(json.dumps(RECIPE["stages"]))
    changed[3]["eval"]["strategy"] = "self_consistency:n=2"
    write_recipe(workplace, {"stages": changed})
    try:
        done = run(workplace, "changed")
    finally:
        write_recipe(workplace)
    assert done.returncode == 0, done.stderr
    assert "1 stages run, 6 skipped" in done.stderr.replace("\n", " ")
    assert list(out.glob("04-sft-vote.old-*"))
    rows = (out / "04-sft-vote" / "ledger.jsonl").read_text().splitlines()
    assert all(len(json.loads(row)["candidates"]) == 2 for row in rows)
    back = run(workplace, "changed")  # the setting put back: the result that was set aside is there
    assert "0 stages run, 7 skipped" in back.stderr.replace("\n", " ")
    assert results(out)["04-sft-vote/ledger.jsonl"] == results(workplace / "whole")["04-sft-vote/ledger.jsonl"]
