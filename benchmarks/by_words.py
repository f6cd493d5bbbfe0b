"""How many lists a run of recipes/rlhf.yaml reverses rightly, by their words, and the courses of PPO and GRPO.

    python benchmarks/by_words.py runs/rlhf

For every evaluation on the test split, of former stages of the run too (`<stage>.old-<key>`), with how many are wrong by the
case of letters alone. Of each online training, the means of the first and of the last tenth of its steps: reward, gold, KL.
Written beside the published report.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from posttrain.tasks.registry import load_task

ROOT = Path(__file__).resolve().parents[1]
TOLD = ("reward", "watched_exact", "kl", "entropy", "zero_variance", "explained", "reply_tokens")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def course(path: Path) -> dict[str, Any]:
    steps = lines(path)
    tenth = max(1, len(steps) // 10)
    ends = {"first": steps[:tenth], "last": steps[-tenth:]}
    means = {end: {name: mean(s[name] for s in part) for name in TOLD if name in part[0]} for end, part in ends.items()}
    return {"steps": len(steps), **means}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of recipes/rlhf.yaml")
    run = parser.parse_args().run
    recipe = yaml.safe_load((run / "resolved.yaml").read_text(encoding="utf-8"))
    task = load_task(recipe["task"], seed=recipe["seed"], sizes=recipe["examples"])
    answers = {example.id: str(example.answer) for example in task.examples("test")}
    words = {name: len(answer.split(", ")) for name, answer in answers.items()}
    found: dict[str, Any] = {"command": "python benchmarks/by_words.py RUN", "right_by_words": {}}
    found |= {"wrong_by_case_alone": {}, "courses": {}}
    for path in sorted(run.glob("*/ledger.jsonl")):
        rows = [row for row in lines(path) if row["example"] in words]
        if rows:
            counts = {n: [row["score"] for row in rows if words[row["example"]] == n] for n in sorted(set(words.values()))}
            found["right_by_words"][path.parent.name] = {
                n: {"questions": len(scores), "right": sum(scores)} for n, scores in counts.items()
            }
            found["wrong_by_case_alone"][path.parent.name] = sum(
                row["score"] < 1 and str(row["answer"]).casefold() == answers[row["example"]].casefold() for row in rows
            )
    for path in sorted(run.glob("*/metrics.jsonl")):
        if any("watched_exact" in line for line in lines(path)):
            found["courses"][path.parent.name] = course(path)
    place = ROOT / "docs" / "results" / "rl" / "rlhf" / "by_words.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
