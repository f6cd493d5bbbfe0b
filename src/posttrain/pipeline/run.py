"""Running a recipe: skip what is finished, resume what was cut, run the rest, report; alone or with others on one folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from ..core.errors import ConfigError
from ..core.files import disk_errors, read_json, write_atomic, write_json
from ..training.processes import by_first_process, rank_and_world
from .done import Done, cost_to, finished_before, read_done
from .manifest import describe, maker, record
from .recipe import Recipe, StageConfig
from .reuse import check_runs, taken_over
from .sharing import SharedStages, alone
from .stages import Workshop

__all__ = ["report_finished", "run_recipe"]


Reporter = Callable[[Workshop, Console], dict[str, Any]]


def run_recipe(
    recipe: Recipe, path: Path, out: Path, report: Reporter, *, size: str | None = None, reuse: Sequence[Path] = ()
) -> dict[str, Any]:
    """Run every stage, hand the finished workshop to `report` and return what it returns.

    A stage whose key is unchanged and that is finished is skipped; an unfinished one goes on inside its folder; one
    whose settings, data, seed or inputs changed is set aside (`<folder>.old-<key>`) and runs anew. Of several processes
    under torchrun all train, and the first does everything else. The same command started again beside a running one shares
    its work: each runs the next stage that is ready and that no other runs, and waits for what it needs. A stage that one of
    the runs in `reuse` has finished, with the same key, is taken over from it.
    """
    console = Console(stderr=True)
    began = time.monotonic()
    check_runs(reuse)
    by_first_process(lambda: _begin(recipe, path, out, size, console))
    _check_folders(recipe, str(path))
    shop = Workshop(recipe, out)
    for stage in recipe.stages:
        shop.versions(stage)  # a mistake in the last stage is found now, not after an hour
    shop.tasks.check_rungs()
    try:
        _stages(shop, reuse, console)
    finally:
        shop.close()
    skipped = sum(done.skipped for done in shop.done.values())
    reported = by_first_process(lambda: _reported(shop, console, report))
    seconds = time.monotonic() - began
    console.print(
        f"{len(shop.done) - skipped} stages run, {skipped} skipped, {seconds:.0f} s; report: {out / 'report.html'}",
        highlight=False,
    )
    return reported


def report_finished(recipe: Recipe, out: Path, report: Reporter) -> dict[str, Any]:
    """Hand to `report` what is finished of a run, with these settings, and return what it returns; no stage is run.

    The report's notes name the stages that are missing; a rung that is to be compared with one of these is left out too.
    Raises `ConfigError` where there is no run, or nothing of it is finished.
    """
    if not (out / "manifest.json").is_file():
        raise ConfigError(f"{out} is no run's folder: name it with --out, or leave --finished out to start the run")
    shop = Workshop(recipe, out)
    folders, kept = _folders(shop), []
    try:
        for stage in recipe.stages:
            against = () if stage.against is None else (stage.against,)
            if not all(name in shop.done for name in (*stage.inputs, *against)):
                continue
            key, found = shop.key(stage), read_done(folders[stage.name])
            if found is not None and found["key"] == key:
                shop.done[stage.name] = finished_before(stage.name, folders[stage.name], found)
                kept.append(stage)
    finally:
        shop.close()
    missing = [stage.name for stage in recipe.stages if stage.name not in shop.done]
    if not kept:
        raise ConfigError(f"{out}: no stage is finished with these settings, so there is nothing to report")
    unfinished = f"{len(missing)} of {len(recipe.stages)} stages were not finished: {', '.join(missing)}."
    shop.recipe = recipe.model_copy(update={"stages": kept, "notes": [*recipe.notes, *([unfinished] if missing else [])]})
    return by_first_process(lambda: _reported(shop, Console(stderr=True), report))


def _folders(shop: Workshop) -> dict[str, Path]:
    return {stage.name: shop.out / f"{number:02d}-{stage.name}" for number, stage in enumerate(shop.recipe.stages, 1)}


def _check_folders(recipe: Recipe, where: str) -> None:
    """Say now, not after an hour, that a folder named in `vars` is not there."""
    for name, value in recipe.vars.items():
        if value.startswith((".", "/", "~")) and not Path(value).expanduser().exists():
            raise ConfigError(f"{where}: {name}: no such folder: {value}; say where it is with --set vars.{name}=FOLDER")


def _begin(recipe: Recipe, path: Path, out: Path, size: str | None, console: Console) -> None:
    """Make the run folder and write down what is run."""
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with alone(out, "begin"):
        for difference in record(out / "manifest.json", describe(str(path), recipe.seed, size)):
            console.print(f"[yellow]note:[/] since this run was started: {difference}", highlight=False)
        if path.is_file():
            write_atomic(out / "recipe.yaml", path.read_text(encoding="utf-8"))
        resolved = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
        write_atomic(out / "resolved.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))


def _stages(shop: Workshop, reuse: Sequence[Path], console: Console) -> None:
    """Run or read every stage; `shop.done` ends in the recipe's order, whoever finished what and when."""
    folders = _folders(shop)
    say = partial(console.print, highlight=False)
    shared = SharedStages(shop.recipe.stages, shop.out, shop.done, key=shop.key, folders=folders, say=say)
    with closing(iter(shared)) as taken:
        for stage, key, finished in taken:
            if finished is not None:
                done = finished_before(stage.name, folders[stage.name], finished)
            else:
                by_first_process(partial(shared.check_inputs, stage))
                done = _stage(shop, stage, key, folders[stage.name], reuse, console)
            shop.done[stage.name] = done
    shop.done = {name: shop.done[name] for name in folders}


