"""Giving back a thread's helpers, so that the engine's own are not slowed down.

PyTorch's OpenMP library (libgomp) keeps a team of helpers for every thread that has computed something. When there are
more of them in the process than processors, even idle ones, all teams sleep instead of spinning between two operations,
and waking up costs more than most operations of a decode step. A model that has been loaded or trained in the main thread
thus slows the engine, which computes in a thread of its own (`benchmarks/processor_costs.py` measures by how much).
"""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path
from typing import Any

__all__ = ["release_helpers"]

_HARD = 2  # omp_pause_hard: end the helper threads; the next parallel operation makes new ones


@functools.cache
def _library() -> Any:
    """Return PyTorch's libgomp as this process has it loaded, or None where it uses another library."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.findall(r"/\S*/torch\S*/libgomp\S*\.so\S*", maps)
    try:
        library = ctypes.CDLL(found[0])
        library.omp_pause_resource_all.restype = ctypes.c_int
    except (IndexError, OSError, AttributeError):
        return None
    return library


def release_helpers() -> bool:
    """End the OpenMP helpers of the calling thread (OpenMP 5.0, `omp_pause_resource_all`); return whether it was done."""
    library = _library()
    return library is not None and library.omp_pause_resource_all(_HARD) == 0
