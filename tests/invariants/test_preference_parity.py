"""The DPO family and KTO against TRL: its formulas on random inputs, and ten steps of its DPO trainer, in float32."""

import json
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from tiny_models import folder, preferences
from trl_runs import follow

from posttrain.core.types import Checkpoint
from posttrain.losses.pairs import PairLoss
from posttrain.losses.unpaired import kto
from posttrain.preference.dpo import Dpo

torch.set_num_threads(1)
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

PAIRS, TOKENS = 5, 9  # of the random inputs; tokens of a row, of which the first is the prompt


class Stand:
    """In the place of TRL's trainer and model: its loss reads the log-probabilities it is given."""

    def __init__(self, logps, **settings):
        self._logps, self._metrics = logps, {"train": defaultdict(list)}
        self.model, self.args = SimpleNamespace(training=True), SimpleNamespace(discopop_tau=0.05)
        same = lambda value: value  # noqa: E731
        self.accelerator = SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same)
        self.precompute_ref_logps, self.aux_loss_enabled, self.use_weighting, self.ld_alpha = True, False, False, None
        self._total_train_tokens, self._tp_size, self.label_smoothing = 0, 1, 0.0
        self.f_divergence_type, self.f_alpha_divergence_coef = "reverse_kl", 1.0
        self.__dict__.update(settings)

    def __call__(self, **_):
        zeros = torch.zeros_like(self._logps)
        return SimpleNamespace(log_probs=self._logps, entropy=zeros, mean_logits=zeros, is_top1=zeros > 1)


def random_inputs(seed, dtype=torch.float64):
    """Return token log-probabilities (0 where nothing is trained), masks and summed reference log-probabilities."""
    made = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, TOKENS, (2 * PAIRS,), generator=made)
    mask = (torch.arange(TOKENS) > 0) & (torch.arange(TOKENS) <= lengths[:, None])
    logps = -torch.rand(2 * PAIRS, TOKENS - 1, generator=made, dtype=torch.float64) * 1.5 * mask[:, 1:]
    reference = logps.sum(1) + torch.randn(2 * PAIRS, generator=made, dtype=torch.float64)
    return logps.to(dtype), mask, lengths, reference.to(dtype)


