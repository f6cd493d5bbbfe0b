"""Chain-of-thought data by rejection sampling: a model's own right traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..core.errors import ConfigError, DataError
from ..core.protocols import Prompter, Task
from ..core.types import Made, Sampled
from ..data.asking import asking
from ..data.replies import Choose, choose, distinct
from ..verifiers.build import files_of
from ._filters import filters_for, passed, read_filter
from ._replies import row

__all__ = ["VerifiedTraces"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedTraces:
    """Keep the replies whose answer is right, each once, at most `per_question` for a question.

    Replies cut by the length limit are left out, and so are wrong and unparsed ones; replies that differ in white space or
    case alone count once. `choose` says which are kept of too many. With `even` every question weighs the same: one with
    fewer than `per_question` different right replies is left out. `prompt` asks the question in another way than it was
    sampled with (a long prompt learned away); every reply that is not kept is counted. `filters` are verifiers that look at
    the text, each with the least score that passes (`format>=1`): a right reply that fails one is left out and counted.
    """

    version: ClassVar[str] = "1"
    kind: ClassVar[str] = "data"
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Yuan et al. 2023, arXiv 2308.01825; Zelikman et al. 2022, arXiv 2203.14465"
    cost: ClassVar[str] = "the sampling of the evaluation it reads"
    fails: ClassVar[str] = "few questions are ever answered right; easy ones fill the data; right by luck counts as right"
    summary: ClassVar[str] = "rows for SFT from right samples of an earlier evaluation"

    per_question: int = 4
    choose: Choose = "random"
    even: bool = False
    prompt: str = ""
    filters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.per_question < 1:
            raise ConfigError(f"verified_traces: per_question = {self.per_question} must be at least 1")
        for each in self.filters:
            read_filter(each, "verified_traces")

    @property
    def files(self) -> tuple[str, ...]:
        """The Python files that the filters' scores depend on."""
        return tuple(str(path) for each in self.filters for path in files_of(read_filter(each, "verified_traces")[0]))

    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made:
        ask = asking(self.prompt, prompter)
        counts = dict.fromkeys(
            ("questions", "solved", "replies", "cut", "wrong", "repeated", "more_than_wanted", "too_few_to_be_even"), 0
        ) | {f"not {each}": 0 for each in self.filters}
        filters = filters_for(self.filters, task, [item.example for item in sampled], "verified_traces")
        rows = []
        for item in sampled:
            whole = [i for i, finish in enumerate(item.finishes) if finish == "stop"]
            right = [item.texts[i] for i in whole if item.scores[i] == 1.0]
            clear, stopped = passed(right, filters, item.example)
            traces = distinct(clear)
            counts["questions"] += 1
            counts["solved"] += bool(right)
            counts["replies"] += len(item.texts)
            counts["cut"] += len(item.texts) - len(whole)
            counts["wrong"] += len(whole) - len(right)
            for each, count in stopped.items():
                counts[f"not {each}"] += count
            counts["repeated"] += len(clear) - len(traces)
            if self.even and len(traces) < self.per_question:
                counts["too_few_to_be_even"] += len(traces)
                continue
            kept = choose(traces, self.per_question, self.choose, seed=seed, example=item.example.id)
            counts["more_than_wanted"] += len(traces) - len(kept)
            rows += [row(task, item.example, text, ask=ask, sampled_with=prompter, seed=seed) for text in kept]
        if not rows:
            unclear = "".join(f"{counts[f'not {each}']} not {each}, " for each in self.filters)
            raise DataError(
                f"verified_traces: no rows: of {counts['replies']} replies to {counts['questions']} questions "
                f"{counts['cut']} were cut, {unclear}{counts['wrong']} wrong and {counts['too_few_to_be_even']} too few for "
                "their question; sample more replies per question, or take easier questions"
            )
        return Made(rows=tuple(rows), counts=counts | {"rows": len(rows)})
