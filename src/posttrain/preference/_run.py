"""How an online method trains, once its sampler, its loss and what a step does are made."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.types import Checkpoint
from ..engines.local.replies import replies
from ..training.rollouts import Fresh
from ..training.session import Session
from ..training.start_model import StartModel
from ..training.step import Objective
from ._batch import Question
from ._held_out import greedy_reward
from ._online import Sampler
from ._parts import rewards_at_both_ends

__all__ = ["train_online"]


def train_online(
    session: Session, sampler: Sampler, objective: Objective, stepper: Fresh, questions: Sequence[Question], *,
    dropped: int, held_to: StartModel | None,
) -> Checkpoint:  # fmt: skip
    """Train on what the stepper makes of the questions, with held-out ones answered greedily, and export.

    A server that samples is let go in the end, whatever happens.
    """
    with sampler.serving():
        return session.train(
            objective, questions, facts={"dropped_too_long": dropped}, generate=replies, fresh=stepper,
            closing=rewards_at_both_ends, evaluation=greedy_reward(sampler),
            held_bytes=0 if held_to is None else held_to.bytes,
        )  # fmt: skip
