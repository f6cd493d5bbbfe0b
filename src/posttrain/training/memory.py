"""Keeping memory between micro-batches, instead of giving it back to the system and taking it anew.

The C library returns every block above 32 MiB to the system as soon as it is freed, and takes fresh pages for the next
one, which the system has to clear and map. A micro-batch allocates gigabytes that way (logits, gradients of the
embedding, activations), and on a processor the clearing costs about a third of the training step.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["keeping_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # <malloc.h>
# What glibc arrives at by itself in a process that has freed large blocks; its start values would be slow from then on.
_AFTERWARDS = ((_TRIM_THRESHOLD, 64 << 20), (_MMAP_THRESHOLD, 32 << 20), (_MMAP_MAX, 65536))


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Let glibc keep what is freed inside this context, and give it back at the end; elsewhere nothing happens."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        for name, value in _AFTERWARDS:
            libc.mallopt(name, value)
        libc.malloc_trim(0)
