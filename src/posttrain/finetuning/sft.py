"""Supervised fine-tuning: make the demonstrated tokens likely.

    L = − Σ_{trained tokens t} log π(y_t | y_<t) / (trained tokens of the optimiser step)

Every trained token of an optimiser step weighs the same, whatever the micro-batches (transformers issue #35787).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core.errors import DataError
from ..core.types import Checkpoint, ModelShape
from ..data.masks import Encoded
from ..engines.local.replies import replies
from ..models.forward import Forward
from ..models.sharing import share_opening
from ..stats.flops import forward_flops, train_flops
from ..training.rows import encode_row
from ..training.session import Session
from ..training.settings import TrainerSettings
from ..training.step import Work

__all__ = ["Sft"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sft(TrainerSettings):
    """Supervised fine-tuning of all weights or of an adapter (LoRA and its kin, IA3, prefix, prompt, bottleneck).

    Rows are `{"messages": [...]}` (a conversation; `train` says whether all assistant turns are trained or the last),
    `{"prompt": text or messages, "completion": text}`, or `{"text": ...}`, all of which is trained. A row longer than
    `max_length` tokens (0: the model's context) is an error that names it; with `too_long="drop"` it is left out and
    counted in the checkpoint's `posttrain.json`.
    """

    version: ClassVar[str] = "1"
    paper: ClassVar[str] = "Ouyang et al. 2022, arXiv 2203.02155, section 3.5"
    measured: ClassVar[bool] = True
    cost: ClassVar[str] = "3 forward passes per training token and epoch, once; nothing per query"
    fails: ClassVar[str] = "demonstrations differ from what is asked later; other abilities are forgotten"

    train: Literal["all", "last"] = "all"

    def __call__(self, start: Checkpoint, data: Sequence[Mapping[str, Any]], out: Path, *, seed: int) -> Checkpoint:
        """Train and return the new checkpoint in `out/checkpoint`; the same call after a kill goes on inside `out`."""
        session = Session.open(self, start, data, out, seed=seed)
        if session.done is not None:
            return session.done
        rows, dropped = self._encode(session)
        objective = _Objective(session.opened.loaded.shape, session.frozen_backbone, session.virtual_flops)
        return session.train(objective, rows, facts={"dropped_too_long": dropped}, generate=replies)

    def _encode(self, session: Session) -> tuple[list[_Row], int]:
        tokenizer, limit = session.opened.loaded.tokenizer, self.max_length or session.opened.context
        rows, dropped = [], 0
        for i, row in enumerate(session.rows):
            encoded = encode_row(tokenizer, row, train=self.train, where=session.where(i))
            if len(encoded.ids) <= limit:
                rows.append(_Row(i, encoded))
            elif self.too_long == "drop":
                dropped += 1
            else:
                raise DataError(
                    f"{session.where(i)} has {len(encoded.ids)} tokens, more than the {limit} allowed: shorten it, raise "
                    "max_length (up to the model's context), or set too_long=drop to leave such rows out"
                )
        return rows, dropped


@dataclass(frozen=True, slots=True)
class _Row:
    row: int
    encoded: Encoded


@dataclass(frozen=True, slots=True)
class _Objective:
    """Token-mean negative log-likelihood."""

    side_by_side: ClassVar[bool] = True

    shape: ModelShape
    frozen_backbone: bool
    virtual_flops: Callable[..., float] = lambda tokens, backward: 0.0

    def work(self, item: _Row, *, backward: bool = True) -> Work:
        tokens, logits = len(item.encoded.ids), item.encoded.trained
        if backward:
            flops = train_flops(self.shape, tokens=tokens, logits=logits, frozen_backbone=self.frozen_backbone)
        else:
            flops = forward_flops(self.shape, start=0, tokens=tokens, logits=logits)
        return Work(tokens=tokens, flops=flops + self.virtual_flops(tokens, backward=backward))

    def totals(self, items: Sequence[_Row]) -> int:
        return sum(item.encoded.trained for item in items)

    def __call__(self, module: Forward, items: Sequence[_Row], totals: int) -> tuple[Tensor, dict[str, float]]:
        batch = module.batch(share_opening([item.encoded for item in items], self.shape))
        weights_N = torch.full(batch.targets_N.shape, -1.0 / totals, dtype=torch.double)
        loss, _ = module(batch, weights_N)
        return loss, {"trained_tokens": len(batch.targets_N)}
