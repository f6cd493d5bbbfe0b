"""Warm-up, stable, decay against its closed form; optimisers that cannot be had here say so."""

import itertools
import sys
from types import SimpleNamespace

import pytest
import torch

from posttrain.core.errors import ConfigError
from posttrain.training import optimiser as module
from posttrain.training.optimiser import Optimisation, Optimiser
from posttrain.training.schedule import learning_rate


def rates(total, warmup, decay_share):
    how = {"total": total, "peak": 2.0, "schedule": "wsd", "warmup": warmup, "decay_share": decay_share}
    return [learning_rate(step, **how) for step in range(total)]


def test_wsd_by_hand():
    assert rates(10, 0.2, 0.3) == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.5, 1.0, 0.5]
    assert rates(4, 0.0, 0.25) == [2.0, 2.0, 2.0, 1.0]
    assert rates(4, 0.0, 1.0) == [2.0, 1.5, 1.0, 0.5]  # all decay: linear from the first step
    assert rates(5, 0.4, 0.6) == [1.0, 2.0, 1.5, 1.0, 0.5]  # no stable part


@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5])
@pytest.mark.parametrize("decay_share", [0.01, 0.2, 0.5])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_wsd_has_the_shares_it_says_and_wastes_no_step(total, warmup, decay_share):
    found = rates(total, warmup, decay_share)
    assert all(0 < rate <= 2 for rate in found)
    assert max(found) == 2
    warm, decay = -int(-warmup * total // 1), -int(-decay_share * total // 1)
    assert sum(rate < 2 for rate in found[warm:]) == min(decay, total - warm) - (decay >= total and warm == 0)
    falling = found[total - min(decay, total - warm) :]
    steps = [a - b for a, b in itertools.pairwise(falling)]
    assert all(step == pytest.approx(steps[0]) for step in steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "wsd", "warmup": 0.6, "decay_share": 0.5}, "more than all steps"),
        ({"schedule": "cosine", "decay_share": 0.5}, "read with schedule=wsd only"),
        ({"schedule": "wsd", "decay_share": 0.0}, "decay_share = 0.0"),
    ],
)
def test_impossible_schedules(settings, message):
    with pytest.raises(ConfigError, match=message):
        Optimisation(lr=1.0, **settings)


def test_adamw_is_fused_where_it_can_be():
    assert Optimiser(torch.nn.Linear(2, 2), Optimisation(lr=0.1))._adamw.defaults["fused"] is True


def test_eight_bit_moments_need_cuda_and_bitsandbytes(monkeypatch):
    with pytest.raises(ConfigError, match="works on CUDA devices only: use optimiser=adamw"):
        Optimiser(torch.nn.Linear(2, 2), Optimisation(lr=0.1, kind="adamw8bit"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes .*pip install bitsandbytes"):
        module.eight_bit({"cuda"})


def test_eight_bit_adamw_gets_the_groups_and_settings(monkeypatch):
    class Recorder(torch.optim.AdamW):  # bitsandbytes' class takes the same groups and names
        def __init__(self, groups, **how):
            self.how = how
            super().__init__(groups, **how)

    monkeypatch.setattr(module, "eight_bit", lambda types: SimpleNamespace(AdamW8bit=Recorder))
    made = Optimiser(torch.nn.Linear(2, 2), Optimisation(lr=0.1, weight_decay=0.3, beta2=0.95, kind="adamw8bit"))
    assert made._adamw.how == {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    assert [group["weight_decay"] for group in made._adamw.param_groups] == [0.3, 0.0]
