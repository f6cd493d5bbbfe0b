"""From any checkpoint to a plain model: an adapter's change added into its base's weights, as a folder or a GGUF file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ConfigError, ModelError
from ..core.files import disk_errors, write_json
from ..models.gguf_write import FloatKind, write_gguf
from ..models.load import LoadedModel, load
from .state import replace_folder, save_model

__all__ = ["export_plain", "float_kind", "refuse_existing", "write_folder"]


def export_plain(ref: str, out: Path, *, dtype: str = "auto") -> dict[str, Any]:
    """Write the model that `ref` names to the folder `out`, or to one file when `out` ends with `.gguf`.

    An adapter is merged in float32 and rounded once, to `dtype` (auto: the type its base is saved in). Returns what was
    written. Raises `ModelError` for an adapter that cannot be merged, `ConfigError` when `out` is already there.
    """
    refuse_existing(out)
    loaded = load(ref, device="cpu", dtype="float32")
    if loaded.adapter is not None:
        raise ModelError(
            f"{ref}: a {loaded.adapter} adapter is no change of its base's weights, so there is no merged model to export; "
            "`posttrain eval`, `chat` and `train` open the adapter folder as it is"
        )
    kind = float_kind(loaded, dtype)
    model = loaded.model.to(getattr(torch, kind))
    facts = {"from": ref, "fingerprint": loaded.fingerprint, "dtype": kind}
    if out.suffix == ".gguf":
        _write_file(model, loaded.tokenizer, out, kind)
    else:
        write_folder(model, loaded.tokenizer, out, {"exported": facts})
    return {"out": str(out), "parameters": loaded.shape.parameters, **facts}


def write_folder(model: Any, tokenizer: Any, out: Path, facts: Mapping[str, Any]) -> None:
    """Write a Hugging Face folder with these facts as its `posttrain.json`: whole or not at all."""
    aside = out.parent / f".writing-{out.name}"
    with disk_errors(out):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_model(model, tokenizer, aside)
        write_json(aside / "posttrain.json", dict(facts))
        replace_folder(aside, out)


def _write_file(model: Any, tokenizer: Any, out: Path, kind: FloatKind) -> None:
    aside = out.parent / f".writing-{out.name}"
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_gguf(model, tokenizer, aside, kind=kind)
            aside.replace(out)
        finally:
            aside.unlink(missing_ok=True)


def refuse_existing(out: Path) -> None:
    """Raise `ConfigError` when something is there already."""
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise ConfigError(f"{out} is already there: remove it or choose another place")


def float_kind(loaded: LoadedModel, dtype: str) -> FloatKind:
    """Return the type to write: the one asked for, or the one that the base's configuration names."""
    if dtype == "auto":
        from transformers import AutoConfig

        from ..models.adapters import base_of, is_adapter
        from ..models.load import resolve

        path = loaded.path
        while is_adapter(path):
            path = resolve(base_of(path))
        named = str(AutoConfig.from_pretrained(path).dtype).removeprefix("torch.")
        dtype = named if named in ("float32", "bfloat16", "float16") else "float32"
    known: dict[str, FloatKind] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
    if dtype not in known:
        raise ConfigError(f"dtype = {dtype!r}: choose auto, float32, bfloat16 or float16")
    return known[dtype]
