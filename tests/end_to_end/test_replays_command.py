"""`benchmarks/test_time_replays.py`: one command that says first what it will do, survives a kill, and repeats itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = """
title: Rehearsal
questions: 40
samples: 4
sizes_n: [1, 2, 4]
vote: 4
temperature: 0.9
threshold: 0.9
pilot: 2
verifier: rule
draws: 100
tasks:
  - name: gcd
    task: reasoning_gym/gcd:max_value=20
    policy: scripted:replies=4,latency=0.05
    better: scripted:replies=3
sizes: {full: {}, other: {questions: 41}}
"""


def command(tmp_path: Path, name: str, *more: str) -> list[str]:
    (tmp_path / "c.yaml").write_text(CONFIG)
    script = str(ROOT / "benchmarks" / "test_time_replays.py")
    folders = ["--runs", str(tmp_path / name / "runs"), "--out", str(tmp_path / name / "out")]
    return [sys.executable, script, "--config", str(tmp_path / "c.yaml"), *folders, *more]


def test_killed_and_run_again_it_tells_the_same(tmp_path: Path) -> None:
    whole = subprocess.run(command(tmp_path, "whole"), capture_output=True, text=True, check=False, timeout=240)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.index("targets: ") < whole.stdout.index("written: ")
    process = subprocess.Popen(command(tmp_path, "cut"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runs, deadline = tmp_path / "cut" / "runs", time.monotonic() + 120
    while time.monotonic() < deadline and not any(path.stat().st_size for path in runs.glob("gcd/*/ledger.jsonl")):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / "cut" / "out" / "header.json").is_file()
    assert not (tmp_path / "cut" / "out" / "index.md").exists()
    resumed = subprocess.run(command(tmp_path, "cut"), capture_output=True, text=True, check=False, timeout=240)
    assert resumed.returncode == 0, resumed.stderr
    for name in ("index.md", "replays.json", "header.json", "gcd/methods/curve.md", "gcd/better_model/curve.md"):
        assert (tmp_path / "cut" / "out" / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes()
    found = json.loads((tmp_path / "cut" / "out" / "replays.json").read_text())["tasks"][0]
    assert (found["questions"], found["vote"]["n"], found["adaptive"]["n"], found["compute_optimal"]["n"]) == (40, 4, 4, 4)
    assert (tmp_path / "cut" / "out" / "gcd" / "methods" / "figures" / "accuracy_by_tokens.png").is_file()
    assert not list((tmp_path / "cut" / "out").rglob("ledger.jsonl"))  # pools stay with the runs
    other = subprocess.run(command(tmp_path, "cut", "--size", "other"), capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "was written for other settings: choose another --out" in other.stderr
    assert "Traceback" not in other.stderr


def test_the_settings_of_the_repository_are_valid_in_every_size() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "import test_time_replays as replays\n"
        "from posttrain.pipeline.methods import build_trainer\n"
        "from posttrain.tasks.registry import load_task\n"
        "for size in ('smoke', 'small', 'full'):\n"
        "    config = replays.load(Path(sys.argv[1]) / 'test_time.yaml', size)\n"
        "    replays.header(config, size)\n"
        "for task in config.tasks:\n"
        "    loaded = load_task(task.task, sizes={'test': config.questions, 'validation': 1, 'train': task.better.rows})\n"
        "    assert all(example.rationale for example in loaded.examples('train')), task.name\n"
        "    assert len(loaded.examples('train')) == task.better.rows > task.policy.rows\n"
        "    build_trainer(task.policy.method), build_trainer(task.better.method)\n"
        "assert (len(config.tasks), config.questions, config.samples) == (3, 300, 32)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "benchmarks")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
