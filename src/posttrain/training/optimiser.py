"""AdamW over float32 masters, clipping by the norm of all gradients, or of each group's.

Module weights may be bfloat16; a bfloat16 weight of 1 cannot take an update smaller than 2⁻⁸, so the optimiser owns a
float32 copy (the master) and writes it back rounded so that small updates are seen (`rounding`). Gradients are summed over
micro-batches in float32 too: each weight's gradient is added to its master's as soon as the backward pass has it, and freed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.errors import ConfigError, TrainingError
from ..models.rounding import round_into
from .schedule import Schedule
from .shards import first_element, is_slice, local, slice_of, whole

__all__ = ["Group", "Optimisation", "Optimiser"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The parameters whose names begin with `prefix`: their rate is `factor` times the run's, their gradients are clipped
    by their own norm, so that no other group's size changes their update."""

    name: str
    prefix: str
    factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisation:
    """How weights are updated. `clip` bounds the norm of the gradient (0: off): of all together, or of each of `groups`.

    `warmup` and `decay_share` (of schedule "wsd") are fractions of all steps. `kind` "adamw8bit" keeps Adam's moments in
    8 bits (bitsandbytes, on CUDA only).
    """

    lr: float
    schedule: Schedule = "cosine"
    warmup: float = 0.03
    decay_share: float = 0.2
    kind: Literal["adamw", "adamw8bit"] = "adamw"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float = 1.0
    groups: tuple[Group, ...] = ()  # none: all weights are one

    def __post_init__(self) -> None:
        for name, good in (
            ("lr", self.lr > 0),
            ("warmup", 0 <= self.warmup < 1),
            ("decay_share", 0 < self.decay_share <= 1),
            ("weight_decay", self.weight_decay >= 0),
            ("clip", self.clip >= 0),
            ("beta1", 0 <= self.beta1 < 1),
            ("beta2", 0 <= self.beta2 < 1),
        ):
            if not good:
                raise ConfigError(f"{name} = {getattr(self, name)} is out of range")
        if self.schedule != "wsd" and self.decay_share != 0.2:
            raise ConfigError(f"decay_share is read with schedule=wsd only, not with schedule={self.schedule}")
        if self.schedule == "wsd" and self.warmup + self.decay_share > 1:
            raise ConfigError(
                f"warmup = {self.warmup} and decay_share = {self.decay_share} are more than all steps together: lower one"
            )


