"""Training rows from a task's own worked solutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..core.errors import ConfigError, DataError
from ..core.protocols import Prompter, Task
from ..core.seeds import rng
from ..core.types import Made, Sampled
from ..data.asking import asking
from ..tasks.wording import answer_text

__all__ = ["WorkedExamples"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkedExamples:
    """Ask each training question as the evaluation will; the completion is its worked steps (or its bare answer).

    `n` examples are drawn without replacement from `split` by the seed; `steps=false` trains on the answers alone,
    for comparison; `prompt` asks in another way than the evaluation. `think=true` puts the steps into <think> and </think>,
    and the answer behind them: the form that the verifier `format` wants. Fails with `DataError` when the split is too small
    or holds no worked steps.
    """

    version: ClassVar[str] = "2"
    kind: ClassVar[str] = "data"
    measured: ClassVar[bool] = True
    cost: ClassVar[str] = "nothing: the task brings the solutions"
    fails: ClassVar[str] = "the task has no worked solutions (use steps=false, or sample them)"
    summary: ClassVar[str] = "rows for SFT from a task's worked solutions"

    n: int = 960
    split: str = "train"
    steps: bool = True
    prompt: str = ""  # default: as the evaluation asks
    think: bool = False  # the steps as a block of thought, then the answer

    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made:
        examples = task.examples(self.split)
        if self.think and not self.steps:
            raise ConfigError("worked_examples: think=true shows the steps as a thought: leave steps=false out")
        if len(examples) < self.n:
            raise DataError(
                f"worked_examples:n={self.n}: the {self.split} split of {task.name} has {len(examples)} examples"
            )
        ask = asking(self.prompt, prompter)
        chosen = rng(seed, "worked_examples").sample(list(examples), self.n)
        rows = []
        for example in chosen:
            if self.steps and not example.rationale:
                raise DataError(f"{task.name} has no worked steps for example {example.id}: use worked_examples:steps=false")
            completion = example.rationale if self.steps and example.rationale else answer_text(task, example.answer)
            if self.think:
                completion = thought(completion, f"Answer: {example.answer}")
            prompt = ask(task, example.public(), seed=seed)
            messages = [message.to_dict() for message in prompt.messages]
            rows.append({"id": example.id, "prompt": messages, "completion": completion})
        return Made(rows=tuple(rows), counts={"rows": len(rows)})


def thought(steps: str, answer: str) -> str:
    """Return worked steps as a block of thought before the answer, which stands behind it alone."""
    lines = [line for line in steps.rstrip().split("\n") if line.strip() != answer]
    return "<think>\n" + "\n".join(lines).strip() + f"\n</think>\n{answer}"
