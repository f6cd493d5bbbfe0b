"""Distillation token by token: at every trained position the student's next-token distribution moves to a teacher's.

    L = Σ_{trained tokens t} [(1 − a) T² D(p_t, q_t) − a log q(y_t | y_<t)] / (trained tokens of the optimiser step)

with p_t, q_t the teacher's and the student's softmax(logits / T) before token t of a given response, D a divergence, and a
the share of plain SFT. T² keeps the gradient's size when the temperature changes (Hinton et al. 2015, 1503.02531,
section 2).
The teacher reads what the student reads; it writes nothing, and no gradient is computed for it.

On-policy (Agarwal et al. 2023, 2306.13649, algorithm 1): a share λ of the steps puts the student's own responses in place of
the given ones, drawn from the student before the step,

    y ~ q(· | x),  with no gradient through y

Metrics: `divergence` (mean T² D), `cross_entropy` (SFT's loss: −log q at T = 1), `trained_tokens`; with λ > 0 `on_policy`
(1 or 0), `generated` tokens and `cut`, the share of responses that the limit of tokens ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError
from ..core.seeds import rng
from ..core.types import Checkpoint, Cost, Message, ModelShape, Prompt, Sampling
from ..data.chat import render_prompt
from ..data.masks import Encoded
from ..engines.local.replies import drawn, replies
from ..losses.divergence import Divergence, forward_kl, jensen_shannon, log_distributions, reverse_kl
from ..models.forward import Forward
from ..models.load import fingerprint_of
from ..models.sharing import share_opening
from ..stats.flops import forward_flops, train_flops
from ..training.rollouts import Fresh, FreshItems, Policy
from ..training.rows import encode_row, fits, question_turns
from ..training.session import Session
from ..training.settings import TrainerSettings
from ..training.step import Work
from ..training.teacher import Teacher, check_same_ids, open_teacher

__all__ = ["Distill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distill(TrainerSettings):
    """Token-level knowledge distillation from a teacher with the same tokenizer, into all weights or an adapter.

    `teacher` is any reference to a model: alias, folder, adapter folder or hub id. Rows are those of `sft`. The responses
    are given; best are the teacher's own, or such as the student will write. With `on_policy`, a share of the steps trains
    on responses that the student writes itself to the rows' prompts.
    """

    version: ClassVar[str] = "1"
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531; Agarwal et al. 2023, arXiv 2306.13649"
    cost: ClassVar[str] = "3 forward passes of the student and 1 of the teacher per token and epoch, once; nothing per query"
    fails: ClassVar[str] = "another tokenizer: refused; a teacher unsure on these responses: its doubts are learned too"

    teacher: str = ""
    divergence: Literal["forward_kl", "reverse_kl", "js"] = "forward_kl"
    beta: float = 0.5  # of js: near 0 as forward_kl, near 1 as reverse_kl
    temperature: float = 1.0
    top_k: int = 0  # outcomes: the teacher's k likeliest tokens and all others as one; 0: every token
    sft_weight: float = 0.0  # share of plain SFT in the loss
    train: Literal["all", "last"] = "all"
    on_policy: float = 0.0  # share of steps on the student's own responses
    rollout_tokens: int = 128  # of such a response, at most
    rollout_temperature: float = 1.0  # it is sampled at

    def __call__(self, start: Checkpoint, data: Sequence[Mapping[str, Any]], out: Path, *, seed: int) -> Checkpoint:
        """Train and return the new checkpoint in `out/checkpoint`; the same call after a kill goes on inside `out`."""
        self._check_settings()
        # What the teacher is decides the result, not where it lies: its fingerprint stands for it in the run's key.
        content = fingerprint_of(self.teacher)
        session = replace(Session.open(replace(self, teacher=content), start, data, out, seed=seed), method=self)
        if session.done is not None:
            return session.done
        tokenizer = session.opened.loaded.tokenizer
        teacher = open_teacher(self.teacher, student=session.module, tokenizer=tokenizer, dtype=self.dtype)
        rows, dropped = self._encode(session, teacher)
        objective = _Objective(
            self, teacher, session.opened.loaded.shape, session.frozen_backbone, virtual_flops=session.virtual_flops
        )
        reading = sum(objective.teachers_flops(row) for row in rows if row.row not in session.held)
        told = {"ref": self.teacher, "fingerprint": content, "flops_per_epoch": reading}
        facts = {"dropped_too_long": dropped, "teacher": told}
        return session.train(objective, rows, facts=facts, generate=replies, fresh=self._fresh(session))

    def _check_settings(self) -> None:
        if not self.teacher:
            raise ConfigError(
                "distill: no teacher: set teacher= to an alias, a folder, an adapter folder or a hub id "
                "(in a recipe, also the key 'teacher' of the stage, an earlier training stage)"
            )
        if self.teacher.partition(":")[0] in ("openai", "scripted"):
            raise ConfigError(
                f"distill: teacher = {self.teacher}: a server does not tell the probabilities of all tokens; fine-tune with "
                "sft on the replies that it writes"
            )
        if not 0 < self.beta < 1 or (self.divergence != "js" and self.beta != 0.5):
            raise ConfigError(
                f"distill: beta = {self.beta} must be between 0 and 1, and belongs to divergence=js "
                "(its limits are forward_kl and reverse_kl)"
            )
        if not self.temperature > 0 or self.top_k < 0 or not 0 <= self.sft_weight < 1:
            raise ConfigError(
                f"distill: temperature = {self.temperature} must be positive, top_k = {self.top_k} not negative, and "
                f"sft_weight = {self.sft_weight} in [0, 1) (all of it would be sft, without a teacher)"
            )
        if not 0 <= self.on_policy <= 1 or self.rollout_tokens < 1 or self.rollout_temperature < 0:
            raise ConfigError(
                f"distill: on_policy = {self.on_policy} must be in [0, 1], rollout_tokens = {self.rollout_tokens} at "
                f"least 1, and rollout_temperature = {self.rollout_temperature} not negative"
            )
        if not self.on_policy and (self.rollout_tokens, self.rollout_temperature) != (128, 1.0):
            raise ConfigError("distill: rollout_tokens and rollout_temperature belong to on_policy: set it too")
        if self.on_policy and self.sft_weight:
            raise ConfigError(
                "distill: sft_weight learns from given responses, and on_policy puts the student's own in their place: "
                "leave one of them out"
            )

    def _fresh(self, session: Session) -> Fresh | None:
        """Return what puts the student's responses in the place of the given ones, if that is asked for."""
        if not self.on_policy:
            return None
        opened, seed = session.opened, session.seed
        policy = Policy(
            draw=drawn, model=opened.model, tokenizer=opened.loaded.tokenizer, shape=opened.loaded.shape, seed=seed,
            sampling=Sampling(temperature=self.rollout_temperature, max_tokens=self.rollout_tokens),
        )  # fmt: skip

        def fresh(rows: Sequence[_Row], step: int) -> FreshItems:
            if rng(seed, "on policy", step).random() >= self.on_policy:
                return FreshItems(items=rows, cost=Cost(), measures={"on_policy": 0, "generated": 0, "cut": 0.0})
            found, cost = policy.rollouts([Prompt(messages=row.prompt) for row in rows], step=step)
            own = [rollouts[0] for rollouts in found]
            items = [replace(row, encoded=rollout.encoded) for row, rollout in zip(rows, own, strict=True)]
            cut = sum(rollout.cut for rollout in own) / len(own)
            return FreshItems(
                items=items, cost=cost, measures={"on_policy": 1, "generated": cost.usage.generated, "cut": cut}
            )

        return fresh

    def _prompt(self, tokenizer: Any, row: Mapping[str, Any], limit: int, *, where: str) -> tuple[Message, ...] | None:
        """Return what the student is to answer, None when a response would not fit; a row without a prompt is an error."""
        if not {"prompt", "messages"} & row.keys():
            raise DataError(f"{where}: on_policy needs a 'prompt' or 'messages' for the student to answer")
        prompt = question_turns(row, where)
        needed = len(render_prompt(tokenizer, prompt)) + self.rollout_tokens
        return prompt if fits(needed, limit, too_long=self.too_long, where=f"{where} with its rollout_tokens") else None

    def _encode(self, session: Session, teacher: Teacher) -> tuple[list[_Row], int]:
        tokenizer = session.opened.loaded.tokenizer
        rows, limit = [], min(self.max_length or session.opened.context, teacher.context)
        for i, row in enumerate(session.rows):
            where = session.where(i)
            encoded = encode_row(tokenizer, row, train=self.train, where=where)
            check_same_ids(
                self.teacher, encode_row(teacher.tokenizer, row, train=self.train, where=f"{where}, for the teacher"),
                encoded, where=where,
            )  # fmt: skip
            asked = self._prompt(tokenizer, row, limit, where=where) if self.on_policy and i not in session.held else ()
            if asked is not None and fits(len(encoded.ids), limit, too_long=self.too_long, where=where):
                rows.append(_Row(i, encoded, asked))
        return rows, len(session.rows) - len(rows)


