"""Rows that only ask, for online reinforcement learning: what is trained is what the model writes.

The data maker `questions` writes them as `{"id", "prompt", "example"}`; a prompt with an `answer` beside it is one too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import DataError
from ..core.types import Message
from .chat import render_prompt
from .examples import example_of
from .formats import under_system
from .masks import Encoded
from .turns import read_prompt, show

__all__ = ["Asked", "asks", "encode_question", "read_question"]

_BARE = {"id", "prompt", "opening", "rewards", "system"}
_OTHERS = {  # what makes a row with a prompt one of another shape
    "chosen", "completion", "completions", "conversation", "conversations", "instruction", "messages", "question",
    "rejected", "response", "responses", "steps", "text",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A prompt that the model is to answer. `opening`: how its reply begins; `gold`: what is right, None where nobody says.

    `question` is what is asked without the prompt's shots and instructions, where the row tells it.
    """

    prompt: tuple[Message, ...]
    question: str
    opening: str = ""
    gold: str | None = None


def asks(row: Mapping[str, Any]) -> bool:
    """Return whether a row is a question by its keys: a prompt with an example or an answer, or with nothing at all."""
    if "prompt" not in row or row.keys() & _OTHERS:
        return False
    return "example" in row or "answer" in row or row.keys() <= _BARE


def read_question(row: Mapping[str, Any], where: str = "row") -> Asked:
    """Return a question as trainers read it; raises `DataError` for what they would refuse."""
    prompt = under_system(row, read_prompt(row["prompt"], f"{where}, 'prompt'"), where)
    opening, rewards = row.get("opening") or "", row.get("rewards") or ()
    if not isinstance(opening, str):
        raise DataError(f"{where}, 'opening': must be a text, how the reply begins: {show(opening)}")
    if not isinstance(rewards, list | tuple) or not all(isinstance(name, str) for name in rewards):
        raise DataError(f"{where}, 'rewards': must be a list of names of rewards: {show(rewards)}")
    question, gold = "", row.get("answer")
    if "example" in row:  # then trainers read no 'answer' beside it
        example = example_of(row, where)
        question = "\n".join(
            [example.question, *(m.content for m in example.messages if m.role == "user"), *example.choices]
        )
        gold = (example.answer, sorted(example.gold.items())) if example.gold else example.answer
    told = None if gold in (None, "") else str(gold)
    return Asked(prompt=prompt, question=question.strip() or prompt[-1].content, opening=opening, gold=told)


def encode_question(tokenizer: Any, asked: Asked) -> Encoded:
    """Return the prompt as the model is asked, nothing of it trained."""
    ids = render_prompt(tokenizer, asked.prompt, opening=asked.opening)
    return Encoded(ids, [False] * len(ids))
