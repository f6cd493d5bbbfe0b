"""IFEval: instructions whose following a program can check.

Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models" (arXiv 2311.07911).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError
from ..core.types import Example
from ._instructions import checked, follows, follows_loosely
from ._sources import row_sources
from .extraction import extractor

__all__ = ["Ifeval"]

_VERSION = 1  # raised when a check changes


class Ifeval:
    """Requests with one to three checkable instructions each; the whole reply is the answer.

    The score is prompt-level strict accuracy: 1 when a reply follows every instruction of its request. Beside it `measures`
    has the loose one and both by instruction.

    Args:
        data: a file, `test=FILE`, a folder or a hub id; rows have `instruction_id_list` and `kwargs`, and the request in
            `prompt` or `instruction`.
    """

    name = "ifeval"
    instruction = ""
    max_tokens = 512

    def __init__(self, data: str | Path | None = None) -> None:
        self._sources = row_sources("google/IFEval" if data is None else data, name=self.name)
        self._splits: dict[str, tuple[Example, ...]] = {}
        self._read = extractor("text")

    @cached_property
    def version(self) -> str:
        """A hash of every request with its instructions, and of the checks' version."""
        examples = [[e.id, e.question, e.gold["instructions"]] for e in self.examples("test")]
        return hashlib.sha256(json.dumps([_VERSION, examples]).encode()).hexdigest()[:12]

    def examples(self, split: str) -> Sequence[Example]:
        """Return the requests; raises `ConfigError` for another split than `test`."""
        if split != "test" or split not in self._sources:
            raise ConfigError(f"task 'ifeval' has the split 'test' only, not '{split}'")
        if split not in self._splits:
            self._splits[split] = tuple(_example(row, at) for at, row in enumerate(self._sources[split](), 1))
        return self._splits[split]

    def extract(self, text: str) -> str | None:
        """Return the reply without its thinking; None when nothing is left."""
        return self._read(text)

    def key(self, answer: str) -> str:
        """Return the reply itself: no two replies are the same answer."""
        return answer

    def grade(self, example: Example, answer: str | None) -> float:
        """Return 1.0 when every instruction is followed, to the letter."""
        return float(all(self._followed(example, answer, loose=False)))

    def measures(self, example: Example, answer: str | None) -> dict[str, tuple[int, int]]:
        """Return how many were right, and of how many: the request taken loosely, its instructions strictly and loosely."""
        strict, loose = (self._followed(example, answer, loose=loose) for loose in (False, True))
        return {
            "prompt-level loose": (int(all(loose)), 1),
            "instruction-level strict": (sum(strict), len(strict)),
            "instruction-level loose": (sum(loose), len(loose)),
        }

    def _followed(self, example: Example, answer: str | None, *, loose: bool) -> list[bool]:
        if "instructions" not in example.gold:
            raise DataError(f"task 'ifeval': example '{example.id}' has no instructions to check")
        check = follows_loosely if loose else follows
        return [check(answer or "", kind, arguments) for kind, arguments in example.gold["instructions"]]


def _example(row: Mapping[str, Any], at: int) -> Example:
    where = f"task 'ifeval', row {at}"
    asked = row.get("prompt", row.get("instruction"))
    kinds, arguments = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(asked, str) or not isinstance(kinds, list) or not isinstance(arguments, list):
        raise DataError(
            f"{where}: a text 'prompt' (or 'instruction') and the lists 'instruction_id_list' and 'kwargs' are needed; "
            f"the columns are: {', '.join(map(str, row))}"
        )
    if len(kinds) != len(arguments) or not kinds:
        raise DataError(f"{where}: {len(kinds)} instructions and {len(arguments)} sets of arguments")
    instructions = [checked(kind, given, where) for kind, given in zip(kinds, arguments, strict=True)]
    name = row.get("key", row.get("id"))
    return Example(
        id=hashlib.blake2b(asked.encode(), digest_size=6).hexdigest() if name is None else str(name),
        question=asked,
        gold={"instructions": instructions},
    )
