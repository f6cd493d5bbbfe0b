"""Low-rank adapters, through PEFT: what is saved is an ordinary PEFT folder.

LoRA (Hu et al. 2021, arXiv:2106.09685, eq. 3): h = W₀x + (α/r)·B·A·x, with B = 0 at first: training begins at the base.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from ..core.errors import ModelError, PosttrainError
from ..core.files import disk_errors, read_json, write_json

__all__ = ["add_lora", "attach", "base_of", "is_adapter", "merge", "save_adapter"]


def add_lora(
    model: Any,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Literal["all-linear"] | Sequence[str] = "all-linear",
    seed: int,
) -> Any:
    """Return the model wrapped in a `PeftModel` with fresh adapters; only they require gradients.

    `targets`: every linear layer but the output head, or names of modules (`["q_proj", "v_proj"]`). The adapters take the
    model's own type: the optimiser keeps float32 masters. Raises `ModelError` when a target names no module.
    """
    from peft import LoraConfig, get_peft_model

    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ModelError(f"LoRA needs rank >= 1, alpha > 0 and 0 <= dropout < 1, not {rank}, {alpha} and {dropout}")
    if targets != "all-linear":
        present = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "weight")}
        for target in targets:
            if target.rpartition(".")[2] not in present:
                raise ModelError(f"LoRA target '{target}' names no module of {type(model).__name__}: {_listed(model)}")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets if targets == "all-linear" else list(targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(seed)
        return get_peft_model(model, config, autocast_adapter_dtype=False)


def attach(model: Any, path: Path) -> Any:
    """Return the model wrapped in a `PeftModel` with the adapter of a folder; trainable, so that training can go on."""
    from peft import PeftModel

    try:
        with _quiet():
            return PeftModel.from_pretrained(model, str(path), is_trainable=True, autocast_adapter_dtype=False)
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise ModelError(f"{path}: this adapter does not fit its base model ({str(error).splitlines()[0]})") from None


def merge(peft_model: Any) -> Any:
    """Return the base model with the adapter added into its weights: W = W₀ + (α/r)·B·A. The wrapper is used up."""
    return peft_model.merge_and_unload()


def save_adapter(model: Any, path: Path, base_ref: str) -> None:
    """Save a `PeftModel`'s adapter; `base_ref` (alias, folder, hub id) is written into both its JSON files."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base_ref
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        # Embeddings are no targets; left to itself PEFT would ask the hub whether the vocabulary has grown.
        model.save_pretrained(str(path), save_embedding_layers=False)
    notes = read_json(path / "posttrain.json") if (path / "posttrain.json").is_file() else {}
    write_json(path / "posttrain.json", {**notes, "base": base_ref})


def is_adapter(path: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (Path(path) / "adapter_config.json").is_file()


def base_of(path: Path) -> str:
    """Return the reference of the model an adapter belongs to; a relative folder is looked for from here and beside it."""
    notes = path / "posttrain.json"
    base = read_json(notes).get("base") if notes.is_file() else None
    base = base or read_json(path / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise PosttrainError(f'{path}: the adapter does not name its base model; put {{"base": …}} into posttrain.json')
    beside = path / base
    return str(beside) if not Path(base).is_dir() and beside.is_dir() else str(base)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # GPT-2's transposed layers: PEFT sets it right
        warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT still asks transformers by a deprecated name
        yield


def _listed(model: Any) -> str:
    linear = (torch.nn.Linear,)
    names = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, linear)})
    return "choose from " + ", ".join(names or ["all-linear"])
