"""Requests without a right answer, of which the whole reply is graded by rules: what such tasks share."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ..core.errors import ConfigError
from ..core.types import Example
from ._sources import row_sources
from .extraction import extractor

__all__ = ["Requests"]


class Requests(ABC):
    """A task of one split, `test`. `told` is what `gold` says of a request, `rules` the version of what grades a reply."""

    name: str
    rules: ClassVar[int]
    told: ClassVar[str]
    rows: ClassVar[str | Path]  # where they are, unless other ones are given

    def __init__(self, data: str | Path | None = None) -> None:
        self._sources = row_sources(self.rows if data is None else data, name=self.name)
        self._splits: dict[str, tuple[Example, ...]] = {}
        self._read = extractor("text")

    @abstractmethod
    def example(self, row: Mapping[str, Any], at: int) -> Example:
        """Return a row as an example; `at` counts rows from 1."""

    @cached_property
    def version(self) -> str:
        """A hash of every request with what is told of it, and of the rules' version."""
        examples = [[e.id, e.question, e.gold[self.told]] for e in self.examples("test")]
        return hashlib.sha256(json.dumps([self.rules, examples]).encode()).hexdigest()[:12]

    def examples(self, split: str) -> Sequence[Example]:
        """Return the requests; raises `ConfigError` for another split than `test`."""
        if split != "test" or split not in self._sources:
            raise ConfigError(f"task '{self.name}' has the split 'test' only, not '{split}'")
        if split not in self._splits:
            self._splits[split] = tuple(self.example(row, at) for at, row in enumerate(self._sources[split](), 1))
        return self._splits[split]

    def extract(self, text: str) -> str | None:
        """Return the reply without its thinking; None when nothing is left."""
        return self._read(text)
