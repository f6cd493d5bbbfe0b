"""The protocols, tried on what later work fills them with: each sketch is strictly typed and runs on a scripted engine.

They are outlines, not the methods: what they show is that the protocols carry everything those methods need.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from posttrain.core.errors import CapabilityError
from posttrain.core.protocols import Engine, Judge, Strategy, Tools, Trainer, Updatable, Verifier, Watch
from posttrain.core.seeds import derive
from posttrain.core.types import (
    Answer,
    Candidate,
    Checkpoint,
    Completion,
    Delta,
    Example,
    Message,
    ModelShape,
    Prompt,
    Sampling,
    Score,
    TokenEvent,
    Usage,
    Verdict,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSketch:
    """Step beam search: continues token ids, never text; ranks by a process verifier's last step."""

    width: int = 2
    expand: int = 2
    steps: int = 3

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        step = replace(tools.sampling, temperature=1.0, stop=("\n",))
        beams: list[Completion | None] = [None]
        done: list[Completion] = []
        for level in range(self.steps):
            grown: list[Completion] = []
            for index, beam in enumerate(beams):
                drawn = await tools.engine.generate(
                    replace(prompt, prefix=beam), step, seed=derive(seed, level, index), samples=range(self.expand)
                )
                grown += [joined(beam, piece) for piece in drawn]
            scores = await tools.verifiers["prm"](example, [beam.text for beam in grown])
            ranked = sorted(zip(grown, scores, strict=True), key=lambda pair: -(pair[1].steps or (pair[1].value,))[-1])
            beams = [beam for beam, _ in ranked[: self.width]]
            done += [beam for beam in grown if beam.finish == "stop" and tools.extract(beam.text) is not None]
            if done:
                break
        best = (done or [beam for beam in beams if beam is not None])[0]
        return Answer(text=best.text, answer=tools.extract(best.text))


