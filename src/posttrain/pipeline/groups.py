"""Groups of stages that a recipe repeats: round after round, or for each of several values; and settings by dotted keys.

    - name: star
      rounds: 3                      # or each: [10m, 30m, 60m]
      first: {"sample-{round}.model": start}
      stages:
        - {name: "sample-{round}", model: "tuned-{previous}", eval: {split: train}}

`{round}` counts from 1, `{previous}` is one less, `{rounds}` their number; `{each}` is the value. `first` changes settings
in the first repetition, where there is none before it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from ..core.config import Strict, validate
from ..core.errors import ConfigError, did_you_mean

__all__ = ["Group", "expanded", "override"]


class Group(Strict):
    """Stages to repeat; names and all other texts in them may hold placeholders."""

    name: str  # by which `sizes` and `--set` find the group; it is no part of its stages' names
    rounds: int | None = Field(default=None, ge=1)
    each: list[str | int | float] | None = Field(default=None, min_length=1)
    first: dict[str, Any] = Field(default_factory=dict)
    stages: list[dict[str, Any]] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_way(self) -> Group:
        if (self.rounds is None) == (self.each is None):
            raise ValueError("give either 'rounds', a number, or 'each', a list of values")
        return self

    @property
    def repetitions(self) -> list[dict[str, str]]:
        """What the placeholders stand for, repetition by repetition."""
        if self.each is not None:
            return [{"{each}": str(value)} for value in self.each]
        count = self.rounds or 0
        return [{"{round}": str(i), "{previous}": str(i - 1), "{rounds}": str(count)} for i in range(1, count + 1)]


def expanded(stages: Any) -> Any:
    """Return a recipe's list of stages with every group in its place written out; anything else is left as it is.

    Raises `ConfigError` for a group that cannot be.
    """
    if not isinstance(stages, list):
        return stages
    found: list[Any] = []
    for item in stages:
        if isinstance(item, Mapping) and "stages" in item:
            found += _written_out(validate(Group, item, where=f"group '{item.get('name')}'"))
        else:
            found.append(item)
    return found


def _written_out(group: Group) -> list[Any]:
    found: list[Any] = []
    for number, meant in enumerate(group.repetitions):
        own = {"stages": copy.deepcopy(group.stages)}
        for key, value in group.first.items() if number == 0 else ():
            override(own, f"stages.{key}", value, where=f"group '{group.name}', first")
        found += _filled(own["stages"], meant)
    return found


def _filled(value: Any, meant: Mapping[str, str]) -> Any:
    """Return a value with the placeholders in all its texts replaced."""
    if isinstance(value, str):
        for name, text in meant.items():
            value = value.replace(name, text)
        return value
    if isinstance(value, Mapping):
        return {_filled(key, meant): _filled(item, meant) for key, item in value.items()}
    return [_filled(item, meant) for item in value] if isinstance(value, list) else value


def override(values: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    """Set a dotted key; stages, and groups of them, are addressed by their names."""
    current: Any = values
    *path, last = key.split(".")
    for part in path:
        if isinstance(current, list):
            named = {item.get("name"): item for item in current if isinstance(item, dict)}
            if part not in named:
                raise ConfigError(f"{where}: '{key}': no stage '{part}'{did_you_mean(part, [str(n) for n in named])}")
            current = named[part]
        elif isinstance(current, dict):
            current = current.setdefault(part, {})
        else:
            raise ConfigError(f"{where}: '{key}': '{part}' is inside a plain value")
    if not isinstance(current, dict):
        raise ConfigError(f"{where}: '{key}' names no setting")
    current[last] = value
