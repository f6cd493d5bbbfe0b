"""Recognising the shape of rows: conversation, demonstration, plain text, or a judgement (of replies or of steps).

The shapes are those that published data sets and other trainers use, so no conversion script is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ..core.errors import DataError
from ..core.types import Message
from .judged_rows import read_judgement
from .shapes import Conversation, Demonstration, Normal, Plain, Preference, Ranking, Scored, Steps, Thumb
from .turns import read_answer, read_messages, read_prompt, show

__all__ = [
    "Conversation",
    "Demonstration",
    "Normal",
    "Plain",
    "Preference",
    "Ranking",
    "Scored",
    "Steps",
    "Thumb",
    "normalise",
    "normalise_rows",
    "training_row",
    "training_rows",
    "under_system",
]

Kind = TypeVar("Kind", bound=Normal)

_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "output"))
_SHAPES = """the shapes are
  {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}, …]}
  {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}
  {"prompt": …, "completion": …}   {"question": …, "answer": …}   {"instruction": …, "input": …, "output": …}
  {"prompt": …, "chosen": …, "rejected": …}   or chosen and rejected as whole conversations that share their beginning
      with "preference": 0 to 1 if the judgement is a probability
  {"prompt": …, "responses": [texts], "ranks": [1 is the best, equal ones are ties]}   or "scores": [numbers]
  {"prompt": …, "completion": …, "label": true or false}   liked or not
  {"prompt": …, "steps": [texts], "labels": [true, false, null, …]}   or "mistake_index": the first wrong one from 0, or null
  {"text": …}   without turns: all of it is trained
where a prompt, completion, chosen or rejected is a text or a list of messages"""


def normalise(row: Mapping[str, Any], where: str = "row") -> Normal:
    """Return a row as one of the shapes; raises `DataError` that shows the row and the shapes there are.

    A text in a column `system` becomes the system message that the turns begin with.
    """
    normal = _shaped(row, where)
    if isinstance(normal, Plain):
        return normal
    if isinstance(normal, Conversation):
        return replace(normal, messages=under_system(row, normal.messages, where))
    return replace(normal, prompt=under_system(row, normal.prompt, where))


def _shaped(row: Mapping[str, Any], where: str) -> Normal:
    if (judgement := read_judgement(row, where)) is not None:
        return judgement
    for key in ("messages", "conversations", "conversation"):
        if key in row:
            messages = read_messages(row[key], f"{where}, '{key}'")
            if not any(message.role == "assistant" for message in messages):
                raise DataError(f"{where}: the conversation has no assistant turn: {show(row)}")
            return Conversation(messages=messages)
    for asked, answered in _PAIRS:
        if asked in row and answered in row:
            prompt = read_prompt(row[asked], f"{where}, '{asked}'")
            if asked == "instruction":
                prompt = _alpaca(row, prompt, where)
            return Demonstration(prompt=prompt, completion=read_answer(row[answered], f"{where}, '{answered}'"))
    if "text" in row:
        return _plain(row, where)
    raise DataError(f"{where}: not a shape that is known: {show(row)}\n{_SHAPES}")


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
    if isinstance(normal, Thumb):
        return {"prompt": prompt, "completion": normal.completion, "label": normal.label}
    if isinstance(normal, Steps):
        return {"prompt": prompt, "steps": list(normal.steps), "labels": list(normal.labels)}
    if isinstance(normal, Ranking):
        return {"prompt": prompt, "responses": list(normal.responses), "ranks": list(normal.ranks)}
    if isinstance(normal, Scored):
        return {"prompt": prompt, "responses": list(normal.responses), "scores": list(normal.scores)}
    known = {"margin": normal.margin, "preference": normal.preference}
    told = {name: value for name, value in known.items() if value is not None}
    return {"prompt": prompt, "chosen": normal.chosen, "rejected": normal.rejected, **told}


def normalise_rows(rows: Sequence[Mapping[str, Any]], where: str, *kinds: type[Kind]) -> list[Kind]:
    """Return rows in one of the wanted shapes (`Conversation, Demonstration` for SFT); raises `DataError` naming the row."""
    found: list[Kind] = []
    for number, row in enumerate(rows, start=1):
        normal = normalise(row, f"{where}, row {number}")
        if not isinstance(normal, kinds):
            wanted = " or ".join(kind.__name__.lower() for kind in kinds)
            raise DataError(
                f"{where}, row {number}: is a {type(normal).__name__.lower()}, but a {wanted} is needed: {show(row)}"
            )
        found.append(normal)
    return found


def _plain(row: Mapping[str, Any], where: str) -> Plain:
    labels = [name for name in ("label", "labels", "label_text", "target", "class") if name in row]
    if labels:
        raise DataError(
            f"{where}: 'text' beside '{labels[0]}': as plain text the label would never be learned; write the row as prompt "
            f"and completion. The row: {show(row)}"
        )
    if not isinstance(row["text"], str):
        raise DataError(f"{where}, 'text': must be a text: {show(row)}")
    if not row["text"].strip():
        raise DataError(f"{where}, 'text': is empty")
    return Plain(text=row["text"])


def _alpaca(row: Mapping[str, Any], prompt: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    extra = row.get("input") or ""
    if not isinstance(extra, str):
        raise DataError(f"{where}, 'input': must be a text, not {type(extra).__name__}")
    if extra.strip():
        prompt = (*prompt[:-1], Message(role="user", content=f"{prompt[-1].content}\n\n{extra}"))
    earlier: list[Message] = []
    for pair in row.get("history") or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(side, str) for side in pair):
            raise DataError(f"{where}, 'history': must be a list of [question, answer]: {show(row['history'])}")
        earlier += [Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1])]
    return (*earlier, *prompt)


def under_system(row: Mapping[str, Any], messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """Return messages begun by the system message that a row's column `system` holds, if it holds any."""
    system = row.get("system")
    if not isinstance(system, str) or not system.strip():
        return messages
    if messages[0].role != "system":
        return (Message(role="system", content=system), *messages)
    if messages[0].content.strip() != system.strip():
        raise DataError(f"{where}: 'system' is {show(system)}, but the first message is another system message: remove one")
    return messages
