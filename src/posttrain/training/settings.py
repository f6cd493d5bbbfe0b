"""The settings that every offline trainer shares beside its own fields; a trainer gets them as a base without code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

from ..core.errors import ConfigError
from ..models.adapters import Kind
from .schedule import Schedule

__all__ = ["NEUTRAL", "LoopSettings", "Tracker", "TrainerSettings", "key_config"]

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]

# What does not decide the result may change between a kill and a resume, so it is no part of a run's key.
NEUTRAL = frozenset(
    {
        "activation_checkpointing",
        "lanes",
        "eval_start",
        "keep",
        "explode",
        "track",
        "sample_every",
        "sample_data",
        "sample_count",
        "sample_tokens",
        "sharding",
    }
)
_NEUTRAL_ONLINE = {"show_rollouts"}  # likewise, of methods that sample while they train
# A trainer's own settings that came after runs had been finished, at their defaults.
LATER = {
    "targets": "all-linear", "virtual_tokens": 20, "width": 64, "gap": 0.0, "per_token": False, "reference_free": False,
    "f_divergence": "reverse_kl", "f_alpha": 0.5, "likelihood": 0.0,
    "on_policy": 0.0, "rollout_tokens": 128, "rollout_temperature": 1.0, "watched": (),
    "rollout_server": "", "overlap": 0, "eval_by": "reward",
}  # fmt: skip
LATER_OF = {"Ppo": {"truncate": 0.0}}  # those that one trainer had from its beginning, and this one got


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """How the loop decays, evaluates, keeps, watches and tells. At their defaults a run is as it was without them."""

    decay_share: float = 0.2  # of all steps, with schedule=wsd
    optimiser: Literal["adamw", "adamw8bit"] = "adamw"
    activation_checkpointing: bool = False
    lanes: int = 0  # micro-batches at a time, on a processor; 0: as many as help and fit
    eval_data: str | None = None  # file of held-out rows
    eval_share: float = 0.0  # or: share of the rows that is held out
    eval_every: int = 0  # optimiser steps; 0: after each epoch
    eval_start: bool = False  # before the first step too
    patience: int = 0  # evaluations without a better one until training stops; 0: never
    keep: int = 1  # saved training states
    explode: float = 0.0  # stop when loss or gradient norm is that many times its running median; 0: off
    track: Tracker | None = None
    sample_every: int = 0  # optimiser steps; 0: never
    sample_data: str | None = None  # file of prompts; default: held-out rows
    sample_count: int = 4  # prompts
    sample_tokens: int = 128  # of a reply, at most
    sharding: Literal["off", "full"] = "off"  # of weights, gradients and optimiser over processes (FSDP2)

    @classmethod
    def of(cls, method: Any) -> LoopSettings:
        """Read them from a trainer; one that lacks a field has its default. Raises `ConfigError` for impossible ones."""
        given: dict[str, Any] = {f.name: getattr(method, f.name) for f in fields(cls) if hasattr(method, f.name)}
        found = cls(**given)
        found._check(type(method).__name__.lower())
        return found

    @property
    def evaluates(self) -> bool:
        """Whether there are held-out rows."""
        return self.eval_data is not None or self.eval_share > 0

    def _check(self, name: str) -> None:
        good = {
            "decay_share": 0 < self.decay_share <= 1,
            "eval_share": 0 <= self.eval_share < 1,
            "explode": self.explode == 0 or self.explode > 1,
            "keep": self.keep >= 1,
            **{field: getattr(self, field) >= 0 for field in ("lanes", "eval_every", "patience", "sample_every")},
            **{field: getattr(self, field) >= 1 for field in ("sample_count", "sample_tokens")},
        }
        for field, fine in good.items():
            if not fine:
                raise ConfigError(f"{name}: {field} = {getattr(self, field)} is out of range")
        if self.eval_data is not None and self.eval_share:
            raise ConfigError(f"{name}: eval_data and eval_share both name held-out rows: give one of them")
        for field in ("eval_every", "eval_start", "patience"):
            if getattr(self, field) and not self.evaluates:
                raise ConfigError(f"{name}: {field} needs held-out rows: set eval_share (0.05, say) or eval_data (a file)")
        if self.sample_every and self.sample_data is None and not self.evaluates:
            raise ConfigError(f"{name}: sample_every needs prompts: set sample_data (a file), eval_share or eval_data")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings(LoopSettings):
    """What is trained, how fast and in which portions: a trainer repeats only what has another default there."""

    version: ClassVar[str] = "1"

    lr: float = 2e-5
    epochs: int = 1
    batch_size: int = 16  # rows per optimiser step: sequences, or pairs
    tokens_per_microbatch: int = 0  # 0: chosen for the device; results do not depend on it
    schedule: Schedule = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    adapter: Kind = "full"
    rank: int = 16  # of lora, rslora, dora, qlora
    alpha: float = 32.0  # likewise
    dropout: float = 0.0  # likewise
    targets: str | tuple[str, ...] = "all-linear"  # likewise: layers, by name
    virtual_tokens: int = 20  # of prefix, prompt
    width: int = 64  # of bottleneck
    max_length: int = 0  # tokens; 0: the model's context
    too_long: Literal["error", "drop"] = "error"
    save_every: int = 50  # optimiser steps between checkpoints of training state
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


def key_config(method: Any) -> dict[str, Any]:
    """Return the part of a trainer's configuration that decides its result.

    A shared setting, or a later one, is left out at its default: the keys of finished runs stay what they were.
    """
    config: Mapping[str, Any] = asdict(method)
    shared = {f.name: f.default for f in fields(LoopSettings)} | LATER | LATER_OF.get(type(method).__name__, {})
    return {
        name: value
        for name, value in config.items()
        if name not in NEUTRAL | _NEUTRAL_ONLINE and not (name in shared and value == shared[name])
    }
