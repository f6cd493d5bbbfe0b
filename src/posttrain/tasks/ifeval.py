"""IFEval: instructions whose following a program can check.

Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models" (arXiv 2311.07911).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ..core.errors import DataError
from ..core.types import Example
from ._instructions import checked, follows, follows_loosely
from ._requests import Requests

__all__ = ["Ifeval"]

_VERSION = 1  # raised when a check changes


class Ifeval(Requests):
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

    rules = _VERSION
    told = "instructions"
    rows = "google/IFEval"

    def example(self, row: Mapping[str, Any], at: int) -> Example:
        """Return a row as an example."""
        return _example(row, at)

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
