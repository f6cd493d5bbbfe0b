"""`posttrain curve`: accuracy against samples, tokens and FLOPs, from one pool of samples a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError
from .options import AsJson, Data, Device, Dtype, Limit, MaxTokens, Seed, Slots, Split, Task, Template

__all__ = ["curve", "run_curve"]


def curve(
    task: Task,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Model, or NAME=model; may be repeated to compare.")
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option("--strategy", "-s", help="May be repeated [default: self_consistency]; n comes from --n."),
    ] = None,
    n: Annotated[str, typer.Option("--n", help="Numbers of samples, separated by commas.")] = "1,2,4,8,16",
    pool: Annotated[
        list[Path] | None,
        typer.Option("--pool", help="Finished evaluation to read samples from: FOLDER or NAME=FOLDER."),
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Prompter, for example few_shot_cot:k=8.")] = "zero_shot",
    data: Data = None,
    split: Split = "test",
    limit: Limit = None,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    draws: Annotated[int, typer.Option(min=100, help="Bootstrap draws, and orders of each question's samples.")] = 2000,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of pools, figures and curve.json.")] = Path("runs/curve"),
    slots: Slots = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    chat_template: Template = None,
    as_json: AsJson = False,
) -> None:
    """Trace accuracy against samples, tokens and FLOPs: every n and strategy from one pool, with intervals and crossings."""
    from ..pipeline.curve import CurveRequest
    from ..pipeline.pools import Source

    source = Source(
        task=task,
        prompt=prompt,
        data=data,
        split=split,
        limit=limit,
        max_tokens=max_tokens,
        seed=seed,
        slots=slots,
        device=device,
        dtype=dtype,
        chat_template=chat_template,
    )
    request = CurveRequest(
        source=source,
        models=model or (),
        pools=[str(folder) for folder in pool or ()],
        strategies=strategy or ("self_consistency",),
        sizes=_sizes(n),
        out=out,
        draws=draws,
    )
    found = run_curve(request)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        from rich.console import Console

        from ..report.curves import print_curves

        print_curves(found, found["sentences"], Console())
        print(f"written: {out / 'curve.json'}, {out / 'figures'}")


def run_curve(request: Any) -> dict[str, Any]:
    """Trace the curves, write `curve.json`, `curve.md` and `figures/` into the request's folder, and return the JSON."""
    from ..core.files import write_atomic, write_json
    from ..pipeline.curve import trace_curves
    from ..pipeline.manifest import describe, record
    from ..report.curve_words import curve_sentences
    from ..report.curves import curve_table, draw_curves

    record(request.out / "manifest.json", describe("curve", request.source.seed, None))
    found = trace_curves(request)
    found["sentences"] = curve_sentences(found)
    draw_curves(found, request.out / "figures")
    sentences = "".join(f"- {sentence}\n" for sentence in found["sentences"])
    write_atomic(request.out / "curve.md", f"{curve_table(found)}\n{sentences}")
    write_json(request.out / "curve.json", found)
    return found


def _sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--n {text}: give whole numbers separated by commas, for example 1,2,4,8") from None
