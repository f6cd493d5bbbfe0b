"""A smaller model of the same architecture and tokenizer, cut out of a teacher: fewer layers, fewer channels and units.

Layers are picked evenly, first and last among them (Sanh et al. 2019, 1910.01108, take one of two). Of everything else the
members that matter most stay, by what they are on text that the teacher writes (Muralidharan et al. 2024, 2407.14679):

    channel i of the residual stream x    Σ_norms E (g_i x̂_i)²,  x̂ = x / rms(x),  g the norm's gain
    feed-forward unit, group of heads     Σ E h² · ‖w‖² over its outputs h with outgoing weights w

(the second as in Sun et al. 2023, 2306.11695). Query heads stay with the keys and values that they share.

Two things follow from what is gone, and are put right in the gains. RMSNorm divides by the size of the D channels K kept
alone: gains are multiplied by c. And predictions are surer than they may be: the last gain is multiplied by α (temperature
scaling, Guo et al. 2017, 1706.04599),

    c² = Σ_{i ∈ K} E x̂_i² / D        α = argmin KL(p ‖ softmax(α z)),  p the teacher's distribution, z the logits

Principal directions of the stream would keep more of it than its channels do, but a head that is tied to the embedding
cannot follow a change of basis: the last gain stands between them.

Shapes: N tokens, V vocabulary, C members of a kind.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError, ModelError, did_you_mean
from .calibration import NORMS, Statistics, measure

__all__ = ["SIZES", "StudentShape", "layers_kept", "nearest_scale", "shape_named", "shrink"]

_FAMILIES = ("llama", "mistral")  # RMSNorm with a plain gain, no scaling of embedding, residual or logits
_OUTER = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
_READERS = {
    "self_attn.q_proj": "q", "self_attn.k_proj": "kv", "self_attn.v_proj": "kv", "mlp.gate_proj": "ff", "mlp.up_proj": "ff",
}  # fmt: skip
_WRITERS = {"self_attn.o_proj": "q", "mlp.down_proj": "ff"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentShape:
    """Layers, width, query heads and feed-forward units of a student; None: as many as the teacher has."""

    version: ClassVar[str] = "1"  # raised when the same shape would be given other weights

    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    ff: int | None = None


# Of SmolLM2-135M, whose embedding alone has 28 million parameters: below 30 million a student has to be narrower too.
SIZES = {
    "10m": StudentShape(layers=6, hidden=168, heads=3, ff=448),
    "30m": StudentShape(layers=7, hidden=384, heads=6, ff=1024),
    "60m": StudentShape(layers=9),
}


def shape_named(size: str) -> StudentShape:
    """Return one of the sizes, which are meant for SmolLM2-135M; raises `ConfigError` with the nearest name."""
    if size not in SIZES:
        raise ConfigError(f"unknown size '{size}' of a student{did_you_mean(size, SIZES)}")
    return SIZES[size]


def layers_kept(of: int, count: int) -> list[int]:
    """Return `count` of `of` layers, evenly spaced, the first and the last among them (of one: the first)."""
    return [round(i * (of - 1) / max(count - 1, 1)) for i in range(count)]


@torch.no_grad()
def shrink(model: Any, shape: StudentShape, *, seed: int) -> tuple[Any, dict[str, Any]]:
    """Return the student, in float32, and facts: its shape, the layers kept, α, the tokens written.

    In the shape of its teacher it is the teacher itself, weight for weight. Raises `ModelError` for an architecture that is
    no plain Llama, and `ConfigError` for a shape that the teacher cannot give.
    """
    _check_family(model)
    whole, shape = _shape_of(model.config), _fitted(model.config, shape)
    kept = layers_kept(int(whole.layers or 0), int(shape.layers or 0))
    seen = None if shape == whole else measure(model, kept, seed=seed)
    student = _empty(model, shape, kept)
    weights = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
    student.load_state_dict(weights if seen is None else _cut(weights, seen, kept, shape, model.config))
    sure = 1.0 if seen is None else nearest_scale(*_logits(model, student, seen.texts_BT))
    student.model.norm.weight.mul_(sure)
    return student.eval(), {
        "shape": asdict(shape),
        "layers_kept": kept,
        "logit_scale": round(sure, 4),
        "parameters": sum(p.numel() for p in student.parameters()),
        "tokens_written": 0 if seen is None else seen.texts_BT.numel(),
    }


def nearest_scale(teacher_NV: Tensor, student_NV: Tensor, *, least: float = 0.05) -> float:
    """Return the α in [least, 1] with the smallest KL(softmax(teacher) ‖ softmax(α student)), summed over tokens.

    It is convex in α, with derivative Σ_v (softmax(α z)_v − p_v) z_v, whose root is found by bisection.
    """
    wanted = float((teacher_NV.softmax(-1) * student_NV).sum())
    low, high = least, 1.0
    for _ in range(16):
        middle = (low + high) / 2
        above = float(((middle * student_NV).softmax(-1) * student_NV).sum()) > wanted
        low, high = (low, middle) if above else (middle, high)
    return 1.0 if high == 1.0 else low


def _logits(model: Any, student: Any, texts_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return what teacher and student say of the first few texts, `[N, V]` each."""
    some_BT = texts_BT[:4, :64]
    teacher_NV, student_NV = (
        net(input_ids=some_BT, use_cache=False).logits.float().flatten(0, 1) for net in (model, student)
    )
    return teacher_NV, student_NV


