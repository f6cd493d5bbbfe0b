"""Many evaluations side by side: each (model, prompt, examples) in a folder named by its content, done once, resumable."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import CapabilityError
from ..core.files import read_json, write_json
from ..core.protocols import Task
from ..core.types import Cost, Example, Prompt
from ..engines.fitting import Fitting
from ..engines.meter import Account, Metered
from ..ledger.row import Row, Samples, cold, timing_of
from ..ledger.store import Ledger, load_ledger
from ..stats.summary import Summary, summarise
from .evaluate import Evaluation, evaluate, shots_dropped
from .methods import build_prompter, build_strategy
from .opening import Opened, open_engine, static_fingerprint
from .verifying import scorers

__all__ = ["Bench", "Measured", "Models"]


@dataclass
class Models:
    """Opens models by reference and keeps the last one in memory."""

    device: str = "auto"
    dtype: str = "auto"
    slots: int | None = None
    chat_template: Path | None = None
    _open: tuple[str, Opened] | None = None

    def fingerprint(self, ref: str) -> str:
        """Name a model by its content, without loading it."""
        return static_fingerprint(ref)

    def open(self, ref: str) -> Opened:
        """Return the model's engine."""
        if self._open is None or self._open[0] != ref:
            self._open = None  # two models need not fit together
            opened = open_engine(
                ref, device=self.device, dtype=self.dtype, slots=self.slots, chat_template=self.chat_template
            )
            self._open = (ref, opened)
        return self._open[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One finished evaluation."""

    folder: Path
    model: str  # the name that reports show
    parameters: int | None
    prompt: str
    rows: tuple[Row, ...]
    summary: Summary

    @property
    def scores(self) -> list[float]:
        """The examples' scores in their order; what could not be graded is wrong."""
        return [row.score or 0.0 for row in self.rows]

    @property
    def cost(self) -> Cost:
        """What it costs cold, and what was paid."""
        return self.summary.cost

    def to_dict(self) -> dict[str, Any]:
        """Return what tables show."""
        told = self.summary
        return {
            "accuracy": told.accuracy,
            "ci95": list(told.ci95),
            "n": told.n,
            "unparsed_rate": told.unparsed_rate,
            "truncated_rate": told.truncated_rate,
            "shots_dropped": shots_dropped(self.rows),
            "tokens_per_query": told.per_query["tokens"],
            "flops_per_query": told.per_query["flops"],
            "folder": self.folder.name,
        }


@dataclass
class Bench:
    """Evaluations with one task, strategy and seed, below one folder.

    A finished point is read from its folder, whatever the order in which points are asked for; an unfinished one goes on.
    """

    out: Path
    task: Task
    models: Models
    strategy: str = "greedy"
    seed: int = 0
    max_tokens: int | None = None
    _done: dict[str, Measured] = field(default_factory=dict)

    def key(self, model: str, prompt: str, examples: Sequence[Example], **more: Any) -> str:
        """Hash everything that decides a point's result."""
        models = scorers(build_strategy(self.strategy))
        facts: Mapping[str, Any] = {
            **({"scorers": models} if models else {}),
            "model": self.models.fingerprint(model),
            "numbers": [self.models.device, self.models.dtype],
            "task": self.task.version,
            "examples": [example.id for example in examples],
            "prompt": [prompt, getattr(build_prompter(prompt), "version", "1")],
            "strategy": [self.strategy, getattr(build_strategy(self.strategy), "version", "1")],
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            **more,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def measure(self, model: str, prompt: str, examples: Sequence[Example], *, title: str) -> Measured:
        """Return the evaluation of a model with a prompt on these examples."""
        key = self.key(model, prompt, examples)
        if key not in self._done:
            folder = self.out / "points" / key
            if not (folder / "DONE.json").is_file():
                opened = self.models.open(model)
                evaluation = Evaluation(
                    stage=key,
                    task=self.task,
                    examples=examples,
                    prompt=prompt,
                    strategy=self.strategy,
                    model=opened.name,
                    seed=self.seed,
                    max_tokens=self.max_tokens,
                )
                seconds = evaluate(evaluation, opened.engine, folder, title=title).cost.seconds
                shape = opened.engine.shape
                parameters = None if shape is None else shape.parameters
                write_json(folder / "DONE.json", {"model": opened.name, "parameters": parameters, "seconds": seconds})
            self._done[key] = self._read(folder, prompt)
        return self._done[key]

    def likelihood(self, model: str, prompt: str, examples: Sequence[Example]) -> tuple[list[float], Cost]:
        """Return log p(answer | prompt, "Answer:") of each example, summed over the answer's tokens, and the cost.

        Raises `CapabilityError` for an engine that cannot score.
        """
        folder = self.out / "points" / self.key(model, prompt, examples, kind="likelihood")
        with Ledger(folder, [example.id for example in examples]) as ledger:
            todo = [example for example in examples if example.id not in ledger.done]
            if todo:
                opened = self.models.open(model)
                lacking = {"score", "prefix"} - opened.engine.can
                if lacking:
                    raise CapabilityError(
                        f"score=likelihood needs an engine with {', '.join(sorted(lacking))}; use score=accuracy"
                    )
                asyncio.run(self._score_all(opened, prompt, todo, ledger))
        loaded = load_ledger(folder)
        cost = summarise(loaded.rows, loaded.timings).cost
        return [float(row.trace["logprob"]) for row in loaded.rows], cost

    async def _score_all(self, opened: Opened, spec: str, todo: Sequence[Example], ledger: Ledger) -> None:
        prompter = build_prompter(spec)

        async def one(example: Example) -> None:
            account, fitting, began = Account(), Fitting(opened.engine), time.monotonic()
            asked = prompter(self.task, example.public(), seed=self.seed)
            prompt = Prompt(messages=asked.messages, opening="Answer:")
            scored = await Metered(fitting, account, "policy").score(prompt, f" {example.answer}")
            dropped = {"shots_dropped": fitting.dropped} if fitting.dropped else {}
            row = Row(
                stage="likelihood",
                task=self.task.name,
                example=example.id,
                model=opened.name,
                prompt=spec,
                strategy="",
                seed=self.seed,
                score=None,
                answer=None,
                unparsed=False,
                cost={role: cold(cost) for role, cost in sorted(account.by_role().items())},
                trace={"logprob": math.fsum(scored.raw_logprobs or ()), **dropped},
            )
            texts = Samples(example=example.id, text=scored.text)
            ledger.add(row, texts, timing_of(example.id, account.by_role(), time.monotonic() - began))

        await asyncio.gather(*(one(example) for example in todo))

    def _read(self, folder: Path, prompt: str) -> Measured:
        done, loaded = read_json(folder / "DONE.json"), load_ledger(folder)
        return Measured(
            folder=folder,
            model=done["model"],
            parameters=done["parameters"],
            prompt=prompt,
            rows=loaded.rows,
            summary=summarise(loaded.rows, loaded.timings, seconds=done["seconds"]),
        )
