"""Divergences against brute force and closed forms; the chunked sum against autograd on the full logits."""

import math

import pytest
import torch

from posttrain.losses.divergence import forward_kl, jensen_shannon, log_distributions, reverse_kl
from posttrain.losses.from_logits import weighted_logit_sum, weighted_logit_sum_of_module
from posttrain.losses.logprobs import Head, weighted_logprob_sum

N, V, D = 6, 7, 5


def logits(seed, scale=2.0):
    return scale * torch.randn(N, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def js(beta):
    return lambda teacher, student: jensen_shannon(teacher, student, beta=beta)


NAMED = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "js_0.1": js(0.1), "js_0.5": js(0.5), "js_0.9": js(0.9)}


def brute(name, p, q):
    """The definition, outcome by outcome, in plain Python."""

    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    beta = float(name.removeprefix("js_"))
    mixed = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
    return beta * kl(p, mixed) + (1 - beta) * kl(q, mixed)


def softmax(row, temperature):
    top = max(row)
    powers = [math.exp((x - top) / temperature) for x in row]
    return [x / sum(powers) for x in powers]


def merged(p, by, k):
    order = sorted(range(V), key=lambda v: -by[v])[:k]
    return [p[v] for v in order] + [sum(x for v, x in enumerate(p) if v not in order)]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, V - 1, V, 100])
