"""A micro-batch of the training forward, and how sequences become one.

Shapes: B rows, T positions (right-padded), N trained tokens of all rows laid end to end, S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.errors import DataError

__all__ = ["Batch", "TokenSequence", "collate", "trained_positions"]


class TokenSequence(Protocol):
    """Token ids and, for each, whether it is a target of training."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def mask(self) -> Sequence[bool]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A micro-batch. `where_N` are positions in the flattened [B·T] whose hidden state predicts `targets_N`."""

    ids_BT: Tensor
    attention_BT: Tensor | None  # 1: token, 0: padding; None: no padding at all
    where_N: Tensor
    targets_N: Tensor
    owner_N: Tensor  # the sequence each trained token belongs to, in [0, S)
    sequences: int
    tokens: int  # computed, padding excluded
    positions_BT: Tensor | None = None  # only of a packed layout (see sharing.py)
    layout: Any = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on a device."""
        moved: dict[str, Any] = {
            f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


def collate(sequences: Sequence[TokenSequence], *, lag: int = 1) -> Batch:
    """Right-pad sequences into a batch. A trained first token is an error: nothing precedes it.

    `lag`: how far before a marked token a hidden state is read; 1 predicts the token, 0 is the token's own.
    """
    longest = max(len(s.ids) for s in sequences)
    ids_BT = torch.zeros(len(sequences), longest, dtype=torch.long)
    where, targets, owner = [], [], []
    for row, sequence in enumerate(sequences):
        ids, trained = torch.tensor(sequence.ids, dtype=torch.long), trained_positions(sequence, lag=lag)
        ids_BT[row, : len(ids)] = ids
        where.append(row * longest + trained - lag)
        targets.append(ids[trained])
        owner.append(torch.full_like(trained, row))
    lengths = torch.tensor([len(s.ids) for s in sequences])
    padded = bool((lengths < longest).any())
    return Batch(
        ids_BT=ids_BT,
        attention_BT=(torch.arange(longest) < lengths[:, None]).long() if padded else None,
        where_N=torch.cat(where),
        targets_N=torch.cat(targets),
        owner_N=torch.cat(owner),
        sequences=len(sequences),
        tokens=int(lengths.sum()),
    )


def trained_positions(sequence: TokenSequence, *, lag: int = 1) -> Tensor:
    """Return the indices of the trained tokens; raises `DataError` for a mask that cannot be trained on."""
    if len(sequence.ids) != len(sequence.mask):
        raise DataError(f"a sequence has {len(sequence.ids)} token ids but a mask of {len(sequence.mask)}")
    trained = torch.tensor(sequence.mask, dtype=torch.bool).nonzero()[:, 0]
    if lag and len(trained) and int(trained[0]) == 0:
        raise DataError("the first token of a sequence is marked as trained, but nothing precedes it to predict it from")
    return trained
