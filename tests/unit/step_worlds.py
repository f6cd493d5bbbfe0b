"""Small worlds for searches over reasoning steps: a tree of letters, written line by line, with a known best leaf."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from posttrain.core.errors import BudgetSpentError
from posttrain.core.protocols import Tools, Watch
from posttrain.core.seeds import rng
from posttrain.core.specs import build
from posttrain.core.types import Answer, Completion, Example, Message, Prompt, Sampling, Score
from posttrain.engines.meter import Account, Metered
from posttrain.engines.scripted import ScriptedEngine
from posttrain.tasks.equivalence import answer_key
from posttrain.tasks.extraction import extractor

EXAMPLE = Example(id="e", question="Q")
PROMPT = Prompt(messages=(Message(role="user", content="Q"),))

Pick = Callable[[str, int, int], str]  # (letters so far, sample, seed) -> the next letter


def letters(text: str) -> str:
    """The path that a text has taken: its one-letter lines."""
    return "".join(line for line in text.split("\n") if len(line) == 1)


def written(prompt: Prompt) -> str:
    """What the reply says so far."""
    return "".join(piece if isinstance(piece, str) else piece.text for piece in prompt.pieces[-1:])


def tree(depth: int, pick: Pick) -> Callable[[Prompt, int, int], str]:
    """A policy that writes letters line by line to the given depth, then "Answer: <the path in digits>"."""

    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        path, said = letters(written(prompt)), ""
        while len(path) < depth:
            letter = pick(path, sample, seed)
            path, said = path + letter, said + letter + "\n"
        return said + f"Answer: {digits(path)}"

    return respond


def digits(path: str) -> str:
    return "".join(str(ord(letter) - ord("a") + 1) for letter in path)


def by_turns(path: str, sample: int, seed: int) -> str:
    """Sample 0 says a, sample 1 says b, …"""
    return "ab"[sample % 2]


def at_random(path: str, sample: int, seed: int) -> str:
    return rng(seed, path, sample).choice("ab")


class Recorded(ScriptedEngine):
    """Keeps every call and what came of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: list[tuple[Prompt, Sampling, tuple[int, ...]]] = []
        self.given: list[Completion] = []

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, seed: int, samples: Sequence[int] = (0,), watch: Watch | None = None
    ) -> list[Completion]:
        self.asked.append((prompt, sampling, tuple(samples)))
        drawn = await super().generate(prompt, sampling, seed=seed, samples=samples, watch=watch)
        self.given += drawn
        return drawn


class Limited(Recorded):
    """Holds a number of completions, then refuses: as an engine under a budget does."""

    def __init__(self, *args: Any, holds: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.holds, self.refused = holds, False

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, seed: int, samples: Sequence[int] = (0,), watch: Watch | None = None
    ) -> list[Completion]:
        fits = tuple(samples)[: self.holds]
        self.refused = self.refused or len(fits) < len(samples)
        if not fits:
            raise BudgetSpentError("the budget of this example is spent")
        self.holds -= len(fits)
        return await super().generate(prompt, sampling, seed=seed, samples=fits, watch=watch)


class Judge:
    """A verifier by a function of the text; it keeps what it was asked."""

    oracle: ClassVar[bool] = False

    def __init__(self, value: Callable[[str], float | Score]) -> None:
        self.value = value
        self.texts: list[str] = []

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        assert example.answer is None
        self.texts += texts
        given = [self.value(text) for text in texts]
        return [score if isinstance(score, Score) else Score(value=score) for score in given]


class Oracle(Judge):
    oracle: ClassVar[bool] = True


def tools(engine: Any, *, max_tokens: int = 99, stop: tuple[str, ...] = (), **verifiers: Any) -> Tools:
    return Tools(
        engine=engine,
        extract=extractor("number"),
        key=answer_key,
        sampling=Sampling(max_tokens=max_tokens, stop=stop),
        verifiers=verifiers,
    )


def answer(spec: str, given: Tools, *, seed: int = 0, prompt: Prompt = PROMPT) -> Answer:
    return asyncio.run(build(spec, "posttrain.test_time", "strategy")(prompt, EXAMPLE, given, seed=seed))


def metered(engine: Recorded) -> tuple[Metered, Account]:
    account = Account()
    return Metered(engine, account, "policy"), account
