"""Which token ids a server drew: what is trained must be what was sampled, and a chat endpoint answers with text.

Three ways, the first that the server offers:

1. ids beside the text (vLLM's `token_ids`), or in the entries of its log-probabilities (llama.cpp's `id`): taken as is;
2. log-probabilities of tokens: the text is tokenised, and every token must be the one that the entry names;
3. text and a count: the text is tokenised, and there must be as many tokens as the server has counted, and the same text.

The end of a turn is no part of the text: it is the token that the answer names, or else the one that the chat template ends
a turn with. What fails its check is `guessed`: the model wrote the text in other tokens than its tokenizer would, or
something that no text shows, as half a character.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...core.errors import ServerError
from ...core.types import Completion, Prompt, Sampling, Usage
from ...data.chat import ids_behind, render_prompt
from .wire import entries_of, is_entry_of, sampled

__all__ = ["Reader"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads the ids that were drawn out of an answer. `ends` are the tokens that may end a turn, `end` the template's."""

    tokenizer: Any
    ends: frozenset[int]
    end: int | None

    def check_prompt(self, prompt: Prompt, answer: Mapping[str, Any], usage: Usage, where: str) -> None:
        """Raise `ServerError` unless the server has read the prompt as the trainer does."""
        ours = render_prompt(self.tokenizer, prompt.messages, opening=prompt.opening, prefix=prompt.prefix)
        theirs = answer.get("prompt_token_ids")
        if (theirs is None and usage.prompt != len(ours)) or (theirs is not None and list(theirs) != ours):
            raise ServerError(
                f"{where} reads a prompt as {usage.prompt} tokens and the trainer as {len(ours)}, or as others: start the "
                "server with the tokenizer and chat template of the model that is trained"
            )

    def read(self, completion: Completion, choice: Mapping[str, Any], sampling: Sampling, generated: int) -> Completion:
        """Return the completion with the ids that were drawn, of which the server has counted `generated`."""
        entries = entries_of(choice)
        told = choice.get("token_ids")
        if not told and entries and all(isinstance(entry.get("id"), int) for entry in entries):
            told = [entry["id"] for entry in entries]
        ids = [int(i) for i in told] if told else self._read(completion, entries)
        ended = bool(ids) and completion.finish == "stop" and ids[-1] in self.ends
        body = tuple(ids[: len(ids) - ended])
        found = replace(
            completion, tokens=body, end_token=ids[-1] if ended else None, logprobs=None, raw_logprobs=None, end_logprob=None
        )
        named = bool(told) or self._named(ids, entries) or (not entries and self._written(body, completion.text))
        if not ids or len(ids) != generated or not named:
            some = body or tuple(sorted(self.ends)[:1]) or (0,)  # no sample is without a token, whatever it is
            return replace(found, guessed=True, tokens=some, end_token=None)
        raw = tuple(float(entry["logprob"]) for entry in entries)
        if len(raw) not in (len(body), len(ids)):  # log-probabilities are not told, or not of these tokens
            return found
        return replace(
            found, raw_logprobs=raw[: len(body)], logprobs=sampled(raw[: len(body)], sampling),
            end_logprob=raw[len(body)] if ended and len(raw) > len(body) else None,
        )  # fmt: skip

    def _read(self, completion: Completion, entries: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the text's ids, and that of the end where the turn ended."""
        ids = ids_behind(self.tokenizer, completion.text)
        if completion.finish != "stop":
            return ids
        end = self.end
        if len(entries) == len(ids) + 1:
            end = next((i for i in sorted(self.ends) if self._is(i, entries[-1])), None)
        return ids if end is None else [*ids, end]

    def _named(self, ids: Sequence[int], entries: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the entries name these tokens; of the last one, an end, a server may say nothing."""
        if not entries or not 0 <= len(ids) - len(entries) <= 1:
            return False
        if len(ids) > len(entries) and ids[-1] not in self.ends:
            return False
        return all(self._is(i, entry) for i, entry in zip(ids, entries, strict=False))

    def _is(self, token: int, entry: Mapping[str, Any]) -> bool:
        """Whether an entry names a token: by its text, or the template's end by none."""
        text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        if "\ufffd" in text:  # half a character: others look the same
            return False
        if not entry.get("token"):
            return token == self.end
        return is_entry_of(entry, text) and math.isfinite(float(entry["logprob"]))

    def _written(self, body: Sequence[int], text: str) -> bool:
        """Whether the ids are the text again: a tokenizer may change what it reads."""
        if "\ufffd" in text:
            return False
        again = str(self.tokenizer.decode(list(body), clean_up_tokenization_spaces=False))
        return again.strip() == text.strip()
