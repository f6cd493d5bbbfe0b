"""The DPO family against formulas written anew in float64, value and gradient; closed forms of where training leads."""

import itertools
import math

import pytest
import torch

from posttrain.losses.pairs import FAMILY, PairLoss, link, log_odds
from posttrain.losses.preference import robust, sigmoid, squared
from posttrain.losses.unpaired import kto

# summed log-probabilities of chosen and rejected, of the policy and the reference; trained tokens of each
CASES = [
    ((-10.0, -12.0), (-11.0, -11.0), (4, 7)),
    ((-3.0, -2.5), (-3.5, -2.0), (2, 1)),
    ((-40.0, -70.0), (-38.0, -55.0), (30, 60)),
    ((-8.0, -1.0), (-8.0, -1.0), (9, 3)),
]


def sp(x):
    """log(1 + e^x)"""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def f_prime(h, name, alpha):
    u = math.exp(h)
    return {"forward_kl": 1 - 1 / u, "js": math.log(2 * u / (1 + u)), "alpha": (1 - u**-alpha) / alpha}.get(name, h)


def by_hand(s, policy, reference, tokens):
    """A second way to the numbers: plain Python, one member after the other."""
    (c, r), (rc, rr), (nc, nr), b, e = policy, reference, tokens, s.beta, s.label_smoothing
    if s.loss == "orpo":
        odds = [math.exp(x / n) / (1 - math.exp(x / n)) for x, n in ((c, nc), (r, nr))]
        return -c / nc + b * math.log(1 + odds[1] / odds[0])
    if s.loss == "simpo":
        return sp(-(b * c / nc - b * r / nr - s.gap)) - s.likelihood * c / nc
    if s.loss == "cpo":
        return (1 - e) * sp(-b * (c - r)) + e * sp(b * (c - r)) - c / nc
    if s.reference_free:
        rc = rr = 0.0
    hc, hr = c - rc, r - rr
    if s.loss == "ipo":
        return (hc / nc - hr / nr - 1 / (2 * b)) ** 2 - s.likelihood * c / nc
    if s.per_token:
        hc, hr = hc / nc, hr / nr
    m = b * (f_prime(hc, s.f_divergence, s.f_alpha) - f_prime(hr, s.f_divergence, s.f_alpha))
    value = {
        "sigmoid": (1 - e) * sp(-m) + e * sp(m),
        "robust": ((1 - e) * sp(-m) - e * sp(m)) / (1 - 2 * e),
        "hinge": max(0.0, 1 - m),
    }[s.loss]
    return value - s.likelihood * c / nc


