"""Compute-optimal allocation: judge a question's difficulty by a few samples, then spend what pays for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ..core.errors import ConfigError
from ..core.protocols import Tools
from ..core.types import Answer, Candidate, Example, Prompt
from ..stats.allocation import difficulty_of
from ..stats.allocation_table import Table, parse_table
from ..stats.vote import majority, weighted
from ._scoring import Scorer, best_index
from ._vote import draw, keys_of, tie_scores, votes_trace

__all__ = ["ComputeOptimal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeOptimal:
    """Draw a few pilot samples, judge the difficulty by them, and choose rule and n from a fitted table.

    (rule, n)* = argmax_{rule, n per bin} E[accuracy] subject to E[tokens] ≤ budget, for bins of the pilot's difficulty.

    The difficulty is the entropy of the pilot's answers, how many of them agree, the mean of a verifier's scores on them, or
    how many of them the verifier accepts; all are paid, and the pilot samples are the first of those that are used: nothing
    is drawn twice. The table says which, with which verifier, and was fitted on the graded samples of other questions, by
    `posttrain curve` or by `posttrain.stats.allocation.fit`. Rules: majority; weighted and best, by the table's verifier.

    Args:
        table: the table's file.
        pilot: how many pilot samples; as many as the table was fitted with.
        temperature: above 0; the one that the table's samples were drawn with.
        top_p: the nucleus; 1 keeps all tokens.

    Source: Snell et al. 2024, "Scaling LLM Test-Time Compute Optimally" (arXiv 2408.03314), sections 3.1 and 3.2.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str] = "Snell et al. 2024, arXiv 2408.03314"
    cost: ClassVar[str] = "pilot to n replies by difficulty, the prompt twice; once: the graded samples for the table"
    fails: ClassVar[str] = (
        "the table comes from another task, prompt or model; a pilot that agrees on a wrong answer looks easy"
    )

    table: str = "allocation.json"
    pilot: Annotated[int, Field(ge=1)] = 4
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def verifiers(self) -> tuple[str, ...]:
        """The specs that `Tools.verifiers` must hold: the table's."""
        scorer = self._scorer(self._table())
        return () if scorer is None else scorer.verifiers

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        table = self._table()
        scorer = self._scorer(table)
        if scorer is not None:
            scorer.check(tools)
        sampling = replace(tools.sampling, temperature=self.temperature, top_p=self.top_p)
        candidates = await draw(tools, prompt, sampling, seed=seed, samples=range(self.pilot))
        keys = keys_of(candidates, tools.key)
        scores: list[float | None] = []
        if scorer is not None and table.scored:
            scores = await scorer(example, candidates, tools)
        known = [score for score in scores if score is not None]
        measured = table.difficulty != "score" or bool(known)
        hard = difficulty_of(table.difficulty, keys, known, accept=table.accept) if measured else None
        place, row = (len(table.rows) - 1, table.rows[-1]) if hard is None else table.row(hard)

        if row.n > len(candidates) >= self.pilot:
            more = await draw(tools, prompt, sampling, seed=seed, samples=range(self.pilot, row.n), have=candidates)
            candidates += more
            keys += keys_of(more, tools.key)
        trace: dict[str, Any] = votes_trace(keys)
        trace |= {"difficulty": hard, "bin": place, "rule": row.rule, "n": row.n, "samples": len(candidates)}
        if row.rule == "majority" or scorer is None:
            winner = majority(keys, tie_scores(candidates))
            chosen = 0 if winner is None else keys.index(winner)
        else:
            unscored: list[Candidate] = candidates[len(scores) :]
            scores += await scorer(example, unscored, tools) if unscored else []
            winner = weighted(keys, scorer.weights(scores)) if row.rule == "weighted" else None
            holders = [i for i, key in enumerate(keys) if (key is not None if winner is None else key == winner)]
            chosen = best_index(scores, holders or range(len(candidates)))
        if scores:
            trace["scores"] = scores
        if scorer is not None and scorer.oracle(tools):
            trace["oracle"] = True
        best = candidates[chosen]
        return Answer(text=best.text, answer=best.answer, candidates=tuple(candidates), trace=trace)

    def _table(self) -> Table:
        path = Path(self.table)
        if not path.is_file():
            raise ConfigError(
                f"compute_optimal: no table {path}: give table=FILE, made from graded samples by posttrain curve "
                "--strategy compute_optimal, or by posttrain.stats.allocation.fit"
            )
        table = _load(path, path.stat().st_mtime_ns)
        if table.pilot != self.pilot:
            raise ConfigError(f"compute_optimal: table {path} was fitted with pilot={table.pilot}: set pilot={table.pilot}")
        return table

    def _scorer(self, table: Table) -> Scorer | None:
        if table.verifier is None:
            return None
        return Scorer(method="compute_optimal", spec=table.verifier)


@lru_cache(maxsize=16)
def _load(path: Path, changed: int) -> Table:
    table = parse_table(path.read_text(encoding="utf-8"), str(path))
    scored = table.scored or any(row.rule != "majority" for row in table.rows)
    if scored and table.verifier is None:
        raise ConfigError(f"allocation table {path} chooses by scores and names no verifier: fit it with verifier=SPEC")
    return table
