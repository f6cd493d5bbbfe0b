"""Reading prompts, answers and messages out of a row; what cannot be read is a `DataError` that shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..core.errors import DataError, did_you_mean
from ..core.types import Message, Role

__all__ = ["read_answer", "read_messages", "read_prompt", "read_role", "show"]

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


def read_prompt(value: Any, where: str) -> tuple[Message, ...]:
    """Return a prompt, a text or messages that do not end with the assistant's turn."""
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where}: is empty")
        return (Message(role="user", content=value),)
    messages = read_messages(value, where)
    if messages[-1].role == "assistant":
        raise DataError(f"{where}: a prompt must not end with the assistant's turn: {show(value)}")
    return messages


def read_answer(value: Any, where: str, *, empty: bool = False) -> str:
    """Return an answer, a text or one assistant message."""
    if isinstance(value, str):
        text = value
    else:
        messages = read_messages(value, where)
        if len(messages) != 1 or messages[0].role != "assistant":
            raise DataError(f"{where}: must be a text or one assistant message: {show(value)}")
        text = messages[0].content
    if not text.strip() and not empty:
        raise DataError(f"{where}: is empty")
    return text


def read_messages(value: Any, where: str) -> tuple[Message, ...]:
    """Return a list of messages with roles by any of their usual names."""
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{where}: must be a text or a list of messages with 'role' and 'content': {show(value)}")
    return tuple(
        Message(role=read_role(turn, f"{where}, message {i}"), content=_content(turn, f"{where}, message {i}"))
        for i, turn in enumerate(value)
    )


def read_role(turn: Any, where: str) -> Role:
    """Return the role of a message."""
    name = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
    if not isinstance(name, str):
        raise DataError(f"{where}: a message needs 'role' and 'content' (or 'from' and 'value'): {show(turn)}")
    if name.lower() not in _ROLES:
        raise DataError(f"{where}: unknown role '{name}'{did_you_mean(name, _ROLES)}")
    return _ROLES[name.lower()]


def _content(turn: Mapping[str, Any], where: str) -> str:
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):  # typed parts
        kinds = {part.get("type") for part in content if isinstance(part, Mapping)}
        if kinds != {"text"}:
            raise DataError(f"{where}: only text can be trained on, this holds {show(content)}")
        content = "".join(part["text"] for part in content)
    if turn.get("tool_calls"):
        raise DataError(f"{where}: tool calls as objects are not supported; write the call into 'content' as text")
    if not isinstance(content, str):
        raise DataError(f"{where}: 'content' must be a text: {show(turn)}")
    return content


def show(value: Any) -> str:
    """Return a value as short JSON for an error message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 300 else text[:300] + " …"
