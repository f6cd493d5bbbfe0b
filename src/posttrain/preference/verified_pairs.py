"""Preference pairs from a model's own samples, judged by the task's verifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

from ..core.errors import DataError
from ..core.protocols import Prompter, Task
from ..core.seeds import rng
from ..core.types import Made, Sampled

__all__ = ["VerifiedPairs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedPairs:
    """Pair a right response with a wrong one to the same question, both the model's own.

    Questions answered all right or all wrong teach nothing and give no pair (counted). Responses cut by the length
    limit are never chosen and never rejected: a pair should be about being right, not about stopping. At most
    `per_question` different pairs are taken per question. With `match=any` they are drawn by the seed, wrong responses
    before any is used twice. With `match=beginning` every wrong response is paired with the right one that begins like it
    for longest, and pairs that part latest come first: what differs is then the wrong step and what follows from it,
    not the wording (the idea of Step-DPO, Lai et al. 2024, arXiv 2406.18629, who sample on from the same beginning).
    """

    version: ClassVar[str] = "2"
    kind: ClassVar[str] = "data"
    measured: ClassVar[bool] = True
    cost: ClassVar[str] = "the sampling of the evaluation it reads"
    fails: ClassVar[str] = "questions are answered all right or all wrong, so that few give pairs"
    summary: ClassVar[str] = "preference pairs from verified samples of an earlier evaluation"

    per_question: int = 2
    match: Literal["any", "beginning"] = "any"

    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made:
        rows, counts = [], {"questions": len(sampled), "all_right": 0, "all_wrong": 0, "mixed": 0}
        for item in sampled:
            whole = [i for i, finish in enumerate(item.finishes) if finish == "stop"]
            right = sorted({item.texts[i] for i in whole if item.scores[i] == 1.0})
            wrong = sorted({item.texts[i] for i in whole if item.scores[i] != 1.0})
            if not right or not wrong:
                counts["all_right" if right else "all_wrong"] += 1
                continue
            counts["mixed"] += 1
            draw = rng(seed, "verified_pairs", item.example.id)
            draw.shuffle(right)
            draw.shuffle(wrong)
            pairs = _nearest(right, wrong) if self.match == "beginning" else _in_turn(right, wrong)
            prompt = prompter(task, item.example.public(), seed=seed)
            messages = [message.to_dict() for message in prompt.messages]
            for chosen, rejected in islice(pairs, self.per_question):
                rows.append({"id": item.example.id, "prompt": messages, "chosen": chosen, "rejected": rejected})
        if not rows:
            raise DataError(
                f"no preference pairs: of {len(sampled)} questions {counts['all_right']} were answered all right and "
                f"{counts['all_wrong']} all wrong; sample more responses per question or take a task of middling difficulty"
            )
        return Made(rows=tuple(rows), counts=counts | {"rows": len(rows)})


def _in_turn(right: Sequence[str], wrong: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((right[(i + turn) % len(right)], text) for turn in range(len(right)) for i, text in enumerate(wrong))


def _nearest(right: Sequence[str], wrong: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [(max(right, key=lambda answer: _shared(answer, text)), text) for text in wrong]
    return sorted(pairs, key=lambda pair: -_shared(*pair))


def _shared(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
