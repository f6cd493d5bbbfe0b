"""What a run will need, told before its first step: memory by part, time, and what to lower when it does not fit.

Fixed parts are counted. Activations are measured on two short sequences of the model itself, whose saved tensors are
a·n + b·n² bytes for n tokens (the square is attention's), and taken to a full micro-batch; time is the forward pass of
the longer one, taken to the operations of the whole run. Both are bounds rather than means: long rows may not occur
together, and larger products run faster.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.types import ModelShape
from ..losses.logprobs import CACHE, CHUNK, KEPT
from ..models.forward import Forward, causal_model
from ..stats.flops import forward_flops

__all__ = ["Estimate", "Sizes", "advice", "estimate", "free_memory", "measure", "words"]

SHORT, LONG = 32, 256  # tokens of the two sequences that are measured
_OVERHEAD = 0.25  # of a process on a processor: the libraries' workspace, and freed memory that it keeps in pieces
_DENSE = 1024  # tokens that one attention matrix covers at most where it is kept (models.sharing.LONG is its square)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What memory depends on. `linear` and `quadratic` are the activations' a and b, in bytes."""

    weights: int  # bytes of all weights in memory
    trained: int  # weights that are trained
    width: int  # bytes of one weight
    layers: int
    hidden: int
    vocabulary: int
    linear: float
    quadratic: float
    tokens: int  # of the largest micro-batch
    recomputed: bool = False  # activation checkpointing
    eight_bit: bool = False
    cpu: bool = False  # there the wide copies of logits are made for as many rows as the cache holds
    full: bool = True  # all weights are trained, not an adapter
    shards: int = 1  # processes that each hold a slice of weights, masters, gradients and Adam's moments
    held: int = 0  # bytes of weights that are only read (a reference model's)
    lanes: int = 1  # micro-batches at a time
    beside: Sizes | None = None  # a value model that is trained along, on the same tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes by part; `seconds` for all `steps`; `free` bytes before the optimiser exists (None: the system does not say)."""

    weights: int
    masters: int
    gradients: int
    adam: int
    activations: int
    logits: int
    gathered: int = 0  # whole weights and gradients of what is computed at a time, when weights are sharded
    overhead: int = 0
    seconds: float = 0.0
    steps: int = 0
    lanes: int = 1
    free: int | None = None

    @property
    def more(self) -> int:
        """What is needed beside the weights, which are in memory already."""
        kept = self.masters + self.gradients + self.adam
        return kept + self.activations + self.logits + self.gathered + self.overhead

    @property
    def total(self) -> int:
        """Everything."""
        return self.weights + self.more

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON, with the total."""
        return {**asdict(self), "total": self.total}


def estimate(sizes: Sizes) -> Estimate:
    """Return the memory of a training step, by part.

    With checkpointing a layer keeps its input, and one layer's activations exist at a time. Without, all do, and as much as
    one layer's again while its gradients are computed.
    """
    wide = sizes.width >= 4  # float32 and wider weights are their own masters
    kept = sizes.linear * sizes.tokens + sizes.quadratic * sizes.tokens * min(sizes.tokens, _DENSE)
    layer = kept / max(1, sizes.layers)
    if sizes.recomputed:
        kept = min(kept, sizes.layers * sizes.tokens * sizes.hidden * sizes.width + layer)
    logits = min(CHUNK, sizes.tokens) * sizes.vocabulary  # of one chunk, and two wide copies
    chunk = logits * sizes.width + min(8 * logits, 2 * CACHE if sizes.cpu else 8 * logits)
    tables = 2 * sizes.vocabulary * sizes.hidden * sizes.width  # embedding and head
    one = max(0, sizes.weights - tables) // max(1, sizes.layers)
    found = Estimate(
        weights=sizes.weights // sizes.shards + sizes.held,
        masters=0 if wide else 4 * sizes.trained // sizes.shards,
        gradients=sizes.lanes * max(4, sizes.width) * sizes.trained // sizes.shards,
        adam=(2 if sizes.eight_bit else 2 * max(4, sizes.width)) * sizes.trained // sizes.shards,
        gathered=2 * (min(tables, sizes.weights) + 2 * one) if sizes.shards > 1 else 0,  # with as large gradients
        activations=sizes.lanes * round(kept + layer),
        logits=sizes.lanes * (chunk + min(sizes.tokens * sizes.vocabulary * sizes.width, KEPT)),
        lanes=sizes.lanes,
    )
    if sizes.beside is not None:
        found = _together(found, estimate(_alike(sizes.beside, sizes)))
    return replace(found, overhead=round(_OVERHEAD * found.more) if sizes.cpu else 0)


def _alike(beside: Sizes, sizes: Sizes) -> Sizes:
    """Return the second model's sizes under the first one's settings; overhead is of both together."""
    shared = {name: getattr(sizes, name) for name in ("tokens", "recomputed", "eight_bit", "lanes")}
    return replace(beside, **shared, cpu=False)


def _together(one: Estimate, other: Estimate) -> Estimate:
    """Return what both need at once; the second one's head gives one number a token, whose memory is nothing."""
    parts = ("weights", "masters", "gradients", "adam", "activations")
    return replace(one, **{part: getattr(one, part) + getattr(other, part) for part in parts})


