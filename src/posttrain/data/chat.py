"""Rendering conversations through the model's own chat template: the only source of special tokens."""

from __future__ import annotations

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


def render_prompt(tokenizer: Any, messages: Sequence[Message], *, prefix: Completion | str | None = None) -> list[int]:
    """Return the token ids of a prompt whose last part opens (or continues) the assistant's turn.

    A `Completion` prefix is continued by its own ids, never re-tokenised across the seam; a text prefix, or the text that
    opened a completion's turn, is tokenised with the prompt's text, as it would be had the model been trained on it.
    """
    text = render_text(tokenizer, messages, generation_prompt=True)
    text += prefix.opening if isinstance(prefix, Completion) else prefix or ""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids + list(prefix.tokens) if isinstance(prefix, Completion) else ids
