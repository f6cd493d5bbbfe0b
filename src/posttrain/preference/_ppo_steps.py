"""What PPO trains on, token by token: advantages, returns and what was known before the first update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.masks import Encoded
from ..losses.gae import advantages, whitened
from ._batch import Batch
from ._parts import Counts, pieces_of

__all__ = ["Steps", "steps_of"]

NONE = Counts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Some samples of one prompt, token by token; numbers are float64, one for each trained token of each sample."""

    row: int
    group: tuple[Encoded, ...]
    advantages: tuple[Tensor, ...]
    returns: tuple[Tensor, ...]
    values: tuple[Tensor, ...]  # V_old
    old: tuple[Tensor, ...]  # log π_old
    sampler: tuple[Tensor, ...]  # log μ of the engine
    reference: tuple[Tensor, ...] = ()  # with the KL in the loss
    beta: float = 0.0
    policy: bool = True  # whether the policy learns from them, or the value model alone
    counts: Counts = NONE
    on_policy: bool = True  # no update has come before


def steps_of(
    batch: Batch, rewards: Mapping[tuple[int, int], Tensor], *, old: Sequence[Sequence[Tensor]],
    values: Sequence[Sequence[Tensor]], reference: Sequence[Sequence[Tensor]] | None, gamma: float, lam: float,
    whiten: bool, beta: float, policy: bool, budget: int,
) -> tuple[list[list[Steps]], dict[str, float]]:  # fmt: skip
    """Return each prompt's samples in parts of at most `budget` tokens, and what is to be told of their values.

    `rewards` are those of each token (`rewards_T`) of the samples that are trained on, by prompt and sample. Advantages are
    whitened over all of them at once. `explained` is the share of the returns' variance that the value model foresaw.
    """
    if not rewards:
        return [[] for _ in batch.rollouts], {}
    lengths = [len(rewards_T) for rewards_T in rewards.values()]
    values_N = torch.cat([values[p][k] for p, k in rewards])
    owner_N = torch.repeat_interleave(torch.tensor(lengths))
    found_N, returns_N = advantages(torch.cat([*rewards.values()]), values_N, owner_N, gamma=gamma, lam=lam)
    spread = float((returns_N - returns_N.mean()).square().mean())
    told = {"value": float(values_N.mean())}
    if spread > 0:
        told["explained"] = 1 - float((found_N - found_N.mean()).square().mean()) / spread
    each = [torch.split(x, lengths) for x in (whitened(found_N) if whiten else found_N, returns_N)]
    at = {sample: i for i, sample in enumerate(rewards)}
    parts = []
    for p, (question, rollouts) in enumerate(zip(batch.questions, batch.rollouts, strict=True)):
        kept = [k for k in range(len(rollouts)) if (p, k) in at]
        parts.append(
            [
                Steps(
                    row=question.row,
                    group=tuple(rollouts[k].encoded for k in piece),
                    advantages=tuple(each[0][at[p, k]] for k in piece),
                    returns=tuple(each[1][at[p, k]] for k in piece),
                    values=tuple(values[p][k] for k in piece),
                    old=tuple(old[p][k] for k in piece),
                    sampler=tuple(torch.tensor(rollouts[k].sampler_logps, dtype=torch.double) for k in piece),
                    reference=() if reference is None else tuple(reference[p][k] for k in piece),
                    beta=beta,
                    policy=policy,
                )
                for piece in pieces_of(rollouts, kept, prompt=question.tokens, budget=budget)
            ]
        )
    return parts, told
