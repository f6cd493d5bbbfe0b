"""Zero-shot chain of thought: open the reply with "Let's think step by step.", then ask for the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core.protocols import Task
from ..core.types import Example, Prompt
from ..tasks.wording import conversation

__all__ = ["ZeroShotCot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShotCot:
    """Open the reply with "Let's think step by step.", then ask for the answer.

    Two stages: reasoning z ~ p(· | question, trigger), then answer ~ p(· | question, trigger, z, cue).

    The trigger opens the assistant's own turn, and the second stage continues that turn by the reasoning's own tokens;
    without it the answer would have to be guessed from free reasoning.

    Args:
        trigger: the opening words of the reply.
        cue: the words after which the answer is read.
        system: a system message.

    Source: Kojima et al. 2022, "Large Language Models are Zero-Shot Reasoners" (arXiv 2205.11916), section 3.1.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prefix"})
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Kojima et al. 2022, arXiv 2205.11916"
    cost: ClassVar[str] = "question + steps, then a second call of at most 32 tokens that reads all of it again"
    fails: ClassVar[str] = "models below a few billion parameters wander; the reasoning fills the token limit"

    trigger: str = "Let's think step by step."
    cue: str = "Therefore, the answer is"
    system: str | None = None

    def __call__(self, task: Task, example: Example, *, seed: int) -> Prompt:
        """Return the prompt for one example."""
        return Prompt(messages=conversation(task, example, self.system), opening=self.trigger, cue=self.cue)
