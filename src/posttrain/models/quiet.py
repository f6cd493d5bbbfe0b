"""Keeping from the user what PEFT warns of and nobody can mend."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence two warnings of PEFT's own making inside this context."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # GPT-2's transposed layers: PEFT sets it right
        warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT still asks transformers by a deprecated name
        yield
