"""The strategies that a curve can replay on a pool, under the names and settings that they have as strategies."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import Field

from ..core.errors import ConfigError, did_you_mean
from ..core.specs import instantiate, parse
from ..stats.allocate import Option, allocated_curve, prospects, table_of
from ..stats.allocation_table import Rule as Kind
from ..stats.allocation_table import Table
from ..stats.curves import (
    Estimate,
    adaptive_curve,
    costs_at,
    majority_curve,
    ranked_curve,
    single_curve,
    verified_curve,
    weighted_curve,
)
from ..stats.pool import Item, Scores
from .pools import Sampling

__all__ = [
    "RULES",
    "AdaptiveConsistency",
    "ComputeOptimal",
    "Rule",
    "SelfConsistency",
    "VerifiedSearch",
    "build_rule",
    "grid_of",
]


class Rule(Protocol):
    """A strategy as a curve knows it: the pool it reads, the scores it wants, and its expectation at each size."""

    @property
    def oracle(self) -> bool: ...
    @property
    def sampling(self) -> Sampling: ...
    @property
    def scored_by(self) -> str | None:
        """`likelihood`, the spec of a verifier, or None: no scores wanted."""
        ...

    def curve(
        self, items: Sequence[Item], sizes: Sequence[int], scores: Mapping[str, Scores] | None, *, draws: int, seed: int
    ) -> list[Estimate]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """The settings of all rules that read samples drawn at a temperature."""

    oracle: ClassVar[bool] = False

    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def sampling(self) -> Sampling:
        """The pool that this rule reads."""
        return Sampling(temperature=self.temperature, top_p=self.top_p)

    @property
    def scored_by(self) -> str | None:
        """No scores wanted."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """One reply at temperature 0: a point, from a pool of its own."""

    oracle: ClassVar[bool] = False
    sampling: ClassVar[Sampling] = Sampling(temperature=0.0)
    scored_by: ClassVar[None] = None

    def curve(self, items: Sequence[Item], *_: Any, **__: Any) -> list[Estimate]:
        """Return the point."""
        return single_curve(items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(_Drawn):
    """One sample in expectation: a point."""

    def curve(self, items: Sequence[Item], *_: Any, **__: Any) -> list[Estimate]:
        """Return the point."""
        return single_curve(items)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassAtK(_Drawn):
    """At least one of k samples is right: an oracle, no method."""

    oracle: ClassVar[bool] = True

    def curve(self, items: Sequence[Item], sizes: Sequence[int], *_: Any, **__: Any) -> list[Estimate]:
        """Return unbiased pass@k."""
        return ranked_curve(items, sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfConsistency(_Drawn):
    """The majority of k samples."""

    def curve(self, items: Sequence[Item], sizes: Sequence[int], *_: Any, **__: Any) -> list[Estimate]:
        """Return exact majority@k."""
        return majority_curve(items, sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfN(_Drawn):
    """The best of k samples by likelihood or a verifier; weighted: the vote with its scores as weights."""

    verifier: str = "likelihood"
    weighted: bool = False

    @property
    def scored_by(self) -> str:
        """The verifier."""
        return self.verifier

    def curve(
        self, items: Sequence[Item], sizes: Sequence[int], scores: Mapping[str, Scores] | None, *, draws: int, seed: int
    ) -> list[Estimate]:
        """Return exact best-of-k, or the weighted vote over draws of orders."""
        assert scores is not None
        if not self.weighted:
            return ranked_curve(items, sizes, scores)
        lowest = min((value for one in scores.values() for value in one.values if value is not None), default=0.0)
        if lowest < 0:
            raise ConfigError(
                f"best_of_n:weighted=true sums scores, and verifier '{self.verifier}' gave {lowest:g}: use a verifier with "
                "scores from 0 to 1, or weighted=false"
            )
        return weighted_curve(items, sizes, scores, draws=draws, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveConsistency(_Drawn):
    """Voting that stops once the leading answer is safe; k is the most it may draw."""

    threshold: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    wave: Annotated[int, Field(ge=1)] = 1

    def curve(
        self, items: Sequence[Item], sizes: Sequence[int], _scores: object, *, draws: int, seed: int
    ) -> list[Estimate]:
        """Return the expectation over orders of the samples."""
        return adaptive_curve(items, sizes, threshold=self.threshold, wave=self.wave, draws=draws, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSearch(_Drawn):
    """Sampling until the verifier accepts; k is the most it may draw. A pool has no replies to feedback."""

    verifier: str = "rule"
    threshold: float = 1.0
    wave: Annotated[int, Field(ge=1)] = 1
    feedback: bool = True

    @property
    def scored_by(self) -> str:
        """The verifier."""
        return self.verifier

    def curve(
        self, items: Sequence[Item], sizes: Sequence[int], scores: Mapping[str, Scores] | None, *, draws: int, seed: int
    ) -> list[Estimate]:
        """Return the expectation over orders of the samples."""
        assert scores is not None
        if self.feedback:
            raise ConfigError(
                "verified_search tells the model its rejected answers, and a pool's samples were not told: replay it with "
                "feedback=false"
            )
        return verified_curve(items, sizes, scores, accept=self.threshold, wave=self.wave, draws=draws, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeOptimal(_Drawn):
    """Samples by difficulty, on held-out questions; k names the budget: the mean tokens of uniform voting with k samples.

    `pilot` samples tell the difficulty and are used: by how many of them agree or, with `accept`, by how many of them the
    verifier gives at least that score. With a verifier, tables may also choose best-of-n and the weighted vote.
    """

    pilot: Annotated[int, Field(ge=1)] = 4
    verifier: str | None = None
    accept: float | None = None
    splits: Annotated[int, Field(ge=1)] = 10

    @property
    def scored_by(self) -> str | None:
        """The verifier, if any."""
        return self.verifier

    def curve(
        self, items: Sequence[Item], sizes: Sequence[int], scores: Mapping[str, Scores] | None, *, draws: int, seed: int
    ) -> list[Estimate]:
        """Return held-out accuracy at each budget that pays for the pilot."""
        return self.fitted(items, sizes, scores, draws=draws, seed=seed)[0]

    def fitted(
        self, items: Sequence[Item], sizes: Sequence[int], scores: Mapping[str, Scores] | None, *, draws: int, seed: int
    ) -> tuple[list[Estimate], dict[int, Table]]:
        """Return the curve, and for each budget the table that all questions together give: for questions to come."""
        if self.accept is not None and self.verifier is None:
            raise ConfigError(f"compute_optimal: accept={self.accept:g} is a verifier's score: give verifier=SPEC")
        budgets = [k for k in sizes if k >= self.pilot]
        if not budgets or len(items) < 2:
            raise ConfigError(
                f"compute_optimal needs two questions and an n of at least its pilot's {self.pilot} samples: largest n is "
                f"{max(sizes)}, questions {len(items)}"
            )
        rules: list[Kind] = ["majority"] if scores is None else ["majority", "best", "weighted"]
        if scores is not None and any(value is not None and value < 0 for one in scores.values() for value in one.values):
            rules.remove("weighted")  # a vote cannot have negative weights
        grid = grid_of(budgets, self.pilot)
        options = [Option(rule=rule, n=n) for rule in rules for n in grid]
        found = prospects(items, options, pilot=self.pilot, scores=scores, accept=self.accept, draws=draws, seed=seed)
        paid = {k: costs_at(items, k)[0] for k in budgets}
        means = {k: float(paid[k].mean()) for k in budgets}
        tables = {k: table_of(found, means[k], verifier=self.verifier, accept=self.accept) for k in budgets}
        return allocated_curve(items, found, paid, splits=self.splits, seed=seed), tables


RULES: dict[str, type[Rule]] = {
    "greedy": Greedy,
    "sample": Sample,
    "pass_at_k": PassAtK,
    "self_consistency": SelfConsistency,
    "best_of_n": BestOfN,
    "adaptive_consistency": AdaptiveConsistency,
    "verified_search": VerifiedSearch,
    "compute_optimal": ComputeOptimal,
}


def grid_of(sizes: Sequence[int], pilot: int) -> list[int]:
    """Return the numbers of samples that allocation chooses from: the pilot, the sizes, and one between any two of them."""
    ends = sorted({pilot, *sizes})
    return sorted({*ends, *((low + high) // 2 for low, high in itertools.pairwise(ends))})


def build_rule(spec: str) -> Rule:
    """Return the rule that a strategy's spec names."""
    parsed = parse(spec)
    if parsed.name not in RULES:
        raise ConfigError(f"a curve cannot replay strategy '{parsed.name}' on a pool{did_you_mean(parsed.name, RULES)}")
    for key in parsed.params:
        if re.fullmatch(r"n|k|max_n|n_max|max_samples", key):
            raise ConfigError(f"strategy '{spec}': leave '{key}' out, a curve takes it from --n")
    rule: Rule = instantiate(RULES[parsed.name], parsed.params, where=f"strategy '{parsed.name}'")
    return rule
