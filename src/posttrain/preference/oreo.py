"""OREO (Wang et al. 2024, 2412.16145): a policy and a value model that agree on scored responses, from outcomes alone.

With ρ_i = log π(a_i | s_i) − log π_ref(a_i | s_i) and R the response's reward, over the states s_t of a response

    L_V = mean_t ( V(s_t) + β sg Σ_{i ≥ t} ρ_i − R )²
    L_π = mean_t ( sg V(s_t) + β ρ_t + β sg Σ_{i > t} ρ_i − R )²
    L   = L_V + L_π + α mean over the tokens of KL(π(· | s) ‖ π_ref(· | s))

averaged over the responses of the optimiser step. The KL is exact, over the whole vocabulary, and in the direction of π.
No pairs are needed, wrong responses teach too, and V tells which part of a response was worth what; it is saved beside the
policy and guides a search at test time (the verifier `value`).

`level`: an action is a token, a step (all tokens up to the next line), or the whole response. The consistency holds at each.

Metrics: `residual` (mean square of what both losses square: they have one value), `kl`, `reward` (mean R), `value_first` and
`value_last` (mean V of a response's first and last state), `log_ratio` (mean Σ_t ρ_t of a response), `states` (mean).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError
from ..core.types import Checkpoint, ModelShape
from ..data.masks import Encoded, encode_completion
from ..data.steps import step_starts
from ..engines.local.replies import replies
from ..losses.divergence import reverse_kl
from ..losses.oreo import policy_loss, to_go, value_loss
from ..losses.reduce import sequence_mean
from ..models.actor_critic import ActorCritic
from ..models.forward import Batch
from ..models.sharing import share_opening
from ..training.critic import CriticStart
from ..training.judged import Judged, read_judged
from ..training.rows import fits
from ..training.session import Session, group_work
from ..training.settings import TrainerSettings
from ..training.start_model import StartModel, open_start_model
from ..training.step import Work

__all__ = ["Oreo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Oreo(TrainerSettings):
    """OREO: learn a policy and a value model from scored responses, token by token or step by step, without pairs.

    Rows are `{"prompt", "responses": [texts], "scores": [numbers]}` or `{"prompt", "completion", "score"}`; R is the score ×
    `reward_scale` + `reward_shift`. Lengths are limited as in `sft`; `batch_size` counts responses. The value model begins
    as the start under a head of zeros, or as `value_start` names it: another run's value model, or a reward model.
    """

    version: ClassVar[str] = "1"
    scored: ClassVar[bool] = True  # rows keep their scores on the way here
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Wang et al. 2024, arXiv 2412.16145"
    cost: ClassVar[str] = (
        "7 forward passes per token of the responses and epoch, once (policy 3, value model 3, reference 1)"
    )
    fails: ClassVar[str] = "all responses right or all wrong: nothing to tell apart; beta too small: the policy runs away"

    beta: float = 0.03
    kl_weight: float = 0.01  # α
    level: Literal["token", "step", "response"] = "token"
    separator: str = "\\n"  # what ends a step; a written \n is a line break
    reward_scale: float = 1.0
    reward_shift: float = 0.0
    value_start: str = ""  # empty: the start under a head of zeros
    value_lr: float = 5e-6  # 0: lr
    lr: float = 5e-6

    def __call__(self, start: Checkpoint, data: Sequence[Mapping[str, Any]], out: Path, *, seed: int) -> Checkpoint:
        """Train and return the new checkpoint in `out/checkpoint`; the same call after a kill goes on inside `out`."""
        self._check_settings()
        critic = CriticStart(ref=self.value_start, lr=self.value_lr)
        session = Session.open(self, start, data, out, seed=seed, critic=critic)
        if session.done is not None:
            return session.done
        assert session.critic is not None
        found = read_judged(session.rows, where=session.where)
        read = [self._encoded(session, judged) for judged in found]
        limit = self.max_length or session.context
        kept = [r for r in read if fits(len(r.encoded.ids), limit, too_long=self.too_long, where=session.where(r.row))]
        trained = [response for response in kept if response.row not in session.held]
        if trained and len({response.reward for response in trained}) == 1:
            raise DataError(
                f"oreo: all {len(trained)} responses have the score of one reward, {trained[0].reward:g}: there is nothing "
                "to tell apart. Sample more, or from questions of middling difficulty (scored_responses:mixed=true)"
            )
        reference = open_start_model(session)
        objective = _Objective(
            self, reference, session.opened.loaded.shape, session.critic.loaded.shape, session.frozen_backbone,
            session.virtual_flops,
        )  # fmt: skip
        facts = {
            "responses": len(found),
            "prompts": len({judged.prompt for judged in found}),
            "dropped_too_long": len(read) - len(kept),
            "states": sum(len(response.starts) for response in trained),
        }
        return session.train(objective, kept, facts=facts, generate=replies, held_bytes=reference.bytes)

    def _check_settings(self) -> None:
        if not self.beta > 0 or self.kl_weight < 0 or not self.reward_scale:
            raise ConfigError(
                f"oreo: beta = {self.beta} must be positive, kl_weight = {self.kl_weight} not negative, reward_scale = "
                f"{self.reward_scale} not 0"
            )
        if not self.separator or (self.separator != "\\n" and self.level != "step"):
            raise ConfigError(f"oreo: separator = {self.separator!r} cuts steps, with level=step only, and cannot be empty")

    def _encoded(self, session: Session, judged: Judged) -> _Response:
        tokenizer = session.opened.loaded.tokenizer
        try:
            encoded = encode_completion(tokenizer, judged.messages, judged.response)
        except DataError as error:
            raise DataError(f"{session.where(judged.row)}: {error}") from None
        starts: tuple[int, ...] = (0,)
        if self.level == "token":
            starts = tuple(range(encoded.trained))
        if self.level == "step":
            ids = [token for token, trained in zip(encoded.ids, encoded.mask, strict=True) if trained]
            starts = step_starts(tokenizer, ids, separator=self.separator.replace("\\n", "\n"), closed=True)
        return _Response(judged.row, encoded, starts, self.reward_scale * judged.score + self.reward_shift)


@dataclass(frozen=True, slots=True)
class _Response:
    row: int
    encoded: Encoded
    starts: tuple[int, ...]  # the trained tokens that states stand in front of
    reward: float


@dataclass(frozen=True, slots=True)
class _States:
    """The states of a micro-batch: each one's response and first token, and the state that each token belongs to."""

    owner_S: Tensor
    first_S: Tensor
    of_N: Tensor

    @classmethod
    def of(cls, items: Sequence[_Response], device: Any) -> _States:
        owner: list[int] = []
        first: list[int] = []
        lengths: list[int] = []
        tokens = 0
        for at, item in enumerate(items):
            ends = (*item.starts[1:], item.encoded.trained)
            owner += [at] * len(item.starts)
            first += [tokens + start for start in item.starts]
            lengths += [end - start for start, end in zip(item.starts, ends, strict=True)]
            tokens += item.encoded.trained
        made = [torch.tensor(values, device=device) for values in (owner, first, lengths)]
        return cls(made[0], made[1], torch.repeat_interleave(made[2]))


