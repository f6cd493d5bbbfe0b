"""Finished stages taken from elsewhere: from another run, or from the place they had before the recipe grew.

A stage's key decides its result (settings, methods' versions, task, seed, model, the keys of its inputs), so a folder with
that key is the stage, whichever run made it. A former result that was set aside counts too: putting a setting back is free.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import ConfigError
from ..core.files import disk_errors, write_json
from .done import read_done
from .manifest import made_by

__all__ = ["check_runs", "taken_over"]

_WEIGHTS = ".safetensors"


def check_runs(runs: Sequence[Path]) -> None:
    """Raise `ConfigError` for a folder that is no run's."""
    for run in runs:
        if not (run / "manifest.json").is_file():
            raise ConfigError(f"--reuse {run}: no run folder (it has no manifest.json): name one that `posttrain run` wrote")


def taken_over(name: str, key: str, folder: Path, runs: Sequence[Path]) -> Path | None:
    """Make `folder` the finished stage of this name and key from the first of `runs` that has it; return where it was.

    Whole or not at all. Weights are linked where the file system can, all else is copied. The record says what computed it
    (`made_by`; one of an earlier version does not, and is given it): this run's manifest does not know.
    """
    for run in runs:
        for found in sorted([*run.glob(f"*-{name}"), *run.glob(f"*-{name}.old-*")]):
            record = read_done(found)
            if found == folder or record is None or record["key"] != key:
                continue
            partial = folder.with_name(f".{folder.name}.partial")
            with disk_errors(folder):
                shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
                shutil.copytree(found, partial, copy_function=_linked)
                made = record.get("made_by") or made_by(run / "manifest.json", [record])
                write_json(partial / "DONE.json", {**record, "made_by": made})
                partial.rename(folder)
            return found
    return None


def _linked(source: str, target: str) -> str:
    """Link weights, which are written whole and once; copy what rows are appended to, and to another file system."""
    if source.endswith(_WEIGHTS):
        with contextlib.suppress(OSError):
            os.link(source, target)
            return target
    return shutil.copy2(source, target)
