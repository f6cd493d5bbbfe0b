"""One evaluation or one training run, without a recipe."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.files import write_json
from ..core.types import Checkpoint
from ..engines.generations import Generations
from ..engines.purse import Allowance
from ..ledger.store import load_ledger
from .done import cost_to
from .evaluate import Evaluation, evaluate, shots_dropped
from .manifest import describe, record
from .methods import build_prompter, build_strategy, build_trainer
from .opening import open_engine
from .verifying import scorers

__all__ = ["default_cache", "evaluate_once", "train_once"]


def default_cache(model: str) -> Path | None:
    """Return where evaluations of a model keep what they generate: beside their results.

    Nothing is kept unasked of made-up answers, nor of a server's: its weights may change behind their name, unseen.
    """
    return None if model.partition(":")[0] in ("scripted", "openai") else Path("runs") / "generations.sqlite"


def evaluate_once(
    *,
    model: str,
    task: str,
    prompt: str,
    strategy: str,
    data: str | None,
    split: str,
    limit: int | None,
    max_tokens: int | None,
    allowance: Allowance | None,
    cache: Path | None,
    seed: int,
    out: Path | None,
    slots: int | None,
    device: str,
    dtype: str,
    chat_template: Path | None,
) -> dict[str, Any]:
    """Evaluate and return what `posttrain eval --json` prints; the same call again continues the same ledger.

    `cache` is the file of kept generations, None for none: it changes what is spent, never the result.
    """
    from ..tasks.registry import load_task

    build_prompter(prompt), build_strategy(strategy)  # mistakes first, before anything is loaded
    loaded = load_task(
        task, data=data, seed=seed, sizes={split: limit} if limit and task.startswith("reasoning_gym/") else None
    )
    examples = loaded.examples(split)[:limit]
    if not examples:
        raise ConfigError(f"task '{task}' has no examples in split '{split}'")
    with contextlib.nullcontext() if cache is None else Generations(cache) as kept:
        opened = open_engine(model, device=device, dtype=dtype, slots=slots, chat_template=chat_template, kept=kept)
        facts = {
            "model": opened.engine.fingerprint,
            "task": loaded.version,
            "examples": [example.id for example in examples],
            "prompt": [prompt, getattr(build_prompter(prompt), "version", "1")],
            "strategy": [strategy, getattr(build_strategy(strategy), "version", "1")],
            "seed": seed,
            "max_tokens": max_tokens,
        }
        if models := scorers(build_strategy(strategy)):
            facts["scorers"] = models
        if allowance is not None:
            facts["budget"] = asdict(allowance)
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        folder = out or Path("runs") / "eval" / f"{opened.name.replace('/', '_')}-{key}"
        _claim(folder, key)
        record(folder / "manifest.json", describe("eval", seed, None))
        evaluation = Evaluation(
            stage="eval",
            task=loaded,
            examples=examples,
            prompt=prompt,
            strategy=strategy,
            model=opened.name,
            seed=seed,
            max_tokens=max_tokens,
            allowance=allowance,
        )
        summary = evaluate(evaluation, opened.engine, folder, title=f"{opened.name} on {loaded.name}")
    result = summary.to_dict() | {"model": opened.name, "task": loaded.name, "split": split, "seed": seed}
    rows = load_ledger(folder).rows
    result["oracle"] = any(row.trace.get("oracle") for row in rows)
    result["shots_dropped"] = shots_dropped(rows)
    result |= {"prompt": prompt, "strategy": strategy, "ledger": str(folder / "ledger.jsonl")}
    return result


def _claim(folder: Path, key: str) -> None:
    """Refuse to mix two different evaluations in one folder."""
    from ..core.files import read_json

    marker = folder / "KEY.json"
    if marker.is_file() and read_json(marker).get("key") != key:
        raise ConfigError(
            f"{folder} holds another evaluation (other model, task, prompt, strategy, budget or seed): choose another --out"
        )
    write_json(marker, {"key": key})


def train_once(*, method: str, model: str, data: str, out: Path, seed: int) -> dict[str, Any]:
    """Train and return where the checkpoint is and what it cost; the same call again resumes."""
    from ..data.mixing import read_mix
    from ..data.rows import rows_for
    from ..models.load import resolve
    from ..training.processes import by_first_process

    trainer = build_trainer(method)
    rows = read_mix(data, seed=seed, prepare=partial(rows_for, trainer)).rows
    path = by_first_process(lambda: resolve(model))
    key = hashlib.sha256(f"{method}|{path}|{seed}".encode()).hexdigest()[:16]
    by_first_process(lambda: record(out / "manifest.json", describe("train", seed, None)))
    trained = trainer(Checkpoint(path=path, base=model, key=key), rows, out, seed=seed)
    return {
        "checkpoint": str(trained.path),
        "method": method,
        "model": model,
        "rows": len(rows),
        "cost": cost_to(trained.cost),
    }
