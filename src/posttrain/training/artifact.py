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

from ..core.errors import ConfigError, PosttrainError
from ..core.files import disk_errors, read_json, write_json
from ..core.types import Checkpoint, Cost
from ..models.adapters import save_adapter
from .processes import by_first_process
from .settings import key_config
from .state import cost_from_dict, replace_folder, save_model

__all__ = ["data_hash", "export", "finished", "plain", "run_key"]

NAME = "posttrain.json"


def data_hash(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a hash of the rows' content, in order."""
    digest = hashlib.sha256()
    for row in rows:
        text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=plain)
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()[:16]


def plain(value: Any) -> Any:
    """Return a message or mapping as JSON can hold it; raises `TypeError` for anything else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a data row holds a value of type {type(value).__name__}, which JSON cannot hold")


def run_key(*, method: Any, start: str, data: str, seed: int, config: Mapping[str, Any] | None = None) -> str:
    """Return what identifies a run: method, its version and configuration, the start's fingerprint, data and seed.

    `config` is `key_config(method)` unless another is given (files named by their content).
    """
    facts = {"method": type(method).__name__, "version": method.version, "config": config or key_config(method)}
    text = json.dumps({**facts, "start": start, "data": data, "seed": seed}, sort_keys=True, default=plain)
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
    told: Mapping[str, Any] | None = None,
    value: tuple[Any, Any] | None = None,
) -> Checkpoint:
    """Write `out/checkpoint` aside and move it into place: it exists only when it is whole; then drop training state.

    `told` are further facts for `posttrain.json`. `value`, a value model with its tokenizer, becomes the folder
    `out/checkpoint/value`, a model by itself.
    """
    target, aside = out / "checkpoint", out / ".writing-checkpoint"

    def write() -> None:
        facts = {
            "method": type(method).__name__.lower(),
            "version": method.version,
            "config": dataclasses.asdict(method),
            "start": dict(start),
            **({} if base is None else {"base": base}),
            "data": dict(data),
            "parameters": dict(parameters),
            **(told or {}),
            "seed": seed,
            "key": key,
            "cost": dataclasses.asdict(cost),
            "packages": {name: importlib.metadata.version(name) for name in ("posttrain", "torch", "transformers", "peft")},
        }
        try:
            with disk_errors(target):
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
                if base is None:
                    save_model(model, tokenizer, aside)
                else:
                    save_adapter(model, aside, base)
                    tokenizer.save_pretrained(aside)
                write_json(aside / NAME, facts)
                if value is not None:
                    save_model(*value, aside / "value")
                    write_json(aside / "value" / NAME, {name: facts[name] for name in ("method", "version", "seed", "key")})
                replace_folder(aside, target)
        except PosttrainError:
            shutil.rmtree(aside, ignore_errors=True)  # half a checkpoint only takes space
            raise
        for kept in ("state", "best"):
            shutil.rmtree(out / kept, ignore_errors=True)

    by_first_process(write)
    return Checkpoint(path=target, base=base, key=key, cost=cost)
