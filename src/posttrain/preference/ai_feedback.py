"""Preferences from a model in the place of people (RLAIF): two responses, compared under written principles in both orders.

For responses a and b to x, and P the labeller's probability of the one shown first:

    p = ½ [ P(first | x, a, b) + 1 − P(first | x, b, a) ]        the soft label: how probable it is that a is the better one

A constant preference for a place cancels in p to first order; it is measured, and a labeller that has too much of it is
refused. Sources: Bai et al. 2022 (2212.08073), section 4: log-probabilities of the two labels as targets, principles,
reasoning first; Lee et al. 2023 (2309.00267): both orders averaged, soft labels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..core.errors import ConfigError, DataError
from ..core.protocols import Engine, Prompter, Task
from ..core.seeds import rng
from ..core.types import Asked, Made, Said, Sampled
from ..stats.feedback import Compared, judge_bias
from ..verifiers.pairwise import PROMPT, Pairwise
from ..verifiers.tournament import schedule
from ._principles import check_template, files_of, read_principles
from ._told import told

__all__ = ["AiFeedback"]

_POINTS: dict[Said, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class AiFeedback:
    """Label pairs of a model's own responses by a labeller model, under written principles, in both orders.

    Rows are pairs with `preference` in [½, 1], the soft label of the chosen one, and `margin` = 2p − 1; ties are kept at ½
    and marked (`tie`). With labels=hard they are left out, and there is no `preference`. Pairs are drawn by the seed: every
    response of a question meets another before any is used again. Cut responses and copies are left out.

    What was measured of the labeller stands in the stage's `facts.json`: preference for a place, flips, length, its own
    hand, and, where the task can grade, agreement with the grades (which decide no label).
    """

    version: ClassVar[str] = "1"
    kind: ClassVar[str] = "data"
    measured: ClassVar[bool] = True
    role: ClassVar[str] = "judge"
    paper: ClassVar[str] = "Bai et al. 2022, arXiv 2212.08073, section 4; Lee et al. 2023, arXiv 2309.00267"
    cost: ClassVar[str] = "two readings of both responses a pair by the labeller (and two reasonings), once"
    fails: ClassVar[str] = "a labeller that goes by place or length, or knows no better than the model that it teaches"
    summary: ClassVar[str] = "preference pairs with soft labels from a labeller model, in both orders; its bias measured"

    principles: str | tuple[str, ...] = "helpful"
    one_each: bool = False  # a pair is judged by one principle, drawn by the seed, and not by all together
    per_question: Annotated[int, Field(ge=1)] = 2
    differ: bool = False  # only pairs whose answers, as the task reads them, are different
    reasoning: bool = False
    max_tokens: Annotated[int, Field(ge=1)] = 256  # of a reasoning
    read: Literal["auto", "logprobs", "text"] = "auto"
    samples: Annotated[int, Field(ge=1)] = 1  # verdicts drawn in each order, where they are read as text
    template: str = ""
    labels: Literal["soft", "hard"] = "soft"
    tie: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # labels this near to a half are ties
    max_flips: Annotated[float, Field(ge=0, le=1)] = 0.4
    max_position_bias: Annotated[float, Field(ge=0, le=1)] = 0.3
    biased: Literal["refuse", "keep"] = "refuse"

    def __post_init__(self) -> None:
        if self.samples > 1 and self.read == "logprobs":
            raise ConfigError("ai_feedback: read=logprobs needs no sampled verdicts: leave samples out, or set read=text")
        read_principles(self.principles, "ai_feedback")
        check_template(self.template, "ai_feedback")

    @property
    def files(self) -> tuple[str, ...]:
        """The files that principles are read from."""
        return files_of(self.principles)

    @property
    def requires(self) -> frozenset[str]:
        """What the labeller's engine must be able to do."""
        return frozenset({"score", "prefix"}) if self.read == "logprobs" else frozenset()

    async def ask(self, task: Task, prompter: Prompter, item: Sampled, engine: Engine, *, seed: int) -> Asked:
        """Compare the pairs of one question, each in both orders."""
        exact = self.read == "logprobs" or (self.read == "auto" and {"score", "prefix"} <= engine.can)
        written = read_principles(self.principles, "ai_feedback")
        judges = [
            Pairwise(
                task=task,
                engine=engine,
                criteria="\n".join(criteria),
                reason=self.reasoning,
                read="logprobs" if exact else "text",
                samples=1 if exact else self.samples,
                prompt=self.template or PROMPT,
                max_tokens=self.max_tokens,
            )
            for criteria in ([[one] for one in written] if self.one_each else [written])
        ]
        pairs = self._pairs(item, seed=seed)
        draw = rng(seed, "principles", item.example.id)
        chosen = [draw.randrange(len(judges)) for _ in pairs]
        verdicts = await asyncio.gather(
            *(judges[k](item.example, item.texts[i], item.texts[j]) for k, (i, j) in zip(chosen, pairs, strict=True))
        )
        said = []
        for k, (i, j), verdict in zip(chosen, pairs, verdicts, strict=True):
            label = verdict.probability_a
            if label is None and "unparsed" not in verdict.said:  # the mean over both orders, of verdicts in words
                label = (_POINTS[verdict.said[0]] + 1 - _POINTS[verdict.said[1]]) / 2
            found = {
                "a": i,
                "b": j,
                "label": None if label is None else round(label, 4),  # the last bits depend on the company in a batch
                "said": list(verdict.said),
                "p_first": [round(p, 4) for p in verdict.p_first],
            }
            said.append({**found, "principle": k} if self.one_each else found)
        tally: dict[str, int] = {}
        for judge in judges:
            for name in ("off_label", "cut", "unparsed_verdicts"):
                tally[name] = tally.get(name, 0) + judge.tally[name]
        wrote = tuple(text for verdict in verdicts for text in verdict.wrote)
        return Asked(said={"pairs": said, "read": "logprobs" if exact else "text", **tally}, texts=wrote)

    def _pairs(self, item: Sampled, *, seed: int) -> list[tuple[int, int]]:
        """Return the pairs to compare, by index: of whole, different responses; one of each model where there are two."""
        texts: dict[str, int] = {}
        for i, text in enumerate(item.texts):
            if item.finishes[i] == "stop" and text.strip():
                texts.setdefault(text, i)
        order = list(texts.values())
        rng(seed, "ai_feedback", item.example.id).shuffle(order)
        pairs = list(chain.from_iterable(schedule(order))) if len(order) > 1 else []
        if self.differ:
            pairs = [(i, j) for i, j in pairs if item.answers[i] != item.answers[j]]
        if len(set(item.own)) > 1:
            pairs = [(i, j) for i, j in pairs if item.own[i] != item.own[j]]
        return pairs[: self.per_question]

    def __call__(self, task: Task, prompter: Prompter, sampled: Sequence[Sampled], *, seed: int) -> Made:
        names = ("questions", "responses", "without_a_pair", "pairs", "unparsed", "off_label", "cut_reasonings", "ties")
        counts, rows, compared = dict.fromkeys(names, 0), [], []
        for item in sampled:
            if item.asked is None:
                raise ConfigError("ai_feedback: nobody was asked: run it as a data stage with 'from', an evaluation")
            said = item.asked.said
            counts["questions"] += 1
            counts["responses"] += len(item.texts)
            counts["without_a_pair"] += not said["pairs"]
            counts["pairs"] += len(said["pairs"])
            counts["off_label"] += said["off_label"]
            counts["cut_reasonings"] += said["cut"]
            prompt = prompter(task, item.example.public(), seed=seed)
            messages = [message.to_dict() for message in prompt.messages]
            for pair in said["pairs"]:
                one = self._compared(item, pair)
                compared.append(one)
                if one.label is None:
                    counts["unparsed"] += 1
                    continue
                counts["ties"] += one.label == 0.5
                if one.label != 0.5 or self.labels == "soft":
                    rows.append({"id": item.example.id, "prompt": messages, **self._row(item, pair, one.label)})
        found = judge_bias(compared)
        how = sorted({item.asked.said["read"] for item in sampled if item.asked is not None})
        self._refuse(found)
        if not rows:
            raise DataError(
                f"ai_feedback: no rows: of {counts['questions']} questions {counts['without_a_pair']} have no two different "
                f"whole responses, {counts['unparsed']} of {counts['pairs']} pairs had no verdict that can be read, and "
                f"{counts['ties']} are ties; sample more responses, or ask another labeller"
            )
        facts = {"labeller": {"read": how, "principles": read_principles(self.principles, "ai_feedback"), **found}}
        return Made(rows=tuple(rows), counts=counts | {"rows": len(rows)}, facts=facts, notes=told(found))

    def _compared(self, item: Sampled, pair: Mapping[str, Any]) -> Compared:
        i, j = pair["a"], pair["b"]
        label = pair["label"]
        return Compared(
            question=item.example.id,
            label=0.5 if label is not None and abs(label - 0.5) <= self.tie else label,
            said=tuple(pair["said"]),
            p_first=tuple(pair["p_first"]),
            lengths=(len(item.texts[i]), len(item.texts[j])),
            grades=(item.scores[i], item.scores[j]) if item.scores else None,
            own=(item.own[i], item.own[j]) if item.own else (False, False),
        )

    def _row(self, item: Sampled, pair: Mapping[str, Any], label: float) -> dict[str, Any]:
        a, b = item.texts[pair["a"]], item.texts[pair["b"]]
        preference = round(max(label, 1 - label), 4)
        row: dict[str, Any] = {"chosen": a if label >= 0.5 else b, "rejected": b if label >= 0.5 else a}
        if self.labels == "soft":
            row |= {"preference": preference, "tie": label == 0.5}
        return row | {"margin": round(2 * preference - 1, 4)}

    def _refuse(self, found: Mapping[str, Any]) -> None:
        """Raise `DataError` for a labeller that goes too much by the place at which a response is shown."""
        place = found["position"]
        if self.biased == "keep" or not place["pairs"]:
            return
        for name, figure, limit, what in (
            ("max_flips", place["flip_rate"], self.max_flips, "changes its verdict when the two responses change places"),
            ("max_position_bias", abs(place["bias"]), self.max_position_bias, "prefers one place in both orders (net)"),
        ):
            if figure > limit:
                raise DataError(
                    f"ai_feedback: the labeller {what} in {figure:.0%} of {place['pairs']} pairs, more than {name} = "
                    f"{limit:.0%}: ask a better labeller, or take its labels as they are with biased=keep"
                )
