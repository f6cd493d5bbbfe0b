"""Budget forcing: make the model think longer, or cut its thinking and ask for the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ..core.errors import BudgetSpentError, ConfigError
from ..core.protocols import Tools
from ..core.seeds import derive
from ..core.types import Answer, Candidate, Completion, Example, Prompt, Sampling

__all__ = ["BudgetForcing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetForcing:
    """Make the model think longer with "Wait", or cut its thinking at a limit and ask for the answer.

    While the thinking would end and (tokens < min_tokens, waits left): append `wait` and go on; at max_tokens tokens: append
    `end` and `final`, and let it answer.

    Everything is continued by token ids: no text is tokenised twice across a seam. Thinking ends with the text `end`, or
    with the turn; a turn that ends of itself with a readable answer, and is not told to wait, is the reply. Models without
    marked thinking take `end=null`: the reply itself is then what is lengthened or cut.

    Args:
        max_tokens: the most tokens of thinking; then it is cut.
        min_tokens: an end of thinking before as many tokens is suppressed; none: each of the first `waits` ends is.
        waits: the most ends that are suppressed.
        wait: what is appended in place of a suppressed end.
        end: the text that ends thinking; null: none does.
        final: what asks for the answer after a cut, on a line of its own (the prompt's cue, if it has one, takes its place).
        answer_tokens: the most tokens of the answer.
        temperature: 0 is greedy.

    Source: Muennighoff et al. 2025, "s1: Simple test-time scaling" (arXiv 2501.19393), section 3.1.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prefix"})
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Muennighoff et al. 2025, arXiv 2501.19393"
    cost: ClassVar[str] = "at most max_tokens + answer_tokens in up to waits + 2 calls, each reads what is written again"
    fails: ClassVar[str] = (
        "models that were not trained to reason repeat themselves after Wait; short limits cut before the answer"
    )

    max_tokens: Annotated[int, Field(ge=1)] = 1024
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    waits: Annotated[int, Field(ge=0)] = 1
    wait: str = "Wait"
    end: str | None = "</think>"
    final: str = "Final Answer:"
    answer_tokens: Annotated[int, Field(ge=1)] = 64
    temperature: Annotated[float, Field(ge=0)] = 0.0

    def __post_init__(self) -> None:
        if self.waits and not self.wait:
            raise ConfigError("budget_forcing: wait is empty: give a text, or waits=0 to only cut")
        if self.min_tokens is not None and self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"budget_forcing: min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}: lower the first or "
                "raise the second"
            )

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        written: list[Completion | str] = []
        used = waited = 0
        ended = ""
        sampling = replace(tools.sampling, temperature=self.temperature)
        while True:  # think
            stops = (*sampling.stop, self.end) if self.end else sampling.stop
            thinking = replace(sampling, max_tokens=self.max_tokens - used, stop=stops)
            piece = await self._go_on(prompt, written, thinking, tools, derive(seed, "think", waited) if waited else seed)
            if piece is None:
                written.pop()  # the wait that nothing follows
                ended = "budget"
                break
            written.append(piece)
            used += max(len(piece.tokens), 1)  # an end at once is a token too
            ended = "limit" if piece.finish == "length" else "mark" if self.end and piece.stopped_by == self.end else "turn"
            if ended == "limit" or waited == self.waits or used >= self.max_tokens:
                break
            if self.min_tokens is not None and used >= self.min_tokens:
                break
            written.append(self.wait)
            waited += 1

        thoughts = _text(written)
        complete = ended == "turn" and prompt.cue is None and tools.extract(thoughts) is not None
        if ended != "budget" and not complete:  # answer
            mark = "" if ended == "turn" else self.end or ""
            cue = f"\n{self.final if prompt.cue is None else prompt.cue}"
            written.append(mark if ended == "mark" and prompt.cue is None else mark + cue)
            answering = replace(sampling, max_tokens=self.answer_tokens)
            piece = await self._go_on(prompt, written, answering, tools, derive(seed, "answer"))
            if piece is None:
                written.pop()
            else:
                written.append(piece)

        text = _text(written)
        last = next(piece for piece in reversed(written) if isinstance(piece, Completion))
        candidate = Candidate(text=text, answer=tools.extract(text), completion=replace(last, text=text))
        trace: dict[str, Any] = {"thinking_tokens": used, "waits": waited, "ended": ended, "asked": not complete}
        return Answer(text=text, answer=candidate.answer, candidates=(candidate,), trace=trace)

    async def _go_on(
        self, prompt: Prompt, written: Sequence[Completion | str], sampling: Sampling, tools: Tools, seed: int
    ) -> Completion | None:
        """Continue what is written by its token ids; None when the budget is spent and something is there."""
        if written and tools.spent():
            return None
        opened = replace(prompt, prefix=(*prompt.pieces, *written) or None, cue=None)
        try:
            (piece,) = await tools.engine.generate(opened, sampling, seed=seed)
        except BudgetSpentError:
            if written:
                return None
            raise
        return piece


def _text(written: Sequence[Completion | str]) -> str:
    return "".join(piece if isinstance(piece, str) else piece.text for piece in written)
