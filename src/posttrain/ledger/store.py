"""The store of result rows: appended as they finish, safe against a kill at any moment, sorted at close.

Three files in a folder: `ledger.jsonl` (rows), `samples.jsonl` (response texts), `timings.jsonl` (what depends on the
run). A row counts as finished when all three hold its example; its ledger line is written last.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Generic, TypeVar

from ..core.errors import DataError
from ..core.files import disk_errors, write_atomic
from .row import Record, Row, Samples, Timing, from_json, to_json

__all__ = ["Ledger", "Loaded", "load_ledger"]

R = TypeVar("R", Row, Samples, Timing)


def _say(sentence: str) -> None:
    print(f"note: {sentence}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The finished rows of a folder with their texts and timings, in the file's order."""

    rows: tuple[Row, ...]
    samples: tuple[Samples, ...]
    timings: tuple[Timing, ...]


class Ledger:
    """Rows of one evaluation, kept in `folder`; opening it again goes on where the last run stopped.

    `examples` are the ids in the order that the closed files shall have. Raises `DataError` for a broken line (a torn
    last one is dropped and said), for a row of an example not in the list, and for a folder that another process writes.
    """

    def __init__(self, folder: Path, examples: Iterable[str], *, say: Callable[[str], None] = _say) -> None:
        self.folder = folder
        self._order = {example: index for index, example in enumerate(examples)}
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(folder)
        self._open: tuple[IO[str], IO[str], IO[str]] | None = None
        try:
            loaded, notes = _load(folder)
            for row in loaded.rows:
                if row.example not in self._order:
                    raise DataError(
                        f"{folder / 'ledger.jsonl'} holds a row for example '{row.example}', which this evaluation does not "
                        f"ask: choose another folder, or remove this one"
                    )
            if notes:
                _write(folder, loaded)
            for note in notes:
                say(note)
            self._rows = {row.example: row for row in loaded.rows}
            self._samples = {samples.example: samples for samples in loaded.samples}
            self._timings = {timing.example: timing for timing in loaded.timings}
            with disk_errors(folder):
                self._open = tuple((folder / name).open("a", encoding="utf-8", newline="\n") for name in _FILES)  # type: ignore[assignment]
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def done(self) -> Set[str]:
        """Ids of the finished examples: a view that grows with them."""
        return self._rows.keys()

    @property
    def rows(self) -> tuple[Row, ...]:
        """The finished rows, in the order of the examples."""
        return tuple(self._sorted(self._rows.values()))

    @property
    def samples(self) -> tuple[Samples, ...]:
        """The texts of the finished rows, in the order of the examples."""
        return tuple(self._sorted(self._samples.values()))

    @property
    def timings(self) -> tuple[Timing, ...]:
        """The timings of the finished rows, in the order of the examples."""
        return tuple(self._sorted(self._timings.values()))

    def add(self, row: Row, samples: Samples, timing: Timing) -> None:
        """Append a finished row; when this returns, a kill does not lose it."""
        if self._open is None:
            raise ValueError("the ledger is closed")
        if not row.example == samples.example == timing.example:
            raise ValueError(f"three records of different examples: {row.example}, {samples.example}, {timing.example}")
        if row.example not in self._order:
            raise ValueError(f"example '{row.example}' is not in the list this ledger was opened with")
        if row.example in self._rows:
            raise ValueError(f"example '{row.example}' is already finished")
        lines = [_line(record, self.folder) for record in (samples, timing, row)]
        with disk_errors(self.folder):
            for file, line in zip(self._open, lines, strict=True):
                file.write(line)
                file.flush()
        self._rows[row.example], self._samples[row.example], self._timings[row.example] = row, samples, timing

    def close(self) -> None:
        """Sort the files by the order of the examples, so that a resumed ledger equals an uninterrupted one."""
        if self._open is None:
            return
        for file in self._open:
            file.close()
        self._open = None
        try:
            _write(self.folder, Loaded(rows=self.rows, samples=self.samples, timings=self.timings))
        finally:
            os.close(self._lock)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def _sorted(self, records: Iterable[R]) -> list[R]:
        return sorted(records, key=lambda record: self._order[record.example])


def load_ledger(folder: Path) -> Loaded:
    """Read the finished rows of a folder without changing it; raises `DataError` when there are none or a line is broken."""
    if not (folder / "ledger.jsonl").is_file():
        raise DataError(f"no ledger in {folder}: give the folder of an evaluation, the one that holds ledger.jsonl")
    return _load(folder)[0]


_FILES = ("samples.jsonl", "timings.jsonl", "ledger.jsonl")  # the order of writing: the ledger's line makes a row finished


@dataclass(frozen=True, slots=True)
class _File(Generic[R]):
    path: Path
    records: dict[str, R]
    torn: bool


def _load(folder: Path) -> tuple[Loaded, list[str]]:
    """Return the rows that all three files agree on, and a sentence for each thing that was left out."""
    samples: _File[Samples] = _read(folder / _FILES[0], Samples)
    timings: _File[Timing] = _read(folder / _FILES[1], Timing)
    rows: _File[Row] = _read(folder / _FILES[2], Row)
    whole = samples.records.keys() & timings.records.keys() & rows.records.keys()
    partial = (samples.records.keys() | timings.records.keys() | rows.records.keys()) - whole
    notes = [
        f"{file.path}: the last line was cut in the middle and is dropped" for file in (samples, timings, rows) if file.torn
    ]
    if partial:
        count = f"{len(partial)} example{'s were' if len(partial) > 1 else ' was'}"
        notes.append(f"{folder}: {count} stopped between two writes and will be done again")
    loaded = Loaded(
        rows=tuple(rows.records[example] for example in rows.records if example in whole),
        samples=tuple(samples.records[example] for example in rows.records if example in whole),
        timings=tuple(timings.records[example] for example in rows.records if example in whole),
    )
    return loaded, notes


def _read(path: Path, kind: type[R]) -> _File[R]:
    data = path.read_bytes() if path.is_file() else b""
    lines = data.split(b"\n")
    tail = lines.pop()  # empty unless the last write was cut
    records: dict[str, R] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = from_json(kind, json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError, ValueError) as error:
            raise DataError(
                f"{path}, line {number}: broken: {error}; remove the line (its example is done again) or the folder"
            ) from None
        if record.example in records:
            raise DataError(
                f"{path}, line {number}: a second row for example '{record.example}'; remove one of the two lines"
            )
        records[record.example] = record
    return _File(path, records, torn=bool(tail))


def _line(record: Record, where: Path) -> str:
    try:
        text = json.dumps(to_json(record), ensure_ascii=False, allow_nan=False)
        # a model can write half of a surrogate pair, which UTF-8 has no bytes for
        text = json.dumps(to_json(record)) if any("\ud800" <= char <= "\udfff" for char in text) else text
        return text + "\n"
    except ValueError:
        raise DataError(
            f"{where}: the {type(record).__name__.lower()} of example '{record.example}' holds a number that is not finite"
        ) from None


def _write(folder: Path, loaded: Loaded) -> None:
    parts: tuple[Sequence[Record], ...] = (loaded.samples, loaded.timings, loaded.rows)
    for name, records in zip(_FILES, parts, strict=True):
        write_atomic(folder / name, "".join(_line(record, folder) for record in records))


def _lock(folder: Path) -> int:
    """Hold the folder for one writing process; the system lets go when the process ends, however it ends."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise DataError(
            f"{folder}: another process is writing this ledger; wait until it ends or choose another folder"
        ) from None
    except OSError:
        pass  # a network file system without locks: there is nothing to hold
    return handle
