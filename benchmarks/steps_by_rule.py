"""What a process reward model knows of replies to the same question, by a rule on their steps and by the task's grades.

    python benchmarks/steps_by_rule.py runs/process-reward

Of the run's stage `best-checked`, every pair of replies to one question of which one has a wrong step by the arithmetic of
its steps (`checked_steps`) and the other has none: how often the better one has the higher value. Likewise for pairs of a
right and a wrong answer. Of the stage `steps`, labelled by rollouts: how many replies are below one half from their first
step on. Written beside the published report.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.preference.checked_steps import judged_steps
from posttrain.verifiers.process_reward import split_steps

ROOT = Path(__file__).resolve().parents[1]


def lines(run: Path, stage: str, file: str) -> list[dict[str, Any]]:
    (folder,) = (path for path in run.glob(f"??-{stage}") if (path / "DONE.json").is_file())
    return [json.loads(line) for line in (folder / file).read_text().splitlines()]


def ranked(values: Sequence[float], better: Sequence[bool]) -> list[bool]:
    """For each pair of which one is better, whether it has the higher value."""
    pairs = itertools.combinations(zip(values, better, strict=True), 2)
    return [(a > b) == first for (a, first), (b, second) in pairs if first != second]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of recipes/process_reward.yaml")
    run = parser.parse_args().run
    texts = {item["example"]: item["texts"] for item in lines(run, "best-checked", "samples.jsonl")}
    by_rule: list[bool] = []
    by_grade: list[bool] = []
    flawless: list[bool] = []
    graded: list[bool] = []
    for row in lines(run, "best-checked", "ledger.jsonl"):
        right = [candidate["score"] == 1 for candidate in row["candidates"]]
        values = [candidate["value"] for candidate in row["candidates"]]
        sound = [
            False not in judged_steps(split_steps(text, "\\n"), right=score)
            for text, score in zip(texts[row["example"]], right, strict=True)
        ]
        by_rule += ranked(values, sound)
        by_grade += ranked(values, right)
        flawless += sound
        graded += right
    rolled = [row["labels"][0] for row in lines(run, "steps", "rows.jsonl")]
    found = {
        "command": "python benchmarks/steps_by_rule.py RUN",
        "replies": len(graded),
        "right_answer": sum(graded) / len(graded),
        "no_wrong_step": sum(flawless) / len(flawless),
        "pairs_by_rule": {"pairs": len(by_rule), "ranked_right": sum(by_rule) / len(by_rule)},
        "pairs_by_grade": {"pairs": len(by_grade), "ranked_right": sum(by_grade) / len(by_grade)},
        "from_rollouts": {"replies": len(rolled), "first_step_below_half": sum(label < 0.5 for label in rolled)},
    }
    path = ROOT / "docs" / "results" / "preference" / "process-reward" / "by_rule.json"
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
