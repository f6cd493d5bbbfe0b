"""The training forward against transformers' own logits, and the packed, prefix-shared layout against plain rows."""

import pytest
import torch
from tiny_models import llama, model
from transformers import (
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen3Config,
)

from posttrain.core.errors import DataError, ModelError
from posttrain.data.masks import Encoded
from posttrain.models.adapters import add_lora
from posttrain.models.forward import Forward, collate
from posttrain.models.sharing import pack, shared_prefix

torch.set_num_threads(1)

SIZES = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 257, "pad_token_id": 257,
}  # fmt: skip
GPT2 = {
    "vocab_size": 258,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 257,
}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
CONFIGS = {
    "llama": llama(),
    "llama_untied": llama(tie_word_embeddings=False),
    "mistral_window": MistralConfig(**SIZES, sliding_window=6),
    "gemma2_caps_window": Gemma2Config(
        **SIZES,
        head_dim=8,
        sliding_window=6,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
    ),
    "gemma3_window": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=6, query_pre_attn_scalar=16),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "phi3": Phi3Config(**SIZES),
    "olmo2": Olmo2Config(**SIZES),
    "cohere_scaled_logits": CohereConfig(**SIZES, logit_scale=0.3),
    "granite_scaled_logits": GraniteConfig(**SIZES, logits_scaling=4.0, attention_multiplier=0.2),
    "gpt2": GPT2Config(**GPT2, **NO_DROPOUT),
    "mamba": MambaConfig(
        vocab_size=258, hidden_size=32, state_size=4, num_hidden_layers=2, eos_token_id=257, pad_token_id=257
    ),
}
PACKED = set(CONFIGS) - {"mamba"}


def sequence(prefix: int, own: int, kind: int, trained_from: int | None = None) -> Encoded:
    ids = [3 + (7 * i) % 40 for i in range(prefix)] + [60 + 10 * kind + i % 10 for i in range(own)]
    start = prefix if trained_from is None else trained_from
    return Encoded(ids, [i >= start for i in range(len(ids))])


# a pair, a group of three of which one ends inside the prefix, single sequences; some train tokens of the shared part too
GROUPS = [
    [sequence(9, 5, 0), sequence(9, 3, 1)],
    [sequence(6, 4, 2, trained_from=3), sequence(6, 0, 0, trained_from=2), sequence(6, 7, 3)],
    [sequence(4, 8, 4)],
    [sequence(12, 1, 5)],
]
FLAT = [s for group in GROUPS for s in group]


