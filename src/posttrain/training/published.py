"""The weights of a model in training as a folder that a server reads, anew before every step's rollouts.

A folder's name is used once, so that no server can take what it holds in memory under that name for the new weights.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from ..core.files import disk_errors
from ..data.chat import end_ids
from ..models.adapters import merged_state
from .state import save_model

__all__ = ["FOLDER", "publish", "withdraw"]

FOLDER = "rollout-weights"


def publish(model: Any, tokenizer: Any, out: Path, *, step: int, end: int | None) -> Path:
    """Write the weights as they are, an adapter merged, below `out/rollout-weights`, and return the folder's full path.

    It is written aside and renamed; nothing is flushed, since no resumed run reads it. Its generation settings change
    nothing about the model's own distribution (a server may take its defaults from there), and name one `end`.
    """
    from transformers import GenerationConfig

    name = f"step-{step:08d}-{secrets.token_hex(4)}"
    target, aside = (out / FOLDER / name).absolute(), (out / FOLDER / f".writing-{name}").absolute()
    with disk_errors(target):
        try:
            aside.mkdir(parents=True)
            base, weights = merged_state(model)
            save_model(base, tokenizer, aside, weights=None if base is model else weights)
            ends = sorted(end_ids(model, tokenizer)) if end is None else end
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
            neutral = GenerationConfig(
                do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=ends, pad_token_id=pad
            )
            neutral.save_pretrained(aside)
            os.replace(aside, target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return target


def withdraw(out: Path, *, but: Path | None = None) -> None:
    """Remove published weights, except one folder; without it the folder around them, too."""
    if but is None:
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        return
    for path in (out / FOLDER).iterdir():
        if path.name != but.name:
            shutil.rmtree(path, ignore_errors=True)
