"""Pools of samples on disk: a finished evaluation of several samples a question, read as what curves are computed from."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError
from ..core.files import read_json
from ..core.protocols import Task
from ..core.types import ModelShape
from ..ledger.row import Row
from ..ledger.store import load_ledger
from ..stats.flops import forward_flops
from ..stats.pool import Item, Scores
from ..stats.vote import majority
from .methods import build_strategy
from .single import evaluate_once

__all__ = ["Pool", "Sampling", "Source", "likelihoods", "make_pool", "pool_folder", "read_pool", "sizes_of", "voted_scores"]

_POOLED = ("sample", "self_consistency", "best_of_n")  # their candidates are n independent samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a pool's samples are drawn; temperature 0 is greedy, a pool of one."""

    temperature: float
    top_p: float = 1.0

    def strategy(self, n: int) -> str:
        """Return the strategy that draws n such samples."""
        if self.temperature == 0.0:
            return "greedy"
        nucleus = f",top_p={self.top_p:g}" if self.top_p != 1.0 else ""
        return f"sample:n={n},temperature={self.temperature:g}{nucleus}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What pools are made of, whatever the model and the sampling; the arguments of an evaluation."""

    task: str
    prompt: str = "zero_shot"
    data: str | None = None
    split: str = "test"
    limit: int | None = None
    max_tokens: int | None = None
    seed: int = 0
    slots: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    chat_template: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One model's samples of every question, with what the ledger says of them."""

    folder: Path
    model: str  # the label that curves carry
    prompt: str
    task: str
    sampling: Sampling
    n: int  # samples that every question has
    parameters: int | None
    priced: bool  # FLOPs are known
    items: Mapping[str, Item]
    texts: Mapping[str, tuple[str, ...]]
    mean_logprobs: Mapping[str, tuple[float | None, ...]]
    unparsed_rate: float
    truncated_rate: float


def sizes_of(source: Source) -> dict[str, int] | None:
    """Return how many examples a generated task shall make; other tasks have what they have."""
    return {source.split: source.limit} if source.limit and source.task.startswith("reasoning_gym/") else None


def pool_folder(parent: Path, label: str, ref: str, source: Source, strategy: str) -> Path:
    """Return the folder of a pool, named after what decides its content: the same command goes on in the same one."""
    facts = [ref, source.task, source.prompt, source.data, source.split, source.limit, source.max_tokens, source.seed]
    key = hashlib.sha256(json.dumps([*facts, strategy]).encode()).hexdigest()[:8]
    kind = "greedy" if strategy == "greedy" else "samples"
    return parent / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', label)[-40:]}-{kind}-{key}"


def make_pool(folder: Path, ref: str, source: Source, strategy: str) -> None:
    """Draw and grade the samples that the folder does not hold yet; the same call again continues."""
    evaluate_once(
        model=ref,
        task=source.task,
        prompt=source.prompt,
        strategy=strategy,
        data=source.data,
        split=source.split,
        limit=source.limit,
        max_tokens=source.max_tokens,
        allowance=None,
        cache=None,  # the pool itself is what is kept
        seed=source.seed,
        out=folder,
        slots=source.slots,
        device=source.device,
        dtype=source.dtype,
        chat_template=source.chat_template,
    )


def read_pool(folder: Path, label: str, task: Task) -> Pool:
    """Read a finished evaluation by `sample`, `self_consistency`, `best_of_n` or `greedy` as a pool."""
    loaded = load_ledger(folder)
    if not loaded.rows:
        raise DataError(f"{folder}: the ledger has no finished row")
    first = loaded.rows[0]
    if first.task != task.name:
        raise DataError(f"{folder} holds answers to {first.task}, not to {task.name}: give its own --task")
    shape = _shape(folder)
    items, logprobs = {}, {}
    for row in loaded.rows:
        if not row.candidates or any(not {"tokens", "mean_logprob"} <= c.keys() for c in row.candidates):
            raise DataError(
                f"{folder}: example '{row.example}' has no samples with their tokens (made by an earlier version?): make "
                "the pool anew"
            )
        items[row.example] = _item(row, task, shape)
        logprobs[row.example] = tuple(candidate["mean_logprob"] for candidate in row.candidates)
    samples = sum(item.n for item in items.values())
    return Pool(
        folder=folder,
        model=label,
        prompt=first.prompt,
        task=first.task,
        sampling=_sampling(first.strategy, folder),
        n=min(item.n for item in items.values()),
        parameters=shape.parameters if shape else None,
        priced=all(sum(item.flops) > 0 for item in items.values()),
        items=items,
        texts={sample.example: sample.texts for sample in loaded.samples},
        mean_logprobs=logprobs,
        unparsed_rate=sum(key is None for item in items.values() for key in item.keys) / samples,
        truncated_rate=sum(c["finish"] == "length" for row in loaded.rows for c in row.candidates) / samples,
    )


