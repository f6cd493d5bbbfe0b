"""Held-out questions of online methods: the policy as it is answers each once, greedily, and the same verifiers reward it.

Measures, as `eval_…` in a step's line of metrics: `reward` (mean, of the same sum as in training; the best step is where it
is highest), `reward_<verifier>`, `watched_<verifier>`, `reply_tokens` (mean), `cut` (share ended by the limit), `unscored`
(share without a readable verdict of a judge, where there are any: they are left out of `reward`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..core.errors import TrainingError
from ..training.heldout import Evaluation
from ..training.step import Learner
from ._online import Batch, Question, Sampler

__all__ = ["greedy_reward"]


def greedy_reward(sampler: Sampler) -> Evaluation:
    """Return what answers held-out questions as the sampler does training's, at temperature 0, and takes the mean reward.

    As many replies are written at once as in a step, always by this process's own engine. No random number is drawn and no
    gradient is taken.
    """
    policy = replace(sampler.policy, sampling=replace(sampler.policy.sampling, temperature=0.0))
    greedy = replace(sampler, policy=policy, rewards=replace(sampler.rewards, lenient=True), samples=1, server=None)
    portion = sampler.method.batch_size * sampler.samples

    def measure(learner: Learner, questions: Sequence[Question]) -> dict[str, float]:
        batch = greedy(questions[:portion], step=0)
        for first in range(portion, len(questions), portion):
            batch = batch.and_(greedy(questions[first : first + portion], step=0))
        learner.cost += batch.cost
        return _measures(batch)

    return Evaluation(measure=measure, criterion="reward", higher=True)


def _measures(batch: Batch) -> dict[str, float]:
    unread_P = batch.rewards_PK.isnan().any(1)
    if bool(unread_P.all()):
        raise TrainingError(
            f"none of the {len(unread_P)} replies to held-out questions has a readable verdict: look at what the judge says "
            "of them"
        )
    told = {
        name: value for name, value in batch.measures().items()
        if name in ("reply_tokens", "cut") or name in batch.given
    }  # fmt: skip
    told |= {"unscored": float(unread_P.double().mean())} if bool(unread_P.any()) else {}
    return {"reward": float(batch.rewards_PK.nanmean()), **told}
