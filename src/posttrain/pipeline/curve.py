"""Accuracy against samples, tokens and FLOPs: every strategy and n from one pool a model, with intervals and crossings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import ConfigError, DataError
from ..core.files import write_atomic
from ..core.protocols import Engine, Task
from ..core.specs import lookup, parse
from ..core.types import Example
from ..stats.allocation_table import Table
from ..stats.curves import Estimate
from ..stats.pool import Item, Scores
from ..stats.resample import interval, mean_interval, resampled
from .curve_findings import Traced, find_crossings, find_savings
from .curve_rules import ComputeOptimal, build_rule
from .methods import build_prompter
from .opening import open_engine
from .pool_scores import verifier_scores
from .pools import Pool, Sampling, Source, likelihoods, make_pool, pool_folder, read_pool, sizes_of

__all__ = ["CurveRequest", "trace_curves"]

DRAWS = 2000  # bootstrap draws, and orders of a question's samples


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveRequest:
    """What `posttrain curve` is asked: models (or pools) × strategies × n on one task."""

    source: Source
    models: Sequence[str] = ()  # `REF` or `LABEL=REF`
    pools: Sequence[str] = ()  # `FOLDER` or `LABEL=FOLDER`
    strategies: Sequence[str]
    sizes: Sequence[int]
    out: Path
    keep: Path | None = None  # where pools are made [default: `out`/pools]
    draws: int = DRAWS


def trace_curves(request: CurveRequest) -> dict[str, Any]:
    """Make or continue the pools, replay every strategy at every n, return what `curve.json` holds but its sentences."""
    from ..tasks.registry import load_task

    sizes = sorted(set(request.sizes))
    if not sizes or sizes[0] < 1:
        raise ConfigError(f"--n {','.join(map(str, request.sizes))}: give numbers of samples from 1")
    if not request.strategies:
        raise ConfigError("a curve needs at least one --strategy, for example self_consistency")
    rules = {spec: build_rule(spec) for spec in dict.fromkeys(request.strategies)}
    source = request.source
    build_prompter(source.prompt)
    task = load_task(source.task, data=source.data, seed=source.seed, sizes=sizes_of(source))
    shop = _Shop(request, task, sizes)
    shop.gather({rule.sampling for rule in rules.values()})
    shared, notes = _shared(list(shop.pools.values()))
    traced = [
        shop.trace(label, spec, rule, shared)
        for label in shop.labels
        for spec, rule in rules.items()
        if (label, rule.sampling) in shop.pools
    ]
    unit = "flops" if all(one.priced for one in traced) else "tokens"
    bases = shop.bases(shared)
    first = next(iter(shop.pools.values()))
    return {
        "task": task.name,
        "questions": len(shared),
        "seed": source.seed,
        "prompt": first.prompt,
        "sizes": sizes,
        "unit": unit,
        "intervals": f"95%, percentile bootstrap over questions, {request.draws} draws, the same for all curves",
        "models": shop.facts(),
        "curves": [_told(one, request.draws) for one in traced],
        "savings": find_savings(traced, bases, draws=request.draws),
        "crossings": find_crossings(traced, bases, unit, draws=request.draws),
        "notes": notes,
    }


class _Shop:
    """The pools of a request, made or read on demand."""

    def __init__(self, request: CurveRequest, task: Task, sizes: Sequence[int]) -> None:
        self.request, self.task, self.sizes = request, task, sizes
        self.pools: dict[tuple[str, Sampling], Pool] = {}
        self.refs: dict[str, str] = {}
        self._engines: dict[str, Engine] = {}
        self._scores: dict[tuple[Path, str], dict[str, Scores]] = {}

    @property
    def labels(self) -> list[str]:
        """The models, in the order they were given."""
        return list(dict.fromkeys(label for label, _ in self.pools))

    @cached_property
    def examples(self) -> dict[str, Example]:
        """The task's examples, for verifiers."""
        source = self.request.source
        return {example.id: example for example in self.task.examples(source.split)[: source.limit]}

    def gather(self, wanted: set[Sampling]) -> None:
        """Read the given pools; make those that the models still lack."""
        for given in self.request.pools:
            label, where = _labelled(given)
            pool = read_pool(Path(where), label, self.task)
            if (label, pool.sampling) in self.pools:
                raise ConfigError(f"two pools of '{label}' with the same sampling: name them, --pool NAME=FOLDER")
            self.pools[label, pool.sampling] = pool
        for given in self.request.models:
            label, ref = _labelled(given)
            if label in self.refs:
                raise ConfigError(f"two models are called '{label}': name them, --model NAME=REF")
            self.refs[label] = ref
        most, source = max(self.sizes), self.request.source
        for label, ref in self.refs.items():
            for sampling in sorted(wanted, key=lambda one: (one.temperature, one.top_p)):
                if (label, sampling) not in self.pools:
                    strategy = sampling.strategy(most)
                    folder = pool_folder(self.request.keep or self.request.out / "pools", label, ref, source, strategy)
                    make_pool(folder, ref, source, strategy)
                    self.pools[label, sampling] = read_pool(folder, label, self.task)
        if not self.pools:
            raise ConfigError("a curve needs a --model to sample from, or a finished --pool")
        self._check(wanted)

    def _check(self, wanted: set[Sampling]) -> None:
        prompts = {pool.prompt for pool in self.pools.values()}
        if len(prompts) > 1:
            raise ConfigError(
                f"the pools have different prompts ({', '.join(sorted(prompts))}): curves compare models at one"
            )
        for sampling in (one for one in wanted if one.temperature):
            drawn = {label: pool for (label, held), pool in self.pools.items() if held == sampling}
            label, pool = max(drawn.items(), key=lambda one: one[1].n, default=("", None))
            if pool is not None and pool.n < max(self.sizes):  # a smaller one beside it: its curve ends there
                raise ConfigError(
                    f"the pool of '{label}' ({pool.folder}) has {pool.n} samples a question: ask for --n up to {pool.n}, or "
                    "make a larger one"
                )
        for sampling in wanted:
            if not any(held == sampling for _, held in self.pools):
                held = ", ".join(sorted({one.strategy(pool.n) for (_, one), pool in self.pools.items()}))
                raise ConfigError(
                    f"no pool was drawn as the strategies ask ({sampling.strategy(max(self.sizes))}), only {held}: give the "
                    "strategies that temperature and top_p, or a --model"
                )

    def trace(self, label: str, spec: str, rule: Any, shared: Sequence[str]) -> Traced:
        """Replay one strategy on one model's pool."""
        pool = self.pools[label, rule.sampling]
        items = [pool.items[example] for example in shared]
        scores, oracle = None, bool(rule.oracle)
        if rule.scored_by is not None:
            scores, by_gold = self._scored(pool, rule.scored_by)
            oracle = oracle or by_gold
        sizes = [size for size in self.sizes if size <= pool.n]
        tables: dict[int, str] = {}
        chance = {"draws": self.request.draws, "seed": self.request.source.seed}
        if isinstance(rule, ComputeOptimal):
            points, fitted = rule.fitted(items, sizes, scores, **chance)
            tables = {k: self._kept(f"{label}-{spec}-n{k}", table) for k, table in fitted.items()}
        else:
            points = rule.curve(items, sizes, scores, **chance)
        return Traced(
            model=label,
            strategy=spec,
            rule=rule,
            oracle=oracle,
            points=points,
            scores=scores,
            priced=pool.priced,
            parameters=pool.parameters,
            tables=tables,
        )

    def _kept(self, name: str, table: Table) -> str:
        """Write an allocation table where `compute_optimal:table=…` can read it; return the file's name."""
        file = "allocation-" + re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-") + ".json"
        write_atomic(self.request.out / file, table.to_json())
        return file

    def bases(self, shared: Sequence[str]) -> dict[tuple[str, Sampling], list[Item]]:
        """Return the questions of every sampled pool: what uniform voting and a single sample are computed from."""
        return {key: [pool.items[example] for example in shared] for key, pool in self.pools.items() if key[1].temperature}

    def _scored(self, pool: Pool, spec: str) -> tuple[dict[str, Scores], bool]:
        if spec == "likelihood":
            return likelihoods(pool), False
        parsed = parse(spec)
        cls = lookup(parsed.name, "posttrain.verifiers", "verifier")
        if getattr(cls, "relative", False):
            raise ConfigError(
                f"verifier '{spec}' scores texts by comparing them with each other, so that a text's score depends on n: a "
                "curve needs scores of single texts"
            )
        engine = None
        if "engine" in {f.name for f in dataclasses.fields(cls)} and "model" not in parsed.params:
            if pool.model not in self.refs:
                raise ConfigError(
                    f"verifier '{spec}' runs the model of pool '{pool.model}': give --model {pool.model}=REF too"
                )
            engine = self._engine(pool.model)
        if (pool.folder, spec) not in self._scores:
            self._scores[pool.folder, spec] = verifier_scores(pool, spec, self.task, self.examples, engine)
        return self._scores[pool.folder, spec], bool(getattr(cls, "oracle", False))

    def _engine(self, label: str) -> Engine:
        if label not in self._engines:
            source = self.request.source
            self._engines.clear()  # one model in memory at a time
            opened = open_engine(
                self.refs[label],
                device=source.device,
                dtype=source.dtype,
                slots=source.slots,
                chat_template=source.chat_template,
            )
            self._engines[label] = opened.engine
        return self._engines[label]

    def facts(self) -> list[dict[str, Any]]:
        """Return what each pool is, with the rates that belong beside its accuracies."""
        return [
            {
                "model": label,
                "parameters": pool.parameters,
                "samples": sampling.strategy(pool.n),
                "unparsed_rate": pool.unparsed_rate,
                "truncated_rate": pool.truncated_rate,
                "folder": str(pool.folder),
            }
            for (label, sampling), pool in self.pools.items()
        ]


