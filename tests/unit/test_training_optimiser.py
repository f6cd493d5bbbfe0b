"""Learning rates, batching, AdamW over masters: against closed forms and a second AdamW in float64."""

import math

import pytest
import torch

from posttrain.core.errors import ConfigError, TrainingError
from posttrain.training.batching import micro_batches, share_of_rank, step_rows, steps_per_epoch
from posttrain.training.optimiser import Optimisation, Optimiser
from posttrain.training.schedule import learning_rate

torch.set_num_threads(1)


def rates(total, schedule, warmup):
    return [learning_rate(s, total=total, peak=1.0, schedule=schedule, warmup=warmup) for s in range(total)]


def test_schedules_by_hand():
    assert rates(4, "constant", 0.5) == [0.5, 1.0, 1.0, 1.0]
    assert rates(4, "linear", 0.0) == [1.0, 0.75, 0.5, 0.25]
    assert rates(5, "linear", 0.4) == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.25])
    assert rates(4, "cosine", 0.0) == pytest.approx([1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 0.99])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_no_update_is_wasted_at_rate_zero_and_the_peak_is_reached(schedule, warmup, total):
    found = rates(total, schedule, warmup)
    assert all(0 < rate <= 1 for rate in found)
    assert max(found) == pytest.approx(1.0)


def test_an_epoch_is_a_permutation_and_epochs_differ():
    def epoch(number, seed=3):
        steps = range(number * steps_per_epoch(10, 4), (number + 1) * steps_per_epoch(10, 4))
        return [row for step in steps for row in step_rows(step, rows=10, batch_size=4, seed=seed)]

    assert sorted(epoch(0)) == sorted(epoch(1)) == list(range(10))
    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)
    assert epoch(0) != epoch(0, seed=4)


def test_micro_batches_keep_the_budget_and_every_item():
    lengths = [3, 9, 1, 5, 12, 5, 2]
    batches = micro_batches(list(range(7)), lengths, 10)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert batches[0] == [4]  # longer than the budget: alone
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 10 for b in batches)
    dealt = [share_of_rank(batches, rank, 3) for rank in range(3)]
    assert sorted(map(tuple, (b for share in dealt for b in share))) == sorted(map(tuple, batches))


def test_bfloat16_weights_follow_a_float32_adamw():
    torch.manual_seed(0)
    module = torch.nn.Linear(6, 5).bfloat16()
    reference = [torch.nn.Parameter(p.detach().double()) for p in module.parameters()]
    settings = Optimisation(lr=1e-4, weight_decay=0.1, clip=0.5)
    optimiser = Optimiser(module, settings)
    adamw = torch.optim.AdamW([{"params": reference[:1], "weight_decay": 0.1}, {"params": reference[1:], "weight_decay": 0}])
    for step in range(30):
        for micro in range(2):  # two micro-batches: gradients of the module are summed in float32
            x = torch.randn(4, 6, generator=torch.Generator().manual_seed(10 * step + micro)).bfloat16()
            before = [None if m.grad is None else m.grad.clone() for m in optimiser.masters]
            module(x).float().pow(2).sum().backward()
            assert all(p.grad is None for p in module.parameters())
            for r, m, b in zip(reference, optimiser.masters, before, strict=True):
                delta = m.grad if b is None else m.grad - b
                r.grad = delta.double() if micro == 0 else r.grad + delta.double()
        norm = math.sqrt(sum(float((r.grad**2).sum()) for r in reference))
        assert optimiser.norm() == pytest.approx(norm, rel=1e-5)
        for r in reference:
            r.grad *= min(1.0, 0.5 / norm)
        for group in adamw.param_groups:
            group["lr"] = 1e-4
        optimiser.update(1e-4, optimiser.norm())
        adamw.step()
    for master, param, expected in zip(optimiser.masters, module.parameters(), reference, strict=True):
        torch.testing.assert_close(master.double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(param.float(), master, rtol=2**-7, atol=0)  # one of the two neighbours
        assert master.dtype == torch.float32


def test_updates_too_small_for_bfloat16_are_not_lost():
    module = torch.nn.Linear(1, 1, bias=False).bfloat16()
    module.weight.data.fill_(1.0)
    optimiser = Optimiser(module, Optimisation(lr=1e-4))
    for _ in range(100):
        module(torch.ones(1, 1).bfloat16()).sum().backward()
        optimiser.update(1e-4, optimiser.norm())
    assert module.weight.item() == pytest.approx(0.99, abs=4e-3)  # 100 updates of 1e-4; each alone rounds away


def test_state_round_trip_and_foreign_state():
    def made(width=3):
        torch.manual_seed(width)
        module = torch.nn.Linear(width, 2).bfloat16()
        optimiser = Optimiser(module, Optimisation(lr=0.1))
        module(torch.ones(1, width).bfloat16()).float().sum().backward()
        optimiser.update(0.1, optimiser.norm())
        return module, optimiser

    module, optimiser = made()
    other, loaded = made()
    loaded.params[0].data.zero_()
    loaded.load(optimiser.state())
    assert torch.equal(other.weight, module.weight)
    named = torch.nn.Sequential(torch.nn.Linear(3, 2))
    with pytest.raises(TrainingError, match="another model"):
        Optimiser(named, Optimisation(lr=0.1)).load(optimiser.state())


def test_nothing_trainable_and_bad_settings():
    with pytest.raises(TrainingError, match="no weight is trainable"):
        Optimiser(torch.nn.Linear(1, 1).requires_grad_(False), Optimisation(lr=1))
    with pytest.raises(ConfigError, match="warmup"):
        Optimisation(lr=1, warmup=1.5)
