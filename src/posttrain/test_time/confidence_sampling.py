"""DeepConf: let only the confident traces vote, and end the others while they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..core.errors import CapabilityError, ConfigError
from ..core.protocols import Tools, Watch
from ..core.types import Answer, Candidate, Completion, Example, Prompt, TokenEvent
from ..stats.confidence import Measure, Window, confidence_bar, token_confidence, trace_confidence
from ..stats.vote import tally, weighted
from ._vote import draw, keys_of, votes_trace

__all__ = ["ConfidenceSampling"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceSampling:
    """Vote with the traces the model was confident in; online, end the others while they are written.

    C_i = −(1/k) Σ_{j≤k} log p_j(i), group C_G = mean of C over `window` tokens, trace C = min_G C_G, and
    a* = argmax_a Σ_{i: C_i ≥ bar} C_i 1[a_i = a].

    Offline, the bar is the (1 − keep) quantile over all n traces. Online, it is that of the first `warmup` traces; later
    ones are ended by `watch` at the first group below the bar, and sampling stops when the leading answer holds the share
    `consensus` of the weight. A trace votes if no group of it is below the bar, so that on the same traces and bar offline
    and online decide alike. A trace shorter than the window is one group, judged at its end. When no confident trace has
    a readable answer, all finished ones vote. An engine without `watch` writes every trace to its
    end: the same answers, nothing saved.

    Args:
        n: the most traces.
        mode: "offline" or "online".
        keep: the share of the most confident traces that sets the bar; 0.1 is DeepConf-low, 0.9 DeepConf-high.
        window: tokens of a group; the paper's 2048 is for traces of tens of thousands of tokens.
        k: log-probabilities a token; at least 2, for with one the sign turns round.
        measure: the trace's confidence: lowest, bottom (10 % of groups), tail, mean; online takes lowest.
        warmup: traces that set the bar (online).
        wave: traces asked for at a time after that (online).
        consensus: share of the weight at which sampling stops (online); 1 draws all n.
        temperature: above 0, else all samples are the same.
        top_p: the nucleus; 1 keeps all tokens.

    Source: Fu et al. 2025, "Deep Think with Confidence" (arXiv 2508.15260), sections 3.1 to 3.3.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logprobs"})
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Fu et al. 2025, arXiv 2508.15260"
    cost: ClassVar[str] = "warmup to n replies, the unconfident ones in part; with mode=offline n replies"
    fails: ClassVar[str] = "the model is as sure of wrong traces as of right ones: look at its calibration first"

    n: Annotated[int, Field(ge=1)] = 32
    mode: Literal["offline", "online"] = "online"
    keep: Annotated[float, Field(gt=0, le=1)] = 0.9
    window: Annotated[int, Field(ge=1)] = 64
    k: Annotated[int, Field(ge=2)] = 20
    measure: Measure = "lowest"
    warmup: Annotated[int, Field(ge=1)] = 8
    wave: Annotated[int, Field(ge=1)] = 8
    consensus: Annotated[float, Field(gt=0.5, le=1)] = 0.95
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        if self.mode == "online" and self.measure != "lowest":
            raise ConfigError(
                f"confidence_sampling: measure={self.measure} is known only at a trace's end: use mode=offline, or "
                "measure=lowest"
            )

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        sampling = replace(tools.sampling, temperature=self.temperature, top_p=self.top_p, logprobs=self.k)
        first = min(self.warmup, self.n) if self.mode == "online" else self.n
        pool = _Pool(tools=tools)
        pool.add(await draw(tools, prompt, sampling, seed=seed, samples=range(first)), self._confidence)
        known = [c for c in pool.confidences if c is not None]
        pool.bar = confidence_bar(known, self.keep) if known else 0.0

        watched = "watch" in tools.engine.can
        while self.mode == "online" and pool.asked < self.n and not pool.agreed(self.consensus):
            wanted = range(pool.asked, min(pool.asked + self.wave, self.n))
            watch = self._watch(pool.bar) if watched else None
            drawn = await draw(tools, prompt, sampling, seed=seed, samples=wanted, have=pool.finished, watch=watch)
            pool.add(drawn, self._confidence)
            if len(drawn) < len(wanted):
                break  # the budget

        chosen = pool.chosen()
        trace = votes_trace(pool.keys) | {
            "confidence": pool.confidences,
            "bar": pool.bar,
            "voted": pool.voters,
            "weights": tally(pool.keys, pool.weights),
            "samples": pool.asked,
            "stopped": pool.asked - len(pool.finished),
            "watch": watched and self.mode == "online",
        }
        scores = [c for c in pool.confidences if c is not None]
        return Answer(
            text=chosen.text,
            answer=chosen.answer,
            candidates=tuple(pool.finished),
            scores=tuple(scores) if len(scores) == len(pool.finished) else (),
            trace=trace,
        )

    def _tokens(self, completion: Completion) -> list[float]:
        """Return the confidence of each token."""
        tops = completion.top_logprobs or ()
        given = [token_confidence([logprob for _, logprob in top], self.k) for top in tops]
        known = [value for value in given if value is not None]
        if completion.tokens and not known:
            most = max((len(top) for top in tops), default=0)
            raise CapabilityError(
                f"confidence_sampling needs at least two log-probabilities a token, and this engine gave {most}: use an "
                "engine that gives more, or self_consistency"
            )
        return known

    def _confidence(self, completion: Completion) -> float | None:
        return trace_confidence(self._tokens(completion), self.window, self.measure)

    def _watch(self, bar: float) -> Watch:
        """Return what ends a trace at its first whole group below the bar."""
        groups: dict[int, Window] = {}

        def below(event: TokenEvent) -> bool:
            value = token_confidence([logprob for _, logprob in event.top_logprobs], self.k)
            if value is None:
                return False
            mean = groups.setdefault(event.sample, Window(self.window)).push(value)
            return mean is not None and mean < bar

        return below


