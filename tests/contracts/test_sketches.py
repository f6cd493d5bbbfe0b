"""The sketches of later methods run on the protocols as they are; mypy checks their types as part of `make test`."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sketches

from posttrain.core.protocols import Engine, Tools
from posttrain.core.types import Checkpoint, Example, Message, Prompt, Sampling
from posttrain.engines.scripted import ScriptedEngine
from posttrain.tasks.extraction import extractor

PROMPT = Prompt(messages=(Message(role="user", content="What is 2 + 2?"),))
EXAMPLE = Example(id="0", question="What is 2 + 2?")


def tools(engine: Engine, **more: Any) -> Tools:
    return Tools(engine=engine, extract=extractor("number"), key=str, sampling=Sampling(max_tokens=16), **more)


def test_beam_search_runs_on_step_scores() -> None:
    engine = ScriptedEngine(lambda text, sample, seed: ["Let me see.", "Answer: 4"][sample % 2])
    found = asyncio.run(
        sketches.BeamSketch()(PROMPT, EXAMPLE, tools(engine, verifiers={"prm": sketches.StepRewardSketch()}), seed=0)
    )
    assert found.answer == "4"


def test_a_watch_ends_traces() -> None:
    engine = ScriptedEngine(
        lambda text, sample, seed: "Answer: 5 5 5 5" if sample == 2 else "so Answer: 4",
        logprobs=lambda text, words: [-0.5 if "5" in "".join(words) else -0.01 for word in words],
    )
    found = asyncio.run(sketches.DeepConfSketch()(PROMPT, EXAMPLE, tools(engine), seed=0))
    assert found.answer == "4"
    assert [c.completion.finish for c in found.candidates] == ["stop", "stop", "watch", "stop"]
    assert len(found.candidates[2].completion.tokens) < 5


def test_a_judge_asks_in_both_orders() -> None:
    better = ScriptedEngine(lambda text, sample, seed: "A" if "A: good" in text else "B")
    biased = ScriptedEngine(lambda text, sample, seed: "A")
    sampling = Sampling(max_tokens=1)
    for engine, winner in ((better, "a"), (biased, "tie")):
        judge = sketches.JudgeSketch(engine=engine, sampling=sampling)
        verdict = asyncio.run(judge(EXAMPLE, "good", "bad"))
        assert (verdict.winner, verdict.flipped) == (winner, winner == "tie")


class Trainable(ScriptedEngine):
    def update(self, weights: Iterable[tuple[str, Any]]) -> None:
        self.fingerprint = "scripted-" + "-".join(name for name, _ in weights)


def test_online_training_rolls_out_and_updates() -> None:
    engine = Trainable(lambda text, sample, seed: f"line one\n{sample}")
    ppo = sketches.PpoSketch(
        engine=engine,  # type: ignore[arg-type]
        verifier=sketches.StepRewardSketch(),
        prompts=[(PROMPT, EXAMPLE)],
        sampling=Sampling(temperature=1.0, max_tokens=8),
    )
    batch = asyncio.run(ppo.rollouts(0, seed=0))
    assert len(batch) == 2
    assert all(
        completion.logprobs is not None and len(completion.logprobs) == len(completion.tokens) for completion, _ in batch
    )
    assert ppo.finish_step([("head", None)]) == "scripted-head"
    assert ppo(Checkpoint(path=Path("a")), [], Path("b"), seed=0).path == Path("b")


def test_a_server_reports_its_own_usage() -> None:
    async def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        choice = {"message": {"content": "4"}, "finish_reason": "length"}
        return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": body["max_tokens"]}}

    server = sketches.ServerSketch(post=post, model="some-model")
    assert isinstance(server, Engine)
    (reply,) = asyncio.run(server.generate(PROMPT, Sampling(max_tokens=1), seed=0))
    assert (reply.finish, reply.usage.prompt, reply.usage.generated) == ("length", 7, 1)
