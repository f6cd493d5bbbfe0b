"""PPO's estimators: advantages over actions alone, against figures of a probe and brute force; the clipped value loss."""

import pytest
import torch

from posttrain.losses.gae import advantages, value_clipped, value_loss, whitened
from posttrain.losses.policy import surrogate
from posttrain.preference._kl_weight import KlWeight

D = torch.double


def tensor(*values):
    return torch.tensor(values, dtype=D)


def over_all_tokens(rewards, values, *, lam):
    """The recursion through every token, whoever wrote it: returns, γ = 1."""
    ahead, found = 0.0, []
    for t in reversed(range(len(rewards))):
        following = values[t + 1] if t + 1 < len(rewards) else 0.0
        ahead = rewards[t] + following - values[t] + lam * ahead
        found.append(ahead + values[t])
    return found[::-1]


def test_the_probe_of_two_turns_with_an_observation_between():
    """Two actions, three tokens of the environment, two actions with the reward 1 at the last, one of padding; λ = 0.95.

    Peers that let the recursion run through what the policy did not write are wrong: with values of 0 there (OpenRLHF) λ
    discounts a reward for tokens that nobody chose, with the value model's own (SkyRL) the padding's value is bootstrapped.
    """
    values = torch.randn(8, generator=torch.Generator().manual_seed(0)).double()
    actions = torch.tensor([0, 1, 5, 6])
    rewards = torch.zeros(8, dtype=D).index_fill(0, actions[-1:], 1.0)
    _, returns = advantages(rewards[actions], values[actions], torch.zeros(4, dtype=torch.long), gamma=1.0, lam=0.95)
    assert returns.tolist() == pytest.approx([0.794, 0.852, 0.970, 1.0], abs=5e-4)
    written = torch.zeros(8, dtype=D).index_fill(0, actions, 1.0)
    zeroed = torch.tensor(over_all_tokens(rewards.tolist(), (values * written).tolist(), lam=0.95))
    assert float(zeroed[0]) == pytest.approx(0.679, abs=5e-4)
    whole = torch.tensor(over_all_tokens(rewards.tolist(), values.tolist(), lam=0.95))
    assert whole[actions].tolist() == pytest.approx([0.586, 0.632, 1.010, 1.042], abs=5e-4)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.8, 0.0)])
def test_advantages_are_the_double_sum_of_the_paper_on_random_masks(gamma, lam):
    draw = torch.Generator().manual_seed(int(100 * gamma + 10 * lam))
    for _ in range(20):
        lengths = torch.randint(1, 7, (4,), generator=draw).tolist()
        masks = [torch.rand(3 * n, generator=draw) < 0.5 for n in lengths]
        masks = [mask if bool(mask.any()) else ~mask for mask in masks]
        rewards, values = ([torch.randn(len(mask), generator=draw).double() for mask in masks] for _ in range(2))
        kept = [(r[mask].tolist(), v[mask].tolist()) for r, v, mask in zip(rewards, values, masks, strict=True)]
        flat_r, flat_v = (torch.cat([x[mask] for x, mask in zip(xs, masks, strict=True)]) for xs in (rewards, values))
        owner = torch.repeat_interleave(torch.tensor([int(mask.sum()) for mask in masks]))
        found, returns = advantages(flat_r, flat_v, owner, gamma=gamma, lam=lam)
        expected = []
        for r, v in kept:
            deltas = [r[t] + gamma * (v[t + 1] if t + 1 < len(v) else 0) - v[t] for t in range(len(v))]
            expected += [sum((gamma * lam) ** n * d for n, d in enumerate(deltas[t:])) for t in range(len(v))]
        assert found.tolist() == pytest.approx(expected, abs=1e-12)
        torch.testing.assert_close(returns, found + flat_v)
        if lam == 1:
            togo = [sum(gamma**n * x for n, x in enumerate(r[t:])) for r, _ in kept for t in range(len(r))]
            assert returns.tolist() == pytest.approx(togo, abs=1e-12)
    assert not found.requires_grad


