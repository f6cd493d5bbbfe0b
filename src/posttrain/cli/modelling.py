"""`posttrain models`: what --model takes; `posttrain models export`: an adapter merged into a plain model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson

__all__ = ["models_app"]

models_app = typer.Typer(invoke_without_command=True, help="List the model aliases, and what else --model takes; export.")


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