def _reported(shop: Workshop, console: Console, report: Reporter) -> dict[str, Any]:
    with alone(shop.out, "report"):
        return report(shop, console)


def _stage(shop: Workshop, stage: StageConfig, key: str, folder: Path, reuse: Sequence[Path], console: Console) -> Done:
    by_first_process(lambda: _set_aside(folder, key, console))
    if found := by_first_process(lambda: _taken_over(stage.name, key, folder, [shop.out, *reuse], console)):
        return finished_before(stage.name, folder, found)
    by_first_process(lambda: _make_room(folder, key))
    if rank_and_world()[0] == 0:
        console.rule(f"[bold]{stage.label or stage.name}[/]", align="left")
    run = partial(shop.run, stage, folder, key)
    cost = run() if stage.train is not None else by_first_process(run)
    record_done = {
        "stage": stage.name,
        "key": key,
        "cost": cost_to(cost),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": maker(),
    }
    by_first_process(lambda: write_json(folder / "DONE.json", record_done))
    return Done(name=stage.name, key=key, folder=folder, cost=cost)


def _set_aside(folder: Path, key: str, console: Console) -> None:
    """Move what has a stage's place and another key."""
    marker = folder / "KEY.json"
    if marker.is_file():
        old = str(read_json(marker).get("key", "unknown"))
        if old != key:
            aside = folder.with_name(f"{folder.name}.old-{old[:8]}")
            suffix = 1
            while aside.exists():
                suffix += 1
                aside = folder.with_name(f"{folder.name}.old-{old[:8]}-{suffix}")
            folder.rename(aside)
            console.print(
                f"{folder.name}: settings or inputs changed; the former results are in {aside.name}", highlight=False
            )


def _taken_over(name: str, key: str, folder: Path, runs: Sequence[Path], console: Console) -> dict[str, Any] | None:
    """Take over a stage that another run has finished; one begun here goes on here."""
    if folder.exists():
        return None
    found = taken_over(name, key, folder, runs)
    if found is None:
        return None
    console.print(f"{name}: taken over from {found}", highlight=False)
    return read_done(folder)


def _make_room(folder: Path, key: str) -> None:
    """Make a stage's folder, or keep that of a cut run of the same stage."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "KEY.json", {"key": key})
