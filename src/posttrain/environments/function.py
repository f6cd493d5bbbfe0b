"""A user's own Python function as an environment: `function:call=path/to/file.py:name`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..core.environment import Observation
from ..core.errors import DataError
from ..core.functions import called, load_function
from ..core.types import Example, Message
from ._speaking import Speaking

__all__ = ["Function"]

_SHAPES = "(example, turns) -> a text to say, None when the episode is over, or either of them with a reward: (text, 0.5)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Function(Speaking):
    """What a Python function says to the last of `turns`, the list of messages so far (`.role`, `.content`), both sides'.

    It returns a text, None when the episode is over, or one of these with a reward for the turn; it may be `async`. It must
    be a function of what it is given: a game's state is worked out from the turns.
    """

    call: str
    gold: bool = False  # it sees the example with its gold answer; that makes it an oracle
    golds: Mapping[str, Example] | None = None

    def __post_init__(self) -> None:
        self._loaded()

    async def __call__(self, example: Example, turns: Sequence[Message]) -> Observation:
        """Answer the last turn."""
        where = f"environment 'function': {self.call}, example '{example.id}'"
        found = await called(self._loaded(), self._seen(example, where), list(turns), where=where)
        said, reward = found if isinstance(found, tuple) and len(found) == 2 else (found, 0.0)
        if said is not None and not isinstance(said, str):
            raise DataError(f"{where}: gave {found!r:.60}: return {_SHAPES.partition('-> ')[2]}")
        if not isinstance(reward, Real) or not math.isfinite(reward):
            raise DataError(f"{where}: gave the reward {reward!r:.40}: a reward must be a finite number")
        return Observation(reward=float(reward)) if said is None else self.says(said, reward=float(reward))

    def _seen(self, example: Example, where: str) -> Example:
        if not self.gold or self.golds is None:
            return example.public()
        if example.id not in self.golds:
            raise DataError(f"{where}: there is no gold answer for this example")
        return self.golds[example.id]

    def _loaded(self) -> Callable[..., Any]:
        return load_function(self.call, where="environment 'function'", second=("turns",), shapes=_SHAPES)[0]
