"""The FLOPs formulas against torch's own counter on a transformer written out in plain products."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from posttrain.core.types import ModelShape
from posttrain.stats.flops import forward_flops, train_flops

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, INNER, VOCABULARY = 2, 6, 4, 2, 3, 10, 11
PER_LAYER = HIDDEN * HEADS * HEAD_SIZE * 2 + HIDDEN * KV_HEADS * HEAD_SIZE * 2 + HIDDEN * INNER * 3
SHAPE = ModelShape(
    parameters=LAYERS * PER_LAYER + 2 * HIDDEN * VOCABULARY,
    matmul_params=LAYERS * PER_LAYER,
    head_params=HIDDEN * VOCABULARY,
    layers=LAYERS,
    attention_width=LAYERS * HEADS * HEAD_SIZE,
)


class Decoder:
    """One token at a time with a cache, so that attention meets exactly the keys it needs."""

    def __init__(self, *, frozen: bool = False) -> None:
        def weight(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns).requires_grad_(not frozen)

        self.layers = [
            {
                "q": weight(HIDDEN, HEADS * HEAD_SIZE),
                "k": weight(HIDDEN, KV_HEADS * HEAD_SIZE),
                "v": weight(HIDDEN, KV_HEADS * HEAD_SIZE),
                "o": weight(HEADS * HEAD_SIZE, HIDDEN),
                "gate": weight(HIDDEN, INNER),
                "up": weight(HIDDEN, INNER),
                "down": weight(INNER, HIDDEN),
            }
            for _ in range(LAYERS)
        ]
        self.head = weight(HIDDEN, VOCABULARY)
        self.keys: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]
        self.values: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]

    def token(self, *, logits: bool) -> torch.Tensor:
        x = torch.randn(1, HIDDEN).requires_grad_(True)
        for index, w in enumerate(self.layers):
            q = (x @ w["q"]).view(HEADS, 1, HEAD_SIZE)
            self.keys[index].append((x @ w["k"]).view(KV_HEADS, 1, HEAD_SIZE))
            self.values[index].append((x @ w["v"]).view(KV_HEADS, 1, HEAD_SIZE))
            k = torch.cat(self.keys[index], 1).repeat_interleave(HEADS // KV_HEADS, 0)
            v = torch.cat(self.values[index], 1).repeat_interleave(HEADS // KV_HEADS, 0)
            mixed = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v).view(1, HEADS * HEAD_SIZE)
            x = x + mixed @ w["o"]
            x = x + (torch.sigmoid(x @ w["gate"]) * (x @ w["up"])) @ w["down"]
        return (x @ self.head).sum() if logits else x.sum()


@pytest.mark.parametrize(("start", "tokens", "logits"), [(0, 1, 1), (0, 5, 1), (4, 1, 1), (3, 4, 4), (2, 3, 0)])
def test_forward_equals_torch_counter(start: int, tokens: int, logits: int) -> None:
    decoder = Decoder()
    for _ in range(start):
        decoder.token(logits=False)
    with FlopCounterMode(display=False) as counter:
        for i in range(tokens):
            decoder.token(logits=i >= tokens - logits)
    assert forward_flops(SHAPE, start=start, tokens=tokens, logits=logits) == counter.get_total_flops()


@pytest.mark.parametrize("frozen", [False, True])
def test_training_equals_torch_counter(frozen: bool) -> None:
    decoder = Decoder(frozen=frozen)
    with FlopCounterMode(display=False) as counter:
        total = sum((decoder.token(logits=True) for _ in range(5)), torch.zeros(()))
        total.backward()  # type: ignore[no-untyped-call]
    assert train_flops(SHAPE, tokens=5, logits=5, frozen_backbone=frozen) == counter.get_total_flops()


def test_by_hand() -> None:
    shape = ModelShape(parameters=0, matmul_params=100, head_params=10, layers=1, attention_width=8)
    # 2·100·2 + 2·10·1 + 4·8·((3+1) + (3+2))
    assert forward_flops(shape, start=3, tokens=2, logits=1) == 400 + 20 + 288
    assert train_flops(shape, tokens=2, logits=1) == 3 * (400 + 20 + 4 * 8 * 3)
    assert train_flops(shape, tokens=2, logits=1, frozen_backbone=True) == 2 * 420 + 3 * 96


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_cache_split_costs_the_same(start: int, first: int, second: int) -> None:
    whole = forward_flops(SHAPE, start=start, tokens=first + second, logits=0)
    parts = forward_flops(SHAPE, start=start, tokens=first, logits=0)
    parts += forward_flops(SHAPE, start=start + first, tokens=second, logits=0)
    assert whole == parts


def test_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens is -1"):
        forward_flops(SHAPE, start=0, tokens=-1, logits=0)