SETTINGS = [
    *(PairLoss(loss=loss, beta=0.3) for loss in FAMILY),
    PairLoss(label_smoothing=0.2, beta=0.3),
    PairLoss(loss="robust", label_smoothing=0.2),
    PairLoss(loss="cpo", label_smoothing=0.1),
    PairLoss(loss="simpo", beta=2.5, gap=1.2, likelihood=0.3),
    PairLoss(loss="ipo", beta=0.5, likelihood=0.7),
    PairLoss(loss="ipo", reference_free=True),
    *(PairLoss(loss=loss, per_token=True, beta=2.0) for loss in ("sigmoid", "robust", "hinge")),
    *(PairLoss(loss=loss, reference_free=True, likelihood=0.5) for loss in ("sigmoid", "hinge")),
    *(PairLoss(f_divergence=name, f_alpha=0.3) for name in ("forward_kl", "js", "alpha")),
    PairLoss(loss="hinge", f_divergence="js", likelihood=0.2),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_value_and_gradient_against_the_formula_in_plain_python(settings, case):
    policy, reference, tokens = case
    given = torch.tensor([policy], dtype=torch.float64, requires_grad=True)
    losses, rewards = settings(given, torch.tensor([reference], dtype=torch.float64), torch.tensor([tokens]).double())
    assert losses.shape == (1,)
    assert rewards.shape == (1, 2)
    assert losses.item() == pytest.approx(by_hand(settings, policy, reference, tokens), rel=1e-12, abs=1e-12)
    (gradient,) = torch.autograd.grad(losses.sum(), given)
    for side in (0, 1):
        moved = [list(policy), list(policy)]
        moved[0][side] += 1e-5
        moved[1][side] -= 1e-5
        slope = (by_hand(settings, moved[0], reference, tokens) - by_hand(settings, moved[1], reference, tokens)) / 2e-5
        assert gradient[0, side].item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_pairs_do_not_see_each_other(settings):
    policy, reference, tokens = (torch.tensor([case[i] for case in CASES]).double() for i in range(3))
    together, _ = settings(policy, reference, tokens)
    alone = [settings(policy[i : i + 1], reference[i : i + 1], tokens[i : i + 1])[0].item() for i in range(len(CASES))]
    assert together.tolist() == pytest.approx(alone, rel=1e-14)


def test_which_members_need_a_reference():
    assert {loss for loss in FAMILY if PairLoss(loss=loss).needs_reference} == {"sigmoid", "robust", "hinge", "ipo"}
    assert not PairLoss(reference_free=True).needs_reference
    policy, tokens = torch.tensor([[-4.0, -5.0]]), torch.tensor([[3.0, 4.0]])
    for settings in SETTINGS:
        if not settings.needs_reference:
            values = [settings(policy, torch.full((1, 2), level), tokens)[0].item() for level in (0.0, -50.0)]
            assert values[0] == values[1]


def test_robust_is_right_on_average_when_labels_are_flipped():
    margin, eps = torch.linspace(-4, 4, 9, dtype=torch.float64), 0.3
    observed = (1 - eps) * robust(margin, eps) + eps * robust(-margin, eps)
    torch.testing.assert_close(observed, sigmoid(margin), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="label_smoothing"):
        robust(margin, 0.5)


def test_ipos_margin_has_the_target_one_half():
    margin = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    assert squared(margin, beta=0.1).tolist() == pytest.approx([1.0, 0.0, 1.0], abs=1e-12)


def test_the_alpha_divergence_lies_between_the_two_kls():
    h = torch.linspace(-3, 3, 13, dtype=torch.float64)
    torch.testing.assert_close(link(h, "alpha", alpha=1e-9), h, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(link(h, "alpha", alpha=1.0), link(h, "forward_kl"))
    assert (link(h, "js").diff() > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odds_stay_finite_where_the_model_is_certain(dtype):
    mean = torch.tensor([0.0, -1e-9, -1e-3, -80.0], dtype=dtype, requires_grad=True)
    value = log_odds(mean)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(mean.grad).all()
    assert (mean.grad > 0).all()
    assert value[2].item() == pytest.approx(math.log(math.exp(-1e-3) / (1 - math.exp(-1e-3))), rel=1e-4)


def test_a_rejected_response_far_below_the_reference_breaks_no_divergence():
    for name in ("forward_kl", "js", "alpha"):
        policy = torch.tensor([[-10.0, -150.0]], requires_grad=True)  # float32: exp(140) would be infinite
        losses, _ = PairLoss(f_divergence=name)(policy, torch.tensor([[-10.0, -10.0]]), torch.tensor([[3.0, 3.0]]))
        losses.sum().backward()
        assert torch.isfinite(losses).all()
        assert torch.isfinite(policy.grad).all()


@pytest.mark.parametrize("desirable", [True, False])
@pytest.mark.parametrize(("h", "baseline"), [(-3.0, 0.0), (0.0, 0.5), (2.0, 0.5), (40.0, 3.0), (1.0, -2.0)])
def test_kto_by_hand(desirable, h, baseline):
    ratio = torch.tensor([h], dtype=torch.float64, requires_grad=True)
    loss = kto(ratio, torch.tensor([desirable]), baseline, beta=0.2, desirable_weight=1.5, undesirable_weight=0.7)
    m, weight = 0.2 * (h - max(baseline, 0.0)), 1.5 if desirable else 0.7
    s = 1 / (1 + math.exp(-m))
    assert loss.item() == pytest.approx(weight * (1 - s if desirable else s), rel=1e-12)
    loss.sum().backward()
    assert ratio.grad.item() == pytest.approx((-1 if desirable else 1) * weight * 0.2 * s * (1 - s), rel=1e-9)


def test_no_gradient_flows_through_ktos_baseline():
    baseline = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    ratio = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    kto(ratio, torch.tensor([True, False]), baseline, beta=0.1).sum().backward()
    assert baseline.grad is None


# Closed forms on a softmax bandit: four responses of one token each, a reference, a planted reward.

REFERENCE = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64).log()
REWARD = torch.tensor([1.0, 0.2, -0.5, 0.4], dtype=torch.float64)
ORDERED = torch.tensor(list(itertools.permutations(range(4), 2)))  # every pair, both ways round


def descend(loss_of_logps, steps=300):
    """Return the log-probabilities that a loss of them, minimised by L-BFGS, leads to."""
    logits = REFERENCE.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=steps, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = loss_of_logps(logits.log_softmax(0))
        loss.backward()
        return loss

    optimiser.step(closure)
    return logits.detach().log_softmax(0)


def on_all_pairs(settings, preferred):
    """The expected loss when the first of each ordered pair is chosen with probability `preferred`."""
    ones = torch.ones(len(ORDERED), 2, dtype=torch.float64)
    return lambda logps: (preferred * settings(logps[ORDERED], REFERENCE[ORDERED], ones)[0]).mean()


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_dpo_recovers_the_optimal_policy(beta):
    # preferences by Bradley-Terry of r: the minimiser is π ∝ π_ref exp(r/β)
    preferred = torch.sigmoid(REWARD[ORDERED[:, 0]] - REWARD[ORDERED[:, 1]])
    found = descend(on_all_pairs(PairLoss(beta=beta), preferred))
    torch.testing.assert_close(found, (REFERENCE + REWARD / beta).log_softmax(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", [0.1, 0.3])
def test_robust_dpo_recovers_it_from_flipped_labels_and_conservative_dpo_does_not(eps):
    preferred = torch.sigmoid(REWARD[ORDERED[:, 0]] - REWARD[ORDERED[:, 1]])
    flipped = (1 - eps) * preferred + eps * (1 - preferred)
    optimum = (REFERENCE + REWARD).log_softmax(0)
    robustly = descend(on_all_pairs(PairLoss(loss="robust", label_smoothing=eps, beta=1.0), flipped))
    torch.testing.assert_close(robustly, optimum, rtol=0, atol=1e-6)
    smoothed = descend(on_all_pairs(PairLoss(label_smoothing=eps, beta=1.0), flipped))
    assert (smoothed - optimum).abs().max() > 0.05


@pytest.mark.parametrize(("name", "inverse"), [
    ("forward_kl", lambda s: -torch.log(1 - s)), ("alpha", lambda s: -torch.log(1 - 0.5 * s) / 0.5),
    ("js", lambda s: s - torch.log(2 - s.exp())),
])  # fmt: skip
def test_an_f_divergence_recovers_its_own_optimum(name, inverse):
    # β f'(π/π_ref) = r − λ, with the λ that makes π a distribution: found by bisection
    beta = 1.0
    preferred = torch.sigmoid(REWARD[ORDERED[:, 0]] - REWARD[ORDERED[:, 1]])
    found = descend(on_all_pairs(PairLoss(f_divergence=name, beta=beta), preferred))
    low, high = (
        (REWARD.max() - beta * (math.log(2) if name == "js" else 2.0 if name == "alpha" else 1.0)).item() + 1e-12,
        10.0,
    )
    for _ in range(200):
        middle = (low + high) / 2
        total = (REFERENCE + inverse((REWARD - middle) / beta)).exp().sum().item()
        low, high = (middle, high) if total > 1 else (low, middle)
    torch.testing.assert_close(found, REFERENCE + inverse((REWARD - low) / beta), rtol=0, atol=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_ipo_stops_at_its_target_where_dpo_would_go_on(beta):
    # one pair, always judged the same way: the log-ratios differ by 1/(2β), however sure the judge is
    ones = torch.ones(1, 2, dtype=torch.float64)
    found = descend(lambda logps: PairLoss(loss="ipo", beta=beta)(logps[None, :2], REFERENCE[None, :2], ones)[0].sum())
    change = found - REFERENCE
    assert (change[0] - change[1]).item() == pytest.approx(1 / (2 * beta), abs=1e-6)


def test_kto_moves_only_as_its_derivative_says():
    # one desirable (0) and one undesirable (1) response of the bandit: d L / d logit_k = Σ_y ∂L/∂h_y (1[k=y] − π_k)
    logits = (REFERENCE + torch.tensor([0.3, -0.2, 0.5, 0.0])).requires_grad_()
    logps = logits.log_softmax(0)
    labels, z, beta, weights = torch.tensor([True, False]), 0.25, 0.4, (1.3, 0.6)
    kto(logps[:2] - REFERENCE[:2], labels, z, beta=beta, desirable_weight=1.3, undesirable_weight=0.6).sum().backward()
    expected = torch.zeros(4, dtype=torch.float64)
    for y in (0, 1):
        s = torch.sigmoid(beta * (logps[y] - REFERENCE[y] - z)).item()
        slope = (-1 if y == 0 else 1) * weights[y] * beta * s * (1 - s)
        expected += slope * ((torch.arange(4) == y).double() - logps.exp().detach())
    torch.testing.assert_close(logits.grad, expected, rtol=1e-9, atol=1e-12)
    # an undesirable response far below the baseline, and a desirable one far above it, move nothing any more
    far = torch.tensor([900.0, -900.0], dtype=torch.float64, requires_grad=True)
    kto(far, labels, z, beta=beta).sum().backward()
    assert far.grad.abs().max() < 1e-100
