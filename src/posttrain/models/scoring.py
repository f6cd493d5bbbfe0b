"""Models that give numbers, made from language models: the backbone as it is, and a small head in place of the vocabulary's.

The result is transformers' own class for sequence or token classification. Its padding token is made one that no
conversation ends with: transformers reads a reward at the last token that is not padding, which is one too early where the
end token is the padding token too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.errors import ModelError
from ..core.files import read_json
from ..core.types import Message
from ..data.chat import render_ids
from .adapters import HEADS, attach, base_of, is_adapter
from .forward import Batch, Forward, causal_model, text_config
from .load import (
    LoadedModel,
    fingerprint_of,
    load,
    load_tokenizer,
    load_weights,
    pick_device,
    pick_dtype,
    resolve,
    tokenizer_of,
)
from .shape import shape_of

__all__ = [
    "ENDINGS", "Kind", "ScoreForward", "is_kind", "labels_of_adapter", "load_scoring", "score_head", "under_head",
]  # fmt: skip

Kind = Literal["sequence", "token"]
HEAD_WEIGHTS = tuple(f"{name}.weight" for name in HEADS)
ENDINGS: dict[Kind, str] = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification"}


def score_head(model: Any) -> Any:
    """Return the head of a classification model (inside a PEFT model, its trained copy); None where there is none."""
    inner = causal_model(model)
    return getattr(inner, "score", None) or getattr(inner, "classifier", None)


class ScoreForward(Forward):
    """Backbone, then the head's logits at the marked tokens only: `forward(batch) -> logits_NK`, at least float32."""

    lag = 0

    def forward(self, batch: Batch, *_: Any, **__: Any) -> Tensor:
        """Return `logits_NK` of the marked tokens, sequence by sequence in the order given."""
        batch = batch.to(self.model.device)
        logits_NK: Tensor = score_head(self.model)(self.hidden(batch))
        return logits_NK.float() if logits_NK.dtype in (torch.bfloat16, torch.float16) else logits_NK

    def _check_head(self) -> None:
        if not isinstance(score_head(self.model), nn.Module):
            raise ModelError(
                f"{type(causal_model(self.model)).__name__} has no head 'score' or 'classifier' to read rewards from"
            )


def load_scoring(
    ref: str | Path, kind: Kind, labels: Sequence[str], *, dtype: str = "auto", device: str = "auto", seed: int = 0,
    zero: bool = False,
) -> LoadedModel:  # fmt: skip
    """Load a classification folder of this kind, an adapter with its head, or a language model under a fresh head.

    A fresh head's weights are N(0, 1 / (D + 1)) for hidden size D (Stiennon et al. 2020, 2009.01325, appendix), drawn by the
    seed, or `zero`. Raises `ModelError` for a folder with another number of labels, or a model whose decoder has no such
    class.
    """
    path = resolve(ref)
    if is_adapter(path) and _has_head(path):
        base = load_scoring(base_of(path), kind, labels, dtype=dtype, device=device, seed=seed, zero=zero)
        model = attach(base.model, path).merge_and_unload()
        return replace(
            base,
            model=model.eval(),
            tokenizer=tokenizer_of(path),
            name=str(ref),
            path=path,
            fingerprint=fingerprint_of(path),
        )
    if not is_adapter(path) and is_kind(path, kind):
        return _load_folder(ref, path, kind, labels, dtype, device)
    loaded = load(ref, dtype=dtype, device=device)
    if loaded.adapter is not None:
        raise ModelError(
            f"{path}: a {loaded.adapter} adapter cannot be merged, so no head can be put on it: begin at its base"
        )
    return under_head(loaded, kind, labels, seed=seed, zero=zero)


def _load_folder(ref: str | Path, path: Path, kind: Kind, labels: Sequence[str], dtype: str, device: str) -> LoadedModel:
    on = pick_device(device)
    number = pick_dtype(dtype, on)
    tokenizer = load_tokenizer(path)
    model = load_weights(_auto(kind), path, number, what=f"a {kind}-classification model").to(on).eval()
    if model.config.num_labels != len(labels):
        raise ModelError(f"{path}: has {model.config.num_labels} labels, but {len(labels)} are needed here")
    return LoadedModel(
        model=model, tokenizer=tokenizer, name=str(ref), path=path, fingerprint=fingerprint_of(path), device=on,
        dtype=number, shape=shape_of(model, head=score_head(model)),
    )  # fmt: skip


