"""Proximal policy optimisation as in RLHF (Schulman et al. 2017, 1707.06347; Ziegler et al. 2019; Ouyang et al. 2022).

Replies are drawn from the policy as it is and rewarded as a whole, R(x, y). A token's reward is its price in KL, and the
last one's has R on top; a value model V says what is to be expected in front of every token:

    r_t = −β (log π_old(a_t | s_t) − log π_start(a_t | s_t)) + [t is the last] R        A = GAE(γ, λ) of r and V_old
    L   = mean over tokens of  −min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A)  +  c · ½ max((V − R̂)², (clip V − R̂)²)

with ρ = π(a_t) / π_old(a_t) and R̂ = A + V_old (`losses/gae.py`, `losses/policy.py`); A is whitened over the whole step.
With `kl_in=loss` the KL is a part of the loss instead, with its exact gradient (`losses/kl.py`). With `truncate=c` each
token's surrogate is weighed by min(π_old / μ, c) for the μ of who sampled it (`losses/policy.py`). Nothing comes after a
sample's last token, whether it ended or was cut: no value is put behind it.

Metrics beside those of the samples (`reward`, `reward_<verifier>`, `watched_<verifier>`, `cut`, …): `kl` (mean
of log π_old − log π_start over whole samples, nats), `kl_weight` (β), `value` (mean V_old), `explained` (share of the
variance of R̂ that V_old explains), `policy_loss`, `value_loss`, `clipped`, `value_clipped` (shares of the tokens whose
gradient a clip took), `ratio_change` (mean |ρ − 1|), `mismatch` (mean log π_old − log μ with the engine's μ).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.types import Checkpoint, ModelShape
from ..data.masks import Encoded
from ..losses.gae import value_clipped, value_loss
from ..losses.kl import Estimator, kl_estimate, kl_loss
from ..losses.policy import clipped, importance, surrogate
from ..losses.reduce import token_mean
from ..models.actor_critic import ActorCritic
from ..stats.flops import train_flops
from ..training.critic import CriticStart
from ..training.rollouts import FreshItems
from ..training.schedule import Schedule
from ..training.session import Session
from ..training.start_model import StartModel, open_start_model
from ..training.step import Work
from ..training.token_logps import token_logps, token_values
from ._batch import Batch, Question
from ._kl_weight import KlWeight
from ._online import OnlineSettings, Sampler, check_online, identity, questions_of
from ._parts import Counts, asking_work, flat, part_work, shares_of
from ._ppo_steps import Steps, steps_of
from ._run import train_online

__all__ = ["Ppo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ppo(OnlineSettings):
    """PPO, the algorithm of RLHF: a policy learns from rewarded samples of its own, with a value model as baseline.

    Rows are questions, as for `grpo`. `batch_size` counts prompts a step, `samples` of each. `rewards` are verifiers with
    weights, a reward model among them: `rewards=[(reward_model:model=…)]`. The value model begins as `value_start` names it,
    a reward model for example, or as the start under a head of zeros; it is saved in `checkpoint/value`.
    """

    version: ClassVar[str] = "1"
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Schulman et al. 2017, arXiv 1707.06347; Ouyang et al. 2022, arXiv 2203.02155"
    cost: ClassVar[str] = (
        "sampling a reply a prompt, and per token of it 6 forward passes an iteration (policy 3, value model 3) and 3 before"
    )
    fails: ClassVar[str] = (
        "a reward model is pleased more and more by replies that get worse; a value model that lags behind"
    )
    known_as: ClassVar[Mapping[str, str]] = {"rlhf": "ppo:rewards=['reward_model:model=…'],value_start=…"}

    samples: int = 1  # of each prompt
    gamma: float = 1.0
    lam: float = 0.95  # λ
    clip_low: float = 0.2
    clip_high: float = 0.2
    whiten: bool = True  # advantages, over the whole step
    kl: float = 0.05  # β
    kl_in: Literal["reward", "loss"] = "reward"
    kl_estimator: Estimator = "k1"
    kl_target: float = 0.0  # nats a sample that β is moved for; 0: β is fixed
    kl_horizon: int = 10_000  # samples
    reward_scale: float = 1.0
    reward_clip: float = 0.0  # bound of the scaled reward; 0: none
    cut_penalty: float = 0.0  # taken from the reward of a sample that the limit ended
    value_start: str = ""  # empty: the start under a head of zeros
    value_lr: float = 1e-5  # 0: lr
    value_weight: float = 1.0  # c
    value_clip: float = 0.2  # 0: none
    value_warmup: int = 0  # steps in which the value model alone learns
    iterations: int = 4
    lr: float = 1e-6
    schedule: Schedule = "constant"
    batch_size: int = 64

    def __call__(self, start: Checkpoint, data: Sequence[Mapping[str, Any]], out: Path, *, seed: int) -> Checkpoint:
        """Train and return the new checkpoint in `out/checkpoint`; the same call after a kill goes on inside `out`."""
        self._check_settings()
        critic = CriticStart(ref=self.value_start, lr=self.value_lr)
        session = replace(Session.open(identity(self), start, data, out, seed=seed, critic=critic), method=self)
        if session.done is not None:
            return session.done
        assert session.critic is not None
        session.module.sharpen(self.rollout_temperature)
        questions, dropped = questions_of(session, self)
        held_to = open_start_model(session, temperature=self.rollout_temperature) if self.kl else None
        module = session.critic.beside(session.module)
        objective = _Objective(
            self, session.opened.loaded.shape, session.critic.loaded.shape, session.frozen_backbone, module.packs
        )
        sampler = Sampler.open(session, self, questions, samples=self.samples)
        stepper = _Stepper(
            method=self, session=session, module=module, objective=objective, held_to=held_to, sampler=sampler,
            kl_weight=KlWeight(value=self.kl, target=self.kl_target, horizon=self.kl_horizon),
        )  # fmt: skip
        return train_online(session, sampler, objective, stepper, questions, dropped=dropped, held_to=held_to)

    def _check_settings(self) -> None:
        check_online(self, "ppo")
        for name, good, must in (
            ("samples", self.samples >= 1, "be at least 1"),
            ("gamma", 0 <= self.gamma <= 1, "be in [0, 1]"),
            ("lam", 0 <= self.lam <= 1, "be in [0, 1]"),
            ("clip_low", 0 < self.clip_low <= 1, "be in (0, 1]"),
            ("clip_high", self.clip_high > 0, "be positive"),
            ("kl_horizon", self.kl_horizon >= 1, "be at least 1"),
            ("reward_scale", self.reward_scale != 0, "not be 0"),
            ("value_weight", self.value_weight > 0, "be positive"),
            *((n, getattr(self, n) >= 0, "not be negative") for n in ("kl_target", "reward_clip", "cut_penalty")),
            *((n, getattr(self, n) >= 0, "not be negative") for n in ("value_clip", "value_warmup")),
        ):
            if not good:
                raise ConfigError(f"ppo: {name} = {getattr(self, name)} must {must}")
        if self.kl_target and not self.kl:
            raise ConfigError("ppo: kl_target moves the weight of the KL, and kl = 0 stays 0: set kl to what it begins at")
        if self.value_warmup and self.weight_decay:
            raise ConfigError(
                "ppo: weight_decay would shrink the policy's weights in the steps of value_warmup too: leave one of them out"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stepper:
    """Makes what a step trains on: samples, rewards, and what must be known of each token before any weight changes."""

    method: Ppo
    session: Session
    module: ActorCritic
    sampler: Sampler
    objective: _Objective
    held_to: StartModel | None
    kl_weight: KlWeight

    def state(self) -> dict[str, Any]:
        return {**self.kl_weight.state(), "sampler": self.sampler.state()}

    def load(self, state: dict[str, Any]) -> None:
        self.kl_weight.load(state)
        self.sampler.load(state["sampler"])

    def __call__(self, rows: Sequence[Question], step: int) -> FreshItems:
        batch = self.sampler(rows, step=step)
        self.sampler.log.write(batch, step)
        told, cost, beta = batch.measures(), batch.cost, self.kl_weight.value
        groups = [[rollout.encoded for rollout in each] for each in batch.rollouts]
        budget = {"tokens_per_microbatch": 4 * self.session.tokens_per_microbatch}
        work = [self.objective.policy_work(group, backward=False) for group in groups]
        reference = None
        if self.held_to is not None:
            with self.held_to.frozen() as start:
                reference, reading = token_logps(start, groups, work, **budget)
            cost += reading
        old, reading = token_logps(self.session.module, groups, work, **budget)
        cost += reading
        work = [self.objective.value_work(group, backward=False) for group in groups]
        values, reading = token_values(self.module, groups, work, **budget)
        cost += reading
        if reference is not None:
            pairs = [pair for both in zip(old, reference, strict=True) for pair in zip(*both, strict=True)]
            told |= {"kl": float(torch.stack([(o - r).sum() for o, r in pairs]).mean()), "kl_weight": beta}
            self.kl_weight.note(told["kl"], len(pairs))
        parts, measures = self._parts(batch, old, values, reference, beta=beta, policy=step >= self.method.value_warmup)
        told |= {**measures, "generated": cost.usage.generated}
        shares = shares_of(batch, parts, self.method, seed=self.session.seed, step=step)
        return FreshItems(items=shares[0] if len(shares) == 1 else (), cost=cost, measures=told, updates=shares)

    def _parts(
        self, batch: Batch, old: Sequence[Sequence[Tensor]], values: Sequence[Sequence[Tensor]],
        reference: Sequence[Sequence[Tensor]] | None, *, beta: float, policy: bool,
    ) -> tuple[list[list[Steps]], dict[str, float]]:  # fmt: skip
        """Return each prompt's samples with advantages and returns, in parts that fit, and what is to be told of these."""
        method = self.method
        rewards: dict[tuple[int, int], Tensor] = {}
        for p, rollouts in enumerate(batch.rollouts):
            for k, rollout in enumerate(rollouts):
                if rollout.skipped(drop_cut=method.drop_cut):
                    continue
                price = (
                    kl_estimate(old[p][k], reference[p][k], estimator=method.kl_estimator) if reference else 0 * old[p][k]
                )
                rewards_T = -beta * price if method.kl_in == "reward" else 0 * price
                rewards_T[-1] += self._worth(float(batch.rewards_PK[p, k]), cut=rollout.cut)
                rewards[p, k] = rewards_T
        return steps_of(
            batch, rewards, old=old, values=values, reference=reference if method.kl_in == "loss" else None,
            gamma=method.gamma, lam=method.lam, whiten=method.whiten, beta=beta, policy=policy,
            budget=self.session.tokens_per_microbatch,
        )  # fmt: skip

    def _worth(self, reward: float, *, cut: bool) -> float:
        """Return R: scaled, then bounded, then less the penalty of a sample that the limit ended."""
        method = self.method
        scaled = method.reward_scale * reward
        if method.reward_clip:
            scaled = min(max(scaled, -method.reward_clip), method.reward_clip)
        return scaled - (method.cut_penalty if cut else 0.0)


