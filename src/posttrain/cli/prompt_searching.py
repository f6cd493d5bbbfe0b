"""`posttrain prompt-search`: find an instruction, and say on held-out examples what it is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AsJson, Data, Device, Dtype, MaxTokens, Seed, Slots, Task, Template

__all__ = ["prompt_search"]


def prompt_search(
    model: Annotated[str, typer.Option("--model", "-m", help="The model that answers (and proposes).")],
    task: Task,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What the instruction is put before.")] = "zero_shot",
    strategy: Annotated[str, typer.Option("--strategy", "-s", help="How questions are answered.")] = "greedy",
    proposer: Annotated[str | None, typer.Option(help="Another model that proposes.")] = None,
    candidates: Annotated[int, typer.Option(min=0, help="How many proposals to ask for.")] = 32,
    instruction: Annotated[list[str] | None, typer.Option(help="An instruction of yours to try; may be repeated.")] = None,
    score: Annotated[str, typer.Option(help="accuracy, or likelihood of the right answers.")] = "accuracy",
    demonstrations: Annotated[int, typer.Option(min=1, help="Examples shown per proposal.")] = 5,
    propose: Annotated[int, typer.Option(min=1, help="Training examples that demonstrations come from.")] = 40,
    select: Annotated[int, typer.Option(min=1, help="Training examples that the last round scores on.")] = 64,
    first: Annotated[int, typer.Option(min=1, help="Examples that the first round scores on, at least.")] = 16,
    keep: Annotated[float, typer.Option(help="Share of the candidates that survives a round.")] = 0.5,
    data: Data = None,
    split: Annotated[str, typer.Option(help="Which split to report on.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Report on at most this many examples.")] = None,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; the same command goes on in it.")] = Path(
        "runs/prompt-search"
    ),
    slots: Slots = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    chat_template: Template = None,
    as_json: AsJson = False,
) -> None:
    """Search for the instruction under which a model answers best, and measure it on examples the search never saw."""
    from ..core.specs import instantiate
    from ..pipeline.points import Models
    from ..pipeline.prompt_search import PromptSearch
    from ..pipeline.prompt_search import prompt_search as search
    from .prompt_points import bench_of

    settings = {
        "candidates": candidates,
        "demonstrations": demonstrations,
        "propose": propose,
        "select": select,
        "first": first,
        "keep": keep,
        "score": score,
        "prompt": prompt,
    }
    plan = instantiate(PromptSearch, settings, where="prompt-search")
    bench, examples = bench_of(
        out,
        task,
        Models(device=device, dtype=dtype, slots=slots, chat_template=chat_template),
        command="prompt-search",
        prompts=[prompt],
        strategy=strategy,
        data=data,
        split=split,
        limit=limit,
        max_tokens=max_tokens,
        seed=seed,
    )
    found = search(plan, bench, examples, model=model, proposer=proposer, given=instruction or ())
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _show(found, out)


def _show(found: Mapping[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..report.words import interval, percent, points, probability, si

    console = Console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("score", "on", "from", "instruction"):
        table.add_column(name, justify="right" if name in ("score", "on") else "left", overflow="fold")
    for row in found["table"][:10]:
        last = row["rounds"][-1]
        score = percent(last["score"]) if found["search"]["score"] == "accuracy" else f"{last['score']:.3f}"
        table.add_row(score, str(last["n"]), row["source"], escape(row["instruction"]) or "[dim](none)[/]")
    console.print(table)
    report, counts = found["report"], found["proposals"]
    lost = f"{counts['empty']} empty, {counts['cut']} cut, {counts['repeated']} repeated"
    console.print(f"proposals: {counts['kept']} of {counts['asked']} ({lost})", highlight=False)
    console.print(f"[bold]winner:[/] {escape(found['instruction']) or '(no instruction)'}", highlight=False)
    for name in ("without", "winner"):
        told = report[name]
        console.print(
            f"held out, {name}: {percent(told['accuracy'])} {interval(told['ci95'])}, n = {told['n']}", highlight=False
        )
    if "difference" in report:
        pair = report["difference"]
        told = f"{points(pair['difference'])} points {interval(pair['ci95'])}, p {probability(pair['p'])}"
        console.print(f"difference, paired: {told}", highlight=False)
    cost = found["cost"]["search"]
    tokens = cost["prompt"] + cost["generated"] + cost["scored"]
    console.print(f"the search cost {si(tokens)} tokens once; use it: --prompt instructed:file={out / 'prompt_search.json'}")
