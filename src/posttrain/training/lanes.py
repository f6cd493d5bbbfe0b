"""Micro-batches side by side on a processor: a step's rows are dealt to lanes, each with a thread and gradients of its own.

The products of a small model, and all that stands between them, are too short for many threads to share: two threads that
wait for each other at every operation do less than two that work on rows of their own. A lane is a copy of the module that
shares every weight with it. Its gradients are summed in the masters' type and added to them after the backward passes, in
the order of the lanes, so a run gives the same numbers each time; another number of lanes rounds in another way.

Costs, for each lane beside the first: the sum of the gradients, and the activations of a micro-batch.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.files import read_json
from ..models.forward import Forward
from .batching import dealt
from .estimate import Sizes, estimate
from .optimiser import Optimiser
from .processes import say

__all__ = ["Lanes", "choose", "hindrance", "open_lanes", "sharing_weights"]

T = TypeVar("T")
CHOSEN = 2  # lanes of a processor with at least as many threads, where nobody says how many
EVEN = 1.2  # the fullest lane's tokens over the mean up to which lanes gain more than they wait for it


class Lanes:
    """A module and its copies. `modules[0]` is the module itself, which the calling thread runs."""

    def __init__(self, module: nn.Module, count: int) -> None:
        self.modules: list[Any] = [module, *(sharing_weights(module) for _ in range(count - 1))]
        self._gradients: list[_Gradients] = []
        self._threads = ThreadPoolExecutor(max_workers=max(1, count - 1), thread_name_prefix="lane")

    def __len__(self) -> int:
        return len(self.modules)

    def deal(self, items: Sequence[T], lengths: Sequence[int]) -> list[tuple[list[T], list[int]]] | None:
        """Return each lane's items and their lengths; None where all threads do better on one item after the other.

        That is where a lane would have much more than the others, a step of a single row for example: two lanes do about
        1.2 times what two threads do that share every product, and less than these when one of them has nothing left.
        """
        parts = dealt(items, lengths, len(self))
        loads = [sum(part[1]) for part in parts]
        return parts if max(loads) * len(loads) <= EVEN * sum(loads) else None

    def collect_into(self, optimiser: Optimiser) -> None:
        """Let backward passes sum each lane's gradients: the module's in the optimiser's masters, the others apart."""
        self.modules[0].collect_into(optimiser.sink)
        self._gradients = [_Gradients(module, optimiser) for module in self.modules[1:]]

    def train(self, mode: bool) -> None:
        """Set the mode of every lane's module."""
        for module in self.modules:
            module.train(mode)

    def run(self, work: Callable[[Any, int], T]) -> list[T]:
        """Call `work(module, lane)` in all lanes at once, each with its share of the threads; returns what they return.

        Gradients, where they are wanted here, are those of all lanes together. An error in a lane is raised when all of
        them have ended.
        """
        threads, wanted = torch.get_num_threads(), torch.is_grad_enabled()

        def one(lane: int) -> T:
            torch.set_num_threads(max(1, threads // len(self)))
            with torch.set_grad_enabled(wanted):  # a thread has a mode of its own
                return work(self.modules[lane], lane)

        others = [self._threads.submit(one, lane) for lane in range(1, len(self))]
        try:
            first = one(0)
        finally:
            wait(others)
            torch.set_num_threads(threads)
        found = [first, *(other.result() for other in others)]
        if wanted:
            for gradients in self._gradients:
                gradients.hand_over()
        return found

    def close(self) -> None:
        """Let go of the threads, the hooks and the gradients."""
        self._threads.shutdown()
        for gradients in self._gradients:
            gradients.close()


class _Gradients:
    """The sums of one copy's gradients, in the masters' type, in the order of the masters."""

    def __init__(self, module: Any, optimiser: Optimiser) -> None:
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        assert list(named) == optimiser.names
        self._optimiser = optimiser
        self._sums = [torch.zeros_like(master) for master in optimiser.masters]
        self._of = {id(p): total for p, total in zip(named.values(), self._sums, strict=True)}
        self._hooks = [p.register_post_accumulate_grad_hook(self._collect) for p in named.values()]
        module.collect_into(lambda param: self._of.get(id(param)))

    def _collect(self, param: Tensor) -> None:
        if param.grad is not None:  # else the whole gradient went into the sink
            self._of[id(param)].add_(param.grad)
            param.grad = None

    def hand_over(self) -> None:
        """Add the sums to the masters' gradients, and begin anew."""
        torch._foreach_add_(self._optimiser.gradients(), self._sums)
        torch._foreach_zero_(self._sums)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._sums, self._of = [], {}


def sharing_weights(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose parameters and buffers are the module's in memory, with gradients of their own.

    Where the module's own gradients are collected is nothing that a copy may know of, or have a copy of.
    """
    known: dict[int, Any] = {id(buffer): buffer for buffer in module.buffers()}
    known |= {id(part._sink): None for part in module.modules() if isinstance(part, Forward)}
    for parameter in module.parameters():
        known[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    return copy.deepcopy(module, known)


def open_lanes(name: str, module: Any, count: int, *, wanted: int = 0) -> Lanes | None:
    """Return lanes of a module that no optimiser has yet; None for one lane, or where it cannot be copied, which is told.

    Raises `ConfigError` where it cannot be copied though several lanes are `wanted`.
    """
    if count < 2:
        return None
    try:
        lanes = Lanes(module, count)
    except (copy.Error, pickle.PicklingError, TypeError, RuntimeError) as error:  # a lock, a handle, a tensor with a history
        why: str | None = _first_line(error)
    else:
        why = _fault(lanes.modules[1], module)
        if why is None:
            return lanes
    if wanted > 1:
        raise ConfigError(f"{name}: lanes = {wanted} cannot be: the model cannot be copied ({why}). Leave lanes out")
    say(f"the model cannot be copied for several lanes ({why}): it is trained in one")
    return None


def _fault(copied: Any, module: Any) -> str | None:
    """Return what is wrong with a copy, tried on three tokens; None for one that works and has gradients of its own.

    A hook that holds on to a part of the first module would bring that part the gradients of both. What a copy of an
    architecture that is not known here may fail with is not known either: it is told, and the first module trains alone.
    """
    try:
        with torch.enable_grad():
            found = copied(module.batch([[_Probe()]]))
            sum(part.float().sum() for part in (found if isinstance(found, tuple) else (found,))).backward()
        reaches = any(parameter.grad is not None for parameter in module.parameters())
        return "a copy of it reaches into the first" if reaches else None
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, NotImplementedError) as error:
        return f"a copy of it fails: {_first_line(error)}"
    finally:
        for one in (copied, module):
            one.zero_grad(set_to_none=True)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class _Probe:
    """Three small token ids, of which the last two are trained."""

    ids: ClassVar[list[int]] = [1, 2, 3]
    mask: ClassVar[list[bool]] = [False, True, True]


def hindrance(modules: Sequence[Any], objective: Any, loop: Any) -> str | None:
    """Return why a run of these models cannot have several lanes; None when it can."""
    if any(next(module.parameters()).device.type != "cpu" for module in modules):
        return "lanes are for processors: a GPU runs one micro-batch at a time"
    if not getattr(objective, "side_by_side", False):
        return "its loss reads other models, or is not known to bear several threads"
    for setting in ("activation_checkpointing", "sharding"):
        if getattr(loop, setting) not in (False, "off"):
            return f"{setting} saves what lanes spend"
    if any(map(_draws, modules)):
        return "dropout draws from one generator, in an order that threads do not keep"
    return None


def _draws(module: nn.Module) -> bool:
    """Whether a forward pass in training mode draws random numbers: a layer of dropout, or a rate that a part keeps."""
    for part in module.modules():
        rates = [value for name, value in vars(part).items() if "drop" in name or "jitter" in name]
        rates += [getattr(part, "p", 0.0)] if "Dropout" in type(part).__name__ else []
        if any(isinstance(rate, int | float) and rate > 0 for rate in rates):
            return True
    return False


def choose(name: str, wanted: int, sizes: Sizes, out: Path, *, hindered: str | None, free: int | None) -> int:
    """Return how many lanes a run has: as many as are `wanted`, or (0) what this machine bears, `CHOSEN` at most.

    A resumed run keeps what it began with, whatever memory is free now. Raises `ConfigError` for lanes that cannot be.
    """
    if wanted > 1 and hindered is not None:
        raise ConfigError(f"{name}: lanes = {wanted} cannot be: {hindered}. Leave lanes out")
    threads = torch.get_num_threads()
    if wanted > threads:
        raise ConfigError(
            f"{name}: lanes = {wanted} are more than the {threads} threads of this process: set lanes={threads}"
        )
    if wanted or hindered is not None or threads < CHOSEN:
        return max(1, wanted)
    file = out / "estimate.json"
    before = int(read_json(file).get("lanes", 1)) if file.is_file() else 0
    if before:
        return min(before, threads)
    needs = estimate(replace(sizes, lanes=CHOSEN)).more
    return CHOSEN if free is None or needs <= free else 1