OURS_AND_TRLS = {
    "sigmoid": ({"beta": 0.3}, {"loss_types": ["sigmoid"]}),
    "hinge": ({"beta": 0.3, "loss": "hinge"}, {"loss_types": ["hinge"]}),
    "ipo": ({"beta": 0.3, "loss": "ipo"}, {"loss_types": ["ipo"]}),
    "robust": ({"beta": 0.3, "loss": "robust", "label_smoothing": 0.2}, {"loss_types": ["robust"], "label_smoothing": 0.2}),
    "per_token": ({"beta": 2.0, "per_token": True}, {"loss_types": ["sigmoid_norm"]}),
    "forward_kl": ({"f_divergence": "forward_kl"}, {"loss_types": ["sigmoid"], "f_divergence_type": "forward_kl"}),
    "js": ({"f_divergence": "js"}, {"loss_types": ["sigmoid"], "f_divergence_type": "js_divergence"}),
    "alpha": (
        {"f_divergence": "alpha", "f_alpha": 0.4},
        {"loss_types": ["sigmoid"], "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.6},
    ),
}


def ours_of(logps, lengths, reference, **settings):
    policy_B2 = logps.sum(1).view(2, -1).T
    return PairLoss(**settings)(policy_B2, reference.view(2, -1).T, lengths.view(2, -1).T.to(logps))[0]


@pytest.mark.parametrize("name", OURS_AND_TRLS)
def test_the_family_is_trls_formula(name):
    trl = pytest.importorskip("trl")
    settings, theirs = OURS_AND_TRLS[name]
    for seed in range(5):
        # TRL's alpha divergence knows no float64
        logps, mask, lengths, reference = random_inputs(seed, torch.float32 if name == "alpha" else torch.float64)
        given = logps.clone().requires_grad_()
        stand = Stand(given, beta=settings.get("beta", 0.1), loss_weights=[1.0], **theirs)
        chosen, rejected = reference.chunk(2)
        ids = torch.zeros(2 * PAIRS, TOKENS, dtype=torch.long)
        inputs = {
            "input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask.long(),
            "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
        }  # fmt: skip
        expected = trl.DPOTrainer._compute_loss(stand, stand, inputs, False)
        mine = logps.clone().requires_grad_()
        loss = ours_of(mine, lengths, reference, **settings).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        slopes = [torch.autograd.grad(value, leaf)[0] for value, leaf in ((expected, given), (loss, mine))]
        torch.testing.assert_close(slopes[1] * mask[:, 1:], slopes[0] * mask[:, 1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("settings", "trls"), [
    ({"loss": "cpo", "label_smoothing": 0.1}, {"loss_type": "sigmoid", "label_smoothing": 0.1}),
    ({"loss": "simpo", "beta": 2.5, "gap": 1.2}, {"loss_type": "simpo", "simpo_gamma": 1.2, "beta": 2.5}),
])  # fmt: skip
def test_cpo_and_simpo_are_trls_formula(settings, trls):
    module = pytest.importorskip("trl.experimental.cpo")
    logps, _, lengths, reference = random_inputs(1)
    self = SimpleNamespace(**{
        "alpha": 0.0, "beta": 0.1, "label_smoothing": 0.0, "accelerator": SimpleNamespace(device="cpu"), **trls
    })  # fmt: skip
    sums = logps.sum(1)
    given = sums / lengths if settings["loss"] == "simpo" else sums
    expected, *_ = module.CPOTrainer.cpo_loss(self, *given.chunk(2))
    likelihood = (sums / lengths).chunk(2)[0] if settings["loss"] == "cpo" else 0.0
    torch.testing.assert_close(ours_of(logps, lengths, reference, **settings), expected - likelihood, rtol=1e-6, atol=1e-8)


def test_orpo_is_trls_formula():
    module = pytest.importorskip("trl.experimental.orpo")
    logps, _, lengths, reference = random_inputs(2, torch.float32)
    chosen, rejected = (logps.sum(1) / lengths).chunk(2)
    self = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    ratio, *_ = module.ORPOTrainer.odds_ratio_loss(self, chosen, rejected)
    torch.testing.assert_close(
        ours_of(logps, lengths, reference, loss="orpo", beta=0.3), -chosen - ratio, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kl", [1.7, -0.8])
def test_kto_is_trls_formula(kl):
    trl = pytest.importorskip("trl")
    logps, mask, _, reference = random_inputs(3)
    given, label = logps.clone().requires_grad_(), torch.arange(2 * PAIRS) % 3 == 0
    stand = Stand(
        given, beta=0.3, calculate_KL=True, loss_type="kto", desirable_weight=1.3, undesirable_weight=0.6,
        _compute_kl_logps=lambda model, batch: torch.full((2 * PAIRS,), kl, dtype=torch.float64),
    )  # fmt: skip
    ids = torch.zeros(2 * PAIRS, TOKENS, dtype=torch.long)
    batch = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask.long(), "label": label,
        "ref_logps": reference, "ref_KL_logps": torch.zeros(2 * PAIRS, dtype=torch.float64),
    }  # fmt: skip
    expected = trl.KTOTrainer._compute_loss(stand, stand, batch, False)
    mine = logps.clone().requires_grad_()
    loss = kto(mine.sum(1) - reference, label, kl, beta=0.3, desirable_weight=1.3, undesirable_weight=0.6)
    slopes = [torch.autograd.grad(value, leaf)[0] for value, leaf in ((expected, given), (loss.mean(), mine))]
    assert loss.mean().item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-6, atol=1e-9)


STEPS, BATCH = 10, 6


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "robust", "per_token", "js"])
def test_ten_steps_follow_trls_trainer(name, tmp_path):
    trl = pytest.importorskip("trl")
    settings, theirs = OURS_AND_TRLS[name]
    beta = settings.get("beta", 0.1)
    start, rows = folder(tmp_path / "model"), preferences(STEPS * BATCH)
    shared = {"lr": 1e-3, "schedule": "linear", "warmup": 0.0, "batch_size": BATCH, "dtype": "float32", "save_every": 0}
    Dpo(**(shared | settings))(Checkpoint(path=start), rows, tmp_path / "ours", seed=5)
    ours = [json.loads(line) for line in (tmp_path / "ours" / "metrics.jsonl").read_text().splitlines()]

    def config(**common):
        named = {("loss_type" if key == "loss_types" else key): value for key, value in theirs.items()}
        return trl.DPOConfig(**common, beta=beta, **named)

    sides = ["chosen", "rejected"]
    seen, _ = follow(
        trl.DPOTrainer, config, rows, start, sides, tmp_path / "trl", steps=STEPS, batch=BATCH, lr=1e-3
    )  # fmt: skip
    assert len(ours) == len(seen) == STEPS
    for mine, their in zip(ours, seen, strict=True):
        assert mine["loss"] == pytest.approx(float(their["loss"]), rel=1e-4, abs=1e-4)
        assert mine["grad_norm"] == pytest.approx(float(their["grad_norm"]), rel=1e-4, abs=1e-4)
