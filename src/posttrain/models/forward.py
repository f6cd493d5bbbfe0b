"""The one module of a training forward: `forward(batch) -> log-probabilities of the trained tokens`.

It wraps backbone and head in one call, so that DDP and FSDP hooks run, and takes logits only where a token is trained.

Shapes: B rows, T positions (right-padded), N trained tokens of all rows laid end to end, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ModelError
from ..losses.from_logits import LogitValues, weighted_logit_sum, weighted_logit_sum_of_module
from ..losses.logprobs import Head, adjust, token_logprobs, token_logprobs_of_module, weighted_logprob_sum
from .collate import Batch, TokenSequence, collate
from .embedding import collected_embedding
from .lean import keep_less
from .virtual import virtual_tokens

__all__ = ["Batch", "Forward", "TokenSequence", "backbone_of", "causal_model", "collate", "text_config"]


def causal_model(model: Any) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def backbone_of(model: Any) -> nn.Module:
    """Return the decoder without its output head."""
    causal = causal_model(model)
    found = getattr(causal, causal.base_model_prefix, None)
    if not isinstance(found, nn.Module) or found is causal:
        raise ModelError(f"{type(causal).__name__} has no decoder apart from its output head, so it cannot be trained here")
    return found


class Forward(nn.Module):
    """Backbone, then log-probabilities of the trained tokens only.

    The head's soft-cap and scaling are read from the configuration and, once, checked against the model's own logits.
    An adapter on the head is honoured by calling the head instead of reading its weight.
    """

    lag = 1  # how far before a marked token a hidden state is read

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        causal = causal_model(model)
        self._scale, self._softcap = head_adjustments(causal.config)
        self._virtual = virtual_tokens(model) > 0
        self._sink: Callable[[Tensor], Tensor | None] | None = None
        self.packs = False
        keep_less(backbone_of(model))
        self._check_head()
        self.packs = self._packing_is_exact()

    def batch(self, groups: Sequence[Sequence[TokenSequence]]) -> Batch:
        """Lay out groups of sequences; those of a group share the computation of their common prefix where that is exact.

        `owner_N` counts sequences in the order given, group by group.
        """
        from .sharing import pack

        if self.packs:
            return pack(groups, lag=self.lag)
        return collate([sequence for group in groups for sequence in group], lag=self.lag)

    def collect_into(self, sink: Callable[[Tensor], Tensor | None]) -> None:
        """Let backward passes add the gradients of the embedding and of the head to `sink(weight)` (None: as usual).

        They are the largest weights; of the embedding only the rows of the batch's tokens have a gradient at all.
        """
        self._sink = sink

    def hidden(self, batch: Batch) -> Tensor:
        """Return the final hidden states of the positions that predict a trained token: `hidden_ND`."""
        return self.all_hidden(batch).flatten(0, 1).index_select(0, batch.where_N)

    def all_hidden(self, batch: Batch) -> Tensor:
        """Return the final hidden states of every position: `hidden_BTD`."""
        if self._sink is not None and torch.is_grad_enabled():
            with collected_embedding(causal_model(self.model).get_input_embeddings(), self._sink):
                return self._all_hidden(batch)
        return self._all_hidden(batch)

    def _all_hidden(self, batch: Batch) -> Tensor:
        backbone = backbone_of(self.model)
        if batch.layout is not None:
            from .sharing import packed_attention

            with packed_attention(text_config(causal_model(self.model).config)):
                return _last(
                    backbone(input_ids=batch.ids_BT, position_ids=batch.positions_BT, use_cache=False, layout=batch.layout)
                )
        if not self._virtual:
            return _last(backbone(input_ids=batch.ids_BT, attention_mask=batch.attention_BT, use_cache=False))
        # prompt-learning adapters prepend virtual tokens in their own forward: run it, and catch the backbone's output
        caught: list[Any] = []
        hook = backbone.register_forward_hook(lambda _module, _args, output: caught.append(output))
        try:
            attention = torch.ones_like(batch.ids_BT) if batch.attention_BT is None else batch.attention_BT
            self.model(input_ids=batch.ids_BT, attention_mask=attention, use_cache=False, logits_to_keep=1)
        finally:
            hook.remove()
        return _last(caught[-1])[:, -batch.ids_BT.shape[1] :]

    def forward(
        self, batch: Batch, weights_N: Tensor | None = None, *, of_logits: tuple[LogitValues, Tensor] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return `logps_N`; with constant `weights_N`, (Σ w · logp, logps_N without gradient), which costs less.

        With `of_logits=(values, weights_C)`: (Σ w · values, values_NC without gradient) of any function of the logits.
        """
        batch = batch.to(self.model.device)
        return self.read(self.hidden(batch), batch, weights_N, of_logits=of_logits)

    def read(
        self, hidden_ND: Tensor, batch: Batch, weights_N: Tensor | None = None, *,
        of_logits: tuple[LogitValues, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        """Return what `forward` does, from hidden states that are there already: several readings cost one backbone."""
        batch = batch.to(self.model.device)
        head, module = self.head(), causal_model(self.model).get_output_embeddings()
        if of_logits is not None:
            if head is not None:
                return weighted_logit_sum(hidden_ND, *of_logits, head)
            return weighted_logit_sum_of_module(hidden_ND, *of_logits, module, scale=self._scale, softcap=self._softcap)
        if head is None:
            logps_N = token_logprobs_of_module(hidden_ND, batch.targets_N, module, scale=self._scale, softcap=self._softcap)
            return logps_N if weights_N is None else ((weights_N.to(logps_N) * logps_N).sum(), logps_N.detach())
        if weights_N is None:
            return token_logprobs(hidden_ND, batch.targets_N, head)
        return weighted_logprob_sum(hidden_ND, batch.targets_N, weights_N, head)

    def sharpen(self, temperature: float) -> None:
        """Let log-probabilities be those of softmax(logits / temperature), from which samples are drawn.

        Raises `ModelError` for a head with a soft-cap, which comes before the temperature.
        """
        if temperature == 1:
            return
        if self._softcap is not None:
            raise ModelError(
                f"{type(causal_model(self.model)).__name__} caps its logits, so samples at temperature {temperature} cannot "
                "be trained on: sample at temperature 1"
            )
        self._scale /= temperature

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return the logits of some positions, `logits_NV`, adjusted and at least float32; ask for few at a time."""
        return adjust(causal_model(self.model).get_output_embeddings()(hidden_ND), self._scale, self._softcap)

    @property
    def vocabulary(self) -> int:
        """How many logits the head has: the tokenizer's tokens, and often some more as padding."""
        return int(causal_model(self.model).get_output_embeddings().weight.shape[0])

    def head(self) -> Head | None:
        """Return the head's weights, or None when an adapter sits on the head and the module must be called."""
        module = causal_model(self.model).get_output_embeddings()
        if type(module) is not nn.Linear:
            return None
        collected = self._sink is not None and torch.is_grad_enabled() and module.weight.requires_grad
        sink_VD = self._sink(module.weight) if self._sink is not None and collected else None
        return Head(weight_VD=module.weight, bias_V=module.bias, scale=self._scale, softcap=self._softcap, sink_VD=sink_VD)

    @torch.no_grad()
    def _check_head(self) -> None:
        causal = causal_model(self.model)
        was_training = self.model.training
        self.model.eval()
        try:
            ids = torch.arange(1, 5, device=next(causal.parameters()).device)[None]
            own = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -4:]
            batch = Batch(
                ids_BT=ids, attention_BT=None, where_N=torch.arange(3, device=ids.device), targets_N=ids[0, 1:],
                owner_N=torch.zeros(3, dtype=torch.long, device=ids.device), sequences=1, tokens=4,
            )  # fmt: skip
            ours = self(batch)
        finally:
            self.model.train(was_training)
        wide = torch.promote_types(own.dtype, torch.float32)
        theirs = own[:-1].to(wide).log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        if (ours - theirs).abs().max() > (1e-3 if own.dtype in (torch.float32, torch.float64) else 0.3):
            raise ModelError(
                f"{type(causal).__name__} does more to its logits than its configuration tells (log-probabilities from the "
                "output head differ from the model's own), so it cannot be trained here"
            )

    @torch.no_grad()
    def _packing_is_exact(self) -> bool:
        """Try the packed layout against the plain forward: recurrent models and unknown attention take the latter."""
        config = text_config(causal_model(self.model).config)
        if self._virtual or getattr(config, "attention_chunk_size", None):
            return False
        from .sharing import pack

        probe = [[_Probe(5, 4, 1), _Probe(5, 6, 2), _Probe(5, 7, 3)], [_Probe(0, 8, 4)]]
        was_training = self.model.training
        self.model.eval()
        try:
            batch = pack(probe).to(self.model.device)
            packed_ND = self.hidden(batch).float()
            plain_ND = self.hidden(collate([s for group in probe for s in group]).to(self.model.device)).float()
        except (NotImplementedError, TypeError, ValueError, RuntimeError, AttributeError, KeyError):
            return False  # the model does not take positions, the layout, or this attention function
        finally:
            self.model.train(was_training)
        # A token that sees what it must not is off by far, at every position of a later branch; in bfloat16 single
        # positions of any two correct forwards differ by as much, so there the median counts.
        error_N = ((packed_ND - plain_ND).norm(dim=-1) / plain_ND.norm(dim=-1))[batch.owner_N > 0]
        wide = next(self.model.parameters()).dtype in (torch.float32, torch.float64)
        return bool(error_N.max() < 1e-3 if wide else error_N.median() < 0.04)


class _Probe:
    """Small token ids: `prefix` tokens that all have, then `own` tokens that differ by `kind` and are trained."""

    def __init__(self, prefix: int, own: int, kind: int) -> None:
        self.ids = [*range(1, prefix + 1), *(20 * kind + i for i in range(own))]
        self.mask = [i >= max(prefix, 1) for i in range(len(self.ids))]


def text_config(config: Any) -> Any:
    """Return the decoder's configuration, of a multimodal model too."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def head_adjustments(config: Any) -> tuple[float, float | None]:
    """Return (scale, soft-cap) that a family applies to its logits: Cohere, Granite, Falcon-H1; Gemma-2, RecurrentGemma."""
    text, scale = text_config(config), 1.0
    for name, inverse in (("logit_scale", False), ("logits_scaling", True), ("lm_head_multiplier", False)):
        value = getattr(text, name, None)
        if value is not None:
            scale *= 1 / float(value) if inverse else float(value)
    softcap = getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_soft_cap", None)
    return scale, None if softcap is None else float(softcap)


def _last(states: Any) -> Tensor:
    hidden: Tensor = states.last_hidden_state if hasattr(states, "last_hidden_state") else states[0]
    return hidden
