"""Turning a GGUF file (quantised weights, tokenizer and template in one file) into an ordinary Hugging Face folder.

Weights are de-quantised: the model computes with the rounded values, in bfloat16. Llama-architecture files with a byte-level
tokenizer are converted directly, which takes seconds and keeps the pre-tokenizer that the file names (SmolLM2 splits numbers
into digits; the general converter loses that). Every other architecture goes through transformers' own converter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.errors import ModelError
from ..core.files import write_json

__all__ = ["INNER", "OUTER", "convert"]

_PRE_TOKENIZERS = {"smollm": True, "gpt-2": False}  # does it split numbers into digits?
_CONTROL, _USER_DEFINED = 3, 4  # GGUF token types that are never split


def convert(file: Path, folder: Path, *, note: Callable[[str], None] = lambda _: None) -> None:
    """Write the model in a GGUF file as a Hugging Face folder (safetensors, tokenizer.json, chat_template.jinja).

    `note` is told of each step. Raises `ModelError` when the file is not a GGUF file or its architecture is unknown.
    """
    from gguf import GGUFReader

    note("reading")
    try:
        reader = GGUFReader(str(file))
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise ModelError(f"{file}: not a readable GGUF file ({error})") from None
    facts = _Facts(reader)
    plain = facts.get("tokenizer.ggml.model") == "gpt2" and facts.get("tokenizer.ggml.pre") in _PRE_TOKENIZERS
    if facts["general.architecture"] == "llama" and plain and facts.get("llama.expert_count", 0) == 0:
        note("weights")
        _llama_weights(reader, facts, folder)
        note("tokenizer")
        _byte_level_tokenizer(facts).save_pretrained(folder)
    else:
        note("weights and tokenizer")
        _through_transformers(file, folder)


class _Facts:
    """The metadata of a GGUF file, decoded on demand."""

    def __init__(self, reader: Any) -> None:
        self._fields = reader.fields

    def get(self, key: str, default: Any = None) -> Any:
        return self._fields[key].contents() if key in self._fields else default

    def __getitem__(self, key: str) -> Any:
        if key not in self._fields:
            raise ModelError(f"the GGUF file lacks '{key}'")
        return self.get(key)


# Llama architecture, directly ------------------------------------------------------------------------------------------

OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _llama_weights(reader: Any, facts: _Facts, folder: Path) -> None:
    from gguf import dequantize
    from safetensors.torch import save_file

    heads, kv_heads = facts["llama.attention.head_count"], facts["llama.attention.head_count_kv"]
    tensors: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(np.asarray(tensor.data), tensor.tensor_type).copy())
        name = OUTER.get(tensor.name)
        if name is None:
            _, layer, part, kind = tensor.name.split(".") if tensor.name.count(".") == 3 else ("", "", "", "")
            if part not in INNER or kind != "weight":
                raise ModelError(f"the GGUF file has a tensor that a Llama model does not: '{tensor.name}'")
            name = f"model.layers.{layer}.{INNER[part]}.weight"
            if part in ("attn_q", "attn_k"):
                weight = _halves(weight, heads if part == "attn_q" else kv_heads)
        tensors[name] = weight.to(torch.bfloat16).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    eos = facts["tokenizer.ggml.eos_token_id"]
    ids = {"bos_token_id": facts.get("tokenizer.ggml.bos_token_id", eos), "eos_token_id": eos}
    ids["pad_token_id"] = facts.get("tokenizer.ggml.padding_token_id", eos)
    width = facts["llama.embedding_length"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": tensors["model.embed_tokens.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": facts.get("llama.rope.dimension_count", width // heads),
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": _shortest(facts["llama.attention.layer_norm_rms_epsilon"]),
        "rope_parameters": {"rope_type": "default", "rope_theta": _shortest(facts.get("llama.rope.freq_base", 10000.0))},
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        **ids,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", ids)


def _halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo GGUF's order of rotary dimensions: pairs (x0, y0, x1, y1, …) become halves (x0, x1, …, y0, y1, …) per head."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _shortest(value: float) -> float:
    """Return the shortest decimal that is the same float32: 1e-05 was stored as 9.99999974e-06."""
    return next(short for digits in range(1, 10) if torch.tensor(short := float(f"{value:.{digits}g}")).item() == value)


def _byte_level_tokenizer(facts: _Facts) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts.get("tokenizer.ggml.merges", [])]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if _PRE_TOKENIZERS[facts["tokenizer.ggml.pre"]]:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = list(zip(tokens, facts["tokenizer.ggml.token_type"], strict=True))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, kind in kinds if kind == _CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in kinds if kind == _USER_DEFINED])
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {name: facts.get(f"tokenizer.ggml.{key}_token_id") for name, key in named.items()}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=facts["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **{name: tokens[i] for name, i in special.items() if i is not None},
    )
    fast.chat_template = facts.get("tokenizer.chat_template")
    return fast


# Any other architecture ------------------------------------------------------------------------------------------------


def _through_transformers(file: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
    except (ValueError, KeyError, NotImplementedError, OSError, ImportError) as error:
        raise ModelError(f"{file}: transformers cannot convert this GGUF file ({error})") from None
    # The weights are plain now; what is left of the quantiser would make save_pretrained refuse them.
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer = None
    model.is_quantized = False
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    if "quantization_config" in config:
        raise ModelError(f"{file}: the converted model still claims to be quantised; convert it with another tool")
