"""Progress with rate and time left: a live bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress"]

_EVERY_SECONDS = 15.0


@contextmanager
def progress(
    description: str, total: int, *, unit: str = "it", start: int = 0, shown: bool = True
) -> Iterator[Callable[..., None]]:
    """Yield `advance(n=1, note="")`. `start` items were finished by an earlier run and do not count for the rate.

    With `shown=False` nothing is printed: of several processes one tells.
    """
    if not shown:
        yield lambda n=1, note="": None
        return
    bar = _bar if sys.stderr.isatty() else _lines
    with bar(description, total, unit, start) as advance:
        yield advance


@contextmanager
def _bar(description: str, total: int, unit: str, start: int) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(description, total=total, completed=start, rate="", note="")
        began, done = time.monotonic(), 0

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal done
            done += n
            rate = done / max(time.monotonic() - began, 1e-9)
            shown.update(task, advance=n, rate=f"{rate:.1f} {unit}/s", note=note)

        yield advance


@contextmanager
def _lines(description: str, total: int, unit: str, start: int) -> Iterator[Callable[..., None]]:
    began = last = time.monotonic()
    done, said, tail = 0, 0, ""

    def say(now: float) -> None:
        nonlocal said
        said = done
        rate = done / max(now - began, 1e-9)
        left = (total - start - done) / rate if rate else float("nan")
        text = f"{description}: {start + done}/{total}  {rate:.1f} {unit}/s"
        text += f"  {left:.0f} s left" if start + done < total else f"  {now - began:.1f} s"
        print(text + (f"  {tail}" if tail else ""), file=sys.stderr, flush=True)

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last, tail
        done += n
        tail = note
        now = time.monotonic()
        if now - last >= _EVERY_SECONDS:
            last = now
            say(now)

    yield advance
    if time.monotonic() - began >= 2.0 and said < done:
        say(time.monotonic())
