"""Distillation data: a teacher's replies as completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..core.errors import ConfigError, DataError
from ..core.protocols import Prompter, Task
from ..core.types import Made, Sampled
from ..data.asking import asking
from ..data.replies import Choose, choose, distinct
from ._replies import row

__all__ = ["Distilled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """Take a teacher's replies of an earlier evaluation (`eval: {teacher: MODEL, …}`) as what the student shall write.

    `keep` says which: `all` of them, the `right` ones (graded by the task), or the one `chosen` by the evaluation's
    strategy: by a vote, or by a verifier (`best_of_n:verifier=…`) that needs no gold answers. Cut and empty replies are
    left out; at most `per_question` different ones are kept. `prompt` is how the student is asked, if not as the teacher.
    """

    version: ClassVar[str] = "1"
    kind: ClassVar[str] = "data"
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Kim and Rush 2016, arXiv 1606.07947 (sequence-level knowledge distillation)"
    cost: ClassVar[str] = "the teacher's sampling, once"
    fails: ClassVar[str] = "the teacher is wrong; its replies are longer than the student can follow; its licence forbids it"
    summary: ClassVar[str] = "rows for SFT from a teacher's replies"

    per_question: int = 1
    keep: Literal["all", "right", "chosen"] = "all"
    choose: Choose = "random"
    prompt: str = ""

    def __post_init__(self) -> None:
        if self.per_question < 1:
            raise ConfigError(f"distilled: per_question = {self.per_question} must be at least 1")

    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made:
        ask = asking(self.prompt, prompter)
        names = ("questions", "replies", "cut", "empty", "not_" + self.keep, "repeated", "more_than_wanted")
        counts = {name: 0 for name in names if name != "not_all"}
        rows = []
        for item in sampled:
            whole = [i for i, finish in enumerate(item.finishes) if finish == "stop"]
            written = [i for i in whole if item.texts[i].strip()]
            wanted = [i for i in written if self._wants(item, i)]
            replies = distinct([item.texts[i] for i in wanted])
            kept = choose(replies, self.per_question, self.choose, seed=seed, example=item.example.id)
            counts["questions"] += 1
            counts["replies"] += len(item.texts)
            counts["cut"] += len(item.texts) - len(whole)
            counts["empty"] += len(whole) - len(written)
            if self.keep != "all":
                counts["not_" + self.keep] += len(written) - len(wanted)
            counts["repeated"] += len(wanted) - len(replies)
            counts["more_than_wanted"] += len(replies) - len(kept)
            rows += [row(task, item.example, text, ask=ask, sampled_with=prompter, seed=seed) for text in kept]
        if not rows:
            told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
            raise DataError(f"distilled: no rows ({told}): sample again with more tokens per reply, or keep=all")
        return Made(rows=tuple(rows), counts=counts | {"rows": len(rows)})

    def _wants(self, item: Sampled, i: int) -> bool:
        if self.keep == "right":
            return item.scores[i] == 1.0
        return self.keep == "all" or item.texts[i] == item.chosen
