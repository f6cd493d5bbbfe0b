"""What exactly is trained: the text of a row as the model sees it, with the trained tokens marked; nothing of a question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from .formats import Conversation, Normal, Plain, normalise
from .masks import Encoded, encode_completion, encode_conversation, encode_text
from .preferences import answers_of
from .question_rows import Asked, asks, encode_question, read_question

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["counts", "encode_normal", "encode_row", "explain", "pieces_of", "render_rich"]


def encode_row(
    tokenizer: Any, row: Mapping[str, Any], *, train: Literal["all", "last"] = "all", where: str = "row"
) -> list[Encoded]:
    """Return a row in any known shape as the sequences that are trained on: one, or chosen and rejected of a preference.

    Of a question it is the prompt, and nothing of it is trained: what is trained is what the model writes.
    """
    known = read_question(row, where) if asks(row) else normalise(row, where)
    return encode_normal(tokenizer, known, train=train)


def encode_normal(tokenizer: Any, normal: Normal | Asked, *, train: Literal["all", "last"] = "all") -> list[Encoded]:
    """Return a normalised row as the sequences that are trained on."""
    if isinstance(normal, Asked):
        return [encode_question(tokenizer, normal)]
    if isinstance(normal, Plain):
        return [encode_text(tokenizer, normal.text)]
    if isinstance(normal, Conversation):
        return [encode_conversation(tokenizer, normal.messages, train=train)]
    return [encode_completion(tokenizer, normal.prompt, answer) for answer in answers_of(normal)]


def explain(tokenizer: Any, row: Mapping[str, Any], *, train: Literal["all", "last"] = "all") -> list[tuple[str, bool]]:
    """Return the row's text in pieces, each with whether it is trained; of a preference, chosen and then rejected."""
    return [piece for encoded in encode_row(tokenizer, row, train=train) for piece in pieces_of(tokenizer, encoded)]


def pieces_of(tokenizer: Any, encoded: Encoded) -> list[tuple[str, bool]]:
    """Return the text of a sequence in pieces, cut where training begins and ends."""
    runs = groupby(zip(encoded.ids, encoded.mask, strict=True), key=lambda pair: pair[1])
    return [
        (tokenizer.decode([i for i, _ in run], skip_special_tokens=False, clean_up_tokenization_spaces=False), trained)
        for trained, run in runs
    ]


def counts(encoded: Iterable[Encoded]) -> dict[str, int]:
    """Return `{"sequences", "tokens", "trained", "longest"}` of what rows were encoded into."""
    sequences = list(encoded)
    return {
        "sequences": len(sequences),
        "tokens": sum(len(sequence.ids) for sequence in sequences),
        "trained": sum(sequence.trained for sequence in sequences),
        "longest": max((len(sequence.ids) for sequence in sequences), default=0),
    }


def render_rich(pieces: Iterable[tuple[str, bool]]) -> Text:
    """Return the pieces as rich text: what is trained in ⟦brackets⟧, green and bold: visible without colours too."""
    from rich.text import Text

    shown = Text()
    for text, trained in pieces:
        shown.append(f"⟦{text}⟧" if trained else text, style="bold green" if trained else "dim")
    return shown
