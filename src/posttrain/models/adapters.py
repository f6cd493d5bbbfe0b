"""Adapters that PEFT knows, and what all adapters share: folders, the base they belong to, merging.

What is saved is an ordinary PEFT folder, but for bottleneck adapters, which PEFT lacks (`bottleneck.py`).

LoRA (Hu et al. 2021, arXiv:2106.09685, eq. 3): h = W₀x + (α/r)·B·A·x, with B = 0 at first: training begins at the base.
rsLoRA (Kalajdzievski 2023, arXiv:2312.03732): α/√r instead of α/r.
DoRA (Liu et al. 2024, arXiv:2402.09353): W = m · (W₀ + (α/r)·B·A) / ‖W₀ + (α/r)·B·A‖, norm and m by output; m is trained too
and ‖W₀‖ at first. QLoRA (Dettmers et al. 2023, arXiv:2305.14314): LoRA on a base whose weights are kept in 4 bits.
IA³ (Liu et al. 2022, arXiv:2205.05638): keys, values and the feed-forward's inner activations times a vector, 1 at first.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ..core.errors import ModelError, PosttrainError
from ..core.files import disk_errors, read_json, write_json
from . import bottleneck
from .quiet import quiet
from .rounding import round_into

__all__ = [
    "Kind",
    "Variant",
    "add_ia3",
    "add_lora",
    "attach",
    "base_of",
    "is_adapter",
    "merge",
    "merged_state",
    "save_adapter",
    "unmerged",
]

Kind = Literal["full", "lora", "rslora", "dora", "qlora", "ia3", "prefix", "prompt", "bottleneck"]
Variant = Literal["lora", "rslora", "dora"]
HEADS = ("score", "classifier")  # of classification models


def add_lora(
    model: Any,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Literal["all-linear"] | Sequence[str] = "all-linear",
    variant: Variant = "lora",
    seed: int,
    task: str = "CAUSAL_LM",
) -> Any:
    """Return the model wrapped in a `PeftModel` with fresh adapters; only they require gradients.

    With a classification `task` (SEQ_CLS, TOKEN_CLS) the model's head is trained and saved as a whole too.

    `targets`: every linear layer but the output head, or names of modules (`["q_proj", "v_proj"]`). The adapters take the
    model's own type: the optimiser keeps float32 masters. Raises `ModelError` when a target names
    no module, or one that cannot take it.
    """
    from peft import LoraConfig, get_peft_model

    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ModelError(f"LoRA needs rank >= 1, alpha > 0 and 0 <= dropout < 1, not {rank}, {alpha} and {dropout}")
    if targets != "all-linear":
        present = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "weight")}
        for target in targets:
            if target.rpartition(".")[2] not in present:
                raise ModelError(f"LoRA target '{target}' names no module of {type(model).__name__}: {_listed(model)}")
        _check_tables(model, targets)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets if targets == "all-linear" else list(targets),
        use_rslora=variant == "rslora",
        use_dora=variant == "dora",
        task_type=task,
        exclude_modules=None if task == "CAUSAL_LM" else list(HEADS),
        modules_to_save=None if task == "CAUSAL_LM" else [name for name in HEADS if hasattr(model, name)],
    )
    try:
        with torch.random.fork_rng(), quiet():
            torch.manual_seed(seed)
            return get_peft_model(model, config, autocast_adapter_dtype=False)
    except (
        ValueError,
        NotImplementedError,
        TypeError,
    ) as error:  # a norm, or a kind of layer that the variant does not know
        raise ModelError(f"PEFT cannot put {variant} on {targets}: {str(error).splitlines()[0]}") from None


def _check_tables(model: Any, targets: Sequence[str]) -> None:
    """Refuse embedding and head as targets where both are one matrix: a change of one would be merged into both."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or embedding.weight is not head.weight:
        return
    for name, module in model.named_modules():
        named = any(name == target or name.endswith("." + target) for target in targets)
        if named and (module is embedding or module is head):
            raise ModelError(f"LoRA target '{name}': this model's embedding and output head are one matrix; leave both out")


def add_ia3(model: Any, *, seed: int) -> Any:
    """Return the model wrapped in a `PeftModel` with fresh IA³ vectors on keys, values and the feed-forward layer.

    Which layers these are, PEFT knows by architecture; raises `ModelError` for one it does not.
    """
    from peft import IA3Config, get_peft_model

    try:
        with torch.random.fork_rng(), quiet():
            torch.manual_seed(seed)
            return get_peft_model(model, IA3Config(task_type="CAUSAL_LM"), autocast_adapter_dtype=False)
    except ValueError:
        raise ModelError(
            f"PEFT does not know which layers of {type(model).__name__} IA3 belongs to; use adapter=lora instead"
        ) from None