@dataclass(frozen=True, slots=True)
class _Objective:
    side_by_side: ClassVar[bool] = True

    method: Ppo
    shape: ModelShape
    value_shape: ModelShape
    frozen_backbone: bool
    shares: bool

    def policy_work(self, group: Sequence[Encoded], *, backward: bool) -> Work:
        return part_work(self.shape, frozen_backbone=self.frozen_backbone, shares=self.shares)(group, backward=backward)

    def value_work(self, group: Sequence[Encoded], *, backward: bool) -> Work:
        return part_work(self.value_shape, frozen_backbone=False, shares=self.shares)(group, backward=backward)

    def work(self, item: Steps | Question, *, backward: bool = True) -> Work:
        if isinstance(item, Question):
            asked = asking_work(
                item.tokens, samples=self.method.samples, tokens=self.method.rollout_tokens, shape=self.shape,
                frozen_backbone=self.frozen_backbone, backward=backward,
            )  # fmt: skip
            if not backward:
                return asked
            valued = train_flops(self.value_shape, tokens=asked.tokens, logits=self.method.rollout_tokens)
            return replace(asked, flops=asked.flops + self.method.samples * valued)
        value = self.value_work(item.group, backward=backward)
        if not item.policy:
            return value
        policy = self.policy_work(item.group, backward=backward)
        return Work(tokens=policy.tokens, flops=policy.flops + value.flops, read=value.tokens)

    def totals(self, items: Sequence[Steps]) -> Counts:
        return items[0].counts

    def __call__(self, module: ActorCritic, items: Sequence[Steps], totals: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        method, tokens = self.method, totals.tokens
        batch = module.batch([item.group for item in items]).to(module.policy.model.device)
        values_N = module.values(batch)
        before_N, returns_N = (flat(x).to(values_N) for x in ((i.values for i in items), (i.returns for i in items)))
        fitted = token_mean(value_loss(values_N, before_N, returns_N, clip=method.value_clip), tokens=tokens)
        lost_N = value_clipped(values_N, before_N, returns_N, clip=method.value_clip)
        measures = {"value_loss": fitted.detach(), "value_clipped": lost_N.double().sum() / tokens}
        if not items[0].policy:
            return method.value_weight * fitted, measures
        improved, told = self._policy(module.policy(batch), items, tokens)
        return improved + method.value_weight * fitted, {**measures, **told}

    def _policy(self, logps_N: Tensor, items: Sequence[Steps], tokens: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this micro-batch's share of the policy's loss, and its measures."""
        method = self.method
        advantages_N, old_N, sampler_N = (
            flat(x).to(logps_N) for x in ((i.advantages for i in items), (i.old for i in items), (i.sampler for i in items))
        )
        if items[0].on_policy:
            old_N = logps_N.detach()
        ratios_N = logps_N - old_N
        low, high = method.clip_low, method.clip_high
        value_N = surrogate(ratios_N, advantages_N, logps_N, low=low, high=high)
        if method.truncate:
            value_N = value_N * importance(old_N, sampler_N, cap=method.truncate)
        if method.kl_in == "loss" and items[0].beta:
            reference_N = flat(item.reference for item in items).to(logps_N)
            penalty_N = kl_loss(logps_N, reference_N, old_N, estimator=method.kl_estimator)
            value_N = value_N + items[0].beta * penalty_N.to(value_N)
        loss = token_mean(value_N, tokens=tokens)
        ratios_N = ratios_N.detach().double()
        sums = {
            "clipped": clipped(ratios_N, advantages_N, low=low, high=high).double().sum(),
            "ratio_change": (ratios_N.exp() - 1).abs().sum(),
            "mismatch": (old_N - sampler_N).double().nan_to_num(0.0).sum(),
        }
        return loss, {"policy_loss": loss.detach(), **{name: total / tokens for name, total in sums.items()}}
