"""Group relative policy optimisation (Shao et al. 2024, 2402.03300) and its family: online RL without a critic.

Of every prompt x of a step, K samples are drawn from the policy as it is and rewarded. With r = π(a) / π_old(a) per token:

    L = Σ_tokens c · [ −min(r A, clip(r, 1 − ε_low, 1 + ε_high) A) + β KL(π ‖ start) ]     A = (R − mean of x's) / std of x's

and c = 1 / (|y| · samples): every sample weighs the same. Other members put other functions in these places, by settings:
`baseline` and `scale` make A (`losses/advantage.py`), `ratio`, `surrogate` and `reduction` the rest (`losses/policy.py`).
On the first update after sampling r is 1 in value, exactly. Samples with A = 0 have no gradient (unless β > 0): they skip
both passes, and stay in the counts of c.

Metrics: `reward` (mean), `reward_<verifier>`, `reward_std` (within prompts), `zero_variance` (share of prompts whose samples
are worth the same), `distinct` (share of different samples of a prompt), `reply_tokens` (mean), `cut` (share ended by the
limit), `entropy` (mean −log π of what was drawn), `trained` (share of the samples that had a gradient), `clipped` (share of
the tokens whose gradient the clip took), `ratio_change` (mean |r − 1|), `mismatch` (mean log π_old − log μ with the engine's
μ: 0 where engine and trainer agree), `kl` (k3 a token, and `kl_sample` the sum over a sample; as a part of the reward `kl`
is that sum; with β > 0), `asked`
(prompts: with `resample` up to more than `batch_size`), `unscored` (share of samples without a readable verdict of a judge,
where there are any: they count as the mean of their prompt, or of the step), `guessed` (share of samples whose tokens a
server did not tell, where there are any: they are rewarded, and not trained on).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.seeds import rng
from ..core.types import Checkpoint, ModelShape
from ..losses.advantage import Baseline, Scale, group_advantages
from ..losses.kl import kl_estimate, kl_loss
from ..losses.policy import Level, Reduction, Surrogate, clipped, importance, log_ratios, surrogate, token_weights
from ..models.forward import Forward
from ..training.rollouts import FreshItems
from ..training.schedule import Schedule
from ..training.session import Session
from ..training.start_model import StartModel, open_start_model
from ..training.step import Work
from ..training.token_logps import token_logps
from ._batch import Batch, Question
from ._online import OnlineSettings, Sampler, check_online, identity, questions_of
from ._parts import Counts, Part, asking_work, flat, part_work, parts_of, shares_of
from ._run import train_online

__all__ = ["Grpo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grpo(OnlineSettings):
    """GRPO and its family (Dr. GRPO, DAPO, GSPO, CISPO, RLOO, REINFORCE++): learn from rewarded samples of the model itself.

    Rows are questions, `{"prompt", "example"}` as the maker `questions` writes them; without `example`, `answer` is the gold
    answer. `batch_size` counts prompts a step, `group` samples of each. `rewards` are verifiers with weights:
    `rewards=[exact,0.1*format]`.
    """

    version: ClassVar[str] = "1"
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Shao et al. 2024, arXiv 2402.03300"
    cost: ClassVar[str] = "sampling `group` replies a prompt and 3 forward passes per token of those that differ in reward"
    fails: ClassVar[str] = "all samples of a prompt right or all wrong: no gradient; a reward with a gap: it is found"
    known_as: ClassVar[Mapping[str, str]] = {
        "dr_grpo": "grpo:scale=one,reduction=constant",
        "drgrpo": "grpo:scale=one,reduction=constant",
        "dapo": "grpo:clip_high=0.28,reduction=token,resample=3,overlong=64",
        "gspo": "grpo:ratio=sequence,clip_low=0.0003,clip_high=0.0004",
        "cispo": "grpo:surrogate=cispo,clip_high=4,reduction=token",
        "rloo": "grpo:baseline=leave_one_out,scale=one,surrogate=reinforce,reduction=sum",
        "reinforce": "grpo:baseline=zero,scale=one,surrogate=reinforce,reduction=sum",
        "reinforce_pp": "grpo:baseline=zero,scale=batch,reduction=token,kl=0.001,kl_in=reward",
    }

    group: int = 8  # samples of each prompt
    baseline: Baseline = "mean"
    scale: Scale = "group"
    ratio: Level = "token"
    surrogate: Surrogate = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0  # c of the lower bound for A < 0; 0: none
    reduction: Reduction = "sequence"
    kl_in: Literal["loss", "reward"] = "loss"
    resample: int = 0  # times that prompts without a difference in reward are replaced by new ones (dynamic sampling)
    lr: float = 1e-6
    schedule: Schedule = "constant"
    batch_size: int = 8

    def __call__(self, start: Checkpoint, data: Sequence[Mapping[str, Any]], out: Path, *, seed: int) -> Checkpoint:
        """Train and return the new checkpoint in `out/checkpoint`; the same call after a kill goes on inside `out`."""
        self._check_settings()
        session = replace(Session.open(identity(self), start, data, out, seed=seed), method=self)
        if session.done is not None:
            return session.done
        session.module.sharpen(self.rollout_temperature)
        questions, dropped = questions_of(session, self)
        held_to = open_start_model(session, temperature=self.rollout_temperature) if self.kl else None
        sampler = Sampler.open(session, self, questions, samples=self.group)
        objective = _Objective(self, session.opened.loaded.shape, session.frozen_backbone, session.module.packs)
        stepper = _Stepper(self, session, sampler, objective, held_to)
        return train_online(session, sampler, objective, stepper, questions, dropped=dropped, held_to=held_to)

    def _check_settings(self) -> None:
        check_online(self, "grpo")
        if self.group < 2 and (self.baseline != "zero" or self.scale == "group"):
            raise ConfigError(
                f"grpo: group = {self.group}: samples of a prompt are compared with each other: draw 2 or more"
            )
        if not 0 < self.clip_low <= 1 or not self.clip_high > 0 or (self.dual_clip and not self.dual_clip > 1):
            raise ConfigError(
                f"grpo: clip_low = {self.clip_low} must be in (0, 1], clip_high = {self.clip_high} positive, and dual_clip "
                f"= {self.dual_clip} above 1 (or 0: off)"
            )
        if self.resample < 0:
            raise ConfigError(f"grpo: resample = {self.resample} must not be negative")
        if self.resample and self.overlap:
            raise ConfigError(
                "grpo: resample asks for more samples within a step, and overlap for all of them before: leave one out"
            )
        if self.resample and self.group < 2:
            raise ConfigError(f"grpo: resample looks for samples that differ, and group = {self.group}: draw 2 or more")
        if self.dual_clip and self.surrogate != "clip":
            raise ConfigError(f"grpo: dual_clip belongs to surrogate=clip, not to {self.surrogate}: leave it out")
        if self.ratio == "sequence" and self.surrogate != "clip":
            raise ConfigError(f"grpo: ratio=sequence belongs to surrogate=clip, not to {self.surrogate}: leave it out")
        if self.surrogate == "reinforce" and self.minibatches * self.iterations > 1:
            raise ConfigError(
                "grpo: surrogate=reinforce is for samples of the policy as it is, and after the first update they are of an "
                "older one: leave minibatches and iterations out, or take surrogate=clip"
            )
        if self.kl_in == "reward" and not self.kl:
            raise ConfigError("grpo: kl_in=reward needs kl, its weight")


@dataclass(frozen=True, slots=True)
class _Stepper:
    """Makes what a step trains on: samples, rewards, advantages, and the log-probabilities that must be known before."""

    method: Grpo
    session: Session
    sampler: Sampler
    objective: _Objective
    held_to: StartModel | None

    def state(self) -> dict[str, Any]:
        return self.sampler.state()

    def load(self, state: dict[str, Any]) -> None:
        self.sampler.load(state)

    def __call__(self, rows: Sequence[Question], step: int) -> FreshItems:
        method = self.method
        batch, asked = self._sampled(rows, step)
        self.sampler.log.write(batch, step)
        groups = [[rollout.encoded for rollout in each] for each in batch.rollouts]
        work = [self.objective.group_work(group, backward=False) for group in groups]
        told, cost, updates = batch.measures(), batch.cost, method.minibatches * method.iterations
        budget = 4 * self.session.tokens_per_microbatch
        reference = old = None
        if self.held_to is not None:
            with self.held_to.frozen() as start:
                reference, reading = token_logps(start, groups, work, tokens_per_microbatch=budget)
            cost += reading
        if updates > 1 or method.kl_in == "reward":
            old, reading = token_logps(self.session.module, groups, work, tokens_per_microbatch=budget)
            cost += reading
        rewards_PK = batch.rewards_PK
        if method.kl_in == "reward" and reference is not None and old is not None:
            how, pairs = method.kl_estimator, zip(old, reference, strict=True)
            kl_PK = torch.tensor(
                [[float(kl_estimate(o, r, estimator=how).sum()) for o, r in zip(*pair, strict=True)] for pair in pairs]
            )
            rewards_PK, told["kl"] = rewards_PK - method.kl * kl_PK, float(kl_PK.mean())
        advantages_PK = group_advantages(rewards_PK, baseline=method.baseline, scale=method.scale)
        parts = parts_of(
            batch, advantages_PK, old=old, reference=reference if method.kl_in == "loss" else None,
            drop_cut=method.drop_cut, every=self.objective.kl_in_loss, budget=self.session.tokens_per_microbatch,
        )  # fmt: skip
        told["trained"] = sum(len(part.group) for each in parts for part in each) / (len(groups) * method.group)
        if method.resample:
            told["asked"] = asked
        told["generated"] = cost.usage.generated
        shares = shares_of(batch, parts, method, seed=self.session.seed, step=step)
        return FreshItems(items=shares[0] if len(shares) == 1 else (), cost=cost, measures=told, updates=shares)

    def _sampled(self, rows: Sequence[Question], step: int) -> tuple[Batch, int]:
        """Return a step's samples; with `resample`, of prompts whose samples differ in reward (DAPO, section 3.2)."""
        batch, asked = self.sampler(rows, step=step), len(rows)
        if not self.method.resample:
            return batch, asked
        pool = list(self.sampler.asked)
        rng(self.session.seed, "resample", step).shuffle(pool)
        first = {question.row for question in rows}
        pool = [question for question in pool if question.row not in first]
        whole = batch
        kept = batch.of(_differing(batch))
        for attempt in range(1, self.method.resample + 1):
            missing = len(rows) - len(kept.questions)
            new, pool = pool[:missing], pool[missing:]
            if not new:
                break
            more = self.sampler(new, step=step, attempt=attempt)
            asked, whole = asked + len(new), whole.and_(more)
            kept = kept.and_(more.of(_differing(more)))
        chosen = kept if len(kept.questions) else batch  # nothing differs: a step without a gradient, told as it is
        return replace(chosen, cost=whole.cost), asked


