"""Rollouts: what a step trains on is written by the model in training, with the weights that it has before the step.

A rollout is a pure function of the run's seed, the step, the weights and the prompt. A killed run that goes on from a saved
state has the same weights at the same step and so writes the same again: there is no generator state and no buffer to save.
Rollouts of a step are drawn before it is cut into micro-batches, so they depend neither on these nor on accumulation.
No gradient passes through sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..core.seeds import derive
from ..core.types import Completion, Cost, Message, ModelShape, Prompt, Sampling
from ..data.chat import render_prompt
from ..data.masks import Encoded
from .processes import gathered

__all__ = ["Draw", "Fresh", "FreshItems", "Policy", "Rollout", "indexed", "written_of"]

Asked = Sequence[tuple[Prompt, Sequence[int]]]


class Draw(Protocol):
    """Draws from a model in training (`engines.local.replies.drawn`): the samples with these indices, and the cost.

    `sampling` is one for all, or one for each that is asked.
    """

    def __call__(
        self, model: Any, tokenizer: Any, asked: Asked, sampling: Sampling | Sequence[Sampling], *, seed: int,
        shape: ModelShape,
    ) -> tuple[list[list[Completion]], Cost]: ...  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshItems:
    """What a step trains on in place of its rows, what making it cost, and what the step's line of metrics tells of it.

    `updates` are the items of several optimiser updates, one after the other, in place of `items`. What they need of the
    weights before the first one is in the items already; a state is saved behind the last one, so there is no half-used
    batch to save.
    """

    items: Sequence[Any]
    cost: Cost
    measures: dict[str, float]
    updates: Sequence[Sequence[Any]] = ()


# (the step's rows, the step from 0). One that remembers more than its rows and the weights has `state()`, a JSON object that
# is saved with every state, and `load(state)`.
Fresh = Callable[[Sequence[Any], int], FreshItems]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A sample of the policy. `encoded` are the prompt's ids and all that was drawn, its end too, which are trained.

    In an episode what the environment said stands between the turns, untrained; `completion` is then the last turn, `said`
    are all turns, and `reward` is the environment's own.
    """

    encoded: Encoded
    completion: Completion
    sampler_logps: tuple[float, ...]  # of each trained token, as it was drawn; NaN where the engine does not say
    said: tuple[Message, ...] = ()
    reward: float = 0.0
    full: bool = False  # there was no room for the environment's answer or for a turn after it

    @property
    def guessed(self) -> bool:
        """Whether it is not known which tokens were drawn: such a sample is rewarded and counted, and never trained on."""
        return self.completion.guessed

    def skipped(self, *, drop_cut: bool) -> bool:
        """Whether nothing is learned from it; with `drop_cut` nothing is from what the limit ended."""
        return self.guessed or (drop_cut and self.cut)

    @property
    def cut(self) -> bool:
        """Whether it was ended by the limit of tokens."""
        return self.completion.finish == "length" or self.full

    @property
    def words(self) -> tuple[str, ...]:
        """All that was said, to tell samples apart."""
        return tuple(message.content for message in self.said) or (self.completion.text,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The model in training, to be asked for samples of its own."""

    draw: Draw
    model: Any
    tokenizer: Any
    shape: ModelShape
    sampling: Sampling
    seed: int

    def rollouts(self, prompts: Sequence[Prompt], *, step: int, samples: int = 1) -> tuple[list[list[Rollout]], Cost]:
        """Return `samples` rollouts of each prompt of a step, and their cost; equal prompts get different samples.

        Several processes draw a share each and have all of them in the end.
        """

        def own(asked: Asked) -> tuple[list[list[Rollout]], Cost]:
            found, cost = self.drawn(asked, self.sampling, seed=self.seed_of(step))
            return self.read([prompt for prompt, _ in asked], found), cost

        return gathered(indexed(prompts, samples), own)

    def seed_of(self, step: int) -> int:
        """Return the seed of a step's rollouts."""
        return derive(self.seed, "rollouts", step)

    def read(self, prompts: Sequence[Prompt], found: Sequence[Sequence[Completion]]) -> list[list[Rollout]]:
        """Return what was drawn for each prompt as rollouts."""
        return [
            [self._rollout(prompt, completion) for completion in completions]
            for prompt, completions in zip(prompts, found, strict=True)
        ]

    def drawn(
        self, asked: Asked, sampling: Sampling | Sequence[Sampling], *, seed: int
    ) -> tuple[list[list[Completion]], Cost]:
        """Return the samples with these indices of each prompt, and the cost: of this process alone."""
        return self.draw(self.model, self.tokenizer, asked, sampling, seed=seed, shape=self.shape)

    def _rollout(self, prompt: Prompt, completion: Completion) -> Rollout:
        asked = render_prompt(self.tokenizer, prompt.messages, opening=prompt.opening, prefix=prompt.prefix)
        written, logps = written_of(completion, temperature=self.sampling.temperature)
        return Rollout(
            encoded=Encoded([*asked, *written], [False] * len(asked) + [True] * len(written)), completion=completion,
            sampler_logps=logps,
        )  # fmt: skip


def indexed(prompts: Sequence[Prompt], samples: int) -> list[tuple[Prompt, Sequence[int]]]:
    """Return each prompt with the indices of its samples; equal prompts get different ones."""
    drawn_before: dict[Prompt, int] = {}
    asked: list[tuple[Prompt, Sequence[int]]] = []
    for prompt in prompts:
        first = drawn_before.get(prompt, 0)
        asked.append((prompt, range(first, first + samples)))
        drawn_before[prompt] = first + samples
    return asked


def written_of(completion: Completion, *, temperature: float) -> tuple[list[int], tuple[float, ...]]:
    """Return the tokens that a completion wrote, its end too, and log μ of each as it was drawn (NaN: unknown)."""
    end = [] if completion.end_token is None else [completion.end_token]
    written = [*completion.tokens, *end]
    known = completion.logprobs or ()
    if end:  # of which the engine tells the raw probability alone
        told = completion.end_logprob if temperature == 1 else None
        known += (math.nan if told is None else told,)
    return written, known if len(known) == len(written) else (math.nan,) * len(written)
