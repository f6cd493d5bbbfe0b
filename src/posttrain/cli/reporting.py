"""From a finished run to its report: which stages are rungs, what each had to pay once."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from ..core.files import read_json
from ..core.protocols import Task
from ..core.types import Example
from ..ledger.store import load_ledger
from ..pipeline.alignment import REFERENCES
from ..pipeline.evaluate import shots_dropped
from ..pipeline.manifest import made_by
from ..pipeline.recipe import StageConfig
from ..pipeline.stages import Workshop
from ..report.alignment import Judged, alignment
from ..report.build import Rung, Trained, build_report, oracle_rows, print_report
from ..report.constant import constant_notes
from ..report.proxy_gold import course_of
from .trainings import trainings

__all__ = ["report_run"]


def report_run(shop: Workshop, console: Console) -> dict[str, object]:
    """Write `report.*` and `figures/` of a finished run, print its table and return the report."""
    recipe = shop.recipe
    rungs: list[Rung] = []
    for stage in recipe.stages:
        if stage.eval is None or stage.lever is None:
            continue
        rungs.append(_rung(shop, stage))
        if stage.oracle_of is not None:
            rungs.append(_oracle(rungs[-1], stage.oracle_of))
    told, judged = trainings(shop), _judged(shop)
    if not rungs and not told and not judged:
        console.print("no stage has a 'lever', trained with held-out rows or judged: nothing to report", highlight=False)
        return {}
    meta = {
        "model": recipe.model,
        "task": ", ".join(dict.fromkeys(rung.asked for rung in rungs)),
        "seed": recipe.seed,
        **made_by(shop.out / "manifest.json", [read_json(d.folder / "DONE.json") for d in shop.done.values()]),
    }
    constants = constant_notes(rungs, _questions(shop, rungs))
    notes = [*recipe.notes, *constants, *_pair_notes(shop), *_dropped_notes(rungs)]
    trained = [_trained(shop, stage) for stage in recipe.stages if stage.train is not None]
    report = build_report(
        recipe.title or recipe.name,
        rungs,
        shop.out,
        meta=meta,
        notes=notes,
        training=told,
        trained=trained,
        judged=judged,
    )
    print_report(report, Console())
    for note in constants:  # of all notes the one that a result must not be read without
        console.print(note, highlight=False)
    return report


def _rung(shop: Workshop, stage: StageConfig) -> Rung:
    assert stage.eval is not None
    assert stage.lever is not None
    done = shop.done[stage.name]
    loaded = load_ledger(done.folder)
    return Rung(
        name=stage.name,
        label=stage.label or stage.name,
        lever=stage.lever,
        rows=loaded.rows,
        timings=loaded.timings,
        fixed=shop.fixed_cost(stage),
        seconds=done.cost.seconds,
        prompt=shop.prompt(stage.eval),
        strategy=stage.eval.strategy,
        model=stage.model or (stage.eval.teacher if stage.eval else None) or shop.recipe.model,
        against=stage.against,
        parameters=_parameters(done.folder / "engine.json"),
        oracle=any(row.trace.get("oracle") for row in loaded.rows),  # a verifier that looked at the gold answers
        note=stage.note,
        task=stage.eval.task if stage.eval.task in shop.recipe.tasks else "",
        texts=[samples.texts for samples in loaded.samples] if stage.lever == "diversity" else (),
    )


def _parameters(path: Path) -> int | None:
    """Return the size of the model that answered; None for a server, which does not tell it."""
    shape = read_json(path)["shape"] if path.is_file() else None
    return None if shape is None else int(shape["parameters"])


def _questions(shop: Workshop, rungs: list[Rung]) -> dict[str, tuple[Task, list[Example]]]:
    """Return each ladder's task and the questions that its rungs answered."""
    found: dict[str, tuple[Task, list[Example]]] = {}
    for rung in rungs:
        if rung.oracle or rung.asked in found:
            continue
        stage = shop.recipe.stage(rung.name)
        assert stage.eval is not None
        answered = {row.example for row in rung.rows}
        examples = [example for example in shop.tasks.examples(stage, stage.eval) if example.id in answered]
        found[rung.asked] = shop.tasks.of(stage), examples
    return found


def _judged(shop: Workshop) -> dict[str, object] | None:
    """Return what the judging stages found."""
    recipe, asked = shop.recipe, shop.recipe.objectives
    found: list[Judged] = []
    models = {} if asked is None else asked.models  # an objective may be of another evaluation of the same model
    for stage in recipe.stages:
        if stage.judge is None:
            continue
        of = recipe.stage(models.get((stage.judge.objective or "", stage.judge.of), stage.judge.of))
        against = stage.judge.against
        other = None if against is None else "reference replies" if against == REFERENCES else _label(recipe.stage(against))
        found.append(
            Judged(
                name=stage.name,
                of=of.name,
                label=_label(of),
                by=stage.judge.by,
                rows=load_ledger(shop.done[stage.name].folder).rows,
                against=other,
                objective=stage.judge.objective,
            )
        )
    weights = {} if asked is None else {name: objective.weight for name, objective in asked.scores.items()}
    return alignment(found, weights=weights, scale="raw" if asked is None else asked.scale)


def _label(stage: StageConfig) -> str:
    return stage.label or stage.name


def _trained(shop: Workshop, stage: StageConfig) -> Trained:
    assert stage.train is not None
    done = shop.done[stage.name]
    made = read_json(done.folder / "checkpoint" / "posttrain.json")
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return Trained(
        name=stage.name,
        label=stage.label or stage.name,
        method=stage.train.method,
        weights=int(made["parameters"]["trained"]),
        share=made["parameters"]["share"],
        peak_bytes=done.cost.peak_bytes,
        seconds=done.cost.seconds,
        tokens=done.cost.usage.scored,
        flops=done.cost.flops,
        steps=len(lines),
        losses=(lines[0]["loss"], lines[-1]["loss"]),
        held_out=made.get("evaluation"),
        course=course_of(_label(stage), lines, made.get("evaluation")),
    )


def _oracle(rung: Rung, label: str) -> Rung:
    """Return the same samples as a perfect verifier would choose from them."""
    return Rung(
        name=f"{rung.name}-oracle",
        label=label,
        lever="oracle",
        rows=oracle_rows(rung.rows),
        timings=rung.timings,
        fixed=rung.fixed,
        seconds=rung.seconds,
        prompt=rung.prompt,
        strategy=rung.strategy,
        model=rung.model,
        oracle=True,
    )


def _pair_notes(shop: Workshop) -> list[str]:
    """Say what data makers kept and left out: their counts belong beside the result."""
    notes = []
    for stage in shop.recipe.stages:
        if stage.data is not None and stage.data.source is not None:
            folder = shop.done[stage.name].folder
            counts = read_json(folder / "counts.json")
            told = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items())
            notes.append(f"Data of '{stage.name}': {told}.")
            if (folder / "facts.json").is_file():
                notes += [f"'{stage.name}': {note}" for note in read_json(folder / "facts.json")["notes"]]
    return notes


def _dropped_notes(rungs: list[Rung]) -> list[str]:
    """Say where prompts did not fit the context and lost worked examples."""
    notes = []
    for rung in rungs:
        dropped = shots_dropped(rung.rows)
        if dropped["examples"] and not rung.oracle:
            told = f"{dropped['examples']} of {len(rung.rows)} prompts did not fit the context"
            notes.append(f"{rung.label}: {told} and lost their first worked examples ({dropped['shots']} in all).")
    return notes
