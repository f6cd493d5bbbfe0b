"""Fully sharded training (FSDP2): of each weight, and of all that its optimiser keeps, a process holds one slice.

A layer's whole weights exist while it computes, gathered from all processes; its gradients are added up over them and
sliced again. Slices are cut along the first dimension, the last ones may be shorter or empty. What is saved is whole.

Zhao et al. 2023 (arXiv 2304.11277), in the form of `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..models.forward import Forward, backbone_of
from .processes import rank_and_world, say

__all__ = ["check_shardable", "first_element", "is_slice", "local", "make_whole", "rest", "shard", "slice_of", "whole"]


def check_shardable(name: str, adapter: str, loop: Any, *, critic: bool = False) -> None:
    """Raise `ConfigError` for settings that sharding=full cannot go with, or a value model trained beside the policy."""
    if loop.sharding == "off":
        return
    if critic:
        raise ConfigError(
            f"{name}: sharding=full does not go with a value model trained beside the policy: leave sharding out"
        )
    impossible = {
        f"adapter={adapter}": adapter == "qlora",
        "optimiser=adamw8bit": loop.optimiser == "adamw8bit",
        f"sample_every={loop.sample_every}": loop.sample_every > 0,
    }
    for setting, given in impossible.items():
        if given:
            raise ConfigError(f"{name}: sharding=full does not go with {setting}: leave one of them out")


def shard(module: Forward, device: torch.device) -> bool:
    """Leave this process one slice of each weight, layer by layer; returns whether there are processes to share with.

    Raises `ConfigError` when this PyTorch cannot do it.
    """
    world = rank_and_world()[1]
    if world == 1:
        say("sharding=full has nothing to share with in one process: start several with torchrun")
        return False
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ConfigError(f"sharding=full needs a newer PyTorch than {torch.__version__} (2.13 does): install that")
    how: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (world,)),
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False),
    }
    for block in _blocks(backbone_of(module.model)):
        fully_shard(block, **how)
    fully_shard(module, **how)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_force_sum_reduction_for_comms(True)
            part.set_gradient_divide_factor(1.0)  # shares of one loss add up
            part.set_reduce_scatter_unused_params(True)  # a process may not reach every expert
    return True


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    """Return the layers of a decoder: the members of its outermost lists of modules."""
    found: list[nn.Module] = []
    for child in backbone.children():
        found += list(child) if isinstance(child, nn.ModuleList) else _blocks(child)
    return found


def is_slice(tensor: Tensor) -> bool:
    """Whether a tensor is known to all processes of which each holds a slice."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """Return this process's slice, sharing its memory; a tensor that is not sharded is returned as it is."""
    if not is_slice(tensor):
        return tensor
    found: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return found


def first_element(tensor: Tensor) -> int:
    """Return the place of this process's first element in the whole tensor."""
    if not is_slice(tensor):
        return 0
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    rows = -(-len(tensor) // mesh.size())
    before: int = min(mesh.get_local_rank() * rows, len(tensor))
    return before * math.prod(tensor.shape[1:])


def whole(piece: Tensor, like: Tensor) -> Tensor:
    """Return the tensor whose slices the processes hold as `like`'s are: in process 0's memory, elsewhere nothing of it.

    All processes must call it. A `like` that is not sharded returns the tensor as it is.
    """
    if not is_slice(like):
        return piece
    from torch.distributed.tensor import DTensor

    spread: Any = like
    gathered = DTensor.from_local(
        piece, spread.device_mesh, spread.placements, run_check=False, shape=like.shape, stride=like.stride()
    ).full_tensor()
    return gathered.cpu() if rank_and_world()[0] == 0 else piece.new_empty(0)


def slice_of(full: Tensor, like: Tensor) -> Tensor:
    """Return this process's slice of a whole tensor, in memory of its own; all of it for a `like` that is not sharded."""
    if not is_slice(like):
        return full
    mesh: Any = like.device_mesh  # type: ignore[attr-defined]
    pieces, at = full.chunk(mesh.size()), mesh.get_local_rank()
    return pieces[at].clone() if at < len(pieces) else full.new_empty(0, *full.shape[1:])


def rest(module: nn.Module) -> None:
    """Give back the whole weights that a forward pass without a backward pass leaves in memory."""
    for part in module.modules():
        if (reshard := getattr(part, "reshard", None)) is not None:
            reshard()


def make_whole(module: nn.Module, *, frozen: bool) -> None:
    """Put whole weights into process 0's module, ready to be saved and no longer to be trained; `frozen` ones too or not.

    All processes must call it; weights that are one stay one.
    """
    rest(module)
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, param in part._parameters.items():
            if param is None or not is_slice(param) or not (frozen or param.requires_grad):
                continue
            if id(param) not in made:
                made[id(param)] = nn.Parameter(whole(local(param), param), requires_grad=False)
            part._parameters[name] = made[id(param)]
