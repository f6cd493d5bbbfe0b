"""Linear layers with weights packed once for the processor, instead of at every call.

PyTorch hands a bfloat16 product on CPU to oneDNN, which first rewrites the weights into the order its kernels read.
Here the rewritten weights are kept beside the model's own; the products are the same ones. What that gains with few rows
and with many: `benchmarks/processor_costs.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PackedLinears"]

Forward = Callable[[Tensor], Tensor]
_SHARE = 4  # packed weights may take up to 1/4 of the memory that is free when they are made


class PackedLinears:
    """Packs the plain bfloat16 linear layers of a model on CPU and lends them their packed weights for a while.

    Weights that were changed in place are packed anew; so are all after `forget`. Where there is nothing to gain (another
    device or type, a PyTorch without these operators, too little memory) nothing happens.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [m for m in model.modules() if type(m) is nn.Linear and _packable(m.weight)]
        wanted = sum(layer.weight.nbytes for layer in self._layers)
        if not _available() or wanted > _free_bytes() // _SHARE:
            self._layers = []
        self._packed: dict[int, tuple[Tensor, int, Forward]] = {}  # by place of the layer: weight, its version, product

    def forget(self) -> None:
        """Drop what is packed: the weights have been replaced."""
        self._packed.clear()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the layers' forward use packed weights inside this context."""
        lent = []
        for place, layer in enumerate(self._layers):
            if "forward" not in layer.__dict__:  # another's forward is left alone
                layer.__dict__["forward"] = self._forward(place, layer)
                lent.append(layer)
        try:
            yield
        finally:
            for layer in lent:
                del layer.__dict__["forward"]

    def _forward(self, place: int, layer: nn.Linear) -> Forward:
        weight = layer.weight
        version = 0 if weight.is_inference() else weight._version
        held = self._packed.get(place)
        if held is None or held[0] is not weight or held[1] != version:
            held = self._packed[place] = (weight, version, _product(weight, layer.bias))
        return held[2]


def _product(weight: Tensor, bias: Tensor | None) -> Forward:
    """Return x ↦ x Wᵀ + b with the weights packed now."""
    operators: Any = torch.ops.mkldnn
    packed = operators._reorder_linear_weight(weight.detach(), 64)

    def forward(x: Tensor) -> Tensor:
        product: Tensor = operators._linear_pointwise(x, packed, bias, "none", [], "")
        return product

    return forward


def _packable(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16


def _available() -> bool:
    """Return whether this PyTorch has the operators, and whether they give what a linear layer gives."""
    operators: Any = torch.ops.mkldnn
    try:
        with torch.inference_mode():
            weight, x = torch.eye(32, dtype=torch.bfloat16), torch.arange(64.0, dtype=torch.bfloat16).view(2, 32)
            product: Tensor = operators._linear_pointwise(
                x, operators._reorder_linear_weight(weight, 2), None, "none", [], ""
            )
            return torch.equal(product, x)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def _free_bytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not told on this system
        return 4 << 30