def likelihoods(pool: Pool) -> dict[str, Scores]:
    """Return exp of each sample's mean log-probability: the length-normalised likelihood, at no further cost."""
    found = {}
    for example, means in pool.mean_logprobs.items():
        if all(mean is None for mean in means):
            raise ConfigError(
                f"{pool.folder}: the engine gave no log-probabilities (example '{example}'), so samples cannot be ranked by "
                "likelihood: use a verifier, or an engine that gives them"
            )
        nothing = (0.0,) * len(means)
        values = tuple(None if mean is None else math.exp(mean) for mean in means)
        found[example] = Scores(values=values, tokens=nothing, flops=nothing)
    return found


def voted_scores(pool: Pool, n: int) -> dict[str, float]:
    """Return per question what `self_consistency:n=n` scores: the vote of the first n samples, ties broken as it does.

    Sample i does not depend on n, so this is the very answer that the strategy gives, not an expectation.
    """
    found = {}
    for example, item in pool.items.items():
        keys, means = item.keys[:n], pool.mean_logprobs[example][:n]
        known = [mean for mean in means if mean is not None]
        winner = majority(keys, known if len(known) == len(keys) else None)
        found[example] = item.right[0 if winner is None else keys.index(winner)]
    return found


def _shape(folder: Path) -> ModelShape | None:
    path = folder / "engine.json"
    told = read_json(path)["shape"] if path.is_file() else None
    return ModelShape(**told) if told else None


def _sampling(spec: str, folder: Path) -> Sampling:
    name = spec.partition(":")[0]
    if name == "greedy":
        return Sampling(temperature=0.0)
    if name not in _POOLED:
        raise DataError(
            f"{folder} was answered by '{spec}', whose candidates are no independent samples: give an evaluation by "
            f"{', '.join(_POOLED)} or greedy"
        )
    strategy: Any = build_strategy(spec)
    return Sampling(temperature=strategy.temperature, top_p=strategy.top_p)


def _item(row: Row, task: Task, shape: ModelShape | None) -> Item:
    """Price the samples one by one so that all of them together cost what the ledger says.

    With one call the prompt is what the call was charged and each sample its own tokens. Where there were more calls (a
    second stage that reads the answer, an engine that asks for samples one by one), what is left over is spread evenly.
    """
    own = [int(candidate["tokens"]) for candidate in row.candidates]
    paid, n = row.cost["policy"], len(own)
    total, calls = paid["prompt"] + paid["generated"] + paid["scored"], max(int(paid["calls"]), 1)
    second_stage = calls == n + 1 and paid["generated"] > sum(own)
    # a second stage is asked for the prompt and the sample's reasoning once more
    prompt = round(max(paid["prompt"] - (sum(own) if second_stage else 0), 0) / calls)
    tokens = _spread([float(count) for count in own], total - prompt)
    if shape is not None:
        prompt_flops = forward_flops(shape, start=0, tokens=prompt, logits=0)
        each = [forward_flops(shape, start=prompt, tokens=count, logits=count) for count in own]
    else:
        prompt_flops = paid["flops"] * prompt / max(total, 1)
        each = [paid["flops"] * count / max(total, 1) for count in own]
    answers = [candidate["answer"] for candidate in row.candidates]
    return Item(
        id=row.example,
        keys=tuple(None if answer is None else task.key(answer) for answer in answers),
        right=tuple(float(candidate["score"] or 0.0) for candidate in row.candidates),
        tokens=tuple(tokens),
        flops=tuple(_spread(each, paid["flops"] - prompt_flops)),
        prompt_tokens=float(prompt),
        prompt_flops=prompt_flops,
    )


def _spread(own: list[float], total: float) -> list[float]:
    rest = total - sum(own)
    rest = 0.0 if abs(rest) <= 1e-9 * max(total, 1.0) else rest
    return [value + rest / len(own) for value in own]
