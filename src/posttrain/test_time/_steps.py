"""What searches over reasoning steps share: writing a reply step by step, scoring what is written, choosing in the end."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from ..core.errors import BudgetSpentError, CapabilityError, ConfigError
from ..core.protocols import Tools
from ..core.types import Answer, Candidate, Completion, Example, Prompt, Sampling, Score
from ..stats.steps import Aggregation, aggregate
from ..stats.vote import majority, weighted
from ._vote import keys_of, mean_logprob

__all__ = ["Choose", "Path", "Search", "Settings", "aggregated", "chosen", "continued", "joined", "wanted"]

Choose = Literal["best", "majority", "weighted"]


class Settings(Protocol):
    """What every search over steps is told: how steps are drawn, where one ends, and what scores them."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def separator(self) -> str: ...
    @property
    def step_tokens(self) -> int: ...
    @property
    def verifier(self) -> str: ...
    @property
    def aggregate(self) -> Aggregation: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """A reply as far as it is written: its steps joined, and how it stands.

    `done`: the turn ended of itself, the only way a reply is complete. `cut`: the token limit is used up before that.
    """

    completion: Completion = field(default_factory=lambda: Completion(text=""))
    steps: int = 0
    generated: int = 0
    done: bool = False
    cut: bool = False
    copies: int = 1  # how many equal draws it stands for

    @property
    def open(self) -> bool:
        """Whether it can be continued."""
        return not (self.done or self.cut)

    @property
    def text(self) -> str:
        """What is scored and compared: without the separator that ends it, so that no empty last step is ever seen."""
        return self.completion.text.rstrip()


