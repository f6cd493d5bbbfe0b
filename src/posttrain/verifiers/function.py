"""A user's own Python function as a verifier: `function:call=path/to/file.py:name`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError, did_you_mean
from ..core.types import Example, Score
from ..core.user_files import module_of

__all__ = ["Function", "file_of"]

_SHAPES = "(example, text) -> float, or (example, texts) -> list of floats"


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """What a Python function says of each text: any finite number.

    The name of its second parameter decides how it is called: `text`: once a text, and gives a number; `texts`: once for all
    texts of an example, and gives a list of numbers. Both may be `async`. What it raises, a wrong count and what is no
    finite number are errors that name file, function and example.

    Args:
        call: `path/to/file.py:name`.
        gold: it sees the example with its gold answer; that makes it an oracle. Else it sees `Example.public()`.
        golds: id -> example with its gold answer; needed with `gold` alone.
    """

    call: str
    gold: bool = False
    golds: Mapping[str, Example] | None = None

    def __post_init__(self) -> None:
        _loaded(self.call)
        if self.gold and self.golds is None:
            raise ConfigError(f"verifier 'function': {self.call} needs gold answers (gold=true), and none is given here")

    @property
    def oracle(self) -> bool:
        """Whether it looks at the gold answer."""
        return self.gold

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        """Score each text."""
        function, together = _loaded(self.call)
        seen = self._seen(example)
        if together:
            found = await self._called(function, seen, list(texts))
            found = found.tolist() if hasattr(found, "tolist") else found
            if not isinstance(found, list | tuple) or len(found) != len(texts):
                got = f"{len(found)} values" if isinstance(found, list | tuple) else f"{found!r:.60}"
                raise DataError(f"{self._where(example)}: gave {got} for {len(texts)} texts: return one number a text")
        else:
            found = [await self._called(function, seen, text) for text in texts]
        return [Score(value=self._number(value, example)) for value in found]

    def _seen(self, example: Example) -> Example:
        if not self.gold or self.golds is None:
            return example.public()
        if example.id not in self.golds:
            raise DataError(f"{self._where(example)}: there is no gold answer for this example")
        return self.golds[example.id]

    async def _called(self, function: Callable[..., Any], example: Example, given: Any) -> Any:
        try:
            found = function(example, given)
            return await found if inspect.isawaitable(found) else found
        except Exception as error:  # whatever a user's code raises
            raise DataError(f"{self._where(example)}: raised {_said(error)}") from error

    def _number(self, value: Any, example: Example) -> float:
        try:
            plain = value.item() if hasattr(value, "item") else value  # a number of numpy or torch
        except (TypeError, ValueError, RuntimeError):  # of several numbers
            plain = None
        if not isinstance(plain, Real):
            raise DataError(f"{self._where(example)}: gave {value!r:.60}, which is not a number")
        if not math.isfinite(plain):
            raise DataError(f"{self._where(example)}: gave {plain}: a reward must be a finite number")
        return float(plain)

    def _where(self, example: Example) -> str:
        return f"verifier 'function': {self.call}, example '{example.id}'"


def file_of(call: str) -> Path:
    """Return the file of `path/to/file.py:name`; raises `ConfigError` when it is not so written or there is no such file."""
    path, _, name = call.rpartition(":")
    if not path or not name.isidentifier():
        raise ConfigError(f"verifier 'function': call={call}: write path/to/file.py:name")
    if not Path(path).is_file():
        raise ConfigError(f"verifier 'function': call={call}: no such file: {path}")
    return Path(path)


def _loaded(call: str) -> tuple[Callable[..., Any], bool]:
    """Return the function, and whether it takes all texts of an example together."""
    path = file_of(call)
    module = module_of(path, "verifier 'function'")
    where, name = f"verifier 'function': call={call}", call.rpartition(":")[2]
    function = getattr(module, name, None)
    if not callable(function):
        here = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise ConfigError(f"{where}: the file has no function '{name}'{did_you_mean(name, here)}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    needed = [p for p in parameters[2:] if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    places = [p for p in parameters[:2] if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(places) != 2 or needed or places[1].name not in ("text", "texts"):
        shown = ", ".join(str(parameter) for parameter in parameters)
        raise ConfigError(f"{where}: takes ({shown}), but has to be {_SHAPES}; the second name says which")
    return function, places[1].name == "texts"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