def _differing(batch: Batch) -> list[int]:
    same_P = (batch.rewards_PK == batch.rewards_PK[:, :1]).all(1)
    return (~same_P).nonzero().flatten().tolist()


@dataclass(frozen=True, slots=True)
class _Objective:
    side_by_side: ClassVar[bool] = True

    method: Grpo
    shape: ModelShape
    frozen_backbone: bool
    shares: bool

    @property
    def kl_in_loss(self) -> bool:
        return self.method.kl > 0 and self.method.kl_in == "loss"

    @property
    def group_work(self) -> Callable[..., Work]:
        return part_work(self.shape, frozen_backbone=self.frozen_backbone, shares=self.shares)

    def work(self, item: Part | Question, *, backward: bool = True) -> Work:
        if isinstance(item, Question):
            return asking_work(
                item.tokens, samples=self.method.group, tokens=self.method.rollout_tokens, shape=self.shape,
                frozen_backbone=self.frozen_backbone, backward=backward,
            )  # fmt: skip
        return self.group_work(item.group, backward=backward)

    def totals(self, items: Sequence[Part]) -> Counts:
        return items[0].counts

    def __call__(self, module: Forward, items: Sequence[Part], totals: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        method = self.method
        batch = module.batch([item.group for item in items])
        owner_N, sequences = batch.owner_N, batch.sequences
        coefficient_N = token_weights(
            owner_N, in_micro_batch=sequences, reduction=method.reduction, tokens=totals.tokens,
            sequences=totals.sequences, constant=method.rollout_tokens,
        )  # fmt: skip
        advantage_N = torch.tensor([a for item in items for a in item.advantages], dtype=torch.double)[owner_N]
        sampler_N = flat(item.sampler for item in items)
        on_policy = all(item.on_policy for item in items)
        if on_policy and not self.kl_in_loss and not method.truncate:  # r = 1: the gradient is known before the forward pass
            weighted, logps_N = module(batch, -coefficient_N * advantage_N)
            value = weighted if method.surrogate == "reinforce" else (-coefficient_N * advantage_N).sum()
            loss = weighted + (value - weighted).detach()
            return loss, self._measures(logps_N, logps_N, advantage_N, owner_N, sequences, sampler_N, totals)
        logps_N = module(batch)
        to = logps_N.device
        coefficient_N, advantage_N, owner_N = coefficient_N.to(logps_N), advantage_N.to(logps_N), owner_N.to(to)
        old_N = logps_N.detach() if on_policy else flat(item.old for item in items).to(logps_N)
        ratios_N = log_ratios(logps_N, old_N, owner_N, sequences=sequences, level=method.ratio)
        value_N = surrogate(
            ratios_N, advantage_N, logps_N, kind=method.surrogate, low=method.clip_low, high=method.clip_high,
            dual=method.dual_clip,
        )  # fmt: skip
        if method.truncate:
            value_N = value_N * importance(old_N, sampler_N.to(logps_N), cap=method.truncate)
        measures = self._measures(logps_N.detach(), old_N, advantage_N, owner_N, sequences, sampler_N, totals)
        if self.kl_in_loss:
            reference_N = flat(item.reference for item in items).to(logps_N)
            value_N = value_N + method.kl * kl_loss(logps_N, reference_N, old_N, estimator=method.kl_estimator).to(value_N)
            from_start = kl_estimate(logps_N.detach(), reference_N).sum()
            measures |= {"kl": from_start / totals.trained_tokens, "kl_sample": from_start / max(1, totals.sequences)}
        return (coefficient_N * value_N).sum(), measures

    def _measures(
        self, logps_N: Tensor, old_N: Tensor, advantage_N: Tensor, owner_N: Tensor, sequences: int, sampler_N: Tensor,
        totals: Counts,
    ) -> dict[str, Tensor]:  # fmt: skip
        method = self.method
        ratios_N = log_ratios(logps_N, old_N, owner_N.to(logps_N.device), sequences=sequences, level=method.ratio)
        lost_N = clipped(ratios_N, advantage_N.to(logps_N), low=method.clip_low, high=method.clip_high)
        if method.surrogate != "clip":
            lost_N = torch.zeros_like(lost_N)
        apart_N = old_N.double().cpu() - sampler_N
        return {
            "clipped": lost_N.double().sum() / totals.trained_tokens,
            "ratio_change": (ratios_N.double().exp() - 1).abs().sum() / totals.trained_tokens,
            "mismatch": apart_N.nan_to_num(0.0).sum() / totals.trained_tokens,
        }
