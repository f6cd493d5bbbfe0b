"""Rows that share leading tokens read them once: the plan is right, and nothing else changes."""

import asyncio
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_local_engine_models import CONFIGS, FLOAT32
from tiny_models import model, tokenizer

import posttrain.engines.local.decode_attention as attention_module
import posttrain.engines.local.runs as runs_module
import posttrain.engines.local.scheduler as scheduler_module
from posttrain.core.types import Message, Prompt, Sampling
from posttrain.engines.local import LocalEngine
from posttrain.engines.local.runs import plan_runs

torch.set_num_threads(1)


@pytest.mark.parametrize("in_place", [False, True])
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_every_row_is_in_one_run_and_what_is_shared_is_equal(in_place, data):
    stems = [np.arange(400) + 1000 * i for i in range(3)]
    rows, tokens, lengths = [], [], []
    for row in range(data.draw(st.integers(1, 24))):
        stem = stems[data.draw(st.integers(0, 2))][: data.draw(st.integers(0, 400))]
        own = data.draw(st.integers(1, 200))
        tokens.append(
            np.pad(np.concatenate([stem, np.full(own, 5000 + row)]), (0, 700 - len(stem) - own), constant_values=-1)
        )
        lengths.append(len(stem) + own)
        if row == 0 or data.draw(st.booleans()):
            rows.append(row)
    tokens, rows, lengths = np.stack(tokens), np.array(rows), np.array(lengths)
    runs = plan_runs(tokens, rows, lengths, in_place=in_place)
    assert [run.low for run in runs] == sorted(run.low for run in runs)
    for first, second in itertools.pairwise(runs):
        assert first.high <= second.low
    for row in rows:
        (run,) = [run for run in runs if run.low <= row < run.high]
        assert run.shared < lengths[row] <= run.reach
        assert run.low in rows
        assert (tokens[row, : run.shared] == tokens[run.low, : run.shared]).all()


def test_a_common_prompt_is_one_run_and_lengths_far_apart_are_several():
    prompt = np.arange(1000)
    tokens = np.stack([np.concatenate([prompt, np.full(100, 2000 + i)]) for i in range(32)])
    (run,) = plan_runs(tokens, np.arange(32), np.full(32, 1050))
    assert (run.low, run.high, run.shared, run.reach) == (0, 32, 992, 1056)
    different = np.arange(64)[:, None] * 5000 + np.arange(2000)
    lengths = np.where(np.arange(64) < 60, 100, 1900)
    runs = plan_runs(different, np.arange(64), lengths)
    assert [(run.low, run.high, run.reach) for run in runs] == [(0, 60, 128), (60, 64, 1920)]
    assert len(plan_runs(different, np.arange(4), np.array([50, 60, 70, 80]))) == 1  # not worth a run of its own


def test_where_slots_are_read_in_place_only_long_stems_of_many_rows_are_shared():
    def planned(prompts, length, rows):
        stems = np.arange(prompts).repeat(rows)[:, None] * 5000 + np.arange(length)
        own = 10**6 + np.arange(prompts * rows)[:, None] * 100 + np.arange(80)
        tokens = np.concatenate([stems, own], 1)
        return plan_runs(tokens, np.arange(len(tokens)), np.full(len(tokens), length + 70), in_place=True)

    assert planned(16, 45, 8) == [(0, 128, 0, 128)]
    assert planned(1, 1000, 32) == [(0, 32, 992, 1088)]
    assert [run.shared for run in planned(2, 1000, 64)] == [992, 992]
    assert planned(4, 256, 2) == [(0, 8, 0, 352)]


@pytest.mark.parametrize("way", ["grouped", "in place"])
def test_attention_of_a_run_is_the_softmax_as_it_is_written(way):
    """In bfloat16, against float64: slots longer than what is read, three query heads to one of keys, values smaller."""
    torch.manual_seed(0)
    query, key, value = torch.randn(5, 6, 1, 16), torch.randn(5, 2, 40, 16), torch.randn(5, 2, 40, 8)
    query, key, value = (x.bfloat16() for x in (query, key, value))
    lengths = torch.tensor([30, 12, 20, 31, 1])
    mask = torch.zeros(5, 1, 1, 40).masked_fill_(torch.arange(40) >= lengths[:, None, None, None], float("-inf")).bfloat16()
    run, scaling = runs_module.Run(1, 5, 0, 32), 0.3
    if way == "grouped":
        grouped = (query * scaling).reshape(5, 2, 3, 16)
        found = attention_module.attend_grouped(run, grouped, key, value, mask, None).reshape(4, 6, 8)
    else:
        found = attention_module.attend_in_place(run, query, key, value, mask, scaling)[:, :, 0]
    for row, length in enumerate(lengths.tolist()):
        for head in range(6 if row else 0):  # the first row is in no run
            q, k, v = (
                query[row, head, 0].double(),
                key[row, head // 3, :length].double(),
                value[row, head // 3, :length].double(),
            )
            weights = (k @ q * scaling).exp()
            torch.testing.assert_close(found[row - 1, head].double(), weights @ v / weights.sum(), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", FLOAT32)
def test_sharing_changes_nothing(name, in_place, monkeypatch):
    """Few-shot stem and several samples per prompt, with runs forced apart and with none shared at all."""
    stem = "Q: 2 plus 2? A: 4. Q: 3 plus 5? A: 8. Q: "
    prompts = [Prompt(messages=(Message(role="user", content=stem + q),)) for q in ("1 plus 1?", "7 plus 6?", "what is it?")]
    sampling = Sampling(temperature=0.7, max_tokens=40)
    for module in (attention_module, scheduler_module):
        monkeypatch.setattr(module, "in_place_is_fast", lambda *_: in_place)
    monkeypatch.setattr(runs_module, "_IN_PLACE_COST", 0.9)  # so that some runs are read so, and some are not
    read = []
    attend = attention_module.attend_in_place
    monkeypatch.setattr(attention_module, "attend_in_place", lambda *a: read.append(a[0]) or attend(*a))

    def draw(cost, stem_cost):
        monkeypatch.setattr(runs_module, "_RUN_COST", cost)
        monkeypatch.setattr(runs_module, "_STEM_COST", stem_cost)
        local = LocalEngine(model(CONFIGS[name]).eval(), tokenizer(), fingerprint="x", slots=10)
        planned = []
        decode = local._runner.decode
        local._runner.decode = lambda low, tokens, positions, runs: (
            planned.append(runs) or decode(low, tokens, positions, runs)
        )

        async def go():
            calls = [
                local.generate(p, replace(sampling, max_tokens=40 + i), seed=3, samples=range(5))
                for i, p in enumerate(prompts)
            ]
            return await asyncio.gather(*calls)

        return [[c.tokens for c in cs] for cs in asyncio.run(go())], planned

    apart, many = draw(0, 0.1)
    together, few = draw(1e9, 0.1)
    assert max(map(len, many)) > 1
    assert {len(runs) for runs in few} == {1}
    assert max(run.shared for runs in many for run in runs) >= 64
    alone = LocalEngine(model(CONFIGS[name]).eval(), tokenizer(), fingerprint="x", slots=1)
    one = [
        asyncio.run(alone.generate(p, replace(sampling, max_tokens=40 + i), seed=3, samples=[4]))
        for i, p in enumerate(prompts)
    ]
    assert bool(read) == (in_place and name != "gemma2")  # which caps its scores
    assert apart == together
    assert [c.tokens for (c,) in one] == [tokens[4] for tokens in apart]
