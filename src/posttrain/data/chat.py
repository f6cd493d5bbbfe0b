"""Rendering conversations through the model's own chat template: the only source of special tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ..core.errors import ModelError
from ..core.types import Completion, Message

__all__ = ["end_ids", "ids_behind", "render_ids", "render_prompt", "render_text", "turn_end"]


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


def render_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of a whole conversation, its last turn closed as the template closes it: what is judged."""
    ids: list[int] = tokenizer(render_text(tokenizer, messages, generation_prompt=False), add_special_tokens=False)[
        "input_ids"
    ]
    return ids


def render_prompt(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    opening: str = "",
    prefix: Completion | str | tuple[Completion | str, ...] | None = None,
) -> list[int]:
    """Return the token ids of a prompt, the last of which open (or continue) the assistant's turn.

    The turn's opening, and texts that begin a turn without one, are tokenised together with the prompt's text, as they would
    be had the model been trained on it. A `Completion` is continued by its own ids, never re-tokenised across the seam; any
    other text is tokenised on its own.
    """
    pieces = () if prefix is None else prefix if isinstance(prefix, tuple) else (prefix,)
    if not opening:
        heads = list(itertools.takewhile(lambda piece: isinstance(piece, str), pieces))
        pieces, opening = pieces[len(heads) :], "".join(map(str, heads))
    text = render_text(tokenizer, messages, generation_prompt=True) + opening
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    for piece in pieces:
        ids += piece.tokens if isinstance(piece, Completion) else ids_behind(tokenizer, piece)
    return ids


def ids_behind(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text that stands behind other text: some tokenizers add a space to whatever they see first."""
    if not text:
        return []
    before = "x" if text.startswith("\n") else "\n"
    head: list[int] = tokenizer(before, add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer(before + text, add_special_tokens=False)["input_ids"]
    if whole[: len(head)] == head:
        return whole[len(head) :]
    alone: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return alone


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end a turn: those of the generation configuration and of the tokenizer."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


def turn_end(tokenizer: Any, ends: frozenset[int]) -> int | None:
    """Return the one of these tokens that the chat template ends a turn with; None when it uses none of them."""
    if len(ends) == 1:
        return next(iter(ends))
    said = [Message(role="user", content="1"), Message(role="assistant", content="1")]
    return next((i for i in reversed(render_ids(tokenizer, said)) if i in ends), None)