@dataclass(slots=True, kw_only=True)
class _Pool:
    """The traces so far: the finished ones with their confidences, and those that vote."""

    tools: Tools
    bar: float = 0.0
    asked: int = 0
    finished: list[Candidate] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    confidences: list[float | None] = field(default_factory=list)

    def add(self, drawn: Sequence[Candidate], confidence: Callable[[Completion], float | None]) -> None:
        """Take traces in; those that the watch ended have no answer and are only counted."""
        whole = [candidate for candidate in drawn if candidate.completion.finish != "watch"]
        self.asked += len(drawn)
        self.finished += whole
        self.keys += keys_of(whole, self.tools.key)
        self.confidences += [confidence(candidate.completion) for candidate in whole]

    @property
    def voters(self) -> list[bool]:
        """Which finished traces vote: the confident ones, or all when none of these has an answer."""
        confident = [c is not None and c >= self.bar for c in self.confidences]
        return confident if self._readable(confident) else [c is not None for c in self.confidences]

    def _readable(self, votes: Sequence[bool]) -> int:
        return sum(ok and key is not None for ok, key in zip(votes, self.keys, strict=True))

    @property
    def weights(self) -> list[float]:
        """The weight of each finished trace's vote."""
        return [c if c is not None and ok else 0.0 for c, ok in zip(self.confidences, self.voters, strict=True)]

    def agreed(self, consensus: float) -> bool:
        """Return whether the leading answer holds this share of the weight of at least two confident votes."""
        confident = [c is not None and c >= self.bar for c in self.confidences]
        sums = tally(self.keys, self.weights)
        enough = consensus < 1 and self._readable(confident) > 1
        return enough and max(sums.values()) >= consensus * sum(sums.values())

    def chosen(self) -> Candidate:
        """Return the most confident trace of the winning answer; the first one when nothing was readable."""
        winner = weighted(self.keys, self.weights)
        if winner is None:
            return self.finished[0]
        holders = [i for i, key in enumerate(self.keys) if key == winner]
        return self.finished[max(holders, key=lambda i: (self.weights[i], -i))]
