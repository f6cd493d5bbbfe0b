"""Accuracy against the number of examples in the prompt, for several models, with a fine-tuned one for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.files import write_json
from ..core.specs import Spec, format_spec, parse
from ..core.types import Example
from ..stats.spread import macro
from .methods import build_prompter
from .points import Bench, Measured

__all__ = ["IclCurve", "icl_curve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IclCurve:
    """The in-context learning curve: accuracy at k = 0, 1, 2, 4, … shots.

    Zero shots is `zero_shot`. All points of a task answer the same examples, and shots of a smaller k are the first of a
    larger one (unless nearest_last, reversed or a number orders them).

    Args:
        shots: the numbers of shots.
        prompt: a few-shot prompter; its k is replaced.
        instructions: with the task's instruction (True), without (False), or both.

    Source: Brown et al. 2020 (arXiv 2005.14165), figures 1.2 and 1.3.
    """

    shots: tuple[int, ...] = (0, 1, 2, 4, 8)
    prompt: str = "few_shot"
    instructions: tuple[bool, ...] = (True, False)

    def __post_init__(self) -> None:
        if not self.shots or any(k < 0 for k in self.shots) or len(set(self.shots)) != len(self.shots):
            raise ConfigError(f"icl-curve: shots {list(self.shots)}: give different numbers from 0")
        names = {f.name for f in fields(build_prompter(self.prompt))}  # type: ignore[arg-type]
        if not {"k", "instruction"} <= names:
            raise ConfigError(f"icl-curve: '{self.prompt}' has no number of shots: use few_shot or few_shot_cot")

    def spec(self, k: int, instruction: bool) -> str:
        """Return the prompt of a point."""
        spec = parse(self.prompt)
        if k:
            return format_spec(Spec(spec.name, {**spec.params, "k": k, "instruction": instruction}))
        kept = {"system": spec.params["system"]} if "system" in spec.params else {}
        return format_spec(Spec("zero_shot", {**kept, "instruction": instruction}))


def icl_curve(
    curve: IclCurve,
    benches: Sequence[tuple[Bench, Sequence[Example]]],
    out: Path,
    *,
    models: Sequence[str],
    tuned: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure every point, write `icl_curve.json` below `out` and return what it holds.

    With several tasks a point is the mean of the tasks' accuracies. `tuned` models answer without shots, with the task's
    instruction, as they were trained.
    """
    lines = []
    shots = sorted(curve.shots)
    for model in models:
        for instruction in curve.instructions:
            points = []
            for k in shots:
                title = f"{model}, {k} shots" + ("" if instruction else ", no instruction")
                points.append({"k": k} | _point(benches, model, curve.spec(k, instruction), title))
            line = {name: points[0].pop(name) for name in ("model", "parameters")}
            for point in points[1:]:
                del point["model"], point["parameters"]
            lines.append(line | {"instruction": instruction, "points": points})
    result = {
        "tasks": [bench.task.name for bench, _ in benches],
        "prompt": curve.prompt,
        "strategy": benches[0][0].strategy,
        "seed": benches[0][0].seed,
        "shots": shots,
        "lines": lines,
        "tuned": [_point(benches, model, "zero_shot", f"{model}, fine-tuned") for model in tuned],
    }
    write_json(out / "icl_curve.json", result)
    return result


def _point(benches: Sequence[tuple[Bench, Sequence[Example]]], model: str, prompt: str, title: str) -> dict[str, Any]:
    """Return one point over all tasks, and each task's part."""
    parts: Mapping[str, Measured] = {
        bench.task.name: bench.measure(model, prompt, examples, title=f"{title}: {bench.task.name}")
        for bench, examples in benches
    }
    told = {name: measured.to_dict() for name, measured in parts.items()}
    first = next(iter(parts.values()))
    if len(parts) == 1:
        accuracy, ci95 = first.summary.accuracy, first.summary.ci95
    else:
        accuracy, ci95 = macro([measured.scores for measured in parts.values()], seed=benches[0][0].seed)
    return {
        "model": first.model,
        "parameters": first.parameters,
        "prompt": prompt,
        "accuracy": accuracy,
        "ci95": list(ci95),
        "n": sum(part["n"] for part in told.values()),
        "shots_dropped": sum(part["shots_dropped"]["examples"] for part in told.values()),
        "tokens_per_query": sum(part["tokens_per_query"] for part in told.values()) / len(told),
        "tasks": told,
    }
