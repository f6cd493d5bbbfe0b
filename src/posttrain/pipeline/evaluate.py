"""Answering a task's examples with a prompt, a strategy and an engine: graded, metered, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..core.errors import BudgetSpentError, CapabilityError
from ..core.files import write_json
from ..core.protocols import Engine, Measuring, Prompter, Strategy, Task, Tools
from ..core.seeds import derive
from ..core.types import Answer, Completion, Example, Sampled, Sampling
from ..engines.budget import Budgeted
from ..engines.fitting import Fitting
from ..engines.meter import Account, Metered
from ..engines.purse import Allowance, Purses, Share
from ..ledger.row import Row, Samples, cold, timing_of
from ..ledger.store import load_ledger
from ..stats.summary import Summary, summarise
from .in_flight import Finished, working
from .methods import build_prompter, build_strategy
from .verifying import told, verifiers_for

__all__ = ["Evaluation", "evaluate", "load_sampled", "shots_dropped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is evaluated: everything that decides the rows but the engine."""

    stage: str
    task: Task
    examples: Sequence[Example]
    prompt: str
    strategy: str
    model: str
    seed: int
    max_tokens: int | None = None  # the task's own limit if not given
    allowance: Allowance | None = None
    named: str | None = None  # the strategy as rows name it, if not as it is: without this machine's folders


def evaluate(evaluation: Evaluation, engine: Engine, folder: Path, *, title: str) -> Summary:
    """Answer and grade the examples that the folder's ledger does not hold yet, and return the summary of all.

    Raises `CapabilityError` before anything runs when the strategy needs what the engine cannot do.
    """
    prompter = build_prompter(evaluation.prompt)
    strategy = build_strategy(evaluation.strategy)
    for kind, spec, method in (("prompt", evaluation.prompt, prompter), ("strategy", evaluation.strategy, strategy)):
        lacking: frozenset[str] = getattr(method, "needs", frozenset()) - engine.can
        if lacking:
            raise CapabilityError(
                f"{kind} '{spec}' needs an engine with {', '.join(sorted(lacking))}; this one offers "
                f"{', '.join(sorted(engine.can)) or 'generation only'}"
            )
    if evaluation.allowance is not None:
        evaluation.allowance.check(engine)
    about = {"name": evaluation.model, "fingerprint": engine.fingerprint}
    examples = [(example.id, example) for example in evaluation.examples]
    with working(folder, [name for name, _ in examples], title=title, unit="examples") as work:
        write_json(folder / "engine.json", about | {"shape": asdict(engine.shape) if engine.shape else None})
        finished = {row.example: row.cold() for row in work.ledger.rows}
        purses = Purses(evaluation.allowance, list(finished.values()))

        async def answered(example: Example) -> Finished:
            async with purses.example() as (account, share):
                began = time.monotonic()
                answer = await _answer(evaluation, engine, account, share, example, prompter, strategy)
                row, samples = _graded(evaluation, example, answer, account)
                return row, samples, timing_of(example.id, account.by_role(), time.monotonic() - began)

        right = sum(row.score or 0.0 for row in work.ledger.rows)

        def note(row: Row) -> str:
            nonlocal right
            right += row.score or 0.0
            return f"{right / len(work.ledger.done):.1%} right"

        work.each(examples, answered, earlier=lambda name: purses.finished(finished[name]), note=note)
    loaded = load_ledger(folder)
    return summarise(loaded.rows, loaded.timings, seconds=work.clock.seconds)


async def _answer(
    evaluation: Evaluation,
    engine: Engine,
    account: Account,
    share: Share | None,
    example: Example,
    prompter: Prompter,
    strategy: Strategy,
) -> Answer:
    task, public = evaluation.task, example.public()
    prompt = prompter(task, public, seed=evaluation.seed)
    fitting = Fitting(engine)

    def metered(inner: Engine, role: str) -> Metered:
        if share is not None and evaluation.allowance is not None:
            evaluation.allowance.check(inner)  # a verifier may have a model of its own
            inner = Budgeted(inner, share)
        return Metered(inner, account, role)

    verifiers = verifiers_for(strategy, task, example, fitting, metered)
    tools = Tools(
        engine=metered(fitting, "policy"),
        extract=task.extract,
        key=task.key,
        sampling=Sampling(max_tokens=evaluation.max_tokens or task.max_tokens),
        verifiers=verifiers,
        budget=share,
    )
    try:
        answer = await strategy(prompt, public, tools, seed=derive(evaluation.seed, "sample"))
    except* BudgetSpentError:  # it had nothing yet
        answer = Answer(text="", answer=None)
    if share is not None and share.short:
        answer = replace(answer, trace={**answer.trace, "budget": "spent"})
    return fitting.noted(told(answer, verifiers))


