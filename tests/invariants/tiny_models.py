"""Tiny random models on disk: a byte-level tokenizer with a ChatML template, and any transformers configuration."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=TEMPLATE
    )


def llama(**changes) -> LlamaConfig:
    sizes = {
        "vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True, "bos_token_id": None,
        "eos_token_id": 257, "pad_token_id": 257,
    }  # fmt: skip
    return LlamaConfig(**{**sizes, **changes})


def model(config=None, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    built = AutoModelForCausalLM.from_config(config or llama(), dtype=torch.float32)
    with torch.no_grad():
        for parameter in built.parameters():  # larger than the usual initialisation: distributions far from uniform
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.2)
    return built.to(dtype)


def folder(path: Path, config=None, seed=0) -> Path:
    model(config, seed=seed).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def ending_folder(path: Path, seed=7) -> Path:
    """A model whose end token is often likely, so that its replies end."""
    made = model(seed=seed)
    with torch.no_grad():
        made.model.embed_tokens.weight[257] *= 4
    made.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def plain_folder(path: Path, seed=7) -> Path:
    """A model that writes plain ASCII nearly always, and ends its replies: its text tells its tokens."""
    made, known = model(seed=seed), tokenizer()
    plain = torch.tensor([known.convert_tokens_to_ids(chr(byte)) for byte in range(33, 127)])
    with torch.no_grad():
        rows = made.model.embed_tokens.weight
        kept, end = rows[plain] * 3, rows[257] * 4
        rows[:] = 0
        rows[plain], rows[257] = kept, end
    made.save_pretrained(path)
    known.save_pretrained(path)
    return path


def demonstrations(n: int) -> list[dict]:
    return [{"prompt": f"{i} plus {i * 3 % 7}?", "completion": "x" * (i % 5 + 1) + f" is {i + i * 3 % 7}"} for i in range(n)]


def preferences(n: int) -> list[dict]:
    return [
        {
            "prompt": f"{i} plus {i * 3 % 7}?",
            "chosen": f"It is {i + i * 3 % 7}" + "!" * (i % 4),
            "rejected": "no" * (i % 3 + 1),
        }
        for i in range(n)
    ]
