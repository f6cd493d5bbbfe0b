"""What strategies that choose among samples share: grouping by equivalent answer and the likelihood of a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..core.types import Candidate, Completion

__all__ = ["group", "mean_logprob", "most"]


def group(candidates: Sequence[Candidate], key: Callable[[str], str]) -> dict[str, list[int]]:
    """Return equivalence class -> positions of its candidates, in order of first appearance; unparsed ones are left out."""
    groups: dict[str, list[int]] = {}
    for i, candidate in enumerate(candidates):
        if candidate.answer is not None:
            groups.setdefault(key(candidate.answer), []).append(i)
    return groups


def most(groups: Mapping[str, Sequence[int]], weights: Sequence[float], ties: Sequence[float | None]) -> tuple[str, bool]:
    """Return the class of the highest summed weight and whether it was tied.

    A tie goes to the highest sum of `ties` when all are known, else to the class seen first.
    """
    totals = {key: math.fsum(weights[i] for i in members) for key, members in groups.items()}
    best = max(totals.values())
    tied = [key for key, total in totals.items() if math.isclose(total, best, rel_tol=1e-12, abs_tol=0.0)]
    known = [value for key in tied for i in groups[key] if (value := ties[i]) is not None]
    if len(tied) > 1 and len(known) == sum(len(groups[key]) for key in tied):
        return max(tied, key=lambda key: math.fsum(ties[i] or 0.0 for i in groups[key])), True
    return tied[0], len(tied) > 1


def mean_logprob(completion: Completion) -> float | None:
    """Return (1/T) Σ_t log p(y_t | x, y_<t) under the model itself, in nats a token; None where the engine gave none.

    Raw log-probabilities, not those of the sampling distribution; divided by the length, for a sum favours short replies
    (Wang et al. 2022, arXiv 2203.11171, equation 1).
    """
    logprobs = completion.raw_logprobs
    return math.fsum(logprobs) / len(logprobs) if logprobs else None
