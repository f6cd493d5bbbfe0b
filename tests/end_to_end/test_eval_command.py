"""`posttrain eval` as a user meets it: one object, one sentence for each mistake, and a kill that loses nothing."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import Command, posttrain

TASK = "reasoning_gym/chain_sum:min_terms=2,max_terms=3"


def test_prints_one_object(tmp_path: Path) -> None:
    arguments = (
        "eval",
        "--model",
        "scripted",
        "--task",
        TASK,
        "--strategy",
        "self_consistency:n=4",
        "--limit",
        "20",
        "--json",
    )
    alone = [sys.executable, "-m", "posttrain", *arguments]  # the others are in forked processes
    done = subprocess.run(alone, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    keys = {"accuracy", "ci95", "n", "unparsed_rate", "truncated_rate", "usage", "cost", "flops", "seconds"}
    assert keys | {"prompt", "strategy", "ledger"} <= result.keys()
    assert (result["n"], result["usage"]["policy"]["calls"]) == (20, 20)
    rows = [json.loads(line) for line in (tmp_path / result["ledger"]).read_text().splitlines()]
    assert result["accuracy"] == sum(row["score"] for row in rows) / 20
    again = json.loads(posttrain(*arguments, cwd=tmp_path).stdout)
    assert {k: v for k, v in again.items() if k not in ("seconds", "per_query", "spent")} == {
        k: v for k, v in result.items() if k not in ("seconds", "per_query", "spent")
    }


MISTAKES = {
    "misspelt key": (["--strategy", "self_consistency:m=4"], r"unknown key 'm'"),
    "misspelt strategy": (["--strategy", "self_consistancy"], "did you mean 'self_consistency'"),
    "misspelt prompt": (["--prompt", "few_shots"], "did you mean 'few_shot'"),
    "misspelt task": (["--task", "reasoning_gym/chain_sums"], "did you mean 'chain_sum'"),
    "misspelt parameter": (["--task", "reasoning_gym/chain_sum:min_term=2"], "did you mean 'min_terms'"),
    "misspelt model": (["--model", "smollm2-135"], "did you mean 'smollm2-135m'"),
    "missing data": (["--task", "gsm8k", "--data", "none.jsonl"], "none.jsonl"),
    "empty file": (["--task", "gsm8k", "--data", "empty.jsonl"], "empty"),
    "broken line": (["--task", "gsm8k", "--data", "broken.jsonl"], "line 2"),
    "missing column": (["--task", "gsm8k", "--data", "column.jsonl"], "'answer'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(tmp_path: Path, mistake: str) -> None:
    good = json.dumps({"id": "0", "question": "1+1?", "answer": "2"})
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text(f"{good}\n{{broken\n")
    (tmp_path / "column.jsonl").write_text('{"id": "0", "question": "1+1?"}\n')
    changed, sentence = MISTAKES[mistake]
    options = {"--model": "scripted", "--task": TASK, "--limit": "3"} | dict(zip(changed[::2], changed[1::2], strict=True))
    done = posttrain("eval", *[part for pair in options.items() for part in pair], "--json", cwd=tmp_path)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_killed_and_run_again_equals_uninterrupted(tmp_path: Path) -> None:
    arguments = ["eval", "--model", "scripted:latency=0.05", "--task", TASK, "--strategy", "self_consistency:n=3"]
    arguments += ["--limit", "800", "--seed", "5", "--json"]
    whole = json.loads(posttrain(*arguments, "--out", "whole", cwd=tmp_path).stdout)
    cut = tmp_path / "cut" / "ledger.jsonl"
    process = Command(*arguments, "--out", "cut", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (cut.is_file() and cut.stat().st_size):
        time.sleep(0.005)
    process.kill()
    finished = cut.read_text().count("\n")
    assert 0 < finished < 800
    resumed = json.loads(posttrain(*arguments, "--out", "cut", cwd=tmp_path).stdout)
    assert cut.read_bytes() == (tmp_path / "whole" / "ledger.jsonl").read_bytes()
    assert (tmp_path / "cut" / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()
    assert [resumed[k] for k in ("accuracy", "ci95", "usage", "cost")] == [
        whole[k] for k in ("accuracy", "ci95", "usage", "cost")
    ]


def test_a_folder_keeps_one_evaluation(tmp_path: Path) -> None:
    arguments = ["eval", "--model", "scripted", "--task", TASK, "--limit", "3", "--out", "here", "--json"]
    assert posttrain(*arguments, cwd=tmp_path).returncode == 0
    other = posttrain(*arguments, "--seed", "1", cwd=tmp_path)
    assert other.returncode == 2
    assert "holds another evaluation" in other.stderr


EVAL = ["eval", "--model", "scripted", "--task", TASK, "--limit", "12", "--json"]


def evaluated(*arguments: str, cwd: Path) -> tuple[dict, bytes]:
    done = posttrain(*EVAL, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return told, (cwd / told["ledger"]).read_bytes()


def test_what_was_generated_is_not_generated_again(tmp_path: Path) -> None:
    plain, rows = evaluated("--strategy", "self_consistency:n=4", "--no-cache", "--out", "plain", cwd=tmp_path)
    assert plain["spent"]["replayed"] == 0
    cold, first = evaluated("--strategy", "self_consistency:n=4", "--cache", "kept", "--out", "a", cwd=tmp_path)
    warm, again = evaluated("--strategy", "self_consistency:n=4", "--cache", "kept", "--out", "b", cwd=tmp_path)
    assert rows == first == again
    assert warm["cost"] == cold["cost"] == plain["cost"]
    assert (cold["spent"]["tokens"], warm["spent"]["tokens"]) == (plain["cost"]["tokens"], 0)
    more, _ = evaluated("--strategy", "self_consistency:n=6", "--cache", "kept/generations.sqlite", cwd=tmp_path)
    assert more["spent"]["replayed"] == warm["spent"]["replayed"]
    assert more["spent"]["tokens"] < more["cost"]["tokens"]
    (tmp_path / "kept" / "generations.sqlite").write_bytes(b"not a cache" * 500)
    broken = posttrain(*EVAL, "--cache", "kept", cwd=tmp_path)
    assert broken.returncode == 1
    assert broken.stderr.splitlines()[-1].startswith("error: the cache of generations kept/generations.sqlite is damaged")
    both = posttrain(*EVAL, "--cache", "kept", "--no-cache", cwd=tmp_path)
    assert (both.returncode, "contradict" in both.stderr) == (2, True)


def test_a_budget_is_kept_and_told(tmp_path: Path) -> None:
    whole, rows = evaluated("--strategy", "self_consistency:n=8", cwd=tmp_path)
    assert whole["budget_rate"] == 0
    held, _ = evaluated("--strategy", "self_consistency:n=8", "--budget-tokens", "300", "--max-tokens", "100", cwd=tmp_path)
    assert held["budget_rate"] == 0  # eight short replies fit, if not all at once
    assert held["accuracy"] == whole["accuracy"]
    less, rows = evaluated("--strategy", "self_consistency:n=8", "--budget-tokens", "60", "--max-tokens", "20", cwd=tmp_path)
    assert less["budget_rate"] == 1
    assert less["ledger"] != held["ledger"]
    for row in map(json.loads, rows.splitlines()):
        assert row["cost"]["policy"]["prompt"] + row["cost"]["policy"]["generated"] <= 60
        assert 1 <= len(row["candidates"]) < 8
        assert row["trace"]["budget"] == "spent"
    run, _ = evaluated("--strategy", "self_consistency:n=8", "--run-budget-tokens", "500", cwd=tmp_path)
    assert run["cost"]["tokens"] <= 500
    assert run["budget_rate"] > 0
    shown = posttrain(*EVAL[:-1], "--budget-tokens", "5", cwd=tmp_path)
    assert "ended by the budget" in shown.stdout
    assert "100.0%" in shown.stdout
    for wrong, sentence in (
        (["--budget-tokens", "5", "--budget-flops", "5"], "not both"),
        (["--budget-flops", "1e9"], "sizes are known"),
    ):
        done = posttrain(*EVAL, *wrong, cwd=tmp_path)
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
