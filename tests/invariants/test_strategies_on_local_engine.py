"""Watched traces and continued thoughts on a real (tiny) model: what the scripted engine cannot show."""

import asyncio
from dataclasses import replace

import torch
from tiny_models import llama, model, tokenizer

from posttrain.core.protocols import Tools
from posttrain.core.specs import build
from posttrain.core.types import Completion, Example, Message, Prompt, Sampling
from posttrain.data.chat import render_prompt
from posttrain.engines.local import LocalEngine
from posttrain.stats.confidence import token_confidence, trace_confidence

torch.set_num_threads(1)
PROMPT = Prompt(messages=(Message(role="user", content="Tell"),))


def engine():
    return LocalEngine(model(llama()).eval(), tokenizer(), fingerprint="tiny", slots=16)


def tools(local):
    return Tools(engine=local, extract=lambda text: text[:1] or None, key=str, sampling=Sampling(max_tokens=30))


def run(spec, given, prompt=PROMPT):
    strategy = build(spec, "posttrain.test_time", "strategy")
    return asyncio.run(strategy(prompt, Example(id="e", question="Tell"), given, seed=5))


def test_watched_traces_are_the_ones_that_offline_would_leave_out():
    given = tools(engine())
    spec = "confidence_sampling:n=20,warmup=6,wave=7,consensus=1,keep=0.5,window=5,k=8,temperature=1.0"
    online = run(spec, given)
    sampling = Sampling(temperature=1.0, max_tokens=30, logprobs=8)
    whole = asyncio.run(given.engine.generate(PROMPT, sampling, seed=5, samples=range(20)))
    lowest = [trace_confidence([token_confidence([p for _, p in top], 8) for top in c.top_logprobs], 5) for c in whole]
    finished = {c.completion.sample: ok for c, ok in zip(online.candidates, online.trace["voted"], strict=True)}
    assert {i for i, ok in finished.items() if ok} == {i for i, low in enumerate(lowest) if low >= online.trace["bar"]}
    assert online.trace["stopped"] >= 3
    for candidate in online.candidates:
        assert candidate.completion.tokens == whole[candidate.completion.sample].tokens


def test_forced_thinking_is_continued_token_by_token():
    local = engine()
    asked = []

    class Noting:
        can, shape, fingerprint = local.can, local.shape, local.fingerprint

        async def generate(self, prompt, sampling, **more):
            made = await local.generate(prompt, sampling, **more)
            asked.append((prompt, made[0]))
            return made

    given = replace(tools(Noting()), extract=lambda text: None)
    found = run("budget_forcing:max_tokens=12,answer_tokens=6,end=null", given)
    assert found.trace["ended"] == "limit"
    (_, thought), (last, reply) = asked
    ids = render_prompt(tokenizer(), PROMPT.messages) + list(thought.tokens) + tokenizer()("\nFinal Answer:")["input_ids"]
    assert render_prompt(tokenizer(), last.messages, prefix=last.prefix) == ids
    assert isinstance(last.pieces[0], Completion)
    assert found.text == f"{thought.text}\nFinal Answer:{reply.text}"
