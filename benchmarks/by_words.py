"""What a run on word lists knows by their length, and what its reward models and online trainings did.

    python benchmarks/by_words.py runs/rlhf
    python benchmarks/by_words.py runs/judgements

Of former stages too (`<stage>.old-<key>`). For every evaluation on the test split: right answers by the number of
words, and how many lists differ from the right one in the case of letters alone, in their order alone, are shorter,
longer, or have a changed word. The same of the rejected replies of pairs. Of the start's samples: questions with a
right one among them, by words. Of every reward model: what held-out rows say. Of DPO and its like: how much likelier
either side became, in nats. Of whatever scored candidates of test questions, likelihood too: of all pairs of a right
and a wrong one of a question, the share with the right one above (ties half), by words. Of each online training:
reward, gold and KL as means of the first and the last tenth of its steps, what held-out questions said, and the
highest reward of a right and of a wrong sample in `rollouts.jsonl`. Written beside the published report.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from posttrain.tasks.registry import load_task
from publish import PLACES

ROOT = Path(__file__).resolve().parents[1]
TOLD = ("reward", "watched_exact", "kl", "entropy", "zero_variance", "explained", "reply_tokens")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def course(path: Path) -> dict[str, Any]:
    steps = lines(path)
    tenth = max(1, len(steps) // 10)
    ends = {"first": steps[:tenth], "last": steps[-tenth:]}
    means = {end: {name: mean(s[name] for s in part) for name in TOLD if name in part[0]} for end, part in ends.items()}
    held = ("step", "eval_reward", "eval_watched_exact")
    evaluations = [{name: step[name] for name in held} for step in steps if "eval_watched_exact" in step]
    return {"steps": len(steps), **means, **({"held_out": evaluations} if evaluations else {})}


def by_words(words: dict[str, int], scores: dict[str, float]) -> dict[int, dict[str, float]]:
    """Of the examples scored, by their number of words: how many, and the sum of their scores."""
    counts = sorted({words[example] for example in scores})
    groups = {n: [score for example, score in scores.items() if words[example] == n] for n in counts}
    return {n: {"questions": len(found), "right": sum(found)} for n, found in groups.items()}


def fault(said: str | None, gold: str) -> str:
    """Name what is wrong with a list: the first that applies."""
    if said is None or said == gold:
        return "right" if said is not None else "unread"
    own, theirs = said.split(", "), gold.split(", ")
    if said.casefold() == gold.casefold():
        return "case"
    if sorted(own) == sorted(theirs):
        return "order"
    return "word" if len(own) == len(theirs) else "shorter" if len(own) < len(theirs) else "longer"


def of_pairs(rows: list[dict[str, Any]]) -> dict[str, int]:
    lists = [[row[side].partition("Answer: ")[2] for side in ("rejected", "chosen")] for row in rows]
    return dict(Counter(fault(said, gold) for said, gold in lists))


def ranked(words: dict[str, int], golds: dict[str, str], rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of pairs of a right and a wrong candidate of a question: how many, and the share with the right one above (ties half).

    By the number of words, by what is wrong with the wrong one, and of all.
    """
    pairs: dict[str, list[float]] = {}
    for row in rows:
        example, parts = row["example"], row["candidates"]
        right = [c["value"] for c in parts if c["score"] == 1]
        for wrong in (c for c in parts if c["score"] < 1):
            found = [(r > wrong["value"]) + (r == wrong["value"]) / 2 for r in right]
            for group in (f"{words[example]} words", fault(wrong["answer"], golds[example]), "all"):
                pairs.setdefault(group, []).extend(found)
    return {
        group: {"pairs": len(pairs[group]), "ranked_rightly": mean(pairs[group])} for group in sorted(pairs) if pairs[group]
    }


def highest(path: Path) -> dict[str, Any]:
    """The sample with the highest reward among the right ones and among the wrong ones."""
    samples = [{"step": line["step"], "answer": line["answer"], **one} for line in lines(path) for one in line["samples"]]
    parts = {
        "right": [s for s in samples if s["watched_exact"] == 1],
        "wrong": [s for s in samples if s["watched_exact"] < 1],
    }
    told = ("step", "answer", "text", "reward")
    return {name: {key: max(part, key=lambda s: s["reward"])[key] for key in told} for name, part in parts.items() if part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run on word lists, rlhf.yaml's for example")
    run = parser.parse_args().run
    recipe = yaml.safe_load((run / "resolved.yaml").read_text(encoding="utf-8"))
    task = load_task(recipe["task"], seed=recipe["seed"], sizes=recipe["examples"])
    splits = ("test", "validation")
    answers = {split: {example.id: str(example.answer) for example in task.examples(split)} for split in splits}
    words = {split: {name: len(answer.split(", ")) for name, answer in answers[split].items()} for split in splits}
    found: dict[str, Any] = {
        "command": "python benchmarks/by_words.py RUN",
        "right_by_words": {},
        "faults": {},
        "faults_of_pairs": {},
    }
    found |= {"ranked": {}, "solved_by_words": {}, "reward_models": {}, "changes": {}, "courses": {}, "highest_rewards": {}}
    for path in sorted(run.glob("*/ledger.jsonl")):
        stage, rows = path.parent.name, lines(path)
        if all(row["example"] in answers["test"] for row in rows):
            found["right_by_words"][stage] = by_words(words["test"], {row["example"]: row["score"] for row in rows})
            if all(c.get("value") is not None for row in rows for c in row["candidates"]):
                found["ranked"][stage] = ranked(words["test"], answers["test"], rows)
            said = {row["example"]: row["answer"] for row in rows}
            found["faults"][stage] = Counter(fault(said[example], answers["test"][example]) for example in said)
        else:
            solved = {row["example"]: float(any(c["score"] == 1 for c in row["candidates"])) for row in rows}
            found["solved_by_words"][stage] = by_words(words["validation"], solved)
    for path in sorted(run.glob("*/rows.jsonl")):
        if "rejected" in (rows := lines(path))[0]:
            found["faults_of_pairs"][path.parent.name] = of_pairs(rows)
    for path in sorted(run.glob("*/checkpoint/posttrain.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["method"] == "rewardmodel":
            found["reward_models"][path.parents[1].name] = facts["held_out"]
        if "change" in facts:
            found["changes"][path.parents[1].name] = facts["change"]
    for path in sorted(run.glob("*/metrics.jsonl")):
        if any("watched_exact" in line for line in lines(path)):
            found["courses"][path.parent.name] = course(path)
    for path in sorted(run.glob("*/rollouts.jsonl")):
        found["highest_rewards"][path.parent.name] = highest(path)
    place = ROOT / "docs" / "results" / PLACES[recipe["name"]] / recipe["name"] / "by_words.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
