"""From a task's name to the task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..core.errors import ConfigError, did_you_mean
from ..core.protocols import Task
from ..core.specs import parse

__all__ = ["list_tasks", "load_task"]

_GYM = "reasoning_gym/"
_NAMED = {
    "gsm8k": "grade-school word problems; hub id openai/gsm8k, or --data FILE",
    "ifeval": "instructions that a program can check; hub id google/IFEval, or --data FILE",
    "refusals": "harmful requests, to be refused, and harmless ones that only sound alarming; ships with the package",
}


def list_tasks() -> list[tuple[str, str]]:
    """Return (name, description) of every task that can be named."""
    from .reasoning_gym import generators

    return [*_named().items(), *((_GYM + name, about) for name, about in generators().items())]


def load_task(ref: str, *, data: str | Path | None = None, seed: int = 0, sizes: Mapping[str, int] | None = None) -> Task:
    """Return the task that `ref` names.

    Args:
        ref: `reasoning_gym/<generator>:parameter=value`, a benchmark's name (`gsm8k`; of most also some of the rows:
            `mmlu:subject=anatomy`, `bbh:task=[navigate,snarks]`), or the path of a task's YAML file.
        data: for benchmarks and YAML tasks, where the rows are: a file, a folder with train.* and test.*, a hub id, or
            `train=FILE,test=FILE`.
        seed: for generated tasks, which examples are made.
        sizes: for generated tasks, how many examples each split has.

    Raises:
        ConfigError: an unknown task or parameter, or an argument that this kind of task does not take.
    """
    if ref.endswith((".yaml", ".yml")):
        from .user import load_user_task

        _refuse(ref, sizes=sizes)
        return load_user_task(Path(ref), data=data)
    spec = parse(ref)
    if spec.name.startswith(_GYM):
        from .reasoning_gym import ReasoningGym

        _refuse(ref, data=data)
        return ReasoningGym(spec.name.removeprefix(_GYM), spec.params, seed=seed, sizes=sizes)
    if spec.name == "gsm8k":
        from .gsm8k import load_gsm8k

        _refuse(ref, sizes=sizes, parameters=spec.params or None)
        return load_gsm8k(data)
    if spec.name == "ifeval":
        from .ifeval import Ifeval

        _refuse(ref, sizes=sizes, parameters=spec.params or None)
        return Ifeval(data)
    if spec.name == "refusals":
        from .refusals import Refusals

        _refuse(ref, sizes=sizes, parameters=spec.params or None)
        return Refusals(data)
    if spec.name in _named():
        from .user import load_benchmark

        _refuse(ref, sizes=sizes)
        return load_benchmark(spec.name, spec.params, data=data)
    names = [name for name, _ in list_tasks()]
    raise ConfigError(f"unknown task '{ref}'{did_you_mean(spec.name, names) if '/' in ref else _choices()}")


def _named() -> dict[str, str]:
    """Return the benchmarks: those with a file of their own, and those that a YAML file of the package describes."""
    from .user import BENCHMARKS, benchmark_about

    return _NAMED | {path.stem: benchmark_about(path) for path in sorted(BENCHMARKS.glob("*.yaml"))}


def _choices() -> str:
    return f"; choose {', '.join(_named())}, {_GYM}<generator>, or the path of a task's YAML file"


def _refuse(ref: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"task '{ref}' takes no {name}")
