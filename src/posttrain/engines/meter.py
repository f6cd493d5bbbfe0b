"""The meter: usage, FLOPs and seconds, counted at the engine and nowhere else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import cast

from ..core.protocols import Engine, Watch
from ..core.types import Completion, Cost, Delta, ModelShape, Prompt, Sampling, Usage
from ..stats.flops import forward_flops

__all__ = ["Account", "Metered"]


class Account:
    """Costs by role (policy, verifier, judge, …); one per example, or one per run. What is added goes to `whole` too."""

    def __init__(self, whole: Account | None = None) -> None:
        self._costs: dict[str, Cost] = {}
        self._whole = whole

    def add(self, role: str, cost: Cost) -> None:
        """Charge a cost to a role."""
        self._costs[role] = self._costs.get(role, Cost()) + cost
        if self._whole is not None:
            self._whole.add(role, cost)

    def by_role(self) -> dict[str, Cost]:
        """Return what every role has been charged."""
        return dict(self._costs)

    @property
    def total(self) -> Cost:
        """The sum over roles."""
        return sum(self._costs.values(), Cost())


def usage_flops(shape: ModelShape, prompt: int, usages: Sequence[Usage]) -> tuple[float, float]:
    """Return the FLOPs of one call, cold and spent.

    Cold: the prompt's tokens once, then each generated (or scored) token at its own position and through the output
    head. Spent leaves out cached prompt tokens, and generated tokens that were replayed from a cache of generations.
    """
    cold = forward_flops(shape, start=0, tokens=prompt, logits=0)
    cached = sum(usage.cached for usage in usages)
    spent = forward_flops(shape, start=cached, tokens=prompt - cached, logits=0)
    for usage in usages:
        new = usage.generated + usage.scored
        cold += forward_flops(shape, start=prompt, tokens=new, logits=new)
        fresh = new - usage.replayed
        spent += forward_flops(shape, start=prompt + usage.replayed, tokens=fresh, logits=fresh)
    return cold, spent


class Metered:
    """An engine that charges all it does to an account, under one role.

    Traces that a watch ended or that were cancelled are charged for the tokens they had; a call that fails is not
    charged. `seconds` is the time the caller waited, which overlaps when calls run concurrently.
    """

    def __init__(self, engine: Engine, account: Account, role: str) -> None:
        self._engine = engine
        self._account = account
        self._role = role

    @property
    def can(self) -> frozenset[str]:
        """What the engine below can do."""
        return self._engine.can

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the engine below."""
        return self._engine.fingerprint

    @property
    def shape(self) -> ModelShape | None:
        """The shape of the model below."""
        return self._engine.shape

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        seed: int,
        samples: Sequence[int] = (0,),
        watch: Watch | None = None,
    ) -> list[Completion]:
        """Generate, and charge it; a cancelled call is charged what the engine says it had done."""
        begun = time.perf_counter()
        try:
            completions = await self._engine.generate(prompt, sampling, seed=seed, samples=samples, watch=watch)
        except asyncio.CancelledError as error:
            usages = getattr(error, "usages", None)  # engines that know say so
            if usages:
                self._charge(usages, begun)
            raise
        self._charge([completion.usage for completion in completions], begun)
        return completions

    async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
        """Score, and charge it."""
        begun = time.perf_counter()
        scored = await self._engine.score(prompt, continuation)
        self._charge([scored.usage], begun)
        return scored

    async def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> AsyncIterator[Delta]:
        """Stream, and charge it at the end; a stream that is closed early is charged one token per delta it gave."""
        begun, deltas, charged = time.perf_counter(), 0, False
        inner = self._engine.stream(prompt, sampling, seed=seed)
        try:
            async for delta in inner:
                if delta.completion is None:
                    deltas += 1
                else:
                    charged = True
                    self._charge([delta.completion.usage], begun)
                yield delta
        except (GeneratorExit, asyncio.CancelledError):
            if not charged:
                count = getattr(self._engine, "count_tokens", None)
                self._charge([Usage(calls=1, prompt=count(prompt) if count else 0, generated=deltas)], begun)
            raise
        finally:
            if hasattr(inner, "aclose"):
                await cast("AsyncGenerator[Delta, None]", inner).aclose()

    def _charge(self, usages: Sequence[Usage], begun: float) -> None:
        usage = sum(usages, Usage())
        cold = spent = 0.0
        if self._engine.shape is not None:
            cold, spent = usage_flops(self._engine.shape, usage.prompt, usages)
        seconds = time.perf_counter() - begun
        self._account.add(self._role, Cost(usage=usage, flops=cold, flops_spent=spent, seconds=seconds))
