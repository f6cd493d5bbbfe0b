"""Bottleneck adapters (Houlsby et al. 2019, arXiv:1902.00751, section 2.1): small layers inside a frozen decoder.

After the attention and after the feed-forward sublayer of every block, before its residual is added:

    adapter(h) = h + W_up f(W_down h + b_down) + b_up        h: D, W_down: M × D, W_up: D × M

with f the GELU. W_up and b_up are 0 at first, so training begins at the base itself. The paper draws near-identity weights
instead and also trains the layer norms; here the base stays untouched. 2 · layers · (2 D M + D + M) weights are trained.

The layers hang in the model itself, as `….mlp.bottleneck`, called by a forward hook: whatever runs the model runs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ModelError
from ..core.files import read_json, write_json

__all__ = ["CONFIG", "Bottleneck", "add", "attach", "inside", "is_folder", "save", "width_of"]

CONFIG, WEIGHTS = "bottleneck_config.json", "bottleneck.safetensors"
_ATTENTION, _FEED_FORWARD = ("self_attn", "attn", "attention"), ("mlp", "feed_forward", "block_sparse_moe")
_NAME = "bottleneck"


class Bottleneck(nn.Module):
    """h + W_up f(W_down h + b_down) + b_up; the weights have the type of what they are put behind."""

    def __init__(self, size: int, width: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.down = nn.Linear(size, width, dtype=dtype, device=device)
        self.up = nn.Linear(width, size, dtype=dtype, device=device)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h_BTD: Tensor) -> Tensor:
        """Return the adapted output of a sublayer."""
        change_BTD: Tensor = self.up(nn.functional.gelu(self.down(h_BTD)))
        return h_BTD + change_BTD


def add(model: Any, *, width: int, seed: int) -> Any:
    """Put fresh bottlenecks into the model, freeze the rest, and return the same model.

    Raises `ModelError` when its blocks have no attention and feed-forward sublayers under the usual names.
    """
    if width < 1:
        raise ModelError(f"a bottleneck needs a width of at least 1, not {width}")
    places = _sublayers(model)
    model.requires_grad_(False)
    reference = model.get_input_embeddings().weight
    kind = reference.dtype if reference.is_floating_point() else torch.float32
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for place in places:
            device = next(place.parameters()).device
            place.add_module(_NAME, Bottleneck(model.config.get_text_config().hidden_size, width, dtype=kind, device=device))
            place.register_forward_hook(_adapt)
    return model


def _adapt(sublayer: nn.Module, _inputs: Any, output: Any) -> Any:
    """Change a sublayer's output; attention returns its output with its weights, a mixture with its router's scores."""
    adapter = sublayer.get_submodule(_NAME)
    if isinstance(output, tuple):
        return (adapter(output[0]), *output[1:])
    return adapter(output)


def inside(model: Any) -> bool:
    """Whether the model has bottlenecks."""
    return any(isinstance(module, Bottleneck) for module in model.modules())


def width_of(model: Any) -> int:
    """Return the width of the bottlenecks inside a model."""
    return next(int(module.down.out_features) for module in model.modules() if isinstance(module, Bottleneck))


def save(model: Any, path: Path, base_ref: str) -> None:
    """Write the bottlenecks' weights and the JSON file that names their base into an existing folder."""
    from safetensors.torch import save_file

    tensors = {name: t.detach().contiguous().cpu() for name, t in model.state_dict().items() if f".{_NAME}." in name}
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    facts = {"adapter": _NAME, "version": 1, "width": width_of(model), "activation": "gelu"}
    facts["base_model_name_or_path"] = base_ref
    write_json(path / CONFIG, facts)


def is_folder(path: Path) -> bool:
    """Whether a folder holds a bottleneck adapter."""
    return (path / CONFIG).is_file()


def attach(model: Any, path: Path) -> Any:
    """Put the bottlenecks of a folder into the model; they alone are trainable. Raises `ModelError` if they do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    facts = read_json(path / CONFIG)
    if facts.get("version") != 1 or facts.get("activation") != "gelu" or not isinstance(facts.get("width"), int):
        raise ModelError(f"{path / CONFIG}: not a bottleneck adapter that this version knows")
    try:
        saved = load_file(path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path / WEIGHTS}: cannot be read ({str(error).splitlines()[0]})") from None
    own = {name: t for name, t in add(model, width=facts["width"], seed=0).state_dict().items() if f".{_NAME}." in name}
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in saved.items()}:
        raise ModelError(f"{path}: this adapter does not fit its base model ({len(saved)} tensors for {len(own)} places)")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
    return model


def _sublayers(model: Any) -> list[nn.Module]:
    """Return attention and feed-forward sublayer of every block, in order."""
    blocks = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if not isinstance(module, nn.ModuleList) or len(module) != blocks:
            continue
        found = [_named(block, names) for block in module for names in (_ATTENTION, _FEED_FORWARD)]
        if all(found):
            return [place for place in found if place is not None]
    raise ModelError(
        f"{type(model).__name__}: bottleneck adapters find no attention ({', '.join(_ATTENTION)}) and feed-forward "
        f"({', '.join(_FEED_FORWARD)}) sublayer in each of its {blocks} blocks; use adapter=lora instead"
    )


def _named(block: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((part for name, part in block.named_children() if name in names), None)
