"""How an example is put to a model: the same words for every prompter and verifier."""

from __future__ import annotations

from dataclasses import replace

from ..core.protocols import Task
from ..core.types import Example, Message

__all__ = ["LETTERS", "answer_text", "conversation", "question_text"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def question_text(task: Task, example: Example, *, instruct: bool = True) -> str:
    """Return question, lettered choices and (with `instruct`) the task's instruction as one user turn.

    A conversation of several turns is written out, each behind who speaks.
    """
    parts = [example.question.rstrip()]
    if example.messages:
        several = len(example.messages) > 1
        parts += [f"{turn.role.capitalize()}: {turn.content}" if several else turn.content for turn in example.messages]
    if example.choices:
        parts.append("\n".join(f"{letter}) {choice}" for letter, choice in zip(LETTERS, example.choices, strict=False)))
    if task.instruction and instruct:
        parts.append(task.instruction)
    return "\n\n".join(part for part in parts if part)


def answer_text(task: Task, answer: str | None) -> str:
    """Return a right answer as the reply: behind "Answer: ", or by itself to a task that asks for no form."""
    return f"Answer: {answer}" if task.instruction else str(answer)


def conversation(task: Task, example: Example, system: str | None = None, *, instruct: bool = True) -> tuple[Message, ...]:
    """Return the turns that ask an example: its own conversation, or one user turn; `system` goes first."""
    if example.messages:
        *earlier, last = example.messages
        asked = f"{last.content}\n\n{task.instruction}" if task.instruction and instruct else last.content
        turns: tuple[Message, ...] = (*earlier, replace(last, content=asked))
    else:
        turns = (Message(role="user", content=question_text(task, example, instruct=instruct)),)
    return (Message(role="system", content=system), *turns) if system else turns
