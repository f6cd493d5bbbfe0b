"""DPO's loss against numbers worked by hand and numerical gradients."""

import math

import pytest
import torch

from posttrain.losses.preference import hinge, implicit_reward, sigmoid


def test_margin_and_loss_by_hand():
    # policy (chosen, rejected) = (-10, -12), reference = (-11, -11), β = 0.1:
    # h_c = 1, h_r = -1, m = 0.2; −log σ(0.2) = log(1 + e^−0.2) = 0.598138869…
    policy = torch.tensor([[-10.0], [-12.0]], dtype=torch.float64)
    reference = torch.tensor([[-11.0], [-11.0]], dtype=torch.float64)
    rewards = implicit_reward(policy, reference, beta=0.1)
    margin = rewards[0] - rewards[1]
    assert margin.item() == pytest.approx(0.2)
    assert sigmoid(margin).item() == pytest.approx(0.5981388693815918, abs=1e-12)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("m", [-30.0, -2.0, 0.0, 0.5, 40.0])
def test_value_and_gradient_in_closed_form(m, eps):
    margin = torch.tensor([m], dtype=torch.float64, requires_grad=True)
    loss = sigmoid(margin, eps)
    softplus = lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x)))  # noqa: E731
    assert loss.item() == pytest.approx((1 - eps) * softplus(-m) + eps * softplus(m), rel=1e-12)
    loss.sum().backward()
    assert margin.grad.item() == pytest.approx(1 / (1 + math.exp(-m)) - 1 + eps, abs=1e-12)


def test_smoothed_loss_is_least_where_the_label_probability_says():
    # cDPO: minimum at σ(m) = 1 − ε
    eps = 0.2
    best = math.log((1 - eps) / eps)
    values = sigmoid(torch.tensor([best - 0.01, best, best + 0.01], dtype=torch.float64), eps)
    assert values.argmin().item() == 1


def test_gradcheck():
    margin = torch.linspace(-3, 3, 7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: sigmoid(m, 0.1), margin)


def test_untrained_policy_has_loss_log_two():
    assert sigmoid(torch.zeros(3)).tolist() == pytest.approx([math.log(2)] * 3)


def test_hinge_by_hand():
    assert hinge(torch.tensor([-1.0, 0.25, 3.0])).tolist() == [2.0, 0.75, 0.0]
    with pytest.raises(ValueError, match="no label smoothing"):
        hinge(torch.zeros(1), 0.1)


@pytest.mark.parametrize("eps", [-0.1, 0.5, 1.0])
def test_label_smoothing_out_of_range(eps):
    with pytest.raises(ValueError, match="label_smoothing"):
        sigmoid(torch.zeros(1), eps)
