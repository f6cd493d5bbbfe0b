"""The states of a tree of thoughts, the questions that are put to the model, and the strict reading of what it says."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as File

from ..core.errors import ConfigError
from ..core.types import Completion, Message, Prompt, Sampling
from ._steps import Path, Search

__all__ = [
    "PROPOSE",
    "VALUE",
    "VOTE",
    "Evaluator",
    "Node",
    "Proposer",
    "fill",
    "read_proposals",
    "read_value",
    "read_vote",
    "template",
]

PROPOSE = """{question}

Steps so far:
{steps}

Write {k} different possible next steps, one per line, each a single step and nothing else. If a step completes the \
solution, let it give the final answer in the form "Answer: ..."."""

VALUE = """{question}

Steps so far:
{steps}

Judge whether these steps can still lead to the right answer. Reason briefly, then write as the last line one word: \
sure, likely or impossible."""

VOTE = """{question}

Below are {k} ways to begin a solution.

{choices}

Decide which of them is most promising. Reason briefly, then write as the last line "The best choice is N", where N is its \
number."""

_VALUES = {"sure": 1.0, "likely": 0.5, "impossible": 0.0}
_VERDICT = re.compile(r"\b(sure|likely|impossible)\b", re.IGNORECASE)
_CHOICE = re.compile(r"\bbest\s+choice\s*(?:is\b|:)[^\w\n]*(?:(?:choice|number|option)\b[^\w\n]*)?(\d+)\b", re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:[-*•]\s+|\(?\d{1,2}[.):]\s+|(?:possible\s+)?(?:next\s+)?step\s+\d+\s*[.:)]\s*)", re.IGNORECASE)


def template(setting: str, default: str, *fields: str, where: str) -> str:
    """Return a prompt's text: the setting itself, the file that it names, or the default where it is empty.

    A text that names none of the fields in braces is a file's path; the text must then name all of them.
    """
    text = setting or default
    if not any("{" + field + "}" in text for field in fields):
        file = File(text)
        if not file.is_file():
            names = ", ".join("{" + field + "}" for field in fields)
            raise ConfigError(f"{where}: no such file '{text}'; give a file, or a text that contains {names}")
        text = file.read_text(encoding="utf-8")
    missing = [field for field in fields if "{" + field + "}" not in text]
    if missing:
        raise ConfigError(f"{where}: the prompt does not contain {{{missing[0]}}}")
    return text


def fill(text: str, **values: str) -> str:
    """Put values into the braces of a prompt in one pass; other braces stay, also those within values."""
    return re.sub(r"\{(" + "|".join(values) + r")\}", lambda match: values[match[1]], text)


def read_proposals(completion: Completion) -> list[str]:
    """Return the proposed steps, one per line, without bullets and numbers; a last line that was cut is none."""
    lines = completion.text.splitlines()
    if completion.finish == "length":
        lines = lines[:-1]
    return list(dict.fromkeys(step for line in lines if (step := _BULLET.sub("", line).strip())))


def read_value(text: str) -> float | None:
    """Return 1, 0.5 or 0 for the last of sure, likely, impossible that stands as a word of its own; None if none does."""
    found = _VERDICT.findall(text)
    return _VALUES[found[-1].lower()] if found else None


def read_vote(text: str, choices: int) -> int | None:
    """Return the index of the choice that the last "best choice is N" names (N counts from 1); None if it names none."""
    found = _CHOICE.findall(text)
    number = int(found[-1]) if found else 0
    return number - 1 if 1 <= number <= choices else None


@dataclass(eq=False, slots=True, kw_only=True)
class Node:
    """A state: the reply so far."""

    path: Path
    depth: int = 0
    thoughts: tuple[str, ...] = ()
    value: float = 0.5
    answered: bool = False

    @property
    def told(self) -> float | None:
        """The value as a trace holds it: None where a verifier gave no score."""
        return None if self.value == -math.inf else self.value

    def before(self, other: Node) -> bool:
        """Say whether to prefer this state as the one to finish: not cut off, of higher value, deeper."""
        return (self.path.open, self.value, self.depth) > (other.path.open, other.value, other.depth)


class Proposer:
    """Next steps by one question for a list of them; they are texts, with a share each of what the list has cost."""

    def __init__(self, search: Search, question: str, *, prompt: str, mark: str, seed: int) -> None:
        self._search, self._question, self._prompt, self._mark, self._seed = search, question, prompt, mark, seed

    async def next_steps(self, path: Path, k: int) -> list[Path]:
        """Return the path with each of at most k proposed steps; one that contains the answer mark ends it."""
        text = fill(self._prompt, question=self._question, steps=path.text or "(none yet)", k=str(k))
        asked = Prompt(messages=(Message(role="user", content=text),))
        drawn = await self._search.draw(asked, replace(self._search.sampling, stop=()), seed=self._seed, samples=[0])
        steps = read_proposals(drawn[0])[:k] if drawn else []
        return [self._longer(path, step, -(-drawn[0].usage.generated // len(steps))) for step in steps]

    def _longer(self, path: Path, step: str, tokens: int) -> Path:
        generated = path.generated + tokens
        ended = self._mark != "" and self._mark in step
        return Path(
            completion=Completion(text=path.completion.text + step + self._search.separator),
            steps=path.steps + 1,
            generated=generated,
            done=ended,
            cut=not ended and generated >= self._search.sampling.max_tokens,
        )


class Evaluator:
    """Values of states by the model's own verdicts; an equal question with equal settings is asked once."""

    def __init__(self, search: Search, question: str, *, value: str, vote: str, n: int, tokens: int, seed: int) -> None:
        self._search, self._question, self._value, self._vote = search, question, value, vote
        self._n, self._seed = n, seed
        self._sampling = replace(search.sampling, max_tokens=tokens, stop=())
        self._asked: dict[tuple[str, int, Sampling], asyncio.Future[list[float]]] = {}
        self.asked = self.unparsed = 0

    async def value(self, path: Path) -> float | None:
        """Return the mean of n verdicts: sure 1, likely 1/2, impossible 0; unreadable ones are left out, None if all are."""
        text = fill(self._value, question=self._question, steps=path.text or "(none yet)")
        read = await self._ask(text, read_value)
        return math.fsum(read) / len(read) if read else None

    async def votes(self, paths: Sequence[Path]) -> list[float | None]:
        """Return each path's share of n votes; unreadable ones are left out, None for all if all are."""
        if len(paths) <= 1:
            return [1.0] * len(paths)
        shown = "\n\n".join(f"Choice {number}:\n{path.text}" for number, path in enumerate(paths, start=1))
        text = fill(self._vote, question=self._question, choices=shown, k=str(len(paths)))
        read = await self._ask(text, lambda said: read_vote(said, len(paths)))
        return [read.count(i) / len(read) if read else None for i in range(len(paths))]

    async def _ask(self, text: str, read: Callable[[str], float | None]) -> list[float]:
        key = (text, self._n, self._sampling)
        if key not in self._asked:  # the task, not its result: equal questions are put at the same time
            self._asked[key] = asyncio.ensure_future(self._verdicts(text, read))
        return await self._asked[key]

    async def _verdicts(self, text: str, read: Callable[[str], float | None]) -> list[float]:
        prompt = Prompt(messages=(Message(role="user", content=text),))
        drawn = await self._search.draw(prompt, self._sampling, seed=self._seed, samples=range(self._n))
        # A verdict that was cut off is none: what stands last in it is in the middle of a thought.
        verdicts = [None if completion.finish == "length" else read(completion.text) for completion in drawn]
        self.asked += len(verdicts)
        self.unparsed += verdicts.count(None)
        return [verdict for verdict in verdicts if verdict is not None]
