"""Which rows of a decode step share leading tokens: their keys and values are then read once, not once per row."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .slots import SlotTable

__all__ = ["Plan", "Run", "plan_runs"]

_PIECE = 32  # positions are shared, and read, in pieces of this many
_RUN_COST = 700  # what treating a run apart costs (some ten small operations per layer), in positions read by one row
_STEM_COST = 0.1  # cost of a shared position, for one row, relative to one of its own
_IN_PLACE_COST = 0.5  # cost of a position that is read where it lies, relative to one that is copied first


class Run(NamedTuple):
    """Rows low … high - 1 of a step. They read `shared` leading positions from row `low`, and then their own to `reach`."""

    low: int
    high: int
    shared: int
    reach: int


def plan_runs(
    tokens: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], *, in_place: bool = False
) -> list[Run]:
    """Cut the rows into runs such that as few positions as possible are read.

    Args:
        tokens: [R, C] token ids by row.
        rows: the rows that matter, ascending; those in between are carried along, whatever comes out for them.
        lengths: [R] positions that each row reads, its newest included.
        in_place: runs that share nothing are read where they lie, at half the cost (`decode_attention.py`).

    Returns:
        Runs that cover the rows from the first to the last that matter.
    """
    reach = lengths[rows]
    width = int(reach.max())
    ids = tokens[rows, :width]
    equal = ids[1:] == ids[:-1]
    common = np.where(equal.all(axis=1), width, equal.argmin(axis=1))
    # The newest position is always read from the row itself: it is being written in this step.
    common = np.minimum(common, np.minimum(reach[1:], reach[:-1]) - 1)

    def measure(a: int, b: int) -> tuple[float, int, int]:
        """Cost, shared positions and reach of rows[a:b] as one run."""
        longest = -(-int(reach[a:b].max()) // _PIECE) * _PIECE
        stem = int(common[a : b - 1].min()) // _PIECE * _PIECE if b - a > 1 else 0
        size = int(rows[b - 1] - rows[a]) + 1
        cost = _RUN_COST + size * (longest - stem + _STEM_COST * stem)
        if in_place and (apart := _IN_PLACE_COST * (_RUN_COST + size * longest)) < cost:
            return apart, 0, longest
        return cost, stem, longest

    runs: list[Run] = []
    stack = [(0, len(rows))]
    while stack:
        a, b = stack.pop()
        cost, stem, longest = measure(a, b)
        if b - a > 1:
            # Split where neighbours have least in common, or where lengths differ most: whichever is cheaper, if any is.
            cuts = {a + 1 + int(common[a : b - 1].argmin()), a + 1 + int(np.abs(np.diff(reach[a:b])).argmax())}
            best = min(cuts, key=lambda cut: measure(a, cut)[0] + measure(cut, b)[0])
            if measure(a, best)[0] + measure(best, b)[0] < cost:
                stack += [(best, b), (a, best)]
                continue
        runs.append(Run(int(rows[a]), int(rows[b - 1]) + 1, stem, longest))
    return runs


class Plan:
    """The runs of the last step, kept until rows come or go, or one grows out of its run."""

    def __init__(self, *, in_place: bool = False) -> None:
        self._in_place = in_place
        self._rows = b""  # the slots that the runs were planned for
        self._runs: list[Run] = []
        self._limits = np.zeros(0, dtype=np.int64)  # how long each may grow before the next plan

    def runs(self, table: SlotTable, active: npt.NDArray[np.int64], low: int, high: int) -> list[Run]:
        """Return the runs of this step: of the `active` slots, all within [low, high)."""
        lengths = table.length[low:high] + 1
        rows, key = active - low, table.used[active].tobytes()
        if key != self._rows or (lengths[rows] > self._limits).any():
            self._rows, self._runs = key, plan_runs(table.tokens[low:high], rows, lengths, in_place=self._in_place)
            self._limits = np.concatenate(
                [np.full(((run.low <= rows) & (rows < run.high)).sum(), run.reach) for run in self._runs]
            )
        return self._runs
