"""Norms and gated layers that keep less: the same values bit for bit, the same gradients, and half the memory."""

import copy

import pytest
import torch
from torch.nn.functional import silu
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)  # fmt: skip

from posttrain.models.lean import keep_less, rms_norm, swiglu

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IDS = torch.arange(3, 23)[None]
# Of two layers: norms before attention, before the MLP, and the last one; Qwen3 has two in each attention, too.
CHANGED = {
    "llama": (LlamaConfig, LlamaForCausalLM, 7), "mistral": (MistralConfig, MistralForCausalLM, 7),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, 7), "qwen3": (Qwen3Config, Qwen3ForCausalLM, 11),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, 0),  # (1 + w) · x, gelu
    "phi3": (Phi3Config, Phi3ForCausalLM, 5),  # gate and up in one matrix: its norms alone
}  # fmt: skip


def model_of(name, dtype=torch.float32):
    config, kind, _ = CHANGED[name]
    torch.manual_seed(0)
    model = kind(config(**SIZES)).to(dtype)
    with torch.no_grad():
        for module_name, parameter in model.named_parameters():
            if "norm" in module_name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def grads(model):
    logits = model(input_ids=IDS).logits
    logits.float().log_softmax(-1)[0, :-1].gather(1, IDS[0, 1:, None]).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CHANGED)
def test_values_are_the_same_bit_for_bit_and_gradients_up_to_rounding(name, dtype):
    plain, lean = model_of(name, dtype), model_of(name, dtype)
    assert keep_less(lean) == CHANGED[name][2]
    assert keep_less(lean) == 0, "twice is once"
    (expected, their_grads), (found, our_grads) = grads(plain), grads(lean)
    assert torch.equal(found, expected)
    with torch.no_grad():
        assert torch.equal(lean(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    for key, theirs in their_grads.items():
        error = (our_grads[key] - theirs).float().norm() / theirs.float().norm().clamp_min(1e-6)
        assert error < (1e-5 if dtype == torch.float32 else 3e-2), key


def test_gradients_are_those_of_the_formulas_in_float64():
    generator = torch.Generator().manual_seed(1)
    x, w, gate, up, dy = (torch.randn(*s, generator=generator) for s in ((5, 8), (8,), (5, 8), (5, 8), (5, 8)))
    wide = [t.double().requires_grad_() for t in (x, w, gate, up)]
    exact = (wide[1] * wide[0] / (wide[0].pow(2).mean(-1, keepdim=True) + 1e-2).sqrt() * dy).sum()
    exact = exact + (wide[2] * torch.sigmoid(wide[2]) * wide[3] * dy).sum()
    exact.backward()
    own = [t.requires_grad_() for t in (x, w, gate, up)]
    ((rms_norm(x, w, 1e-2) * dy).sum() + (swiglu(gate, up) * dy).sum()).backward()
    for ours, theirs in zip(own, wide, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)


def test_a_frozen_weight_or_input_gets_no_gradient():
    x, w = torch.randn(3, 8, requires_grad=True), torch.ones(8)
    rms_norm(x, w, 1e-6).sum().backward()
    assert x.grad is not None
    assert w.grad is None
    x, w = torch.randn(3, 8), torch.ones(8, requires_grad=True)
    rms_norm(x, w, 1e-6).sum().backward()
    assert w.grad is not None


def test_half_of_what_elementwise_operations_keep_is_no_longer_kept():
    def kept(model):
        seen = {}
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def note(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(input_ids=IDS, use_cache=False, logits_to_keep=1)
        return sum(size for size, _ in seen.values())

    lean = model_of("llama", torch.bfloat16)
    keep_less(lean)
    plain = kept(model_of("llama", torch.bfloat16))
    gate, state = 2 * 20 * 48, 2 * 20 * 32  # bytes of one activation of the gated layer, and of one hidden state
    assert plain - kept(lean) >= 2 * gate + 5 * state


def test_a_copy_of_the_model_has_forwards_of_its_own():
    model = model_of("llama")
    keep_less(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(grads(copied)[0], grads(model_of("llama"))[0])
    assert all(g is not None for g in grads(copied)[1].values())


class Shifted(torch.nn.Module):
    """What transformers names like Llama's norm and computes otherwise: at weights of 1 nobody would see it."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x):
        return (2 - self.weight) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class ShiftedRMSNorm(Shifted):
    pass


class Gated(torch.nn.Module):
    def __init__(self, act):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (torch.nn.Linear(8, 8) for _ in range(3))
        self.act = act

    def forward(self, x):
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


def test_what_computes_something_else_is_left_alone():
    assert keep_less(ShiftedRMSNorm()) == 0
    assert keep_less(Gated(torch.nn.functional.gelu)) == 0
    assert keep_less(Gated(silu)) == 1


class GatedRMSNorm(torch.nn.Module):
    """Llama's norm, unless it is given a gate."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x, gate=None):
        normed = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
        return normed if gate is None else normed * silu(gate)


def test_a_module_that_is_given_more_than_its_input_computes_by_its_own_code():
    norm, x, gate = GatedRMSNorm(), torch.randn(3, 8, requires_grad=True), torch.randn(3, 8)
    expected = [norm(x, gate), norm(x, gate=gate)]
    assert keep_less(norm) == 1
    assert torch.equal(norm(x, gate), expected[0])
    assert torch.equal(norm(x, gate=gate), expected[1])
    assert not torch.equal(norm(x), expected[0])


def test_a_dropout_inside_is_no_reason_to_leave_a_layer_alone_and_is_still_drawn():
    layer = Gated(silu)
    layer.down_proj = torch.nn.Sequential(torch.nn.Dropout(0.5), layer.down_proj)
    layer.train()
    assert keep_less(layer) == 1
    assert layer.training
    x = torch.randn(4, 8)
    assert not torch.equal(layer(x), layer(x))


def test_olmo_rounds_after_the_weight_and_keeps_its_own_norm_in_bfloat16():
    model = Olmo2ForCausalLM(Olmo2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"})).to(torch.bfloat16)
    assert keep_less(model) == 2, "its gated layers alone"
