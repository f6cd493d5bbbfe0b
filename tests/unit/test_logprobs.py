"""Chunked log-probabilities against log_softmax of the full logits, and numerical gradients."""

import math

import pytest
import torch

from posttrain.losses.logprobs import Head, token_logprobs, token_logprobs_of_module, weighted_logprob_sum

N, D, V = 7, 5, 11
HEADS = {
    "plain": {"scale": 1.0, "softcap": None},
    "cohere": {"scale": 0.0625, "softcap": None},
    "granite": {"scale": 1 / 8.0, "softcap": None},
    "gemma2": {"scale": 1.0, "softcap": 3.0},
    "both": {"scale": 1.7, "softcap": 2.0},
}


def tensors(dtype=torch.float64, bias=True):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    b = torch.randn(V, generator=g, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
    targets = torch.randint(V, (N,), generator=g)
    return hidden, weight, b, targets


def full(hidden, weight, bias, targets, scale, softcap):
    z = hidden @ weight.T
    z = z if bias is None else z + bias
    z = z * scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    return z.log_softmax(-1)[torch.arange(len(targets)), targets]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_full_log_softmax_in_value_and_every_gradient(name, chunk, bias):
    hidden, weight, b, targets = tensors(bias=bias)
    upstream = torch.linspace(-1, 2, N, dtype=torch.float64)
    leaves = [t for t in (hidden, weight, b) if t is not None]
    expected = full(hidden, weight, b, targets, **HEADS[name])
    wanted = torch.autograd.grad((expected * upstream).sum(), leaves)
    head = Head(weight_VD=weight, bias_V=b, **HEADS[name])

    logps = token_logprobs(hidden, targets, head, chunk=chunk)
    torch.testing.assert_close(logps, expected, rtol=1e-12, atol=1e-12)
    for got, want in zip(torch.autograd.grad((logps * upstream).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)

    total, values = weighted_logprob_sum(hidden, targets, upstream, head, chunk=chunk)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    assert not values.requires_grad
    for got, want in zip(torch.autograd.grad(3 * total, leaves), wanted, strict=True):
        torch.testing.assert_close(got, 3 * want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_gradcheck(name):
    hidden, weight, b, targets = tensors()

    def function(h, w, bias):
        return token_logprobs(h, targets, Head(weight_VD=w, bias_V=bias, **HEADS[name]), chunk=3)

    assert torch.autograd.gradcheck(function, (hidden, weight, b))


def test_two_tokens_by_hand():
    # logits (0, ln 3): probabilities 1/4 and 3/4
    head = Head(weight_VD=torch.tensor([[0.0], [math.log(3.0)]], dtype=torch.float64))
    logps = token_logprobs(torch.ones(2, 1, dtype=torch.float64), torch.tensor([0, 1]), head)
    torch.testing.assert_close(logps, torch.tensor([0.25, 0.75], dtype=torch.float64).log())


def test_module_head_is_called_with_its_own_gradient():
    hidden, weight, _, targets = tensors()
    module = torch.nn.Linear(D, V, bias=False).double()
    adapter = torch.nn.Linear(D, V, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(weight)
    logps = token_logprobs_of_module(hidden, targets, lambda h: module(h) + adapter(h), scale=0.5, softcap=2.0, chunk=3)
    expected = full(hidden, module.weight + adapter.weight, None, targets, 0.5, 2.0)
    torch.testing.assert_close(logps, expected)
    got = torch.autograd.grad(logps.sum(), [hidden, adapter.weight])
    want = torch.autograd.grad(expected.sum(), [hidden, adapter.weight])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16_values_and_weight_gradient_are_summed_in_float32():
    hidden, weight, _, targets = tensors(torch.bfloat16, bias=False)
    logps = token_logprobs(hidden, targets, Head(weight_VD=weight), chunk=2)
    assert logps.dtype == torch.float32
    logits = torch.nn.functional.linear(hidden, weight).float()
    torch.testing.assert_close(logps, logits.log_softmax(-1).gather(1, targets[:, None])[:, 0])
    logps.sum().backward()
    assert weight.grad.dtype == torch.bfloat16
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    full(exact[0], exact[1], None, targets, 1.0, None).sum().backward()
    torch.testing.assert_close(weight.grad.double(), exact[1].grad, rtol=0.02, atol=0.02)


def test_nothing_of_vocabulary_times_tokens_survives_the_forward_pass():
    saved = []
    hidden, weight, b, targets = tensors()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        token_logprobs(hidden, targets, Head(weight_VD=weight, bias_V=b), chunk=2)
    assert saved
    assert (N, V) not in saved
    assert (2, V) not in saved


def test_frozen_head_gets_no_gradient():
    hidden, weight, _, targets = tensors(bias=False)
    frozen = weight.detach()
    token_logprobs(hidden, targets, Head(weight_VD=frozen)).sum().backward()
    assert frozen.grad is None
    assert hidden.grad is not None


def test_wrong_shapes_are_refused():
    hidden, weight, _, targets = tensors()
    with pytest.raises(ValueError, match=r"must be \[N, D\]"):
        token_logprobs(hidden, targets[:-1], Head(weight_VD=weight))
    with pytest.raises(ValueError, match="do not match targets"):
        weighted_logprob_sum(hidden, targets, torch.ones(N - 1), Head(weight_VD=weight))
