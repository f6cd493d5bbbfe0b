"""Stages of one run folder shared by several processes: each takes the next one that is ready and that no other holds.

Who holds a stage is a lock on a file, which the system lets go of when its process ends, however it ends. Locks work between
machines where the folder's file system has them (NFS 4 does).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..core.errors import PosttrainError
from ..core.files import disk_errors
from ..training.processes import by_first_process
from .done import Done, read_done
from .recipe import StageConfig

__all__ = ["SharedStages", "alone"]

_LOCKS = ".locks"
_LOOK = 0.5  # seconds between two looks at what others have finished


class SharedStages:
    """Hands out a recipe's stages to this process, one at a time, until all are finished here or elsewhere.

    `key` gives a stage's key once its inputs are in `done`, `folders` where it is, `say` tells the user one line.
    """

    def __init__(
        self,
        stages: Sequence[StageConfig],
        out: Path,
        done: Mapping[str, Done],
        *,
        key: Callable[[StageConfig], str],
        folders: Mapping[str, Path],
        say: Callable[[str], None],
    ) -> None:
        self.waiting = {stage.name: stage for stage in stages}
        self.out, self.done = out, done
        self.key, self.folders, self.say = key, folders, say
        self._held: FileLock | None = None
        self._keys: dict[str, str] = {}
        self._told: list[str] = []

    def __iter__(self) -> Generator[tuple[StageConfig, str, dict[str, Any] | None]]:
        """Yield each stage, its key and its record if it is finished; else it is held until the next is asked for."""
        try:
            while self.waiting:
                name, key, finished = by_first_process(self._next)
                yield self.waiting.pop(name), key, finished
                self._let_go()
        finally:
            self._let_go()

    def _next(self) -> tuple[str, str, dict[str, Any] | None]:
        while True:
            ready = [stage for stage in self.waiting.values() if all(name in self.done for name in stage.inputs)]
            busy = []
            for stage in ready:
                key = self._keys.get(stage.name) or self._keys.setdefault(stage.name, self.key(stage))
                if (found := self._finished(stage, key)) is not None:
                    return stage.name, key, found
                if self._hold(stage):
                    return stage.name, key, self._finished(stage, key)  # another may have finished it since
                busy.append(stage.name)
            if busy != self._told:
                self._told = busy
                self.say(f"waiting for {', '.join(busy)}: another process of this run works on it")
            time.sleep(_LOOK)

    def _finished(self, stage: StageConfig, key: str) -> dict[str, Any] | None:
        found = read_done(self.folders[stage.name])
        return found if found is not None and found["key"] == key else None

    def _hold(self, stage: StageConfig) -> bool:
        lock = _lock(self.out, stage.name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._held = lock
        return True

    def _let_go(self) -> None:
        """Let go of the stage held, if one is."""
        if self._held is not None:
            self._held.release()
            self._held = None

    def check_inputs(self, stage: StageConfig) -> None:
        """Raise `PosttrainError` where another process has since made one of a stage's inputs anew, from other settings."""
        for name in stage.inputs:
            found = read_done(self.done[name].folder)
            if found is None or found["key"] != self.done[name].key:
                raise PosttrainError(
                    f"stage '{stage.name}': its input '{name}' was made anew by another process with other settings; "
                    "run the recipe as it is now again"
                )


@contextmanager
def alone(out: Path, what: str) -> Iterator[None]:
    """Do something that one process of a run does at a time."""
    with _lock(out, f"-{what}"):  # no stage's name begins so
        yield


def _lock(out: Path, name: str) -> FileLock:
    with disk_errors(out):
        (out / _LOCKS).mkdir(parents=True, exist_ok=True)
    return FileLock(out / _LOCKS / f"{name}.lock")
