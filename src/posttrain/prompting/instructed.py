"""A given instruction (for example one that a prompt search found) before whatever another prompter asks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..core.errors import ConfigError
from ..core.protocols import Prompter, Task
from ..core.specs import build
from ..core.types import Example, Message, Prompt

__all__ = ["Instructed"]


class _Needs:
    """What the prompter inside needs; of the class itself, nothing."""

    def __get__(self, instance: Instructed | None, owner: type[Instructed]) -> frozenset[str]:
        inner: frozenset[str] = frozenset() if instance is None else getattr(instance.inner, "needs", frozenset())
        return inner


@dataclass(frozen=True, slots=True, kw_only=True)
class Instructed:
    """Put a given instruction before what another prompter asks.

    prompt = instruction + prompter(example); in the turn that asks, or as the system message.

    When a search found that no instruction is best, this is the other prompter alone. The task's own sentence on how to give
    the answer stays: the instruction says what to do, that one how to end.

    Args:
        text: the instruction.
        file: instead: a text file, or the JSON file that `posttrain prompt-search` wrote.
        prompt: the spec of the prompter that asks; null: the one the search was made with, else zero_shot.
        place: "user": at the head of the turn that asks; "system": in the system message, behind one that is there.

    Source: Zhou et al. 2022, "Large Language Models Are Human-Level Prompt Engineers" (arXiv 2211.01910), section 3.
    """

    needs: ClassVar[Any] = _Needs()
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Zhou et al. 2022, arXiv 2211.01910"
    cost: ClassVar[str] = "instruction + the other prompter's; a search, if one found it, once"
    fails: ClassVar[str] = "small models follow examples better than instructions; an instruction found on one model or task"

    text: str | None = None
    file: str | None = None
    prompt: str | None = None
    place: Literal["user", "system"] = "user"

    def __post_init__(self) -> None:
        if (self.text is None) == (self.file is None):
            raise ConfigError("instructed: give the instruction as text=… or as file=…, one of the two")
        if self.text is not None and not self.text.strip():
            raise ConfigError("instructed: the instruction is empty")
        if self._asked.partition(":")[0] == "instructed":
            raise ConfigError("instructed: the prompter inside is 'instructed' too; give one instruction")
        self.inner  # noqa: B018  (a wrong spec is said now)

    @property
    def _asked(self) -> str:
        searched = _read(Path(self.file))[1] if self.file is not None else None
        return self.prompt or searched or "zero_shot"

    @property
    def inner(self) -> Prompter:
        """The prompter that asks."""
        prompter: Prompter = build(self._asked, __name__.rpartition(".")[0], "prompt")
        return prompter

    @property
    def instruction(self) -> str:
        """The instruction itself."""
        return (_read(Path(self.file))[0] if self.file is not None else self.text or "").strip()

    @property
    def version(self) -> str:
        """Names the instruction's content: another text in the same file is another method."""
        inner = f"{self._asked} {getattr(self.inner, 'version', '1')}"
        return hashlib.sha256(f"{self.instruction}\n{inner}".encode()).hexdigest()[:8]

    def __call__(self, task: Task, example: Example, *, seed: int) -> Prompt:
        """Return the prompt for one example."""
        asked = self.inner(task, example, seed=seed)
        if not self.instruction:
            return asked
        messages = list(asked.messages)
        if self.place == "user":
            last = max(at for at, message in enumerate(messages) if message.role == "user")
            messages[last] = replace(messages[last], content=f"{self.instruction}\n\n{messages[last].content}")
        elif messages[0].role == "system":
            messages[0] = replace(messages[0], content=f"{messages[0].content}\n\n{self.instruction}")
        else:
            messages.insert(0, Message(role="system", content=self.instruction))
        return replace(asked, messages=tuple(messages))


def _read(path: Path) -> tuple[str, str | None]:
    """Return the instruction in a file and, of a search's file, the prompter it was found for."""
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"instructed: cannot read {path}: {error.strerror}") from None
    if path.suffix != ".json":
        if not content.strip():
            raise ConfigError(f"instructed: {path} is empty")
        return content, None
    try:
        found = json.loads(content)
        searched = found.get("search", {}).get("prompt")
        return str(found["instruction"]), None if searched is None else str(searched)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"instructed: {path} holds no 'instruction': give the JSON file of posttrain prompt-search, or a text file"
        ) from None