def values_and_gradients(forward, batch):
    forward.zero_grad()
    logps = forward(batch)
    (logps * torch.linspace(-1, 2, len(logps), dtype=logps.dtype)).sum().backward()
    return logps.detach(), {name: p.grad for name, p in forward.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_log_softmax_of_the_models_own_logits(name):
    built = model(CONFIGS[name]).eval()
    forward = Forward(built)
    expected = []
    for s in FLAT:
        logps = built(torch.tensor([s.ids])).logits[0].double().log_softmax(-1)
        expected += [logps[i - 1, s.ids[i]] for i in range(len(s.ids)) if s.mask[i]]
    for batch in (forward.batch(GROUPS), collate(FLAT)):
        torch.testing.assert_close(forward(batch).double(), torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_and_prefix_shared_equals_plain_in_value_and_gradient(name):
    built = model(CONFIGS[name])
    forward = Forward(built)
    assert forward.packs == (name in PACKED)
    if not forward.packs:
        assert forward.batch(GROUPS).layout is None
        return
    packed, plain = pack(GROUPS), collate(FLAT)
    assert packed.tokens == 9 + 5 + 3 + 6 + 4 + 7 + 12 + 13  # each prefix once, no padding
    assert plain.tokens == sum(len(s.ids) for s in FLAT)
    torch.testing.assert_close(packed.owner_N, plain.owner_N)
    torch.testing.assert_close(packed.targets_N, plain.targets_N)
    values, gradients = values_and_gradients(forward, packed)
    plain_values, plain_gradients = values_and_gradients(forward, plain)
    torch.testing.assert_close(values, plain_values, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == plain_gradients.keys()
    for parameter, gradient in gradients.items():
        scale = max(1.0, float(plain_gradients[parameter].abs().max()))
        torch.testing.assert_close(gradient / scale, plain_gradients[parameter] / scale, rtol=1e-3, atol=2e-5, msg=parameter)


def test_packed_equals_plain_in_float64():
    # GPT-2 computes nothing in float32 on the way (Llama's norms do), so the layouts agree to float64's rounding
    forward = Forward(model(CONFIGS["gpt2"]).double())
    values, gradients = values_and_gradients(forward, pack(GROUPS))
    plain_values, plain_gradients = values_and_gradients(forward, collate(FLAT))
    torch.testing.assert_close(values, plain_values, rtol=1e-12, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", "mistral_window"])
def test_blocks_of_queries_agree_however_large_they_are(name, monkeypatch):
    forward = Forward(model(CONFIGS[name]))
    values, gradients = values_and_gradients(forward, pack(GROUPS))

    def agrees() -> None:
        others, other_gradients = values_and_gradients(forward, pack(GROUPS))
        torch.testing.assert_close(values, others, rtol=1e-4, atol=1e-4)
        for parameter, gradient in gradients.items():
            torch.testing.assert_close(gradient, other_gradients[parameter], rtol=1e-3, atol=1e-4)

    monkeypatch.setattr("posttrain.models.blocked_attention.ROWS", 4)  # several blocks a branch, several branches a block
    agrees()
    monkeypatch.setattr("posttrain.models.sharing.LONG", 0)  # probabilities are computed again
    agrees()


def test_a_branch_does_not_see_its_sibling():
    forward = Forward(model())
    one, other = sequence(9, 5, 0), sequence(9, 3, 1)
    alone = forward(pack([[one]]))
    for sibling in (other, sequence(9, 6, 4)):
        beside = forward(pack([[sibling, one]]))[-len(alone) :]
        torch.testing.assert_close(beside, alone, rtol=1e-5, atol=1e-5)


def test_untrained_tokens_get_no_gradient_through_the_loss():
    # the last, untrained tokens of a row have no influence at all; masked ones are never targets
    forward = Forward(model())
    ids = [5, 6, 7, 8, 9, 10]
    short, long = Encoded(ids, [False, False, True, True, False, False]), Encoded(ids[:4], [False, False, True, True])
    a, gradients = values_and_gradients(forward, forward.batch([[short]]))
    b, expected = values_and_gradients(forward, forward.batch([[long]]))
    torch.testing.assert_close(a, b)
    for name in gradients:
        torch.testing.assert_close(gradients[name], expected[name], rtol=1e-4, atol=1e-6)


def test_weighted_forward_equals_weighted_sum_of_logps():
    forward = Forward(model())
    batch = forward.batch(GROUPS)
    weights = torch.linspace(-1, 1, len(batch.targets_N))
    total, logps = forward(batch, weights)
    torch.testing.assert_close(total, (forward(batch) * weights).sum())
    assert not logps.requires_grad


def test_an_adapter_on_the_head_is_honoured():
    built = add_lora(model(llama(tie_word_embeddings=False)), rank=2, alpha=4, targets=["lm_head", "q_proj"], seed=0)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    forward = Forward(built)
    assert forward.head() is None
    own = built(torch.tensor([FLAT[0].ids])).logits[0].log_softmax(-1)
    expected = [own[i - 1, FLAT[0].ids[i]] for i in range(len(FLAT[0].ids)) if FLAT[0].mask[i]]
    torch.testing.assert_close(forward(forward.batch([FLAT[:1]])), torch.stack(expected), rtol=1e-4, atol=1e-4)
    _, gradients = values_and_gradients(forward, forward.batch(GROUPS))
    assert any("lm_head" in name and "lora_A" in name and g.abs().sum() > 0 for name, g in gradients.items())


def test_a_head_that_does_more_than_the_configuration_says_is_refused():
    built = model()
    built.lm_head.register_forward_hook(lambda _m, _i, out: out * 3)
    with pytest.raises(ModelError, match="does more to its logits"):
        Forward(built)


def test_the_models_own_attention_is_back_after_a_packed_forward():
    built = model()
    before = built.config._attn_implementation
    forward = Forward(built)
    forward(forward.batch(GROUPS))
    assert built.config._attn_implementation == before


def test_shared_prefix_by_hand():
    assert shared_prefix([Encoded([1, 2, 3, 4], [True] * 4), Encoded([1, 2, 5], [True] * 3)]) == 2
    assert shared_prefix([Encoded([1, 2], [True] * 2), Encoded([1, 2, 5], [True] * 3)]) == 2
    assert shared_prefix([Encoded([9], [True]), Encoded([1], [True])]) == 0
    assert shared_prefix([Encoded([9, 8], [True] * 2)]) == 0


@pytest.mark.parametrize(("ids", "mask", "message"), [([1, 2], [True, True], "first token"), ([1, 2], [False], "mask of 1")])
def test_masks_that_cannot_be_trained_on_are_refused(ids, mask, message):
    with pytest.raises(DataError, match=message):
        collate([Encoded(ids, mask)])