def joined(written: Completion, step: Completion) -> Completion:
    """Return a completion with its next step: texts, token ids and log-probabilities end to end.

    Behind a text without tokens there are none: the whole is then known by its text. The usage stays behind with the calls:
    summed over paths it would count what they share again.
    """

    def both(a: tuple[float, ...] | None, b: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if b is None else (a or ()) + b

    first = not written.tokens and not written.text
    known = first or written.raw_logprobs is not None
    return Completion(
        text=written.text + step.text,
        tokens=written.tokens + step.tokens if first or written.tokens else (),
        logprobs=both(written.logprobs, step.logprobs) if known else None,
        raw_logprobs=both(written.raw_logprobs, step.raw_logprobs) if known else None,
        end_logprob=step.end_logprob,
        finish=step.finish,
        stopped_by=step.stopped_by,
        sample=step.sample if first else written.sample,
    )


def continued(prompt: Prompt, written: Completion) -> Prompt:
    """Return the prompt that goes on behind what is written: by its token ids, or by its text where it has none."""
    if not written.text and not written.tokens:
        return replace(prompt, cue=None)
    piece = written if written.tokens else written.text
    return replace(prompt, prefix=(*prompt.pieces, piece) if prompt.pieces else piece, cue=None)


def aggregated(score: Score, how: Aggregation) -> float | None:
    """Return one number for a text: its steps' scores put together, or its value where it has none; None if not finite."""
    steps = score.steps
    value = aggregate(steps, how) if steps else score.value
    finite = math.isfinite(value) and all(map(math.isfinite, steps or ()))
    return value if finite else None


def wanted(*specs: str) -> tuple[str, ...]:
    """Return the specs that `Tools.verifiers` must hold: likelihood comes with the samples, an empty one is none."""
    return tuple(dict.fromkeys(spec for spec in specs if spec not in ("", "likelihood")))


class Search:
    """One example's search: draws steps, scores paths, reads answers, and knows when the budget is spent.

    A step ends behind `separator`, or after `step_tokens` tokens (then its next piece is another step); a path as a whole
    has the tokens of `tools.sampling`. No draw asks for more than is left of them.
    """

    def __init__(
        self,
        settings: Settings,
        prompt: Prompt,
        example: Example,
        tools: Tools,
        *,
        verifier: str | None = None,
        goal: str = "",
    ) -> None:
        """Check what the settings need; `verifier` in place of theirs ("": none), `goal` is the one that accepts answers."""
        method = re.sub(r"(?<!^)(?=[A-Z])", "_", type(settings).__name__).lower()
        verifier = settings.verifier if verifier is None else verifier
        if verifier == "likelihood" and "logprobs" not in tools.engine.can:
            raise CapabilityError(f"{method}:verifier=likelihood needs log-probabilities, which this engine does not give")
        for spec in wanted(verifier, goal):
            if spec not in tools.verifiers:
                raise ConfigError(f"{method}: verifier '{spec}' was not set up")
        self.separator = settings.separator.replace("\\n", "\n").replace("\\t", "\t")
        if not self.separator:
            raise ConfigError(f"{method}: separator must not be empty; write \\n for the end of a line")
        self.prompt, self.example, self.tools, self.method = prompt, example, tools, method
        self.sampling = replace(tools.sampling, temperature=settings.temperature, top_p=settings.top_p)
        self.step_tokens, self.verifier, self.aggregate = settings.step_tokens, verifier, settings.aggregate
        self.generations = self.duplicates = 0
        self._short = False
        self._refused: BudgetSpentError | None = None
        self._scores: dict[tuple[str, str], float | None] = {}
        self._read: dict[Completion, Candidate] = {}
        self._oracle = any(tools.verifiers[spec].oracle for spec in wanted(verifier, goal))

    @property
    def spent(self) -> bool:
        """Whether the budget is used up, or did not hold a whole call any more."""
        return self._short or self._refused is not None or self.tools.spent()

    async def draw(self, prompt: Prompt, sampling: Sampling, *, seed: int, samples: Sequence[int]) -> list[Completion]:
        """Generate; fewer, or none, when the budget does not hold them all."""
        if not samples or self._short or self._refused is not None:
            return []
        try:
            drawn = await self.tools.engine.generate(prompt, sampling, seed=seed, samples=samples)
        except BudgetSpentError as error:
            self._refused = error
            return []
        self._short = self._short or len(drawn) < len(samples)
        return drawn

    async def grow(self, path: Path, samples: Sequence[int], *, seed: int, last: bool = False) -> list[Path]:
        """Return the path with each of these samples of its next step; `last`: with all the rest of the reply."""
        left = self.sampling.max_tokens - path.generated
        stop = self.sampling.stop if last else (*self.sampling.stop, self.separator)
        tokens = left if last else min(left, self.step_tokens)
        sampling = replace(self.sampling, stop=stop, keep_stop=True, max_tokens=tokens)
        drawn = await self.draw(continued(self.prompt, path.completion), sampling, seed=seed, samples=samples)
        self.generations += len(drawn)
        return [self._longer(path, step) for step in drawn]

    def _longer(self, path: Path, step: Completion) -> Path:
        whole = joined(path.completion, step)
        generated = path.generated + (len(step.tokens) or step.usage.generated)
        # The task's own stop strings end the reply, also where one lies across the seam of two steps.
        ends = [at for at in map(whole.text.find, self.sampling.stop) if at >= 0]
        done = bool(ends) or (step.finish == "stop" and step.stopped_by is None)
        if ends:
            whole = replace(whole, text=whole.text[: min(ends)], finish="stop")
        cut = not done and generated >= self.sampling.max_tokens
        return Path(completion=whole, steps=path.steps + 1, generated=generated, done=done, cut=cut)

    def merged(self, paths: Sequence[Path]) -> list[Path]:
        """Return the paths with equal ones merged into the first of them, which counts its copies."""
        kept: dict[tuple[str, bool], Path] = {}
        for path in paths:
            key = (path.text, path.done)
            if key in kept:
                self.duplicates += 1
                kept[key] = replace(kept[key], copies=kept[key].copies + path.copies)
            else:
                kept[key] = path
        return list(kept.values())

    async def score(self, paths: Sequence[Path], verifier: str | None = None) -> list[float | None]:
        """Return one score a path, by the method's verifier or the given one; None for a missing one.

        likelihood: exp((1/T) Σ_t log p(y_t)) over all tokens so far. A text is scored once; one with nothing in it, never.
        """
        spec = self.verifier if verifier is None else verifier
        if spec == "likelihood":
            means = [mean_logprob(path.completion) for path in paths]
            return [None if mean is None or math.isnan(mean) else math.exp(mean) for mean in means]
        new = list(dict.fromkeys(p.text for p in paths if p.text and (spec, p.text) not in self._scores))
        if new and self._refused is None:
            try:
                given = await self.tools.verifiers[spec](self.example, new)
            except BudgetSpentError as error:
                self._refused = error
            else:
                for text, score in zip(new, given, strict=False):
                    self._scores[spec, text] = aggregated(score, self.aggregate)
        return [self._scores.get((spec, path.text)) for path in paths]

    async def read(self, path: Path, *, seed: int) -> Candidate:
        """Read a path's answer; one that is not done has none, and counts as truncated."""
        completion = path.completion
        if not path.done:
            return Candidate(text=completion.text, answer=None, completion=replace(completion, finish="length"))
        if completion not in self._read:
            try:
                self._read[completion] = await self.tools.read(self.prompt, completion, self.sampling, seed=seed)
            except BudgetSpentError as error:
                self._refused = error
                return Candidate(text=completion.text, answer=None, completion=completion)
        return self._read[completion]

    async def answer(
        self,
        finished: Sequence[Path],
        scores: Sequence[float | None],
        *,
        choose: Choose,
        seed: int,
        otherwise: Path | None,
        weights: Sequence[float] | None = None,
        pick: int | None = None,
        trace: dict[str, Any] | None = None,
    ) -> Answer:
        """Choose among the finished paths by their scores (votes by `weights`, if others), or take the one at `pick`.

        Without any, `otherwise`, the best unfinished path, is returned as it stands: it has no answer. If there is no path
        at all, the budget's error passes.
        """
        paths = list(finished) or ([otherwise] if otherwise is not None else [])
        if not paths:
            raise self._refused or BudgetSpentError(f"{self.method}: the budget was spent before a step was written")
        candidates = tuple(await asyncio.gather(*(self.read(path, seed=seed) for path in paths)))
        known = list(scores) if finished else [None]
        votes = weights if finished else None
        best = chosen(candidates, known, choose, self.tools, self.method, weights=votes) if pick is None else pick
        complete = [score for score in known if score is not None]
        return Answer(
            text=candidates[best].text,
            answer=candidates[best].answer,
            candidates=candidates,
            scores=tuple(complete) if len(complete) == len(known) else (),
            trace=self.trace(finished=len(finished), choose=choose, chosen=best, scores=known) | (trace or {}),
        )

    def trace(self, **more: Any) -> dict[str, Any]:
        """Return what every search tells of itself."""
        told: dict[str, Any] = {"generations": self.generations, "duplicates": self.duplicates, "verifier": self.verifier}
        if wanted(self.verifier):
            told["aggregate"] = self.aggregate
        if self._oracle:
            told["oracle"] = True
        if self.spent:
            told["budget_spent"] = True
        return told | more


def chosen(
    candidates: Sequence[Candidate],
    scores: Sequence[float | None],
    how: Choose,
    tools: Tools,
    method: str,
    *,
    weights: Sequence[float] | None = None,
) -> int:
    """Return the index of the candidate to answer with: the best scored one, or the best of those with the voted answer.

    Candidates without a readable answer are chosen only when there is no other; those without a score rank last.
    """
    keys = keys_of(candidates, tools.key)
    votes = [score or 0.0 for score in scores] if weights is None else list(weights)
    if how == "weighted" and min(votes, default=0.0) < 0:
        raise ConfigError(
            f"{method}:choose=weighted sums scores, and the verifier gave {min(votes):g}: use a verifier with scores from "
            "0 to 1, or choose=best"
        )
    winner = majority(keys, votes) if how == "majority" else weighted(keys, votes) if how == "weighted" else None
    eligible = [i for i, key in enumerate(keys) if (key == winner if winner is not None else key is not None)]
    ranks = [-math.inf if score is None else score for score in scores]
    return max(eligible or range(len(keys)), key=lambda i: (ranks[i], -i))
