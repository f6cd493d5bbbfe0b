"""What a recipe says of a data stage."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from ..core.config import Strict
from .naming import STAGE

__all__ = ["DataStage"]


class DataStage(Strict):
    """Make training rows: by a maker (from a task's solutions, an evaluation's samples, a mix), or read or mix them."""

    maker: str | None = None
    task: str | None = None  # for a maker: as in an evaluation
    source: str | None = Field(default=None, alias="from")  # an earlier evaluation; for a maker of mixes, a data stage
    file: str | None = None
    sources: str | list[str | dict[str, Any]] | None = None  # several: `a.jsonl*0.7,b.parquet*0.3`, or a list of the same
    stages: list[str] | dict[str, float] | None = None  # earlier data stages, all their rows or by weight
    draw: int | None = Field(default=None, ge=1)  # of what is read, so many rows drawn by the seed
    part: str | None = Field(default=None, pattern=r"^[1-9]\d*/[1-9]\d*$")  # 2/3: rows of the second third of the prompts
    skip_bad: bool | None = None  # with 'file': leave out rows that cannot be read, counted
    also: str | None = None  # an earlier data stage whose rows are kept, too: a set that grows round by round
    labeller: str | None = None  # for a maker that asks one: stage:NAME, or a model; default: the model that was sampled
    beside: str | None = None  # for the same: another evaluation of the same questions, whose responses are judged, too

    @property
    def labelled_by(self) -> str | None:
        """The earlier stage whose model is the labeller, if it is one's."""
        return self.labeller.removeprefix(STAGE) if self.labeller is not None and self.labeller.startswith(STAGE) else None

    @model_validator(mode="after")
    def _one_source(self) -> DataStage:
        if sum(given is not None for given in (self.maker, self.file, self.sources, self.stages)) != 1:
            raise ValueError("give exactly one of 'maker', 'file', 'sources' and 'stages'")
        for name in ("draw", "part"):
            if getattr(self, name) is not None and self.maker is not None:
                raise ValueError(f"'{name}' takes some of the rows that are read, not of those that a maker makes")
        if self.skip_bad and self.file is None:
            raise ValueError("'skip_bad' is of the rows of a 'file'")
        if self.task is not None and (self.maker is None or self.source is not None):
            raise ValueError("'task' says what a maker without 'from' makes rows of: leave it out")
        for name in ("labeller", "beside"):
            if getattr(self, name) is not None and (self.maker is None or self.source is None):
                raise ValueError(f"'{name}' belongs to a 'maker' with 'from', an evaluation whose responses are judged")
        return self
