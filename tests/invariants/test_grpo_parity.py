"""GRPO's loss and gradient against TRL's own `GRPOTrainer._compute_loss`, on random log-probabilities in float64."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from posttrain.losses.advantage import group_advantages
from posttrain.losses.kl import kl_loss
from posttrain.losses.policy import log_ratios, surrogate, token_weights

pytestmark = pytest.mark.parity
D = torch.double
LENGTHS = (5, 3, 7, 1)
MASK = torch.arange(7)[None] < torch.tensor(LENGTHS)[:, None]
OWNER = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))


def drawn(seed=0):
    draw = torch.Generator().manual_seed(seed)
    logps, old, reference = (-torch.rand(4, 7, generator=draw, dtype=D) - 0.1 for _ in range(3))
    return logps, old, reference, torch.randn(4, generator=draw, dtype=D)


def theirs(logps, old, reference, advantages, *, loss_type, level, beta, low, high, delta, corrected):
    trl = pytest.importorskip("trl")
    accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, gather_for_metrics=lambda x: x,
        sync_gradients=True,
    )  # fmt: skip
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None), aux_loss_enabled=False,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level=level, beta=beta,
        args=SimpleNamespace(use_bias_correction_kl=corrected, delta=delta, steps_per_generation=1), loss_type=loss_type,
        epsilon_low=low, epsilon_high=high, use_vllm=False, model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1, max_completion_length=7, accelerator=accelerator,
        _entropy_bonus_enabled=False, _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    ids = torch.zeros(4, 7, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :2], "prompt_mask": ids[:, :2], "completion_ids": ids, "completion_mask": MASK.long(),
        "advantages": advantages, "old_per_token_logps": old, "ref_per_token_logps": reference,
        "num_items_in_batch": MASK.sum(),
    }  # fmt: skip
    return trl.GRPOTrainer._compute_loss(trainer, None, inputs)


def ours(logps, old, reference, advantages, *, kind, level, reduction, beta, low, high, dual):
    logps_N, old_N, reference_N = (values[MASK] for values in (logps, old, reference))
    ratios_N = log_ratios(logps_N, old_N, OWNER, sequences=4, level=level)
    values_N = surrogate(ratios_N, advantages[OWNER], logps_N, kind=kind, low=low, high=high, dual=dual)
    values_N = values_N + beta * kl_loss(logps_N, reference_N, old_N)
    weights_N = token_weights(
        OWNER, in_micro_batch=4, reduction=reduction, tokens=sum(LENGTHS), sequences=4, constant=7
    )  # fmt: skip
    return (weights_N * values_N).sum()


MEMBERS = {  # TRL's name, ours
    "grpo": ("grpo", {"reduction": "sequence"}),
    "dr_grpo": ("dr_grpo", {"reduction": "constant"}),
    "dapo": ("dapo", {"reduction": "token"}),
    "cispo": ("cispo", {"reduction": "token", "kind": "cispo"}),
}


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize(("beta", "dual"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1.5)])
def test_loss_and_gradient_are_trls(name, beta, dual):
    loss_type, settings = MEMBERS[name]
    kind = settings.get("kind", "clip")
    high = 0.3
    found = []
    for which in ("theirs", "ours"):
        logps, *rest = drawn()
        logps.requires_grad_()
        if which == "theirs":  # its CISPO names the cap itself, ours what is above 1
            loss = theirs(
                logps, *rest, loss_type=loss_type, level="token", beta=beta, low=0.2, corrected=True,
                high=1 + high if kind == "cispo" else high, delta=dual or None,
            )  # fmt: skip
        else:
            loss = ours(
                logps, *rest, kind=kind, level="token", beta=beta, low=0.2, high=high, dual=dual,
                reduction=settings["reduction"],
            )  # fmt: skip
        loss.backward()
        found.append((loss.item(), logps.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-10, atol=1e-14)


def test_sequence_ratios_are_trls():
    found = []
    for which in ("theirs", "ours"):
        logps, *rest = drawn(1)
        logps.requires_grad_()
        if which == "theirs":
            loss = theirs(
                logps, *rest, loss_type="grpo", level="sequence", beta=0.0, low=0.02, high=0.03, delta=None, corrected=True
            )
        else:
            loss = ours(
                logps, *rest, kind="clip", level="sequence", reduction="sequence", beta=0.0, low=0.02, high=0.03, dual=0.0
            )
        loss.backward()
        found.append((loss.item(), logps.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-10, atol=1e-14)


def test_without_its_correction_trls_kl_has_another_gradient():
    """Uncorrected k3 has the gradient of the other KL on average (tests/unit/test_policy_losses.py): ours is corrected."""
    grads = []
    for corrected in (True, False):
        logps, _, reference, _ = drawn()
        logps.requires_grad_()
        zero = torch.zeros(4, dtype=D)
        theirs(
            logps, logps.detach(), reference, zero, loss_type="grpo", level="token", beta=1.0, low=0.2, high=0.2, delta=None,
            corrected=corrected,
        ).backward()  # fmt: skip
        grads.append(logps.grad)
    weights = torch.zeros(4, 7, dtype=D)
    weights[MASK] = token_weights(OWNER, in_micro_batch=4, reduction="sequence", tokens=16, sequences=4)
    logps, _, reference, _ = drawn()
    torch.testing.assert_close(grads[0], weights * (logps - reference), rtol=1e-8, atol=1e-12)  # Σ d ∇log π
    assert not torch.allclose(grads[0], grads[1], rtol=0.05)


def test_advantages_are_trls_up_to_its_larger_epsilon():
    rewards = torch.tensor([[1.0, 0, 0, 3.0], [2.0, 5.0, 1.0, 1.0]], dtype=D)
    wanted = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)  # grpo_trainer.py
    torch.testing.assert_close(group_advantages(rewards), wanted, rtol=1e-3, atol=0)
