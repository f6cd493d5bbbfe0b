"""When two answers are the same answer: a canonical form for voting, and equality for grading.

Numbers are compared as exact fractions here. Other mathematics goes to math-verify, in a small pool of processes; one that
takes longer than a hard time limit is killed and replaced. Such kills are counted (`timeouts`) and logged, never silent.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import re
import subprocess
import sys
import threading
from functools import lru_cache

from .numerals import number, number_key, plain

__all__ = ["answer_key", "compare_mathematics", "same_mathematics", "same_number", "timeouts"]

_log = logging.getLogger(__name__)
_SECONDS = 10.0  # for one comparison
_START_SECONDS = 60.0  # a worker imports sympy first; that is no part of a comparison's time


def answer_key(answer: str) -> str:
    """Return a canonical form: equal numbers have equal keys, other texts differ by more than spaces and LaTeX dressing."""
    found = number_key(answer)
    if found is not None:
        return found
    text = plain(answer).strip("$").rstrip(".").strip()
    text = re.sub(r"\s*([,;()\[\]{}+*/=^<>|-])\s*", r"\1", text)
    return re.sub(r"\s+", " ", text)


def same_number(gold: str, answer: str) -> bool:
    """Return whether both are numbers with the same value."""
    value = number(gold)
    return value is not None and value == number(answer)


def same_mathematics(gold: str, answer: str, *, seconds: float = _SECONDS) -> bool:
    """Return whether two expressions are mathematically equal; False when that cannot be decided within the limit."""
    return bool(compare_mathematics(gold, answer, seconds=seconds))


def compare_mathematics(gold: str, answer: str, *, seconds: float = _SECONDS) -> bool | None:
    """Return whether two expressions are mathematically equal; None when that could not be decided within the limit.

    It waits: call it in a thread where others should go on meanwhile. As many comparisons run at once as there are workers.
    """
    if answer_key(gold) == answer_key(answer):
        return True
    if number(gold) is not None and number(answer) is not None and "%" not in gold + answer:
        return False
    return _compare(gold, answer, seconds)


@lru_cache(maxsize=4096)
def _compare(gold: str, answer: str, seconds: float) -> bool | None:
    return _pool.ask(gold, answer, seconds)


def timeouts() -> int:
    """Return how many comparisons of this process were given up at the time limit."""
    return _pool.timeouts


class _Checker:
    """One worker process, started when first needed and again after a kill; safe to call from any thread."""

    def __init__(self) -> None:
        self.timeouts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: queue.Queue[bytes] = queue.Queue()
        self._lock = threading.Lock()

    def ask(self, gold: str, answer: str, seconds: float) -> bool | None:
        """Return math-verify's opinion; None when the worker was killed at the limit, or died twice."""
        with self._lock:
            for attempt in (1, 2):
                alive = self._process is not None and self._process.poll() is None
                process = self._process if alive else self._start()
                assert process is not None
                assert process.stdin is not None
                try:
                    if not alive and not self._replies.get(timeout=_START_SECONDS):
                        raise BrokenPipeError  # it died before it was ready
                    process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
                    reply = self._replies.get(timeout=seconds)
                except queue.Empty:
                    self.timeouts += 1
                    _log.warning(
                        "comparing %r with %r took more than %g s: counted as different", gold[:80], answer[:80], seconds
                    )
                    self.stop()
                    return None
                except BrokenPipeError:
                    reply = b""
                if reply:
                    return bool(json.loads(reply))
                self.stop()  # the worker died (out of memory, killed): once more with a new one
                if attempt == 2:
                    _log.warning(
                        "comparing %r with %r ended the worker process: counted as different", gold[:80], answer[:80]
                    )
            return None

    def _start(self) -> subprocess.Popen[bytes]:
        self.stop()
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "posttrain.tasks._math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # nothing left unwritten in a buffer when the worker dies
        )
        replies: queue.Queue[bytes] = queue.Queue()
        self._replies = replies

        def read() -> None:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    replies.put(line)
            replies.put(b"")  # the end

        threading.Thread(target=read, daemon=True).start()
        return process

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


class _Pool:
    """Checkers, each started when first needed; the one used last is used first, so that few run when few are needed."""

    def __init__(self, size: int) -> None:
        self._checkers = [_Checker() for _ in range(size)]
        self._free: queue.LifoQueue[_Checker] = queue.LifoQueue()
        for checker in self._checkers:
            self._free.put(checker)

    @property
    def timeouts(self) -> int:
        return sum(checker.timeouts for checker in self._checkers)

    def ask(self, gold: str, answer: str, seconds: float) -> bool | None:
        checker = self._free.get()  # its time runs only from here: waiting for a free one does not count
        try:
            return checker.ask(gold, answer, seconds)
        finally:
            self._free.put(checker)

    def stop(self) -> None:
        for checker in self._checkers:
            checker.stop()


_pool = _Pool(max(1, min(4, os.cpu_count() or 1)))
atexit.register(_pool.stop)
