"""A data stage: rows from a file, from several mixed, from earlier stages, or from a maker."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError
from ..core.files import write_atomic, write_json
from ..core.protocols import Asking
from ..core.types import Cost, Made, Sampled
from .evaluate import load_sampled
from .labelling import ask_labeller, beside
from .making import draw_rows, joined, on_rows, part_of_rows, read_sources, read_stages
from .methods import build_maker, build_prompter
from .recipe import DataStage, EvalStage, StageConfig

if TYPE_CHECKING:
    from .stages import Workshop

__all__ = ["write_rows"]


def write_rows(shop: Workshop, stage: StageConfig, config: DataStage, folder: Path) -> Cost:
    """Write a data stage's rows, with the counts that say what was kept, and return what they cost."""
    from ..data.readable import readable
    from ..data.rows import rows_with_scores
    from ..data.sources import read_rows

    cost = Cost()
    if config.file is not None:
        read: Sequence[Mapping[str, Any]] = read_rows(shop.file(config.file))
        counts: Mapping[str, int] = {}
        if config.skip_bad:
            found = readable(read, config.file, skip=True, mend="")
            read, counts = found.rows, {"bad_rows": found.bad}
        rows: Sequence[Mapping[str, Any]] = rows_with_scores(read, config.file)
        counts = {"rows": len(rows), **counts}
    else:
        try:
            made, cost = _rows(shop, stage, config, folder)
        except DataError as error:
            raise DataError(f"stage '{stage.name}': {error}") from None
        rows, counts = made.rows, made.counts
        if made.facts or made.notes:
            write_json(folder / "facts.json", {**made.facts, "notes": list(made.notes)})
    if config.part is not None:
        rows, counts = part_of_rows(rows, counts, config.part, stage=stage.name)
    if config.draw is not None:
        rows, counts = draw_rows(rows, counts, config.draw, stage=stage.name, seed=shop.recipe.seed)
    if config.also is not None:
        rows, counts = joined(read_rows(shop.done[config.also].folder / "rows.jsonl"), rows, counts)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(folder / "rows.jsonl", text)
    write_json(folder / "counts.json", dict(counts))
    return cost


def _rows(shop: Workshop, stage: StageConfig, config: DataStage, folder: Path) -> tuple[Made, Cost]:
    seed = shop.recipe.seed
    if config.sources is not None:
        return read_sources(config.sources, seed=seed), Cost()
    if config.stages is not None:
        folders = {name: done.folder for name, done in shop.done.items()}
        return read_stages(config.stages, folders, seed=seed), Cost()
    return _made(shop, stage, config, folder)


def _made(shop: Workshop, stage: StageConfig, config: DataStage, folder: Path) -> tuple[Made, Cost]:
    assert config.maker is not None
    maker = build_maker(config.maker)
    source = None if config.source is None else shop.recipe.stage(config.source)
    if source is not None and source.data is not None:
        maker = on_rows(maker, shop.done[source.name].folder / "rows.jsonl")
    asked = source.eval if source is not None else None
    labeller = None if source is None else _labeller(shop, config, source)
    sampled = [] if source is None or asked is None else _sampled(shop, source, asked, labeller)
    if config.beside is not None:
        other = shop.recipe.stage(config.beside)
        assert other.eval is not None
        sampled = beside(sampled, _sampled(shop, other, other.eval, labeller), f"stage '{stage.name}'")
    prompter = build_prompter("zero_shot" if asked is None else shop.prompt(asked))
    task: Any = shop.tasks.of(stage) if shop.tasks.needed(stage) else None  # a maker of mixes asks nothing
    seed, cost = shop.recipe.seed, Cost()
    if isinstance(maker, Asking) and labeller is not None:
        sampled, cost = ask_labeller(
            maker, config.maker, task=task, prompter=prompter, sampled=sampled, opened=shop.opened(labeller),
            folder=folder, stage=stage.name, seed=seed, title=stage.label or stage.name,
        )  # fmt: skip
    return maker(task, prompter, sampled, seed=seed), cost


def _sampled(shop: Workshop, source: StageConfig, asked: EvalStage, labeller: str | None) -> list[Sampled]:
    """Return an evaluation's graded responses, marked as the labeller's own where its model gave them."""
    found = load_sampled(shop.done[source.name].folder, shop.tasks.examples(source, asked))
    own = shop.model_ref(source) == labeller
    return [replace(item, own=(own,) * len(item.texts)) for item in found]


def _labeller(shop: Workshop, config: DataStage, source: StageConfig) -> str:
    """Return what to load as a data stage's labeller: an earlier stage's model, a model, or the one that was sampled."""
    if config.labelled_by is not None:
        return str(shop.done[config.labelled_by].folder / "checkpoint")
    return config.labeller or shop.model_ref(source)
