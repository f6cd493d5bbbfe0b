"""Loading models that give numbers instead of text: reward models of whole replies and of reasoning steps.

Three kinds of folder are read, from safetensors only and without running any code of theirs: sequence classification,
token classification, and causal language models of which only the logits of a few verdict tokens are wanted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..core.errors import ModelError
from ..core.files import read_json
from ..core.types import ModelShape
from ..losses.logprobs import adjust
from .adapters import is_adapter
from .collate import Batch, TokenSequence, collate
from .forward import Forward, head_adjustments
from .load import (
    check_folder,
    content_fingerprint,
    fingerprint_of,
    load,
    load_tokenizer,
    load_weights,
    pick_device,
    pick_dtype,
    resolve,
)
from .scoring import ScoreForward, labels_of_adapter, load_scoring
from .shape import shape_of

__all__ = ["LoadedScorer", "Marked", "load_classifier", "load_verdicts"]

Kind = Literal["sequence", "token"]
_QWEN = {
    "sequence": "Qwen2ForRewardModel",
    "token": "Qwen2ForProcessRewardModel",
}  # code in their repository, not in transformers


class Marked(TokenSequence, Protocol):
    """Token ids, and for each whether the model is asked there."""

    @property
    def types(self) -> Sequence[int] | None:
        """Token types, of an encoder that is given two segments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedScorer:
    """A model with its tokenizer, read as `logits(groups) -> logits_NK`.

    `logits_NK` are float32, for K labels (or verdict tokens) at the N marked tokens of all sequences, group by group, in the
    order given. With `packs` nothing is padded and what the sequences of a group begin with is computed once; without, all
    are padded to the longest. `context` is the longest sequence it takes, None when its configuration does not say.
    """

    model: Any
    tokenizer: Any
    name: str
    fingerprint: str
    device: torch.device
    shape: ModelShape
    labels: tuple[str, ...]
    context: int | None
    logits: Callable[[Sequence[Sequence[Marked]]], Tensor]
    packs: bool


def load_classifier(
    ref: str | Path, kind: Kind, *, device: str = "auto", dtype: str = "auto", chat_template: Path | None = None
) -> LoadedScorer:
    """Load a sequence- or token-classification folder, or an adapter with its head. Raises `ModelError` for anything else.

    A decoder's sequence-classification head is read at the positions asked for, never at a place found from token ids:
    transformers looks for the last token that is not the padding token, which is wrong when that is the end token too.
    An encoder's (BERT and its like) pools the whole sequence by itself; the positions only name the row then.
    """
    path = resolve(ref)
    on = pick_device(device)
    if is_adapter(path):
        loaded = load_scoring(ref, kind, labels_of_adapter(path), device=device, dtype=dtype)
        model = loaded.model
        tokenizer = load_tokenizer(path, chat_template=chat_template)
    else:
        check_folder(path)
        cls = _class_of(path, kind)
        tokenizer = load_tokenizer(path, chat_template=chat_template)
        model = load_weights(cls, path, pick_dtype(dtype, on), what=f"a {kind}-classification model").to(on).eval()
    decoder = isinstance(getattr(model, "score", None), nn.Module)
    head = model.score if decoder else getattr(model, "classifier", None)
    if (
        not isinstance(head, nn.Module) or model.config.model_type == "ctrl"
    ):  # others pool by token id, or in ways of their own
        raise ModelError(
            f"{path}: {type(model).__name__} is not supported: neither a decoder with a score head nor an encoder"
        )
    shape = shape_of(model, head=head)
    causal = decoder or (kind == "token" and _is_causal(model))
    if not causal:  # attention in both directions: every token meets every other, twice what the causal formula counts
        shape = replace(shape, attention_width=2 * shape.attention_width)
    names = model.config.id2label
    reads = _packed(ScoreForward(model)) if decoder and causal else _OwnForward(model, pooled=kind == "sequence")
    return LoadedScorer(
        model=model,
        tokenizer=tokenizer,
        name=str(ref),
        fingerprint=fingerprint_of(path) if is_adapter(path) else content_fingerprint(path, tokenizer),
        device=on,
        shape=shape,
        labels=tuple(str(names[i]) for i in range(model.config.num_labels)),
        context=_context(model, tokenizer, causal),
        logits=reads if isinstance(reads, _OwnForward) else _reader(reads),
        packs=not isinstance(reads, _OwnForward) and reads.packs,
    )


def load_verdicts(
    ref: str | Path,
    verdicts: Sequence[str],
    *,
    device: str = "auto",
    dtype: str = "auto",
    chat_template: Path | None = None,
) -> LoadedScorer:
    """Load a causal language model of which only the logits of a few tokens ("+", "-") are wanted.

    The output head is computed at the positions asked for and for these tokens alone. Raises `ModelError` when one of
    `verdicts` is not a single token.
    """
    loaded = load(ref, device=device, dtype=dtype, chat_template=chat_template)
    ids = []
    for verdict in verdicts:
        found = loaded.tokenizer(verdict, add_special_tokens=False)["input_ids"]
        if len(found) != 1:
            raise ModelError(
                f"{loaded.path}: {verdict!r} is {len(found)} tokens of its tokenizer, and a verdict must be one"
            )
        ids += found
    model = loaded.model
    reads = _packed(_VerdictForward(model, ids))
    head = model.get_output_embeddings()
    width = head.weight.shape[1]
    return LoadedScorer(
        model=model,
        tokenizer=loaded.tokenizer,
        name=loaded.name,
        fingerprint=loaded.fingerprint,
        device=loaded.device,
        shape=replace(loaded.shape, head_params=len(ids) * width),
        labels=tuple(verdicts),
        context=_context(model, loaded.tokenizer, True),
        logits=_reader(reads),
        packs=reads.packs,
    )


