"""Reasoning in steps as token ids: what a process reward model with a head reads, in training and as a verifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.types import Message
from .chat import render_prompt

__all__ = ["lay_out_steps"]


def lay_out_steps(
    tokenizer: Any, prompt: Sequence[Message], steps: Sequence[str], *, tag: str, chat: bool
) -> tuple[list[int], list[int]]:
    """Return the ids of question, step, tag, step, tag, …, each tokenised by itself, and where each tag ends.

    The question is in the chat template, or (`chat=False`) plain text behind the start token, if there is one.
    """
    closing = tokenizer(tag, add_special_tokens=False)["input_ids"]
    if chat:
        ids = list(render_prompt(tokenizer, prompt))
    else:
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        plain = "\n\n".join(message.content for message in prompt)
        ids = start + tokenizer(plain, add_special_tokens=False)["input_ids"]
    positions = []
    for step in steps:
        ids += tokenizer(step, add_special_tokens=False)["input_ids"] + closing
        positions.append(len(ids) - 1)
    return ids, positions
