"""What must hold of a rendered and tokenised conversation before it is trained on; what does not is a `DataError`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from ..core.errors import DataError
from ..core.types import Message

__all__ = [
    "Specials",
    "check_trained",
    "decode",
    "refuse_double_start",
    "refuse_dropped",
    "refuse_foreign_specials",
    "refuse_special_text",
    "short",
    "show_messages",
    "specials_of",
    "squash",
]


@dataclass(frozen=True, slots=True)
class Specials:
    """A tokenizer's special tokens: their ids, a pattern that finds their text, and one to put before a piece of text."""

    ids: frozenset[int]
    pattern: re.Pattern[str] | None
    anchor: str | None


def squash(text: str) -> str:
    """Drop white space, and differences of Unicode form that a tokenizer's normaliser removes."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def decode(tokenizer: Any, ids: list[int]) -> str:
    """Return the text of ids, special tokens included."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPECIALS: WeakKeyDictionary[Any, Specials] = WeakKeyDictionary()


def specials_of(tokenizer: Any) -> Specials:
    """Return a tokenizer's special tokens."""
    if tokenizer not in _SPECIALS:
        added = {i: token for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        texts = sorted((token.content for token in added.values()), key=len, reverse=True)
        # One that swallows neighbouring white space would change the text it is put before.
        anchors = [token.content for token in added.values() if not token.rstrip and not token.normalized]
        _SPECIALS[tokenizer] = Specials(
            ids=frozenset(added) | frozenset(tokenizer.all_special_ids),
            pattern=re.compile("|".join(map(re.escape, texts))) if texts else None,
            anchor=anchors[0] if anchors else None,
        )
    return _SPECIALS[tokenizer]


def refuse_special_text(tokenizer: Any, messages: Sequence[Message]) -> None:
    """Refuse messages that hold the text of a special token."""
    pattern = specials_of(tokenizer).pattern
    for i, message in enumerate(messages):
        found = pattern.search(message.content) if pattern else None
        if found:
            around = message.content[max(0, found.start() - 30) : found.end() + 30]
            raise DataError(
                f"message {i} ({message.role}) contains the text of the special token {found[0]!r}, which would begin or "
                f"end a turn: {short(around)!r}; remove or rewrite it"
            )


def refuse_dropped(messages: Sequence[Message], text: str) -> None:
    """Refuse a rendering that does not show every message of the others as it is."""
    for i, message in enumerate(messages):
        if message.role == "assistant" or message.content.strip() in text:
            continue
        if squash(message.content) not in squash(text):
            raise DataError(
                f"the chat template does not show message {i} ({message.role}) as it is: {short(message.content)!r}; "
                "put its text into a user message"
            )


def refuse_double_start(tokenizer: Any, ids: Sequence[int]) -> None:
    """Refuse ids that begin with the start token twice."""
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        raise DataError(f"the chat template of '{tokenizer.name_or_path}' begins with {tokenizer.bos_token!r} twice")


def refuse_foreign_specials(tokenizer: Any, text: str, ids: Sequence[int]) -> None:
    """Refuse special tokens that stand in the ids but not in the text: only the template may bring any.

    Apart from these: what stands for characters that the vocabulary lacks, the unknown token and single bytes.
    """
    specials = specials_of(tokenizer)
    found = _known(tokenizer, tokenizer.convert_ids_to_tokens([i for i in ids if i in specials.ids]))
    written = _known(tokenizer, specials.pattern.findall(text)) if specials.pattern else []
    if found != written:
        raise DataError(
            f"the ids of the rendered conversation hold the special tokens {short(' '.join(found))!r}, its text "
            f"{short(' '.join(written))!r}: the tokenizer of '{tokenizer.name_or_path}' adds or loses some"
        )


def _known(tokenizer: Any, tokens: Sequence[str]) -> list[str]:
    return [token for token in tokens if token != tokenizer.unk_token and not _BYTE.fullmatch(token)]


def check_trained(tokenizer: Any, text: str, trained: list[int], start: int, end: int, where: str) -> None:
    """Compare what the trained tokens say with what the text has there, its characters [start, end)."""
    said = decode(tokenizer, trained)
    expected = text[start:end]
    if squash(said) != squash(expected):
        around = text[max(0, start - 20) : end + 20]
        raise DataError(
            f"{where}: the trained tokens say {short(said)!r}, the text is {short(expected)!r} (within {short(around)!r})"
        )


def short(text: str) -> str:
    """Return a text, or its beginning and end."""
    return text if len(text) <= 160 else f"{text[:90]} … {text[-60:]}"


def show_messages(messages: Sequence[Message]) -> str:
    """Return a conversation in one short line."""
    return short("; ".join(f"{message.role}: {message.content}" for message in messages))