def test_actions_of_a_sequence_that_stand_apart_are_refused():
    with pytest.raises(ValueError, match="must stand together"):
        advantages(tensor(0, 0, 0), tensor(0, 0, 0), torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="do not match"):
        advantages(tensor(0, 0, 0), tensor(0, 0), torch.tensor([0, 0]))


def test_whitening_by_hand():
    values = tensor(1, 2, 3, 6)
    torch.testing.assert_close(whitened(values), (values - 3) / (3.5**0.5))
    assert whitened(tensor(2, 2, 2)).tolist() == [0, 0, 0]


def test_the_clipped_value_loss_and_its_gradient_by_hand():
    # V, V_old, R, and by ε = 0.2: the loss, its gradient, whether the clip took it
    cases = [
        (0.1, 0.0, 1.0, 0.5 * 0.9**2, -0.9, False),  # near V_old
        (0.5, 0.0, 1.0, 0.5 * 0.8**2, 0.0, True),  # far, towards R: the clipped one is the larger, and constant
        (-0.5, 0.0, 1.0, 0.5 * 1.5**2, -1.5, False),  # far, away from R: it is pulled back
        (1.5, 0.0, 1.0, 0.5 * 0.8**2, 0.0, True),  # beyond R: (0.5)² is less than (0.8)²
        (3.0, 0.0, 1.0, 0.5 * 2.0**2, 2.0, False),  # far beyond R
    ]
    values, old, goal, losses, gradients, taken = (list(column) for column in zip(*cases, strict=True))
    values = tensor(*values).requires_grad_()
    found = value_loss(values, tensor(*old), tensor(*goal), clip=0.2)
    found.sum().backward()
    assert found.tolist() == pytest.approx(losses)
    assert values.grad.tolist() == pytest.approx(gradients)
    assert value_clipped(values, tensor(*old), tensor(*goal), clip=0.2).tolist() == taken
    plain = tensor(0.5, -0.5).requires_grad_()
    value_loss(plain, tensor(0, 0), tensor(1, 1)).sum().backward()
    assert plain.grad.tolist() == pytest.approx([-0.5, -1.5])
    assert not value_clipped(plain, tensor(0, 0), tensor(1, 1), clip=0.0).any()


def test_losses_are_those_of_trl_s_last_ppo_trainer():
    """Its formulas, written out here (trl/experimental/ppo at f2cd577; the pinned release has no PPO any more)."""
    draw = torch.Generator().manual_seed(3)
    logps, old_logps, adv, v, v_old, goal = (torch.randn(50, generator=draw).double() for _ in range(6))
    near = torch.clamp(v, v_old - 0.2, v_old + 0.2)
    theirs = 0.5 * torch.max(torch.square(v - goal), torch.square(near - goal)).mean()
    torch.testing.assert_close(value_loss(v, v_old, goal, clip=0.2).mean(), theirs)
    ratio = torch.exp(logps - old_logps)
    theirs = torch.max(-adv * ratio, -adv * torch.clamp(ratio, 0.8, 1.2)).mean()
    torch.testing.assert_close(surrogate(logps - old_logps, adv, logps).mean(), theirs)


def test_the_weight_of_the_kl_by_hand():
    weight = KlWeight(value=0.1, target=4.0, horizon=100)
    weight.note(4.4, 10)  # 10 % above
    assert weight.value == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    weight.note(40.0, 10)  # bounded
    assert weight.value == pytest.approx(0.1 * 1.01 * (1 + 0.2 * 0.1))
    weight.note(0.0, 10)
    assert weight.value == pytest.approx(0.1 * 1.01 * 1.02 * (1 - 0.2 * 0.1))
    other = KlWeight(value=1.0, target=4.0)
    other.load(weight.state())
    assert other.value == weight.value
    fixed = KlWeight(value=0.1)
    fixed.note(1e3, 10)
    assert fixed.value == 0.1
