"""Held-out questions of online methods: the policy as it is answers each once, greedily, and the same verifiers reward it.

Measures, as `eval_…` in a step's line of metrics: `reward` (mean, of the same sum as in training), `reward_<verifier>`,
`watched_<verifier>`, `reply_tokens` (mean), `cut` (share ended by the limit), `unscored` (share without a readable verdict
of a judge, where there are any: they are left out of `reward`). The best step is where the reward is highest, or with
`eval_by=<verifier>` what that one says, which may be watched alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..core.errors import ConfigError, TrainingError, did_you_mean
from ..training.heldout import Evaluation
from ..training.settings import LoopSettings
from ..training.step import Learner
from ._batch import Batch, Question
from ._online import Sampler

__all__ = ["greedy_reward"]


def greedy_reward(sampler: Sampler) -> Evaluation:
    """Return what answers held-out questions as the sampler does training's, at temperature 0, and takes the mean reward.

    As many replies are written at once as in a step, always by this process's own engine. No random number is drawn and no
    gradient is taken.
    """
    policy = replace(sampler.policy, sampling=replace(sampler.policy.sampling, temperature=0.0))
    greedy = replace(sampler, policy=policy, rewards=replace(sampler.rewards, lenient=True), samples=1, server=None)
    portion, criterion = sampler.method.batch_size * sampler.samples, _criterion(sampler)

    def measure(learner: Learner, questions: Sequence[Question]) -> dict[str, float]:
        batch = greedy(questions[:portion], step=0)
        for first in range(portion, len(questions), portion):
            batch = batch.and_(greedy(questions[first : first + portion], step=0))
        learner.cost += batch.cost
        return {criterion: math.nan, **_measures(batch)}  # a watched verifier may have no verdict on any: the loop says so

    return Evaluation(measure=measure, criterion=criterion, higher=True)


def _criterion(sampler: Sampler) -> str:
    """Return the measure that decides which step is the best."""
    asked = sampler.method.eval_by
    if asked == "reward":
        return asked
    if not LoopSettings.of(sampler.method).evaluates:
        raise ConfigError(f"eval_by = '{asked}' needs held-out questions: set eval_share (0.05, say) or eval_data (a file)")
    names = [name for name, _, _ in sampler.rewards.verifiers]
    found = [name for name in names if asked in (name, name.partition("_")[2])]
    if len(found) != 1:
        raise ConfigError(
            f"eval_by = '{asked}' is {'none' if not found else 'more than one'} of the measures reward, {', '.join(names)}"
            + (did_you_mean(asked, names) if not found else "")
        )
    return found[0]


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
