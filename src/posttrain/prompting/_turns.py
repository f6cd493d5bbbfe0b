"""Laying out shots and question: as turns of a conversation, or in one user turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..core.protocols import Task
from ..core.types import Example, Message, Prompt
from ..tasks.wording import conversation, question_text

__all__ = ["Style", "few_shot_prompt"]

Style = Literal["chat", "text"]


def few_shot_prompt(
    task: Task, example: Example, shots: Sequence[tuple[Example, str]], *, style: Style, system: str | None
) -> Prompt:
    """Return the prompt that shows (example, reply) pairs, then asks.

    "chat": each shot is a user turn and an assistant turn, as instruction-tuned models are trained; "text": all in one
    user turn, "Question: … / Reply", for base models and templates that refuse such a history.
    """
    asked = conversation(task, example)
    if style == "chat":
        head = [Message(role="system", content=system)] if system else []
        for shot, reply in shots:
            head += [*conversation(task, shot), Message(role="assistant", content=reply)]
        return Prompt(messages=(*head, *asked))
    shown = "\n\n".join(f"Question: {question_text(task, shot)}\n{reply}" for shot, reply in shots)
    *earlier, last = asked
    one = Message(role="user", content=f"{shown}\n\nQuestion: {last.content}")
    head = [Message(role="system", content=system)] if system else []
    return Prompt(messages=(*head, *earlier, one))
