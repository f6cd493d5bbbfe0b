"""The model's forward passes over slots: fill (no logits), extend (logits of given tokens), decode (one token each)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ModelError
from ...models.virtual import virtual_states, virtual_tokens
from .attention import SlotCache
from .packing import PackedLinears
from .runs import Run
from .step import IMPLEMENTATION, Step, running

__all__ = ["Runner"]

_SUPPORTED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


class Runner:
    """Runs a transformers decoder on a `SlotCache`, leaving the model as it found it (mode, attention implementation).

    Positions in arguments count tokens; with prefix or prompt tuning the adapter's own, `front` of them, come before.
    """

    def __init__(self, model: Any) -> None:
        self.adapted = model
        self.front = virtual_tokens(model)
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT keeps its adapters inside
        self.config = self.model.config.get_text_config(decoder=True)
        self._refuse_unknown_architectures()
        self.decoder: Callable[..., Any] = self.model.get_decoder()
        configs = [m.config for m in self.model.modules() if hasattr(getattr(m, "config", None), "_attn_implementation")]
        self._configs = list({id(c): c for c in configs}.values())
        first = next(self.model.parameters())
        self.device, self.dtype = first.device, first.dtype
        self.cache = SlotCache(self.front)
        self.packed = PackedLinears(self.model)
        self._verified = False
        self._begun = not self.front

    @property
    def context(self) -> int | None:
        """Tokens the model was made for, if its configuration says; virtual ones are taken off."""
        for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
            value = getattr(self.config, name, None)
            if isinstance(value, int):
                return value - self.front
        return None

    def forget(self) -> None:
        """Drop all that was computed from the weights: packed layers, the virtual tokens' keys and values."""
        self.packed.forget()
        self._begun = not self.front

    def _refuse_unknown_architectures(self) -> None:
        name = type(self.model).__name__
        kinds: set[str] = set(getattr(self.config, "layer_types", None) or [])
        strange = sorted(kinds - _SUPPORTED_LAYERS)
        if getattr(self.config, "num_kv_shared_layers", 0):
            strange.append("keys and values shared between layers")
        if self.config.is_encoder_decoder:
            strange.append("an encoder")
        if not getattr(self.model, "_supports_attention_backend", False):
            strange.append("attention outside transformers' attention interface")
        if strange:
            raise ModelError(
                f"{name} has {', '.join(strange)}, which the local engine cannot run: it runs decoders with full, "
                "sliding or chunked attention in all layers; serve this model with an OpenAI-compatible server instead"
            )

    @contextmanager
    def _inferring(self, implementation: str | None = IMPLEMENTATION) -> Iterator[None]:
        training = [m for m in self.model.modules() if m.training] if self.model.training else []
        before = [(c, c._attn_implementation) for c in self._configs]
        try:
            for module in training:
                module.training = False
            for config in self._configs:
                config._attn_implementation = implementation or config._attn_implementation
            with torch.inference_mode():
                yield
        finally:
            for config, implementation in before:
                config._attn_implementation = implementation
            for module in training:
                module.training = True

    def _forward(self, step: Step, ids: Tensor, *, logits: bool) -> Tensor | None:
        if not self._begun:
            with self._inferring(implementation=None):
                self.cache.begin_with(virtual_states(self.adapted))
            self._begun = True
        with self._inferring(), self.packed.lent(), running(step):
            call = self.model if logits else self.decoder
            out = call(input_ids=ids, position_ids=step.positions, past_key_values=self.cache, use_cache=True)
            return out.logits if logits else None

    def _packed(self, slots: Sequence[int], starts: Sequence[int], new: Sequence[Sequence[int]]) -> tuple[Step, Tensor]:
        starts = [self.front + start for start in starts]
        positions = [start + t for start, ids in zip(starts, new, strict=True) for t in range(len(ids))]
        step = Step(
            slots=slots,
            starts=starts,
            lengths=[len(ids) for ids in new],
            positions=torch.tensor([positions], device=self.device),
        )
        return step, torch.tensor([[token for ids in new for token in ids]], device=self.device)

    def fill(self, slots: Sequence[int], starts: Sequence[int], new: Sequence[Sequence[int]]) -> None:
        """Compute keys and values of `new[i]` in slot `slots[i]` after the `starts[i]` positions that are there."""
        step, ids_1T = self._packed(slots, starts, new)
        self._forward(step, ids_1T, logits=False)

    def extend(self, slots: Sequence[int], starts: Sequence[int], new: Sequence[Sequence[int]]) -> Tensor:
        """Like `fill`, and return the logits after each of the new tokens, [T, V], in order."""
        step, ids_1T = self._packed(slots, starts, new)
        logits = self._forward(step, ids_1T, logits=True)
        assert logits is not None
        return logits[0]

    def decode(self, low: int, tokens: Sequence[int], positions: Sequence[int], runs: Sequence[Run]) -> Tensor:
        """Feed one token to each of the slots low, low + 1, …; return logits [R, V]. `runs` count from `low`."""
        slots = range(low, low + len(tokens))
        if self.front:  # the same in all slots, so all rows of a run share it
            positions = [self.front + position for position in positions]
            runs = [Run(run.low, run.high, self.front + run.shared, self.front + run.reach) for run in runs]
        step = Step(
            slots=slots,
            starts=positions,
            lengths=[1] * len(tokens),
            positions=torch.tensor(positions, device=self.device)[:, None],
            decode=True,
            runs=runs,
        )
        step.reach = min(max(run.reach for run in runs), self.front + self.cache.capacity)
        logits = self._forward(step, torch.tensor(tokens, device=self.device)[:, None], logits=True)
        assert logits is not None
        return logits[:, -1]

    def verify(self) -> None:
        """Run a few tokens through the slots and through the plain model; raise ModelError if they disagree.

        An architecture that by-passes the cache or attention interface would otherwise give wrong text, silently.
        """
        if self._verified:
            return
        self.cache.reserve(2, 16)
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        ids = [(7 * t + 3) % min(vocabulary, 1000) for t in range(6)]
        with self._inferring(implementation=None):
            whole = self.adapted if self.front else self.model
            plain = whole(input_ids=torch.tensor([ids], device=self.device), use_cache=False).logits[0].float()
        self.fill([1], [0], [ids[:3]])
        self.fill([1], [3], [ids[3:5]])
        slots = self.decode(1, [ids[5]], [5], [Run(0, 1, 0, 6)])[0].float()
        exact = next(self.model.parameters()).dtype == torch.float32
        spread = (plain[-1].max() - plain[-1].min()).item()
        error = (slots - plain[-1]).abs().max().item()
        if not error <= (1e-3 if exact else 0.1) * max(spread, 1e-3):
            raise ModelError(
                f"{type(self.model).__name__} gives other logits through the local engine's cache than on its own "
                f"(difference {error:.3g} of a range of {spread:.3g}); serve this architecture remotely"
            )
        self._verified = True