@dataclass(frozen=True, slots=True)
class _Objective:
    method: Oreo
    reference: StartModel
    shape: ModelShape
    value_shape: ModelShape
    frozen_backbone: bool
    virtual_flops: Callable[..., float]

    def work(self, item: _Response, *, backward: bool = True) -> Work:
        tokens, trained = len(item.encoded.ids), item.encoded.trained
        readings = 2 if self.method.kl_weight else 1  # of the head: log-probabilities, and whole distributions
        policy, value = (
            group_work(
                shape, prefix=0, branches=[tokens], logits=logits, frozen_backbone=frozen, backward=backward
            )
            for shape, logits, frozen in (
                (self.shape, readings * trained, self.frozen_backbone), (self.value_shape, trained, False)
            )
        )  # fmt: skip
        flops = policy.flops + value.flops + self.virtual_flops(tokens, backward=backward)
        flops += self.reference.flops(tokens, logits=readings * trained)
        return Work(tokens=tokens, flops=flops, read=2 * tokens)

    def totals(self, items: Sequence[_Response]) -> int:
        return len(items)

    def __call__(self, module: ActorCritic, items: Sequence[_Response], totals: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch = module.batch(share_opening([item.encoded for item in items], self.shape))  # groups keep the order
        batch = batch.to(module.policy.model.device)
        start_ND = self.reference.hidden(batch)
        start_N = self.reference.logps(start_ND, batch)
        policy_ND = module.policy.hidden(batch)
        logps_N = module.policy.read(policy_ND, batch)
        assert isinstance(logps_N, Tensor)
        bellman, measures = self._bellman(items, logps_N - start_N, module.values(batch), totals)
        if not self.method.kl_weight:
            return bellman, measures
        penalty, kl = self._kl(module, items, batch, (start_ND, policy_ND), totals)
        return bellman + penalty.to(bellman), {**measures, "kl": kl}

    def _bellman(
        self, items: Sequence[_Response], ratios_N: Tensor, values_N: Tensor, totals: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this micro-batch's share of L_V + L_π, and its measures."""
        states, count, beta = _States.of(items, ratios_N.device), len(items), self.method.beta
        ratios_S = ratios_N.new_zeros(len(states.first_S)).index_add(0, states.of_N, ratios_N)
        values_S = values_N[states.first_S]
        rewards = torch.tensor([item.reward for item in items], dtype=torch.double, device=ratios_S.device)
        rewards_S = rewards[states.owner_S]
        togo_S = to_go(ratios_S, states.owner_S, count)
        losses_S = (
            value_loss(values_S, togo_S, rewards_S, beta=beta),
            policy_loss(values_S, ratios_S, togo_S, rewards_S, beta=beta),
        )
        value, policy = (sequence_mean(x_S, states.owner_S, in_micro_batch=count, sequences=totals) for x_S in losses_S)
        edges = torch.tensor([len(item.starts) for item in items], device=values_S.device).cumsum(0)
        values_S = values_S.detach()
        sums = {
            "residual": value.detach() * totals,
            "reward": rewards.sum(),
            "value_first": values_S[[0, *edges[:-1].tolist()]].sum(),
            "value_last": values_S[edges - 1].sum(),
            "log_ratio": ratios_N.detach().sum(),
            "states": torch.tensor(float(len(values_S))),
        }
        return value + policy, {name: total / totals for name, total in sums.items()}

    def _kl(
        self, module: ActorCritic, items: Sequence[_Response], batch: Batch, hidden: tuple[Tensor, Tensor], totals: int
    ) -> tuple[Tensor, Tensor]:
        """Return this micro-batch's share of α KL, and of the KL: exact, the mean over each response's tokens."""
        start_ND, policy_ND = hidden
        shares = [1 / (item.encoded.trained * totals) for item in items]
        share_N = torch.tensor(shares, dtype=torch.double, device=policy_ND.device)[batch.owner_N.to(policy_ND.device)]

        def values(at: slice, policy_NV: Tensor) -> Tensor:
            start_NV = self.reference.logits(start_ND[at]).to(policy_NV)
            kl_N = reverse_kl(start_NV.log_softmax(-1), policy_NV.log_softmax(-1))
            return (kl_N * share_N[at].to(kl_N))[:, None]

        weights_1 = torch.tensor([self.method.kl_weight], dtype=torch.double)
        penalty, kl_N1 = module.policy.read(policy_ND, batch, of_logits=(values, weights_1))
        return penalty, kl_N1.double().sum()