def test_equals_the_definition_in_plain_python(name, temperature, top_k):
    teacher, student = logits(0), logits(1)
    found = NAMED[name](*log_distributions(teacher, student, temperature=temperature, top_k=top_k))
    assert found.shape == (N,)
    for n in range(N):
        by = teacher[n].tolist()
        p, q = softmax(by, temperature), softmax(student[n].tolist(), temperature)
        if 0 < top_k < V:
            p, q = merged(p, by, top_k), merged(q, by, top_k)
        assert found[n].item() == pytest.approx(brute(name, p, q), rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_gradients_in_closed_form(temperature):
    teacher, student = logits(0), logits(1).requires_grad_()
    p, q = ((z.detach() / temperature).softmax(-1) for z in (teacher, student))
    log_ratio = q.log() - p.log()
    m = 0.3 * p + 0.7 * q
    js_slope = 0.7 * (q.log() - m.log())  # ∂/∂q of JSD(0.3), up to a constant that the softmax takes away
    expected = {
        "forward_kl": (q - p) / temperature,
        "reverse_kl": q * (log_ratio - (q * log_ratio).sum(-1, keepdim=True)) / temperature,
        "js": q * (js_slope - (q * js_slope).sum(-1, keepdim=True)) / temperature,
    }
    for name, divergence in {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "js": js(0.3)}.items():
        value = divergence(*log_distributions(teacher, student, temperature=temperature)).sum()
        (found,) = torch.autograd.grad(value, student)
        torch.testing.assert_close(found, expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("top_k", [0, 2])
def test_gradcheck(name, top_k):
    teacher, student = logits(0), logits(1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: NAMED[name](*log_distributions(teacher, z, temperature=1.7, top_k=top_k)), student
    )


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("top_k", [0, 2])
def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient(name, top_k):
    student = logits(0).requires_grad_()
    value = NAMED[name](*log_distributions(logits(0), student, temperature=2.0, top_k=top_k))
    (gradient,) = torch.autograd.grad(value.sum(), student)
    torch.testing.assert_close(value.detach(), torch.zeros(N, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(gradient, torch.zeros(N, V, dtype=torch.float64), rtol=0, atol=1e-14)


def test_jensen_shannon_tends_to_the_two_kl_divergences():
    logps = log_distributions(logits(0), logits(1))
    for small in (1e-3, 1e-5):
        torch.testing.assert_close(jensen_shannon(*logps, beta=small) / small, forward_kl(*logps), rtol=200 * small, atol=0)
        torch.testing.assert_close(
            jensen_shannon(*logps, beta=1 - small) / small, reverse_kl(*logps), rtol=200 * small, atol=0
        )


def test_jensen_shannon_is_bounded_and_symmetric_in_the_middle():
    far = log_distributions(logits(0, 60.0), logits(1, 60.0))
    for beta in (0.2, 0.5, 0.8):
        bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
        assert (jensen_shannon(*far, beta=beta) <= bound + 1e-12).all()
        torch.testing.assert_close(jensen_shannon(*far, beta=beta), jensen_shannon(*far[::-1], beta=1 - beta))
    for beta in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            jensen_shannon(*far, beta=beta)


@pytest.mark.parametrize("name", NAMED)
def test_fewer_outcomes_never_make_a_divergence_larger(name):
    values = [NAMED[name](*log_distributions(logits(0), logits(1), top_k=k)) for k in range(1, V)]
    full = NAMED[name](*log_distributions(logits(0), logits(1)))
    for less, more in zip(values, [*values[1:], full], strict=True):
        assert (less <= more + 1e-12).all()
    torch.testing.assert_close(values[-1], full)  # the last "rest" is one token


def test_distributions_sum_to_one_and_wrong_input_is_refused():
    for k in (0, 1, 4):
        for logps in log_distributions(logits(0), logits(1), temperature=0.3, top_k=k):
            torch.testing.assert_close(logps.exp().sum(-1), torch.ones(N, dtype=torch.float64))
    with pytest.raises(ValueError, match="one shape"):
        log_distributions(logits(0), logits(1)[:, :-1])
    for wrong in ({"temperature": 0.0}, {"top_k": -1}):
        with pytest.raises(ValueError, match="must be positive"):
            log_distributions(logits(0), logits(1), **wrong)


# The chunked sum -----------------------------------------------------------------------------------------------------

HEADS = {
    "plain": {"scale": 1.0, "softcap": None},
    "granite": {"scale": 1 / 8.0, "softcap": None},
    "gemma2": {"scale": 1.0, "softcap": 3.0},
    "both": {"scale": 1.7, "softcap": 2.0},
}


def tensors(bias=True):
    g = torch.Generator().manual_seed(3)
    made = [torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_() for shape in ((N, D), (V, D), (V,))]
    return made[0], made[1], made[2] if bias else None


def full_logits(hidden, weight, bias, scale, softcap):
    z = (hidden @ weight.T + (0 if bias is None else bias)) * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def values_of(teacher, targets):
    def values(at, z):
        divergence = forward_kl(*log_distributions(teacher[at], z, temperature=2.0))
        entropy = -z.log_softmax(-1).gather(1, targets[at, None])[:, 0]
        return torch.stack([divergence, entropy], 1)

    return values


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_chunks_equal_autograd_on_the_full_logits(name, chunk, bias):
    hidden, weight, b = tensors(bias)
    values = values_of(logits(0), torch.arange(N) % V)
    shares = torch.tensor([0.7, 0.3], dtype=torch.float64) / N
    leaves = [t for t in (hidden, weight, b) if t is not None]
    expected = values(slice(None), full_logits(hidden, weight, b, **HEADS[name]))
    wanted = torch.autograd.grad((expected * shares).sum(), leaves)
    total, found = weighted_logit_sum(hidden, values, shares, Head(weight_VD=weight, bias_V=b, **HEADS[name]), chunk=chunk)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)
    assert not found.requires_grad
    assert total.item() == pytest.approx((expected * shares).sum().item(), rel=1e-12)
    for got, want in zip(torch.autograd.grad(3 * total, leaves), wanted, strict=True):
        torch.testing.assert_close(got, 3 * want, rtol=1e-11, atol=1e-13)


def test_the_heads_gradient_goes_into_the_sink():
    hidden, weight, _ = tensors(bias=False)
    values, shares = values_of(logits(0), torch.zeros(N, dtype=torch.long)), torch.tensor([1.0, 0.5])
    total, _ = weighted_logit_sum(hidden, values, shares, Head(weight_VD=weight), chunk=2)
    hidden_grad, weight_grad = torch.autograd.grad(total, [hidden, weight])
    sink = torch.ones_like(weight)
    total, _ = weighted_logit_sum(hidden, values, shares, Head(weight_VD=weight, sink_VD=sink), chunk=2)
    total.backward()
    torch.testing.assert_close(sink - 1, weight_grad)
    torch.testing.assert_close(hidden.grad, hidden_grad)
    assert weight.grad is None


def test_a_module_as_head_gives_the_same():
    hidden, weight, _ = tensors(bias=False)
    module = torch.nn.Linear(D, V, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(weight)
    values, shares = values_of(logits(0), torch.zeros(N, dtype=torch.long)), torch.tensor([1.0, 0.5])
    expected, values_NC = weighted_logit_sum(hidden, values, shares, Head(weight_VD=weight, scale=0.5, softcap=2.0))
    total, found = weighted_logit_sum_of_module(hidden, values, shares, module, scale=0.5, softcap=2.0, chunk=4)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(found, values_NC)
    want = torch.autograd.grad(expected, [hidden, weight])
    for a, b in zip(torch.autograd.grad(total, [hidden, module.weight]), want, strict=True):
        torch.testing.assert_close(a, b)


def test_cross_entropy_by_this_way_is_sfts():
    hidden, weight, b = tensors()
    targets, head = torch.arange(N) % V, Head(weight_VD=weight, bias_V=b)
    expected, _ = weighted_logprob_sum(hidden, targets, torch.full((N,), -1.0 / N, dtype=torch.float64), head)
    shares = torch.tensor([0.0, 1.0 / N], dtype=torch.float64)
    total, _ = weighted_logit_sum(hidden, values_of(logits(0), targets), shares, head)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    for got, want in zip(*(torch.autograd.grad(x, [hidden, weight, b]) for x in (total, expected)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


def test_nothing_of_vocabulary_times_tokens_survives_and_nothing_is_computed_for_nobody():
    hidden, weight, _ = tensors(bias=False)
    values, shares, sizes = values_of(logits(0), torch.zeros(N, dtype=torch.long)), torch.ones(2), []

    def watched(at, z):
        sizes.append((len(z), z.requires_grad))
        return values(at, z)

    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        weighted_logit_sum(hidden, watched, shares, Head(weight_VD=weight), chunk=4)
    assert (N, V) not in saved
    assert sizes == [(4, True), (2, True)]
    with torch.no_grad():
        weighted_logit_sum(hidden, watched, shares, Head(weight_VD=weight), chunk=4)
    assert sizes[2:] == [(4, False), (2, False)]


def test_bfloat16_is_worked_on_in_float32():
    hidden, weight, _ = (t if t is None else t.detach().bfloat16().requires_grad_() for t in tensors())
    total, found = weighted_logit_sum(
        hidden,
        values_of(logits(0).float(), torch.zeros(N, dtype=torch.long)),
        torch.ones(2),
        Head(weight_VD=weight),
        chunk=4,
    )
    assert found.dtype == torch.float32
    total.backward()
    assert weight.grad.dtype == torch.bfloat16
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    values = values_of(logits(0), torch.zeros(N, dtype=torch.long))
    values(slice(None), full_logits(*exact, None, 1.0, None)).sum().backward()
    torch.testing.assert_close(weight.grad.double(), exact[1].grad, rtol=0.03, atol=0.03)


def test_wrong_shapes_are_refused():
    hidden, weight, _ = tensors(bias=False)
    head = Head(weight_VD=weight)
    with pytest.raises(ValueError, match=r"\[N, D\] and \[C\]"):
        weighted_logit_sum(hidden, lambda at, z: z, torch.ones(2, 2), head)
    with pytest.raises(ValueError, match=r"\[N, D\] and \[V, D\]"):
        weighted_logit_sum(hidden[:, :-1], lambda at, z: z, torch.ones(2), head)
