"""rsLoRA, DoRA, IA3 and bottleneck adapters: where they begin, what they compute, how many weights, what merges."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, MambaConfig, MixtralConfig, OPTConfig

from posttrain.core.errors import ModelError
from posttrain.models import bottleneck
from posttrain.models.adapters import add_ia3, add_lora, attach, base_of, is_adapter, merge, save_adapter, unmerged

IDS = torch.tensor([[1, 5, 9, 2, 7]])
D, FF, LAYERS, HEADS, KV = 32, 48, 2, 4, 2
KINDS = ["lora", "rslora", "dora", "ia3", "bottleneck"]
SMALL = {"vocab_size": 64, "num_hidden_layers": LAYERS, "hidden_size": D, "num_attention_heads": HEADS}


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**{**SMALL, "intermediate_size": FF, "num_key_value_heads": KV, **changes})
    return AutoModelForCausalLM.from_config(config).eval()


def fresh(kind: str, model: Any, seed: int = 3) -> Any:
    if kind == "ia3":
        return add_ia3(model, seed=seed).eval()
    if kind == "bottleneck":
        return bottleneck.add(model, width=6, seed=seed).eval()
    return add_lora(model, rank=4, alpha=8, variant=kind, seed=seed).eval()


def changed(model: Any) -> Any:
    """Give every trainable weight something to do."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator).mul(0.3).to(parameter.dtype)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_begins_at_the_base_exactly(kind: str, dtype: torch.dtype) -> None:
    before = logits(llama().to(dtype))
    adapted = fresh(kind, llama().to(dtype))
    if kind == "dora" and dtype == torch.bfloat16:  # the norms of its columns are rounded
        torch.testing.assert_close(logits(adapted), before, atol=0.02, rtol=0.02)
    else:
        assert torch.equal(logits(adapted), before)
    assert {parameter.dtype for parameter in adapted.parameters()} == {dtype}


COUNTS = {  # rank 4, width 6; of one layer
    "lora": 4 * ((D + D) * 2 + (D + D // 2) * 2 + (D + FF) * 3),  # r (inputs + outputs) of q, o; k, v; gate, up, down
    "ia3": 2 * D // 2 + FF,  # keys and values (2 of 4 heads), what enters the feed-forward's last layer
    "bottleneck": 2 * (2 * D * 6 + D + 6),
}
COUNTS["rslora"] = COUNTS["lora"]
COUNTS["dora"] = COUNTS["lora"] + 2 * D + 2 * (D // 2) + 2 * FF + D  # and a magnitude for each output


@pytest.mark.parametrize("kind", KINDS)
def test_weights_counted_in_closed_form(kind: str) -> None:
    adapted = fresh(kind, llama())
    trained = {name: p.numel() for name, p in adapted.named_parameters() if p.requires_grad}
    assert sum(trained.values()) == LAYERS * COUNTS[kind]
    part = {"ia3": "ia3_", "bottleneck": ".bottleneck."}.get(kind, "lora_")
    assert all(part in name for name in trained)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainable_weight_has_a_gradient_and_no_other(kind: str) -> None:
    adapted = changed(fresh(kind, llama()))
    adapted(IDS).logits.square().sum().backward()
    for name, parameter in adapted.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == parameter.requires_grad, name


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_again_says_the_same(kind: str, tmp_path: Path) -> None:
    adapted = changed(fresh(kind, llama()))
    save_adapter(adapted, tmp_path / "a", "some/base")
    assert is_adapter(tmp_path / "a")
    assert base_of(tmp_path / "a") == "some/base"
    again = attach(llama(), tmp_path / "a").eval()
    assert torch.equal(logits(again), logits(adapted))
    assert not torch.allclose(logits(again), logits(llama()), atol=1e-2)
    names = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name for name, p in again.named_parameters() if p.requires_grad} == names


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "ia3"])
def test_merged_says_what_the_adapted_model_says(kind: str) -> None:
    adapted = changed(fresh(kind, llama()))
    said = logits(adapted)
    assert unmerged(adapted) is None
    merged = merge(adapted)
    torch.testing.assert_close(logits(merged), said, atol=1e-5, rtol=1e-5)
    assert merged.state_dict().keys() == llama().state_dict().keys()


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "model.embed_tokens"])
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings")
def test_a_table_that_is_embedding_and_head_at_once_is_no_target(target: str) -> None:
    with pytest.raises(ModelError, match="embedding and output head are one matrix"):
        add_lora(llama(tie_word_embeddings=True), rank=2, alpha=4, targets=[target], seed=0)
    adapted = changed(add_lora(llama(), rank=2, alpha=4, targets=[target], seed=0)).eval()
    said = logits(adapted)
    torch.testing.assert_close(logits(merge(adapted)), said, atol=1e-5, rtol=1e-5)


def test_a_layer_that_cannot_take_it_is_named() -> None:
    with pytest.raises(ModelError, match=r"PEFT cannot put dora on .*input_layernorm"):
        add_lora(llama(), rank=2, alpha=4, targets=["input_layernorm"], variant="dora", seed=0)


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    base = llama()
    weight = base.model.layers[1].mlp.up_proj.weight
    layer = changed(fresh("rslora", base)).base_model.model.model.layers[1].mlp.up_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(5, D)
    torch.testing.assert_close(layer(x), x @ weight.T + 8 / math.sqrt(4) * (x @ a.T) @ b.T)


