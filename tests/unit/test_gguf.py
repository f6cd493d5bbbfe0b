"""GGUF files written here with the format's own library, read back and compared with the model they came from."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from posttrain.core.errors import ModelError
from posttrain.models.gguf import convert

MERGES = ["h i", "Ġ Ġ", "Ġ hi", "1 2"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def tokens() -> list[str]:
    from tokenizers import pre_tokenizers

    return [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *("hi", "ĠĠ", "Ġhi", "12"),
    ]


def pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """GGUF's order of rotary dimensions as the format defines it: row 2i of a head is HF's row i, row 2i + 1 its i + d/2."""
    rows, d = [], weight.shape[0] // heads
    for head in weight.view(heads, d, -1):
        for i in range(d // 2):
            rows += [head[i], head[i + d // 2]]
    return torch.stack(rows)


def write(path: Path, model: Any, *, arch: str = "llama", pre: str = "smollm", tokenizer: str = "gpt2") -> Path:
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(20_000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(tokenizer)
    writer.add_tokenizer_pre(pre)
    names = tokens()
    writer.add_token_list(names)
    writer.add_token_types([3 if name.startswith("<|") else 1 for name in names])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        if name in outer:
            target = outer[name]
        else:
            _, _, layer, rest = name.split(".", 3)
            part, kind = rest.rsplit(".", 1)
            target = f"blk.{layer}.{parts[part]}.{kind}"
            if arch == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
                weight = pairs(weight, config.num_attention_heads if part.endswith("q_proj") else config.num_key_value_heads)
        array = weight.float().contiguous().numpy()
        if array.ndim == 2 and arch == "llama":
            kind_of = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quantize(array, kind_of), raw_dtype=kind_of)
        else:
            writer.add_tensor(target, array.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0},
}


def made(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def same_logits(model: Any, folder: Path, *, atol: float) -> None:
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=atol, rtol=0)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    model = made(LlamaConfig(vocab_size=len(tokens()), **SIZES))
    for parameter in model.parameters():  # larger than the initialisation, so that a wrong order would show
        parameter.data = parameter.data * 4 if parameter.ndim == 2 else parameter.data
    steps: list[str] = []
    convert(write(folder / "tiny.gguf", model), folder / "hf", note=steps.append)
    assert steps == ["reading", "weights", "tokenizer"]
    return model, folder / "hf"


def test_weights_and_configuration_survive(llama: tuple[Any, Path]) -> None:
    model, folder = llama
    same_logits(model, folder, atol=0.15)  # rounding to 8 bits and to bfloat16; a wrong rotary order is off by 0.9
    config = LlamaConfig.from_pretrained(folder)
    assert (config.max_position_embeddings, config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (
        128,
        1e-5,
        20_000.0,
    )
    assert config.tie_word_embeddings
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)


def test_the_tokenizer_splits_numbers_into_digits(llama: tuple[Any, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama[1])
    assert tokenizer.tokenize("hi 12") == ["hi", "Ġ", "1", "2"]  # although the merge "1 2" is there
    assert tokenizer.tokenize("hi  12") == ["hi", "ĠĠ", "1", "2"]
    assert tokenizer.tokenize("<|im_start|> hi<|im_end|>") == ["<|im_start|>", "Ġhi", "<|im_end|>"]
    text = "<|im_start|>é  hi\n\t東京 😀 1234<|im_end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.model_max_length == 128
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|im_start|>hi<|im_end|>"


def test_without_digit_splitting_the_merge_is_used(tmp_path: Path) -> None:
    model = made(LlamaConfig(vocab_size=len(tokens()), **SIZES))
    convert(write(tmp_path / "tiny.gguf", model, pre="gpt-2"), tmp_path / "hf")
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").tokenize("hi12") == ["hi", "12"]


@pytest.mark.filterwarnings("ignore")  # the general converter's own
def test_another_architecture_goes_through_the_general_converter(tmp_path: Path) -> None:
    model = made(Qwen2Config(vocab_size=len(tokens()), **SIZES))
    convert(write(tmp_path / "tiny.gguf", model, arch="qwen2", pre="qwen2"), tmp_path / "hf")
    same_logits(model, tmp_path / "hf", atol=0.02)  # rounding to bfloat16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.decode(tokenizer("hi there", add_special_tokens=False)["input_ids"]) == "hi there"


def test_what_is_no_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"nothing of the kind, but long enough to be looked at" * 10)
    with pytest.raises(ModelError, match=r"a\.gguf: not a readable GGUF file"):
        convert(tmp_path / "a.gguf", tmp_path / "hf")
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"b\.gguf: not a readable GGUF file"):
        convert(tmp_path / "b.gguf", tmp_path / "hf")
