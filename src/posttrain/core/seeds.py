"""Seeds are derived, never shared: every random choice is a pure function of what it is for."""

from __future__ import annotations

import hashlib
import random

__all__ = ["derive", "rng"]


def derive(seed: int, *parts: str | int) -> int:
    """Return a 63-bit seed for the purpose that `parts` names; equal inputs give equal seeds on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *parts):
        text = f"{type(part).__name__}:{part}"
        digest.update(f"{len(text)}:{text}".encode())
    return int.from_bytes(digest.digest(), "big") >> 1


def rng(seed: int, *parts: str | int) -> random.Random:
    """Return a private generator seeded by `derive(seed, *parts)`."""
    return random.Random(derive(seed, *parts))
