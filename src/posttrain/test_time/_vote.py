"""What strategies that choose among samples share: drawing under a budget, the votes, and how likely each sample is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..core.errors import BudgetSpentError
from ..core.protocols import Tools, Watch
from ..core.types import Candidate, Completion, Prompt, Sampling
from ..stats.vote import answer_entropy, tally

__all__ = ["draw", "keys_of", "mean_logprob", "tie_scores", "votes_trace"]


async def draw(
    tools: Tools,
    prompt: Prompt,
    sampling: Sampling,
    *,
    seed: int,
    samples: Sequence[int] = (0,),
    have: Sequence[Candidate] = (),
    watch: Watch | None = None,
) -> list[Candidate]:
    """Draw these samples, or the first of them that the budget allows; none only when `have` can answer in their place."""
    if have and tools.spent():
        return []
    try:
        return await tools.sample(prompt, sampling, seed=seed, samples=samples, watch=watch)
    except BudgetSpentError:
        if have:
            return []
        raise


def keys_of(candidates: Sequence[Candidate], key: Callable[[str], str]) -> list[str | None]:
    """Return each sample's equivalence key; None where no answer could be read: it does not vote."""
    known: dict[str | None, str | None] = {None: None}  # samples often agree, and a key may be dear
    for candidate in candidates:
        if candidate.answer is not None and candidate.answer not in known:
            known[candidate.answer] = key(candidate.answer)
    return [known[candidate.answer] for candidate in candidates]


def votes_trace(keys: Sequence[str | None]) -> dict[str, object]:
    """Return what a trace says of a vote: the counts, how many could not be read, the entropy of the answers (nats)."""
    votes = {key: int(count) for key, count in tally(keys).items()}
    return {"votes": votes, "unparsed": keys.count(None), "entropy": round(answer_entropy(keys), 6)}


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
