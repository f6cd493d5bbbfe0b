"""The weight β of the KL to the start: fixed, or moved from step to step until the KL is what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["KlWeight"]

BOUND = 0.2  # of the error that one step may act on


@dataclass(slots=True, kw_only=True)
class KlWeight:
    """β; with `target` it moves:

        e = clip(KL / target − 1, −0.2, 0.2)        β ← β (1 + e · samples / horizon)

    KL is the mean over a step's samples of log π − log π_start, in nats a sample; the new β holds from the next step on.
    Source: Ziegler et al. 2019 (1909.08593), section 2.2, with the gain K_β = samples / horizon of its published code, so
    that β moves as far in as many samples whatever a step's size. It remembers: its state is saved with the training state.
    """

    value: float
    target: float = 0.0  # 0: β is fixed
    horizon: int = 10_000  # samples

    def note(self, kl: float, samples: int) -> None:
        """Take a step's KL."""
        if self.target:
            error = min(max(kl / self.target - 1, -BOUND), BOUND)
            self.value *= 1 + error * samples / self.horizon

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"kl_weight": self.value}

    def load(self, state: dict[str, Any]) -> None:
        """Take a saved state."""
        self.value = float(state["kl_weight"])
