"""From a start checkpoint to a model that gives numbers, ready to train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..core.errors import ConfigError
from ..core.seeds import derive
from ..core.types import Checkpoint
from ..models.adapters import Variant, add_lora
from ..models.scoring import Kind, load_scoring
from .opening import Adaptation, Opened, base_for, context_of_model

__all__ = ["Opener", "scoring_opener"]

Opener = Callable[..., Opened]
_TASKS: dict[Kind, str] = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}
_VARIANTS: dict[str, Variant] = {"lora": "lora", "rslora": "rslora", "dora": "dora"}


def scoring_opener(kind: Kind, labels: Sequence[str]) -> Opener:
    """Return what opens a start as a model of this kind, in place of `open_start`."""

    def opened(start: Checkpoint, *, dtype: str, adaptation: Adaptation, out: Path, seed: int) -> Opened:
        if adaptation.adapter not in ("full", *_VARIANTS):
            raise ConfigError(
                f"adapter={adaptation.adapter}: a model that gives numbers trains its head too, which that adapter cannot "
                f"hold: use adapter=full, {', '.join(_VARIANTS)}"
            )
        loaded = load_scoring(start.path, kind, labels, dtype=dtype, seed=derive(seed, "head"))
        model, base = loaded.model, None
        if adaptation.adapter == "full":
            model.requires_grad_(True)
        else:
            base = base_for(loaded, start, out)
            model = add_lora(
                model, rank=adaptation.rank, alpha=adaptation.alpha, dropout=adaptation.dropout, targets=adaptation.names,
                variant=_VARIANTS[adaptation.adapter], seed=derive(seed, "lora"), task=_TASKS[kind],
            )  # fmt: skip
        return Opened(loaded=loaded, model=model, base=base, context=context_of_model(model))

    return opened