def _class_of(path: Path, kind: Kind) -> Any:
    """Return the transformers class of a folder, after looking at what its configuration says it is."""
    import transformers

    named = (read_json(path / "config.json").get("architectures") or [""])[0]
    if named == _QWEN[kind]:
        return _qwen(kind)
    wanted = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification"}[kind]
    if named and not named.endswith(wanted):
        other = {
            "ForCausalLM": "a language model",
            "ForSequenceClassification": "a sequence-classification model: use reward_model, or another style",
            "ForTokenClassification": "a token-classification model: use process_reward:style=token",
        }
        is_a = next((text for end, text in other.items() if named.endswith(end)), "something else")
        raise ModelError(f"{path}: a {kind}-classification model is needed, but this is {named}, {is_a}")
    return (
        transformers.AutoModelForSequenceClassification
        if kind == "sequence"
        else transformers.AutoModelForTokenClassification
    )


def _qwen(kind: Kind) -> Any:
    """Return Qwen2.5-Math's reward models, an ordinary Qwen2 with a head of two layers, without the code they ship with.

    Source: Zhang et al. 2025, "The Lessons of Developing Process Reward Models" (arXiv 2501.07301).
    """
    import transformers

    base: Any = (
        transformers.Qwen2ForSequenceClassification if kind == "sequence" else transformers.Qwen2ForTokenClassification
    )

    class Qwen2Reward(base):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            config.num_labels = {"sequence": 1, "token": 2}[kind]
            super().__init__(config)
            width = config.hidden_size
            self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.num_labels))
            self.post_init()

    return Qwen2Reward


class _VerdictForward(ScoreForward):
    """The output head at the marked tokens, for a few tokens of the vocabulary alone."""

    def __init__(self, model: Any, verdicts: Sequence[int]) -> None:
        self._verdicts = list(verdicts)
        super().__init__(model)

    def forward(self, batch: Batch, *_: Any, **__: Any) -> Tensor:
        batch = batch.to(self.model.device)
        head = self.model.get_output_embeddings()
        weight_KD, bias_K = head.weight[self._verdicts], None if head.bias is None else head.bias[self._verdicts]
        logits_NK = nn.functional.linear(self.hidden(batch), weight_KD, bias_K).float()
        return adjust(logits_NK, *head_adjustments(self.model.config))

    def _check_head(self) -> None:
        """Nothing to check: the head is the model's own, as its configuration tells."""


def _packed(forward: ScoreForward) -> ScoreForward:
    """Keep packing to processors: elsewhere a padded batch is one call of attention, a packed one a call for each group."""
    forward.packs = forward.packs and forward.model.device.type == "cpu"
    return forward


def _reader(forward: Forward) -> Callable[[Sequence[Sequence[Marked]]], Tensor]:
    alone = threading.Lock()  # packed attention is switched on in the model's configuration, and two engines may share it

    def logits(groups: Sequence[Sequence[Marked]]) -> Tensor:
        with alone:
            found: Tensor = forward(forward.batch(groups))
        return found.float()

    return logits


@dataclass(frozen=True, slots=True)
class _OwnForward:
    """The model's own forward over padded sequences. `pooled`: one row of logits a sequence, whatever is marked in it."""

    model: Any
    pooled: bool

    def __call__(self, groups: Sequence[Sequence[Marked]]) -> Tensor:
        sequences = [sequence for group in groups for sequence in group]
        batch = collate(sequences, lag=0)
        types = {}
        if sequences[0].types is not None:
            types["token_type_ids"] = torch.zeros_like(batch.ids_BT)
            for row, sequence in enumerate(sequences):
                types["token_type_ids"][row, : len(sequence.ids)] = torch.tensor(sequence.types)
        on = self.model.device
        attention_BT = None if batch.attention_BT is None else batch.attention_BT.to(on)
        found: Tensor = self.model(
            input_ids=batch.ids_BT.to(on), attention_mask=attention_BT, **{name: t_BT.to(on) for name, t_BT in types.items()}
        ).logits
        return (found[batch.owner_N.to(on)] if self.pooled else found.flatten(0, 1)[batch.where_N.to(on)]).float()


def _is_causal(model: Any) -> bool:
    """Return whether tokens see only what precedes them, by trying: another last token changes no earlier logits."""
    with torch.inference_mode():
        ids_BT = torch.tensor([[3, 4, 5], [3, 4, 6]], device=model.device) % model.config.vocab_size
        first_BL = model(input_ids=ids_BT).logits[:, 0].float()
    return torch.allclose(first_BL[0], first_BL[1], atol=1e-5)


def _context(model: Any, tokenizer: Any, causal: bool) -> int | None:
    known: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if causal:
        return known
    own: int = tokenizer.model_max_length  # an encoder's positions may begin at 2 (RoBERTa): its tokenizer knows better
    return own if known is None else min(known, own)
