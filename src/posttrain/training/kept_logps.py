"""A cache of reference log-probabilities for all runs: the same start on the same rows is read once.

Micro-batches are kept as a whole, under a hash of the start's content, of what touches rounding, and of the token ids and
masks in their order. So a value from the cache is the number that would be computed, bit for bit on one machine, and a run
with it is the run without it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch

from ..models.aliases import cache_folder
from ..models.forward import Forward, TokenSequence
from .processes import say

__all__ = ["KeptLogps"]

_WAIT = 60.0  # seconds for another process's write


class KeptLogps:
    """Σ log π(token) of the sequences of whole micro-batches, in `reference.sqlite` of the cache folder (`POSTTRAIN_CACHE`).

    `start` names the model by content, with the kind of adapter in front of it. A file that cannot be read or written is
    told once and left alone: everything is computed then.
    """

    def __init__(self, start: str, module: Forward, *, path: Path | None = None) -> None:
        self.path = path or cache_folder() / "reference.sqlite"
        weights = next(module.parameters())
        numbers = [
            str(weights.dtype),
            weights.device.type,
            torch.get_num_threads(),
            module.packs,
            module.lag,
            torch.__version__,
        ]
        self._prefix = json.dumps([start, *numbers])
        self._usable = True

    def key(self, groups: Sequence[Sequence[TokenSequence]]) -> str:
        """Return what identifies a micro-batch under this start."""
        content = [[(list(sequence.ids), [int(m) for m in sequence.mask]) for sequence in group] for group in groups]
        return hashlib.sha256(f"{self._prefix}{json.dumps(content)}".encode()).hexdigest()

    def get(self, key: str) -> list[list[float]] | None:
        """Return what is kept, a list for each group; None if there is nothing."""
        if not self._usable or not self.path.exists():
            return None
        try:
            with closing(self._open()) as file:
                found = file.execute("SELECT sums FROM logps WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            self._leave(error)
            return None
        return None if found is None else [[float(x) for x in group] for group in json.loads(found[0])]

    def put(self, key: str, sums: Sequence[Sequence[float]]) -> None:
        """Keep a micro-batch's values; JSON writes a float so that the same float is read."""
        if not self._usable:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as file, file:
                file.execute("INSERT OR REPLACE INTO logps VALUES (?, ?)", (key, json.dumps(sums)))
        except (sqlite3.Error, OSError) as error:
            self._leave(error)

    def _open(self) -> sqlite3.Connection:
        file = sqlite3.connect(self.path, timeout=_WAIT)
        try:
            file.execute("CREATE TABLE IF NOT EXISTS logps (key TEXT PRIMARY KEY, sums TEXT NOT NULL)")
        except BaseException:
            file.close()
            raise
        return file

    def _leave(self, error: Exception) -> None:
        self._usable = False
        say(
            f"the cache of reference log-probabilities is left alone: {self.path}: {error} (remove it, or set "
            "POSTTRAIN_CACHE to another folder)"
        )
