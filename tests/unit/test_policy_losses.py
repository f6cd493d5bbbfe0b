"""Online RL's estimators against hand values, and against exact expectations over all outcomes of small models."""

import itertools
import math

import pytest
import torch

from posttrain.losses.advantage import EPSILON, group_advantages
from posttrain.losses.kl import kl_estimate, kl_loss
from posttrain.losses.policy import clipped, importance, log_ratios, surrogate, token_weights
from posttrain.losses.reduce import constant_mean, sequence_mean, token_mean

D = torch.double


def tensor(*values):
    return torch.tensor(values, dtype=D)


# Advantages


def test_advantages_by_hand():
    rewards = tensor([1.0, 0.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0])
    std = math.sqrt((0 + 1 + 1 + 4) / 3)
    group = group_advantages(rewards)
    torch.testing.assert_close(group[0], tensor(0, -1, -1, 2) / (std + EPSILON))
    assert group[1].tolist() == [0.0] * 4
    assert group_advantages(rewards, scale="one")[0].tolist() == [0, -1, -1, 2]
    others = group_advantages(rewards, baseline="leave_one_out", scale="one")[0]
    torch.testing.assert_close(others, tensor(1 - 3 / 3, 0 - 4 / 3, 0 - 4 / 3, 3 - 1 / 3))
    flat = rewards.flatten()
    whole = group_advantages(rewards, baseline="zero", scale="batch").flatten()
    torch.testing.assert_close(whole, (flat - flat.mean()) / (flat.std() + EPSILON))
    assert group_advantages(rewards, baseline="zero", scale="one").equal(rewards)


def test_equal_rewards_have_no_advantage_whatever_rounding_does():
    rewards = torch.full((1, 3), 0.1, dtype=D) * 3
    for baseline in ("mean", "leave_one_out"):
        for scale in ("group", "one"):
            assert group_advantages(rewards, baseline=baseline, scale=scale).tolist() == [[0.0] * 3]
    assert group_advantages(rewards, baseline="mean", scale="batch").tolist() == [[0.0] * 3]


def test_a_group_of_one_has_nothing_to_be_compared_with():
    with pytest.raises(ValueError, match="take 2 or more samples"):
        group_advantages(tensor([1.0]))
    assert group_advantages(tensor([1.0], [3.0]), baseline="zero", scale="one").tolist() == [[1.0], [3.0]]
    with pytest.raises(ValueError, match=r"\[prompts, samples\]"):
        group_advantages(tensor(1.0, 2.0))


# KL


def models(outcomes=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    logits, old, reference = (torch.randn(outcomes, generator=draw, dtype=D) for _ in range(3))
    return logits.requires_grad_(), old.log_softmax(0), reference.log_softmax(0)


def exact_kl(logits, reference):
    logps = logits.log_softmax(0)
    return (logps.exp() * (logps - reference)).sum()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("on_policy", [True, False])
def test_the_mean_gradient_of_each_estimator_is_that_of_the_kl(estimator, on_policy):
    logits, old, reference = models()
    logps = logits.log_softmax(0)
    old = logps.detach() if on_policy else old
    mean = (old.exp() * kl_loss(logps, reference, old, estimator=estimator)).sum()
    exact = exact_kl(logits, reference)
    if estimator != "k2":
        assert mean.item() == pytest.approx(exact.item(), rel=1e-12)
    (found,) = torch.autograd.grad(mean, logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(exact, logits)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)


def test_what_the_estimators_would_do_without_the_ratio():
    """Why `kl_loss` corrects: k1 has no gradient on average, k3 has that of the other KL."""
    logits, _, reference = models()
    logps = logits.log_softmax(0)
    for estimator, wanted in (("k1", torch.zeros(5, dtype=D)), ("k3", None)):
        mean = (logps.detach().exp() * kl_estimate(logps, reference, estimator=estimator)).sum()
        (found,) = torch.autograd.grad(mean, logits, retain_graph=True)
        if wanted is None:
            forward = (reference.exp() * (reference - logps)).sum()
            (wanted,) = torch.autograd.grad(forward, logits, retain_graph=True)
            (other,) = torch.autograd.grad(exact_kl(logits, reference), logits)
            assert not torch.allclose(found, other, rtol=0.01)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)


def test_a_large_difference_keeps_its_gradient():
    for estimator in ("k2", "k3"):
        logp = torch.tensor([-20.0], requires_grad=True)  # float32, as in training
        kl_loss(logp, torch.tensor([-2.0]), torch.tensor([-20.0]), estimator=estimator).sum().backward()
        assert logp.grad.item() == pytest.approx(-18.0, rel=1e-6)  # d; a clamp at a log-ratio of 10 would leave 0


# Ratio level x surrogate x reduction


