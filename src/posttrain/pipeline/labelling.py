"""What a data maker asks its labeller about each question: metered, kept as it comes, resumed after a kill."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..core.errors import CapabilityError, ConfigError
from ..core.files import write_json
from ..core.protocols import Asking, Prompter, Task
from ..core.types import Asked, Cost, Sampled
from ..engines.fitting import Fitting
from ..engines.meter import Account, Metered
from ..ledger.row import Row, Samples, cold, timing_of
from ..ledger.store import load_ledger
from ..stats.summary import summarise
from .in_flight import Finished, working
from .opening import Opened

__all__ = ["ask_labeller", "beside"]


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
    about = {"name": opened.name, "fingerprint": engine.fingerprint}
    with working(folder, [item.example.id for item in sampled], title=title, unit="questions") as work:
        write_json(folder / "engine.json", about | {"shape": asdict(engine.shape) if engine.shape else None})

        async def labelled(item: Sampled) -> Finished:
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
            return row, Samples(example=item.example.id, text="", texts=asked.texts), timing

        work.each([(item.example.id, item) for item in sampled], labelled)
    loaded = load_ledger(folder)
    said = {
        row.example: Asked(said=row.trace, texts=samples.texts)
        for row, samples in zip(loaded.rows, loaded.samples, strict=True)
    }
    cost = summarise(loaded.rows, loaded.timings, seconds=work.clock.seconds).cost
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
