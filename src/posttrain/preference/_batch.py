"""What an online method asks, and a step's samples with what they are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.types import Cost, Example, Prompt
from ..training.rollouts import Rollout

__all__ = ["Batch", "Question"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A row: what is asked, and the example that grading needs. `tokens`: of the rendered prompt."""

    row: int
    prompt: Prompt
    example: Example
    tokens: int
    only: tuple[str, ...] = ()  # the rewards that score it; none: all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The samples of some questions. `rewards_PK` is what they are trained on, `given` what each verifier said,
    by the measure's name."""

    questions: Sequence[Question]
    rollouts: Sequence[Sequence[Rollout]]
    rewards_PK: Tensor
    given: Mapping[str, Tensor]
    cost: Cost

    def of(self, chosen: Sequence[int]) -> Batch:
        """Return the part with these questions, at no cost."""
        at = list(chosen)
        return Batch(
            questions=[self.questions[i] for i in at], rollouts=[self.rollouts[i] for i in at],
            rewards_PK=self.rewards_PK[at], given={name: v[at] for name, v in self.given.items()}, cost=Cost(),
        )  # fmt: skip

    def and_(self, other: Batch) -> Batch:
        """Return both together."""
        return Batch(
            questions=[*self.questions, *other.questions], rollouts=[*self.rollouts, *other.rollouts],
            rewards_PK=torch.cat([self.rewards_PK, other.rewards_PK]), cost=self.cost + other.cost,
            given={name: torch.cat([v, other.given[name]]) for name, v in self.given.items()},
        )  # fmt: skip

    def measures(self) -> dict[str, float]:
        """Return what a line of metrics tells of the samples; standard deviations and zero variance are within prompts."""
        flat = [rollout for rollouts in self.rollouts for rollout in rollouts]
        logps = [logp for rollout in flat for logp in rollout.sampler_logps if logp == logp]
        distinct = [len({r.words for r in rollouts}) / len(rollouts) for rollouts in self.rollouts]
        told = {
            "reward": float(self.rewards_PK.mean()),
            **{name: float(v.nanmean()) for name, v in self.given.items() if not bool(v.isnan().all())},
            "reward_std": float(self.rewards_PK.std(1).mean()) if self.rewards_PK.shape[1] > 1 else 0.0,
            "zero_variance": float((self.rewards_PK == self.rewards_PK[:, :1]).all(1).double().mean()),
            "distinct": sum(distinct) / len(distinct),
            "reply_tokens": sum(rollout.encoded.trained for rollout in flat) / len(flat),
            "cut": sum(rollout.cut for rollout in flat) / len(flat),
        }
        guessed = sum(rollout.guessed for rollout in flat)
        told |= {"guessed": guessed / len(flat)} if guessed else {}
        if any(rollout.said for rollout in flat):
            told["turns"] = sum(m.role == "assistant" for rollout in flat for m in rollout.said) / len(flat)
        unread = [float((v.isnan() & ~v.isnan().all(1, keepdim=True)).double().mean()) for v in self.given.values()]
        told |= {"unscored": max(unread)} if any(unread) else {}
        return told | ({"entropy": -sum(logps) / len(logps)} if logps else {})
