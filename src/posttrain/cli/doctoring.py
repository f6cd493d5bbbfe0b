"""`posttrain doctor`: what this machine offers and what would be slow or fail on it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

__all__ = ["examine", "show"]


def examine() -> dict[str, Any]:
    """Return the machine's description and a list of checks: name, ok, what was found, how to mend it."""
    from ..models.aliases import cache_folder
    from ..pipeline.manifest import code_version, hardware, packages

    machine = hardware()
    checks = [
        _python(),
        *_installed(),
        *_compute(machine),
        _memory(machine),
        _disk("runs", Path.cwd()),
        _disk("cache", cache_folder()),
    ]
    return {"posttrain": code_version(), "packages": packages(), "hardware": machine, "checks": checks}


def _check(name: str, ok: bool, found: str, mend: str = "") -> dict[str, Any]:
    return {"name": name, "ok": ok, "found": found, "mend": "" if ok else mend}


def _python() -> dict[str, Any]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return _check("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")


def _installed() -> list[dict[str, Any]]:
    needed = ("torch", "transformers", "peft", "safetensors", "scipy", "matplotlib", "reasoning_gym", "math_verify")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    found = f"missing: {', '.join(missing)}" if missing else "all there"
    return [_check("packages", not missing, found, "pip install -c constraints.txt -e .")]


def _compute(machine: dict[str, Any]) -> list[dict[str, Any]]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    from ..models.load import pick_device, pick_dtype

    device = pick_device("auto")
    dtype = pick_dtype("auto", device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine["processor"]
    slow = device.type == "cpu" and dtype == torch.float32
    found = f"{device.type} ({name}), {str(dtype).removeprefix('torch.')}"
    if slow:
        found += "; no bfloat16 instructions: slower than a processor that has them"
    threads = torch.get_num_threads()
    cores = machine["cores"]
    return [
        _check("compute", True, found),
        _check("threads", threads <= cores, f"{threads} threads on {cores} cores", f"set OMP_NUM_THREADS={cores}"),
    ]


def _memory(machine: dict[str, Any]) -> dict[str, Any]:
    enough = machine["memory_gib"] >= 6
    return _check(
        "memory", enough, f"{machine['memory_gib']} GiB", "the quickstart needs about 6 GiB: train with adapter=lora"
    )


def _disk(name: str, path: Path) -> dict[str, Any]:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 2**30
    writable = os.access(existing, os.W_OK)
    found = f"{free:.0f} GiB free" if writable else f"{existing} is not writable"
    return _check(f"disk for {name}", writable and free >= 5, found, "free 5 GiB, or set POSTTRAIN_CACHE / --out elsewhere")


def show(found: dict[str, Any]) -> None:
    """Print the examination as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"posttrain {found['posttrain']}", title_justify="left")
    for column in ("", "check", "found", "how to mend it"):
        table.add_column(column)
    for check in found["checks"]:
        table.add_row("[green]ok[/]" if check["ok"] else "[red]no[/]", check["name"], check["found"], check["mend"])
    console = Console()
    console.print(table)
    console.print(", ".join(f"{name} {version}" for name, version in found["packages"].items()), style="dim")
