"""Judging replies that are there: two evaluations' against each other, or one's by themselves; metered, resumable."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError
from ..core.protocols import Engine, Task
from ..core.seeds import rng
from ..core.specs import parse
from ..core.types import Cost, Example
from ..engines.meter import Account, Metered
from ..ledger.row import Row, Samples, cold, timing_of
from ..ledger.store import load_ledger
from ..stats.win_rate import win_of
from ..tasks.extraction import strip_thinking
from ..verifiers.build import build_judge, build_verifier, check_spec, compares
from .in_flight import Finished, working
from .verifying import open_once

__all__ = ["Judging", "check_judge", "drawn", "judge_replies", "references", "replies"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """What is judged. `others` are what each reply is compared with; None: each is scored by itself."""

    stage: str
    task: Task
    examples: Sequence[Example]
    texts: Mapping[str, str]
    others: Mapping[str, str] | None
    by: str
    named: str  # `by` as rows name it: without this machine's folders
    model: str
    seed: int


def check_judge(spec: str, *, alone: bool) -> type[Any]:
    """Return a judge's class; raises `ConfigError` for one that does not exist or cannot do it. Nothing is loaded."""
    cls = check_spec(spec)
    fields = {f.name for f in dataclasses.fields(cls)}
    if alone and (compares(spec) or getattr(cls, "relative", False)):
        raise ConfigError(f"'{spec}' compares replies: an objective needs what scores one by itself, such as 'judge'")
    if not alone and getattr(cls, "relative", False):
        raise ConfigError(f"'{spec}' scores replies against each other: to compare two, name the judge 'pairwise'")
    if {"engine", "model"} <= fields and parse(spec).params.get("model") is None:
        raise ConfigError(f"'{spec}': say who judges, with its setting model=…")
    return cls


def replies(folder: Path, where: str) -> dict[str, str]:
    """Return the replies that a finished evaluation settled on, by example, without their thinking."""
    found = {sample.example: strip_thinking(sample.text) or "" for sample in load_ledger(folder).samples}
    if not found:
        raise DataError(f"{where}: {folder} holds no replies")
    return found


def references(examples: Sequence[Example], where: str) -> dict[str, str]:
    """Return the task's own replies: the worked solution where there is one, else the answer."""
    found = {}
    for example in examples:
        text = example.rationale or example.answer
        if not text:
            raise ConfigError(f"{where}: example '{example.id}' has no reference reply: compare with an evaluation instead")
        found[example.id] = text
    return found


def drawn(examples: Sequence[Example], draw: int | None, seed: int, where: str) -> Sequence[Example]:
    """Return so many of the examples, drawn by the seed, in their order; all if none are asked."""
    if draw is None:
        return examples
    if draw > len(examples):
        raise ConfigError(f"{where}: draw is {draw}, and the evaluation answered {len(examples)} questions: draw fewer")
    chosen = rng(seed, "draw", "judged").sample(range(len(examples)), draw)
    return [examples[i] for i in sorted(chosen)]


def judge_replies(judging: Judging, folder: Path, *, title: str) -> Cost:
    """Judge the replies that the folder's ledger does not hold yet, and return the cost of all.

    A row's `score` is the first side's outcome (1 won, 0 lost, ½ tied; of two orders the mean) and `answer` "a", "b" or
    "tie"; of replies scored alone the value stands in the trace. Raises `DataError` when the sides answer different
    questions.
    """
    for others in (judging.texts, judging.others):
        missing = [] if others is None else [example.id for example in judging.examples if example.id not in others]
        if missing:
            raise DataError(f"stage '{judging.stage}': example '{missing[0]}' was answered by one of the two only")

    async def judged(example: Example) -> Finished:
        began, account = time.monotonic(), Account()
        row, samples = await _judged(judging, example, account)
        return row, samples, timing_of(example.id, account.by_role(), time.monotonic() - began)

    examples = [(example.id, example) for example in judging.examples]
    with working(folder, [name for name, _ in examples], title=title, unit="replies") as work:
        work.each(examples, judged)
    loaded = load_ledger(folder)
    cost = sum((row.cold() for row in loaded.rows), Cost())
    return replace(cost, flops_spent=math.fsum(t.flops_spent for t in loaded.timings), seconds=work.clock.seconds)


async def _judged(judging: Judging, example: Example, account: Account) -> tuple[Row, Samples]:
    def meter(engine: Engine, role: str) -> Engine:
        return Metered(engine, account, role)

    texts = (judging.texts[example.id], *(() if judging.others is None else (judging.others[example.id],)))
    trace: dict[str, Any] = {"lengths": [len(text) for text in texts]}
    public, win, tally = example.public(), None, None
    if judging.others is not None and compares(judging.by):
        judge = build_judge(judging.by, task=judging.task, meter=meter, opener=open_once)
        verdict = await judge(public, *texts)
        win, tally = win_of(verdict.said), getattr(judge, "tally", None)
        trace["said"] = list(verdict.said)
        if verdict.probability_a is not None:
            trace["probability"] = round(verdict.probability_a, 4)
        unread = "unparsed" in verdict.said
    else:
        golds = {example.id: example}
        verifier = build_verifier(judging.by, task=judging.task, golds=golds, meter=meter, opener=open_once)
        found = await verifier(public, texts)
        values = [round(score.value, 4) if math.isfinite(score.value) else None for score in found]  # as rows of a batch
        trace["values"], tally, unread = values, getattr(verifier, "tally", None), None in values
        if judging.others is not None:
            ours, theirs = values
            win = 0.5 if ours is None or theirs is None or ours == theirs else float(ours > theirs)
    if tally:
        trace["verifiers"] = {judging.named: dict(tally)}
    row = Row(
        stage=judging.stage,
        task=judging.task.name,
        example=example.id,
        model=judging.model,
        prompt="",
        strategy=judging.named,
        seed=judging.seed,
        score=win,
        answer=None if win is None else "tie" if win == 0.5 else "a" if win > 0.5 else "b",
        unparsed=unread,
        cost={role: cold(cost) for role, cost in sorted(account.by_role().items())},
        trace=trace,
    )
    return row, Samples(example=example.id, text=texts[0], texts=texts)
