"""Losses of reward models: values and gradients worked out by hand in float64, identities, planted utilities."""

import itertools
import math

import numpy as np
import pytest
import torch

from posttrain.losses.reward import bradley_terry, centring, plackett_luce, step_cross_entropy
from posttrain.stats.rewards import spearman

R = [0.3, -1.2, 2.0, 0.7]


def rewards():
    return torch.tensor(R, dtype=torch.double, requires_grad=True)


def sigma(x):
    return 1 / (1 + math.exp(-x))


def test_bradley_terry_is_the_formula_and_its_gradient():
    better, worse, gap = [2, 0, 0], [1, 1, 3], [0.0, 0.5, 0.25]
    r = rewards()
    losses = bradley_terry(r, torch.tensor(better), torch.tensor(worse), torch.tensor(gap, dtype=torch.double))
    z = [R[b] - R[w] - g for b, w, g in zip(better, worse, gap, strict=True)]
    assert losses.tolist() == pytest.approx([-math.log(sigma(value)) for value in z], abs=1e-12)
    losses.sum().backward()
    expected = [0.0] * 4
    for b, w, value in zip(better, worse, z, strict=True):
        expected[b] += sigma(value) - 1
        expected[w] += 1 - sigma(value)
    assert r.grad.tolist() == pytest.approx(expected, abs=1e-12)


def test_plackett_luce_is_the_probability_of_the_ranking():
    """Against the product of choices, and against the sum over all rankings, which is 1."""
    total = 0.0
    for order in itertools.permutations(range(4)):
        ranks = [order.index(i) + 1 for i in range(4)]
        chance = 1.0
        for at, i in enumerate(order):
            chance *= math.exp(R[i]) / sum(math.exp(R[j]) for j in order[at:])
        losses = plackett_luce(torch.tensor(R, dtype=torch.double), torch.tensor(ranks))
        assert len(losses) == 3  # of the last reply there is no choice
        assert float(losses.sum()) == pytest.approx(-math.log(chance), abs=1e-12)
        total += math.exp(-float(losses.sum()))
    assert total == pytest.approx(1)


def test_plackett_luce_with_ties_by_hand_and_its_gradient():
    r, ranks = rewards(), [1, 3, 1, 2]  # 0 and 2 tie at the top
    losses = plackett_luce(r, torch.tensor(ranks))
    worse = {0: [1, 3], 2: [1, 3], 3: [1]}
    chances = {i: math.exp(R[i]) / (math.exp(R[i]) + sum(math.exp(R[j]) for j in of)) for i, of in worse.items()}
    assert losses.tolist() == pytest.approx([-math.log(chances[i]) for i in (0, 2, 3)], abs=1e-12)
    losses.sum().backward()
    expected = [0.0] * 4
    for i, of in worse.items():
        whole = math.exp(R[i]) + sum(math.exp(R[j]) for j in of)
        expected[i] += chances[i] - 1
        for j in of:
            expected[j] += math.exp(R[j]) / whole
    assert r.grad.tolist() == pytest.approx(expected, abs=1e-12)


def test_of_two_replies_both_losses_are_the_same_and_ties_alone_are_refused():
    two = torch.tensor([0.4, -0.3], dtype=torch.double)
    pair = bradley_terry(two, torch.tensor([1]), torch.tensor([0]))
    assert torch.equal(plackett_luce(two, torch.tensor([2, 1])), pair) or torch.allclose(
        plackett_luce(two, torch.tensor([2, 1])), pair, atol=1e-14
    )
    with pytest.raises(ValueError, match="all replies have one rank"):
        plackett_luce(two, torch.tensor([1, 1]))
    with pytest.raises(ValueError, match=r"must be \[K\] both"):
        plackett_luce(two, torch.tensor([1]))


def test_one_against_many_ties_is_softmax_cross_entropy():
    losses = plackett_luce(torch.tensor(R, dtype=torch.double), torch.tensor([2, 2, 1, 2]))
    expected = torch.nn.functional.cross_entropy(torch.tensor([R], dtype=torch.double), torch.tensor([2]))
    assert float(losses) == pytest.approx(float(expected), abs=1e-12)


def test_centring_and_its_gradient():
    r = rewards()
    values = centring(r, torch.tensor([2]), torch.tensor([0]))
    assert values.tolist() == pytest.approx([(2.0 + 0.3) ** 2])
    values.sum().backward()
    assert r.grad.tolist() == pytest.approx([2 * 2.3, 0, 2 * 2.3, 0])


def test_step_cross_entropy_and_its_gradient():
    z = torch.tensor([[0.2, 1.0], [0.0, -2.0], [3.0, 0.5]], dtype=torch.double, requires_grad=True)
    y = torch.tensor([1.0, 0.0, 0.3], dtype=torch.double)
    p = [math.exp(b) / (math.exp(a) + math.exp(b)) for a, b in z.tolist()]
    losses = step_cross_entropy(z, y)
    expected = [-t * math.log(q) - (1 - t) * math.log(1 - q) for t, q in zip(y.tolist(), p, strict=True)]
    assert losses.tolist() == pytest.approx(expected, abs=1e-12)
    losses.sum().backward()
    for row, q, t in zip(z.grad.tolist(), p, y.tolist(), strict=True):
        assert row == pytest.approx([t - q, q - t], abs=1e-12)


@pytest.mark.parametrize("loss", ["pairs", "list"])
def test_planted_utilities_are_recovered_from_noisy_comparisons(loss):
    """10,000 comparisons of 40 items by Bradley and Terry's own probabilities; 400 rankings of 20 by Plackett and Luce's."""
    generator, items = np.random.default_rng(0), 40 if loss == "pairs" else 20
    utilities = generator.normal(0, 1.5, items)
    r = torch.zeros(items, dtype=torch.double, requires_grad=True)
    if loss == "pairs":
        pairs = np.array([generator.choice(items, 2, replace=False) for _ in range(10_000)])
        first = generator.random(10_000) < 1 / (1 + np.exp(utilities[pairs[:, 1]] - utilities[pairs[:, 0]]))
        better = torch.tensor(np.where(first, pairs[:, 0], pairs[:, 1]))
        worse = torch.tensor(np.where(first, pairs[:, 1], pairs[:, 0]))

        def value():
            return bradley_terry(r, better, worse).mean()
    else:
        groups = np.array([generator.choice(items, 4, replace=False) for _ in range(400)])
        order = np.argsort(-(utilities[groups] + generator.gumbel(size=groups.shape)), axis=1)
        ranks = np.argsort(order, axis=1) + 1

        def value():
            found = [plackett_luce(r[torch.tensor(g)], torch.tensor(k)).sum() for g, k in zip(groups, ranks, strict=True)]
            return torch.stack(found).mean()

    optimiser = torch.optim.LBFGS([r], max_iter=60 if loss == "pairs" else 12, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        found = value()
        found.backward()
        return found

    optimiser.step(closure)
    correlation = spearman(r.tolist(), utilities.tolist())
    assert correlation > (0.99 if loss == "pairs" else 0.97)
    found, planted = r.detach().numpy() - r.detach().numpy().mean(), utilities - utilities.mean()
    assert np.abs(found - planted).mean() < (0.15 if loss == "pairs" else 0.3)  # the scale too, not only the order