def under_head(loaded: LoadedModel, kind: Kind, labels: Sequence[str], *, seed: int = 0, zero: bool = False) -> LoadedModel:
    """Put a fresh head, drawn by the seed or zero, on a model's decoder, which is used and not copied."""
    config, causal = loaded.model.config, loaded.model
    config.num_labels = len(labels)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    config.classifier_dropout = 0.0
    try:
        with torch.device("meta"):
            model = _auto(kind).from_config(config)
    except (ValueError, KeyError):
        raise ModelError(
            f"{loaded.path}: transformers has no {kind}-classification class for {type(causal).__name__}"
        ) from None
    decoder = getattr(causal, causal.base_model_prefix, None)
    if not isinstance(decoder, nn.Module) or not isinstance(getattr(model, model.base_model_prefix, None), type(decoder)):
        raise ModelError(f"{loaded.path}: the decoder of {type(causal).__name__} does not fit {type(model).__name__}")
    setattr(model, model.base_model_prefix, decoder)
    model.config = config  # the one its layers read
    head = score_head(model)
    fresh = nn.Linear(head.in_features, len(labels), bias=head.bias is not None)
    drawn = torch.randn(fresh.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        fresh.weight.copy_(0 * drawn if zero else drawn / (head.in_features + 1) ** 0.5)
        if fresh.bias is not None:
            fresh.bias.zero_()
    setattr(model, "score" if hasattr(model, "score") else "classifier", fresh.to(loaded.device, loaded.dtype))
    if left := [name for name, p in model.named_parameters() if p.is_meta]:
        raise ModelError(f"{loaded.path}: {type(model).__name__} has more weights of its own than a head: {left[0]}")
    _choose_padding(loaded.tokenizer, config)
    return replace(loaded, model=model.eval(), shape=shape_of(model, head=score_head(model)))


def _choose_padding(tokenizer: Any, config: Any) -> None:
    """Make the padding token one that no conversation ends with, where the vocabulary has such a special token."""
    if not getattr(tokenizer, "chat_template", None):
        return
    turns = [Message(role="user", content="a"), Message(role="assistant", content="b")]
    ends = {render_ids(tokenizer, turns)[-1], tokenizer.eos_token_id}
    specials = sorted(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    fit = [i for i in (tokenizer.pad_token_id, tokenizer.unk_token_id, *specials) if i is not None and i not in ends]
    if fit:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(fit[0])
        text_config(config).pad_token_id = config.pad_token_id = fit[0]


def _auto(kind: Kind) -> Any:
    import transformers

    return getattr(transformers, f"AutoModel{ENDINGS[kind]}")


def is_kind(path: Path, kind: Kind) -> bool:
    """Whether a model folder names itself a classification model of this kind."""
    file = path / "config.json"
    named = (read_json(file).get("architectures") if file.is_file() else None) or [""]
    return str(named[0]).endswith(ENDINGS[kind])


def labels_of_adapter(path: Path) -> list[str]:
    """Return the labels of an adapter's head, one for each row of its weights; raises `ModelError` without a head."""
    from safetensors import safe_open

    file = path / "adapter_model.safetensors"
    if not _has_head(path) or not file.is_file():
        raise ModelError(f"{path}: is an adapter without a head of its own: a reward model's is trained and saved with it")
    with safe_open(file, "pt") as weights:
        rows = [weights.get_slice(name).get_shape()[0] for name in weights.keys() if name.endswith(HEAD_WEIGHTS)]  # noqa: SIM118
    notes = path / "posttrain.json"
    named = read_json(notes).get("data", {}).get("labels") if notes.is_file() else None
    return list(named) if named else [f"LABEL_{i}" for i in range(rows[0])]


def _has_head(path: Path) -> bool:
    file = path / "adapter_config.json"
    return file.is_file() and bool(read_json(file).get("modules_to_save"))