def joined(beam: Completion | None, piece: Completion) -> Completion:
    """Return the beam with its next step."""
    if beam is None:
        return piece
    return replace(piece, text=beam.text + piece.text, tokens=beam.tokens + piece.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepConfSketch:
    """Confidence sampling: a watch per trace ends it when the group confidence falls below the warm-up's threshold."""

    warmup: int = 2
    total: int = 4
    window: int = 2

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        sampling = replace(tools.sampling, temperature=1.0, logprobs=5)
        first = await tools.sample(prompt, sampling, seed=seed, samples=range(self.warmup))
        bar = min(self.confidence(candidate.completion) for candidate in first)
        recent: dict[int, list[float]] = {}

        def watch(event: TokenEvent) -> bool:
            seen = recent.setdefault(event.sample, [])
            seen.append(-sum(logprob for _, logprob in event.top_logprobs) / max(len(event.top_logprobs), 1))
            tail = seen[-self.window :]
            return len(tail) == self.window and sum(tail) / self.window < bar

        rest = await tools.sample(prompt, sampling, seed=seed, samples=range(self.warmup, self.total), watch=watch)
        kept = [candidate for candidate in [*first, *rest] if candidate.completion.finish != "watch"]
        voted = max(kept, key=lambda candidate: sum(same(candidate, other) for other in kept))
        return Answer(text=voted.text, answer=voted.answer, candidates=(*first, *rest))

    def confidence(self, completion: Completion) -> float:
        """Return the lowest window mean of a finished trace."""
        tops = completion.top_logprobs or ()
        means = [-sum(logprob for _, logprob in top) / max(len(top), 1) for top in tops]
        windows = [sum(means[i : i + self.window]) / self.window for i in range(max(len(means) - self.window + 1, 0))]
        return min(windows, default=-math.inf)


def same(a: Candidate, b: Candidate) -> bool:
    """Return whether two parsed answers are equal."""
    return a.answer is not None and a.answer == b.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRewardSketch:
    """A process reward model: one score per non-empty step; aggregation is the caller's."""

    oracle: bool = False

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        scores = []
        for text in texts:
            steps = tuple(1.0 / (1 + len(step)) for step in text.split("\n") if step.strip())
            scores.append(Score(value=min(steps, default=0.0), steps=steps))
        return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSketch:
    """A pairwise judge on an engine, asked in both orders; disagreement is a tie."""

    engine: Engine
    sampling: Sampling

    async def __call__(self, example: Example, a: str, b: str) -> Verdict:
        first = await self.prefers_first(example, a, b)
        second = await self.prefers_first(example, b, a)
        if first == second:
            return Verdict(winner="tie", flipped=True)
        return Verdict(winner="a" if first else "b")

    async def prefers_first(self, example: Example, a: str, b: str) -> bool:
        """Return whether the engine answers A."""
        asked = f"{example.question}\nA: {a}\nB: {b}\nWhich is better, A or B?"
        (reply,) = await self.engine.generate(Prompt(messages=(Message(role="user", content=asked),)), self.sampling, seed=0)
        return reply.text.strip().startswith("A")


class TrainableEngine(Engine, Updatable, Protocol):
    """What online reinforcement learning asks of an engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoSketch:
    """Rollouts through the engine, rewards from a verifier, new weights back into the engine."""

    engine: TrainableEngine
    verifier: Verifier
    prompts: Sequence[tuple[Prompt, Example]]
    sampling: Sampling

    async def rollouts(self, step: int, *, seed: int) -> list[tuple[Completion, float]]:
        """Return sampled completions with their token log-probabilities and rewards."""
        batch: list[tuple[Completion, float]] = []
        for prompt, example in self.prompts:
            drawn = await self.engine.generate(prompt, self.sampling, seed=derive(seed, "rollout", step), samples=range(2))
            scores = await self.verifier(example, [completion.text for completion in drawn])
            batch += [(completion, score.value) for completion, score in zip(drawn, scores, strict=True)]
        return batch

    def finish_step(self, weights: Iterable[tuple[str, Any]]) -> str:
        """Hand the new weights over and return the engine's new fingerprint."""
        self.engine.update(weights)
        return self.engine.fingerprint

    def __call__(self, start: Checkpoint, data: Sequence[Mapping[str, Any]], out: Path, *, seed: int) -> Checkpoint:
        return replace(start, path=out)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSketch:
    """An OpenAI-compatible server as an engine: usage as the server reports it, no scoring, no shape unless told."""

    post: Any  # async (path, json) -> json
    model: str
    can: frozenset[str] = frozenset({"stream"})
    shape: ModelShape | None = None

    @property
    def fingerprint(self) -> str:
        """Name the model as the server does."""
        return f"openai:{self.model}"

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, seed: int, samples: Sequence[int] = (0,), watch: Watch | None = None
    ) -> list[Completion]:
        completions = []
        for sample in samples:
            body = {
                "messages": [message.to_dict() for message in prompt.messages],
                "seed": derive(seed, sample),
                "max_tokens": sampling.max_tokens,
            }
            reply = await self.post("/chat/completions", body)
            usage = Usage(calls=1, prompt=reply["usage"]["prompt_tokens"], generated=reply["usage"]["completion_tokens"])
            choice = reply["choices"][0]
            finish = "length" if choice["finish_reason"] == "length" else "stop"
            completions.append(
                Completion(text=choice["message"]["content"], finish=finish, sample=sample, usage=usage)  # type: ignore[arg-type]
            )
        return completions

    async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
        raise CapabilityError("this server cannot score a given text: use the local engine")

    async def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> AsyncIterator[Delta]:
        (completion,) = await self.generate(prompt, sampling, seed=seed)
        yield Delta(text=completion.text, completion=completion)


def accepted(
    beam: BeamSketch,
    deepconf: DeepConfSketch,
    prm: StepRewardSketch,
    judge: JudgeSketch,
    ppo: PpoSketch,
    server: ServerSketch,
) -> tuple[list[Strategy], Verifier, Judge, Trainer, Engine]:
    """Fail to type-check when a sketch no longer fits its protocol."""
    return [beam, deepconf], prm, judge, ppo, server
