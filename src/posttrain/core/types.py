"""The values that every layer speaks of. Frozen, slotted, keyword-only; no behaviour beyond arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .cost import Cost, ModelShape, Usage

__all__ = [
    "Answer", "Asked", "Candidate", "Checkpoint", "Completion", "Cost", "Delta", "Example", "Finish", "Made", "Message",
    "ModelShape", "Prompt", "Role", "Said", "Sampled", "Sampling", "Score", "TokenEvent", "Usage", "Verdict",
]  # fmt: skip

Role = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "length", "watch", "cancelled"]
Said = Literal["first", "second", "tie", "unparsed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Worked examples that may be dropped, whole, when a prompt does not fit the context: `shot` numbers the example that
    the turn belongs to (from 1; 0: none), `shots` lists those that stand inside this one turn's content, in its order.
    """

    role: Role
    content: str
    shot: int = 0
    shots: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, str]:
        """Return the `{"role", "content"}` form that chat templates take."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One item of a task: what is asked, and (hidden from methods) what is right."""

    id: str
    question: str = ""
    messages: tuple[Message, ...] = ()
    choices: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)  # public facts: subject, level, …
    answer: str | None = None  # hidden
    rationale: str | None = None  # hidden
    gold: Mapping[str, Any] = field(default_factory=dict)  # hidden: whatever else the grader needs

    def public(self) -> Example:
        """Return the example without anything that tells the right answer: all that a method ever sees."""
        return replace(self, answer=None, rationale=None, gold={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. `temperature=0` is greedy; `logprobs=k` also returns the k most likely tokens of each step.

    A stop string ends the text before it. With `keep_stop` the text and the tokens go on through the whole token that
    completed the stop string, so that a continuation joins byte for byte (searches over reasoning steps).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    logprobs: int = 0
    keep_stop: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an engine wrote (or scored).

    `logprobs` are natural logs of each token under the distribution it was sampled from (temperature, top-k and
    top-p applied); `raw_logprobs` under the model itself. `top_logprobs` lists, per token, (token id, raw log-probability).
    `tokens` excludes the end-of-turn token; `logprobs` of a "stop" finish by that token is in `end_logprob` (raw) and
    the token itself in `end_token`, where an engine knows them.
    `stopped_by` is the stop string that ended the text; None when the turn ended of itself (or was cut, watched, cancelled).
    `guessed`: it was asked which ids were drawn, and that cannot be told; `tokens` are then a reading of the text.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = None
    raw_logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None
    end_logprob: float | None = None
    end_token: int | None = None
    rewards: tuple[float, ...] | None = None  # what a reward model gives instead: one value, or one per step
    finish: Finish = "stop"
    stopped_by: str | None = None
    guessed: bool = False
    sample: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation to answer. The assistant's turn is begun by `opening`, then `prefix`.

    `opening` is the prompter's, and is tokenised together with the prompt. `prefix` is what follows it, in one piece or in
    several, as in `(completion, "Wait", completion)`: a `Completion` is continued by its token ids and a text is tokenised
    on its own, so that no seam is ever tokenised again. Texts that begin a turn without an opening are its opening.

    `cue` asks for a second stage (zero-shot chain-of-thought): after the reasoning, the turn is continued with this
    text and the answer is read from what follows.
    """

    messages: tuple[Message, ...]
    opening: str = ""
    prefix: Completion | str | tuple[Completion | str, ...] | None = None
    cue: str | None = None

    @property
    def pieces(self) -> tuple[Completion | str, ...]:
        """The prefix as pieces in order."""
        if self.prefix is None:
            return ()
        return self.prefix if isinstance(self.prefix, tuple) else (self.prefix,)

    @property
    def begun(self) -> str:
        """The text of the assistant's turn so far."""
        return self.opening + "".join(piece if isinstance(piece, str) else piece.text for piece in self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One generated token, as a `watch` sees it. Returning True ends the trace after this token."""

    sample: int
    index: int  # position in the completion, from 0
    token: int
    logprob: float  # raw
    top_logprobs: tuple[tuple[int, float], ...]  # as many as Sampling.logprobs asks


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of a streamed completion; the last one carries the whole `completion`."""

    text: str
    completion: Completion | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One sampled response with the answer read from it (None: unparsed)."""

    text: str
    answer: str | None
    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a strategy returns: the chosen response, its answer, and everything it chose from."""

    text: str
    answer: str | None
    candidates: tuple[Candidate, ...] = ()
    scores: tuple[float, ...] = ()
    trace: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A verifier's opinion of one text: a value (higher is better) and, from process verifiers, one per step."""

    value: float
    steps: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A judge's preference between `a` and `b`, asked in both orders; disagreement is a tie."""

    winner: Literal["a", "b", "tie"]
    flipped: bool = False  # the two orders disagreed
    probability_a: float | None = None
    said: tuple[Said, ...] = ()  # which of the two shown it preferred, with `a` shown first and with `b` shown first
    p_first: tuple[float, ...] = ()  # the probability of the one shown first, likewise, where the judge gives one
    wrote: tuple[str, ...] = field(default=(), compare=False)  # what it wrote before or as its verdict, likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model on disk: a Hugging Face folder, or a PEFT adapter folder with its `base`."""

    path: Path
    base: str | None = None
    key: str = ""  # content key of the stage that made it
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a data maker learned from its labeller about one question: JSON values, and the texts that it wrote."""

    said: Mapping[str, Any] = field(default_factory=dict)
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One question of a finished evaluation with its graded responses: what data makers choose from."""

    example: Example
    texts: tuple[str, ...]
    scores: tuple[float, ...]  # 1.0 right, 0.0 wrong or unparsed
    finishes: tuple[Finish, ...]
    answers: tuple[str | None, ...]
    chosen: str | None = None  # the response that the strategy settled on
    values: tuple[float | None, ...] = ()  # what the strategy's verifier gave each response; None or empty: nothing
    trace: Mapping[str, Any] = field(default_factory=dict)  # the strategy's own notes
    own: tuple[bool, ...] = ()  # which responses the labeller itself wrote, where a maker has a labeller
    asked: Asked | None = None  # what the labeller said


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Training rows with the counts that say what was kept and what was not.

    `facts` are further figures about the rows (JSON values), as of a labeller's bias; `notes` sentences on them.
    """

    rows: tuple[Mapping[str, Any], ...]
    counts: Mapping[str, int]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