@dataclass(frozen=True, slots=True)
class _Sequence:
    ids: list[int]
    mask: list[bool]


def measure(module: Forward, shape: ModelShape, *, context: int, **rest: Any) -> tuple[Sizes, float]:
    """Return a module's sizes and its FLOPs per second, from two short forward passes; changes nothing.

    `rest` are the sizes that the run's settings decide. Call it before activation checkpointing is switched on.
    """
    parameters = list(module.parameters())
    table: Tensor = causal_model(module.model).get_input_embeddings().weight
    short, long = min(SHORT, context // 2), min(LONG, context)
    was_training = module.training
    module.eval()  # no dropout, so nothing random is drawn
    try:
        few, _ = _saved(module, short)
        many, seconds = _saved(module, long)
    finally:
        module.train(was_training)
    quadratic = max(0.0, (many / long - few / short) / (long - short))
    sizes = Sizes(
        weights=sum(p.numel() * p.element_size() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        width=table.element_size(),
        layers=shape.layers,
        hidden=table.shape[1],
        vocabulary=table.shape[0],
        cpu=table.device.type == "cpu",
        linear=many / long - quadratic * long,
        quadratic=quadratic,
        **rest,
    )
    return sizes, forward_flops(shape, start=0, tokens=long, logits=0) / max(seconds, 1e-9)


def _saved(module: Forward, tokens: int) -> tuple[int, float]:
    """Return the bytes that a forward pass keeps for its backward pass, weights apart, and how long it took."""
    known = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    found = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal found
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            found += storage.nbytes()
        return tensor.detach()  # as it is, a saved output would hold the graph that holds it, for ever

    batch = module.batch([[_Sequence([1 + i % 7 for i in range(tokens)], [i > 0 for i in range(tokens)])]])
    batch = batch.to(module.model.device)
    cuda = batch.ids_BT.device.type == "cuda"
    began = time.perf_counter()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = module.all_hidden(batch)
        if cuda:
            torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    del hidden
    return found, seconds


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be had on a device, or None where the system does not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + int(unused)
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def advice(sizes: Sizes, found: Estimate, *, longest: int, cuda: bool, world: int = 1) -> str | None:
    """Return which settings to change when the estimate is above what is free, or None when it fits.

    Each is tried by itself, largest saving first; `longest` tokens of a row are what a micro-batch cannot go below.
    """
    if found.free is None or found.more <= found.free:
        return None
    ways: dict[str, Sizes] = {}
    if sizes.tokens > longest:
        fewer = max(longest, sizes.tokens // 2)
        while fewer > longest and estimate(replace(sizes, tokens=fewer)).more > found.free:
            fewer = max(longest, fewer // 2)
        ways[f"tokens_per_microbatch={fewer}"] = replace(sizes, tokens=fewer)
    if sizes.lanes > 1:
        ways["lanes=1"] = replace(sizes, lanes=1)
    if not sizes.recomputed:
        ways["activation_checkpointing=true"] = replace(sizes, recomputed=True, lanes=1)
    if sizes.full:
        ways["adapter=lora"] = replace(sizes, trained=sizes.trained // 100)
    if cuda and not sizes.eight_bit:
        ways["optimiser=adamw8bit"] = replace(sizes, eight_bit=True)
    if sizes.shards < world:
        ways["sharding=full"] = replace(sizes, shards=world)
    needs = sorted((estimate(changed).more, name) for name, changed in ways.items())
    fitting = [f"{name} ({_gib(need)})" for need, name in needs if need <= found.free]
    if fitting:
        return f"more than is free. It should fit with {' or '.join(fitting)}"
    listed = ", ".join(f"{name} ({_gib(need)})" for need, name in needs)
    return f"more than is free, and no single setting is enough: combine {listed}, shorten the rows or take a smaller model"


def words(name: str, found: Estimate, *, asks: bool = False) -> str:
    """Return the estimate as a sentence; of a method that `asks`, the time is that of samples of full length."""
    parts = {
        "weights": found.weights, "masters": found.masters, "gradients": found.gradients, "Adam": found.adam,
        "activations": found.activations, "logits": found.logits, "gathered": found.gathered, "overhead": found.overhead,
    }  # fmt: skip
    listed = ", ".join(f"{part} {_gib(size)}" for part, size in parts.items() if size)
    free = "" if found.free is None else f"; {_gib(found.more)} beside the weights, {_gib(found.free)} free"
    time = _time(found.seconds) + (", were every sample as long as it may be and none without gradient" if asks else "")
    lanes = f" in {found.lanes} lanes" if found.lanes > 1 else ""
    return f"{name}: about {_gib(found.total)} of memory at most ({listed}){free}; {found.steps} steps{lanes}, {time}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
