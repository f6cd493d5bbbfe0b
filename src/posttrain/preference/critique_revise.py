"""Critique and revision (Constitutional AI): a model says what is wrong with a response by a principle, and mends it.

For a response y₀ to x and principles π₁, π₂, … drawn one a round:

    c_k ~ M(· | x, y_{k−1}, π_k, "what is wrong?")      y_k ~ M(· | x, y_{k−1}, c_k, "rewrite it")      k = 1 … rounds

and the last y_k is what to learn from. Source: Bai et al. 2022 (2212.08073), section 3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..core.errors import ConfigError, DataError
from ..core.protocols import Engine, Prompter, Task
from ..core.seeds import derive, rng
from ..core.types import Asked, Completion, Example, Made, Message, Prompt, Sampled, Sampling
from ..stats.intervals import ratio
from ..verifiers._wording import fill, shown
from ._principles import files_of, read_principles

__all__ = ["CritiqueRevise"]

CRITIQUE = """[Question]
{question}

[Response]
{response}

[Principle]
{principle}

Say in a few sentences in which way the response falls short of the principle, and how to mend it."""
REVISE = """[Question]
{question}

[Response]
{response}

[Criticism]
{critique}

Rewrite the response so that it meets the criticism and answers the question. Write nothing but the new response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueRevise:
    """Have responses criticised by principles and rewritten, by the model that gave them or by a labeller.

    Rows are demonstrations of the last revision for SFT (make=sft), or pairs of it over the response it began with
    (make=pairs). Of several principles each round draws one by the seed. A round whose critique is empty or whose revision
    is empty or cut ends it there: what was whole before counts. Responses are the first `per_question` different whole ones.

    Where the task can grade, `facts.json` has the accuracy before and after (which decides nothing).
    """

    version: ClassVar[str] = "1"
    kind: ClassVar[str] = "data"
    role: ClassVar[str] = "judge"
    paper: ClassVar[str] = "Bai et al. 2022, arXiv 2212.08073, section 3"
    cost: ClassVar[str] = "two replies of the labeller a round and response, once"
    fails: ClassVar[str] = "a small model criticises what is right and revises it into something wrong"
    summary: ClassVar[str] = "rows for SFT, or pairs, from responses that a model criticised by principles and rewrote"

    principles: str | tuple[str, ...] = "helpful"
    rounds: Annotated[int, Field(ge=1)] = 1
    per_question: Annotated[int, Field(ge=1)] = 1
    make: Literal["sft", "pairs"] = "sft"
    temperature: Annotated[float, Field(ge=0)] = 0.0
    critique_tokens: Annotated[int, Field(ge=1)] = 256
    max_tokens: Annotated[int, Field(ge=0)] = 0  # of a revision; 0: the task's limit

    def __post_init__(self) -> None:
        read_principles(self.principles, "critique_revise")

    @property
    def files(self) -> tuple[str, ...]:
        """The files that principles are read from."""
        return files_of(self.principles)

    @property
    def requires(self) -> frozenset[str]:
        """What the labeller's engine must be able to do."""
        return frozenset()

    async def ask(self, task: Task, prompter: Prompter, item: Sampled, engine: Engine, *, seed: int) -> Asked:
        """Criticise and revise a question's responses, each in `rounds` rounds."""
        first: dict[str, int] = {}
        for i, text in enumerate(item.texts):
            if item.finishes[i] == "stop" and text.strip():
                first.setdefault(text, i)
        chosen = list(first.values())[: self.per_question]
        chains = await asyncio.gather(*(self._chain(task, item.example, item.texts[i], i, engine, seed) for i in chosen))
        said: list[dict[str, Any]] = []
        texts: list[str] = []
        for i, (written, ended) in zip(chosen, chains, strict=True):
            said.append({"of": i, "texts": len(written), "ended": ended})
            texts += written
        return Asked(said={"chains": said}, texts=tuple(texts))

    async def _chain(
        self, task: Task, example: Example, text: str, index: int, engine: Engine, seed: int
    ) -> tuple[list[str], str]:
        """Return critique, revision, critique, revision, … of a response, and what ended it ("" after all rounds)."""
        principles = read_principles(self.principles, "critique_revise")
        draw, parts = rng(seed, "critique_revise", example.id, index), {"question": shown(task, example)}
        written: list[str] = []
        for turn in range(self.rounds):
            own = derive(seed, "critique_revise", example.id, index, turn)
            said = {**parts, "response": text.strip(), "principle": draw.choice(principles)}
            critique = await self._write(engine, fill(CRITIQUE, "critique_revise", **said), self.critique_tokens, own)
            if not critique.text.strip():
                return written, "empty"
            mend = {**parts, "response": text.strip(), "critique": critique.text.strip()}
            limit = self.max_tokens or task.max_tokens
            revision = await self._write(engine, fill(REVISE, "critique_revise", **mend), limit, own)
            if revision.finish != "stop" or not revision.text.strip():
                return written, "cut" if revision.finish != "stop" else "empty"
            written += [critique.text, revision.text]
            text = revision.text
        return written, ""

    async def _write(self, engine: Engine, asked: str, limit: int, seed: int) -> Completion:
        prompt = Prompt(messages=(Message(role="user", content=asked),))
        sampling = Sampling(temperature=self.temperature, max_tokens=limit)
        (reply,) = await engine.generate(prompt, sampling, seed=seed)
        return reply

    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made:
        names = ("questions", "responses", "not_revised", "cut", "empty", "unchanged")
        counts, rows, grades = dict.fromkeys(names, 0), [], []
        for item in sampled:
            if item.asked is None:
                raise ConfigError("critique_revise: nobody was asked: run it as a data stage with 'from', an evaluation")
            prompt = prompter(task, item.example.public(), seed=seed)
            messages = [message.to_dict() for message in prompt.messages]
            counts["questions"] += 1
            at = 0
            for chain in item.asked.said["chains"]:
                written = item.asked.texts[at : at + chain["texts"]]
                at += chain["texts"]
                counts["responses"] += 1
                if chain["ended"]:
                    counts[chain["ended"]] += 1
                if not written:
                    counts["not_revised"] += 1
                    continue
                before, after = item.texts[chain["of"]], written[-1]
                same = before.split() == after.split()
                counts["unchanged"] += same
                graded = (item.scores[chain["of"]], task.grade(item.example, task.extract(after)))
                grades.append((item.example.id, graded))
                row: dict[str, Any] = {"id": item.example.id, "prompt": messages}
                if self.make == "sft":
                    rows.append({**row, "completion": after})
                elif not same:
                    rows.append({**row, "chosen": after, "rejected": before})
        if not rows:
            raise DataError(
                f"critique_revise: no rows: of {counts['responses']} responses {counts['not_revised']} have no whole "
                f"revision and {counts['unchanged']} were left as they are; raise max_tokens, or ask another labeller"
            )
        before_ci, after_ci = (_accuracy(grades, side) for side in (0, 1))
        facts = {"revised": len(grades), "right_before": before_ci, "right_after": after_ci}
        note = (
            f"by the task's grades {_said(before_ci)} of {len(grades)} responses were right before, {_said(after_ci)} after."
        )
        return Made(rows=tuple(rows), counts=counts | {"rows": len(rows)}, facts=facts, notes=(note,))


def _accuracy(grades: Sequence[tuple[str, tuple[float, float]]], side: int) -> dict[str, Any]:
    """Return the mean grade and its interval, responses to one question taken together."""
    questions: dict[str, tuple[float, float]] = {}
    for question, values in grades:
        right, of = questions.get(question, (0.0, 0.0))
        questions[question] = (right + values[side], of + 1)
    return {"share": sum(v[side] for _, v in grades) / len(grades), "ci95": list(ratio(list(questions.values())))}


def _said(found: dict[str, Any]) -> str:
    return f"{found['share']:.1%} [{found['ci95'][0]:.1%}, {found['ci95'][1]:.1%}]"
