"""Searching for an instruction: propose from demonstrations, score all on one common subset, halve, report on held-out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from ..core.errors import ConfigError
from ..core.files import write_json
from ..core.protocols import Task
from ..core.seeds import rng
from ..core.specs import Spec, format_spec, parse
from ..core.types import Cost, Example
from ..ledger.row import cold
from ..prompting._nearest import text_of
from ..prompting._shots import copies_of, normalised
from ..stats.paired import compare
from .done import cost_from
from .points import Bench, Measured
from .proposing import proposals

__all__ = ["PromptSearch", "Splits", "prompt_search"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSearch:
    """Automatic prompt engineering: the instruction under which the model answers best.

    ρ* = argmax_ρ (1/n) Σ_i f(ρ, x_i, a_i) over instructions ρ ~ p(· | demonstrations),

    f = 1[answer right] (`score=accuracy`) or log p(a_i | ρ, x_i) (`score=likelihood`). All candidates of a round are
    scored on the same examples, the best `keep` of them go on to a longer list that begins with these examples, until one
    is left (successive halving). Demonstrations, selection and report use disjoint examples.

    Args:
        candidates: how many proposals to ask for.
        demonstrations: examples shown per proposal, drawn anew for each.
        propose: size of the pool that demonstrations come from.
        select: examples on which the last round is scored.
        first: examples on which the first round is scored, at least.
        keep: share of the candidates that survives a round.
        score: "accuracy" or "likelihood".
        prompt: the prompter that the instruction is put before.
        temperature: of the proposals.

    Source: Zhou et al. 2022, "Large Language Models Are Human-Level Prompt Engineers" (arXiv 2211.01910), algorithm 1;
    halving: Jamieson and Talwalkar 2016 (arXiv 1502.07943).
    """

    candidates: Annotated[int, Field(ge=0)] = 32
    demonstrations: Annotated[int, Field(ge=1)] = 5
    propose: Annotated[int, Field(ge=1)] = 40
    select: Annotated[int, Field(ge=1)] = 64
    first: Annotated[int, Field(ge=1)] = 16
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.5
    score: Literal["accuracy", "likelihood"] = "accuracy"
    prompt: str = "zero_shot"
    temperature: Annotated[float, Field(gt=0)] = 0.9

    def __post_init__(self) -> None:
        if parse(self.prompt).name == "instructed":
            raise ConfigError("prompt-search looks for the instruction itself: give the prompt without 'instructed'")
        if self.demonstrations > self.propose:
            raise ConfigError(f"{self.demonstrations} demonstrations do not fit a pool of {self.propose}: raise propose")

    def rounds(self, candidates: int) -> list[tuple[int, int]]:
        """Return (candidates scored, examples) of each round; the last round has all `select` examples."""
        counts = [candidates]
        while counts[-1] > 2:
            counts.append(min(counts[-1] - 1, math.ceil(counts[-1] * self.keep)))
        last = len(counts) - 1
        first = min(self.first, self.select)
        sizes = [max(first, math.ceil(self.select * self.keep ** (last - at))) for at in range(len(counts))]
        return list(zip(counts, sizes, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Three lists of examples without a common question."""

    propose: tuple[Example, ...]
    select: tuple[Example, ...]
    report: tuple[Example, ...]


def splits_of(search: PromptSearch, task: Task, report: Sequence[Example], seed: int) -> Splits:
    """Draw the pools from the training split, leaving out copies of the report's questions and of each other."""
    pool = [example for example in task.examples("train") if example.answer is not None]
    rng(seed, "prompt-search", task.name).shuffle(pool)
    copied = copies_of(task, report)
    free: list[Example] = []
    seen: set[str] = set()
    for example in pool:
        text = normalised(text_of(example))
        if len(free) < search.propose + search.select and text not in seen and not copied(example):
            free.append(example)
            seen.add(text)
    propose = tuple(free[: search.propose])
    near = copies_of(task, propose)
    select = tuple(example for example in free[search.propose :] if not near(example))
    if len(select) < search.select:
        raise ConfigError(
            f"task '{task.name}' has {len(propose)} + {len(select)} training examples for a search with propose="
            f"{search.propose} and select={search.select}: lower them"
        )
    return Splits(propose=propose, select=select, report=tuple(report))


