"""How much accuracy depends on what should not matter: the order of shots, the wording, the format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import Field

from ..core.errors import ConfigError
from ..core.files import write_json
from ..core.specs import Spec, format_spec, parse
from ..core.types import Example
from ..prompting._shots import permutation
from ..stats.spread import spread
from .methods import build_prompter
from .points import Bench, Measured

__all__ = ["WORDINGS", "Sensitivity", "Variant", "sensitivity"]

Group = Literal["order", "wording", "format"]

WORDINGS = (
    "Answer the question.",
    "Solve the following problem.",
    "Please find the right answer.",
    "Here is a task for you. Do it carefully.",
    "You are an expert. Give the correct answer.",
    "Read this and reply.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to put the same questions."""

    group: Group
    label: str
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Accuracy of one prompt over orders, wordings and formats, on the same examples.

    Args:
        prompt: the prompter whose variants are made; it is itself the first of each group.
        orders: how many orders of the same shots, the given one included (few-shot prompts; at most k! are different).
        wordings: instructions to put before the prompt; the prompt without any is the first.
        formats: each layout (chat, text, markdown) with and without the task's instruction, as far as the prompter has them.

    Source: orders: Lu et al. 2021 (arXiv 2104.08786); formats: Sclar et al. 2023 (arXiv 2310.11324); wordings: Mizrahi et
    al. 2023 (arXiv 2401.00595).
    """

    prompt: str
    orders: Annotated[int, Field(ge=0)] = 8
    wordings: tuple[str, ...] = WORDINGS
    formats: bool = True

    def variants(self) -> list[Variant]:
        """Return the variants of every group that has two or more.

        Raises:
            ConfigError: nothing can be varied.
        """
        groups = [self._orders(), self._wordings(), self._formats()]
        found = [variant for group in groups if len(group) > 1 for variant in group]
        if not found:
            raise ConfigError(f"sensitivity: nothing of '{self.prompt}' is varied: give orders, wordings or formats")
        return found

    def _with(self, **changes: Any) -> str:
        spec = parse(self.prompt)
        return format_spec(Spec(spec.name, {**spec.params, **changes}))

    @property
    def _settings(self) -> dict[str, Any]:
        prompter: Any = build_prompter(self.prompt)
        return {f.name: getattr(prompter, f.name) for f in fields(prompter)}

    def _orders(self) -> list[Variant]:
        settings = self._settings
        if "order" not in settings or not self.orders:
            return []
        found, seen, k = [Variant(group="order", label="as given", prompt=self.prompt)], set(), settings["k"]
        if isinstance(settings["order"], int):
            seen.add(tuple(permutation(k, settings["order"])))
        elif settings["order"] == "drawn":
            seen.add(tuple(range(k)))
        number, most = 0, min(self.orders, math.factorial(k))
        while len(found) < most and number < 50 * self.orders:
            number += 1
            places = tuple(permutation(k, number))
            if places not in seen:
                seen.add(places)
                found.append(Variant(group="order", label=f"order {number}", prompt=self._with(order=number)))
        return found

    def _wordings(self) -> list[Variant]:
        found = [Variant(group="wording", label="no instruction", prompt=self.prompt)]
        if parse(self.prompt).name == "instructed":
            raise ConfigError("sensitivity: give the prompt without 'instructed', and the instructions as wordings")
        for text in self.wordings:
            spec = Spec("instructed", {"text": text, "prompt": parse(self.prompt)})
            found.append(Variant(group="wording", label=text, prompt=format_spec(spec)))
        return found

    def _formats(self) -> list[Variant]:
        settings = self._settings
        found = [Variant(group="format", label=f"{_told(settings)} (as given)", prompt=self.prompt)]
        styles = ("chat", "text", "markdown") if "style" in settings else (None,)
        for style in styles if self.formats else ():
            for instruction in (True, False) if "instruction" in settings else (None,):
                wanted = {"style": style, "instruction": instruction}
                changes = {name: value for name, value in wanted.items() if value is not None}
                if any(settings[name] != value for name, value in changes.items()):
                    label = _told({**settings, **changes})
                    found.append(Variant(group="format", label=label, prompt=self._with(**changes)))
        return found


def _told(settings: dict[str, Any]) -> str:
    told = [settings["style"]] if "style" in settings else []
    if "instruction" in settings:
        told.append("task's instruction" if settings["instruction"] else "no instruction")
    return ", ".join(told) or "plain"


def sensitivity(what: Sensitivity, bench: Bench, examples: Sequence[Example], *, model: str) -> dict[str, Any]:
    """Measure every variant on the same examples, write `sensitivity.json` and return what it holds.

    For each group, and over all: mean, best and worst accuracy with its interval, the spread between best and worst with
    its interval, and what the spread would be if no variant mattered.
    """
    variants = what.variants()
    measured: list[Measured] = []
    for at, variant in enumerate(variants, 1):
        title = f"{at} of {len(variants)}: {variant.group}, {variant.label}"
        measured.append(bench.measure(model, variant.prompt, examples, title=title))
    groups = {}
    for group in dict.fromkeys(variant.group for variant in variants):
        scores = [m.scores for v, m in zip(variants, measured, strict=True) if v.group == group]
        groups[group] = asdict(spread(scores, seed=bench.seed))
    distinct = {m.folder: m.scores for m in measured}
    result = {
        "task": bench.task.name,
        "model": measured[0].model,
        "prompt": what.prompt,
        "strategy": bench.strategy,
        "seed": bench.seed,
        "n": len(examples),
        "variants": [asdict(v) | m.to_dict() for v, m in zip(variants, measured, strict=True)],
        "groups": groups,
        "all": asdict(spread(list(distinct.values()), seed=bench.seed)),
    }
    write_json(bench.out / "sensitivity.json", result)
    return result
