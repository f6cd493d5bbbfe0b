"""The start as it was before training, kept at hand: what a policy is held close to, read anew in every step.

Where the policy is a fresh adapter that can be switched off, its base is the start and nothing is held twice; fresh virtual
tokens are left away likewise. Everywhere else a frozen copy is loaded. An adapter that was trained before is never switched
off: without it the model is not the start (TRL issues #495, #1193).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.types import ModelShape
from ..models.forward import Batch, Forward
from ..models.load import load
from ..stats.flops import forward_flops
from .session import Session

__all__ = ["StartModel", "open_start_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartModel:
    """The start in its training forward. It has no dropout, and no gradient is ever kept for it.

    Read a batch before the model in training does: then its activations are gone when the others' exist.
    """

    module: Forward
    adapted: Any | None  # the model whose adapter is switched off while it is read
    shape: ModelShape
    bytes: int  # held for it alone

    @torch.no_grad()
    def hidden(self, batch: Batch) -> Tensor:
        """Return `hidden_ND` of the positions that predict a trained token."""
        with self.frozen() as module:
            return module.hidden(batch.to(module.model.device))

    @torch.no_grad()
    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return the logits of some of these positions: `logits_NV`, at least float32."""
        with self.frozen() as module:
            return module.logits(hidden_ND)

    @torch.no_grad()
    def logps(self, hidden_ND: Tensor, batch: Batch) -> Tensor:
        """Return log π_ref of the trained tokens: `logps_N`."""
        with self.frozen() as module:
            found: Tensor = module.read(hidden_ND, batch)  # type: ignore[assignment]
            return found

    def flops(self, tokens: int, *, logits: int) -> float:
        """Return the FLOPs of reading one sequence of `tokens` tokens, `logits` of them through the head."""
        return forward_flops(self.shape, start=0, tokens=tokens, logits=logits)

    @contextmanager
    def frozen(self) -> Iterator[Forward]:
        """Let the module compute what the start computed before any step, and hand it out."""
        training = self.module.training
        self.module.eval()
        try:
            with nullcontext() if self.adapted is None else self.adapted.disable_adapter():
                yield self.module
        finally:
            self.module.train(training)


def open_start_model(session: Session, *, temperature: float = 1.0) -> StartModel:
    """Return the start of a run that has not begun to train, at the temperature of the model in training."""
    opened, shape = session.opened, session.opened.loaded.shape
    fresh = opened.loaded.adapter is None and hasattr(opened.model, "peft_config")
    if fresh and not opened.starts_apart:
        return StartModel(module=session.module, adapted=opened.model, shape=shape, bytes=0)  # whose temperature it shares
    if opened.starts_apart:
        module, held = session.reference.eval(), 0
    else:
        loaded = load(session.start.path, dtype=session.method.dtype)
        loaded.model.requires_grad_(False)
        shape, held = loaded.shape, sum(p.numel() * p.element_size() for p in loaded.model.parameters())
        module = Forward(loaded.model).eval()
    module.sharpen(temperature)
    return StartModel(module=module, adapted=None, shape=shape, bytes=held)
