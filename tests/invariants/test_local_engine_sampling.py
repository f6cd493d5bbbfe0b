"""What is drawn depends on (seed, prompt, sample index, position) alone, and has the distribution that was asked for."""

import asyncio

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from tiny_models import llama, model, tokenizer

from posttrain.core.errors import ConfigError
from posttrain.core.types import Message, Prompt, Sampling
from posttrain.engines.local import LocalEngine
from posttrain.engines.local.sampler import choose, stream_key, uniforms

torch.set_num_threads(1)

HOT = Sampling(temperature=1.0, max_tokens=16)


def ask(text):
    return Prompt(messages=(Message(role="user", content=text),))


def engine(**options):
    return LocalEngine(model(llama()), tokenizer(), fingerprint="x", **options)


def draw(local, *calls, sampling=HOT, seed=5):
    """Concurrent calls (question, samples); returns tokens by call."""

    async def go():
        return await asyncio.gather(*[local.generate(ask(q), sampling, seed=seed, samples=s) for q, s in calls])

    return [[c.tokens for c in completions] for completions in asyncio.run(go())]


def test_a_sample_is_the_same_however_it_is_asked_for():
    (pool,) = draw(engine(), ("q", range(12)))
    assert len(set(pool)) == 12  # samples differ
    (four,) = draw(engine(), ("q", range(4)))
    assert four == pool[:4]
    (later,) = draw(engine(), ("q", range(4, 8)))
    assert later == pool[4:8]
    crowd = draw(engine(slots=5), ("other", range(7)), ("q", [11, 2]), ("a much longer question than that", [0]))
    assert crowd[1] == [pool[11], pool[2]]
    one_slot = engine(slots=1, prefix_reuse=False)
    assert draw(one_slot, ("q", range(3)))[0] == pool[:3]
    warm = engine()
    draw(warm, ("q", range(4)), ("qq", range(4)))
    assert draw(warm, ("q", range(12)))[0] == pool


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.7, top_p=0.9, max_tokens=12), Sampling(temperature=1.3, top_k=20, max_tokens=12)]
)
def test_filters_are_as_invariant(sampling):
    (pool,) = draw(engine(), ("q", range(6)), sampling=sampling)
    (single,) = draw(engine(slots=2), ("q", [5]), sampling=sampling)
    assert single == pool[5:]


def test_seed_prompt_and_index_all_matter():
    local = engine()
    base = draw(local, ("q", [0]))[0]
    assert draw(local, ("q", [0]))[0] == base
    assert draw(local, ("q", [0]), seed=6)[0] != base
    assert draw(local, ("q", [1]))[0] != base


def test_uniforms_are_uniform_and_independent_of_the_batch():
    keys = np.array([stream_key(0, [1, 2, 3], i) for i in range(200)], dtype=np.uint64)
    grid = np.stack([uniforms(keys, np.full(200, t)) for t in range(100)])
    assert grid.min() >= 0
    assert grid.max() < 1
    assert kstest(grid.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.03  # consecutive positions
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.03  # consecutive samples
    assert uniforms(keys[7:8], np.array([33]))[0] == grid[33, 7]


def expected_distribution(logits, sampling):
    """By the definition, in float64: temperature, then the k likeliest, then the smallest set with mass top_p."""
    scaled = logits.double() / sampling.temperature
    order = scaled.argsort(descending=True)
    probs = torch.zeros_like(scaled)
    kept = order[: sampling.top_k or len(order)]
    inside = scaled[kept].softmax(-1)
    n = int((inside.cumsum(-1) - inside < sampling.top_p).sum())
    probs[kept[:n]] = inside[:n] / inside[:n].sum()
    return probs.numpy()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5),
        Sampling(temperature=1.7, top_k=7),
        Sampling(temperature=1.0, top_p=0.6),
        Sampling(temperature=1.2, top_k=300, top_p=0.8),
        Sampling(temperature=3.0, top_p=0.97),  # nearly flat: the nucleus is larger than the head that is sorted first
    ],
    ids=lambda s: f"t{s.temperature}-k{s.top_k}-p{s.top_p}",
)
def test_frequencies_fit_the_distribution(sampling):
    torch.manual_seed(0)
    V, n = 1000, 20_000
    logits = torch.randn(V) * 2
    expected = expected_distribution(logits, sampling)
    drawn = choose(logits.expand(n, V), [sampling] * n, uniforms(np.arange(n, dtype=np.uint64), np.zeros(n, dtype=np.int64)))
    counts = np.bincount(drawn.tokens, minlength=V)
    assert counts[expected == 0].sum() == 0
    order = np.argsort(expected)[::-1]
    order = order[expected[order] * n >= 8]  # chi-square needs some counts per cell; the rest is one cell
    observed = np.append(counts[order], n - counts[order].sum())
    wanted = np.append(expected[order] * n, n - expected[order].sum() * n)
    if wanted[-1] < 1:
        observed, wanted = observed[:-1], wanted[:-1] * observed[:-1].sum() / wanted[:-1].sum()
    assert chisquare(observed, wanted).pvalue > 1e-3
    some = np.arange(0, n, 997)
    log_expected = np.log(expected[np.array(drawn.tokens)[some]])
    assert np.array(drawn.logprobs)[some] == pytest.approx(log_expected, abs=1e-4)
    raw = logits.double().log_softmax(-1)[torch.tensor(drawn.tokens)[some]]
    assert np.array(drawn.raw_logprobs)[some] == pytest.approx(raw.numpy(), abs=1e-5)


def test_rows_with_different_settings_do_not_meet():
    torch.manual_seed(1)
    logits = torch.randn(5, 777) * 3
    settings = [
        Sampling(),
        Sampling(temperature=1.0),
        Sampling(temperature=1.0, top_k=5),
        Sampling(temperature=0.3),
        Sampling(),
    ]
    u = np.array([0.5, 0.1, 0.9, 0.7, 0.2])
    together = choose(logits, settings, u)
    for row in range(5):
        alone = choose(logits[row : row + 1], settings[row : row + 1], u[row : row + 1])
        assert alone.tokens == together.tokens[row : row + 1]
        assert alone.logprobs == pytest.approx(together.logprobs[row : row + 1], abs=1e-6)
    assert together.tokens[0] == int(logits[0].argmax())
    assert together.logprobs[0] == 0.0


def test_extreme_logits_never_give_an_impossible_token():
    logits = torch.full((4, 600), -1e4)
    logits[:, [3, 300, 599]] = 50.0
    edge = np.array([0.0, 1 / 3, 2 / 3, 1 - 2.0**-53])
    for sampling in (Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.99), Sampling(temperature=1.0, top_k=3)):
        assert set(choose(logits, [sampling] * 4, edge).tokens) <= {3, 300, 599}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must not be negative"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_k": -1}, "must not be negative"),
        ({"stop": ("",)}, "stop string must not be empty"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        draw(engine(), ("q", [0]), sampling=Sampling(**changes))
