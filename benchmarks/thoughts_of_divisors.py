"""Whether the thoughts of a run on greatest common divisors are true: every `a mod b = c` in them, worked out again.

    python benchmarks/thoughts_of_divisors.py runs/r1

For every evaluation of one reply to each test question: replies with such steps, right steps among all, and of the right and
of the wrong answers those whose steps are all right. A reply that a rule finds right may have come there by wrong steps: a
reward for answers does not see them. Also how far guessing comes: how often each of the most frequent answers is given and
is right, and the rule "2 where all numbers are even, otherwise 1": what it has right, and how many replies say the same.
Written beside the published report.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from posttrain.tasks.registry import load_task
from publish import PLACES

ROOT = Path(__file__).resolve().parents[1]
STEP = re.compile(r"(\d+) mod (\d+) = (\d+)")


def true_steps(text: str) -> list[bool]:
    """Tell of each step of a reply whether it is right."""
    return [int(b) > 0 and int(a) % int(b) == int(c) for a, b, c in STEP.findall(text)]


def judged(replies: dict[str, str], scores: dict[str, float]) -> dict[str, Any]:
    """Count replies with steps, steps, and answers by whether all steps before them are right."""
    steps = {example: true_steps(text) for example, text in replies.items()}
    thought = [example for example, found in steps.items() if found]
    right = [example for example in thought if scores[example] == 1]
    return {
        "replies": len(replies),
        "with_steps": len(thought),
        "steps": sum(len(steps[example]) for example in thought),
        "right_steps": sum(sum(steps[example]) for example in thought),
        "right_answers": len(right),
        "right_answers_by_right_steps": sum(all(steps[example]) for example in right),
        "wrong_answers_by_right_steps": sum(all(steps[example]) for example in thought if scores[example] != 1),
    }


def by_answer(given: dict[str, str | None], gold: dict[str, str]) -> dict[str, dict[str, int]]:
    """Count, of the answers that most questions have: those questions, the replies that give them, the right ones."""
    return {
        answer: {
            "questions": count,
            "given": sum(said == answer for said in given.values()),
            "right": sum(said == answer == gold[example] for example, said in given.items()),
        }
        for answer, count in Counter(gold.values()).most_common(4)
    }


def by_parity(question: str) -> str:
    """Answer by the rule "2 where all numbers are even, otherwise 1"."""
    return "2" if all(int(number) % 2 == 0 for number in re.findall(r"\d+", question)) else "1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    args = parser.parse_args()
    tests = {rung["name"]: rung["label"] for rung in json.loads((args.run / "report.json").read_text())["rungs"]}
    recipe = yaml.safe_load((args.run / "resolved.yaml").read_text(encoding="utf-8"))
    task = load_task(recipe["task"], seed=recipe["seed"], sizes=recipe["examples"])
    examples = list(task.examples("test"))
    gold = {example.id: str(example.answer) for example in examples}
    guess = {example.id: by_parity(example.question) for example in examples}
    rule = sum(guess[example] == gold[example] for example in gold)
    told: dict[str, Any] = {}
    for name, label in tests.items():
        (stage,) = args.run.glob(f"[0-9]*-{name}")
        read = {kind: (stage / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines() for kind in ("samples", "ledger")}
        samples, ledger = ([json.loads(line) for line in read[kind]] for kind in ("samples", "ledger"))
        scores = {row["example"]: row["score"] for row in ledger}
        told[label] = judged({row["example"]: row["text"] for row in samples}, scores)
        told[label]["answers_as_by_parity"] = sum(row["answer"] == guess[row["example"]] for row in ledger)
        told[label]["by_answer"] = by_answer({row["example"]: row["answer"] for row in ledger}, gold)
        found = told[label]
        print(
            f"{label}: {found['right_steps']} of {found['steps']} steps are right; right answers: {found['right_answers']},"
        )
        print(f"  by right steps alone {found['right_answers_by_right_steps']}; by answer {found['by_answer']},")
        print(f"  as the rule of parity has them {found['answers_as_by_parity']}")
    print(f"by the rule: {rule} of {len(gold)}")
    target = ROOT / "docs" / "results" / PLACES[recipe["name"]] / recipe["name"] / "thoughts.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(
        json.dumps(
            {"command": "python benchmarks/thoughts_of_divisors.py RUN", "right_by_parity": rule, "stages": told}, indent=2
        )
        + "\n"
    )
    print(f"written: {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
