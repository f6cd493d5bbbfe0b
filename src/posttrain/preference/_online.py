"""What online methods share: their settings, how rows are read as questions, and how a step's samples are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch

from ..core.environment import Environment
from ..core.errors import ConfigError, DataError
from ..core.files import file_hash
from ..core.protocols import Task
from ..core.seeds import rng
from ..core.types import Cost, Example, Prompt, Sampling
from ..data.chat import render_prompt
from ..data.examples import example_of
from ..data.question_rows import read_question
from ..engines.local.replies import drawn
from ..environments.build import build_environment, check_environment, files_of, verifiers_of
from ..losses.kl import Estimator
from ..tasks.registry import load_task
from ..training.episodes import Episodes
from ..training.opening import messages_of
from ..training.rollouts import Policy, Rollout
from ..training.rows import fits
from ..training.session import Session
from ..training.settings import TrainerSettings
from ..verifiers.build import weighted
from ._batch import Batch, Question
from ._rewards import AsAsked, Rewarded, Rewards, identified, overlong_punishment
from ._rollout_log import RolloutLog
from ._rollout_server import RolloutServer, check_server, following, identified_server

__all__ = ["OnlineSettings", "Sampler", "check_online", "identity", "questions_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineSettings(TrainerSettings):
    """How samples are drawn and rewarded; a method repeats only what has another default there."""

    asks: ClassVar[bool] = True  # rows are questions, and are kept as they are on the way here

    rewards: tuple[str, ...] = ("exact",)  # verifiers, `weight*spec` each
    watched: tuple[str, ...] = ()  # verifiers that are told and do not count
    eval_by: str = "reward"  # what decides the best step on held-out questions: reward, or one of the verifiers above
    task: str = ""  # reads and grades answers; in a recipe, the stage's
    task_data: str | None = None  # its rows, where it has any
    environment: str = ""  # what answers the model's turns inside a sample; "": a sample is one reply
    turns: int = 4  # of the model in a sample, at most; with an environment
    rollout_tokens: int = 256  # of a sample, at most; the environment's words among them
    rollout_temperature: float = 1.0
    rollout_server: str = ""  # `openai:…` with update=: who draws the samples; "": this process
    overlap: int = 0  # steps that a server draws samples ahead, while the model trains: 0 or 1
    truncate: float = 0.0  # cap of the importance weight against the engine that sampled; 0: no weight
    show_rollouts: int = 1  # questions of each step whose samples are written to `rollouts.jsonl`
    overlong: int = 0  # tokens before the limit from which on length is punished; 0: it is not
    drop_cut: bool = False  # learn nothing from samples that the limit ended
    kl: float = 0.0  # β of KL(π ‖ start)
    kl_estimator: Estimator = "k3"
    minibatches: int = 1  # optimiser updates that a step's samples are shared out to
    iterations: int = 1  # times that all of them are gone through


def check_online(method: OnlineSettings, name: str) -> None:
    """Raise `ConfigError` for settings that cannot be."""
    check_server(method, name)
    least_of = {
        "rollout_tokens": 1, "overlong": 0, "minibatches": 1, "iterations": 1, "kl": 0, "show_rollouts": 0, "truncate": 0,
    }  # fmt: skip
    for field, least in least_of.items():
        if getattr(method, field) < least:
            raise ConfigError(f"{name}: {field} = {getattr(method, field)} must be at least {least}")
    if not method.rollout_temperature > 0:
        raise ConfigError(
            f"{name}: rollout_temperature = {method.rollout_temperature} must be positive: greedy replies to one prompt are "
            "all the same"
        )
    if method.overlong >= method.rollout_tokens:
        raise ConfigError(
            f"{name}: overlong = {method.overlong} tokens before a limit of rollout_tokens = {method.rollout_tokens} leaves "
            "no length that is not punished"
        )
    if method.minibatches > method.batch_size:
        raise ConfigError(
            f"{name}: minibatches = {method.minibatches} are more than batch_size = {method.batch_size} prompts: lower it"
        )
    if method.environment:
        check_environment(method.environment)
        if method.turns < 1:
            raise ConfigError(f"{name}: turns = {method.turns} must be at least 1")
    for spec in method.rewards:
        weighted(spec)
    for spec in method.watched:
        if weighted(spec)[1] != spec.strip():
            raise ConfigError(f"{name}: watched = '{spec}' has a weight, but what is watched does not count: leave it out")
    if not method.task:
        raise ConfigError(
            f"{name}: no task: set task= to what reads and grades the answers (gsm8k, reasoning_gym/…, a YAML file); in a "
            "recipe it is the recipe's own"
        )


def identity(method: OnlineSettings) -> OnlineSettings:
    """Return the settings as they decide the result: models by their content, not by where they lie."""
    environment = method.environment
    known = environment and " ".join(
        [environment, *map(file_hash, files_of(environment)), *identified(verifiers_of(environment))]
    )
    return replace(
        method, rewards=identified(method.rewards), watched=identified(method.watched), environment=known,
        rollout_server=method.rollout_server and identified_server(method.rollout_server),
    )  # fmt: skip


def questions_of(session: Session, method: OnlineSettings) -> tuple[list[Question], int]:
    """Return the rows as questions, and how many are left out because no sample would fit behind them."""
    tokenizer, limit = session.opened.loaded.tokenizer, method.max_length or session.context
    found = []
    for i, row in enumerate(session.rows):
        where = session.where(i)
        if "prompt" not in row:
            raise DataError(f"{where}: no 'prompt'; the maker `questions` makes such rows, found {', '.join(sorted(row))}")
        read = read_question(row, where)
        prompt = Prompt(messages=read.prompt, opening=read.opening)
        tokens = len(render_prompt(tokenizer, prompt.messages, opening=prompt.opening))
        example = replace(_example(row, where), id=str(i), messages=prompt.messages)  # what verifiers see is what was asked
        asked = Question(row=i, prompt=prompt, example=example, tokens=tokens, only=tuple(row.get("rewards") or ()))
        if fits(tokens + method.rollout_tokens, limit, too_long=method.too_long, where=f"{where} with its rollout_tokens"):
            found.append(asked)
    if not found:
        raise DataError("there is nothing to train on: no question is left")
    return found, len(session.rows) - len(found)


def _example(row: Mapping[str, Any], where: str) -> Example:
    """Return a row's example; one without has its prompt as the question, and its `answer` if there is one."""
    if "example" in row:
        return example_of(row, where)
    asked, answer = row["prompt"], row.get("answer")
    return Example(
        id=where, question=asked if isinstance(asked, str) else "", answer=None if answer is None else str(answer),
        messages=() if isinstance(asked, str) else tuple(messages_of(asked, where)),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Asks the policy and the verifiers."""

    method: OnlineSettings
    asked: Sequence[Question]  # those that are trained on, of which a step's are dealt out
    policy: Policy
    rewards: Rewards
    samples: int  # of each question
    log: RolloutLog
    environment: Environment | None = None
    server: RolloutServer | None = None

    @classmethod
    def open(cls, session: Session, method: OnlineSettings, questions: Sequence[Question], *, samples: int) -> Sampler:
        """Open the task and the rewards; the policy is the model in training."""
        opened = session.opened
        task = load_task(method.task, data=method.task_data, seed=session.seed)
        golds = {question.example.id: question.example for question in questions}
        policy = Policy(
            draw=drawn, model=opened.model, tokenizer=opened.loaded.tokenizer, shape=opened.loaded.shape, seed=session.seed,
            sampling=Sampling(temperature=method.rollout_temperature, max_tokens=method.rollout_tokens),
        )  # fmt: skip
        rewards = Rewards.open(method.rewards, task=cast(Task, AsAsked(task)), golds=golds, watched=method.watched)
        for question in questions:
            rewards.check(question.only, session.where(question.row))
        environment = None
        if method.environment:
            environment = build_environment(method.environment, verifier=rewards.verifier, golds=golds)
        server = None
        if method.rollout_server:
            name, weighs = type(method).__name__.lower(), bool(method.truncate)
            server = RolloutServer.open(method.rollout_server, name, policy, out=session.out, needs_logprobs=weighs)
        return cls(
            method=method, policy=policy, rewards=rewards, samples=samples, environment=environment, server=server,
            log=RolloutLog(path=session.out / "rollouts.jsonl", questions=method.show_rollouts),
            asked=[question for question in questions if question.row not in session.held],
        )  # fmt: skip

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Have a server's weights removed in the end, what is still asked of it awaited, and the log closed."""
        try:
            yield
        finally:
            self.log.close()
            if self.server is not None:
                self.server.close()

    def state(self) -> dict[str, Any]:
        """Return what a saved state must hold beside the weights: a server's samples for the next step."""
        return {} if self.server is None else self.server.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        if self.server is not None:
            self.server.load(state)

    def __call__(self, questions: Sequence[Question], *, step: int, attempt: int = 0) -> Batch:
        """Return the samples of a step and what they are worth; a further `attempt` of the step draws others.

        With `overlap` a server draws those of the following step's questions meanwhile.
        """
        policy = self.policy if not attempt else replace(self.policy, seed=rng(self.policy.seed, attempt).getrandbits(60))
        rollouts, cost = self._drawn(policy, questions, step, again=attempt > 0)
        worth: Rewarded = self.rewards(
            [question.example for question in questions], [[r.completion.text for r in each] for each in rollouts],
            [question.row for question in questions], [question.only for question in questions],
        )  # fmt: skip
        rewards_PK, given = worth.total_PK, worth.values
        if self.environment is not None:
            own_PK = torch.tensor([[r.reward for r in each] for each in rollouts], dtype=torch.double)
            rewards_PK, given = rewards_PK + own_PK, {**given, "reward_environment": own_PK}
        if self.method.overlong:
            rewards_PK = rewards_PK + overlong_punishment(
                torch.tensor([[r.encoded.trained for r in each] for each in rollouts]), limit=self.method.rollout_tokens,
                zone=self.method.overlong,
            )  # fmt: skip
        return Batch(questions=questions, rollouts=rollouts, rewards_PK=rewards_PK, given=given, cost=cost + worth.cost)

    def _drawn(
        self, policy: Policy, questions: Sequence[Question], step: int, *, again: bool
    ) -> tuple[list[list[Rollout]], Cost]:
        prompts = [question.prompt for question in questions]
        if self.server is not None:
            coming = following(self.asked, step, self.method, seed=self.policy.seed) if self.method.overlap else ()
            ahead = [question.prompt for question in coming]
            return self.server.rollouts(policy, prompts, step=step, samples=self.samples, again=again, following=ahead)
        if self.environment is None:
            return policy.rollouts(prompts, step=step, samples=self.samples)
        episodes = Episodes(
            policy=policy, environment=self.environment, turns=self.method.turns,
            spent=lambda: self.rewards.account.total,
        )  # fmt: skip
        examples = [question.example for question in questions]
        return episodes.rollouts(prompts, examples, step=step, samples=self.samples)
