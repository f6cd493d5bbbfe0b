"""Reading rows from files, folders and the hub; a broken line is an error that names the file, the line and the remedy."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.errors import DataError, did_you_mean

__all__ = ["read_rows", "require_columns"]

_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def read_rows(source: str | Path, *, split: str | None = None, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the rows of a data source, at most `limit` of them.

    `source` is a JSONL, JSON (array of objects), CSV (with header) or Parquet file, a folder that `datasets` saved or
    that holds such files, or a hub id (`owner/name`). `split` (default "train") chooses among the splits of the latter
    two. Raises `DataError` naming file, line and remedy when it is missing, empty, broken, or holds anything but objects.
    """
    path = Path(source).expanduser()
    if path.is_file():
        rows = _file(path, limit)
    elif path.is_dir():
        rows = _folder(path, split, limit)
    elif path.suffix.lower() in _SUFFIXES or len(path.parts) != 2:
        near = [other.name for other in path.parent.iterdir() if other.suffix in _SUFFIXES] if path.parent.is_dir() else []
        raise DataError(f"no such data file: {path}{did_you_mean(path.name, near) if near else ''}")
    else:
        rows = _hub(str(source), split, limit)
    if not rows:
        raise DataError(f"{source}: no rows" + (f" (limit {limit})" if limit is not None else "; the source is empty"))
    return rows


def require_columns(rows: Sequence[dict[str, Any]], columns: Sequence[str], where: str) -> None:
    """Raise `DataError` if a row lacks one of `columns`, naming the row, the nearest present column and all of them."""
    for number, row in enumerate(rows, start=1):
        for column in columns:
            if column not in row:
                near = did_you_mean(column, row)
                listed = "" if "choose from" in near else f" (columns: {', '.join(sorted(row)) or 'none'})"
                raise DataError(f"{where}, row {number}: no column '{column}'{near}{listed}")


def _file(path: Path, limit: int | None) -> list[dict[str, Any]]:
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: cannot read '{path.suffix}' files; convert it to one of {', '.join(readers)}")
    try:
        return list(islice(reader(path), limit))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.rstrip())
            except json.JSONDecodeError as error:
                if number == 1 and line.strip() in ("[", "{"):
                    raise DataError(f"{path}: this is a JSON document, not one object per line; name it .json") from None
                raise DataError(
                    f"{path}, line {number}: not valid JSON ({error.msg} at column {error.colno}): {_short(line)}"
                ) from None
            yield _object(row, f"{path}, line {number}")


def _json(path: Path) -> Iterator[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        hint = "; it has one object per line: name it .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg} at column {error.colno}){hint}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds one {_kind(rows)}, but rows are wanted: an array of objects")
    for number, row in enumerate(rows, start=1):
        yield _object(row, f"{path}, row {number}")


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    fields = len(reader.fieldnames or [])
                    found = sum(value is not None for value in row.values()) + (len(row[None]) - 1 if None in row else 0)
                    raise DataError(f"{path}, line {reader.line_num}: {found} fields, but the header names {fields}")
                yield dict(row)
        except csv.Error as error:
            raise DataError(f"{path}, after line {reader.line_num}: not valid CSV ({error})") from None


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row must be a JSON object, this is a {_kind(row)}: {_short(json.dumps(row))}")
    return row


def _kind(value: Any) -> str:
    return {list: "list", dict: "object", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def _short(line: str) -> str:
    line = line.strip()
    return line if len(line) <= 100 else line[:100] + " …"


def _folder(path: Path, split: str | None, limit: int | None) -> list[dict[str, Any]]:
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        from datasets import load_from_disk

        found = load_from_disk(str(path))
        return _rows(found[_split(list(found), split, str(path))] if hasattr(found, "keys") else found, limit)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise DataError(f"{path}: holds no data file ({', '.join(_SUFFIXES)}) and no saved dataset")
    if split is not None:  # train.jsonl, train-00000-of-00002.parquet
        files = [file for file in files if file.stem.split("-")[0] == split]
        if not files:
            raise DataError(f"{path}: no file for split '{split}' ({split}.jsonl, {split}-….parquet)")
    elif len({file.stem.split("-")[0] for file in files}) > 1:
        raise DataError(f"{path}: holds several files ({', '.join(file.name for file in files[:5])}); name one, or a split")
    rows: list[dict[str, Any]] = []
    for file in files:
        rows += _file(file, None if limit is None else limit - len(rows))
    return rows


def _hub(name: str, split: str | None, limit: int | None) -> list[dict[str, Any]]:
    from datasets import get_dataset_split_names, load_dataset
    from huggingface_hub import HfApi, constants

    try:
        if not constants.HF_HUB_OFFLINE:  # one question first: `datasets` would try five times over half a minute
            HfApi().dataset_info(name, timeout=10)
        chosen = _split(get_dataset_split_names(name), split, name)
        return _rows(load_dataset(name, split=chosen), limit)
    except DataError:
        raise
    except Exception as error:  # the hub client raises whatever its transport, cache or parsers do
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"cannot read '{name}': there is no such file, and the hub does not have it or cannot be reached ({reason}); "
            "HF_HUB_OFFLINE=1 uses what was downloaded before"
        ) from None


def _split(splits: Sequence[str], split: str | None, where: str) -> str:
    wanted = split or ("train" if "train" in splits or len(splits) != 1 else splits[0])
    if wanted not in splits:
        raise DataError(f"{where}: no split '{wanted}'{did_you_mean(wanted, splits)}")
    return wanted


def _rows(dataset: Any, limit: int | None) -> list[dict[str, Any]]:
    chosen = dataset if limit is None else dataset.select(range(min(limit, len(dataset))))
    return [dict(row) for row in chosen]
