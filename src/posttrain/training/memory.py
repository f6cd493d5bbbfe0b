"""How much memory was held at most: on the accelerator where there is one, else by this process."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["forget_peak", "peak_bytes"]

_SELF = Path("/proc/self")


def forget_peak() -> None:
    """Count the peak from now on. Where the system cannot (macOS), it stays that of the whole process.

    What earlier stages freed goes back to the system first: the C library keeps it for later, and it would be counted.
    """
    gc.collect()
    if _on_cuda():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError, AttributeError):  # glibc's; other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        (_SELF / "clear_refs").write_text("5", encoding="ascii")  # resets the resident set's high-water mark


def peak_bytes() -> int:
    """Return the most memory held since `forget_peak`, in bytes; on a processor what the process held already is in it."""
    if _on_cuda():
        return int(torch.cuda.max_memory_allocated())
    with suppress(OSError):
        for line in (_SELF / "status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _on_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
