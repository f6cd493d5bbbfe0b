"""What the local engine does for speed on CPU: packed weights, no idle helpers, room that takes no memory; results stay."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
import torch
from tiny_models import llama, model, tokenizer
from torch import nn

from posttrain.core.types import Message, Prompt, Sampling
from posttrain.engines.local import LocalEngine
from posttrain.engines.local.packing import PackedLinears, _available
from posttrain.engines.local.threads import release_helpers

packs = pytest.mark.skipif(not _available(), reason="this processor has no bfloat16 products, for which weights are packed")


def pair(dtype=torch.bfloat16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96, bias=True), nn.ReLU(), nn.Linear(96, 32, bias=False)).to(dtype)


def packed_layers(net, packed):
    with packed.lent():
        return [layer for layer in net.modules() if "forward" in layer.__dict__]


@packs
@pytest.mark.parametrize("rows", [1, 7, 64, 300])
def test_packed_layers_give_the_same_products(rows):
    net = pair()
    packed, x = PackedLinears(net), torch.randn(rows, 64).bfloat16()
    with torch.inference_mode():
        plain = net(x)
        with packed.lent():
            quick = net(x)
        assert torch.equal(net(x), plain)  # lent means given back
    assert len(packed_layers(net, packed)) == 2
    torch.testing.assert_close(quick, plain, atol=0.02, rtol=0.02)


def test_weights_changed_in_place_are_packed_anew():
    net = pair()
    packed, x = PackedLinears(net), torch.randn(5, 64).bfloat16()
    with torch.inference_mode(), packed.lent():
        before = net(x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    with torch.inference_mode():
        plain = net(x)
        with packed.lent():
            after = net(x)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, plain, atol=0.05, rtol=0.02)
    net[0].weight.data.mul_(0.5)  # a change that leaves no trace: forget() is for it
    packed.forget()
    with torch.inference_mode():
        plain = net(x)
        with packed.lent():
            torch.testing.assert_close(net(x), plain, atol=0.05, rtol=0.02)


@packs
def test_a_replaced_weight_is_packed_anew():
    net = pair()
    packed, x = PackedLinears(net), torch.randn(5, 64).bfloat16()
    with torch.inference_mode(), packed.lent():
        net(x)
    net[0].weight = nn.Parameter(torch.randn(96, 64).bfloat16())
    with torch.inference_mode():
        plain = net(x)
        with packed.lent():
            torch.testing.assert_close(net(x), plain, atol=0.5, rtol=0.02)
    assert len(packed._packed) == 2


def test_float32_and_layers_with_a_forward_of_their_own_are_left_alone():
    assert not packed_layers(pair(torch.float32), PackedLinears(pair(torch.float32)))
    net = pair()
    net[2].forward = lambda x: x
    packed = PackedLinears(net)
    with packed.lent():
        assert net[2].forward(3) == 3
    assert "forward" in net[2].__dict__
    assert "forward" not in net[0].__dict__


def test_without_memory_nothing_is_packed(monkeypatch):
    monkeypatch.setattr("posttrain.engines.local.packing._free_bytes", lambda: 1000)
    net = pair()
    assert not packed_layers(net, PackedLinears(net))


@packs
def test_bfloat16_greedy_text_is_that_of_an_engine_without_packing(monkeypatch):
    net = model(llama()).to(torch.bfloat16)
    prompt = Prompt(messages=(Message(role="user", content="how many apples"),))

    def written():
        engine = LocalEngine(net, tokenizer(), fingerprint="tiny")
        (completion,) = asyncio.run(engine.generate(prompt, Sampling(max_tokens=12), seed=0))
        return len(engine._runner.packed._layers), completion.raw_logprobs

    count, quick = written()
    monkeypatch.setattr("posttrain.engines.local.packing._available", lambda: False)
    none, plain = written()
    assert count > 0
    assert none == 0
    n = min(len(quick), len(plain), 3)  # later tokens may differ: equal likelihoods are broken by rounding
    torch.testing.assert_close(torch.tensor(quick[:n]), torch.tensor(plain[:n]), atol=0.05, rtol=0.05)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_helpers_of_the_calling_thread_end_and_come_back():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        counts = []

        def work():
            x = torch.randn(512, 512)
            (x @ x).sum()
            counts.append(len(os.listdir("/proc/self/task")))
            released = release_helpers()
            counts.append(len(os.listdir("/proc/self/task")))
            assert torch.equal(x + x, 2 * x)
            counts.append(released)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        before, after, released = counts
        assert after == before - 1 if released else after == before
    finally:
        torch.set_num_threads(threads)


def test_room_for_long_answers_takes_no_memory_until_it_is_used():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc")
    engine = LocalEngine(model(llama()), tokenizer(), fingerprint="tiny", slots=64, max_context=20000)
    prompt = Prompt(messages=(Message(role="user", content="a"),))
    before = resident()
    asyncio.run(engine.generate(prompt, Sampling(max_tokens=4), seed=0))
    first = resident() - before
    engine._runner.cache.reserve(64, 16000)
    whole = 64 * 16000 * engine._runner.cache.bytes_per_token
    assert resident() - before < first + whole // 4
