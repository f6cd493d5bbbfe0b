"""Log-probabilities under the start weights, computed once before training and kept in `out/reference`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ..core.errors import ConfigError, TrainingError
from ..core.files import disk_errors, write_atomic
from ..core.progress import progress
from ..core.types import Cost, Usage
from ..losses.reduce import sequence_sums
from ..models.forward import Forward, TokenSequence
from .batching import micro_batches, share_of_rank
from .kept_logps import KeptLogps
from .memory import peak_bytes
from .processes import by_first_process, rank_and_world, wait_for_all
from .state import cost_from_dict
from .step import Work

__all__ = ["reference_logps"]


@torch.no_grad()
def reference_logps(
    module: Forward,
    groups: Sequence[Sequence[TokenSequence]],
    work: Sequence[Work],
    *,
    out: Path,
    key: str,
    tokens_per_microbatch: int,
    kept: KeptLogps | None = None,
) -> tuple[list[list[float]], Cost]:
    """Return Σ log π(token) over the trained tokens of each sequence of each group, and what that cost.

    Without dropout. Each micro-batch is one line of a file, so a killed run computes only what is missing; what `kept`
    has of other runs is charged in full and not spent. Call it before any weight has changed. Raises `ConfigError` when
    the files belong to another run.
    """
    rank, world = rank_and_world()
    folder = out / "reference"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    by_first_process(lambda: _mend(folder))
    known = _read(folder, key)
    wait_for_all()  # all have read before one writes: else they would not share out the same batches
    batches = micro_batches(list(range(len(groups))), [w.tokens for w in work], tokens_per_microbatch)
    missing = [batch for batch in batches if not all(i in known[0] for i in batch)]
    mine, done = share_of_rank(missing, rank, world), len(batches) - len(missing)
    module.eval()
    with (
        (folder / f"{rank}.jsonl").open("a", encoding="utf-8") as file,
        progress("reference", done + len(mine), unit="batch", start=done, shown=rank == 0) as advance,
    ):
        for rows in mine:
            began = time.perf_counter()
            chosen = [groups[i] for i in rows]
            name = None if kept is None else kept.key(chosen)
            values = None if kept is None or name is None else kept.get(name)
            flops, spent = sum(work[i].flops for i in rows), 0.0
            if values is None:
                values, spent = _sums(module, chosen, rows), flops
                if kept is not None and name is not None:
                    kept.put(name, values)
            cost = Cost(
                usage=Usage(calls=1, scored=sum(work[i].tokens for i in rows)), flops=flops, flops_spent=spent,
                seconds=time.perf_counter() - began, peak_bytes=peak_bytes(),
            )  # fmt: skip
            with disk_errors(folder):
                file.write(json.dumps({"key": key, "rows": rows, "logps": values, "cost": asdict(cost)}) + "\n")
                file.flush()
            advance()
    wait_for_all()
    found, cost = _read(folder, key)
    return [found[i] for i in range(len(groups))], cost


def _sums(module: Forward, groups: Sequence[Sequence[TokenSequence]], rows: Sequence[int]) -> list[list[float]]:
    batch = module.batch(groups)
    logps_N = module(batch)
    sums = iter(sequence_sums(logps_N.double(), batch.owner_N.to(logps_N.device), batch.sequences).tolist())
    values = [[next(sums) for _ in group] for group in groups]
    if not all(_finite(value) for group in values for value in group):
        raise TrainingError(f"a log-probability of the start model is not finite among rows {rows}")
    return values


def _finite(value: float) -> bool:
    return value - value == 0


def _mend(folder: Path) -> None:
    """Remove the lines that a kill has cut."""
    for path in folder.glob("*.jsonl"):
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            write_atomic(path, text[: text.rfind("\n") + 1])


def _read(folder: Path, key: str) -> tuple[dict[int, list[float]], Cost]:
    """Read all finished lines."""
    found: dict[int, list[float]] = {}
    cost = Cost()
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry["key"] != key:
                raise ConfigError(f"{folder.parent} holds a run with another configuration, data, seed or start: remove it")
            found.update(zip(entry["rows"], entry["logps"], strict=True))
            cost += cost_from_dict(entry["cost"])
    return found, cost
