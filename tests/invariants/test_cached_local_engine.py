"""The cache in front of the local engine: what is replayed is what the engine gives, watched, stopped or continued."""

import asyncio
import dataclasses
from dataclasses import replace

import pytest
import torch
from tiny_models import llama, model, tokenizer

from posttrain.core.types import Message, Prompt, Sampling
from posttrain.engines.cache import Cached
from posttrain.engines.generations import Generations
from posttrain.engines.local import LocalEngine

torch.set_num_threads(1)

ASK = Prompt(messages=(Message(role="user", content="q"),))
HOT = Sampling(temperature=1.0, max_tokens=30, logprobs=2)


@pytest.fixture(scope="module")
def engine():
    return LocalEngine(model(llama()), tokenizer(), fingerprint="tiny")


@pytest.fixture
def cached(engine, tmp_path):
    with Generations(tmp_path / "kept.sqlite") as kept:
        yield Cached(engine, kept)


def draw(engine, sampling=HOT, prompt=ASK, **more):
    drawn = asyncio.run(engine.generate(prompt, sampling, seed=5, **({"samples": range(3)} | more)))
    return [near(replace(c, usage=replace(c.usage, cached=0, replayed=0))) for c in drawn]


class Near(float):
    """A log-probability: its last digits depend on how many rows the engine computes together."""

    def __eq__(self, other):
        return abs(self - other) < 1e-4

    __hash__ = None


def near(value):
    if isinstance(value, float):
        return Near(value)
    if dataclasses.is_dataclass(value):
        return replace(value, **{f.name: near(getattr(value, f.name)) for f in dataclasses.fields(value)})
    return tuple(near(part) for part in value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("end", range(0, 30, 3))
def test_a_trace_cut_in_the_cache_is_the_trace_cut_in_the_engine(engine, cached, end):
    draw(cached)
    hits = draw(cached, watch=lambda event: event.index == end + event.sample)
    assert hits == draw(engine, watch=lambda event: event.index == end + event.sample)
    (spent,) = asyncio.run(cached.generate(ASK, HOT, seed=5, watch=lambda event: event.index == end))
    assert spent.usage.tokens_spent == 0


@pytest.mark.parametrize("keep", [False, True])
def test_stopped_and_watched(engine, cached, keep):
    (whole,) = draw(engine, samples=(0,))
    stop = next(whole.text[i] for i in range(8, len(whole.text)) if whole.text[i].isascii())
    sampling = replace(HOT, stop=(stop,), keep_stop=keep)
    assert draw(cached, sampling) == draw(engine, sampling)
    for end in (2, 5, 50):
        assert draw(cached, sampling, watch=lambda event: event.index == end) == draw(  # noqa: B023
            engine,
            sampling,
            watch=lambda event: event.index == end,  # noqa: B023
        )


def test_a_text_and_its_tokens_are_one_prompt_to_the_engine_and_so_to_the_cache(engine, cached):
    (begun,) = draw(cached, replace(HOT, max_tokens=6), samples=(0,))
    by_ids = replace(ASK, prefix=begun)
    first = draw(cached, prompt=by_ids)
    assert first == draw(engine, prompt=by_ids)
    again = asyncio.run(cached.generate(by_ids, HOT, seed=5, samples=range(3)))
    assert all(c.usage.tokens_spent == 0 for c in again)


def test_new_weights_are_another_pool(tmp_path):
    engine = LocalEngine(model(llama()), tokenizer(), fingerprint="tiny")
    with Generations(tmp_path / "kept.sqlite") as kept:
        cached = Cached(engine, kept)
        before = draw(cached)
        other = model(llama(), seed=1).state_dict()
        cached.update(other.items())
        after = draw(cached)
        assert [c.text for c in after] != [c.text for c in before]
        assert after == draw(LocalEngine(model(llama(), seed=1), tokenizer(), fingerprint="other"))
        assert len(kept) == 6
