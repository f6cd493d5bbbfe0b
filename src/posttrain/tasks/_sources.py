"""Where a benchmark's rows come from: `--data` in its forms, files, folders and hub ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError, did_you_mean

__all__ = ["SPLITS", "hold_out", "only", "row_sources", "splits_in"]

SPLITS = ("train", "validation", "test")
Rows = Sequence[Mapping[str, Any]]
_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def row_sources(
    data: str | Path | Mapping[str, str],
    *,
    name: str,
    folder: Path | None = None,
    of_one_file: Callable[[Callable[[], Rows]], dict[str, Callable[[], Rows]]] = lambda read: {"test": read},
) -> dict[str, Callable[[], Rows]]:
    """Return split -> function that reads its rows.

    Args:
        data: a file (the test split), a folder with a file per split (`<name>_train.jsonl` or `train.jsonl`), a hub id
            (its own splits), `train=FILE,test=FILE`, or a mapping of the same.
        name: the task's name.
        folder: relative paths are first looked for here.
        of_one_file: what splits a single file's rows are; they are the test split unless it says otherwise.
    """
    if isinstance(data, str) and "=" in data and not Path(data).exists():
        pairs = [piece.partition("=")[::2] for piece in data.split(",")]
        data = {split.strip(): place.strip() for split, place in pairs}
    if isinstance(data, Mapping):
        for split in data:
            if split not in SPLITS:
                raise ConfigError(f"unknown split '{split}' in data: use {', '.join(SPLITS)}")
        return {split: partial(_read, _place(place, folder), split) for split, place in data.items()}
    place = _place(str(data), folder)
    if isinstance(place, str):  # a hub id has splits of its own
        return {split: partial(_read, place, split) for split in ("train", "test")}
    if not place.is_dir():
        return of_one_file(partial(_read, place, "test"))
    files = {split: found for split in SPLITS if (found := _file_of(place, name, split)) is not None}
    if not files:
        raise DataError(
            f"{place}: no test.jsonl or {name}_test.jsonl (or train, validation; or {', '.join(_SUFFIXES[1:])}) here"
        )
    return {split: partial(_read, file, split) for split, file in files.items()}


def splits_in(sources: Mapping[str, Callable[[], Rows]], column: str, name: str) -> dict[str, Callable[[], Rows]]:
    """Return the splits that a column of a single source's rows names: train, validation and test."""
    if len(sources) != 1:
        return dict(sources)
    (read,) = sources.values()
    return {split: only({split: read}, {column: split}, name)[split] for split in SPLITS}


def hold_out(
    read: Callable[[], Rows], share: float, asked: Callable[[Mapping[str, Any]], str]
) -> dict[str, Callable[[], Rows]]:
    """Return one file's rows as train and test.

    A row is of the test split if the hash of what it asks, as a number in [0, 1), is below `share`: a row that is added
    moves no other one, and rows that ask the same are on one side.
    """

    def place(row: Mapping[str, Any]) -> float:
        return int.from_bytes(hashlib.sha256(asked(row).encode()).digest()[:8]) / 2**64

    return {
        "train": lambda: [row for row in read() if place(row) >= share],
        "test": lambda: [row for row in read() if place(row) < share],
    }


def only(sources: Mapping[str, Callable[[], Rows]], wanted: Mapping[str, Any], name: str) -> dict[str, Callable[[], Rows]]:
    """Return sources of the rows whose columns have the wanted values (one, or one of a list)."""

    def kept(read: Callable[[], Rows]) -> Rows:
        rows = read()
        for column in wanted:
            if not any(column in row for row in rows):
                columns = list(dict.fromkeys(key for row in rows for key in row))
                raise DataError(f"task '{name}': no row has a column '{column}'{did_you_mean(column, columns)}")
        values = {column: {str(v) for v in (v if isinstance(v, list) else [v])} for column, v in wanted.items()}
        return [row for row in rows if all(str(row.get(column)) in value for column, value in values.items())]

    return {split: partial(kept, read) for split, read in sources.items()}


def _place(text: str, folder: Path | None) -> Path | str:
    """Return a path, or the text itself when it can only be a hub id (`owner/name` with no such file)."""
    for path in ([folder / text] if folder else []) + [Path(text)]:
        if path.exists():
            return path
    path = Path(text)
    if path.suffix in _SUFFIXES or path.is_absolute() or text.startswith(".") or text.count("/") != 1:
        return folder / text if folder and not path.is_absolute() else path
    return text


def _file_of(folder: Path, name: str, split: str) -> Path | None:
    for stem in (f"{name}_{split}", split):
        found = [path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES and path.stem == stem]
        if len(found) > 1:
            raise DataError(f"{folder}: several files for split '{split}': {', '.join(path.name for path in found)}")
        if found:
            return found[0]
    return None


def _read(place: Path | str, split: str) -> Rows:
    from ..data.sources import read_rows

    rows: Rows = read_rows(str(place), split=split if isinstance(place, str) else None)
    return rows
