"""Training rows as token ids: a demonstration, or the two responses of a pair; a broken row is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..core.errors import DataError
from ..core.types import Message
from ..data.judged_rows import soft_label
from ..data.masks import Encoded, encode_completion, encode_conversation, encode_text
from .opening import messages_of

__all__ = ["encode_pair", "encode_row", "fits", "question_turns", "refuse_soft_labels", "split_response"]


def encode_row(tokenizer: Any, row: Mapping[str, Any], *, train: Literal["all", "last"], where: str) -> Encoded:
    """Return the token ids of a demonstration and which of them are trained."""
    if isinstance(row.get("label"), bool):
        raise DataError(
            f"{where}: is a judgement (label = {str(row['label']).lower()}), no demonstration: keep the rows with label "
            "true, without it"
        )
    try:
        if "messages" in row:
            return encode_conversation(tokenizer, messages_of(row["messages"], "messages"), train=train)
        if isinstance(row.get("completion"), str) and "prompt" in row:
            return encode_completion(tokenizer, messages_of(row["prompt"], "prompt"), row["completion"])
        if isinstance(row.get("text"), str):
            return encode_text(tokenizer, row["text"])
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    raise DataError(
        f"{where}: expected 'messages', 'prompt' and a text 'completion', or 'text'; found {', '.join(sorted(row))}"
    )


def question_turns(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """Return what a row asks: its `prompt`, or its conversation up to the assistant's last turn."""
    turns = messages_of(row.get("prompt", row.get("messages", row.get("chosen"))), where)
    last = max((at for at, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns))
    return tuple(turns if "prompt" in row or last == 0 else turns[:last])


def encode_pair(tokenizer: Any, row: Mapping[str, Any], *, where: str) -> tuple[Encoded, Encoded]:
    """Return the token ids of prompt + chosen and prompt + rejected; trained are the responses and their end."""
    for name in ("chosen", "rejected"):
        if name not in row:
            raise DataError(
                f"{where}: no '{name}'; expected 'prompt', 'chosen' and 'rejected', found {', '.join(sorted(row))}"
            )
    try:
        prompts, responses = zip(*(split_response(row, name) for name in ("chosen", "rejected")), strict=True)
        if prompts[0] != prompts[1]:
            raise DataError("'chosen' and 'rejected' answer different conversations")
        if responses[0] == responses[1]:
            raise DataError("'chosen' and 'rejected' are the same text, so nothing is preferred; remove the row")
        return encode_completion(tokenizer, prompts[0], responses[0]), encode_completion(tokenizer, prompts[1], responses[1])
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def split_response(row: Mapping[str, Any], name: str) -> tuple[list[Message], str]:
    """Return (prompt, response) of one side of a pair: a text, or messages that end with the assistant's turn."""
    prompt = messages_of(row["prompt"], "prompt") if "prompt" in row else []
    if isinstance(row[name], str):
        if not prompt:
            raise DataError(f"'{name}' is text, so a 'prompt' is needed")
        return prompt, row[name]
    *before, last = messages_of(row[name], name)
    if last.role != "assistant" or not [*prompt, *before]:
        raise DataError(f"'{name}' must end with the assistant's response to a prompt")
    return [*prompt, *before], last.content


def refuse_soft_labels(row: Mapping[str, Any], *, where: str, why: str) -> None:
    """Raise `DataError` for a pair with a soft label, where a trainer takes none; `why` says what does not."""
    label = soft_label(row, where)
    if label not in (None, 1.0):
        raise DataError(
            f"{where}: preference = {label:g} is a soft label, and {why}: make hard labels (ai_feedback:labels=hard), or "
            "train with dpo (loss=sigmoid, ipo or simpo, likelihood=0) or reward_model (loss=pairs, margin=0)"
        )


def fits(tokens: int, limit: int, *, too_long: Literal["error", "drop"], where: str) -> bool:
    """Whether a row of that many tokens is trained; one that is too long is an error unless it may be dropped."""
    if tokens <= limit:
        return True
    if too_long == "drop":
        return False
    raise DataError(
        f"{where} has {tokens} tokens, more than the {limit} allowed: shorten it, raise max_length (up to the model's "
        "context), or set too_long=drop to leave such rows out"
    )
