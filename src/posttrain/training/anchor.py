"""The start of a run, kept beside the model in training: what online methods hold their policy close to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ..models.forward import Forward
from ..models.load import load
from .session import Session

__all__ = ["Anchor", "open_anchor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """The start in its training forward; use it inside `frozen()`."""

    module: Forward
    adapter: Any = None  # the adapted model, of which the adapter is off inside

    @contextmanager
    def frozen(self) -> Iterator[Forward]:
        """Let the module compute what the start computed before any step."""
        with nullcontext() if self.adapter is None else self.adapter.disable_adapter():
            yield self.module


def open_anchor(session: Session, *, temperature: float = 1.0) -> Anchor:
    """Return the start; a second copy in memory only where it must be.

    A fresh LoRA (or IA3) adapter is switched off, fresh virtual tokens are left away: the weights below are the start's. An
    adapter that was trained before is part of the start, so that switching it off would give another model (TRL issues #495,
    #1193): the start is loaded a second time then, as it is when all weights are trained.
    """
    opened = session.opened
    if opened.starts_apart:
        module = Forward(opened.loaded.model)
        module.sharpen(temperature)
        return Anchor(module=module)
    fresh = opened.loaded.adapter is None and opened.base is not None
    if fresh and hasattr(opened.model, "disable_adapter"):
        return Anchor(module=session.module, adapter=opened.model)  # whose temperature it shares
    model = load(session.start.path, dtype=session.method.dtype).model.eval().requires_grad_(False)
    module = Forward(model)
    module.sharpen(temperature)
    return Anchor(module=module)
