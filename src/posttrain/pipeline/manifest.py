"""What made a run: code version, packages, hardware, command. Recorded, compared, never punished."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.files import read_json, write_json

__all__ = ["code_version", "describe", "hardware", "made_by", "maker", "packages", "record"]

_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "datasets", "numpy", "scipy", "reasoning-gym", "math-verify")


@lru_cache
def code_version() -> str:
    """Return the package version and, inside a git checkout, its commit (`+dirty` when sources differ from it)."""
    source = Path(__file__).resolve().parents[1]
    try:
        commit = _git(source, "rev-parse", "--short=12", "HEAD")
        dirty = _git(source, "status", "--porcelain", "--", str(source))
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__}+{commit}" + ("+dirty" if dirty else "")


def _git(where: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(where), *arguments], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def packages() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def hardware() -> dict[str, Any]:
    """Return processor, cores, memory and accelerators."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {"processor": processor, "cores": cores, "memory_gib": round(memory / 2**30, 1), "system": platform.system()}


@lru_cache
def maker() -> dict[str, Any]:
    """Return what computes here: code, hardware, packages, as they were when this was first asked."""
    return {"code": code_version(), "packages": packages(), "hardware": hardware()}


def describe(recipe: str, seed: int, size: str | None) -> dict[str, Any]:
    """Return the manifest of this start of a run."""
    return {
        "recipe": recipe,
        "size": size,
        "seed": seed,
        "command": ["posttrain", *sys.argv[1:]],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        **maker(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def record(path: Path, manifest: dict[str, Any]) -> list[str]:
    """Append this start to the run's manifest; return what differs from the last one, in words."""
    starts = read_json(path)["starts"] if path.is_file() else []
    differences = []
    if starts:
        last = starts[-1]
        if last["code"] != manifest["code"]:
            differences.append(f"code {last['code']} before, {manifest['code']} now")
        differences += [
            f"{name} {version} before, {manifest['packages'][name]} now"
            for name, version in last["packages"].items()
            if manifest["packages"].get(name) != version
        ]
        if last["hardware"] != manifest["hardware"]:
            differences.append("other hardware")
    write_json(path, {"starts": [*starts, manifest]})
    return differences


def made_by(path: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return code, packages and hardware of what was computed, from the `DONE.json` of finished stages.

    Each says in `made_by` what computed it; one of an earlier version does not, and was computed by the last start before
    it was `finished`. A later start that found everything done computed nothing. Of several codes all are named, first to
    last; packages and hardware are of the last one.
    """
    starts = read_json(path)["starts"]
    made = []
    for record in sorted(records, key=lambda one: str(one["finished"])):
        before = [start for start in starts if start["started"] <= record["finished"]]
        made.append(record.get("made_by") or max(before, key=_started, default=starts[0]))
    made = made or starts[-1:]
    codes = dict.fromkeys(code for one in made for code in str(one["code"]).split(", "))
    return {"code": ", ".join(codes), "hardware": made[-1]["hardware"], "packages": made[-1]["packages"]}


def _started(start: dict[str, Any]) -> str:
    return str(start["started"])
