"""Laying out shots and question: as turns of a conversation, or in one user turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from ..core.protocols import Task
from ..core.types import Example, Message, Prompt
from ..tasks.wording import conversation, question_text

__all__ = ["Style", "few_shot_prompt"]

Style = Literal["chat", "text", "markdown"]

_BLOCKS = {  # how one turn holds a shot, and the question
    "text": ("Question: {question}\n{reply}\n\n", "Question: {question}"),
    "markdown": ("### Question\n\n{question}\n\n### Answer\n\n{reply}\n\n", "### Question\n\n{question}\n\n### Answer"),
}


def few_shot_prompt(
    task: Task,
    example: Example,
    shots: Sequence[tuple[Example, str]],
    *,
    style: Style,
    system: str | None,
    instruct: bool = True,
) -> Prompt:
    """Return the prompt that shows (example, reply) pairs, then asks.

    "chat": each shot is a user turn and an assistant turn, as instruction-tuned models are trained; "text" and "markdown":
    all in one user turn, for base models and templates that refuse such a history. Shots are marked, so that whole ones
    can be dropped when the prompt does not fit. `instruct` adds the task's instruction to the question and to each shot's.
    """
    asked = conversation(task, example, instruct=instruct)
    head = [Message(role="system", content=system)] if system else []
    if style == "chat":
        for number, (shot, reply) in enumerate(shots, 1):
            turns = (*conversation(task, shot, instruct=instruct), Message(role="assistant", content=reply))
            head += [replace(turn, shot=number) for turn in turns]
        return Prompt(messages=(*head, *asked))
    worked, question = _BLOCKS[style]
    shown = tuple(
        _filled(worked, question=question_text(task, shot, instruct=instruct), reply=reply) for shot, reply in shots
    )
    *earlier, last = asked
    content = "".join(shown) + _filled(question, question=last.content)
    return Prompt(messages=(*head, *earlier, Message(role="user", content=content, shots=shown)))


def _filled(block: str, *, question: str, reply: str = "") -> str:
    """Return the block with its two places filled; braces in the texts are just text."""
    return reply.join(question.join(part.split("{question}")) for part in block.split("{reply}"))
