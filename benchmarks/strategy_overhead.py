"""What strategies cost beside the engine: wall time of 500 concurrent examples against the same engine calls made bare.

    python benchmarks/strategy_overhead.py

The engine is scripted: it has 64 slots, and a sample holds a slot for 20 ms, so that, as with a real engine, requests wait
for each other. Each strategy runs on all examples at once, and the engine calls that each
example makes are recorded: which follow each other, which run side by side. The bare side then makes exactly these calls,
in this structure, with nothing in between. Both alternate; the overhead is the median over pairs of
`strategy / bare − 1`.

Beside it stands what a strategy computes for one example, measured where nothing hides behind the engine: without a limit of
slots, every call takes 20 ms however much is asked at once, 500 × n samples in the time of one. Against such an engine the
overhead is large (`unlimited_overhead`): it is the microseconds an example, one after the other, against 20 ms for all. Part
of them is reading the answers out of the texts.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import gc
import heapq
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.core.protocols import Strategy, Tools, Watch
from posttrain.core.seeds import rng
from posttrain.core.types import Completion, Example, Message, Prompt, Sampling, Score
from posttrain.engines.scripted import ScriptedEngine
from posttrain.pipeline.methods import build_strategy
from posttrain.tasks.equivalence import answer_key
from posttrain.tasks.extraction import extractor

RESULTS = Path(__file__).parent / "results"
WORDS = ("so", "we", "add", "the", "apples", "and", "then", "take", "half", "of", "them", "which", "leaves")
STRATEGIES = (
    "greedy",
    "self_consistency:n=4",
    "self_consistency:n=4,diversity=wording",
    "best_of_n:n=4",
    "best_of_n:n=4,verifier=given,weighted=true",
    "adaptive_consistency:n=8",
    "confidence_sampling:n=12,warmup=4,wave=4,window=16,k=2,mode=offline",
    "confidence_sampling:n=12,warmup=4,wave=4,window=16,k=2,consensus=1",
    "self_refine:rounds=2",
    "verified_search:n=6,verifier=given",
    "budget_forcing:max_tokens=40,end=null,waits=1",
    "compute_optimal:table={table}",
)


def reply(question: str, sample: int, seed: int) -> str:
    """A worked solution of some 60 words."""
    source = rng(seed, question, sample)
    words = " ".join(source.choices(WORDS, k=60))
    return f"{words}.\nAnswer: {source.choice([12, 12, 12, 7, 9])}"


class Engine(ScriptedEngine):
    """The scripted engine with two log-probabilities a token and texts made beforehand: its own work is kept small."""

    def __init__(self, latency: float, slots: int) -> None:
        super().__init__({}, latency=latency)
        self._free = [0.0] * slots  # when each slot is free again
        self._made: dict[tuple[Any, ...], Completion] = {}

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, seed: int, samples: Sequence[int] = (0,), watch: Watch | None = None
    ) -> list[Completion]:
        await asyncio.sleep(self._wait(len(samples)))
        return [self._one(prompt, sampling, seed, sample) for sample in samples]

    def _wait(self, samples: int) -> float:
        """Take a slot for each sample, the first that is free, and return the seconds until the last is done."""
        if not self._free:
            return self._latency
        now = end = time.perf_counter()
        for _ in range(samples):
            end = max(self._free[0], now) + self._latency
            heapq.heapreplace(self._free, end)
        return end - now

    def _one(self, prompt: Prompt, sampling: Sampling, seed: int, sample: int) -> Completion:
        asked = prompt.messages[-1].content
        key = (asked, len(prompt.messages), len(prompt.pieces), sampling.max_tokens, sampling.logprobs, sample)
        if key not in self._made:
            words = reply(asked, sample, seed).split(" ")[: sampling.max_tokens]
            logprobs = tuple(-1.0 for _ in words)
            tops = tuple(((1, -0.5), (2, -2.0)) for _ in words) if sampling.logprobs else None
            cut = len(words) == sampling.max_tokens
            self._made[key] = Completion(
                text=" ".join(words),
                tokens=tuple(range(len(words))),
                logprobs=logprobs,
                raw_logprobs=logprobs,
                top_logprobs=tops,
                finish="length" if cut else "stop",
                sample=sample,
            )
        return self._made[key]


@dataclass
class Recorder:
    """Hands calls on and notes them, with those that ran side by side in one step."""

    engine: Engine
    steps: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = field(default_factory=list)
    running: int = 0

    can = frozenset({"logprobs", "score", "prefix", "watch", "stream"})
    shape = None
    fingerprint = "recorder"

    async def generate(self, *args: Any, **more: Any) -> list[Completion]:
        if self.running == 0:
            self.steps.append([])
        self.steps[-1].append((args, more))
        self.running += 1
        try:
            return await self.engine.generate(*args, **more)
        finally:
            self.running -= 1


class Half:
    """A verifier that decides by the length of a text, at no cost."""

    oracle = False

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        return [Score(value=(len(text) % 10) / 10) for text in texts]


def tools(engine: Any, extract: Callable[[str], str | None]) -> Tools:
    return Tools(
        engine=engine, extract=extract, key=answer_key, sampling=Sampling(max_tokens=256), verifiers={"given": Half()}
    )


def prompt(example: Example) -> Prompt:
    return Prompt(messages=(Message(role="user", content=example.question),))


async def whole(strategy: Strategy, examples: Sequence[Example], made: Sequence[Tools]) -> None:
    await asyncio.gather(*(strategy(prompt(e), e, t, seed=0) for e, t in zip(examples, made, strict=True)))


async def bare(engine: Engine, recorded: Sequence[Recorder]) -> None:
    async def one(steps: list[list[tuple[tuple[Any, ...], dict[str, Any]]]]) -> None:
        for calls in steps:
            if len(calls) == 1:
                await engine.generate(*calls[0][0], **calls[0][1])
            else:
                await asyncio.gather(*(engine.generate(*args, **more) for args, more in calls))

    await asyncio.gather(*(one(recorder.steps) for recorder in recorded))


def timed(run: Callable[[], Any]) -> float:
    gc.collect()
    gc.disable()
    began = time.perf_counter()
    asyncio.run(run())
    seconds = time.perf_counter() - began
    gc.enable()
    return seconds


def measure(spec: str, examples: Sequence[Example], latency: float, slots: int, repeats: int) -> dict[str, Any]:
    strategy, free, engine = build_strategy(spec), Engine(latency, 0), Engine(latency, slots)
    extract = extractor("number")
    recorders = [Recorder(free) for _ in examples]
    texts: list[str] = []

    def noted(text: str) -> str | None:
        texts.append(text)
        return extract(text)

    asyncio.run(whole(strategy, examples, [tools(recorder, noted) for recorder in recorders]))
    began = time.perf_counter()
    for text in texts:
        extract(text)
    reading = time.perf_counter() - began
    engine._made = free._made

    def pairs(on: Engine) -> list[tuple[float, float]]:
        def ours() -> Any:
            return whole(strategy, examples, [tools(on, extract) for _ in examples])

        return [(timed(ours), timed(lambda: bare(on, recorders))) for _ in range(repeats)]

    limited, unlimited = pairs(engine), pairs(free)
    ours, theirs = (statistics.median(side) for side in zip(*limited, strict=True))
    added = statistics.median(a - b for a, b in unlimited)
    return {
        "strategy": spec,
        "calls_per_example": round(sum(len(step) for r in recorders for step in r.steps) / len(examples), 2),
        "seconds": round(ours, 4),
        "bare_seconds": round(theirs, 4),
        "overhead": round(statistics.median(a / b - 1 for a, b in limited), 4),
        "unlimited_overhead": round(statistics.median(a / b - 1 for a, b in unlimited), 4),
        "unlimited_microseconds_per_example": round(added / len(examples) * 1e6, 1),
        "of_it_reading_answers": round(reading / len(examples) * 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds a sample")
    parser.add_argument("--slots", type=int, default=64, help="samples at once")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", default="", help="strategies whose spec contains this")
    parser.add_argument("--out", type=Path, default=RESULTS / "strategy_overhead.json")
    options = parser.parse_args()
    examples = [Example(id=str(i), question=f"How many apples are left in crate {i}?") for i in range(options.examples)]
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.json"
        row = {"rule": "majority", "share": 0.5, "accuracy": 0.5, "tokens": 1.0}
        rows = [{"upto": 0.5, "n": 4, **row}, {"upto": None, "n": 12, **row}]
        values = {"kind": "posttrain allocation", "version": 1, "pilot": 4, "difficulty": "entropy", "verifier": None}
        table.write_text(json.dumps({**values, "rows": rows, "accuracy": 0.5, "tokens": 1.0, "questions": 1}))
        for spec in STRATEGIES:
            if options.only in spec:
                line = measure(spec.format(table=table), examples, options.latency, options.slots, options.repeats)
                lines.append({**line, "strategy": spec.format(table="table.json")})
                speed = f"{line['seconds']:.3f} s, bare {line['bare_seconds']:.3f} s"
                alone = f"{line['unlimited_microseconds_per_example']} µs, {line['of_it_reading_answers']} of them reading"
                print(f"{line['overhead']:6.1%}  {speed}; an example {alone}: {spec}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "examples": options.examples,
        "latency": options.latency,
        "slots": options.slots,
        "repeats": options.repeats,
        "strategies": lines,
    }
    if not options.only:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
