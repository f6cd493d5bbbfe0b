"""The alarm against an exploding loss or gradient: a step far above what the last ones were stops before it is taken."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any

__all__ = ["LEAST", "WINDOW", "Alarm"]

WINDOW = 64  # steps whose median is the measure
LEAST = 16  # steps before which nothing is judged: a warm-up's first gradients are no measure of what follows


@dataclass(slots=True, kw_only=True)
class Alarm:
    """Remembers loss and gradient norm of the last steps.

    A value explodes when it is above `factor` times the median of the last `WINDOW` accepted ones. The median, not the
    mean: one odd step must not move the measure. A loss whose median is not positive is not judged (a policy's loss has
    no scale); its gradient norm still is.
    """

    factor: float
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def exceeded(self, loss: float, norm: float) -> str | None:
        """Return what is too high in this step, in words, or None."""
        for name, value, before in (("loss", loss, self.losses), ("gradient norm", norm, self.norms)):
            if len(before) < LEAST:
                continue
            usual = median(before)
            if 0 < self.factor * usual < value:
                times = f"{value / usual:.1f} times the median of the last {len(before)} steps ({usual:.4g})"
                return f"{name} {value:.4g} is {times}"
        return None

    def note(self, loss: float, norm: float) -> None:
        """Remember a step that was taken."""
        self.losses.append(loss)
        self.norms.append(norm)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"losses": list(self.losses), "norms": list(self.norms)}

    def load(self, state: dict[str, Any]) -> None:
        """Take a saved state."""
        self.losses.extend(state["losses"])
        self.norms.extend(state["norms"])
