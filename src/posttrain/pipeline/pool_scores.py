"""Verifier scores of a pool: computed once, kept beside the samples, safe against a kill."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files import disk_errors, write_atomic
from ..core.progress import progress
from ..core.protocols import Engine, Task
from ..core.specs import parse
from ..core.types import Example
from ..engines.meter import Account, Metered
from ..stats.pool import Scores
from ..verifiers.build import build_verifier
from .opening import static_fingerprint
from .pools import Pool
from .verifying import open_once

__all__ = ["verifier_scores"]

_AT_ONCE = 256  # texts in flight


def verifier_scores(
    pool: Pool, spec: str, task: Task, examples: Mapping[str, Example], engine: Engine | None
) -> dict[str, Scores]:
    """Return a verifier's score of every sample, each with what scoring it costs cold; what is on disk is not scored again.

    A text is scored by a call of its own, so that the cost of any number of samples is known. `engine` is the model that
    answered, for verifiers that use it; one that names a model of its own opens that.
    """
    own = parse(spec).params.get("model")
    scorer = engine.fingerprint if engine else None if own is None else static_fingerprint(str(own))
    facts = {"verifier": spec, "task": task.version, "engine": scorer}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    path = pool.folder / f"scores-{key}.jsonl"
    done = _read(path, pool)
    missing = [example for example in pool.items if example not in done and example not in examples]
    if missing:
        raise DataError(
            f"{pool.folder}: example '{missing[0]}' is not in the task now: give the --task, --split, --limit and --seed of "
            "the pool"
        )
    todo = [example for example in pool.items if example not in done]
    if todo:
        with disk_errors(path), path.open("a", encoding="utf-8") as file:
            if not file.tell():
                file.write(json.dumps(facts) + "\n")

            def keep(example: str, scores: Scores) -> None:
                done[example] = scores
                file.write(_line(example, scores))
                file.flush()

            with progress(f"scoring {pool.model} by {spec}", len(pool.items), unit="questions", start=len(done)) as advance:
                asyncio.run(_score_all(pool, spec, task, examples, engine, todo, keep, advance))
        ordered = [_line(example, done[example]) for example in pool.items]
        write_atomic(path, json.dumps(facts) + "\n" + "".join(ordered))
    return done


async def _score_all(
    pool: Pool,
    spec: str,
    task: Task,
    examples: Mapping[str, Example],
    engine: Engine | None,
    todo: list[str],
    keep: Any,
    advance: Any,
) -> None:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(example: Example, text: str) -> tuple[float | None, float, float]:
        async with gate:
            account = Account()
            verifier = build_verifier(
                spec,
                task=task,
                engine=engine,
                golds={example.id: example},
                meter=lambda inner, role: Metered(inner, account, role),
                opener=open_once,
            )
            (score,) = await verifier(example.public(), [text])
            value = score.value if math.isfinite(score.value) else None
            return value, float(account.total.usage.tokens), account.total.flops

    async def question(identity: str) -> None:
        rows = await asyncio.gather(*(one(examples[identity], text) for text in pool.texts[identity]))
        values, tokens, flops = zip(*rows, strict=True)
        keep(identity, Scores(values=values, tokens=tokens, flops=flops))
        advance(1)

    for start in range(0, len(todo), _AT_ONCE):
        await asyncio.gather(*(question(identity) for identity in todo[start : start + _AT_ONCE]))


def _line(example: str, scores: Scores) -> str:
    record = {"example": example, "values": scores.values, "tokens": scores.tokens, "flops": scores.flops}
    return json.dumps(record) + "\n"


def _read(path: Path, pool: Pool) -> dict[str, Scores]:
    """Return the whole lines of the file; a last one cut by a kill is dropped, and cut off."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines.pop():  # empty unless the last write was cut
        write_atomic(path, "".join(f"{line}\n" for line in lines))
    found = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            record = json.loads(line)
            scores = Scores(**{name: tuple(record[name]) for name in ("values", "tokens", "flops")})
            whole = len(scores.values) == pool.items[record["example"]].n
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise DataError(f"{path}, line {number}: broken or of another pool; remove the file, to score anew")
        found[record["example"]] = scores
    return found
