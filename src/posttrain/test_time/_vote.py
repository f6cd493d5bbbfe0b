"""What strategies that choose among samples share: the votes of the samples, and how likely each sample is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..core.types import Candidate, Completion

__all__ = ["keys_of", "mean_logprob", "tie_scores"]


def keys_of(candidates: Sequence[Candidate], key: Callable[[str], str]) -> list[str | None]:
    """Return each sample's equivalence key; None where no answer could be read: it does not vote."""
    return [None if candidate.answer is None else key(candidate.answer) for candidate in candidates]


def mean_logprob(completion: Completion) -> float | None:
    """Return (1/T) Σ_t log p(y_t | x, y_<t) under the model itself, in nats a token; None where the engine gave none.

    Raw log-probabilities, not those of the sampling distribution; divided by the length, for a sum favours short replies
    (Wang et al. 2022, arXiv 2203.11171, equation 1).
    """
    logprobs = completion.raw_logprobs
    return math.fsum(logprobs) / len(logprobs) if logprobs else None


def tie_scores(candidates: Sequence[Candidate]) -> list[float] | None:
    """Return what ties are broken by: the length-normalised log-probability of each sample, or None if any is unknown."""
    means = [mean_logprob(candidate.completion) for candidate in candidates]
    known = [mean for mean in means if mean is not None]
    return known if len(known) == len(means) else None
