"""Specs that name an earlier stage's checkpoint: `model=stage:NAME`, or its value model: `model=stage:NAME/value`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..core.specs import format_spec, parse, replaced

__all__ = ["STAGE", "placed", "stages_named"]

STAGE = "stage:"  # before the name of a training stage, where a verifier's setting takes a model


def stages_named(spec: str) -> tuple[str, ...]:
    """Return the stages whose checkpoints a spec names, however deep in it, in their order."""
    found: dict[str, None] = {}

    def note(text: str) -> str:
        for name in re.findall(rf"{STAGE}([a-z0-9][a-z0-9_-]*)", text):
            found[name] = None
        return text

    replaced(parse(spec), note)
    return tuple(found)


def placed(spec: str, folders: Mapping[str, Path]) -> str:
    """Return a spec with the checkpoints in these folders in the places of the stages' names."""
    names = sorted(stages_named(spec), key=len, reverse=True)
    if not names:
        return spec

    def put(text: str) -> str:
        for name in names:
            text = text.replace(STAGE + name, str((folders[name] / "checkpoint").resolve()))
        return text

    return format_spec(replaced(parse(spec), put))
