"""The record that a finished stage leaves: its key, its folder and its own cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.errors import PosttrainError
from ..core.files import read_json
from ..core.types import Cost, Usage

__all__ = ["Done", "cost_from", "cost_to", "read_done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A finished stage: its key, its folder and its own cost."""

    name: str
    key: str
    folder: Path
    cost: Cost
    skipped: bool = False


def cost_to(cost: Cost) -> dict[str, Any]:
    """Return a cost as JSON."""
    return asdict(cost)


def cost_from(values: Mapping[str, Any]) -> Cost:
    """Return the cost that `cost_to` wrote."""
    return Cost(**{**values, "usage": Usage(**values["usage"])})


def read_done(folder: Path) -> dict[str, Any] | None:
    """Return a finished stage's record, or None."""
    path = folder / "DONE.json"
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or "key" not in found:
        raise PosttrainError(f"{path} is not a stage's record: remove the folder to run the stage anew")
    return found
