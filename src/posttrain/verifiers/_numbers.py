"""From logits to one number."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..core.errors import ConfigError, did_you_mean

__all__ = ["label_number", "log_odds", "sigmoid"]


def sigmoid(x: float) -> float:
    """Return 1 / (1 + e^-x) without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def log_odds(z: Sequence[float], positive: int) -> float:
    """Return z_p − log Σ_{k≠p} exp z_k, of which `sigmoid` is the softmax probability of p; a single logit is its own."""
    others = [value for k, value in enumerate(z) if k != positive]
    if not others:
        return z[positive]
    top = max(others)
    return z[positive] - top - math.log(math.fsum(math.exp(value - top) for value in others))


def label_number(labels: Sequence[str], label: int | str | None, where: str) -> int:
    """Return the number of the positive label; of two it is the second unless said otherwise."""
    if label is None and len(labels) == 2:
        return 1
    if label is None:
        raise ConfigError(
            f"{where} has {len(labels)} labels: say with label=… which is the positive one: {', '.join(labels)}"
        )
    if isinstance(label, str) and label in labels:
        return labels.index(label)
    if isinstance(label, int) and 0 <= label < len(labels):
        return label
    raise ConfigError(f"{where} has no label '{label}'{did_you_mean(str(label), labels)}")