def prompt_search(
    search: PromptSearch,
    bench: Bench,
    report: Sequence[Example],
    *,
    model: str,
    proposer: str | None = None,
    given: Sequence[str] = (),
) -> dict[str, Any]:
    """Search, measure the winner on `report`, write `prompt_search.json` below `bench.out` and return what it holds.

    Killed and called again it goes on; the result is the same. `given` are instructions to try beside the proposals;
    no instruction at all is always tried. `proposer` is another model to propose with.

    Raises:
        ConfigError: too few training examples.
        CapabilityError: likelihood needs an engine that can score.
    """
    splits = splits_of(search, bench.task, report, bench.seed)
    proposed = proposals(bench, splits.propose, proposer or model, **_asking(search))
    table: list[dict[str, Any]] = [
        {"instruction": text, "source": source, "rounds": []}
        for text, source in _candidates(given, proposed["instructions"])
    ]
    survivors: list[int] = list(range(len(table)))
    scores: dict[int, list[float]] = {at: [] for at in survivors}
    select_cost = Cost()
    for number, (count, size) in enumerate(search.rounds(len(table)), 1):
        survivors = survivors[:count]
        for at in survivors:
            part = splits.select[len(scores[at]) : size]
            title = f"round {number}: candidate {survivors.index(at) + 1} of {count}"
            found, cost = _scored(search, bench, model, _spec(search, table[at]["instruction"]), part, title)
            scores[at] += found
            select_cost += cost
            table[at]["rounds"].append({"n": size, "score": math.fsum(scores[at]) / size})
        survivors.sort(key=lambda at: (-math.fsum(scores[at]), at))
    winner = table[survivors[0]]["instruction"]
    held_out = {
        name: bench.measure(model, _spec(search, text), splits.report, title=f"report: {name}")
        for name, text in (("without", ""), ("winner", winner))
    }
    propose_cost = cost_from(proposed["cost"])
    result = {
        "instruction": winner,
        "prompt": _spec(search, winner),
        "search": asdict(search),
        "task": bench.task.name,
        "model": held_out["winner"].model,
        "seed": bench.seed,
        "proposals": proposed["counts"],
        "table": sorted(table, key=lambda row: (-row["rounds"][-1]["n"], -row["rounds"][-1]["score"])),
        "report": _report(held_out, winner),
        "examples": {name: [example.id for example in pool] for name, pool in _pools(splits).items()},
        "cost": {
            "propose": cold(propose_cost),
            "select": cold(select_cost),
            "search": cold(propose_cost + select_cost),
            "report": cold(sum(({measured.folder: measured.cost for measured in held_out.values()}).values(), Cost())),
        },
        "seconds": propose_cost.seconds + select_cost.seconds,
    }
    write_json(bench.out / "prompt_search.json", result)
    return result


def _pools(splits: Splits) -> dict[str, tuple[Example, ...]]:
    return {"propose": splits.propose, "select": splits.select, "report": splits.report}


def _asking(search: PromptSearch) -> dict[str, Any]:
    names = ("candidates", "demonstrations", "temperature")
    return {name: getattr(search, name) for name in names}


def _candidates(given: Sequence[str], proposed: Sequence[str]) -> list[tuple[str, str]]:
    """Return (instruction, source), each once; first no instruction at all."""
    found = {"": "none"}
    for source, texts in (("given", given), ("proposed", proposed)):
        for text in texts:
            if '"' in text and "'" in text:
                raise ConfigError(f"the instruction {text!r} has both kinds of quotes: use one of them")
            found.setdefault(text.strip(), source)
    return list(found.items())


def _spec(search: PromptSearch, instruction: str) -> str:
    if not instruction:
        return format_spec(parse(search.prompt))
    return format_spec(Spec("instructed", {"text": instruction, "prompt": parse(search.prompt)}))


def _report(held_out: dict[str, Measured], winner: str) -> dict[str, Any]:
    """Return both accuracies on the held-out examples, and their paired difference."""
    told: dict[str, Any] = {name: measured.to_dict() for name, measured in held_out.items()}
    if winner:
        told["difference"] = asdict(compare(held_out["winner"].scores, held_out["without"].scores))
    return told


def _scored(
    search: PromptSearch, bench: Bench, model: str, prompt: str, examples: Sequence[Example], title: str
) -> tuple[list[float], Cost]:
    """Return a candidate's score of each example, and what that cost."""
    if not examples:
        return [], Cost()
    if search.score == "likelihood":
        return bench.likelihood(model, prompt, examples)
    measured = bench.measure(model, prompt, examples, title=title)
    return measured.scores, measured.cost
