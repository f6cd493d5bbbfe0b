"""Writing a Llama-architecture model as a GGUF file: weights in F32, F16 or BF16, tokenizer and chat template.

What is written is exactly what `gguf.py` converts directly, so that a written file says what the model said. Anything the
format would hold differently (other architectures, scaled rotary embeddings, other tokenizers) is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..core.errors import ModelError
from .gguf import INNER, OUTER

__all__ = ["FloatKind", "write_gguf"]

FloatKind = Literal["float32", "float16", "bfloat16"]
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def write_gguf(model: Any, tokenizer: Any, file: Path, *, kind: FloatKind) -> None:
    """Write the model, its tokenizer and its template into one file. Norms stay in float32, as llama.cpp wants them.

    Raises `ModelError`, before anything is written, for a model or tokenizer that this writer cannot put down exactly.
    """
    from gguf import GGUFWriter, LlamaFileType

    tensors = _tensors(model, kind)
    vocabulary = _vocabulary(tokenizer, rows=model.get_input_embeddings().weight.shape[0])
    config, head_size = model.config, _head_size(model.config)
    file_types = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
    writer = GGUFWriter(str(file), "llama")
    writer.add_name(file.stem)
    writer.add_file_type(LlamaFileType[file_types[kind]])
    writer.add_vocab_size(len(vocabulary["tokens"]))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    if vocabulary["merges"]:
        writer.add_token_merges(vocabulary["merges"])
    writer.add_add_bos_token(False)  # the chat template is the only source of special tokens
    for name, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id),
                      ("unk", writer.add_unk_token_id), ("pad", writer.add_pad_token_id)):  # fmt: skip
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None:
            add(token)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
    for name, (array, raw) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=raw)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _tensors(model: Any, kind: FloatKind) -> dict[str, tuple[Any, Any]]:
    """Return (array, type) by GGUF's names, with its order of rotary dimensions."""
    from gguf import GGMLQuantizationType, quantize

    config = model.config
    strange = [
        what
        for what, there in (
            (f"the architecture {config.model_type}", config.model_type != "llama"),
            ("biases", getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)),
            ("scaled rotary embeddings", (getattr(config, "rope_parameters", None) or {}).get("rope_type") != "default"),
            (f"the activation {getattr(config, 'hidden_act', None)}", getattr(config, "hidden_act", None) != "silu"),
        )
        if there
    ]
    if strange:
        raise ModelError(
            f"{type(model).__name__} has {strange[0]}, which the GGUF writer does not know; export a folder instead"
        )
    names = {theirs: ours for ours, theirs in OUTER.items()}
    parts = {theirs: ours for ours, theirs in INNER.items()}
    found: dict[str, tuple[Any, Any]] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = tensor.detach().float().cpu()
        if name in names:
            target = names[name]
        else:
            _, _, layer, rest = name.split(".", 3)
            part = rest.removesuffix(".weight")
            if part not in parts:
                raise ModelError(f"the model has a weight that a plain Llama model does not: '{name}'")
            target = f"blk.{layer}.{parts[part]}.weight"
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config.num_attention_heads if part.endswith("q_proj") else config.num_key_value_heads
                weight = _pairs(weight, heads)
        array = weight.contiguous().numpy()
        if array.ndim == 1 or kind == "float32":
            found[target] = (array, GGMLQuantizationType.F32)
        elif kind == "bfloat16":
            found[target] = (quantize(array, GGMLQuantizationType.BF16), GGMLQuantizationType.BF16)
        else:
            if np.abs(array).max() > np.finfo(np.float16).max:
                raise ModelError(f"weight '{name}' is too large for float16: use --dtype bfloat16")
            found[target] = (array.astype(np.float16), GGMLQuantizationType.F16)
    return found


def _pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Put rotary dimensions in GGUF's order: halves (x0, x1, …, y0, y1, …) of a head become pairs (x0, y0, x1, y1, …)."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def _vocabulary(tokenizer: Any, *, rows: int) -> dict[str, Any]:
    """Return tokens, their types, merges and the name of the pre-tokenizer; unused rows of the embedding get names too."""
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    inner, pre = told["model"], _pre_tokenizer(told["pre_tokenizer"])
    after = told.get("post_processor") or {"type": "ByteLevel"}
    adds = after["type"] != "ByteLevel" and (after["type"] != "TemplateProcessing" or after["special_tokens"])
    unlike = [
        inner.get(name) for name in ("ignore_merges", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    ]
    odd = [token["content"] for token in told["added_tokens"] if token["lstrip"] or token["rstrip"] or token["single_word"]]
    if inner["type"] != "BPE" or pre is None or told.get("normalizer") or adds or any(unlike) or odd:
        raise ModelError(
            "the GGUF writer knows byte-level BPE tokenizers of the kinds gpt-2 and smollm only, and this one is another; "
            "export a folder instead"
        )
    ids = dict(inner["vocab"])
    types = dict.fromkeys(ids, _NORMAL)
    for token in told["added_tokens"]:
        ids[token["content"]] = token["id"]
        types[token["content"]] = _CONTROL if token["special"] else _USER_DEFINED
    by_id = {i: token for token, i in ids.items()}
    if len(by_id) != len(ids) or max(by_id) >= rows:
        raise ModelError(f"the tokenizer's {len(ids)} tokens do not fit the model's {rows} embeddings one to one")
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(rows)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in inner["merges"]]
    return {"tokens": tokens, "types": [types.get(token, _UNUSED) for token in tokens], "merges": merges, "pre": pre}


def _pre_tokenizer(told: Any) -> str | None:
    """Return the name that GGUF has for a pre-tokenizer, or None."""
    steps = told["pretokenizers"] if told and told["type"] == "Sequence" else [told or {"type": ""}]
    last = steps[-1]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space") or not last.get("use_regex", True):
        return None
    if len(steps) == 1:
        return "gpt-2"
    return "smollm" if len(steps) == 2 and steps[0] == {"type": "Digits", "individual_digits": True} else None