def attach(model: Any, path: Path) -> Any:
    """Return the model with the adapter of a folder; trainable, so that training can go on.

    Of a PEFT folder it is wrapped in a `PeftModel`; a bottleneck adapter is put into the model itself.
    """
    from peft import PeftConfig, PeftModel

    if bottleneck.is_folder(path):
        return bottleneck.attach(model, path)
    try:
        with torch.random.fork_rng(), quiet():  # PEFT draws fresh weights before it reads the saved ones
            virtual = PeftConfig.from_pretrained(str(path)).is_prompt_learning  # PEFT loads those for inference only
            wrapped = PeftModel.from_pretrained(model, str(path), is_trainable=not virtual, autocast_adapter_dtype=False)
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise ModelError(f"{path}: this adapter does not fit its base model ({str(error).splitlines()[0]})") from None
    if virtual:
        wrapped.active_peft_config.inference_mode = False
        wrapped.prompt_encoder.requires_grad_(True)
    return wrapped


def unmerged(model: Any) -> str | None:
    """Return the kind of an adapter that cannot be added into the model's weights, if it has one: prefix, bottleneck, …"""
    if bottleneck.inside(model):
        return "bottleneck"
    for config in (getattr(model, "peft_config", None) or {}).values():
        if config.is_prompt_learning:
            kind = str(getattr(config.peft_type, "value", config.peft_type))
            return {"PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt"}.get(kind, kind)
    return None


def merge(model: Any) -> Any:
    """Return the base model with the adapter added into its weights (LoRA: W = W₀ + (α/r)·B·A). The wrapper is used up.

    Into weights of bfloat16 it is added in float32 and rounded so that small changes arrive (`rounding`). Raises
    `ModelError` for an adapter that is no change of weights.
    """
    if kind := unmerged(model):
        raise ModelError(f"a {kind} adapter is no change of the base's weights, so it cannot be merged into them")
    narrow = {id(p) for p in model.parameters() if p.dtype is torch.bfloat16}
    if not narrow or not all(p.is_floating_point() for p in model.parameters()):  # whole numbers: 4 bits a weight
        return model.merge_and_unload()
    merged = model.float().merge_and_unload()
    for parameter in merged.parameters():
        if id(parameter) in narrow:
            weight = torch.empty_like(parameter, dtype=torch.bfloat16)
            round_into(weight, parameter)
            parameter.data = weight
    return merged


def merged_state(model: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the base model and the weights that `merge` would give it; the model goes on as it is.

    One layer at a time is copied and merged, so that no second model is held. Raises `ModelError` for an adapter that is no
    change of weights, or whose base is kept in 4 bits. A model without an adapter is its own base.
    """
    if kind := unmerged(model):
        raise ModelError(f"a {kind} adapter is no change of the base's weights, so it cannot be merged into them")
    if not hasattr(model, "peft_config"):
        return model, model.state_dict()
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    state: dict[str, torch.Tensor] = base.state_dict()
    for name, layer in list(base.named_modules()):
        if not isinstance(layer, BaseTunerLayer):
            continue
        before = {key: value.dtype for key, value in layer.get_base_layer().state_dict().items()}
        if not all(kind.is_floating_point for kind in before.values()):
            raise ModelError("an adapter cannot be merged into a base whose weights are kept in 4 bits")
        merged = copy.deepcopy(layer).float()
        merged.merge()
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        for key, value in merged.get_base_layer().state_dict().items():
            weight = torch.empty_like(value, dtype=before[key])
            round_into(weight, value)
            state[f"{name}.{key}"] = weight
    return base, state


def save_adapter(model: Any, path: Path, base_ref: str) -> None:
    """Save a model's adapter; `base_ref` (alias, folder, hub id) is written into both its JSON files."""
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if bottleneck.inside(model):
            bottleneck.save(model, path, base_ref)
        else:
            for config in model.peft_config.values():
                config.base_model_name_or_path = base_ref
            # Embeddings are no targets; left to itself PEFT would ask the hub whether the vocabulary has grown.
            model.save_pretrained(str(path), save_embedding_layers=False)
    notes = read_json(path / "posttrain.json") if (path / "posttrain.json").is_file() else {}
    write_json(path / "posttrain.json", {**notes, "base": base_ref})


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter: PEFT's or a bottleneck."""
    return (Path(path) / "adapter_config.json").is_file() or bottleneck.is_folder(Path(path))


def base_of(path: Path) -> str:
    """Return the reference of the model an adapter belongs to; a relative folder is looked for from here and beside it."""
    notes = path / "posttrain.json"
    base = read_json(notes).get("base") if notes.is_file() else None
    config = bottleneck.CONFIG if bottleneck.is_folder(path) else "adapter_config.json"
    base = base or read_json(path / config).get("base_model_name_or_path")
    if not base:
        raise PosttrainError(f'{path}: the adapter does not name its base model; put {{"base": …}} into posttrain.json')
    beside = path / base
    return str(beside) if not Path(base).is_dir() and beside.is_dir() else str(base)


def _listed(model: Any) -> str:
    linear = (torch.nn.Linear,)
    names = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, linear)})
    return "choose from " + ", ".join(names or ["all-linear"])
