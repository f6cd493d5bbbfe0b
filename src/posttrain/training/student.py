"""A student on disk: cut out of a teacher, an ordinary Hugging Face folder that tells what made it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ModelError
from ..core.types import Checkpoint, Cost, ModelShape, Usage
from ..models.calibration import TEXTS
from ..models.load import load
from ..models.student import StudentShape, shrink
from ..stats.flops import forward_flops
from .memory import peak_bytes
from .plain import float_kind, write_folder

__all__ = ["MadeStudent", "make_student"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeStudent:
    """A student's folder with what it cost, and the facts that its `posttrain.json` tells."""

    checkpoint: Checkpoint
    facts: dict[str, Any]


def make_student(
    ref: str, out: Path, shape: StudentShape, *, seed: int = 0, device: str = "auto", key: str = ""
) -> MadeStudent:
    """Cut a student of that shape out of the model that `ref` names and write it to the folder `out`, whole or not at all.

    Weights are worked out in float32 and saved in the teacher's type. What is there already is replaced. Raises `ModelError`
    for an architecture or adapter it cannot be made of, `ConfigError` for a shape the teacher cannot give.
    """
    began = time.perf_counter()
    teacher = load(ref, device=device, dtype="float32")
    if teacher.adapter is not None:
        raise ModelError(f"{ref}: a {teacher.adapter} adapter cannot be merged, so no student can be cut out of it")
    student, told = shrink(teacher.model, shape, seed=seed)
    kind = float_kind(teacher, "auto")
    facts = {"from": ref, "fingerprint": teacher.fingerprint, "version": shape.version, "seed": seed, "dtype": kind, **told}
    write_folder(student.to(getattr(torch, kind)), teacher.tokenizer, out, {"student": facts})
    cost = _cost(teacher.shape, told["tokens_written"], seconds=time.perf_counter() - began)
    return MadeStudent(checkpoint=Checkpoint(path=out, key=key, cost=cost), facts=facts)


def _cost(shape: ModelShape, tokens: int, *, seconds: float) -> Cost:
    """Charge the teacher's writing, each token through the head, and its reading of what it wrote."""
    length = tokens // TEXTS
    once = [forward_flops(shape, start=0, tokens=length, logits=logits) for logits in (length, 0)]
    flops = TEXTS * sum(once)
    usage = Usage(calls=TEXTS if tokens else 0, generated=tokens, scored=tokens)
    return Cost(usage=usage, flops=flops, flops_spent=flops, seconds=seconds, peak_bytes=peak_bytes())
