"""`posttrain models`: what --model takes; `export`: an adapter merged into a plain model; `student`: a smaller model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import ConfigError
from .options import AsJson, Device, Seed

__all__ = ["models_app"]

models_app = typer.Typer(
    invoke_without_command=True, help="List the model aliases, and what else --model takes; export; make students."
)


@models_app.callback()
def models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the model aliases, and what else --model takes."""
    if context.invoked_subcommand is not None:
        return
    from ..models.aliases import ALIASES

    found = [
        (name, f"{it.member.rpartition('/')[2]} from the package {it.package} {it.version}") for name, it in ALIASES.items()
    ]
    if as_json:
        print(json.dumps([{"alias": name, "what": what} for name, what in found], ensure_ascii=False))
    else:
        from .show import show_pairs

        show_pairs("alias", "model", found)
        print("--model also takes a Hugging Face folder, an adapter folder, a hub id or a .gguf file.")


@models_app.command()
def export(
    model: Annotated[str, typer.Argument(help="Adapter folder, or any model that --model takes.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, or a file that ends with .gguf.")],
    dtype: Annotated[str, typer.Option(help="auto (as the base is saved), float32, bfloat16 or float16.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Write a plain model with the adapter merged into the weights: a Hugging Face folder, or one GGUF file."""
    from ..training.plain import export_plain

    written = export_plain(model, out, dtype=dtype)
    print(json.dumps(written, ensure_ascii=False) if as_json else f"{written['out']}: {written['dtype']}")


@models_app.command()
def student(
    model: Annotated[str, typer.Argument(help="The teacher: any Llama that --model takes.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    size: Annotated[str | None, typer.Option(help="10m, 30m or 60m, of smollm2-135m; or the numbers below.")] = None,
    layers: Annotated[int | None, typer.Option(help="Layers, picked evenly [default: all].")] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of the residual stream [default: the teacher's].")] = None,
    heads: Annotated[int | None, typer.Option(help="Query heads [default: the teacher's].")] = None,
    ff: Annotated[int | None, typer.Option(help="Feed-forward units [default: the teacher's].")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Cut a smaller model out of a bigger one, to be trained with distill: same architecture, tokenizer and template."""
    from ..models.student import StudentShape, shape_named
    from ..training.plain import refuse_existing
    from ..training.student import make_student

    given = StudentShape(layers=layers, hidden=hidden, heads=heads, ff=ff)
    if (size is None) == (given == StudentShape()):
        raise ConfigError(
            "give either --size, or --layers, --hidden, --heads and --ff as far as they differ from the teacher's"
        )
    refuse_existing(out)
    made = make_student(model, out, given if size is None else shape_named(size), seed=seed, device=device)
    if as_json:
        print(json.dumps({"out": str(out), **made.facts}, ensure_ascii=False))
    else:
        print(f"{out}: {made.facts['parameters'] / 1e6:.1f} million parameters, {made.facts['dtype']}")
