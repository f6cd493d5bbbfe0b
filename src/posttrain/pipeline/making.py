"""What a data stage does: read sources of rows, or hand a maker what it makes rows from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.files import file_hash
from ..core.protocols import Asking
from ..core.seeds import rng
from ..core.types import Made
from ..data.mixing import content_hash, parse_sources, read_mix
from ..data.rows import rows_with_scores
from .methods import build_maker, build_prompter
from .opening import static_fingerprint
from .recipe import DataStage, Recipe, StageConfig

__all__ = [
    "draw_rows", "joined", "labeller_facts", "makers_of", "on_rows", "part_of_rows", "read_hashes", "read_sources",
    "read_stages",
]  # fmt: skip


def makers_of(stage: StageConfig, config: DataStage, recipe: Recipe) -> list[Any]:
    """Return a stage's data maker, and the prompter it asks with if it has one of its own; a wrong setting is said here."""
    if config.sources is not None:
        parse_sources(config.sources)
    if config.maker is None:
        return []
    maker = build_maker(config.maker)
    for sources in getattr(maker, "reads", ()):
        parse_sources(sources)
    mixes = getattr(maker, "takes", "samples") == "rows"
    if config.source is not None and mixes != (recipe.stage(config.source).data is not None):
        kind = "data" if mixes else "evaluation"
        raise ConfigError(f"stage '{stage.name}': {config.maker}: 'from' must name an earlier {kind} stage")
    if mixes and (config.source is None) == (not getattr(maker, "domain", "")):
        raise ConfigError(
            f"stage '{stage.name}': {config.maker}: name the domain's rows once, by 'from: DATA_STAGE' or by domain=FILE"
        )
    asks = isinstance(maker, Asking)
    if asks and config.source is None:
        raise ConfigError(
            f"stage '{stage.name}': {config.maker}: 'from' must name the evaluation whose responses are judged"
        )
    for name in ("labeller", "beside"):
        if getattr(config, name) is not None and not asks:
            raise ConfigError(f"stage '{stage.name}': {config.maker} asks no labeller: leave '{name}' out")
    own = getattr(maker, "prompt", "")
    return [maker, build_prompter(own)] if own else [maker]


def read_hashes(config: DataStage) -> list[str]:
    """Return a hash of each of the sources that a stage reads beside earlier stages."""
    if config.sources is not None:
        return [content_hash(config.sources)]
    reads = getattr(build_maker(config.maker), "reads", ()) if config.maker is not None else ()
    return [content_hash(sources) for sources in reads]


def labeller_facts(config: DataStage) -> dict[str, Any]:
    """Return what decides a labeller's answers beside settings and earlier stages: its model and files, by content."""
    found: dict[str, Any] = {}
    if config.labeller is not None and config.labelled_by is None:
        found["model"] = static_fingerprint(config.labeller)
    if config.maker is not None and (files := getattr(build_maker(config.maker), "files", ())):
        found["files"] = [file_hash(Path(file)) for file in files]
    return found


def read_sources(given: str | Sequence[str | Mapping[str, Any]], *, seed: int) -> Made:
    """Return the rows of one or several sources as training rows, and how many each gave and kept back."""
    mix = read_mix(given, seed=seed, prepare=rows_with_scores)
    unused = {f"unused of {name}": count for name, count in mix.unused.items() if count}
    return Made(rows=mix.rows, counts={**mix.used, **unused, "rows": len(mix.rows)})


def read_stages(given: Sequence[str] | Mapping[str, float], folders: Mapping[str, Path], *, seed: int) -> Made:
    """Return the rows of earlier data stages as one: all of them, or by weight, as several sources are mixed."""
    weights = given if isinstance(given, Mapping) else dict.fromkeys(given)
    names = {str(folders[name] / "rows.jsonl"): name for name in weights}
    made = read_sources([{"data": path, "weight": weights[name]} for path, name in names.items()], seed=seed)
    counts = {
        next((label.replace(path, name) for path, name in names.items() if path in label), label): count
        for label, count in made.counts.items()
    }
    return Made(rows=made.rows, counts=counts)


def draw_rows(
    rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int], draw: int, *, stage: str, seed: int
) -> tuple[Sequence[Mapping[str, Any]], dict[str, int]]:
    """Return so many of the rows, drawn by the seed, and counts that say how many were left."""
    if draw > len(rows):
        raise ConfigError(f"stage '{stage}': draw is {draw}, and there are {len(rows)} rows: draw fewer")
    drawn = rng(seed, "draw", "rows").sample(list(rows), draw)
    return drawn, {**counts, "rows": draw, "not drawn": len(rows) - draw}


def part_of_rows(
    rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int], part: str, *, stage: str
) -> tuple[Sequence[Mapping[str, Any]], dict[str, int]]:
    """Return the rows of a part of the prompts (2/3: the second third), so that parts share no prompt."""
    number, of = (int(text) for text in part.split("/"))
    asked = [json.dumps(row.get("prompt", row.get("messages", row)), sort_keys=True, default=str) for row in rows]
    prompts = list(dict.fromkeys(asked))
    inside = set(prompts[len(prompts) * (number - 1) // of : len(prompts) * number // of])
    kept = [row for row, prompt in zip(rows, asked, strict=True) if prompt in inside]
    if number > of or not kept:
        raise ConfigError(f"stage '{stage}': part {part} of the rows of {len(prompts)} prompts is empty")
    return kept, {**counts, "rows": len(kept), "of other parts": len(rows) - len(kept)}


def on_rows(maker: Any, rows: Path) -> Any:
    """Return a maker of mixes with the rows of an earlier data stage as its domain."""
    return replace(maker, domain=str(rows))


def joined(
    earlier: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]
) -> tuple[list[Mapping[str, Any]], dict[str, int]]:
    """Return the earlier rows and after them those that say something new, with counts that tell so."""
    found = {json.dumps({key: row[key] for key in row if key != "id"}, sort_keys=True): row for row in earlier}
    before = len(found)
    for row in rows:
        found.setdefault(json.dumps({key: row[key] for key in row if key != "id"}, sort_keys=True), row)
    told = {"earlier": before, "there_already": before + len(rows) - len(found), "rows": len(found)}
    return list(found.values()), {**counts, "new": len(rows), **told}