def test_token_and_sequence_ratios_by_hand():
    logps, old, owner = tensor(-1.0, -2.0, -3.0), tensor(-1.5, -1.0, -3.2), torch.tensor([0, 0, 1])
    assert log_ratios(logps, old, owner, sequences=2, level="token").tolist() == pytest.approx([0.5, -1.0, 0.2])
    assert log_ratios(logps, old, owner, sequences=2, level="sequence").tolist() == pytest.approx([-0.25, -0.25, 0.2])


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [  # slope: of the loss by log π, worked out by hand: −r A where nothing is clipped
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.6, 0.0),  # above 1 + high: no further push up
        (0.5, 2.0, -1.0, -1.0),
        (0.5, -2.0, 1.6, 0.0),  # below 1 − low: no further push down
        (1.5, -2.0, 3.0, 3.0),
        (9.0, -2.0, 6.0, 0.0),  # dual clip at 3
    ],
)
def test_clip_by_hand(ratio, advantage, value, slope):
    logp = tensor(math.log(ratio)).requires_grad_()
    loss = surrogate(logp, tensor(advantage), logp, low=0.2, high=0.3, dual=3.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(value)
    assert logp.grad.item() == pytest.approx(slope)
    lost = bool(clipped(logp, tensor(advantage), low=0.2, high=0.3))
    assert lost == (slope == 0 and ratio < 9)  # the lower bound for A < 0 is told apart


def test_cispo_and_reinforce_by_hand():
    logp = tensor(-0.7, -0.7).requires_grad_()
    ratios = tensor(math.log(0.5), math.log(9.0))
    cispo = surrogate(ratios, tensor(2.0, -2.0), logp, kind="cispo", high=4.0)
    cispo.sum().backward()
    assert cispo.tolist() == pytest.approx([0.5 * 2 * 0.7, -5 * 2 * 0.7])
    assert logp.grad.tolist() == pytest.approx([-0.5 * 2, 5 * 2])
    assert surrogate(ratios, tensor(2.0, -2.0), logp, kind="reinforce").tolist() == pytest.approx([1.4, -1.4])


def test_importance_is_capped_and_1_where_the_sampler_is_silent():
    weights = importance(tensor(-1.0, -1.0, -1.0), tensor(-1.5, -4.0, math.nan), cap=2.0)
    assert weights.tolist() == pytest.approx([math.exp(0.5), 2.0, 1.0])


def test_weights_are_the_reductions():
    owner, values = torch.tensor([0, 0, 0, 1, 3]), tensor(1.0, 2.0, 4.0, 8.0, 16.0)
    counts = {"tokens": 11.0, "sequences": 7.0, "constant": 5.0}
    wanted = {
        "token": token_mean(values, tokens=11),
        "sequence": sequence_mean(values, owner, in_micro_batch=4, sequences=7),
        "constant": constant_mean(values, constant=5, sequences=7),
        "sum": values.sum() / 7,
    }
    for reduction, value in wanted.items():
        weights = token_weights(owner, in_micro_batch=4, reduction=reduction, **counts)
        assert float((weights * values).sum()) == pytest.approx(float(value))
    with pytest.raises(ValueError, match="nothing in this optimiser step"):
        token_weights(owner, in_micro_batch=4, reduction="token", tokens=0, sequences=0)


def bandit(members, off_policy=False):
    """Return (mean gradient of the loss over all groups of 3 draws, −∇E[R]) for a bandit with 4 arms, by enumeration."""
    logits = tensor(0.3, -0.5, 0.8, 0.1).requires_grad_()
    rewards = tensor(1.0, 0.2, -0.4, 2.0)
    logps = logits.log_softmax(0)
    old = (logits.detach() * 0.97).log_softmax(0) if off_policy else logps.detach()
    total, groups = torch.zeros((), dtype=D), 3
    for arms in itertools.product(range(4), repeat=groups):
        arms = torch.tensor(arms)
        how = {key: members[key] for key in ("baseline", "scale") if key in members}
        advantages = group_advantages(rewards[arms][None], **how)[0]
        ratios = log_ratios(logps[arms], old[arms], torch.arange(groups), sequences=groups, level="token")
        values = surrogate(ratios, advantages, logps[arms], kind=members.get("kind", "clip"), low=0.2, high=0.2)
        weights = token_weights(
            torch.arange(groups), in_micro_batch=groups, reduction=members.get("reduction", "sequence"), tokens=groups,
            sequences=groups,
        )  # fmt: skip
        total = total + old[arms].sum().exp() * (weights * values).sum()
    (found,) = torch.autograd.grad(total, logits, retain_graph=True)
    (exact,) = torch.autograd.grad(-(logps.exp() * rewards).sum(), logits)
    return found, exact


@pytest.mark.parametrize("kind", ["clip", "cispo", "reinforce"])
@pytest.mark.parametrize("reduction", ["sequence", "token", "sum"])
def test_the_mean_gradient_on_a_bandit_is_the_exact_policy_gradient(kind, reduction):
    """Of one-token samples all reductions are the same. A group's own mean takes (K − 1) / K of the gradient."""
    found, exact = bandit({"kind": kind, "reduction": reduction, "baseline": "leave_one_out", "scale": "one"})
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-14)
    found, exact = bandit({"kind": kind, "reduction": reduction, "baseline": "mean", "scale": "one"})
    torch.testing.assert_close(found, exact * 2 / 3, rtol=1e-10, atol=1e-14)
    found, exact = bandit({"kind": kind, "reduction": reduction, "baseline": "zero", "scale": "one"})
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-14)


def test_dividing_by_the_groups_deviation_changes_the_direction():
    """GRPO's scale is no mere step size (Liu et al. 2025): its mean gradient is not along the exact one."""
    found, exact = bandit({"baseline": "mean", "scale": "group"})
    cosine = torch.nn.functional.cosine_similarity(found, exact, dim=0)
    assert 0.9 < float(cosine) < 0.999


def test_ratios_correct_for_an_older_policy():
    found, exact = bandit({"baseline": "zero", "scale": "one"}, off_policy=True)  # near enough that nothing is clipped
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-14)
    wrong, _ = bandit({"kind": "reinforce", "baseline": "zero", "scale": "one"}, off_policy=True)
    assert not torch.allclose(wrong, exact, rtol=1e-3)
