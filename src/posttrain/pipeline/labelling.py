"""What a data maker asks its labeller about each question: metered, kept as it comes, resumed after a kill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..core.errors import CapabilityError, ConfigError
from ..core.files import write_json
from ..core.progress import progress
from ..core.protocols import Asking, Prompter, Task
from ..core.types import Asked, Cost, Sampled
from ..engines.fitting import Fitting
from ..engines.meter import Account, Metered
from ..ledger.row import Row, Samples, cold, timing_of
from ..ledger.store import Ledger, load_ledger
from ..stats.summary import summarise
from .evaluate import Clock, first_of
from .opening import Opened

__all__ = ["ask_labeller", "beside"]

_AT_ONCE = 512  # questions in flight: enough to keep every slot of the engine busy


def ask_labeller(
    maker: Asking,
    spec: str,
    *,
    task: Task,
    prompter: Prompter,
    sampled: Sequence[Sampled],
    opened: Opened,
    folder: Path,
    stage: str,
    seed: int,
    title: str,
) -> tuple[list[Sampled], Cost]:
    """Return the questions with what the labeller said of each, and what that cost; `folder` holds it as a ledger.

    A row has the costs by role and what was said in its trace; the texts that the labeller wrote are its samples.
    """
    lacking = maker.requires - opened.engine.can
    if lacking:
        raise CapabilityError(
            f"{spec}: its labeller needs an engine with {', '.join(sorted(lacking))}; this one offers "
            f"{', '.join(sorted(opened.engine.can)) or 'generation only'}"
        )
    engine = opened.engine
    with (
        Clock(folder / "clock.json") as clock,
        Ledger(folder, [item.example.id for item in sampled]) as ledger,
        progress(title, len(sampled), unit="questions", start=len(ledger.done)) as advance,
    ):
        about = {"name": opened.name, "fingerprint": engine.fingerprint}
        write_json(folder / "engine.json", about | {"shape": asdict(engine.shape) if engine.shape else None})
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(item: Sampled) -> None:
            async with gate:
                account, began = Account(), time.monotonic()
                metered = Metered(Fitting(engine), account, maker.role)
                hidden = replace(item, example=item.example.public(), scores=())  # a labeller never sees what is right
                asked = await maker.ask(task, prompter, hidden, metered, seed=seed)
                costs = {role: cold(cost) for role, cost in sorted(account.by_role().items())}
                row = Row(
                    stage=stage, task=task.name, example=item.example.id, model=opened.name, prompt="", strategy=spec,
                    seed=seed, score=None, answer=None, unparsed=False, cost=costs, trace=asked.said,
                )  # fmt: skip
                timing = timing_of(item.example.id, account.by_role(), time.monotonic() - began)
                ledger.add(row, Samples(example=item.example.id, text="", texts=asked.texts), timing)
                clock.tick()
                advance(1)

        async def every() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for item in sampled:
                        if item.example.id not in ledger.done:
                            group.create_task(one(item))
            except BaseExceptionGroup as failed:
                raise first_of(failed) from None

        asyncio.run(every())
    loaded = load_ledger(folder)
    said = {
        row.example: Asked(said=row.trace, texts=samples.texts)
        for row, samples in zip(loaded.rows, loaded.samples, strict=True)
    }
    cost = summarise(loaded.rows, loaded.timings, seconds=clock.seconds).cost
    return [replace(item, asked=said[item.example.id]) for item in sampled], cost


def beside(sampled: Sequence[Sampled], others: Sequence[Sampled], where: str) -> list[Sampled]:
    """Return the questions that both evaluations asked, with the responses of the second behind those of the first.

    What an evaluation's strategy scored and noted is of its own responses alone, and is left out.
    """
    second = {item.example.id: item for item in others}
    both = [(item, second[item.example.id]) for item in sampled if item.example.id in second]
    if not both:
        raise ConfigError(f"{where}: the two evaluations have no question in common: give them the same split and limit")
    return [
        Sampled(
            example=item.example,
            texts=item.texts + other.texts,
            scores=item.scores + other.scores,
            finishes=item.finishes + other.finishes,
            answers=item.answers + other.answers,
            own=item.own + other.own,
        )
        for item, other in both
    ]
