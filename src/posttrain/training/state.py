"""Training state on disk: a checkpoint is written aside and renamed, so that a kill never loses the last good one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ConfigError, PosttrainError
from ..core.files import disk_errors, read_json, write_atomic, write_json
from ..core.types import Cost, Usage

__all__ = [
    "Metrics",
    "all_states",
    "cost_from_dict",
    "keep_states",
    "load_newest",
    "load_state",
    "replace_folder",
    "save_model",
    "save_state",
    "step_of",
    "sync_tree",
]


def save_model(model: Any, tokenizer: Any, folder: Path, *, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write an ordinary Hugging Face folder: weights, configuration, generation settings, tokenizer, chat template.

    `weights` are others than the model's own.
    """
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder, **({} if weights is None else {"state_dict": weights}))
        tokenizer.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()


def save_state(folder: Path, step: int, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write `folder/step-<n>` as a whole; what is there already is not touched, and a failure leaves nothing behind."""
    target = folder / f"step-{step:08d}"
    aside = folder / f".writing-{step:08d}"
    try:
        with disk_errors(target):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            with (aside / "state.pt").open("wb") as file:  # so that a full disk is the system's own error
                torch.save(tensors, file)
            write_json(aside / "facts.json", facts)
            replace_folder(aside, target)
    except PosttrainError:
        shutil.rmtree(aside, ignore_errors=True)  # its space belongs to whoever runs the same command again
        raise


def keep_states(folder: Path, wanted: Collection[int]) -> None:
    """Remove the states of all steps but these."""
    for path in all_states(folder):
        if step_of(path) not in wanted:
            shutil.rmtree(path, ignore_errors=True)


def step_of(path: Path) -> int:
    """Return the step a state's folder is named after."""
    return int(path.name.removeprefix("step-"))


def replace_folder(aside: Path, target: Path) -> None:
    """Move a finished folder to its place so that a crash leaves either nothing there or all of it."""
    sync_tree(aside)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(aside, target)
    _sync(target.parent)


def sync_tree(folder: Path) -> None:
    """Flush every file of a folder to disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def all_states(folder: Path) -> list[Path]:
    """Return the finished states, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def load_newest(
    folder: Path, *, key: str, device: torch.device, say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return (tensors, facts) of the newest state that can be read, or None when there is none at all.

    A broken one is told (`say`) and the one before it is taken. Raises `PosttrainError` when none of them can be read, and
    `ConfigError` when they are of a run with another configuration or data.
    """
    found = all_states(folder)
    for path in reversed(found):
        try:
            return load_state(path, key=key, device=device)
        except ConfigError:
            raise
        except PosttrainError as error:
            if path == found[0]:
                raise
            say(f"{error}; going on from the state before it")
    return None


def load_state(path: Path, *, key: str, device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (tensors, facts). Raises `ConfigError` when the state is of a run with another configuration or data."""
    facts = read_json(path / "facts.json")
    if not isinstance(facts, dict) or "key" not in facts:
        raise PosttrainError(f"{path / 'facts.json'} is not a training state's: remove {path} to start again")
    if facts["key"] != key:
        raise ConfigError(
            f"{path.parent.parent} holds an unfinished run with another configuration, data, seed or start: "
            "remove that folder or choose another"
        )
    try:
        tensors = torch.load(path / "state.pt", map_location=device, weights_only=True)
    except torch.OutOfMemoryError:
        raise  # the file is not to blame
    except Exception as error:
        raise PosttrainError(f"{path / 'state.pt'} cannot be read ({error}): remove {path} to start again") from error
    return tensors, facts


def cost_from_dict(value: dict[str, Any]) -> Cost:
    """Rebuild a `Cost` from `dataclasses.asdict`."""
    return Cost(**{**value, "usage": Usage(**value["usage"])})


class Metrics:
    """`metrics.jsonl`: one line per optimiser step; on resume, lines after the checkpoint's step are cut off."""

    def __init__(self, path: Path, *, steps: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if path.exists() and steps:
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if not line.endswith("\n") or json.loads(line)["step"] > steps:
                    break  # a line cut by the kill, or one the checkpoint does not know
                kept.append(line)
        write_atomic(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")
        self._path = path

    def write(self, row: dict[str, Any]) -> None:
        """Append one line and flush it."""
        with disk_errors(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
