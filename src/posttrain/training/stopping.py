"""Being asked to stop: a training that gets Ctrl-C or SIGTERM ends its step and saves its state before it goes.

What clusters send before they take a machine back is SIGTERM. A second signal stops at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from .processes import any_process, say

__all__ = ["StopRequest", "heeding_signals"]

HEEDED = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Which signal has come, if one has."""

    def __init__(self) -> None:
        self._signal: int | None = None

    @property
    def noted(self) -> bool:
        """Whether this process has been asked."""
        return self._signal is not None

    def everywhere(self) -> bool:
        """Return whether any process has been asked: all of them stop after the same step. Every process has to ask."""
        return any_process(self.noted)

    def obey(self) -> NoReturn:
        """Leave as the signal would, but by an exception: files are closed on the way."""
        if self._signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt  # a process that got no signal leaves with the others

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        say("asked to stop: this step is finished and its state saved first (ask again to stop at once)")


@contextmanager
def heeding_signals() -> Iterator[StopRequest]:
    """Note the first SIGINT or SIGTERM instead of dying of it; the next one is obeyed at once.

    What was set for these signals before is set again at the first of them, and at the end, where a signal that nobody has
    obeyed is. Only the main thread of a program gets signals: elsewhere nothing is changed.
    """
    asked = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in HEEDED}
    before = {
        number: handler for number, handler in before.items() if handler is not signal.SIG_IGN
    }  # by whoever started it

    def restored() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(number: int, frame: FrameType | None) -> None:
        restored()
        asked._note(number, frame)

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        restored()
    if asked.noted:
        asked.obey()
