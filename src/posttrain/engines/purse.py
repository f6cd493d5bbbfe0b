"""What may be spent: on an example, on a run, or both; and who may spend it when calls run side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from ..core.errors import BudgetSpentError, CapabilityError, ConfigError
from ..core.protocols import Engine
from ..core.types import Cost
from .meter import Account

__all__ = ["Allowance", "Purse", "Purses", "Share"]

Unit = Literal["tokens", "flops"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What an evaluation may cost, cold, over all roles: per example, in all, or both."""

    unit: Unit = "tokens"
    example: float | None = None
    run: float | None = None

    @classmethod
    def of(
        cls,
        *,
        tokens: float | None = None,
        flops: float | None = None,
        run_tokens: float | None = None,
        run_flops: float | None = None,
    ) -> Allowance | None:
        """Return the allowance that the settings give, None for none; tokens and FLOPs do not mix."""
        in_tokens, in_flops = (tokens, run_tokens), (flops, run_flops)
        if any(n is not None for n in in_tokens) and any(n is not None for n in in_flops):
            raise ConfigError("give budgets in tokens or in FLOPs, not both")
        for unit, (example, run) in (("tokens", in_tokens), ("flops", in_flops)):
            if example is not None or run is not None:
                return cls(unit="flops" if unit == "flops" else "tokens", example=example, run=run)
        return None

    def check(self, engine: Engine) -> None:
        """Raise `CapabilityError` when the engine's work cannot be counted in this unit."""
        if self.unit == "flops" and engine.shape is None:
            raise CapabilityError(
                "a budget in FLOPs needs a model whose sizes are known: for a server name them with shape=FOLDER, or give "
                "it in tokens"
            )


class Purse:
    """An amount, what has been charged against it (an account's total), and what calls under way may still cost."""

    def __init__(self, limit: float, unit: Unit, account: Account) -> None:
        self.limit = limit
        self.unit: Unit = unit
        self._account = account
        self._reserved = 0.0
        self._turn = asyncio.Lock()  # first come, first served
        self._settled = asyncio.Event()

    def left(self) -> float:
        """What has not been spent."""
        return max(0.0, self.limit - _amount(self._account.total, self.unit))

    def _free(self) -> float:
        """What has neither been spent nor may be by a call under way."""
        return max(0.0, self.left() - self._reserved)

    @asynccontextmanager
    async def claim(self, full: float) -> AsyncIterator[float]:
        """Set an amount aside for as long as the block runs, and yield it.

        All of it at once, when it fits beside what calls under way may cost. Else the call waits until they have ended,
        is given what is left, and later calls wait for it. So every call is given what it would be given if calls were
        made one after the other in the order of their arrival: results do not depend on how long each takes.

        The account must be charged in the step in which the block ends, before anything is awaited.
        """
        await self._turn.acquire()
        alone = True
        try:
            while self._reserved and self._free() < full:
                self._settled.clear()
                await self._settled.wait()
            amount = min(full, self._free())
            if amount >= full:
                alone = False
                self._turn.release()
            self._reserved += amount
            try:
                yield amount
            finally:
                self._reserved -= amount
                self._settled.set()
        finally:
            if alone:
                self._turn.release()


class Share:
    """What one example may take from a purse, its own or the run's: the `Tools.budget` of its strategy."""

    def __init__(self, purse: Purse) -> None:
        self.purse = purse
        self.short = False  # something was asked for and not given in full, or the strategy was told that nothing is left
        self._refused = False

    def left(self) -> float:
        """What is left, in the budget's unit; nothing after a call that did not fit."""
        left = 0.0 if self._refused else self.purse.left()
        self.short |= left <= 0
        return left

    def refuse(self, prompt: int, more: int) -> BudgetSpentError:
        """Return the error for a call that does not fit; from now on nothing is left."""
        self.short = self._refused = True
        unit = "FLOPs" if self.purse.unit == "flops" else "tokens"
        return BudgetSpentError(
            f"the budget of {self.purse.limit:,.0f} {unit} does not leave enough for a prompt of {prompt} tokens and "
            f"{more} more"
        )


class Purses:
    """The budgets of one evaluation: gives every example its account, and its share of what there is.

    With a budget per example and one for the run, examples are admitted in the order of their calls of `example`, each with
    its own budget set aside; the last ones get what is left. With a run budget alone all draw on it as they go, and which of
    them it ends depends on how fast each is. `earlier` is what the examples that an earlier run has finished have cost.
    """

    def __init__(self, allowance: Allowance | None, earlier: Sequence[Cost] = ()) -> None:
        self._allowance = allowance
        self._total = Account()
        self._run = None
        if allowance is not None and allowance.run is not None:
            self._run = Purse(allowance.run, allowance.unit, self._total)
            if allowance.example is None:  # no turns: all of it counts from the beginning
                self._total.add("earlier", sum(earlier, Cost()))

    async def finished(self, cost: Cost) -> None:
        """Count one of the earlier examples when its turn has come, as if it were answered now."""
        if self._run is not None and self._allowance is not None and self._allowance.example is not None:
            async with self._run.claim(0.0):
                self._total.add("examples", cost)

    @asynccontextmanager
    async def example(self) -> AsyncIterator[tuple[Account, Share | None]]:
        """Yield an account and a share for one example, None without a budget."""
        allowance = self._allowance
        if allowance is None:
            yield Account(), None
        elif allowance.example is None:
            assert self._run is not None
            yield Account(self._total), Share(self._run)
        elif self._run is None:
            account = Account()
            yield account, Share(Purse(allowance.example, allowance.unit, account))
        else:
            async with self._run.claim(allowance.example) as amount:
                account = Account()
                yield account, Share(Purse(amount, allowance.unit, account))
                self._total.add("examples", account.total)


def _amount(cost: Cost, unit: Unit) -> float:
    return cost.flops if unit == "flops" else float(cost.usage.tokens)
