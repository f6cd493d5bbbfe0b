"""A teacher: a second model that reads the same tokens as the one in training, and is asked for its distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import DataError, ModelError
from ..core.types import ModelShape
from ..data.masks import Encoded
from ..models.forward import Forward, TokenSequence
from ..models.load import load, tokenizer_of
from ..models.virtual import virtual_tokens
from ..stats.flops import forward_flops
from .session import virtual_flops

__all__ = ["Teacher", "check_same_ids", "check_same_vocabulary", "open_teacher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A loaded teacher. It is never trained, has no dropout, and no gradient is ever kept for it."""

    module: Forward
    tokenizer: Any
    shape: ModelShape
    context: int  # tokens

    @torch.no_grad()
    def hidden(self, groups: Sequence[Sequence[TokenSequence]]) -> Tensor:
        """Return `hidden_ND` of the positions that predict a trained token, sequence by sequence in the order given."""
        return self.module.hidden(self.module.batch(groups).to(self.module.model.device))

    @torch.no_grad()
    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return the logits of some of these positions: `logits_NV`, at least float32."""
        return self.module.logits(hidden_ND)

    def flops(self, tokens: int, *, logits: int) -> float:
        """Return the FLOPs of reading one sequence of `tokens` tokens, `logits` of them through the head."""
        own = forward_flops(self.shape, start=0, tokens=tokens, logits=logits)
        return own + virtual_flops(self.module.model, self.shape, tokens, backward=False)


def open_teacher(ref: str, *, student: Any, tokenizer: Any, dtype: str) -> Teacher:
    """Load a teacher by any reference to a model, for a student in its training forward and its tokenizer.

    Raises `ModelError`, before the weights are loaded, when the tokenizers have different tokens or ids for them.
    """
    check_same_vocabulary(ref, tokenizer_of(ref), tokenizer)
    loaded = load(ref, dtype=dtype)
    loaded.model.requires_grad_(False)
    module = Forward(loaded.model)
    needed = 1 + max(tokenizer.get_vocab().values())
    for name, width in (("the teacher", module.vocabulary), ("the model to train", student.vocabulary)):
        if width < needed:
            raise ModelError(f"teacher '{ref}': {name} has {width} logits, fewer than the tokenizer's {needed} tokens")
    config = loaded.model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    context = int(getattr(text, "max_position_embeddings", 0) or 1 << 30) - virtual_tokens(loaded.model)
    return Teacher(module=module, tokenizer=loaded.tokenizer, shape=loaded.shape, context=context)


def check_same_vocabulary(ref: str, teacher: Any, student: Any) -> None:
    """Raise `ModelError` unless two tokenizers have the same tokens with the same ids; shows one that they do not share."""
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    if theirs == ours:
        return
    token = min((t for t in {**theirs, **ours} if theirs.get(t) != ours.get(t)), key=lambda t: (ours.get(t, 1 << 30), t))
    raise ModelError(
        f"teacher '{ref}': its tokenizer is not the student's ({len(theirs)} tokens against {len(ours)}; {token!r} is "
        f"{_named(theirs.get(token))} there and {_named(ours.get(token))} here), so its probabilities cannot be compared "
        "token by token: choose a teacher of the same family, or fine-tune with sft on the replies it writes"
    )


def _named(token_id: int | None) -> str:
    return "no token" if token_id is None else f"id {token_id}"


def check_same_ids(ref: str, teacher: Encoded, student: Encoded, *, where: str) -> None:
    """Raise `DataError` unless both tokenizers and chat templates make the same of a row."""
    if teacher == student:
        return
    at = next(
        (i for i, pair in enumerate(zip(teacher.ids, student.ids, strict=False)) if pair[0] != pair[1]),
        min(len(teacher.ids), len(student.ids)),
    )
    raise DataError(
        f"{where}: teacher '{ref}' reads it as other tokens than the student, from token {at} on ({len(teacher.ids)} tokens "
        f"there, {len(student.ids)} here): give both the same chat template and tokenizer files"
    )