def _graded(evaluation: Evaluation, example: Example, answer: Answer, account: Account) -> tuple[Row, Samples]:
    grade = evaluation.task.grade
    grades: dict[str | None, float] = {}
    for candidate in answer.candidates:
        if candidate.answer not in grades:
            grades[candidate.answer] = grade(example, candidate.answer)
    candidates = tuple(
        {
            "answer": candidate.answer,
            "score": grades[candidate.answer],
            "finish": candidate.completion.finish,
            "tokens": candidate.completion.usage.generated or len(candidate.completion.tokens),
            "mean_logprob": _mean_logprob(candidate.completion),
            **value,
        }
        for candidate, value in zip(answer.candidates, _values(answer), strict=True)
    )
    cut = sum(candidate["finish"] == "length" for candidate in candidates)
    trace = dict(answer.trace)
    if isinstance(evaluation.task, Measuring):
        trace["measures"] = {name: list(found) for name, found in evaluation.task.measures(example, answer.answer).items()}
    row = Row(
        stage=evaluation.stage,
        task=evaluation.task.name,
        example=example.id,
        model=evaluation.model,
        prompt=evaluation.prompt,
        strategy=evaluation.named or evaluation.strategy,
        seed=evaluation.seed,
        score=grades[answer.answer] if answer.answer in grades else grade(example, answer.answer),
        answer=answer.answer,
        unparsed=answer.answer is None,
        truncated=cut / max(len(candidates), 1),
        candidates=candidates,
        cost={role: cold(cost) for role, cost in sorted(account.by_role().items())},
        trace=trace,
    )
    texts = tuple(candidate.text for candidate in answer.candidates)
    return row, Samples(example=example.id, text=answer.text, texts=texts)


def _values(answer: Answer) -> list[dict[str, float | None]]:
    """Return what the strategy's verifier gave each candidate, as `{"value": …}`; nothing where it scored none.

    Four decimals: the last bits of a reward depend on the company in a batch.
    """
    scores: Sequence[float | None] = answer.trace.get("scores") or answer.scores
    if not scores or len(scores) != len(answer.candidates):
        return [{} for _ in answer.candidates]
    return [{"value": None if score is None else round(score, 4)} for score in scores]


def _mean_logprob(completion: Completion) -> float | None:
    """Return the mean raw log-probability of a token; four decimals, for the last bits depend on the company in a batch."""
    logprobs = completion.raw_logprobs
    return round(math.fsum(logprobs) / len(logprobs), 4) if logprobs and all(map(math.isfinite, logprobs)) else None


def load_sampled(folder: Path, examples: Sequence[Example]) -> list[Sampled]:
    """Return the graded responses of a finished evaluation, question by question."""
    loaded = load_ledger(folder)
    by_id = {example.id: example for example in examples}
    return [
        Sampled(
            example=by_id[row.example],
            texts=samples.texts,
            scores=tuple(float(candidate["score"]) for candidate in row.candidates),
            finishes=tuple(candidate["finish"] for candidate in row.candidates),
            answers=tuple(candidate["answer"] for candidate in row.candidates),
            chosen=samples.text,
            values=tuple(candidate.get("value") for candidate in row.candidates),
            trace=row.trace,
        )
        for row, samples in zip(loaded.rows, loaded.samples, strict=True)
    ]


def shots_dropped(rows: Sequence[Row]) -> dict[str, int]:
    """Return for how many examples worked examples were dropped to fit the context, and how many in all."""
    dropped = [int(row.trace["shots_dropped"]) for row in rows if row.trace.get("shots_dropped")]
    return {"examples": len(dropped), "shots": sum(dropped)}
