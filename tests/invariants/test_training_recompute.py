"""Activation checkpointing changes memory, not gradients: packed, padded, with an adapter's dropout; float64."""

from dataclasses import replace

import pytest
import torch
from tiny_models import demonstrations, folder, llama, model, preferences, tokenizer
from training_runs import metrics, same, weights
from transformers import AutoModelForCausalLM, MambaConfig

from posttrain.core.errors import ConfigError
from posttrain.core.types import Checkpoint
from posttrain.finetuning.sft import Sft, encode_row
from posttrain.models.adapters import add_lora
from posttrain.models.forward import Forward
from posttrain.models.recompute import recompute_activations
from posttrain.preference.dpo import Dpo

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers


def gradients(net, packs: bool) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss, gradients, and how often a layer's forward ran."""
    module = Forward(net)
    calls = []
    layer = next(m for n, m in net.named_modules() if n.endswith("layers.1"))
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    assert module.packs
    module.packs = packs
    module.train()
    words = tokenizer()
    groups = [[encode_row(words, row, train="all", where="")] for row in demonstrations(4)]
    torch.manual_seed(5)  # for the adapter's dropout
    batch = module.batch(groups)
    loss, _ = module(batch, torch.linspace(-1, -0.1, len(batch.targets_N), dtype=torch.double))
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in net.named_parameters() if p.grad is not None}, len(calls)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("adapter", [False, True])
def test_gradients_are_equal_in_float64(packs, adapter):
    def net():
        built = model(llama(num_hidden_layers=3)).double()
        if not adapter:
            return built
        lora = add_lora(built, rank=4, alpha=8.0, dropout=0.3, seed=1)
        with torch.no_grad():
            for name, parameter in lora.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
        return lora

    plain, recomputed = net(), net()
    recompute_activations(recomputed)
    (a, expected, once), (b, found, twice) = gradients(plain, packs), gradients(recomputed, packs)
    assert (once, twice) == (1, 2)  # forward, and again in the backward pass
    assert a == b
    same(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", [Sft, Dpo])
def test_a_run_is_bit_for_bit_the_same_and_may_switch_while_it_is_stopped(method, tmp_path):
    start = Checkpoint(path=folder(tmp_path / "model"))
    data = demonstrations(9) if method is Sft else preferences(9)
    plain = method(lr=1e-2, batch_size=4, dtype="float32")
    recomputed = replace(plain, activation_checkpointing=True)
    a, b = plain(start, data, tmp_path / "a", seed=1), recomputed(start, data, tmp_path / "b", seed=1)
    same(weights(a), weights(b), rtol=0, atol=0)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert a.key == b.key


def test_an_architecture_that_cannot():
    net = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1))
    type(net).supports_gradient_checkpointing, before = False, type(net).supports_gradient_checkpointing
    try:
        with pytest.raises(ConfigError, match="cannot recompute its activations"):
            recompute_activations(net)
    finally:
        type(net).supports_gradient_checkpointing = before
