"""Rollouts that a server writes, with the weights in training: saved as a folder, taken by the server, then asked for.

Process 0 alone saves and asks; the others wait for what it found. With `overlap` the rollouts of step t + 1 are asked for
in a thread, with the weights before step t's update, while step t trains:

    step 0   save W₀, draw step 0 and begin to draw step 1           step t   take what was drawn with W_{t−1}, save W_t,
                                                                              begin to draw step t + 1

So what step t trains on is a function of seed, step and the weights before step t − 1. A resumed run has those before step
t: what was drawn for it is saved with the state, complete (`state` waits for it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..core.errors import CapabilityError, ConfigError, TrainingError
from ..core.types import Completion, Cost, Prompt, Usage
from ..data.chat import end_ids
from ..engines.openai import Server, ServerPolicy, read_server
from ..models.adapters import unmerged
from ..training.batching import step_rows, steps_per_epoch
from ..training.processes import by_first_process, rank_and_world
from ..training.published import publish, withdraw
from ..training.rollouts import Policy, Rollout, indexed
from ..training.state import cost_from_dict

__all__ = ["RolloutServer", "check_server", "following", "identified_server", "server_of"]

Q = TypeVar("Q")
Drawn = tuple[list[list[Completion]], Cost]


class _Asks(Protocol):
    """The settings that speak of a server."""

    @property
    def rollout_server(self) -> str: ...
    @property
    def environment(self) -> str: ...
    @property
    def adapter(self) -> str: ...
    @property
    def rollout_temperature(self) -> float: ...
    @property
    def overlap(self) -> int: ...
    @property
    def truncate(self) -> float: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...


def check_server(method: _Asks, name: str) -> None:
    """Raise `ConfigError` for settings of rollouts from a server that cannot be."""
    if method.overlap not in (0, 1):
        raise ConfigError(f"{name}: overlap = {method.overlap} must be 0 or 1: the steps that rollouts are drawn ahead")
    if method.overlap and not method.rollout_server:
        raise ConfigError(
            f"{name}: overlap needs rollout_server: rollouts in this process would wait for the training all the same"
        )
    if method.overlap and not method.truncate:
        raise ConfigError(
            f"{name}: overlap trains on samples of the weights of a step before: set truncate (2, say), which weighs tokens "
            "by how likely they are now against then"
        )
    if not method.rollout_server:
        return
    server_of(method.rollout_server, name)
    if method.truncate and method.rollout_temperature != 1:
        raise ConfigError(
            f"{name}: truncate weighs tokens by what the server says of them, and that is known at rollout_temperature=1 "
            f"alone, not at {method.rollout_temperature}"
        )
    if method.environment:
        raise ConfigError(
            f"{name}: environment continues what was sampled by its token ids, which a server tokenises anew: leave "
            "rollout_server out"
        )
    if method.adapter in ("prefix", "prompt", "bottleneck", "qlora"):
        raise ConfigError(
            f"{name}: adapter={method.adapter} is no change of a model's weights that a server could take: leave "
            "rollout_server out, or take adapter=lora"
        )


def server_of(ref: str, name: str) -> Server:
    """Return the server that a setting names; raises `ConfigError` when it is none, or one that takes no weights."""
    if ref.partition(":")[0] != "openai":
        raise ConfigError(f"{name}: rollout_server = '{ref}' is no server: write openai:NAME,url=…,update=vllm, for example")
    server = read_server(ref)
    if not server.update:
        raise ConfigError(
            f"{name}: rollout_server = '{ref}' does not say how it takes new weights: add update=model_name, update=sglang "
            "or update=vllm"
        )
    return server


def identified_server(ref: str) -> str:
    """Return what of a server decides a result: not where it is, but what is added to requests."""
    return ":".join(["openai", *filter(None, [read_server(ref).extra])])


def following(questions: Sequence[Q], step: int, method: _Asks, *, seed: int) -> list[Q]:
    """Return what the step after this one asks; nothing after the last."""
    if step + 1 >= method.epochs * steps_per_epoch(len(questions), method.batch_size):
        return []
    return [questions[i] for i in step_rows(step + 1, rows=len(questions), batch_size=method.batch_size, seed=seed)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ahead:
    """What was asked for before its step came."""

    step: int
    drawn: Future[Drawn]


class RolloutServer:
    """Draws a step's rollouts through a server.

    Args:
        server: which one.
        model, tokenizer: the model in training.
        policy: what asks the server.
        out: the run's folder, below which weights are published.
        needs_logprobs: the loss weighs by what the server says of its tokens.
    """

    def __init__(self, *, server: ServerPolicy, model: Any, tokenizer: Any, out: Path, needs_logprobs: bool) -> None:
        self._server = server
        self._model = model
        self._tokenizer = tokenizer
        self._out = out
        self._needs_logprobs = needs_logprobs
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: _Ahead | None = None

    @classmethod
    def open(cls, ref: str, name: str, policy: Policy, *, out: Path, needs_logprobs: bool) -> RolloutServer:
        """Return one for a policy; nothing is asked yet."""
        model, tokenizer = policy.model, policy.tokenizer
        if kind := unmerged(model):  # of a start with an adapter of its own
            raise ConfigError(f"{name}: no server can take the model's {kind} adapter: leave rollout_server out")
        server = ServerPolicy(server_of(ref, name), tokenizer, ends=end_ids(model, tokenizer), shape=policy.shape)
        return cls(server=server, model=model, tokenizer=tokenizer, out=out, needs_logprobs=needs_logprobs)

    def rollouts(
        self, policy: Policy, prompts: Sequence[Prompt], *, step: int, samples: int, again: bool = False,
        following: Sequence[Prompt] = (),
    ) -> tuple[list[list[Rollout]], Cost]:  # fmt: skip
        """Return a step's rollouts and their cost; afterwards those of `following`, the next step's prompts, are under way.

        `again`: the step has asked before, and its weights are known to the server.
        """
        ahead = self._ahead if self._ahead is not None and self._ahead.step == step else None
        self._ahead = None

        def work() -> Drawn:
            found = None if ahead is None else ahead.drawn.result()
            if not again and (found is None or following):
                self._publish(step)
            found = found or self._asked(policy, prompts, step, samples)()
            if following:
                self._begin(self._asked(policy, following, step + 1, samples), step + 1)
            return found

        found, cost = by_first_process(work)
        rollouts = policy.read(prompts, found)
        _check_known(rollouts)
        return rollouts, cost

    def state(self) -> dict[str, Any]:
        """Return what was drawn for the next step, as JSON can hold it; waits until all of it is there."""
        if self._ahead is None:
            return {}
        found, cost = self._ahead.drawn.result()
        return {
            "step": self._ahead.step, "cost": asdict(cost),
            "drawn": [[asdict(completion) for completion in completions] for completions in found],
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with what was drawn before a kill."""
        if not state:
            return
        drawn: Future[Drawn] = Future()
        found = [[_completion(values) for values in completions] for completions in state["drawn"]]
        drawn.set_result((found, cost_from_dict(state["cost"])))
        self._ahead = _Ahead(step=state["step"], drawn=drawn)

    def close(self) -> None:
        """Wait for what is under way, and remove the published weights."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        if rank_and_world()[0] == 0:
            withdraw(self._out)

    def _publish(self, step: int) -> None:
        folder = publish(self._model, self._tokenizer, self._out, step=step, end=self._server.end)
        self._server.update_from(folder)
        withdraw(self._out, but=folder)
        if self._needs_logprobs and "logprobs" not in self._server.engine.can:
            raise CapabilityError(
                "truncate weighs tokens by the log-probabilities of who sampled them, and this server tells none: leave "
                "truncate (and overlap) out, or take a server that does (vLLM, SGLang)"
            )

    def _asked(self, policy: Policy, prompts: Sequence[Prompt], step: int, samples: int) -> Callable[[], Drawn]:
        asked, seed = indexed(prompts, samples), policy.seed_of(step)
        return lambda: self._server.draw(asked, policy.sampling, seed=seed)

    def _begin(self, ask: Callable[[], Drawn], step: int) -> None:
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._ahead = _Ahead(step=step, drawn=self._thread.submit(ask))


def _check_known(rollouts: Sequence[Sequence[Rollout]]) -> None:
    """Raise `TrainingError` when of most samples it cannot be told which tokens were drawn."""
    every = [rollout for each in rollouts for rollout in each]
    guessed = sum(rollout.guessed for rollout in every)
    if 2 * guessed > len(every):
        raise TrainingError(
            f"of {guessed} of {len(every)} replies it cannot be told which tokens the server drew, so they cannot be "
            "trained on: take a server that tells token ids (vLLM, update=vllm) or leave rollout_server out"
        )


def _completion(values: Mapping[str, Any]) -> Completion:
    """Rebuild a completion from `dataclasses.asdict` and JSON."""
    told: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Completion(**{**told, "top_logprobs": None, "usage": Usage(**told["usage"])})  # none were asked for
