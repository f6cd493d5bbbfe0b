"""A policy and a value model as one module, trained together: V(s_t), the expected return, in front of every token a_t.

The value model is a backbone of its own under a head with one output, transformers' ordinary class for token classification
with the single label "value". The state s_t is what stands before the token a_t, so its value is read at the very position
that predicts a_t: one batch, laid out for the policy, serves both.

Shapes: N trained tokens of all rows laid end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.files import read_json
from .adapters import is_adapter
from .forward import Batch, Forward, TokenSequence, collate
from .load import LoadedModel, resolve
from .scoring import is_kind, load_scoring, score_head, under_head

__all__ = ["VALUE", "ActorCritic", "load_value"]

VALUE = ("value",)  # the labels of a value model


class ActorCritic(nn.Module):
    """Both models under one roof: its parameters are named `policy.…` and `value.…`.

    Call the parts alone for less: `module.policy(batch)` as any `Forward`, `module.values(batch)`.
    """

    def __init__(self, policy: Forward, value: Forward) -> None:
        super().__init__()
        self.policy, self.value = policy, value

    @property
    def packs(self) -> bool:
        """Whether sequences of a group share the computation of their common prefix, in both models."""
        return self.policy.packs and self.value.packs

    def batch(self, groups: Sequence[Sequence[TokenSequence]]) -> Batch:
        """Lay out groups of sequences for both models; marked are the actions, the tokens that the policy wrote."""
        if self.packs:
            return self.policy.batch(groups)
        return collate([sequence for group in groups for sequence in group], lag=self.policy.lag)

    def collect_into(self, sink: Callable[[Tensor], Tensor | None]) -> None:
        """As `Forward.collect_into`, of both models."""
        self.policy.collect_into(sink)
        self.value.collect_into(sink)

    def values(self, batch: Batch) -> Tensor:
        """Return V(s_t) of the state in front of every action: `values_N`, at least float32."""
        values_N1: Tensor = self.value(batch)
        return values_N1[:, 0]

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return log π(a_t | s_t) and V(s_t) of every action: `logps_N`, `values_N`."""
        return self.policy(batch), self.values(batch)


def load_value(ref: str | Path, *, dtype: str = "auto", device: str = "auto") -> LoadedModel:
    """Load a value model from one, from a reward model, or from a language model.

    A reward model's backbone and head (one label, of the whole reply) are taken over: its reward becomes the first opinion
    of every state. On a language model's backbone the head is zero, so that V = 0 at first. Raises `ModelError` for a
    folder with another number of labels, or a model whose decoder has no such class.
    """
    path = resolve(ref)
    if not _judges_replies(path):
        return load_scoring(ref, "token", VALUE, dtype=dtype, device=device, zero=True)
    reward = load_scoring(ref, "sequence", VALUE, dtype=dtype, device=device)
    weight_1D = score_head(reward.model).weight.detach().clone()
    made = under_head(reward, "token", VALUE, zero=True)
    with torch.no_grad():
        score_head(made.model).weight.copy_(weight_1D)
    return made


def _judges_replies(path: Path) -> bool:
    """Whether a folder is a sequence-classification model, or an adapter with such a head."""
    if is_adapter(path):
        file = path / "adapter_config.json"
        return file.is_file() and read_json(file).get("task_type") == "SEQ_CLS"
    return is_kind(path, "sequence")
