"""Particle filtering: replies grow side by side, and after each step the promising ones are copied over the others."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..core.errors import ConfigError
from ..core.protocols import Tools
from ..core.seeds import rng
from ..core.types import Answer, Example, Prompt
from ..stats.steps import Aggregation
from ._steps import Choose, Path, Search, wanted

__all__ = ["ParticleFiltering", "systematic"]

_EDGE = 1e-6  # scores of 0 and 1 have infinite logits: none is trusted beyond one in a million


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticleFiltering:
    """Grow n replies together; after each step resample them by their step scores, so that good ones multiply.

    z_t^i ~ p(· | x, y^i);  w_t^i = logit(s(x, y_{≤t}^i)) / τ;  θ = softmax(w_t);  y^i ← y^j with j ~ θ (systematic)

    Unlike beam search it keeps what is only somewhat less likely, in proportion, and so survives a noisy verifier: what it
    samples from is p(y | x) Π_t exp(w_t). A finished particle keeps its last weight, and competes with it at every later
    resampling, as in the authors' library (`weigh=each`). With `weigh=last` a particle is weighted by the change of
    its weight instead; the products telescope, a finished particle is weighed once, and the target is p(y | x) exp(w_T):
    it does not depend on how many steps a reply is written in.

    A particle that runs into the token limit gets weight 0. The last allowed step is the whole rest of the reply. The
    weights of the last step are not resampled but vote. When no particle finishes, the unfinished one with the largest
    weight is returned without an answer.

    Args:
        n: how many particles.
        steps: how many steps a reply may have; the last one is all the rest of it.
        verifier: the spec of a verifier of unfinished replies with scores from 0 to 1; or "likelihood".
        aggregate: how a verifier's step scores become one: last, min, product or mean.
        softness: τ; above 1 the weights are more even, below 1 more extreme.
        weigh: each step's score, or the last one only.
        choose: among the finished particles: a vote of their answers, weighted or by majority, or the best scored.
        separator: what ends a step; \\n is the end of a line.
        step_tokens: a step that is longer is continued as another one.
        temperature: above 0, else all particles are the same.
        top_p: the nucleus; 1 keeps all tokens.

    Source: Puri et al. 2025, "A Probabilistic Inference Approach to Inference-Time Scaling of LLMs using Particle-Based
    Monte Carlo Methods" (arXiv 2502.01618), algorithm 1.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prefix"})
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Puri et al. 2025, arXiv 2502.01618, algorithm 1"
    cost: ClassVar[str] = "at most steps × n step generations, those of overwritten particles included, each scored"
    fails: ClassVar[str] = "few particles and sharp weights: one early favourite overwrites all others"

    n: Annotated[int, Field(ge=1)] = 8
    steps: Annotated[int, Field(ge=1)] = 16
    verifier: str = "likelihood"
    aggregate: Aggregation = "last"
    softness: Annotated[float, Field(gt=0)] = 1.0
    weigh: Literal["each", "last"] = "each"
    choose: Choose = "weighted"
    separator: str = "\\n"
    step_tokens: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def verifiers(self) -> tuple[str, ...]:
        """The specs that `Tools.verifiers` must hold."""
        return wanted(self.verifier)

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        search = Search(self, prompt, example, tools)
        particles = [Path()] * self.n
        before = [0.0] * self.n  # the log-weights that are already in what the particles are
        scores: list[float | None] = []
        weights, evidence, effective = [1.0] * self.n, 0.0, []
        for step in range(self.steps):
            moved = await self._move(search, particles, seed=seed, last=step == self.steps - 1)
            if any(path is None for path in moved):  # the budget: those that could not move are not compared any more
                at = [i for i, path in enumerate(moved) if path is not None]
                if not at:
                    break
                before = [before[i] for i in at]
                moved = [moved[i] for i in at]
            particles = [path for path in moved if path is not None]
            scores = await search.score(particles)
            logs = [self._log_weight(path, score) for path, score in zip(particles, scores, strict=True)]
            gains = [log - (old if self.weigh == "last" else 0.0) for log, old in zip(logs, before, strict=True)]
            weights, mean = _softmax(gains)
            evidence += mean
            effective.append(round(1 / max(math.fsum(w * w for w in weights), 1e-300), 3) if any(weights) else 0.0)
            if not any(weights) or not any(path.open for path in particles) or step == self.steps - 1 or search.spent:
                break
            chosen = systematic(weights, rng(seed, "resample", step))
            particles, before = [particles[i] for i in chosen], [logs[i] for i in chosen]
            scores, weights = [scores[i] for i in chosen], [1 / len(chosen)] * len(chosen)
        told = {"log_evidence": evidence if math.isfinite(evidence) else None, "effective": effective}
        return await self._answer(search, particles, scores, weights, seed, told)

    async def _move(self, search: Search, particles: Sequence[Path], *, seed: int, last: bool) -> list[Path | None]:
        """Write each open particle's next step; equal particles in one call, each with its own place as sample index."""
        groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        for place, path in enumerate(particles):
            if path.open:
                groups.setdefault((path.completion.text, path.completion.tokens), []).append(place)
        moved: list[Path | None] = [None if path.open else path for path in particles]
        grown = await asyncio.gather(
            *(search.grow(particles[places[0]], places, seed=seed, last=last) for places in groups.values())
        )
        for places, paths in zip(groups.values(), grown, strict=True):
            for place, path in zip(places, paths, strict=False):
                moved[place] = path
        return moved

    def _log_weight(self, path: Path, score: float | None) -> float:
        """Return logit(score) / τ; -inf for a particle that ran into the token limit."""
        if path.cut:
            return -math.inf
        value = 0.0 if score is None else score
        if not 0.0 <= value <= 1.0:
            raise ConfigError(
                f"particle_filtering weighs by the logits of scores from 0 to 1, and verifier '{self.verifier}' gave "
                f"{value:g}: use a verifier with probabilities"
            )
        value = min(max(value, _EDGE), 1 - _EDGE)
        return math.log(value / (1 - value)) / self.softness

    async def _answer(
        self,
        search: Search,
        particles: Sequence[Path],
        scores: Sequence[float | None],
        weights: Sequence[float],
        seed: int,
        trace: dict[str, Any],
    ) -> Answer:
        done = [i for i, path in enumerate(particles) if path.done and i < len(scores)]
        begun = [i for i, path in enumerate(particles) if path.steps]
        best = max(begun, key=lambda i: (weights[i] if i < len(weights) else 0.0, -i), default=None)
        return await search.answer(
            [particles[i] for i in done],
            [scores[i] for i in done],
            choose=self.choose,
            seed=seed,
            otherwise=None if best is None else particles[best],
            weights=[weights[i] for i in done],
            trace={"weights": [weights[i] for i in done]} | trace,
        )


def systematic(weights: Sequence[float], generator: Random) -> list[int]:
    """Return as many indices as there are weights, index i within one of n w_i times, by one random number.

    Points (u + k) / n, k = 0 … n - 1, on the line of cumulative weights (which sum to 1).
    """
    n, u = len(weights), generator.random()
    total, cumulative = 0.0, []
    for weight in weights:
        total += weight
        cumulative.append(total)
    chosen, at = [], 0
    for k in range(n):
        while at < n - 1 and cumulative[at] <= (u + k) / n * total:
            at += 1
        chosen.append(at)
    return chosen


def _softmax(logs: Sequence[float]) -> tuple[list[float], float]:
    """Return the normalised weights and log((1/n) Σ exp(log)); all zero and -inf when every one is."""
    top = max(logs)
    if top == -math.inf:
        return [0.0] * len(logs), -math.inf
    shifted = [math.exp(log - top) for log in logs]
    total = math.fsum(shifted)
    return [value / total for value in shifted], top + math.log(total / len(logs))
