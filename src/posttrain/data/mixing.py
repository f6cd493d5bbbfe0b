"""Several sources as one: `a.jsonl*0.7,b.parquet*0.3`, the same on the command line and in recipes.

A source is `PLACE[@SPLIT][*WEIGHT]`. One source is read as it is, in its own order. Several without weights are all their
rows, shuffled by the seed. With weights w₁ … w_k (any positive numbers, given to all), source i with n_i rows gives

    m_i ≈ N w_i / Σ w   rows, drawn without replacement by the seed,   N = min_i n_i Σ w / w_i:

the largest mix in these proportions that repeats no row, so at least one source is used up; what the others keep back is
counted.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError
from ..core.seeds import rng
from .sources import read_rows

__all__ = ["Mix", "Source", "content_hash", "parse_sources", "portions", "read_mix"]

Prepare = Callable[[Sequence[Mapping[str, Any]], str], Sequence[Mapping[str, Any]]]
_SOURCE = re.compile(r"(?P<data>.+?)(?:@(?P<split>[A-Za-z0-9_.-]+))?(?:\*(?P<weight>[^*]*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file, folder or hub id, which of its splits, and its weight in a mix (None: all its rows)."""

    data: str
    split: str | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Rows of one or several sources; `used` and `unused` count each source's rows, by its place."""

    rows: tuple[Mapping[str, Any], ...]
    used: Mapping[str, int]
    unused: Mapping[str, int]


def parse_sources(given: str | Sequence[str | Mapping[str, Any]]) -> tuple[Source, ...]:
    """Read sources from one text or from a list of texts and mappings (`data`, `split`, `weight`); raises `ConfigError`.

    A text that is the path of an existing file or folder is that path, whatever characters it holds.
    """
    if isinstance(given, str):
        given = [given] if Path(given).expanduser().exists() else given.split(",")
    sources = tuple(_source(item) for item in given)
    if not sources:
        raise ConfigError("no data source: give a file, a folder or a hub id")
    weighted = [source for source in sources if source.weight is not None]
    if weighted and len(sources) == 1:
        raise ConfigError(
            f"{sources[0].data}: a weight says nothing of a single source; leave '*{weighted[0].weight:g}' out"
        )
    if weighted and len(weighted) < len(sources):
        bare = next(source for source in sources if source.weight is None)
        raise ConfigError(f"{bare.data} has no weight, but other sources have: give a weight to all of them or to none")
    places = [(source.data, source.split) for source in sources]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice[0]} is given twice as a data source: its rows would be repeated")
    return sources


def portions(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return how many rows each source gives: in these proportions, to the nearest row, as many as there are.

    N = min_i n_i Σ w / w_i; shares N w_i / Σ w are rounded by largest remainder, never above n_i.
    """
    total = math.fsum(weights)
    most = min(size * total / weight for size, weight in zip(sizes, weights, strict=True))
    exact = [most * weight / total for weight in weights]
    found = [min(math.floor(share + 1e-9), size) for share, size in zip(exact, sizes, strict=True)]
    left = round(math.fsum(exact)) - sum(found)
    for i in sorted(range(len(sizes)), key=lambda i: (found[i] - exact[i], i)):
        if left > 0 and found[i] < sizes[i]:
            found[i], left = found[i] + 1, left - 1
    return found


def read_mix(
    given: str | Sequence[str | Mapping[str, Any]],
    *,
    seed: int,
    limit: int | None = None,
    prepare: Prepare | None = None,
) -> Mix:
    """Read sources into one list of rows; the same sources and seed give the same rows in the same order.

    `prepare(rows, where)` is applied to each source before mixing, so that its errors name the source's own row numbers.
    """
    sources = parse_sources(given)
    read: list[Sequence[Mapping[str, Any]]] = []
    for source in sources:
        found = read_rows(source.data, split=source.split, limit=limit if len(sources) == 1 else None)
        read.append(found if prepare is None else prepare(found, source.data))
    names = [source.data + (f"@{source.split}" if source.split else "") for source in sources]
    if len(sources) == 1:
        return Mix(rows=tuple(read[0]), used={names[0]: len(read[0])}, unused={names[0]: 0})
    sizes = [len(rows) for rows in read]
    weights = [source.weight for source in sources if source.weight is not None]
    wanted = portions(sizes, weights) if weights else sizes
    for name, count, weight in zip(names, wanted, weights or [1.0] * len(names), strict=True):
        if count == 0:
            smallest = min(zip(sizes, names, strict=True))
            raise DataError(
                f"{name} would give no row at weight {weight:g}: {smallest[1]} has only {smallest[0]}, which ends the mix; "
                "raise the weight or add rows"
            )
    mixed: list[Mapping[str, Any]] = []
    for i, (rows, count) in enumerate(zip(read, wanted, strict=True)):
        mixed += rng(seed, "mix", i).sample(list(rows), count)
    rng(seed, "mix", "order").shuffle(mixed)
    unused = {name: size - count for name, size, count in zip(names, sizes, wanted, strict=True)}
    return Mix(rows=tuple(mixed[:limit]), used=dict(zip(names, wanted, strict=True)), unused=unused)


def content_hash(given: str | Sequence[str | Mapping[str, Any]]) -> str:
    """Return a hash of the sources' rows, splits and weights: it changes when what they would give changes."""
    digest = hashlib.sha256()
    for source in parse_sources(given):
        digest.update(json.dumps([source.data, source.split, source.weight]).encode())
        for row in read_rows(source.data, split=source.split):
            text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
            digest.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _source(item: str | Mapping[str, Any]) -> Source:
    if isinstance(item, Mapping):
        unknown = sorted(set(item) - {"data", "split", "weight"})
        if unknown or not isinstance(item.get("data"), str):
            what = f"unknown key '{unknown[0]}'" if unknown else "'data' is missing"
            raise ConfigError(f"data source {dict(item)!r}: {what}; the keys are data, split and weight")
        if item.get("split") is not None and not isinstance(item["split"], str):
            raise ConfigError(f"data source {dict(item)!r}: 'split' must be a text")
        return Source(data=item["data"], split=item.get("split"), weight=_weight(item.get("weight"), item["data"]))
    text = item.strip()
    if text and Path(text).expanduser().exists():
        return Source(data=text)
    matched = _SOURCE.fullmatch(text)
    if matched is None:
        raise ConfigError(f"data source {item!r}: write PLACE, PLACE@SPLIT, PLACE*WEIGHT or PLACE@SPLIT*WEIGHT")
    return Source(data=matched["data"], split=matched["split"], weight=_weight(matched["weight"], matched["data"]))


def _weight(given: Any, data: str) -> float | None:
    if given is None:
        return None
    try:
        weight = float(given)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(f"data source {data}: weight {given!r} is not a positive number")
    return weight
