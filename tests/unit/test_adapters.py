from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from posttrain.core.errors import ModelError, PosttrainError
from posttrain.models.adapters import add_lora, attach, base_of, is_adapter, merge, save_adapter

IDS = torch.tensor([[1, 5, 9, 2, 7]])


def llama(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def changed(model: Any, seed: int = 1) -> Any:
    """Give the adapters' B, zero at first, something to do."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).mul(0.3).to(parameter.dtype)
    return model


def test_begins_at_the_base_and_trains_only_the_adapters() -> None:
    before = logits(llama())
    adapted = add_lora(llama(), rank=4, alpha=8, dropout=0.0, seed=3).eval()
    assert torch.equal(logits(adapted), before)
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    # every linear layer but the head: 2 layers × 7 matrices × (A, B)
    assert len(trainable) == 2 * 7 * 2
    assert not any("lm_head" in name or "embed" in name for name in trainable)


def test_follows_its_equation() -> None:
    base = llama()
    layer = base.model.layers[0].self_attn.q_proj
    adapted = changed(add_lora(base, rank=4, alpha=8, dropout=0.0, targets=["q_proj"], seed=3)).eval()
    wrapped = adapted.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(5, 32)
    a, b = wrapped.lora_A["default"].weight, wrapped.lora_B["default"].weight
    torch.testing.assert_close(wrapped(x), x @ layer.weight.T + 8 / 4 * (x @ a.T) @ b.T)


def test_the_seed_decides_and_the_callers_stream_is_untouched() -> None:
    def first(seed: int) -> torch.Tensor:
        found = next(p for name, p in add_lora(llama(), rank=2, alpha=4, seed=seed).named_parameters() if "lora_A" in name)
        return found.detach()

    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    same = torch.equal(first(1), first(1)), torch.equal(first(1), first(2))
    torch.manual_seed(99)
    model = llama()
    torch.manual_seed(99)
    add_lora(model, rank=2, alpha=4, seed=7)
    assert torch.equal(torch.rand(3), expected)
    assert same == (True, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_take_the_models_type(dtype: torch.dtype) -> None:
    adapted = add_lora(llama().to(dtype), rank=2, alpha=4, seed=0)
    assert {parameter.dtype for parameter in adapted.parameters()} == {dtype}


def test_merged_says_what_the_adapted_model_says() -> None:
    adapted = changed(add_lora(llama(), rank=4, alpha=8, seed=3)).eval()
    said = logits(adapted)
    merged = merge(adapted)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits(merged), said, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(said, logits(llama()), atol=1e-2)


def test_a_small_change_arrives_in_merged_bfloat16_weights() -> None:
    """Rounded to the nearest, next to nothing of it would: the adapted model and the merged one would be two models."""
    model = llama().to(torch.bfloat16)
    before = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    adapted = add_lora(model, rank=4, alpha=8, seed=3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 1e-5)
    layer = adapted.base_model.model.model.layers[0].mlp.up_proj
    wanted = 2.0 * (layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()).detach()
    merged = merge(adapted)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    name = "model.layers.0.mlp.up_proj.weight"
    start, moved = before[name], dict(merged.named_parameters())[name].detach().float() - before[name]
    assert float((moved * wanted).sum() / wanted.square().sum()) == pytest.approx(1.0, abs=0.3)
    nearest = (start + wanted).bfloat16().float() - start
    assert float((nearest * wanted).sum() / wanted.square().sum()) < 0.3
    assert torch.equal(merged.model.embed_tokens.weight.float(), before["model.embed_tokens.weight"])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_saved_loads_with_plain_peft_and_with_ours(tmp_path: Path) -> None:
    from peft import PeftModel

    adapted = changed(add_lora(llama(), rank=4, alpha=8, seed=3)).eval()
    save_adapter(adapted, tmp_path / "adapter", "smollm2-135m")
    assert is_adapter(tmp_path / "adapter")
    assert not is_adapter(tmp_path)
    assert base_of(tmp_path / "adapter") == "smollm2-135m"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert torch.equal(logits(PeftModel.from_pretrained(llama(), tmp_path / "adapter").eval()), logits(adapted))
    again = attach(llama(), tmp_path / "adapter")
    assert torch.equal(logits(again.eval()), logits(adapted))
    assert any(parameter.requires_grad for parameter in again.parameters())


def test_notes_that_are_there_stay(tmp_path: Path) -> None:
    (tmp_path / "posttrain.json").write_text('{"method": "sft"}')
    save_adapter(add_lora(llama(), rank=2, alpha=4, seed=0), tmp_path, "base/folder")
    assert (tmp_path / "posttrain.json").read_text() == '{\n  "method": "sft",\n  "base": "base/folder"\n}\n'


def test_a_base_folder_beside_the_adapter_is_found(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "../base"}')
    assert Path(base_of(tmp_path / "adapter")).resolve() == tmp_path / "base"
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(PosttrainError, match="does not name its base model"):
        base_of(tmp_path / "adapter")


def test_transposed_layers_of_gpt2_merge_too() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    ).eval()
    adapted = changed(add_lora(model, rank=4, alpha=8, seed=3)).eval()
    said = logits(adapted)
    torch.testing.assert_close(logits(merge(adapted)), said, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["q_prj"]}, r"target 'q_prj' names no module of LlamaForCausalLM: choose from .*q_proj"),
        ({"rank": 0}, "rank >= 1"),
        ({"alpha": 0}, "alpha > 0"),
        ({"dropout": 1.0}, "dropout < 1"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        add_lora(llama(), **{"rank": 2, "alpha": 4, "seed": 0, **options})


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    save_adapter(add_lora(llama(), rank=2, alpha=4, seed=0), tmp_path, "base")
    other = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    )
    with pytest.raises(ModelError, match="does not fit its base model"):
        attach(other, tmp_path)