@dataclass(frozen=True, slots=True)
class _Row:
    row: int
    encoded: Encoded
    prompt: tuple[Message, ...] = ()  # for the student to answer, with on_policy


@dataclass(frozen=True, slots=True)
class _Objective:
    """Token-mean divergence from the teacher, mixed with token-mean negative log-likelihood."""

    method: Distill
    teacher: Teacher
    shape: ModelShape
    frozen_backbone: bool
    virtual_flops: Callable[..., float]

    def work(self, item: _Row, *, backward: bool = True) -> Work:
        tokens, trained = len(item.encoded.ids), item.encoded.trained
        if backward:
            flops = train_flops(self.shape, tokens=tokens, logits=trained, frozen_backbone=self.frozen_backbone)
        else:
            flops = forward_flops(self.shape, start=0, tokens=tokens, logits=trained)
        flops += self.virtual_flops(tokens, backward=backward)
        return Work(tokens=tokens, flops=flops + self.teachers_flops(item), read=tokens)

    def teachers_flops(self, item: _Row) -> float:
        return self.teacher.flops(len(item.encoded.ids), logits=item.encoded.trained)

    def totals(self, items: Sequence[_Row]) -> int:
        return sum(item.encoded.trained for item in items)

    def __call__(self, module: Forward, items: Sequence[_Row], totals: int) -> tuple[Tensor, dict[str, Tensor | int]]:
        method = self.method
        groups = share_opening([item.encoded for item in items], self.shape)
        batch = module.batch(groups)
        teacher_ND = self.teacher.hidden(groups)  # before the student's activations exist
        targets_N = batch.targets_N.to(module.model.device)

        def values(at: slice, student_NV: Tensor) -> Tensor:
            teacher_NV = self.teacher.logits(teacher_ND[at]).to(student_NV)
            divergence_N = distance(teacher_NV, student_NV, method)
            with torch.set_grad_enabled(torch.is_grad_enabled() and method.sft_weight > 0):
                target_N1 = student_NV.gather(1, targets_N[at, None])
                entropy_N = student_NV.logsumexp(1) - target_N1[:, 0]
            return torch.stack([divergence_N, entropy_N], dim=1)

        shares_2 = torch.tensor([1 - method.sft_weight, method.sft_weight], dtype=torch.double) / totals
        loss, values_N2 = module(batch, of_logits=(values, shares_2))
        sums_2 = values_N2.cpu().double().sum(0) / totals
        return loss, {"divergence": sums_2[0], "cross_entropy": sums_2[1], "trained_tokens": len(targets_N)}


def distance(teacher_NV: Tensor, student_NV: Tensor, method: Distill) -> Tensor:
    """Return T² D per token. Logits beyond the shorter head belong to no token (padding) and are left out of both."""
    common = min(teacher_NV.shape[1], student_NV.shape[1])
    divergences: dict[str, Divergence] = {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "js": partial(jensen_shannon, beta=method.beta),
    }
    logps = log_distributions(
        teacher_NV[:, :common], student_NV[:, :common], temperature=method.temperature, top_k=method.top_k
    )
    return method.temperature**2 * divergences[method.divergence](*logps)
