"""The file of kept generations: SQLite, safe for several processes at once, every row with its checksum."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files import disk_errors
from ..core.types import Completion, Usage

__all__ = ["Generations"]

_FORMAT = 1
_CHECKED = 256 << 20  # bytes: a larger file is not read through when it is opened; its rows are checked as they are read
_WAIT = 60.0  # seconds for another process's write
_MANY = 500  # keys in one query


class Generations:
    """Completions by key, in a file (or `generations.sqlite` in a folder).

    A completion with more alternatives per token (`top`) replaces one with fewer; otherwise the first one stays. Several
    processes may use one file. Raises `DataError` for a file that is damaged, or is something else, and says how to mend it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path / "generations.sqlite" if path.is_dir() or not path.suffix else path
        self._lock = threading.Lock()
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._speaking():
            self._file = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._file.close()
                raise

    def _prepare(self) -> None:
        self._file.execute("BEGIN IMMEDIATE")  # of two processes that make the file, one does
        (version,) = self._file.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in self._file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if (version, tables) not in ((0, set()), (_FORMAT, {"completions"})):
            raise DataError(
                f"{self.path} is not a cache of generations of this version of posttrain: give another --cache, or remove it"
            )
        if not tables:
            self._file.execute(
                "CREATE TABLE completions "
                "(key BLOB PRIMARY KEY, top INTEGER NOT NULL, body BLOB NOT NULL, checksum BLOB NOT NULL)"
            )
            self._file.execute(f"PRAGMA user_version={_FORMAT}")
        self._file.execute("COMMIT")
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=NORMAL")  # a crash of the machine may lose the last rows, never tear one
        if self.path.stat().st_size <= _CHECKED:
            (found,) = self._file.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)

    def get(self, keys: Sequence[bytes], *, top: int = 0) -> dict[bytes, Completion]:
        """Return what is kept of these keys with at least `top` alternatives per token; its usage is as when it was made."""
        found: dict[bytes, Completion] = {}
        with self._lock, self._speaking():
            for at in range(0, len(keys), _MANY):
                some = keys[at : at + _MANY]
                places = ",".join("?" * len(some))
                rows = self._file.execute(
                    f"SELECT key, body, checksum FROM completions WHERE key IN ({places}) AND top >= ?", (*some, top)
                )
                for key, body, checksum in rows:
                    if checksum != _checksum(key, body):
                        raise sqlite3.DatabaseError("a row does not match its checksum")
                    found[key] = _unpacked(body)
        return found

    def put(self, rows: Mapping[bytes, Completion], *, top: int = 0) -> None:
        """Keep completions; when this returns, other processes see them."""
        packed = [(key, top, body := _packed(completion), _checksum(key, body)) for key, completion in rows.items()]
        with self._lock, self._speaking():
            self._file.execute("BEGIN IMMEDIATE")
            try:
                self._file.executemany(
                    "INSERT INTO completions VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
                    "top = excluded.top, body = excluded.body, checksum = excluded.checksum WHERE excluded.top > top",
                    packed,
                )
                self._file.execute("COMMIT")
            except BaseException:
                if self._file.in_transaction:
                    self._file.execute("ROLLBACK")
                raise

    def __len__(self) -> int:
        with self._lock, self._speaking():
            return int(self._file.execute("SELECT count(*) FROM completions").fetchone()[0])

    def close(self) -> None:
        """Close the file; the write-ahead log goes into it with the last process that does."""
        with self._lock, self._speaking():
            self._file.close()

    def __enter__(self) -> Generations:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Turn what SQLite says into one sentence."""
        try:
            yield
        except sqlite3.OperationalError as error:
            said = str(error)
            if "locked" in said:
                mend = f"another process has held it for {_WAIT:.0f} s: wait until it ends, or use another --cache"
            elif "full" in said:
                mend = "the disk is full: free some space and run the same command again"
            elif "malformed" in said or "disk I/O" in said:
                raise self._damaged(said) from None
            else:
                mend = f"{said}: choose another --cache, or --no-cache"
            raise DataError(f"the cache of generations {self.path} cannot be used: {mend}") from None
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, said: str) -> DataError:
        told = " ".join(said.split())
        return DataError(
            f"the cache of generations {self.path} is damaged ({told}): remove it (what it held is generated again), or use "
            "another with --cache, or none with --no-cache"
        )


def _checksum(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(key + body, digest_size=8).digest()


def _packed(completion: Completion) -> bytes:
    values = {f.name: getattr(completion, f.name) for f in fields(completion) if f.name != "sample"}
    values["usage"] = asdict(completion.usage)
    return zlib.compress(json.dumps(values, separators=(",", ":")).encode(), 1)


def _unpacked(body: bytes) -> Completion:
    values: dict[str, Any] = json.loads(zlib.decompress(body))
    tops = values.pop("top_logprobs")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    top = None if tops is None else tuple(tuple((int(token), logprob) for token, logprob in step) for step in tops)
    return Completion(**{**values, "top_logprobs": top, "usage": Usage(**values["usage"])})
