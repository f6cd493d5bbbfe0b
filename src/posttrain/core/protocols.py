"""What the layers ask of each other. Structural types: an implementation needs no base class."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from .errors import BudgetSpentError
from .types import (
    Answer,
    Asked,
    Candidate,
    Checkpoint,
    Completion,
    Delta,
    Example,
    Made,
    ModelShape,
    Prompt,
    Sampled,
    Sampling,
    Score,
    TokenEvent,
    Verdict,
)

__all__ = [
    "Asking",
    "Budget",
    "Engine",
    "FolderUpdatable",
    "Judge",
    "Maker",
    "Measuring",
    "Prompter",
    "Strategy",
    "Task",
    "Tools",
    "Trainer",
    "Updatable",
    "Verifier",
    "Watch",
]

Watch = Callable[[TokenEvent], bool]


@runtime_checkable
class Engine(Protocol):
    """Something that generates. `can` is checked before a run.

    It holds some of "logprobs", "score", "prefix", "watch", "stream", "update", "reward".
    """

    @property
    def can(self) -> frozenset[str]: ...
    @property
    def fingerprint(self) -> str:
        """Names the weights, their version and anything else that changes what is generated."""
        ...

    @property
    def shape(self) -> ModelShape | None: ...

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        seed: int,
        samples: Sequence[int] = (0,),
        watch: Watch | None = None,
    ) -> list[Completion]:
        """Draw the samples with these indices: `range(4, 8)` asks for the next four of the same pool."""
        ...

    async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
        """Return the continuation with the model's own log-probability of each of its tokens."""
        ...

    def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> AsyncIterator[Delta]:
        """Yield sample 0 as it is written; closing the iterator cancels the request."""
        ...


class Updatable(Protocol):
    """An engine whose weights can be replaced (online reinforcement learning)."""

    def update(self, weights: Iterable[tuple[str, Any]]) -> None: ...


class FolderUpdatable(Protocol):
    """An engine elsewhere, whose weights are replaced by those in a folder that it sees, too."""

    def update_from(self, folder: Path) -> None: ...


class Task(Protocol):
    """A source of examples, a way to read an answer from a text, and a grader."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str:
        """Names the content: it changes when an example or the grading changes."""
        ...

    @property
    def max_tokens(self) -> int: ...
    @property
    def instruction(self) -> str:
        """The sentence that says how to give the final answer."""
        ...

    def examples(self, split: str) -> Sequence[Example]: ...
    def extract(self, text: str) -> str | None: ...
    def key(self, answer: str) -> str:
        """Return a canonical form: equivalent answers have equal keys (used for voting)."""
        ...

    def grade(self, example: Example, answer: str | None) -> float:
        """Return 1.0 for a right answer and 0.0 for a wrong or missing one."""
        ...


@runtime_checkable
class Measuring(Protocol):
    """A task that measures more of an answer than its grade."""

    def measures(self, example: Example, answer: str | None) -> Mapping[str, tuple[int, int]]:
        """Return by name how many of an answer's parts were right, and of how many."""
        ...


class Prompter(Protocol):
    """Lever 1: turns an example into a prompt."""

    def __call__(self, task: Task, example: Example, *, seed: int) -> Prompt: ...


class Verifier(Protocol):
    """Scores texts for an example; `oracle` says that it looks at the gold answer."""

    @property
    def oracle(self) -> bool: ...
    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]: ...


class Judge(Protocol):
    """Prefers one of two responses, asked in both orders."""

    async def __call__(self, example: Example, a: str, b: str) -> Verdict: ...


class Budget(Protocol):
    """What may still be spent on this example, in the budget's own unit (tokens or FLOPs)."""

    def left(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a strategy may use for one example. Everything that costs is metered behind these."""

    engine: Engine
    extract: Callable[[str], str | None]
    key: Callable[[str], str]
    sampling: Sampling = field(default_factory=Sampling)  # the task's token limit and stops
    verifiers: Mapping[str, Verifier] = field(default_factory=dict)
    judge: Judge | None = None
    budget: Budget | None = None

    def spent(self) -> bool:
        """Return whether the budget is used up: a strategy then stops and answers with its best so far."""
        return self.budget is not None and self.budget.left() <= 0

    async def sample(
        self, prompt: Prompt, sampling: Sampling, *, seed: int, samples: Sequence[int] = (0,), watch: Watch | None = None
    ) -> list[Candidate]:
        """Generate and read the answers; a prompt with a `cue` gets its second, greedy stage per sample.

        Under a budget fewer samples may come back than were asked for, the first ones; `BudgetSpentError` if none.
        """
        completions = await self.engine.generate(prompt, sampling, seed=seed, samples=samples, watch=watch)
        if prompt.cue is None:
            return [self._candidate(completion.text, completion) for completion in completions]
        return list(await asyncio.gather(*(self.read(prompt, each, sampling, seed=seed) for each in completions)))

    async def read(self, prompt: Prompt, completion: Completion, sampling: Sampling, *, seed: int) -> Candidate:
        """Read the answer of a whole reply to `prompt`, however it was written; with a `cue`, after the second stage.

        The second stage continues prompt and reasoning by their own tokens. When the budget is spent before it, the text is
        the reasoning alone; so it is for a trace that a watch has ended: that one has no answer to ask for.
        """
        if prompt.cue is None or completion.finish == "watch":
            return self._candidate(completion.text, completion)
        return self._candidate(await self._finished(prompt, prompt.cue, completion, sampling, seed), completion)

    def _candidate(self, text: str, completion: Completion) -> Candidate:
        return Candidate(text=text, answer=self.extract(text), completion=completion)

    async def _finished(self, prompt: Prompt, cue: str, completion: Completion, sampling: Sampling, seed: int) -> str:
        behind = cue if completion.text.endswith("\n") else f"\n{cue}"
        written = completion if completion.tokens or not completion.text else completion.text
        opened = replace(prompt, prefix=(*prompt.pieces, written, behind), cue=None)
        second = replace(sampling, temperature=0.0, max_tokens=32, logprobs=0, stop=())
        try:
            (answer,) = await self.engine.generate(opened, second, seed=seed, samples=[completion.sample])
        except BudgetSpentError:
            return completion.text
        return f"{completion.text}{behind}{answer.text}"


class Strategy(Protocol):
    """Lever 2: one example at a time; the engine turns many at once into batches."""

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer: ...


class Maker(Protocol):
    """Makes training rows from a task's own examples or from the graded samples of an earlier evaluation.

    One that says `takes = "rows"` gets the file of an earlier data stage's rows in its field `domain` instead.
    """

    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made: ...


@runtime_checkable
class Asking(Protocol):
    """A maker that asks an engine about each question first, under a role; the answers come back in `Sampled.asked`.

    Each question's answer is kept as it comes, so a killed stage asks only what is left.
    """

    @property
    def role(self) -> str: ...
    @property
    def requires(self) -> frozenset[str]:
        """What the labeller's engine must be able to do."""
        ...

    async def ask(self, task: Task, prompter: Prompter, item: Sampled, engine: Engine, *, seed: int) -> Asked: ...
    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made: ...


class Trainer(Protocol):
    """Levers 3 and 4: from a checkpoint and rows to a checkpoint; killed and called again, it resumes inside `out`."""

    def __call__(self, start: Checkpoint, data: Sequence[Mapping[str, Any]], out: Path, *, seed: int) -> Checkpoint: ...
