"""Continuous batching: one worker thread gives slots to waiting samples and advances all running ones together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ...core.errors import ModelError
from ...core.types import Finish
from .decode_attention import in_place_is_fast
from .prefill import prefill
from .runner import Runner
from .runs import Plan
from .sampler import choose, uniforms
from .scoring import score
from .sequence import Request, ScoreRequest, Trace
from .slots import SlotTable
from .threads import release_helpers

__all__ = ["Scheduler"]

_LINGER = 0.2  # seconds an idle worker waits for more before its thread ends
_SETTLE = 0.002  # seconds without a new request after which an idle worker starts on what it has


class Scheduler:
    """Owns the slots. `submit` may be called from any thread; results are delivered from the worker's."""

    def __init__(self, runner: Runner, tokenizer: Any, *, slots: int, prefix_reuse: bool, kv_bytes: int) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._prefix_reuse = prefix_reuse
        self._kv_bytes = kv_bytes
        self._table = SlotTable(slots)
        self._running: dict[int, Trace] = {}  # by slot
        self._waiting: deque[Trace] = deque()
        self._scores: deque[ScoreRequest] = deque()
        self._lock = threading.Condition()
        self._worker: threading.Thread | None = None
        self._arrived = 0.0
        self._plan = Plan(in_place=in_place_is_fast(runner.dtype, runner.device))
        self.steps = 0  # decode steps so far, for measurements

    # -- called from any thread

    def submit(self, request: Request | ScoreRequest) -> None:
        """Queue a request; its `deliver` is called once, with the result or an exception."""
        with self._lock:
            if isinstance(request, ScoreRequest):
                self._scores.append(request)
            else:
                self._waiting.extend(request.traces)
            self._arrived = time.monotonic()
            if self._worker is None:
                release_helpers()  # of the caller, who will wait now
                self._worker = threading.Thread(target=self._work, name="posttrain-engine")
                self._worker.start()
            self._lock.notify_all()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Hold up the worker: what is submitted inside, by this thread, starts in one batch however slowly it comes."""
        with self._lock:
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold up new requests while the weights are replaced; raise ModelError if something is running."""
        with self._lock:
            count = len(self._running) + len(self._waiting) + len(self._scores)
            if count:
                raise ModelError(f"the weights cannot be replaced while {count} samples are being generated")
            yield

    def forget(self) -> None:
        """Drop all that was computed from the weights: cached prefixes, packed layers."""
        self._table.clear()
        self._runner.forget()

    @property
    def busy(self) -> int:
        """Samples that hold a slot."""
        return len(self._running)

    # -- the worker thread

    def _work(self) -> None:
        try:
            while self._wait_for_work():
                self._settle()
                with torch.inference_mode():
                    while self._running or self._waiting or self._scores:
                        self._turn()
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise

    def _wait_for_work(self) -> bool:
        with self._lock:
            if not (self._waiting or self._scores or self._running):
                self._lock.wait(_LINGER)
            if self._waiting or self._scores or self._running:
                return True
            self._worker = None
            return False

    def _settle(self) -> None:
        """Let coroutines that are about to ask do so: they share one prefill."""
        start = time.monotonic()
        while (now := time.monotonic()) - self._arrived < _SETTLE and now - start < 25 * _SETTLE:
            time.sleep(_SETTLE / 2)

    def _turn(self) -> None:
        self._runner.verify()
        self._drop_cancelled()
        if self._scores:
            with self._lock:
                scores = [self._scores.popleft() for _ in range(len(self._scores))]
            try:
                self._score([s for s in scores if not s.cancelled.is_set()])
            except Exception as error:
                for request in scores:
                    request.deliver(error)
                raise
        self._admit()
        if self._running:
            self._decode()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            requests = {id(t.request): t.request for t in [*self._running.values(), *self._waiting]}
            everyone: list[Request | ScoreRequest] = [*requests.values(), *self._scores]
            self._running.clear()
            self._waiting.clear()
            self._scores.clear()
            self._table.clear()
            self._worker = None
        for request in everyone:
            request.deliver(error)

    def _drop_cancelled(self) -> None:
        for trace in [t for t in self._running.values() if t.request.cancelled.is_set()]:
            self._finish(trace, "cancelled")
        with self._lock:
            dropped = [t for t in self._waiting if t.request.cancelled.is_set()]
            if dropped:
                self._waiting = deque(t for t in self._waiting if not t.request.cancelled.is_set())
        for trace in dropped:
            self._conclude(trace, "cancelled")

    # -- admission

    def _admit(self) -> None:
        if not self._waiting:
            return
        with self._lock:
            everyone = [*self._running.values(), *self._waiting]
            longest = max(len(t.request.ids) + t.request.sampling.max_tokens for t in everyone)
            # Only the first slots: a later one would make room for all before it, whether they are used or not.
            limit = self._affordable(longest)
            free = [s for s in range(limit) if s not in self._running]
            room = min(len(free), len(self._waiting), limit - len(self._running))
            batch = [self._waiting.popleft() for _ in range(room)]
        if not batch:
            return
        # Neighbours of like length: a run of rows reads as far as its longest. (Stable: equal prompts stay together.)
        batch.sort(key=lambda t: len(t.request.ids))
        for trace in batch:  # registered first: an error below must reach them
            slot = self._table.oldest(free)
            free.remove(slot)
            trace.slot = slot
            self._running[slot] = trace
        # On CPU all they may need: growing later copies everything, and room takes memory only when it is written.
        lazy = self._runner.device.type == "cpu"
        self._reserve(max(len(t.request.ids) + t.request.sampling.max_tokens * lazy for t in batch) + 1)
        found = prefill(self._runner, self._table, {t.slot: t.request.ids for t in batch}, reuse=self._prefix_reuse)
        for trace in batch:
            if trace.request.cached is None:
                trace.request.cached = found[trace.slot]

    def _affordable(self, longest: int) -> int:
        """Return how many slots of that length the memory for keys and values allows: at least one, at most all."""
        cache = self._runner.cache
        if self._runner.device.type != "cpu":  # every slot takes the memory of the longest there has been
            longest = max(longest, cache.capacity)
        return min(self._table.slots, max(1, self._kv_bytes // (cache.bytes_per_token * (cache.front + longest))))

    def _reserve(self, capacity: int) -> None:
        cache = self._runner.cache
        if capacity > cache.capacity:
            capacity = -(-max(capacity, cache.capacity + cache.capacity // 4) // 64) * 64
        rows = max(self._running, default=0) + 1
        if rows > cache.rows:
            rows = max(rows, min(2 * cache.rows, self._affordable(capacity)))
        cache.reserve(rows, capacity)
        self._table.reserve(cache.capacity)

    # -- decoding

    def _decode(self) -> None:
        table = self._table
        self._compact()
        low, high = min(self._running), max(self._running) + 1
        active = np.array(sorted(self._running))
        self._reserve(int(table.length[low:high].max()) + 2)
        runs = self._plan.runs(self._table, active, low, high)
        positions = table.length[low:high]
        tokens = np.maximum(table.tokens[np.arange(low, high), positions], 0)  # idle slots in between get token 0
        logits = self._runner.decode(low, tokens.tolist(), positions.tolist(), runs)
        self.steps += 1
        traces = [self._running[slot] for slot in active.tolist()]
        if len(active) < high - low:
            logits = logits[active - low]
        table.length[active] += 1
        keys = np.array([t.key for t in traces], dtype=np.uint64)
        draw = choose(logits, [t.request.sampling for t in traces], uniforms(keys, table.length[active]))
        table.tokens[active, table.length[active]] = draw.tokens
        for row, trace in enumerate(traces):
            if trace.request.cancelled.is_set():
                continue  # dropped before the next step
            try:
                finish = trace.add(draw.tokens[row], draw.logprobs[row], draw.raw_logprobs[row], draw.top[row])
            except Exception as error:  # the caller's own watch failed: nobody else's business
                trace.request.cancelled.set()
                trace.request.deliver(error)
                continue
            if finish is not None:
                self._finish(trace, finish)

    def _compact(self) -> None:
        """Move samples from the ends of the range into holes: a hole costs as much in every step as a sample."""
        if self._waiting:  # they will fill them
            return
        low, high = min(self._running), max(self._running)
        for hole in [s for s in range(low, high) if s not in self._running]:
            low, high = min(self._running), max(self._running)
            if not low < hole < high:
                continue
            end = low if hole - low < high - hole else high  # the nearer one: neighbours are of like length
            trace, length = self._running.pop(end), int(self._table.length[end])
            self._runner.cache.copy(end, [hole], length)
            self._table.put(hole, self._table.tokens[end, : length + 1], length)
            trace.slot = hole
            self._running[hole] = trace

    def _finish(self, trace: Trace, finish: Finish) -> None:
        del self._running[trace.slot]
        slot = trace.slot
        # An idle slot inside the range is fed a dummy token after its last: that position must exist in the model.
        self._table.length[slot] = min(self._table.length[slot], (self._runner.context or 1 << 60) - 1)
        self._table.touch(slot)
        self._conclude(trace, finish)

    def _conclude(self, trace: Trace, finish: Finish) -> None:
        request = trace.request
        request.done[trace.place] = trace.complete(finish)
        if len(request.done) == len(request.samples):
            request.deliver([request.done[place] for place in range(len(request.samples))])

    # -- scoring

    def _score(self, scores: list[ScoreRequest]) -> None:
        """Teacher-force continuations, in idle slots, as many at a time as there are."""
        while scores:
            longest = max(len(request.ids) + len(request.continuation) for request in scores)
            free = [s for s in range(self._affordable(longest)) if s not in self._running]
            if not free:
                with self._lock:
                    self._scores.extendleft(reversed(scores))
                return
            part, scores = scores[: len(free)], scores[len(free) :]
            slots: dict[int, ScoreRequest] = {}
            for request in part:
                slot = self._table.oldest(free)
                free.remove(slot)
                slots[slot] = request
            self._runner.cache.reserve(max(slots) + 1, 0)
            self._reserve(longest + 1)
            scored = score(self._runner, self._table, slots, reuse=self._prefix_reuse, tokenizer=self._tokenizer)
            for slot, completion in scored.items():
                slots[slot].deliver(completion)
