"""What a training run leaves behind: an ordinary Hugging Face folder (or PEFT adapter folder) plus `posttrain.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..core.errors import ConfigError
from ..core.files import disk_errors, read_json, write_json
from ..core.types import Checkpoint, Cost
from ..models.adapters import save_adapter
from .state import cost_from_dict, replace_folder, save_model
from .step import rank_and_world

__all__ = ["data_hash", "export", "finished", "run_key"]

NAME = "posttrain.json"
# Settings that came after runs had been finished: at these values they are left out of the key, so that it stays the same.
LATER = {"targets": "all-linear", "virtual_tokens": 20, "width": 64}


def data_hash(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a hash of the rows' content, in order."""
    digest = hashlib.sha256()
    for row in rows:
        text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=_plain)
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a data row holds a value of type {type(value).__name__}, which JSON cannot hold")


def run_key(*, method: Any, start: str, data: str, seed: int) -> str:
    """Return what identifies a run: method, its version and configuration, the start's fingerprint, data and seed."""
    config = {name: v for name, v in dataclasses.asdict(method).items() if name not in LATER or v != LATER[name]}
    facts = {"method": type(method).__name__, "version": method.version, "config": config}
    text = json.dumps({**facts, "start": start, "data": data, "seed": seed}, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def finished(out: Path, key: str) -> Checkpoint | None:
    """Return the checkpoint when `out` holds this finished run; raises `ConfigError` when it holds another one."""
    path = out / "checkpoint" / NAME
    if not path.is_file():
        return None
    facts = read_json(path)
    if facts["key"] != key:
        raise ConfigError(
            f"{out} holds a finished run with another configuration, data, seed or start: remove it or choose another folder"
        )
    return Checkpoint(path=path.parent, base=facts.get("base"), key=key, cost=cost_from_dict(facts["cost"]))


def export(
    model: Any,
    tokenizer: Any,
    out: Path,
    *,
    method: Any,
    start: Mapping[str, Any],
    data: Mapping[str, Any],
    seed: int,
    key: str,
    base: str | None,
    parameters: Mapping[str, float],
    cost: Cost,
) -> Checkpoint:
    """Write `out/checkpoint` aside and move it into place: it exists only when it is whole; then drop training state."""
    rank, world = rank_and_world()
    target, aside = out / "checkpoint", out / ".writing-checkpoint"
    if rank == 0:
        facts = {
            "method": type(method).__name__.lower(),
            "version": method.version,
            "config": dataclasses.asdict(method),
            "start": dict(start),
            **({} if base is None else {"base": base}),
            "data": dict(data),
            "parameters": dict(parameters),
            "seed": seed,
            "key": key,
            "cost": dataclasses.asdict(cost),
            "packages": {name: importlib.metadata.version(name) for name in ("posttrain", "torch", "transformers", "peft")},
        }
        with disk_errors(target):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            if base is None:
                save_model(model, tokenizer, aside)
            else:
                save_adapter(model, aside, base)
                tokenizer.save_pretrained(aside)
            write_json(aside / NAME, facts)
            replace_folder(aside, target)
        shutil.rmtree(out / "state", ignore_errors=True)
    if world > 1:
        dist.barrier()
    return Checkpoint(path=target, base=base, key=key, cost=cost)
