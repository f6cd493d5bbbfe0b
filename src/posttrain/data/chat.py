"""Rendering conversations through the model's own chat template: the only source of special tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ..core.errors import ModelError
from ..core.types import Completion, Message

__all__ = ["render_prompt", "render_text"]


def render_text(tokenizer: Any, messages: Sequence[Message], *, generation_prompt: bool) -> str:
    """Return the text the template makes of the messages, ready to be tokenised without further special tokens."""
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"model '{tokenizer.name_or_path}' has no chat template: put a chat_template.jinja into its folder, "
            "or pass --chat-template FILE"
        )
    try:
        text = tokenizer.apply_chat_template(
            [message.to_dict() for message in messages], tokenize=False, add_generation_prompt=generation_prompt
        )
    except Exception as error:  # a template may raise anything: roles it refuses, undefined variables
        raise ModelError(f"the chat template of '{tokenizer.name_or_path}' refuses this conversation: {error}") from error
    return str(text)


def render_prompt(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    prefix: Completion | str | tuple[Completion | str, ...] | None = None,
    opening: str = "",
    tail: str = "",
) -> list[int]:
    """Return the token ids of a prompt whose last part opens (or continues) the assistant's turn.

    The turn's opening, and a text prefix, are tokenised together with the prompt's text, as they would be had the model
    been trained on it. A `Completion` is continued by its own ids, never re-tokenised across the seam; a text behind one
    (a piece of the prefix, the tail) is tokenised on its own.
    """
    written = () if prefix is None else prefix if isinstance(prefix, tuple) else (prefix,)
    pieces = (*written, tail) if tail else written
    heads = list(itertools.takewhile(lambda piece: isinstance(piece, str), pieces))
    text = render_text(tokenizer, messages, generation_prompt=True) + opening + "".join(str(head) for head in heads)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    for piece in pieces[len(heads) :]:
        ids += piece.tokens if isinstance(piece, Completion) else _tail_ids(tokenizer, piece)
    return ids


def _tail_ids(tokenizer: Any, tail: str) -> list[int]:
    """Return the ids of a text that stands behind other text: some tokenizers add a space to whatever they see first."""
    if not tail:
        return []
    before = "x" if tail.startswith("\n") else "\n"
    head: list[int] = tokenizer(before, add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer(before + tail, add_special_tokens=False)["input_ids"]
    if whole[: len(head)] == head:
        return whole[len(head) :]
    alone: list[int] = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return alone
