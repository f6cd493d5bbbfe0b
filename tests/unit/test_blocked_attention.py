"""Attention in blocks of queries against the dense one, written out in float64."""

import pytest
import torch
from torch import Tensor

from posttrain.models import sharing
from posttrain.models.blocked_attention import ROWS, attend, blocks_of, pairs

HEADS, KEY_HEADS, SIZE, SCALE = 6, 2, 8, 0.3
GROUPS = [  # prefix, branches
    (0, (300,)),
    (0, (5,)),
    (37, (10, 5, 200, 130, 3)),
    (260, (40, 0, 90, 70)),
    (128, (128, 128)),
]


def inputs(length: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def drawn(heads: int) -> Tensor:
        return torch.randn(heads, length, SIZE, generator=generator, dtype=torch.float64).to(dtype)

    return drawn(HEADS), drawn(KEY_HEADS), drawn(KEY_HEADS), drawn(HEADS)


def gradients(function, q: Tensor, k: Tensor, v: Tensor, upstream: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    out.backward(upstream)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def visible(prefix: int, branches: tuple[int, ...], window: int | None) -> Tensor:
    """Token by token, as the sentence says it: the prefix, and what stands before in the own branch."""
    owner = [-1] * prefix + [i for i, n in enumerate(branches) for _ in range(n)]
    at = list(range(prefix)) + [prefix + j for n in branches for j in range(n)]
    near = len(at) if window is None else window
    rows = range(len(at))
    return torch.tensor([[0 <= at[q] - at[k] < near and owner[k] in (-1, owner[q]) for k in rows] for q in rows])


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(HEADS // KEY_HEADS, 0) for x in (k, v))
    return (q @ k.transpose(1, 2) * SCALE).masked_fill(~seen, float("-inf")).softmax(-1) @ v


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize(("prefix", "branches"), GROUPS)
def test_equals_dense_attention_in_value_and_gradient(prefix: int, branches: tuple[int, ...], window: int | None) -> None:
    q, k, v, upstream = inputs(prefix + sum(branches))
    seen, blocks = visible(prefix, branches, window), blocks_of(prefix, branches, window)
    expected = gradients(lambda q, k, v: dense(q, k, v, seen), q, k, v, upstream)
    kept = gradients(lambda q, k, v: attend(q, k, v, blocks, SCALE), q, k, v, upstream)
    again = gradients(lambda q, k, v: attend(q, k, v, blocks, SCALE, keep=False), q, k, v, upstream)
    by_torch = gradients(lambda q, k, v: sharing._attention_by_sdpa(q, k, v, seen, SCALE), q, k, v, upstream)
    for found, other, third, wanted in zip(kept, again, by_torch, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        assert torch.equal(found, other)
        torch.testing.assert_close(third, wanted, rtol=1e-10, atol=1e-10)
    layout = sharing.Layout((sharing.Group(0, prefix, branches),))
    assert torch.equal(layout.visible(layout.groups[0], window, torch.device("cpu")), seen)


@pytest.mark.parametrize(("prefix", "branches"), GROUPS)
def test_every_query_is_in_one_block_with_all_that_it_sees(prefix: int, branches: tuple[int, ...]) -> None:
    blocks, seen = blocks_of(prefix, branches, None), visible(prefix, branches, None)
    assert [block.start for block in blocks[1:]] == [block.end for block in blocks[:-1]]
    assert (blocks[0].start, blocks[-1].end) == (0, len(seen))
    assert all(0 < block.end - block.start <= ROWS for block in blocks)
    for block in blocks:
        keys = [*range(block.prefix), *range(block.first, block.end)]
        assert seen[block.start : block.end].sum() == seen[block.start : block.end][:, keys].sum()
        assert torch.equal(block.bias_nm == 0, seen[block.start : block.end][:, keys])


def test_siblings_cost_what_they_would_cost_alone() -> None:
    alone = pairs(blocks_of(0, (1024,), None))
    assert alone == 1024 * (1024 + ROWS) // 2  # half the square, and half a block a row
    together = pairs(blocks_of(100, (128,) * 8, None))
    assert together == 100 * 100 + 8 * 128 * (100 + 128)
    assert together < 0.2 * (100 + 8 * 128) ** 2
    assert len(blocks_of(20, (10,) * 8, None)) == 1  # short ones are computed at once


def test_bfloat16_is_as_near_as_its_own_rounding() -> None:
    q, k, v, upstream = inputs(300)
    exact = gradients(lambda q, k, v: attend(q, k, v, blocks_of(0, (300,), None), SCALE), q, k, v, upstream)
    q, k, v, upstream = (x.bfloat16() for x in (q, k, v, upstream))
    found = gradients(lambda q, k, v: attend(q, k, v, blocks_of(0, (300,), None), SCALE), q, k, v, upstream)
    for one, wanted in zip(found, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert float((one.double() - wanted).norm() / wanted.norm()) < 2**-7
