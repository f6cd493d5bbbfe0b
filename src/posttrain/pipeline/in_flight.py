"""Many questions at once, each kept in a ledger as it is finished: what evaluating, labelling and judging share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..core.errors import PosttrainError
from ..core.files import read_json, write_json
from ..core.progress import progress
from ..ledger.row import Row, Samples, Timing
from ..ledger.store import Ledger

__all__ = ["Clock", "Finished", "Work", "working"]

_AT_ONCE = 512  # questions in flight: enough to keep every slot of the engine busy

_Q = TypeVar("_Q")
Finished = tuple[Row, Samples, Timing]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A folder's ledger, the clock of all runs on it, and the progress bar."""

    ledger: Ledger
    clock: Clock
    advance: Callable[..., None]

    def each(
        self, asked: Sequence[tuple[str, _Q]], answer: Callable[[_Q], Awaitable[Finished]], *,
        earlier: Callable[[str], Awaitable[None]] | None = None, note: Callable[[Row], str] = lambda row: "",
    ) -> None:  # fmt: skip
        """Answer what the ledger does not hold yet, and keep each row as it comes; the first failure ends the others.

        Args:
            asked: pairs of an example's id and what `answer` is given.
            answer: gives what is kept of one.
            earlier: called in its turn with the id of an example that the ledger holds already.
            note: what the progress bar says once a row is there.
        """
        asyncio.run(self._all(asked, answer, earlier, note))

    async def _all(
        self, asked: Sequence[tuple[str, _Q]], answer: Callable[[_Q], Awaitable[Finished]],
        earlier: Callable[[str], Awaitable[None]] | None, note: Callable[[Row], str],
    ) -> None:  # fmt: skip
        gate, done = asyncio.Semaphore(_AT_ONCE), frozenset(self.ledger.done)

        async def one(what: _Q) -> None:
            async with gate:
                row, samples, timing = await answer(what)
                self.ledger.add(row, samples, timing)
                self.clock.tick()
                self.advance(1, note=note(row))

        async def held(example: str) -> None:
            if earlier is not None:
                await earlier(example)

        try:
            async with asyncio.TaskGroup() as group:
                for example, what in asked:
                    group.create_task(held(example) if example in done else one(what))
        except BaseExceptionGroup as failed:  # the others were cancelled; one sentence is enough
            raise _first_of(failed) from None


@contextmanager
def working(folder: Path, examples: Sequence[str], *, title: str, unit: str) -> Iterator[Work]:
    """Open a folder's work on these examples; every run on it goes on where the last one was."""
    with (
        Clock(folder / "clock.json") as clock,
        Ledger(folder, list(examples)) as ledger,
        progress(title, len(examples), unit=unit, start=len(ledger.done)) as advance,
    ):
        yield Work(ledger=ledger, clock=clock, advance=advance)


def _first_of(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first failure of several, one that the user can mend if there is one."""
    mendable = failed.subgroup(PosttrainError) or failed
    first = mendable.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


class Clock:
    """Wall time over all runs of a folder, good to a few seconds when a run is killed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = float(read_json(path)["seconds"]) if path.is_file() else 0.0

    def __enter__(self) -> Clock:
        self._began = self._saved = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._save()

    @property
    def seconds(self) -> float:
        """Wall seconds so far."""
        return self._before + (self._saved - self._began)

    def tick(self) -> None:
        """Keep the time so far, every few seconds."""
        if time.monotonic() - self._saved > 5:
            self._save()

    def _save(self) -> None:
        self._saved = time.monotonic()
        write_json(self._path, {"seconds": round(self.seconds, 3)})
