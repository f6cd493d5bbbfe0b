"""`posttrain sensitivity`: how much accuracy depends on order, wording and format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AsJson, Data, Device, Dtype, Limit, MaxTokens, Seed, Slots, Split, Task, Template

__all__ = ["sensitivity"]


def sensitivity(
    model: Annotated[str, typer.Option("--model", "-m", help="As for eval.")],
    task: Task,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The prompt whose variants are tried.")] = "few_shot:k=4",
    strategy: Annotated[str, typer.Option("--strategy", "-s", help="How questions are answered.")] = "greedy",
    orders: Annotated[int, typer.Option(min=0, help="Orders of the same shots; 0: do not vary.")] = 8,
    wording: Annotated[
        list[str] | None, typer.Option(help="An instruction to try; may be repeated [default: six neutral ones].")
    ] = None,
    wordings: Annotated[bool, typer.Option(help="Vary the wording.")] = True,
    formats: Annotated[bool, typer.Option(help="Vary the format.")] = True,
    data: Data = None,
    split: Split = "test",
    limit: Limit = None,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; the same command goes on in it.")] = Path(
        "runs/sensitivity"
    ),
    slots: Slots = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    chat_template: Template = None,
    as_json: AsJson = False,
) -> None:
    """Measure a prompt over orders, wordings and formats: spread and worst case, with intervals."""
    from ..core.specs import instantiate
    from ..pipeline.points import Models
    from ..pipeline.sensitivity import WORDINGS, Sensitivity
    from ..pipeline.sensitivity import sensitivity as measure
    from ..report.prompt_figures import draw_sensitivity
    from .prompt_points import bench_of

    chosen = tuple(wording) if wording else WORDINGS
    settings = {"prompt": prompt, "orders": orders, "wordings": chosen if wordings else (), "formats": formats}
    plan = instantiate(Sensitivity, settings, where="sensitivity")
    bench, examples = bench_of(
        out,
        task,
        Models(device=device, dtype=dtype, slots=slots, chat_template=chat_template),
        command="sensitivity",
        prompts=[variant.prompt for variant in plan.variants()],
        strategy=strategy,
        data=data,
        split=split,
        limit=limit,
        max_tokens=max_tokens,
        seed=seed,
    )
    found = measure(plan, bench, examples, model=model)
    draw_sensitivity(found, out / "figures")
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _show(found, out)


def _show(found: Mapping[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..report.words import interval, percent, probability

    console = Console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("what varies", "variants", "mean", "worst\n95%", "best", "spread\n95%", "by chance", "p"):
        table.add_column(name, justify="left" if name == "what varies" else "right")
    for group, told in {**found["groups"], "all": found["all"]}.items():
        table.add_row(
            group,
            str(told["variants"]),
            percent(told["mean"]),
            f"{percent(told['worst'])}\n[dim]{interval(told['worst_ci95'])}[/]",
            percent(told["best"]),
            f"{percent(told['spread'])}\n[dim]{interval(told['spread_ci95'])}[/]",
            percent(told["noise"]),
            probability(told["p"]).removeprefix("= "),
        )
    head = f"{escape(found['model'])}, {escape(found['prompt'])}  [dim]{escape(found['task'])}, n = {found['n']}[/]"
    console.print(head, highlight=False)
    console.print(table)
    worst = min(found["variants"], key=lambda variant: variant["accuracy"])
    console.print(f"worst: {worst['group']}, {escape(worst['label'])} ({percent(worst['accuracy'])})", highlight=False)
    console.print(f"every variant: {out / 'sensitivity.json'}, {out / 'figures' / 'sensitivity.png'}", highlight=False)