def _labelled(given: str) -> tuple[str, str]:
    """Split `LABEL=REF`; a colon or slash before the equals sign is part of a plain reference."""
    named = re.match(r"([^:=/\\]+)=(.+)$", given)
    return (named[1], named[2]) if named else (given, given)


def _shared(pools: Sequence[Pool]) -> tuple[list[str], list[str]]:
    """Return the questions that all pools answer, in the order of the first, and a note where some were left out."""
    common = set.intersection(*(set(pool.items) for pool in pools))
    if not common:
        raise DataError("the pools have no question in common: make them with the same task, split, limit and seed")
    most = max(len(pool.items) for pool in pools)
    notes = [f"{len(common)} questions are common to all pools; the largest pool has {most}."] if len(common) < most else []
    return [example for example in pools[0].items if example in common], notes


def _told(one: Traced, draws: int) -> dict[str, Any]:
    return {
        "model": one.model,
        "strategy": one.strategy,
        "oracle": one.oracle,
        "points": [_point(point, one.priced, draws) for point in one.points],
        "tables": {str(k): file for k, file in one.tables.items()},
    }


def _point(point: Estimate, priced: bool, draws: int) -> dict[str, Any]:
    def mean(values: np.ndarray[Any, Any]) -> tuple[float, list[float]]:
        return float(values.mean()), list(interval(resampled(values, draws=draws)))

    samples, tokens, flops = mean(point.samples), mean(point.tokens), mean(point.flops)
    return {
        "n": point.n,
        "accuracy": float(point.right.mean()),
        "ci95": list(mean_interval(point.right, draws=draws)),
        "monte_carlo_error": point.monte_carlo_error,
        "samples": samples[0],
        "samples_ci95": samples[1],
        "tokens": tokens[0],
        "tokens_ci95": tokens[1],
        "flops": flops[0] if priced else None,
        "flops_ci95": flops[1] if priced else None,
    }
