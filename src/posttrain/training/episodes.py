"""Episodes: the model and an environment take turns, and only what the model wrote is trained.

A turn continues the token ids of the turns before it, never their text: what is trained is exactly what was drawn. What the
environment says is written by the chat template: of the conversation with a sentinel in place of the model's turn, all that
stands behind the sentinel. Its tokens are in the context of later turns and have no loss, no advantage and no value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ..core.environment import Environment, Observation
from ..core.seeds import derive
from ..core.types import Completion, Cost, Example, Message, Prompt
from ..data.chat import render_prompt
from ..data.masks import Encoded, ids_of_answer
from .processes import gathered
from .rollouts import Policy, Rollout, indexed, written_of

__all__ = ["Episodes"]


@dataclass(slots=True, kw_only=True)
class _Open:
    """An episode that is being played."""

    prompt: Prompt
    example: Example
    sample: int
    ids: list[int]
    mask: list[bool]
    begun: int  # tokens of the prompt
    left: int  # tokens that may still follow
    logps: tuple[float, ...] = ()
    said: tuple[Message, ...] = ()
    last: Completion | None = None
    reward: float = 0.0
    over: bool = False
    full: bool = False

    @property
    def so_far(self) -> Prompt:
        """The prompt with all that followed it, by its ids."""
        if not self.said:
            return self.prompt
        followed = Completion(text="".join(message.content for message in self.said), tokens=tuple(self.ids[self.begun :]))
        return replace(self.prompt, prefix=(*self.prompt.pieces, followed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """Plays episodes with a policy.

    `turns` is the most that the model writes. The policy's `max_tokens` bounds all that follows a prompt, the environment's
    words among it: an episode that has no room for these, or for a turn behind them, ends there and counts as cut.
    """

    policy: Policy
    environment: Environment
    turns: int
    spent: Callable[[], Cost] = Cost  # what the environment's own verifiers have cost so far

    def rollouts(
        self, prompts: Sequence[Prompt], examples: Sequence[Example], *, step: int, samples: int
    ) -> tuple[list[list[Rollout]], Cost]:
        """Return `samples` episodes of each prompt of a step, and their cost; as `Policy.rollouts` otherwise."""
        asked = [(prompt, e, indices) for (prompt, indices), e in zip(indexed(prompts, samples), examples, strict=True)]

        def own(share: Sequence[tuple[Prompt, Example, Sequence[int]]]) -> tuple[list[list[Rollout]], Cost]:
            episodes = [[self._begun(prompt, e, k) for k in indices] for prompt, e, indices in share]
            before = self.spent()
            cost = self._play([episode for each in episodes for episode in each], step)
            cost += self.spent() - before
            return [[self._rollout(episode) for episode in each] for each in episodes], cost

        return gathered(asked, own)

    def _begun(self, prompt: Prompt, example: Example, sample: int) -> _Open:
        ids = render_prompt(self.policy.tokenizer, prompt.messages, opening=prompt.opening, prefix=prompt.prefix)
        return _Open(
            prompt=prompt, example=example, sample=sample, ids=ids, mask=[False] * len(ids),
            left=self.policy.sampling.max_tokens, begun=len(ids),
        )  # fmt: skip

    def _play(self, episodes: Sequence[_Open], step: int) -> Cost:
        cost, playing = Cost(), list(episodes)
        for turn in range(self.turns):
            if not playing:
                break
            asked = [(e.so_far, [e.sample]) for e in playing]
            samplings = [replace(self.policy.sampling, max_tokens=e.left) for e in playing]
            seed = derive(self.policy.seed, "rollouts", step, turn)
            found, spent = self.policy.drawn(asked, samplings, seed=seed)
            cost += spent
            for episode, (completion,) in zip(playing, found, strict=True):
                self._write(episode, completion)
            whole = [e for e in playing if e.last is not None and e.last.finish != "length"]
            for episode, observation in zip(whole, self._observed(whole), strict=True):
                episode.reward += observation.reward
                episode.over = not observation.messages
                if observation.messages and turn + 1 < self.turns:
                    self._hear(episode, observation.messages)
            playing = [e for e in whole if not e.over and not e.full]
        return cost

    def _observed(self, episodes: Sequence[_Open]) -> list[Observation]:
        async def all_of_them() -> list[Observation]:
            return list(await asyncio.gather(*(self.environment(e.example.public(), e.said) for e in episodes)))

        with ThreadPoolExecutor(1) as thread:  # an event loop of its own: there may be one here already
            return thread.submit(asyncio.run, all_of_them()).result()

    def _write(self, episode: _Open, completion: Completion) -> None:
        written, logps = written_of(completion, temperature=self.policy.sampling.temperature)
        opening = episode.prompt.begun if not episode.said else ""
        episode.ids += written
        episode.mask += [True] * len(written)
        episode.left -= len(written)
        episode.logps += logps
        episode.last = completion
        episode.said += (Message(role="assistant", content=opening + completion.text),)

    def _hear(self, episode: _Open, messages: Sequence[Message]) -> None:
        """Put what the environment said behind the model's turn, up to where the model's next one begins."""
        assert episode.last is not None
        heard = ids_of_answer(
            self.policy.tokenizer, [*episode.prompt.messages, *episode.said], messages,
            ended=episode.last.end_token is not None,
        )  # fmt: skip
        if len(heard) >= episode.left:
            episode.full = True
            return
        episode.ids += heard
        episode.mask += [False] * len(heard)
        episode.left -= len(heard)
        episode.said += tuple(messages)

    def _rollout(self, episode: _Open) -> Rollout:
        assert episode.last is not None
        return Rollout(
            encoded=Encoded(episode.ids, episode.mask), completion=episode.last, sampler_logps=episode.logps,
            said=episode.said, reward=episode.reward, full=episode.full,
        )  # fmt: skip
