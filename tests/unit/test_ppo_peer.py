"""PPO against the formulas of TRL's experimental trainer, written anew on padded matrices (TRL 1.16 ships it no more).

Source: huggingface/trl, trl/experimental/ppo/ppo_trainer.py at 0062ee1, "4. compute rewards" to the loss of a micro-batch.
"""

import pytest
import torch

from posttrain.losses.gae import advantages, value_loss, whitened
from posttrain.losses.kl import kl_estimate
from posttrain.losses.policy import surrogate
from posttrain.losses.reduce import token_mean

BETA, CLIP, VALUE_CLIP = 0.2, 0.2, 0.15


def drawn(lengths, seed=0):
    """Made-up log-probabilities, values and scores of one step, padded to the longest (B, T); everything is float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))

    def normal(scale):
        return torch.randn(shape, generator=generator, dtype=torch.double) * scale

    old = -normal(1).abs()
    return {
        "old": old, "reference": old + normal(0.3), "new": old + normal(0.3), "values": normal(1), "scores": normal(1)[:, 0],
    } | {"new_values": normal(1)}  # fmt: skip


def peers(step, lengths, gamma=0.97, lam=0.9):
    """Return (policy loss, value loss) as TRL works them out."""
    old, reference, values = step["old"], step["reference"], step["values"]
    rows, width = old.shape
    place = torch.arange(width).expand(rows, -1)
    last = torch.tensor(lengths)[:, None] - 1
    outside, outside_p1 = place > last, place > last + 1
    values = values.masked_fill(outside_p1, 0)
    rewards = -BETA * (old - reference).masked_fill(outside, 0)
    end = torch.where(last + 1 < width, last + 1, last)[:, 0]
    rewards[torch.arange(rows), end] += step["scores"]
    ahead, found = torch.zeros(rows, dtype=torch.double), []
    for t in reversed(range(width)):
        following = values[:, t + 1] if t < width - 1 else 0.0
        ahead = rewards[:, t] + gamma * following - values[:, t] + gamma * lam * ahead
        found.append(ahead)
    advantage = torch.stack(found[::-1], 1)
    returns = advantage + values
    inside = advantage[~outside]
    advantage = (advantage - inside.mean()) * torch.rsqrt(inside.var(unbiased=True) + 1e-8)
    ratio = (step["new"] - old).exp()
    policy = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP))[~outside].mean()
    new = step["new_values"].masked_fill(outside_p1, 0)
    near = new.clamp(values - VALUE_CLIP, values + VALUE_CLIP)
    fitted = 0.5 * torch.max((new - returns).square(), (near - returns).square())[~outside_p1].mean()
    return policy, fitted


def ours(step, lengths, gamma=0.97, lam=0.9):
    """Return the same as `preference.ppo` does: tokens laid end to end, the score on the last token of each."""
    inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    old_N, reference_N, new_N, values_N = (step[name][inside] for name in ("old", "reference", "new", "values"))
    owner_N = torch.repeat_interleave(torch.tensor(lengths))
    rewards_N = -BETA * kl_estimate(old_N, reference_N, estimator="k1")
    rewards_N[torch.tensor(lengths).cumsum(0) - 1] += step["scores"]
    advantages_N, returns_N = advantages(rewards_N, values_N, owner_N, gamma=gamma, lam=lam)
    value_N = surrogate(new_N - old_N, whitened(advantages_N), new_N, low=CLIP, high=CLIP)
    fitted = value_loss(step["new_values"][inside], values_N, returns_N, clip=VALUE_CLIP)
    tokens = sum(lengths)
    return token_mean(value_N, tokens=tokens), token_mean(fitted, tokens=tokens), tokens


@pytest.mark.parametrize("seed", range(5))
def test_replies_of_full_length_have_the_peers_losses_and_gradients(seed):
    """But for the variance that whitening divides by: TRL's is over n − 1."""
    lengths = [6, 6, 6]
    step = drawn(lengths, seed)
    for name in ("new", "new_values"):
        step[name].requires_grad_()
    theirs, mine = peers(step, lengths), ours(step, lengths)
    unbiased = ((mine[2] - 1) / mine[2]) ** 0.5
    assert theirs[0].item() == pytest.approx(unbiased * mine[0].item(), rel=1e-6)
    assert theirs[1].item() == pytest.approx(mine[1].item(), rel=1e-9)
    at = step["new"], step["new_values"]
    expected = torch.autograd.grad(theirs[0] + 0.1 * theirs[1], at)
    found = torch.autograd.grad(unbiased * mine[0] + 0.1 * mine[1], at)
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b, atol=1e-8)


def test_shorter_replies_differ_from_the_peers_for_a_reason():
    """TRL puts a shorter reply's score one place behind its end, on padding: a state that no action leads out of.

    The value of that place is then in the return of the last token (its reward is one step, a factor γλ, further off) and is
    trained itself. Take V = 0 and its training away there, and γ = λ = 1 so that a step costs nothing, and both agree.
    """
    lengths = [6, 3, 4]
    step = drawn(lengths)
    assert abs(peers(step, lengths)[1] - ours(step, lengths)[1]) > 1e-3
    behind = [(1, 3), (2, 4)]
    for place in behind:
        step["values"][place] = step["new_values"][place] = 0.0
    whole, mine = peers(step, lengths, 1.0, 1.0)[1], ours(step, lengths, 1.0, 1.0)[1]
    tokens = sum(lengths)
    extra = sum(0.5 * step["scores"][row].square() for row, _ in behind)  # (0 − score)² of the places behind
    assert (whole * (tokens + len(behind)) - extra).item() == pytest.approx(mine.item() * tokens, rel=1e-9)
