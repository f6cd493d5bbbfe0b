"""Gradients that are added where they are summed: the same as autograd's own, and none is left behind."""

import pytest
import torch
from torch import nn

from posttrain.losses.logprobs import Head, token_logprobs, weighted_logprob_sum
from posttrain.models.embedding import collected_embedding

N, D, V = 37, 12, 50


def setting(dtype=torch.float64):
    torch.manual_seed(0)
    hidden = torch.randn(N, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(0, V, (N,)), torch.rand(N, dtype=dtype)


def by_hand(hidden, weight, targets, weights, scale, softcap):
    z = hidden @ weight.T * scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    return (z.log_softmax(-1).gather(1, targets[:, None])[:, 0] * weights).sum()


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("known_weights", [True, False])
def test_the_head_adds_its_gradient_to_the_sink(monkeypatch, softcap, kept, known_weights):
    if not kept:
        monkeypatch.setattr("posttrain.losses.logprobs.KEPT", 0)
    hidden, weight, targets, weights = setting()
    (3 * by_hand(hidden, weight, targets, weights, 0.7, softcap)).backward()
    expected = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    before = torch.randn(V, D, dtype=torch.float64)
    sink = before.clone()
    head = Head(weight_VD=weight, scale=0.7, softcap=softcap, sink_VD=sink)
    if known_weights:
        total, _ = weighted_logprob_sum(hidden, targets, weights, head, chunk=10)
    else:
        total = (token_logprobs(hidden, targets, head, chunk=10) * weights).sum()
    assert torch.equal(sink, before)  # nothing before the backward pass
    (3 * total).backward()
    torch.testing.assert_close(hidden.grad, expected[0])
    torch.testing.assert_close(sink - before, expected[1])
    assert weight.grad is None


@pytest.mark.parametrize("padding", [None, 4])
def test_an_embedding_adds_only_its_rows(padding):
    torch.manual_seed(1)
    module = nn.Embedding(20, 6, padding_idx=padding).double()
    ids, factor = torch.tensor([[3, 4, 3], [7, 4, 0]]), torch.randn(2, 3, 6, dtype=torch.float64)
    (module(ids) * factor).sum().backward()
    expected, module.weight.grad = module.weight.grad, None
    sink = torch.ones(20, 6, dtype=torch.float64)
    with collected_embedding(module, lambda weight: sink):
        out = module(ids)
    (out * factor).sum().backward()
    torch.testing.assert_close(sink - 1, expected)
    assert module.weight.grad is None
    assert "forward" not in module.__dict__


def test_embeddings_that_do_more_and_frozen_weights_are_left_alone():
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 2 * super().forward(ids)

    frozen = nn.Embedding(5, 2)
    frozen.weight.requires_grad_(False)
    for module in (Scaled(5, 2), frozen, nn.Embedding(5, 2, max_norm=1.0)):
        with collected_embedding(module, lambda weight: torch.zeros_like(weight)):
            assert "forward" not in module.__dict__
    with collected_embedding(nn.Embedding(5, 2), lambda weight: None) as nothing:
        assert nothing is None
