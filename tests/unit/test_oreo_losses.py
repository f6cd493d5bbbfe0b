"""OREO's losses: zero at the optimum of a decision tree that is solved by hand, and gradients in closed form."""

import itertools
import math
from functools import cache

import pytest
import torch

from posttrain.losses.oreo import policy_loss, to_go, value_loss

BETA = 0.4
ACTIONS = 3
DEPTHS = {(0, 0): 2}  # this branch ends earlier: responses differ in length


def leaves():
    """Every complete response of the tree."""
    for first, second in itertools.product(range(ACTIONS), repeat=2):
        if (first, second) in DEPTHS:
            yield (first, second)
        else:
            yield from ((first, second, third) for third in range(ACTIONS))


def reward(leaf):
    return ((2 * leaf[0] + 5 * leaf[1] + 3 * sum(leaf[2:])) % 7) / 6


@cache
def start(state):
    """The reference policy of a state: log-probabilities, far from uniform."""
    logits = [2 * math.sin(3 * sum(state) + 5 * len(state) + action) for action in range(ACTIONS)]
    return torch.tensor(logits, dtype=torch.double).log_softmax(0)


def children(state):
    return [(*state, action) for action in range(ACTIONS)]


@cache
def soft_value(state):
    """V*(s) = β log Σ_a π_ref(a|s) exp(V*(s, a) / β), from the leaves up."""
    if state in set(leaves()):
        return reward(state)
    of = torch.tensor([soft_value(child) for child in children(state)], dtype=torch.double)
    return float(BETA * (start(state) + of / BETA).logsumexp(0))


def optimal(state):
    """π*(a|s) = π_ref(a|s) exp((V*(s, a) − V*(s)) / β)."""
    of = torch.tensor([soft_value(child) for child in children(state)], dtype=torch.double)
    return start(state) + (of - soft_value(state)) / BETA


def laid_out(policy, value, cut):
    """All responses end to end: values of the states, log-ratios of the actions between them, rewards, owners.

    `cut` tells at which depths states stand.
    """
    values, ratios, rewards, owners = [], [], [], []
    for owner, leaf in enumerate(leaves()):
        for depth in range(len(leaf)):
            state = leaf[:depth]
            ratio = policy(state)[leaf[depth]] - start(state)[leaf[depth]]
            if depth in cut:
                values.append(value(state)), ratios.append(ratio), rewards.append(reward(leaf)), owners.append(owner)
            else:
                ratios[-1] = ratios[-1] + ratio
    stacked = [torch.stack([torch.as_tensor(x, dtype=torch.double) for x in some]) for some in (values, ratios, rewards)]
    return *stacked, torch.tensor(owners)


@pytest.mark.parametrize("cut", [{0, 1, 2}, {0, 2}, {0}], ids=["token", "step", "response"])
def test_both_are_zero_at_the_optimum_and_nowhere_near_it(cut):
    def losses(policy, value):
        values, ratios, rewards, owners = laid_out(policy, value, cut)
        togo = to_go(ratios, owners, int(owners.max()) + 1)
        return (
            value_loss(values, togo, rewards, beta=BETA),
            policy_loss(values, ratios, togo, rewards, beta=BETA),
        )

    assert sum(optimal(()).exp()) == pytest.approx(1)
    for found in losses(optimal, soft_value):
        assert found.abs().max() < 1e-20
    for found in losses(start, soft_value):
        assert found.max() > 1e-2
    for found in losses(optimal, lambda state: soft_value(state) + 0.1):
        torch.testing.assert_close(found, torch.full_like(found, 0.01))


def test_descent_finds_the_optimum():
    states = sorted({leaf[:depth] for leaf in leaves() for depth in range(len(leaf))})
    steps = [(i, leaf, depth) for i, leaf in enumerate(leaves()) for depth in range(len(leaf))]
    at = torch.tensor([states.index(leaf[:depth]) for _, leaf, depth in steps])
    action = torch.tensor([leaf[depth] for _, leaf, depth in steps])
    owners = torch.tensor([i for i, _, _ in steps])
    rewards = torch.tensor([reward(leaf) for _, leaf, _ in steps], dtype=torch.double)
    reference = torch.stack([start(state) for state in states])
    logits = reference.clone().requires_grad_()
    value = torch.zeros(len(states), dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.Adam([logits, value], lr=0.1)
    for _ in range(150):
        ratios = (logits.log_softmax(1) - reference)[at, action]
        togo = to_go(ratios, owners, int(owners.max()) + 1)
        both = value_loss(value[at], togo, rewards, beta=BETA) + policy_loss(value[at], ratios, togo, rewards, beta=BETA)
        optimiser.zero_grad()
        both.mean().backward()
        optimiser.step()
    expected = torch.stack([optimal(state) for state in states])
    torch.testing.assert_close(logits.detach().log_softmax(1), expected, rtol=0, atol=5e-3)
    assert value.tolist() == pytest.approx([soft_value(state) for state in states], abs=5e-3)


def test_gradients_in_closed_form_and_the_naive_form_s_value():
    owners = torch.tensor([0, 0, 0, 1, 1])
    values = torch.tensor([0.3, -0.2, 0.5, 0.1, 0.9], dtype=torch.double, requires_grad=True)
    ratios = torch.tensor([0.7, -1.1, 0.2, 2.0, -0.4], dtype=torch.double, requires_grad=True)
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.double)
    togo = to_go(ratios, owners, 2)
    assert togo.tolist() == pytest.approx([-0.2, -0.9, 0.2, 1.6, -0.4])
    residuals = [v + BETA * t - r for v, t, r in zip(values.tolist(), togo.tolist(), rewards.tolist(), strict=True)]
    critic = value_loss(values, togo, rewards, beta=BETA)
    actor = policy_loss(values, ratios, togo, rewards, beta=BETA)
    assert critic.tolist() == pytest.approx([d * d for d in residuals])
    assert actor.tolist() == pytest.approx(critic.tolist())
    by_value, none = torch.autograd.grad(critic.sum(), [values, ratios], allow_unused=True)
    assert none is None
    assert by_value.tolist() == pytest.approx([2 * d for d in residuals])
    none, by_ratio = torch.autograd.grad(actor.sum(), [values, ratios], allow_unused=True)
    assert none is None
    assert by_ratio.tolist() == pytest.approx([2 * BETA * d for d in residuals])
    # without stopping: the same value, but every action answers for all states before it
    future = torch.stack([ratios[i:3].sum() if i < 3 else ratios[i:].sum() for i in range(5)])
    naive = (values + BETA * future - rewards).square()
    assert naive.tolist() == pytest.approx(actor.tolist())
    (slopes,) = torch.autograd.grad(naive.sum(), ratios)
    before = [sum(residuals[j] for j in range(i + 1) if owners[j] == owners[i]) for i in range(5)]
    assert slopes.tolist() == pytest.approx([2 * BETA * d for d in before])


def test_what_is_to_go_does_not_depend_on_what_else_is_there():
    torch.manual_seed(0)
    lengths = [1, 400, 3, 50]
    parts = [1e3 * torch.randn(n) for n in lengths]  # float32: sums of others would cost digits
    owners = torch.repeat_interleave(torch.tensor(lengths))
    together = to_go(torch.cat(parts), owners, 4).split(lengths)
    for part, found in zip(parts, together, strict=True):
        expected = part.double().flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="do not match owners"):
        to_go(torch.ones(2), torch.zeros(3, dtype=torch.long), 1)
