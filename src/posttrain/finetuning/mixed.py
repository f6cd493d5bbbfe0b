"""A domain mix: rows of the domain with general rows among them, so that other abilities are rehearsed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..core.errors import ConfigError, DataError
from ..core.protocols import Prompter, Task
from ..core.seeds import rng
from ..core.types import Made, Sampled
from ..data.formats import training_rows
from ..data.mixing import read_mix

__all__ = ["Mixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """All D rows of the domain, and R = round(D · share / (1 − share)) general rows drawn by the seed, shuffled together.

    The domain's rows are those of the data stage named by `from`, or of `domain`; `general` names the rows to rehearse.
    Both are sources as on the command line. Fails with `DataError` when there are fewer than R general rows.
    """

    version: ClassVar[str] = "1"
    kind: ClassVar[str] = "data"
    measured: ClassVar[bool] = True
    takes: ClassVar[str] = "rows"
    paper: ClassVar[str] = "Scialom et al. 2022, arXiv 2205.12393 (rehearsal)"
    cost: ClassVar[str] = "1 / (1 − share) times the training of the domain's rows alone"
    fails: ClassVar[str] = "the general rows are unlike what the model was first trained on; share too small to help"
    summary: ClassVar[str] = "rows for SFT: a domain's rows with general replay rows among them"

    general: str = ""
    share: float = 0.2
    domain: str = ""

    def __post_init__(self) -> None:
        if not self.general:
            raise ConfigError("mixed: name the rows to rehearse, for example mixed:general=chats.jsonl")
        if not 0 < self.share < 1:
            raise ConfigError(f"mixed: share = {self.share:g} must lie between 0 and 1: the general part of all rows")

    @property
    def reads(self) -> tuple[str, ...]:
        """The sources whose content decides the rows, beside the stage named by `from`."""
        return (self.general, self.domain) if self.domain else (self.general,)

    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made:
        domain = read_mix(self.domain, seed=seed, prepare=training_rows).rows
        general = read_mix(self.general, seed=seed, prepare=training_rows).rows
        wanted = round(len(domain) * self.share / (1 - self.share))
        if not 0 < wanted <= len(general):
            raise DataError(
                f"mixed: {len(domain)} domain rows at share={self.share:g} need {wanted} general rows, and {self.general} "
                f"has {len(general)}: " + ("change the share or add rows" if wanted else "raise the share")
            )
        rows = [*domain, *rng(seed, "mixed", "general").sample(list(general), wanted)]
        rng(seed, "mixed", "order").shuffle(rows)
        counts = {"domain": len(domain), "general": wanted, "general_unused": len(general) - wanted, "rows": len(rows)}
        return Made(rows=tuple(rows), counts=counts)