class Optimiser:
    """Owns the masters of all trainable weights of a module; of a sharded one, this process's slices of them.

    After the backward passes of a step, `gradients()` are the summed gradients; `update` clips and applies them. What it
    saves is whole: `weights` and `state` gather the slices into process 0, and all processes must call them.
    """

    def __init__(self, module: nn.Module, settings: Optimisation) -> None:
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not named:
            raise TrainingError("no weight is trainable: every parameter has requires_grad=False")
        self.names = list(named)
        self.params = list(named.values())
        self.sharded = any(is_slice(p) for p in self.params)
        self.masters = [_master(p) for p in self.params]
        self._master_of = {id(p): m for p, m in zip(self.params, self.masters, strict=True)}
        self.settings = settings
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._collector(master))  # type: ignore[no-untyped-call]
            for p, master in zip(self.params, self.masters, strict=True)
            if master is not p
        ]
        self._grouped = _members(self.names, settings.groups)
        parts = [  # of each group the matrices, then norms and biases, which are not decayed
            (group, [i for i in members if (self.masters[i].ndim < 2) is flat], 0.0 if flat else settings.weight_decay)
            for group, members in self._grouped
            for flat in (False, True)
        ]
        parts = [part for part in parts if part[1]]
        self._order = [self.params[i] for _, members, _ in parts for i in members]
        self._factors = [1.0 if group is None else group.factor for group, _, _ in parts]
        self._adamw = self._made(
            [{"params": [self.masters[i] for i in members], "weight_decay": decay} for _, members, decay in parts]
        )
        self._keeps = settings.kind == "adamw" and {m.device.type for m in self.masters} == {"cpu"}
        if self._keeps:
            self._reserve()

    def _made(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return AdamW over the masters; fused (one kernel for all weights) where PyTorch has it."""
        settings = self.settings
        types = {m.device.type for m in self.masters}
        how: dict[str, Any] = {
            "lr": settings.lr, "betas": (settings.beta1, settings.beta2), "eps": settings.epsilon
        }  # fmt: skip
        if settings.kind == "adamw8bit":
            made: torch.optim.Optimizer = eight_bit(types).AdamW8bit(groups, **how)
            return made
        return torch.optim.AdamW(groups, **how, fused=types <= {"cpu", "cuda"})

    def _reserve(self) -> None:
        """Make gradients and moments before anything else needs memory, for good.

        Made anew in every step they lie between the activations that a processor's allocator keeps, and each of their pages
        is asked of the system again.
        """
        for master in self.masters:
            master.grad = torch.zeros_like(master)
            self._adamw.state[master] = {
                "step": torch.zeros(()), "exp_avg": torch.zeros_like(master), "exp_avg_sq": torch.zeros_like(master)
            }  # fmt: skip

    @staticmethod
    def _collector(master: Tensor) -> Any:
        def collect(param: Tensor) -> None:
            if param.grad is None:  # the whole gradient went into the sink
                return
            if master.grad is None:
                master.grad = local(param.grad).to(master.dtype)
            else:
                master.grad.add_(local(param.grad))
            param.grad = None

        return collect

    def sink(self, param: Tensor) -> Tensor | None:
        """Return where a weight's gradient may be added directly: its master's, zeros at first; None if it is frozen."""
        master = self._master_of.get(id(param))
        if master is None:
            return None
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        return master.grad

    def gradients(self) -> list[Tensor]:
        """Return the gradient of every master; a weight no loss reached gets zeros."""
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        return [m.grad for m in self.masters if m.grad is not None]

    def norm(self) -> float:
        """Return the Euclidean norm of all gradients together."""
        return self._norm_of(self.gradients())

    def _norm_of(self, gradients: list[Tensor]) -> float:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if self.sharded:
            square = norm.double().square()
            dist.all_reduce(square)
            norm = square.sqrt()
        return float(norm)

    def update(self, lr: float, norm: float) -> dict[str, float]:
        """Clip, take one AdamW step at this rate, write the masters back, and drop the gradients.

        `norm` is that of all gradients. Returns the groups' own norms, by name; nothing where there are no groups.
        """
        gradients, norms = self.gradients(), {}
        for group, members in self._grouped:
            own = [gradients[i] for i in members]
            if group is not None:
                norm = norms[group.name] = self._norm_of(own)
            if self.settings.clip and norm > self.settings.clip:
                torch._foreach_mul_(own, self.settings.clip / norm)
        for part, factor in zip(self._adamw.param_groups, self._factors, strict=True):
            part["lr"] = lr * factor
        self._adamw.step()
        self.discard()
        self._write_back()
        return norms

    def discard(self) -> None:
        """Drop the gradients without using them."""
        for master in self.masters:
            if self._keeps and master.grad is not None:
                master.grad.zero_()
            else:
                master.grad = None

    def _write_back(self) -> None:
        with torch.no_grad():
            for param, master in zip(self.params, self.masters, strict=True):
                if master is not param:
                    round_into(local(param), master, first_element(param))

    def close(self) -> None:
        """Take the hooks off the module, and let go of the gradients: the module may stay to be saved and asked."""
        for hook in self._hooks:
            hook.remove()
        for master in self.masters:
            master.grad = None

    def weights(self) -> dict[str, Tensor]:
        """Return the masters by name."""
        kept = zip(self.names, self.masters, self.params, strict=True)
        return {name: whole(master.detach(), param) for name, master, param in kept}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs: masters by name, and AdamW's moments."""
        return {"masters": self.weights(), "adamw": self._moments(self._adamw.state_dict(), whole)}

    def load(self, state: dict[str, Any]) -> None:
        """Take a checkpoint's state; raises `TrainingError` when it is of another model."""
        self.load_weights(state["masters"])
        self._adamw.load_state_dict(self._moments(state["adamw"], slice_of))

    def _moments(self, adamw: dict[str, Any], change: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Any]:
        """Return AdamW's state with its moments, in the order of its groups, changed to whole ones or to slices."""
        if not self.sharded:
            return adamw
        state = {
            at: {name: change(value, self._order[at]) if name != "step" else value for name, value in kept.items()}
            for at, kept in adamw["state"].items()
        }
        return {**adamw, "state": state}

    def load_weights(self, saved: dict[str, Tensor]) -> None:
        """Take masters alone; raises `TrainingError` when they are of another model."""
        if list(saved) != self.names:
            differing = _first_difference(saved, self.names)
            raise TrainingError(
                f"the saved training state is of another model or adapter: weight '{differing}' does not match"
            )
        with torch.no_grad():
            for name, master, param in zip(self.names, self.masters, self.params, strict=True):
                master.copy_(slice_of(saved[name], param))
        self._write_back()


def _members(names: Sequence[str], groups: Sequence[Group]) -> list[tuple[Group | None, list[int]]]:
    """Return the places of each group's parameters, without groups of all as one; raises `TrainingError` for one in none."""
    if not groups:
        return [(None, list(range(len(names))))]
    found = [(group, [i for i, name in enumerate(names) if name.startswith(group.prefix)]) for group in groups]
    placed = sorted(i for _, members in found for i in members)
    if placed != list(range(len(names))) or not all(members for _, members in found):
        raise TrainingError(f"each of {len(names)} weights must be in one group of {', '.join(g.name for g in groups)}")
    return [(group, members) for group, members in found]


def _master(param: nn.Parameter) -> nn.Parameter:
    """Return a weight's float32 copy, or the weight itself where it is as wide; of a sharded one, of this slice."""
    wide = param.dtype in (torch.float32, torch.float64)
    if is_slice(param):
        return nn.Parameter(local(param) if wide else local(param).float())
    return param if wide else nn.Parameter(param.detach().float())


def eight_bit(types: set[str]) -> Any:
    """Return bitsandbytes' optimisers; raises `ConfigError` without a CUDA device or the package."""
    if types != {"cuda"}:
        raise ConfigError("optimiser=adamw8bit works on CUDA devices only: use optimiser=adamw here")
    try:
        return importlib.import_module("bitsandbytes.optim")
    except ImportError as error:
        raise ConfigError(
            f"optimiser=adamw8bit needs bitsandbytes ({error}): pip install bitsandbytes, or use optimiser=adamw"
        ) from None


def _first_difference(a: Iterable[str], b: Iterable[str]) -> str:
    only = set(a) ^ set(b)
    return min(only) if only else "order of weights"
