"""What a run's training stages reached on held-out rows, and what the model replied on the way."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.files import read_json
from ..core.specs import parse
from ..pipeline.stages import Workshop

__all__ = ["trainings"]

_PROMPTS, _LETTERS = 3, 400  # of the report's samples; all are in the stage's samples.jsonl and rollouts.jsonl


def trainings(shop: Workshop) -> list[dict[str, Any]]:
    """Return what every training stage with held-out rows or samples reached on them."""
    found = []
    for stage in shop.recipe.stages:
        if stage.train is None:
            continue
        folder = shop.done[stage.name].folder
        facts = read_json(folder / "checkpoint" / "posttrain.json").get("evaluation")
        samples = _samples(_lines(folder / "samples.jsonl")) + _rollouts(_lines(folder / "rollouts.jsonl"))
        if facts or samples:
            tokens = parse(stage.train.method).name == "sft"
            sentence = _sentence(facts, tokens=tokens) if facts else "replies during training, without held-out rows."
            found.append(
                {"name": stage.name, "label": stage.label or stage.name, "method": stage.train.method, "held_out": facts}
                | {"losses": _course(folder, "loss"), "rewards": _course(folder, "reward")}
                | {"sentence": sentence, "samples": samples}
            )
    return found


def _sentence(facts: Mapping[str, Any], *, tokens: bool) -> str:
    """Return the losses or rewards; where losses are nats a token (not of pairs, not a divergence) as perplexities, too."""
    name = facts.get("criterion", "loss")

    def told(when: str) -> str:
        value = facts[f"{when}_{name}"]
        return f"{value:.3f} (perplexity {math.exp(value):.1f})" if tokens and value < 50 else f"{value:.3f}"

    before = f"{told('start')} before training, " if f"start_{name}" in facts else ""
    best = f"{told('best')} at step {facts['best_step']}, whose weights were kept"
    last = f"; {told('last')} at the end, step {facts['last_step']}" if facts["last_step"] > facts["best_step"] else ""
    what = "held-out rows" if name == "loss" else "held-out questions, answered greedily"
    return f"{name} on {facts['rows']} {what}: {before}{best}{last}."


def _course(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = _lines(folder / "metrics.jsonl")
    return [{"step": line["step"], name: line[f"eval_{name}"]} for line in lines if f"eval_{name}" in line]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _rollouts(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a question of the first and of the last step, with the samples that were rewarded best and worst."""
    found = []
    for line in {id(line): line for line in (lines[:1] + lines[-1:])}.values():
        ranked = sorted(line["samples"], key=lambda sample: -sample["reward"])
        replies = [
            {"step": line["step"], "text": f"(reward {sample['reward']:.2f}) {_short(sample['text'])}"}
            for sample in {sample["text"]: sample for sample in (ranked[0], ranked[-1])}.values()
        ]
        found.append({"asked": _short(line["messages"][-1]["content"]), "replies": replies})
    return found


def _samples(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for the first prompts what was asked last, and the replies at the first and at the last step."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_prompt.setdefault(json.dumps(line["messages"]), []).append(line)
    return [
        {
            "asked": _short(replies[0]["messages"][-1]["content"]),
            "replies": [
                {"step": each["step"], "text": _short(each["reply"])} for each in {0: replies[0], 1: replies[-1]}.values()
            ],
        }
        for replies in list(by_prompt.values())[:_PROMPTS]
    ]


def _short(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= _LETTERS else joined[:_LETTERS].rstrip() + " …"
