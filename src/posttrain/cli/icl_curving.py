"""`posttrain icl-curve`: accuracy against the number of examples in the prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError
from .options import AsJson, Device, Dtype, MaxTokens, Seed, Slots, Split, Template

__all__ = ["icl_curve"]


def icl_curve(
    model: Annotated[list[str], typer.Option("--model", "-m", help="As for eval; repeat for several lines.")],
    task: Annotated[list[str], typer.Option("--task", "-t", help="As for eval; repeat for the mean over tasks.")],
    shots: Annotated[str, typer.Option("--shots", "-k", help="Numbers of shots.")] = "0,1,2,4,8",
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="few_shot or few_shot_cot, with settings.")] = "few_shot",
    instruction: Annotated[str, typer.Option(help="with the task's instruction, without, or both.")] = "both",
    tuned: Annotated[list[str] | None, typer.Option(help="A fine-tuned model to compare with; may be repeated.")] = None,
    strategy: Annotated[str, typer.Option("--strategy", "-s", help="How questions are answered.")] = "greedy",
    data: Annotated[str | None, typer.Option("--data", help="The task's rows, as for eval (one task).")] = None,
    split: Split = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Answer at most this many examples of each task.")] = None,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; the same command goes on in it.")] = Path(
        "runs/icl-curve"
    ),
    slots: Slots = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    chat_template: Template = None,
    as_json: AsJson = False,
) -> None:
    """Draw the in-context learning curve: accuracy against shots and against model size, beside a fine-tuned model."""
    from ..pipeline.icl_curve import IclCurve
    from ..pipeline.icl_curve import icl_curve as measure
    from ..pipeline.points import Models
    from ..report.prompt_figures import draw_icl
    from .prompt_points import bench_of

    both = {"both": (True, False), "with": (True,), "without": (False,)}
    if instruction not in both:
        raise ConfigError(f"--instruction {instruction!r}: choose with, without or both")
    if data is not None and len(task) > 1:
        raise ConfigError("--data belongs to one task: with several, put it into their YAML files")
    curve = IclCurve(shots=_numbers(shots), prompt=prompt, instructions=both[instruction])
    models = Models(device=device, dtype=dtype, slots=slots, chat_template=chat_template)
    benches = [
        bench_of(
            out,
            one,
            models,
            command="icl-curve",
            prompts=[],
            strategy=strategy,
            data=data,
            split=split,
            limit=limit,
            max_tokens=max_tokens,
            seed=seed,
        )
        for one in task
    ]
    found = measure(curve, benches, out, models=model, tuned=tuned or ())
    draw_icl(found, out / "figures")
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _show(found, out)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--shots {text!r}: give numbers with commas between them, for example 0,1,2,4,8") from None


def _show(found: Mapping[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..report.words import interval, percent

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("model", overflow="fold")
    for k in found["shots"]:
        table.add_column(f"{k} shots", justify="right")
    for line in found["lines"]:
        cells = [
            f"{percent(point['accuracy'])}{'*' if point['shots_dropped'] else ''}\n[dim]{interval(point['ci95'])}[/]"
            for point in line["points"]
        ]
        table.add_row(escape(line["model"]) + ("" if line["instruction"] else "\n[dim]no instruction[/]"), *cells)
    for point in found["tuned"]:
        told = f"{percent(point['accuracy'])}\n[dim]{interval(point['ci95'])}[/]"
        table.add_row(escape(point["model"]) + "\n[dim]fine-tuned, no shots[/]", told)
    console = Console()
    console.print(f"{escape(', '.join(found['tasks']))}  [dim]{escape(found['prompt'])}[/]", highlight=False)
    console.print(table)
    if any(point["shots_dropped"] for line in found["lines"] for point in line["points"]):
        console.print("* some prompts did not fit the context and lost shots", highlight=False)
    console.print(f"all numbers: {out / 'icl_curve.json'}; figures: {out / 'figures'}", highlight=False)
