"""Mathematics as a verifier: equal expressions, a pool that survives hung workers, undecided comparisons that are said."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from typing import Any

import pytest

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.protocols import Tools
from posttrain.core.types import Example, Message, Prompt
from posttrain.engines.scripted import ScriptedEngine
from posttrain.tasks import equivalence, load_task
from posttrain.test_time.best_of_n import BestOfN
from posttrain.verifiers import build_verifier

TASK = load_task("reasoning_gym/chain_sum:max_terms=3,max_digits=2,test=1")
HANGS = ("10^{10^{10^{10}}}", "9^{9^{9^{9^{9}}}}")  # sympy would be at it for ever


class Boxed:
    """A task that reads "Answer: …" and whose own grading compares text."""

    name = "boxed"

    def extract(self, text: str) -> str | None:
        return text.partition("Answer: ")[2] or None


def grade(gold: str | None, texts: list[str], spec: str = "math") -> tuple[list[float], Any]:
    task: Any = Boxed()
    verifier: Any = build_verifier(spec, task=task, golds={"1": Example(id="1", answer=gold)})
    return [score.value for score in asyncio.run(verifier(Example(id="1"), texts))], verifier


def test_equal_mathematics_is_right_however_it_is_written() -> None:
    texts = ["Answer: 0.5", "Answer: \\frac{2}{4}", "Answer: 0.50", "Answer: 5", "no", "Answer: \\sqrt{1}/2"]
    found, verifier = grade("\\frac{1}{2}", texts)
    assert found == [1, 1, 1, 0, 0, 1]
    assert verifier.oracle
    assert verifier.tally == Counter(texts=6, unparsed=1, timeouts=0)
    assert grade("x^2+2x+1", ["Answer: (x+1)^2", "Answer: (x-1)^2"])[0] == [1, 0]


def test_a_hung_comparison_is_not_a_wrong_answer() -> None:
    gold, hung = HANGS
    assert grade("x+x", ["Answer: 2x"])[0] == [1]  # the worker has sympy imported
    began = time.monotonic()
    found, verifier = grade(gold, [f"Answer: {hung}", "no", f"Answer: {hung}", f"Answer: {gold}"], "math:seconds=0.5")
    assert time.monotonic() - began < 40  # a hard limit, for a fresh worker too
    assert [math.isnan(value) for value in found] == [True, False, True, False]
    assert found[3] == 1
    assert verifier.tally == Counter(texts=4, unparsed=1, timeouts=2)
    assert grade("y+y", ["Answer: 2y"])[0] == [1]  # the pool goes on


def test_best_of_n_passes_an_undecided_text_over() -> None:
    task: Any = Boxed()
    verifier = build_verifier("math:seconds=0.5", task=task, golds={"1": Example(id="1", answer="x+1")})
    policy = ScriptedEngine({"q": [f"Answer: {HANGS[1]}", "Answer: 1+x"]})
    tools = Tools(engine=policy, extract=task.extract, key=str, verifiers={"math": verifier})
    prompt = Prompt(messages=(Message(role="user", content="q"),))
    answer = asyncio.run(BestOfN(n=2, verifier="math")(prompt, Example(id="1"), tools, seed=0))
    assert (answer.answer, answer.trace["unscored"], answer.trace["oracle"]) == ("1+x", 1, True)


def test_the_pool_goes_on_while_one_hangs() -> None:
    pool = equivalence._Pool(2)
    try:
        assert pool.ask("x+x", "2x", 60.0) is True
        found: list[bool | None] = []
        slow = threading.Thread(target=lambda: found.append(pool.ask(*HANGS, 8.0)))
        slow.start()
        time.sleep(0.2)
        assert [pool.ask(f"{c}+{c}", f"2{c}", 60.0) for c in "abxy"] == [True] * 4
        assert not found  # answered by the other worker, before the hung one was given up
        slow.join()
        assert found == [None]
        assert pool.timeouts == 1
        assert pool.ask("z+z", "2z", 60.0) is True
    finally:
        pool.stop()


def test_the_event_loop_is_not_held_up() -> None:
    task: Any = Boxed()
    verifier = build_verifier("math:seconds=1.5", task=task, golds={"1": Example(id="1", answer=HANGS[0])})

    async def go() -> int:
        waiting = asyncio.ensure_future(verifier(Example(id="1"), ["Answer: 8^{8^{8^{8^{8}}}}"]))
        ticks = 0
        while not waiting.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert math.isnan((await waiting)[0].value)
        return ticks

    assert asyncio.run(go()) > 20


def test_mistakes() -> None:
    with pytest.raises(DataError, match="verifier 'math': no gold answer for example '1'"):
        grade(None, ["Answer: 5"])
    with pytest.raises(ConfigError, match="seconds: Input should be greater than 0"):
        grade("5", [], "math:seconds=0")
    with pytest.raises(ConfigError, match="verifier 'math' needs gold answers"):
        build_verifier("math", task=TASK)