def test_dora_follows_its_equation() -> None:
    base = llama()
    weight = base.model.layers[0].self_attn.k_proj.weight.double()
    layer = changed(fresh("dora", base)).base_model.model.model.layers[0].self_attn.k_proj
    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    m = layer.lora_magnitude_vector["default"].weight.double()
    direction = weight + 8 / 4 * b @ a
    expected = m[:, None] * direction / direction.norm(dim=1, keepdim=True)
    x = torch.randn(5, D)
    torch.testing.assert_close(layer(x).double(), x.double() @ expected.T, atol=1e-5, rtol=1e-5)


def test_ia3_multiplies_keys_values_and_the_inner_activations() -> None:
    base = llama()
    block = base.model.layers[0]
    keys, down = block.self_attn.k_proj.weight, block.mlp.down_proj.weight
    adapted = changed(fresh("ia3", base)).base_model.model.model.layers[0]
    x, inner = torch.randn(5, D), torch.randn(5, FF)
    factor = adapted.self_attn.k_proj.ia3_l["default"].flatten()
    torch.testing.assert_close(adapted.self_attn.k_proj(x), (x @ keys.T) * factor)
    factor = adapted.mlp.down_proj.ia3_l["default"].flatten()
    torch.testing.assert_close(adapted.mlp.down_proj(inner), (inner * factor) @ down.T)


def test_a_bottleneck_follows_its_equation_and_stands_before_the_residual() -> None:
    plain, adapted = llama(), changed(fresh("bottleneck", llama()))
    block, place = plain.model.layers[0], adapted.model.layers[0]

    def change(layer: Any, h: torch.Tensor) -> torch.Tensor:  # by hand, in float64
        down, up = layer.bottleneck.down, layer.bottleneck.up
        inner = h.double() @ down.weight.double().T + down.bias.double()
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        return h + (inner @ up.weight.double().T + up.bias.double()).float()

    h = torch.randn(1, 5, D)
    turned = plain.model.rotary_emb(h, position_ids=torch.arange(5)[None])
    with torch.no_grad():
        attended, _ = block.self_attn(block.input_layernorm(h), position_embeddings=turned, attention_mask=None)
        middle = h + change(place.self_attn, attended)
        expected = middle + change(place.mlp, block.mlp(block.post_attention_layernorm(middle)))
        got = place(h, position_embeddings=turned, attention_mask=None)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


FAMILIES = {
    "gpt2": GPT2Config(vocab_size=64, n_embd=D, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0),
    "gpt_neox": GPTNeoXConfig(**SMALL, intermediate_size=FF),
    "mixtral": MixtralConfig(**SMALL, intermediate_size=FF, num_key_value_heads=KV, num_local_experts=2),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_bottlenecks_find_the_sublayers_of_other_families(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    before = logits(model)
    adapted = bottleneck.add(model, width=3, seed=0).eval()
    assert torch.equal(logits(adapted), before)
    assert sum(isinstance(module, bottleneck.Bottleneck) for module in adapted.modules()) == 2 * 2
    assert not torch.allclose(logits(changed(adapted)), before, atol=1e-2)


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(vocab_size=64, hidden_size=D, num_hidden_layers=2, state_size=4),
        OPTConfig(**SMALL, ffn_dim=FF, word_embed_proj_dim=D),
    ],
    ids=["mamba", "opt"],
)
def test_a_model_without_such_sublayers_is_refused(config: Any) -> None:
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=r"find no attention .* and feed-forward .* in each of its 2 blocks"):
        bottleneck.add(model, width=3, seed=0)
    assert all(parameter.requires_grad for parameter in model.parameters())  # untouched


def test_ia3_of_an_unknown_architecture_is_refused() -> None:
    from transformers import Olmo2Config

    model = AutoModelForCausalLM.from_config(Olmo2Config(**SMALL, intermediate_size=FF, pad_token_id=0))
    with pytest.raises(ModelError, match="does not know which layers of Olmo2ForCausalLM"):
        add_ia3(model, seed=0)


def test_the_seed_decides_and_the_callers_stream_is_untouched() -> None:
    def first(seed: int) -> torch.Tensor:
        return next(p.detach() for n, p in bottleneck.add(llama(), width=3, seed=seed).named_parameters() if "down" in n)

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    torch.manual_seed(99)
    model = llama()
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    bottleneck.add(model, width=3, seed=5)
    assert torch.equal(torch.rand(3), expected)


def test_a_bottleneck_cannot_be_merged_nor_put_on_another_model(tmp_path: Path) -> None:
    adapted = fresh("bottleneck", llama())
    with pytest.raises(ModelError, match="bottleneck adapter is no change of the base's weights"):
        merge(adapted)
    save_adapter(adapted, tmp_path, "base")
    with pytest.raises(ModelError, match="does not fit its base model"):
        attach(llama(hidden_size=16), tmp_path)
    with pytest.raises(ModelError, match="width of at least 1"):
        bottleneck.add(llama(), width=0, seed=0)
    (tmp_path / bottleneck.CONFIG).write_text('{"version": 2}')
    with pytest.raises(ModelError, match="not a bottleneck adapter that this version knows"):
        attach(llama(), tmp_path)
    (tmp_path / bottleneck.CONFIG).write_text('{"version": 1, "activation": "gelu", "width": 6}')
    (tmp_path / "bottleneck.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be read"):
        attach(llama(), tmp_path)


def test_its_file_holds_the_bottlenecks_and_nothing_else(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    save_adapter(fresh("bottleneck", llama()), tmp_path, "base")
    saved = load_file(tmp_path / "bottleneck.safetensors")
    assert len(saved) == LAYERS * 2 * 4
    assert sum(t.numel() for t in saved.values()) == LAYERS * COUNTS["bottleneck"]
