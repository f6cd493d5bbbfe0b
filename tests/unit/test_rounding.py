"""Small steps reach bfloat16 weights: on average they are where their masters are, and nothing else moves."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from posttrain.models.rounding import round_into
from posttrain.training.optimiser import Optimisation, Optimiser
from posttrain.training.shards import first_element, slice_of


def on_the_grid(*shape, seed=0):
    return (0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).bfloat16()


def rounded(master, first=0):
    weight = torch.empty(master.shape, dtype=torch.bfloat16)
    round_into(weight, master, first)
    return weight.float()


def test_what_bfloat16_can_hold_stays_what_it_is():
    start = torch.cat([on_the_grid(400, 700).flatten(), torch.tensor([0.0, -0.0, 1.0, -2.0, 1e-30, -3e38]).bfloat16()])
    assert torch.equal(rounded(start.float()), start.float())


@pytest.mark.parametrize("step", [1e-7, 3e-6, -1e-5, 4e-4])
def test_a_step_arrives_on_average_however_small(step):
    """Rounding to the nearest, which is what a copy does, keeps a hundredth of a step of 3e-6."""
    start = on_the_grid(2048, 1024).float()
    master = start + step
    moved = (rounded(master) - start).double()
    assert float(moved.mean()) == pytest.approx(float((master - start).double().mean()), rel=0.1)
    if abs(step) <= 3e-6:
        assert abs(float((master.bfloat16().float() - start).mean())) < 0.03 * abs(step)


def test_a_weight_is_one_of_its_masters_two_neighbours_and_follows_it():
    start = on_the_grid(3000)
    away = torch.linspace(0, 1, 41)
    spacing = 2.0 ** (start.float().abs().log2().floor() - 7)
    masters = start.float().abs()[None] + away[:, None] * spacing  # all the way to the next number
    seen = torch.stack([rounded(master) for master in masters])
    assert bool((seen.diff(dim=0) >= 0).all()), "a weight never goes back while its master goes on"
    lower, upper = start.float().abs(), start.float().abs() + spacing
    assert bool(((seen == lower) | (seen == upper)).all())
    shares = (seen == upper).float().mean(1)
    torch.testing.assert_close(shares, away, rtol=0, atol=0.03)


def test_rows_round_at_different_thresholds():
    """Else a step that is the same in every row would arrive in some columns alone."""
    start = on_the_grid(64, 65536).float().abs()
    up = (rounded(start + 1e-5) != start).float()
    assert float(up.std(0).mean()) > 0.1
    assert float(up.mean(0).max()) < 0.8


def test_slices_round_as_the_whole():
    master = on_the_grid(7, 100_003).float() + 3e-6
    whole = rounded(master)
    first = 3 * 100_003
    assert torch.equal(rounded(master[3:].contiguous(), first), whole[3:])


class Spread:
    """What `shards` asks of a weight that is spread over processes."""

    def __init__(self, full, rank, world):
        self.full, self.shape, self.ndim = full, full.shape, full.ndim
        self.device_mesh = SimpleNamespace(size=lambda: world, get_local_rank=lambda: rank)

    def __len__(self):
        return len(self.full)


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 8, 9])
@pytest.mark.parametrize("world", [2, 3, 4, 5])
@pytest.mark.parametrize("rest", [(), (6,), (2, 3)], ids=str)
def test_a_slice_knows_where_it_begins(rows, world, rest):
    full = torch.arange(rows * math.prod(rest)).view(rows, *rest)
    at = 0
    for rank in range(world):
        spread = Spread(full, rank, world)
        piece = slice_of(full, spread)
        assert first_element(spread) == at
        assert torch.equal(full.flatten()[at : at + piece.numel()], piece.flatten())
        at += piece.numel()
    assert at == full.numel()


def test_other_types_round_to_the_nearest():
    master = torch.randn(100)
    half = torch.empty(100, dtype=torch.float16)
    round_into(half, master)
    assert torch.equal(half, master.half())
    wide = torch.empty(100)
    round_into(wide, master)
    assert torch.equal(wide, master)


def test_training_at_a_small_rate_moves_a_bfloat16_model_as_far_as_its_masters():
    module = nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        module.weight.copy_(on_the_grid(256, 256))
    start = module.weight.detach().float().clone()
    optimiser = Optimiser(module, Optimisation(lr=1e-6, schedule="constant", clip=0))
    x = torch.randn(64, 256).bfloat16()
    for _ in range(10):
        module(x).float().pow(2).sum().backward()
        optimiser.update(1e-6, optimiser.norm())
    wanted = (optimiser.masters[0].detach() - start).double()
    moved = (module.weight.detach().float() - start).double()
    assert float((moved * wanted).sum() / wanted.square().sum()) == pytest.approx(1.0, abs=0.1)
    nearest = (optimiser.masters[0].detach().bfloat16().float() - start).double()
    assert float((nearest * wanted).sum() / wanted.square().sum()) < 0.2
    again = Optimiser(nn.Linear(256, 256, bias=False, dtype=torch.bfloat16), Optimisation(lr=1e-6))
    again.load(optimiser.state())
    assert torch.equal(again.params[0], module.weight), "resumed, the same weights"
