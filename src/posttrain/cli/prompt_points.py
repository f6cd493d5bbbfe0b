"""What the commands that evaluate many prompts share: loading the task, checking specs first, recording the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ConfigError

if TYPE_CHECKING:
    from ..core.types import Example
    from ..pipeline.points import Bench, Models

__all__ = ["bench_of"]


def bench_of(
    out: Path,
    task: str,
    models: Models,
    *,
    command: str,
    prompts: Sequence[str],
    strategy: str,
    data: str | None,
    split: str,
    limit: int | None,
    max_tokens: int | None,
    seed: int,
) -> tuple[Bench, Sequence[Example]]:
    """Return the bench and the examples to answer; mistakes are said before anything is loaded."""
    from ..pipeline.manifest import describe, record
    from ..pipeline.methods import build_prompter, build_strategy
    from ..pipeline.points import Bench
    from ..tasks.registry import load_task

    for prompt in prompts:
        build_prompter(prompt)
    build_strategy(strategy)
    sizes = {split: limit} if limit and task.startswith("reasoning_gym/") else None
    loaded = load_task(task, data=data, seed=seed, sizes=sizes)
    examples = loaded.examples(split)[:limit]
    if not examples:
        raise ConfigError(f"task '{task}' has no examples in split '{split}'")
    record(out / "manifest.json", describe(command, seed, None))
    bench = Bench(out=out, task=loaded, models=models, strategy=strategy, seed=seed, max_tokens=max_tokens)
    return bench, examples
