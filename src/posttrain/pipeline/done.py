"""The record of a finished stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.errors import PosttrainError
from ..core.files import read_json
from ..core.types import Cost, Usage

__all__ = ["Done", "cost_from", "cost_to", "finished_before", "read_done"]


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


def finished_before(name: str, folder: Path, found: Mapping[str, Any]) -> Done:
    """Return the stage that a record found in its folder tells of."""
    return Done(name=name, key=str(found["key"]), folder=folder, cost=cost_from(found["cost"]), skipped=True)


def read_done(folder: Path) -> dict[str, Any] | None:
    """Return a finished stage's record, or None."""
    path = folder / "DONE.json"
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or "key" not in found:
        raise PosttrainError(f"{path} is not a stage's record: remove the folder to run the stage anew")
    return found