def _cut(
    weights: dict[str, Tensor], seen: Statistics, kept: Sequence[int], shape: StudentShape, config: Any
) -> dict[str, Tensor]:
    """Return the student's weights: of the layers kept, the rows and columns of what matters most."""
    names = {name: f"model.{name}.weight" for name in seen.squares if name.endswith((*NORMS, "norm"))}
    worth_C = torch.stack([seen.squares[name] * weights[weight].square() for name, weight in names.items()]).sum(0)
    stream = _best(worth_C, shape.hidden)

    def gain(name: str) -> Tensor:
        return weights[names[name]][stream] * seen.squares[name][stream].mean().sqrt()

    embedding, last, head = _OUTER
    found = {embedding: weights[embedding][:, stream], last: gain("norm"), head: weights[head][:, stream]}
    if shape.hidden == config.hidden_size:
        found[last] = weights[last]
    for new, old in enumerate(kept):
        own = {name: weights[f"model.layers.{old}.{name}.weight"] for name in (*_READERS, *_WRITERS, *NORMS)}
        inner = _channels({name: own[name] for name in _WRITERS}, seen, old, shape, config)
        layer = {name: own[name][inner[kind]][:, stream] for name, kind in _READERS.items()}
        layer |= {name: own[name][stream][:, inner[kind]] for name, kind in _WRITERS.items()}
        for norm in NORMS:
            layer[norm] = own[norm] if shape.hidden == config.hidden_size else gain(f"layers.{old}.{norm}")
        found |= {f"model.layers.{new}.{name}.weight": weight for name, weight in layer.items()}
    return found


def _channels(writers: dict[str, Tensor], seen: Statistics, old: int, shape: StudentShape, config: Any) -> dict[str, Tensor]:
    """Return which query channels, key and value channels and feed-forward units of a layer stay, in their own order."""
    worth = {name: seen.squares[f"layers.{old}.{name}"] * weight.square().sum(0) for name, weight in writers.items()}
    size, queries = _head_size(config), _queries(config)
    of_groups_C = worth["self_attn.o_proj"].view(config.num_key_value_heads, -1).sum(1)
    groups = _best(of_groups_C, int(shape.heads or 0) // queries)
    units = _best(worth["mlp.down_proj"], shape.ff)
    return {"q": _spread(groups, queries * size), "kv": _spread(groups, size), "ff": units}


def _best(worth_C: Tensor, count: int | None) -> Tensor:
    """Return the indices of the largest values, in their own order."""
    return worth_C.topk(count or 0).indices.sort().values


def _spread(blocks: Tensor, size: int) -> Tensor:
    """Return the indices of all members of these blocks."""
    return (blocks[:, None] * size + torch.arange(size, device=blocks.device)).flatten()


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _queries(config: Any) -> int:
    """Return how many query heads share their keys and values."""
    return int(config.num_attention_heads // config.num_key_value_heads)


def _shape_of(config: Any) -> StudentShape:
    return StudentShape(
        layers=config.num_hidden_layers, hidden=config.hidden_size, heads=config.num_attention_heads,
        ff=config.intermediate_size,
    )  # fmt: skip


def _fitted(config: Any, shape: StudentShape) -> StudentShape:
    """Return the shape with the teacher's sizes where none is given; raises `ConfigError` for one that does not fit."""
    whole = asdict(_shape_of(config))
    found = {name: most if getattr(shape, name) is None else getattr(shape, name) for name, most in whole.items()}
    for name, most in whole.items():
        if not 1 <= found[name] <= most:
            raise ConfigError(f"a student with {name} = {found[name]}: this teacher has {most}, choose from 1 to {most}")
    queries = _queries(config)
    if found["heads"] % queries:
        raise ConfigError(
            f"a student with heads = {found['heads']}: {queries} query heads of this teacher share their keys and values, "
            f"so choose a multiple of {queries}"
        )
    if found["hidden"] % found["heads"]:
        raise ConfigError(
            f"a student with hidden = {found['hidden']} and heads = {found['heads']}: its configuration wants the first to "
            "be a multiple of the second"
        )
    return StudentShape(**found)


def _check_family(model: Any) -> None:
    config = model.config
    if config.model_type not in _FAMILIES:
        raise ModelError(
            f"{type(model).__name__} has the architecture {config.model_type}; students are made of "
            f"{' and '.join(_FAMILIES)} only: train a smaller model of that family with distill instead"
        )
    odd = [name for name in model.state_dict() if name.endswith("bias")]
    if odd:
        raise ModelError(f"{type(model).__name__} has biases ('{odd[0]}'), which no student can be made with")


def _empty(model: Any, shape: StudentShape, kept: Sequence[int]) -> Any:
    """Return a model of the teacher's class and the student's sizes, with the teacher's settings of generation."""
    config = copy.deepcopy(model.config)
    config.num_key_value_heads = int(shape.heads or 0) // _queries(config)
    config.head_dim = _head_size(config)
    config.num_hidden_layers, config.hidden_size = shape.layers, shape.hidden
    config.num_attention_heads, config.intermediate_size = shape.heads, shape.ff
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[old] for old in kept]
    with torch.random.fork_rng(devices=[]):
        student = type(model)(config).float()
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.to(model.device)
