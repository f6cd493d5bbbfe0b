"""Recognising the shape of rows and bringing them into one of four: conversation, demonstration, preference, plain text.

The shapes are those that published data sets and other trainers use, so no conversion script is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..core.errors import DataError, did_you_mean
from ..core.types import Message, Role

__all__ = [
    "Conversation",
    "Demonstration",
    "Normal",
    "Plain",
    "Preference",
    "normalise",
    "normalise_rows",
    "training_row",
    "training_rows",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns, of which the assistant's are demonstrations."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt and how to answer it."""

    prompt: tuple[Message, ...]
    completion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """A prompt with a better and a worse answer."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """Text without turns: every token is trained, as in continued pre-training."""

    text: str


Normal = Conversation | Demonstration | Preference | Plain
Kind = TypeVar("Kind", Conversation, Demonstration, Preference, Plain)

_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "output"))
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
_SHAPES = """the shapes are
  {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}, …]}
  {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}
  {"prompt": …, "completion": …}   {"question": …, "answer": …}   {"instruction": …, "input": …, "output": …}
  {"prompt": …, "chosen": …, "rejected": …}   or chosen and rejected as whole conversations that share their beginning
  {"text": …}   without turns: all of it is trained
where a prompt, completion, chosen or rejected is a text or a list of messages"""


def normalise(row: Mapping[str, Any], where: str = "row") -> Normal:
    """Return a row as one of the four shapes; raises `DataError` that shows the row and the shapes there are.

    A text in a column `system` becomes the system message that the turns begin with.
    """
    normal = _shaped(row, where)
    system = row.get("system")
    if isinstance(normal, Plain) or not isinstance(system, str) or not system.strip():
        return normal
    if isinstance(normal, Conversation):
        return replace(normal, messages=_under(system, normal.messages, where))
    return replace(normal, prompt=_under(system, normal.prompt, where))


def _shaped(row: Mapping[str, Any], where: str) -> Normal:
    if "chosen" in row and "rejected" in row:
        return _preference(row, where)
    for key in ("messages", "conversations", "conversation"):
        if key in row:
            messages = _messages(row[key], f"{where}, '{key}'")
            if not any(message.role == "assistant" for message in messages):
                raise DataError(f"{where}: the conversation has no assistant turn: {_show(row)}")
            return Conversation(messages=messages)
    for asked, answered in _PAIRS:
        if asked in row and answered in row:
            prompt = _prompt(row[asked], f"{where}, '{asked}'")
            if asked == "instruction":
                prompt = _alpaca(row, prompt, where)
            return Demonstration(prompt=prompt, completion=_answer(row[answered], f"{where}, '{answered}'"))
    if "text" in row:
        return _plain(row, where)
    raise DataError(f"{where}: not a shape that is known: {_show(row)}\n{_SHAPES}")


def training_rows(rows: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """Return rows of any known shape as trainers take them: messages, prompt and completion, prompt and a pair, or text."""
    return [training_row(normalise(row, f"{where}, row {number}")) for number, row in enumerate(rows, start=1)]


def training_row(normal: Normal) -> dict[str, Any]:
    """Return a normalised row as trainers take it."""
    if isinstance(normal, Plain):
        return {"text": normal.text}
    if isinstance(normal, Conversation):
        return {"messages": [message.to_dict() for message in normal.messages]}
    prompt = [message.to_dict() for message in normal.prompt]
    if isinstance(normal, Demonstration):
        return {"prompt": prompt, "completion": normal.completion}
    return {"prompt": prompt, "chosen": normal.chosen, "rejected": normal.rejected}


def normalise_rows(rows: Sequence[Mapping[str, Any]], where: str, *kinds: type[Kind]) -> list[Kind]:
    """Return rows in one of the wanted shapes (`Conversation, Demonstration` for SFT); raises `DataError` naming the row."""
    found: list[Kind] = []
    for number, row in enumerate(rows, start=1):
        normal = normalise(row, f"{where}, row {number}")
        if not isinstance(normal, kinds):
            wanted = " or ".join(kind.__name__.lower() for kind in kinds)
            raise DataError(
                f"{where}, row {number}: is a {type(normal).__name__.lower()}, but a {wanted} is needed: {_show(row)}"
            )
        found.append(normal)
    return found


def _plain(row: Mapping[str, Any], where: str) -> Plain:
    labels = [name for name in ("label", "labels", "label_text", "target", "class") if name in row]
    if labels:
        raise DataError(
            f"{where}: 'text' beside '{labels[0]}': as plain text the label would never be learned; write the row as prompt "
            f"and completion. The row: {_show(row)}"
        )
    if not isinstance(row["text"], str):
        raise DataError(f"{where}, 'text': must be a text: {_show(row)}")
    if not row["text"].strip():
        raise DataError(f"{where}, 'text': is empty")
    return Plain(text=row["text"])


def _preference(row: Mapping[str, Any], where: str) -> Preference:
    chosen, rejected = row["chosen"], row["rejected"]
    whole = [
        isinstance(side, list) and any(_role(turn, where) != "assistant" for turn in side) for side in (chosen, rejected)
    ]
    if not any(whole):
        if "prompt" not in row:
            raise DataError(f"{where}: no 'prompt', and 'chosen' and 'rejected' are not whole conversations: {_show(row)}")
        return Preference(
            prompt=_prompt(row["prompt"], f"{where}, 'prompt'"),
            chosen=_answer(chosen, f"{where}, 'chosen'"),
            rejected=_answer(rejected, f"{where}, 'rejected'", empty=True),  # saying nothing can be the worse answer
        )
    if not all(whole):
        raise DataError(f"{where}: one of 'chosen' and 'rejected' is a whole conversation, the other is not: {_show(row)}")
    better, worse = _messages(chosen, f"{where}, 'chosen'"), _messages(rejected, f"{where}, 'rejected'")
    if better[:-1] != worse[:-1] or better[-1].role != "assistant" or worse[-1].role != "assistant":
        raise DataError(
            f"{where}: 'chosen' and 'rejected' must be the same conversation up to their last turn, the assistant's: "
            f"{_show(row)}"
        )
    prompt = better[:-1]
    if isinstance(row.get("prompt"), str) and not any(row["prompt"].strip() in message.content for message in prompt):
        raise DataError(f"{where}: 'prompt' is not what 'chosen' begins with: {_show(row)}")
    return Preference(prompt=prompt, chosen=better[-1].content, rejected=worse[-1].content)


def _alpaca(row: Mapping[str, Any], prompt: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    extra = row.get("input") or ""
    if not isinstance(extra, str):
        raise DataError(f"{where}, 'input': must be a text, not {type(extra).__name__}")
    if extra.strip():
        prompt = (*prompt[:-1], Message(role="user", content=f"{prompt[-1].content}\n\n{extra}"))
    earlier: list[Message] = []
    for pair in row.get("history") or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(side, str) for side in pair):
            raise DataError(f"{where}, 'history': must be a list of [question, answer]: {_show(row['history'])}")
        earlier += [Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1])]
    return (*earlier, *prompt)


def _under(system: str, messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    if messages[0].role != "system":
        return (Message(role="system", content=system), *messages)
    if messages[0].content.strip() != system.strip():
        raise DataError(f"{where}: 'system' is {_show(system)}, but the first message is another system message: remove one")
    return messages


def _prompt(value: Any, where: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where}: is empty")
        return (Message(role="user", content=value),)
    messages = _messages(value, where)
    if messages[-1].role == "assistant":
        raise DataError(f"{where}: a prompt must not end with the assistant's turn: {_show(value)}")
    return messages


def _answer(value: Any, where: str, *, empty: bool = False) -> str:
    if isinstance(value, str):
        text = value
    else:
        messages = _messages(value, where)
        if len(messages) != 1 or messages[0].role != "assistant":
            raise DataError(f"{where}: must be a text or one assistant message: {_show(value)}")
        text = messages[0].content
    if not text.strip() and not empty:
        raise DataError(f"{where}: is empty")
    return text


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{where}: must be a text or a list of messages with 'role' and 'content': {_show(value)}")
    return tuple(
        Message(role=_role(turn, f"{where}, message {i}"), content=_content(turn, f"{where}, message {i}"))
        for i, turn in enumerate(value)
    )


def _role(turn: Any, where: str) -> Role:
    name = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
    if not isinstance(name, str):
        raise DataError(f"{where}: a message needs 'role' and 'content' (or 'from' and 'value'): {_show(turn)}")
    if name.lower() not in _ROLES:
        raise DataError(f"{where}: unknown role '{name}'{did_you_mean(name, _ROLES)}")
    return _ROLES[name.lower()]


def _content(turn: Mapping[str, Any], where: str) -> str:
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):  # typed parts
        kinds = {part.get("type") for part in content if isinstance(part, Mapping)}
        if kinds != {"text"}:
            raise DataError(f"{where}: only text can be trained on, this holds {_show(content)}")
        content = "".join(part["text"] for part in content)
    if turn.get("tool_calls"):
        raise DataError(f"{where}: tool calls as objects are not supported; write the call into 'content' as text")
    if not isinstance(content, str):
        raise DataError(f"{where}: 'content' must be a text: {_show(turn)}")
    return content


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 300 else text[:300] + " …"
