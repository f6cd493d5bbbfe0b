"""Shapes against formulas written from each architecture's definition."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
)

from posttrain.core.errors import ModelError
from posttrain.core.types import ModelShape
from posttrain.models.shape import shape_of

V, D, F, L, H, K = 50, 24, 40, 3, 4, 2  # vocabulary, width, feed-forward, layers, heads, key-value heads
COMMON = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "num_key_value_heads": K,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("tied", [True, False])
def test_llama(tied: bool) -> None:
    head_dim = D // H
    attention = D * H * head_dim + 2 * D * K * head_dim + H * head_dim * D
    matmul = L * (attention + 3 * D * F)
    norms = L * 2 * D + D
    config = LlamaConfig(**COMMON, tie_word_embeddings=tied)
    assert shape_of(config) == ModelShape(
        parameters=matmul + norms + V * D * (1 if tied else 2),
        matmul_params=matmul,
        head_params=V * D,
        layers=L,
        attention_width=L * H * head_dim,
    )


def test_qwen_has_biases_that_are_no_matrices() -> None:
    head_dim = D // H
    attention = D * H * head_dim + 2 * D * K * head_dim + H * head_dim * D
    matmul = L * (attention + 3 * D * F)
    small = L * (2 * D + (H + 2 * K) * head_dim) + D
    shape = shape_of(Qwen2Config(**COMMON, tie_word_embeddings=True))
    assert (shape.parameters, shape.matmul_params, shape.head_params) == (matmul + small + V * D, matmul, V * D)


def test_gemma_has_heads_wider_than_its_width() -> None:
    head_dim = 16  # H · 16 = 64 > D
    matmul = L * (2 * D * H * head_dim + 2 * D * K * head_dim + 3 * D * F)
    shape = shape_of(Gemma2Config(**COMMON, head_dim=head_dim))
    assert (shape.matmul_params, shape.attention_width, shape.head_params) == (matmul, L * H * head_dim, V * D)
    assert shape.parameters == matmul + V * D + L * 4 * D + D


def test_gpt2_counts_no_position_table() -> None:
    matmul = L * (3 * D * D + D * D + 2 * 4 * D * D)
    small = L * (4 * D + 3 * D + D + 4 * D + D) + 2 * D  # norms' and linear layers' biases
    shape = shape_of(GPT2Config(vocab_size=V, n_embd=D, n_layer=L, n_head=H, n_positions=64, bos_token_id=0, eos_token_id=0))
    assert shape == ModelShape(
        parameters=matmul + small + V * D + 64 * D, matmul_params=matmul, head_params=V * D, layers=L, attention_width=L * D
    )


def test_a_mixture_counts_the_experts_a_token_visits() -> None:
    head_dim = D // H
    attention = D * H * head_dim + 2 * D * K * head_dim + H * head_dim * D
    shape = shape_of(MixtralConfig(**COMMON, num_local_experts=8, num_experts_per_tok=2))
    assert shape.matmul_params == L * (attention + 8 * D + 2 * 3 * D * F)  # router, two of eight experts


def test_a_model_and_its_configuration_agree() -> None:
    config = LlamaConfig(**COMMON)
    assert shape_of(AutoModelForCausalLM.from_config(config)) == shape_of(config)


def test_from_a_configuration_nothing_is_allocated() -> None:
    sizes = {"vocab_size": 128_256, "hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80}
    big = LlamaConfig(**sizes, num_attention_heads=64, num_key_value_heads=8, tie_word_embeddings=False)
    assert shape_of(big).parameters == 70_553_706_496  # Llama-3-70B


def test_a_model_without_a_head_is_refused() -> None:
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(LlamaConfig(**COMMON, pad_token_id=0))
    with pytest.raises(ModelError, match="has no output head"):
        shape_of(classifier)
