"""The frame of every offline trainer: open the start, skip what is finished, train, leave an ordinary checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import ConfigError
from ..core.types import Checkpoint, Cost, ModelShape
from ..models.adapters import Kind, unmerged
from ..models.forward import Forward
from ..models.virtual import virtual_tokens
from ..stats.flops import forward_flops, train_flops
from .artifact import data_hash, export, finished, run_key
from .loop import fit
from .opening import Adaptation, Opened, open_start
from .optimiser import Optimisation, Optimiser, Schedule
from .step import Learner, Objective, Work

__all__ = ["Session", "Settings", "group_work"]


class Settings(Protocol):
    """The fields that every offline trainer has; a trainer's dataclass fields are its configuration."""

    @property
    def version(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def tokens_per_microbatch(self) -> int: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def warmup(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def clip(self) -> float: ...
    @property
    def adapter(self) -> Kind: ...
    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def save_every(self) -> int: ...
    @property
    def dtype(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An opened run: the model in its training forward, the key that identifies the run, and where it writes."""

    method: Any
    start: Checkpoint
    out: Path
    seed: int
    key: str
    data: dict[str, Any]
    opened: Opened
    module: Forward
    done: Checkpoint | None

    @classmethod
    def open(
        cls, method: Settings, start: Checkpoint, data: Sequence[Mapping[str, Any]], out: Path, *, seed: int
    ) -> Session:
        """Check the settings, load the start, and look whether `out` already holds this run, finished."""
        name = type(method).__name__.lower()
        for field, least in (("epochs", 1), ("batch_size", 1), ("tokens_per_microbatch", 0), ("save_every", 0)):
            if getattr(method, field) < least:
                raise ConfigError(f"{name}: {field} = {getattr(method, field)} must be at least {least}")
        _optimisation(method)
        if method.adapter == "ia3" and method.weight_decay:
            raise ConfigError(
                f"{name}: weight_decay = {method.weight_decay} would pull IA3's factors to 0, not to 1; set it to 0"
            )
        opened = open_start(start, dtype=method.dtype, adaptation=Adaptation.of(method), out=out, seed=seed)
        hashed = data_hash(data)
        key = run_key(method=method, start=opened.loaded.fingerprint, data=hashed, seed=seed)
        return cls(
            method=method, start=start, out=out, seed=seed, key=key, data={"hash": hashed, "rows": len(data)},
            opened=opened, module=Forward(opened.model), done=finished(out, key),
        )  # fmt: skip

    @property
    def tokens_per_microbatch(self) -> int:
        """The setting; 0 chooses what keeps this device busy (the trajectory does not depend on it)."""
        return int(self.method.tokens_per_microbatch) or (8192 if self.opened.loaded.device.type == "cuda" else 512)

    @property
    def frozen_backbone(self) -> bool:
        """Whether only an adapter is trained."""
        return self.opened.base is not None

    @property
    def reference(self) -> Forward:
        """The start as it is before training, for a reference: fresh virtual tokens are no part of it."""
        return Forward(self.opened.loaded.model) if self.opened.starts_apart else self.module

    def virtual_flops(self, tokens: int, *, backward: bool = True) -> float:
        """Return the FLOPs that the adapter's virtual tokens add to one sequence of `tokens`."""
        return virtual_flops(self.opened.model, self.opened.loaded.shape, tokens, backward=backward)

    def train(
        self, objective: Objective, items: Sequence[Any], *, facts: Mapping[str, Any], cost: Cost | None = None
    ) -> Checkpoint:
        """Train on the items and export. `facts` go into `posttrain.json`; `cost` is what was spent before (a reference)."""
        method, name = self.method, type(self.method).__name__.lower()
        optimiser = Optimiser(self.module, _optimisation(method))
        self.module.collect_into(optimiser.sink)
        learner = Learner(
            module=self.module, objective=objective, optimiser=optimiser, seed=self.seed,
            tokens_per_microbatch=self.tokens_per_microbatch, device=self.opened.loaded.device,
        )  # fmt: skip
        try:
            fit(
                learner, items, out=self.out, key=self.key, batch_size=method.batch_size, epochs=method.epochs,
                save_every=method.save_every, description=name,
            )  # fmt: skip
        finally:
            optimiser.close()
        return export(
            self.opened.model, self.opened.loaded.tokenizer, self.out, method=method, seed=self.seed, key=self.key,
            base=self.opened.base, start={"path": str(self.start.path), "fingerprint": self.opened.loaded.fingerprint},
            data={**self.data, **facts}, parameters=self.opened.parameters,
            cost=self.start.cost + learner.cost + (cost or Cost()),
        )  # fmt: skip


def _optimisation(method: Settings) -> Optimisation:
    return Optimisation(
        lr=method.lr, schedule=method.schedule, warmup=method.warmup, weight_decay=method.weight_decay, clip=method.clip
    )


def group_work(
    shape: ModelShape, *, prefix: int, branches: Sequence[int], logits: int, frozen_backbone: bool, backward: bool = True
) -> Work:
    """Return what a group costs when its `prefix` is computed once for all `branches` (token counts after the prefix)."""
    ahead = [
        forward_flops(shape, start=prefix, tokens=n, logits=0) - forward_flops(shape, start=0, tokens=n, logits=0)
        for n in branches
    ]  # attention of the branches to the prefix
    tokens = prefix + sum(branches)
    if not backward:
        parts = [forward_flops(shape, start=0, tokens=n, logits=0) for n in (prefix, *branches)]
        return Work(tokens=tokens, flops=sum(parts) + sum(ahead) + 2.0 * shape.head_params * logits)
    parts = [train_flops(shape, tokens=n, logits=0, frozen_backbone=frozen_backbone) for n in (prefix, *branches)]
    heads = train_flops(shape, tokens=0, logits=logits, frozen_backbone=frozen_backbone)
    return Work(tokens=tokens, flops=sum(parts) + 3.0 * sum(ahead) + heads)


def virtual_flops(model: Any, shape: ModelShape, tokens: int, *, backward: bool) -> float:
    """Return the FLOPs that virtual tokens in front add to one sequence of `tokens`.

    Attention of the tokens to the virtual ones, three times with a backward pass; the virtual tokens of prompt tuning also
    run through the frozen layers, as any other tokens do; those of prefix tuning are not computed.
    """
    ahead = virtual_tokens(model)
    if not ahead:
        return 0.0
    attended = forward_flops(shape, start=ahead, tokens=tokens, logits=0) - forward_flops(
        shape, start=0, tokens=tokens, logits=0
    )
    own = 0.0
    if unmerged(model) == "prompt":
        own = (
            train_flops(shape, tokens=ahead, logits=0, frozen_backbone=True)
            if backward
            else forward_flops(shape, start=0, tokens=ahead, logits=0)
        )
    return own + (3.0 if backward else 1.0) * attended
