"""A simulated policy with known answer probabilities, verifiers of known quality, and a purse that runs empty."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from posttrain.core.errors import BudgetSpentError
from posttrain.core.protocols import Engine, Tools, Verifier, Watch
from posttrain.core.seeds import rng
from posttrain.core.specs import build
from posttrain.core.types import Answer, Completion, Example, Message, Prompt, Sampling, Score, TokenEvent, Usage
from posttrain.engines.scripted import ScriptedEngine
from posttrain.tasks.equivalence import answer_key
from posttrain.tasks.extraction import extractor

PROMPT = Prompt(messages=(Message(role="user", content="Q"),))
UNPARSED = "?"


def drawn(probabilities: Mapping[str, float], *purpose: str | int, seed: int = 0) -> str:
    """Draw an answer: a pure function of the purpose."""
    u = rng(seed, *purpose).random()
    for answer, probability in probabilities.items():
        u -= probability
        if u < 0:
            return answer
    return answer


def policy(probabilities: Mapping[str, float] | Mapping[str, Mapping[str, float]]) -> Callable[[str, int, int], str]:
    """Return a script whose answers to a question have these probabilities; each sample's text is its own.

    One table for every question, or one a question. The answer "?" is a text without a readable answer.
    """

    def reply(question: str, sample: int, seed: int) -> str:
        table = probabilities.get(question, probabilities)
        answer = drawn(table, "policy", question, sample, seed=seed)  # type: ignore[arg-type]
        letters = "".join(chr(97 + int(digit)) for digit in str(sample))
        return f"Draft {letters}. No idea" if answer == UNPARSED else f"Draft {letters}. Answer: {answer}"

    return reply


def tools(reply: Callable[[str, int, int], str] | Sequence[str] | Engine, **more: object) -> Tools:
    """Return tools on a scripted engine, or on this engine."""
    if isinstance(reply, Engine):
        engine = reply
    else:
        script = reply if callable(reply) else {"Q": list(reply)}
        engine = ScriptedEngine(script)
    sampling = more.pop("sampling", Sampling(max_tokens=99))
    return Tools(engine=engine, extract=extractor("number"), key=answer_key, sampling=sampling, **more)  # type: ignore[arg-type]


def answer(spec: str, given: Tools, *, seed: int = 0, prompt: Prompt = PROMPT, example: Example | None = None) -> Answer:
    """Run a strategy on one example."""
    strategy = build(spec, "posttrain.test_time", "strategy")
    return asyncio.run(strategy(prompt, example or Example(id="e", question="Q"), given, seed=seed))


def answers(spec: str, given: Tools, trials: int) -> list[Answer]:
    """Run a strategy with seeds 0, 1, …, all at once."""

    async def go() -> list[Answer]:
        strategy = build(spec, "posttrain.test_time", "strategy")
        runs = [strategy(PROMPT, Example(id="e", question="Q"), given, seed=seed) for seed in range(trials)]
        return list(await asyncio.gather(*runs))

    return asyncio.run(go())


class Noisy:
    """A yes-or-no verifier: accepts right answers with probability `hit`, wrong ones with `slip`; pure in (text, seed)."""

    oracle: ClassVar[bool] = False

    def __init__(self, right: str, hit: float, slip: float, seed: int = 0) -> None:
        self.right, self.hit, self.slip, self.seed, self.calls = right, hit, slip, seed, 0

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        self.calls += 1
        return [Score(value=float(self.accepts(text))) for text in texts]

    def accepts(self, text: str) -> bool:
        found = re.search(r"Answer: (\S+)", text)
        chance = self.hit if found is not None and found[1] == self.right else self.slip
        return rng(self.seed, "verifier", text).random() < chance


@dataclass
class Given:
    """A verifier with given scores, in the order of asking."""

    scores: Sequence[Score | float]
    oracle: bool = False
    at: int = 0

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        assert example.answer is None
        found = [self.scores[self.at + i] for i in range(len(texts))]
        self.at += len(texts)
        return [score if isinstance(score, Score) else Score(value=score) for score in found]


@dataclass
class Purse:
    """An engine under a budget of samples, and the budget itself: fewer come back, then none."""

    engine: ScriptedEngine
    budget: int
    used: int = 0
    asked: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def can(self) -> frozenset[str]:
        return self.engine.can

    @property
    def shape(self) -> None:
        return None

    @property
    def fingerprint(self) -> str:
        return "purse"

    def left(self) -> float:
        return self.budget - self.used

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, seed: int, samples: Sequence[int] = (0,), watch: Watch | None = None
    ) -> list[Completion]:
        self.asked.append(tuple(samples))
        fits = list(samples)[: max(self.budget - self.used, 0)]
        if not fits:
            raise BudgetSpentError("the purse is empty")
        self.used += len(fits)
        return await self.engine.generate(prompt, sampling, seed=seed, samples=fits, watch=watch)

    async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
        raise BudgetSpentError("the purse is empty")

    def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> object:
        raise NotImplementedError


def purse(reply: Callable[[str, int, int], str] | Sequence[str], budget: int, **more: object) -> tuple[Tools, Purse]:
    """Return tools whose budget is a number of samples."""
    engine = Purse(ScriptedEngine(reply if callable(reply) else {"Q": list(reply)}, **more), budget)  # type: ignore[arg-type]
    return replace(tools(engine), budget=engine), engine  # type: ignore[arg-type]


class Poor:
    """A verifier whose budget is spent."""

    oracle: ClassVar[bool] = False

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        raise BudgetSpentError("the purse is empty")


class ConfidentEngine(ScriptedEngine):
    """Gives two log-probabilities a token so that the token confidence of a word is what the script says of it.

    `confidence(sample, words) -> one number a word`.
    """

    def __init__(
        self,
        reply: Callable[[str, int, int], str],
        confidence: Callable[[int, Sequence[str]], Sequence[float]],
        **more: object,
    ) -> None:
        super().__init__(reply, **more)  # type: ignore[arg-type]
        self._confidence = confidence
        self.generated = 0

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, seed: int, samples: Sequence[int] = (0,), watch: Watch | None = None
    ) -> list[Completion]:
        self._need("watch", watch is not None)
        whole = await super().generate(prompt, sampling, seed=seed, samples=samples)
        return [self._watched(completion, watch) for completion in whole]

    def _watched(self, whole: Completion, watch: Watch | None) -> Completion:
        words = re.findall(r"\s*\S+", whole.text)
        tops = tuple(((1, -c), (2, -c)) for c in self._confidence(whole.sample, words))
        for index, top in enumerate(tops):
            event = TokenEvent(
                sample=whole.sample, index=index, token=whole.tokens[index], logprob=top[0][1], top_logprobs=top
            )
            if watch is not None and watch(event):
                self.generated += index + 1
                return replace(
                    whole,
                    text="".join(words[: index + 1]),
                    tokens=whole.tokens[: index + 1],
                    top_logprobs=tops[: index + 1],
                    finish="watch",
                    usage=Usage(generated=index + 1),
                )
        self.generated += len(words)
        return replace(whole, top_logprobs=tops)


def as_verifiers(**given: object) -> dict[str, Verifier]:
    """Return verifiers by name."""
    return dict(given)  # type: ignore[arg-type]
