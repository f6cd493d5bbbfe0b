"""A value model beside the policy: where it begins, how fast it learns, what becomes of it.

A trainer asks for one with `Session.open(…, critic=CriticStart(…))`; its objective is then called with a
`models.actor_critic.ActorCritic` in place of the policy's `Forward`. Both are updated by one optimiser step, each at its
own rate and clipped by its own gradient norm; state, resume and the best held-out weights cover both. Whatever adapter the
policy has, the value model is trained in full: its backbone was made to tell the next token, and is to tell something else.
It is saved in `out/checkpoint/value`, in a recipe `stage:NAME/value`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, ModelError
from ..models.actor_critic import ActorCritic, load_value
from ..models.forward import Forward
from ..models.load import LoadedModel, fingerprint_of, tokenizer_of
from ..models.recompute import recompute_activations
from ..models.scoring import ScoreForward
from .opening import context_of_model
from .optimiser import Group

__all__ = ["Critic", "CriticStart", "open_critic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticStart:
    """What a trainer asks for: `ref` names a value model, a reward model or a language model (empty: the policy's start)."""

    ref: str = ""
    lr: float = 0.0  # peak rate; 0: the policy's

    @property
    def content(self) -> str:
        """What the reference names, by content, for a run's key; empty for the policy's start."""
        return fingerprint_of(self.ref) if self.ref else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Critic:
    """A value model in its training forward."""

    loaded: LoadedModel
    module: ScoreForward
    factor: float  # of the learning rate
    context: int  # tokens

    def beside(self, policy: Forward) -> ActorCritic:
        """Return both as one module."""
        return ActorCritic(policy, self.module)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The optimiser's groups."""
        return (
            Group(name="policy", prefix="policy."),
            Group(name="value", prefix="value.", factor=self.factor),
        )

    @property
    def artifact(self) -> tuple[Any, Any]:
        """What is saved: model and tokenizer."""
        return self.loaded.model, self.loaded.tokenizer

    @property
    def facts(self) -> dict[str, Any]:
        """What `posttrain.json` tells."""
        return {
            "start": {"path": str(self.loaded.name), "fingerprint": self.loaded.fingerprint},
            "parameters": sum(p.numel() for p in self.loaded.model.parameters()),
        }

    def recompute(self) -> None:
        """Switch on activation checkpointing."""
        recompute_activations(self.loaded.model)


def open_critic(name: str, wanted: CriticStart, start: Path | str, *, lr: float, dtype: str) -> Critic:
    """Load the value model; `start` is the policy's, or its base where the policy is an adapter that stays one.

    Raises `ConfigError` for a rate that is not possible, `ModelError` for another tokenizer.
    """
    if wanted.lr < 0:
        raise ConfigError(f"{name}: the value model's learning rate, {wanted.lr}, must not be negative (0: the policy's)")
    if wanted.ref and tokenizer_of(wanted.ref).get_vocab() != tokenizer_of(start).get_vocab():
        raise ModelError(
            f"{name}: the value model '{wanted.ref}' has another tokenizer than the policy, so it cannot read its tokens: "
            "begin at a model of the same family, or at the policy's start"
        )
    loaded = load_value(wanted.ref or start, dtype=dtype)
    loaded.model.requires_grad_(True)
    factor = wanted.lr / lr if wanted.lr else 1.0
    return Critic(loaded=loaded, module=ScoreForward(loaded.model), factor=factor, context=context_of_model(loaded.model))
