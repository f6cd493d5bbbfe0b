"""A step's samples as the items of optimiser updates: what has a gradient, with what it needs, in pieces that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..core.seeds import rng
from ..core.types import ModelShape
from ..data.masks import Encoded
from ..models.sharing import shared_prefix
from ..stats.flops import forward_flops, train_flops
from ..training.processes import say
from ..training.rollouts import Rollout
from ..training.session import group_work
from ..training.step import Work
from ._batch import Batch
from ._online import OnlineSettings

__all__ = [
    "Counts", "Part", "asking_work", "flat", "part_work", "parts_of", "pieces_of", "rewards_at_both_ends", "shares_of",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What an update is normalised by: `tokens` and `sequences` of all of its samples, skipped ones among them."""

    tokens: int = 0
    sequences: int = 0

    @property
    def trained_tokens(self) -> int:
        """What measures of tokens are shares of."""
        return max(1, self.tokens)

    @classmethod
    def of(cls, rollouts: Sequence[Sequence[Rollout]], *, drop_cut: bool) -> Counts:
        """Count samples that are learned from, whether they have a gradient or not."""
        kept = [rollout for each in rollouts for rollout in each if not rollout.skipped(drop_cut=drop_cut)]
        return cls(tokens=sum(rollout.encoded.trained for rollout in kept), sequences=len(kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some samples of one prompt; log-probabilities are float64, one for each trained token."""

    row: int
    group: tuple[Encoded, ...]
    advantages: tuple[float, ...]
    sampler: tuple[Tensor, ...]  # log μ of the engine
    old: tuple[Tensor, ...] = ()  # log π_old; none: π_old is π itself on the first update
    reference: tuple[Tensor, ...] = ()
    counts: Counts = Counts()
    on_policy: bool = True  # no update has come before


def parts_of(
    batch: Batch, advantages_PK: Tensor, *, old: Sequence[Sequence[Tensor]] | None,
    reference: Sequence[Sequence[Tensor]] | None, drop_cut: bool, every: bool, budget: int,
) -> list[list[Part]]:  # fmt: skip
    """Return each prompt's samples in parts of at most `budget` tokens, their common prompt counted once.

    Samples without an advantage are left out, exactly as if they were trained, unless `every` one has a gradient; so are
    skipped ones. How a prompt's samples are cut into parts changes no loss: it is normalised by explicit counts.
    """
    found: list[list[Part]] = []
    for p, (question, rollouts) in enumerate(zip(batch.questions, batch.rollouts, strict=True)):
        kept = [
            k for k, rollout in enumerate(rollouts)
            if (every or advantages_PK[p, k] != 0) and not rollout.skipped(drop_cut=drop_cut)
        ]  # fmt: skip
        found.append(
            [
                Part(
                    row=question.row,
                    group=tuple(rollouts[k].encoded for k in piece),
                    advantages=tuple(float(advantages_PK[p, k]) for k in piece),
                    sampler=tuple(torch.tensor(rollouts[k].sampler_logps, dtype=torch.double) for k in piece),
                    old=() if old is None else tuple(old[p][k] for k in piece),
                    reference=() if reference is None else tuple(reference[p][k] for k in piece),
                )
                for piece in pieces_of(rollouts, kept, prompt=question.tokens, budget=budget)
            ]
        )
    return found


def pieces_of(rollouts: Sequence[Rollout], kept: Sequence[int], *, prompt: int, budget: int) -> list[list[int]]:
    """Cut a prompt's kept samples, the longest first, into pieces of at most `budget` tokens, the prompt counted once."""
    pieces: list[list[int]] = []
    used = 0
    for k in sorted(kept, key=lambda k: -len(rollouts[k].encoded.ids)):
        own = len(rollouts[k].encoded.ids) - prompt
        if not pieces or used + own > budget:
            pieces.append([])
            used = prompt
        pieces[-1].append(k)
        used += own
    return pieces


class _Shared(Protocol):
    """What is dealt out to updates: `counts` of its update, and whether no update has come before."""

    @property
    def counts(self) -> Counts: ...
    @property
    def on_policy(self) -> bool: ...


_S = TypeVar("_S", bound=_Shared)


def shares_of(
    batch: Batch, parts: Sequence[Sequence[_S]], method: OnlineSettings, *, seed: int, step: int
) -> list[list[_S]]:
    """Return what each update trains on: prompts are dealt out anew in every iteration, with counts of their own."""
    shares: list[list[_S]] = []
    on_policy = True
    for iteration in range(method.iterations):
        order = list(range(len(parts)))
        if method.minibatches > 1:
            rng(seed, "minibatches", step, iteration).shuffle(order)
        for i in range(method.minibatches):
            chosen = order[i :: method.minibatches]
            counts = Counts.of([batch.rollouts[at] for at in chosen], drop_cut=method.drop_cut)
            changed = {"counts": counts, "on_policy": on_policy}
            share: list[Any] = [replace(part, **changed) for at in chosen for part in parts[at]]  # type: ignore[type-var]
            shares.append(share)
            on_policy = on_policy and not share
    return shares


def flat(values: Iterable[Sequence[Tensor]]) -> Tensor:
    """Return the values of all tokens of a micro-batch, laid end to end as its sequences are."""
    return torch.cat([value for each in values for value in each])


def part_work(shape: ModelShape, *, frozen_backbone: bool, shares: bool) -> Callable[..., Work]:
    """Return what tells the work of a group of sequences."""

    def work(group: Sequence[Encoded], *, backward: bool) -> Work:
        prefix = shared_prefix(group) if shares else 0
        return group_work(
            shape, prefix=prefix, branches=[len(e.ids) - prefix for e in group], logits=sum(e.trained for e in group),
            frozen_backbone=frozen_backbone, backward=backward,
        )  # fmt: skip

    return work


def asking_work(
    prompt: int, *, samples: int, tokens: int, shape: ModelShape, frozen_backbone: bool, backward: bool = True
) -> Work:
    """Return what one question costs at most, before anything is drawn: full samples, written and trained.

    Its tokens are those of one sample: what is longest in a micro-batch. Without `backward` it is one held-out reply.
    """
    if not backward:
        return Work(tokens=prompt + tokens, flops=forward_flops(shape, start=0, tokens=prompt + tokens, logits=tokens))
    written = forward_flops(shape, start=prompt, tokens=tokens, logits=tokens)
    trained = train_flops(shape, tokens=prompt + tokens, logits=tokens, frozen_backbone=frozen_backbone)
    return Work(tokens=prompt + tokens, flops=samples * (written + trained))


def rewards_at_both_ends(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean reward over the first and the last tenth of the steps; tell when no step had a gradient."""
    if not lines:
        return {}
    part = max(1, len(lines) // 10)
    told = {
        "reward_first": sum(line["reward"] for line in lines[:part]) / part,
        "reward_last": sum(line["reward"] for line in lines[-part:]) / part,
    }
    silent = sum(line["tokens"] == 0 for line in lines)
    if silent:
        say(
            f"{silent} of {len(lines)} steps had no gradient: all samples of each of their prompts were worth the same. "
            "Take questions of middling difficulty (questions:lowest=…,highest=…), more samples a prompt, or resample"
        )
    return {"rewards": {**told, "steps_without_gradient": silent}}
