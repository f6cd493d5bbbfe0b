"""Soft labels: losses against plain Python in float64, value, gradient and optimum; who reads them, and who refuses them."""

import math

import pytest
import torch

from posttrain.core.errors import DataError
from posttrain.data.formats import normalise, training_row
from posttrain.data.preferences import comparisons, ranking_of, thumbs_of
from posttrain.data.shapes import Preference
from posttrain.losses.pairs import FAMILY, PairLoss, cross_entropy
from posttrain.losses.preference import agreed, sigmoid, soft
from posttrain.losses.reward import bradley_terry
from posttrain.training.rows import refuse_soft_labels

MARGINS = (-7.5, -0.4, 0.0, 0.9, 12.0)
LABELS = (0.0, 0.1, 0.5, 0.73, 1.0)


def sp(x):
    """log(1 + e^x)"""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@pytest.mark.parametrize("p", LABELS)
@pytest.mark.parametrize("m", MARGINS)
def test_the_cross_entropy_and_its_gradient(m, p):
    margin = torch.tensor([m], dtype=torch.float64, requires_grad=True)
    (loss,) = soft(sigmoid, margin, torch.tensor([p], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss, margin)
    assert loss.item() == pytest.approx(p * sp(-m) + (1 - p) * sp(m), rel=1e-12)
    assert gradient.item() == pytest.approx(1 / (1 + math.exp(-m)) - p, abs=1e-12)


@pytest.mark.parametrize("p", LABELS)
def test_a_reward_models_loss_and_its_gradients(p):
    rewards = torch.tensor([0.3, -1.1, 2.0], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([p, 1.0], dtype=torch.float64)
    losses = bradley_terry(rewards, torch.tensor([0, 2]), torch.tensor([1, 0]), preference_C=label)
    d = (0.3 + 1.1, 2.0 - 0.3)
    assert losses.tolist() == pytest.approx([p * sp(-d[0]) + (1 - p) * sp(d[0]), sp(-d[1])], rel=1e-12)
    pulls = [1 / (1 + math.exp(-x)) - y for x, y in zip(d, (p, 1.0), strict=True)]
    (gradient,) = torch.autograd.grad(losses.sum(), rewards)
    assert gradient.tolist() == pytest.approx([pulls[0] - pulls[1], -pulls[0], pulls[1]], abs=1e-12)


CASE = ((-10.0, -12.0), (-11.0, -11.0), (4, 7))


@pytest.mark.parametrize("p", LABELS)
@pytest.mark.parametrize("settings", [
    PairLoss(beta=0.3), PairLoss(beta=0.3, label_smoothing=0.2), PairLoss(loss="ipo", beta=0.5),
    PairLoss(beta=0.3, per_token=True), PairLoss(loss="simpo", beta=2.5, gap=1.2), PairLoss(f_divergence="js"),
    PairLoss(beta=0.3, likelihood=0.7), PairLoss(loss="cpo", beta=0.2, label_smoothing=0.1), PairLoss(loss="orpo", beta=0.4),
], ids=str)  # fmt: skip
def test_the_family_is_the_mean_over_both_labels(settings, p):
    policy, reference, tokens = (torch.tensor([values], dtype=torch.float64) for values in CASE)
    given = policy.clone().requires_grad_()
    losses, _ = settings(given, reference, tokens, torch.tensor([p], dtype=torch.float64))
    right, _ = settings(policy, reference, tokens)
    wrong, _ = settings(policy.flip(1), reference.flip(1), tokens.flip(1))
    assert losses.item() == pytest.approx((p * right + (1 - p) * wrong).item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(losses.sum(), given)
    for side in (0, 1):
        step = torch.zeros_like(policy)
        step[0, side] = 1e-6
        label = torch.tensor([p], dtype=torch.float64)
        around = [settings(policy + sign * step, reference, tokens, label)[0].item() for sign in (1, -1)]
        assert gradient[0, side].item() == pytest.approx((around[0] - around[1]) / 2e-6, abs=1e-7)


def test_a_likelihood_is_expected_over_both_labels_by_hand():
    """0.75 · 10/4 + 0.25 · 12/7 nats a token, twice; with h of 1 and −1 the margin is 0.3 · 2."""
    values = [torch.tensor([side], dtype=torch.float64) for side in CASE]
    losses, _ = PairLoss(beta=0.3, likelihood=2.0)(*values, torch.tensor([0.75], dtype=torch.float64))
    told = 0.75 * 10 / 4 + 0.25 * 12 / 7
    assert losses.item() == pytest.approx(0.75 * sp(-0.6) + 0.25 * sp(0.6) + 2.0 * told, rel=1e-12)
    assert cross_entropy(values[0], values[2], torch.tensor([0.75]).double()).item() == pytest.approx(told, rel=1e-12)
    assert cross_entropy(values[0], values[2]).item() == 2.5


@pytest.mark.parametrize(("loss", "p", "best"), [
    ("sigmoid", 0.8, math.log(4)), ("sigmoid", 0.5, 0.0), ("ipo", 0.8, 0.3), ("ipo", 0.5, 0.0), ("simpo", 0.5, 0.0)
])  # fmt: skip
def test_where_the_loss_is_least(loss, p, best):
    settings = PairLoss(loss=loss, beta=1.0)
    margin = torch.tensor([best], dtype=torch.float64, requires_grad=True)
    value = soft(lambda m: FAMILY[settings.loss].phi(m, settings), margin, torch.tensor([p], dtype=torch.float64))
    assert torch.autograd.grad(value.sum(), margin)[0].item() == pytest.approx(0, abs=1e-12)


def test_losses_that_take_no_soft_labels_say_so():
    takes = {name for name in FAMILY if PairLoss(loss=name).takes_soft}
    assert takes == {"sigmoid", "ipo", "simpo", "cpo", "orpo"}
    values = [torch.tensor([side]).double() for side in CASE]
    with pytest.raises(ValueError, match="takes no soft labels"):
        PairLoss(loss="hinge")(*values, torch.tensor([0.5]))


def test_agreement_with_the_likelier_label():
    margins = torch.tensor([2.0, -2.0, 2.0, -2.0, 3.0, 0.0], dtype=torch.float64)
    labels = torch.tensor([1.0, 0.9, 0.2, 0.2, 0.5, 1.0], dtype=torch.float64)
    assert agreed(margins, labels).tolist() == [1, 0, 0, 1, 0.5, 0]


ROW = {"prompt": "q", "chosen": "a", "rejected": "b"}


def test_a_soft_label_is_read_kept_and_gives_an_order():
    read = normalise({**ROW, "preference": "0.25"})
    assert isinstance(read, Preference)
    assert read.preference == 0.25
    assert training_row(read)["preference"] == 0.25
    assert "preference" not in training_row(normalise(ROW))
    assert ranking_of(read).ranks == (2, 1)
    assert comparisons(read) == [(1, 0, 0.0)]
    assert [thumb.label for thumb in thumbs_of(read)] == [False, True]
    tie = normalise({**ROW, "preference": 0.5})
    assert isinstance(tie, Preference)
    assert comparisons(tie) == []
    assert thumbs_of(tie) == []


@pytest.mark.parametrize("wrong", [1.5, -0.1, "x", True, float("nan")])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(DataError, match="'preference'"):
        normalise({**ROW, "preference": wrong})


def test_who_takes_no_soft_labels_says_what_to_do():
    refuse_soft_labels(ROW, where="row 1", why="x")
    refuse_soft_labels({**ROW, "preference": 1}, where="row 1", why="x")
    with pytest.raises(DataError, match=r"row 1: preference = 0.7 is a soft label, and kto takes none: make hard labels"):
        refuse_soft_labels({**ROW, "preference": 0.7}, where="row 1", why="kto takes none")
