"""Margins, weights and the choice of responses, against numbers worked by hand."""

import math

import pytest
import torch

from posttrain.core.errors import DataError
from posttrain.finetuning._judged import best, filtered, need_choice, weights
from posttrain.losses.judged import RANKING_LOSSES, hinge, ranking_margin, reward_weights
from posttrain.training.judged import read_judged


def test_margin_and_its_losses_by_hand():
    # chosen: −6 over 4 tokens, rejected: −6 over 2: means −1.5 and −3; m = 2 · 1.5 − 0.5 = 2.5
    chosen, rejected = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (-1.5, -3.0))
    margin = ranking_margin(chosen, rejected, scale=2.0, gap=0.5)
    assert margin.item() == 2.5
    assert RANKING_LOSSES["sigmoid"](margin, 0.0).item() == pytest.approx(math.log1p(math.exp(-2.5)), rel=1e-14)
    slopes = torch.autograd.grad(RANKING_LOSSES["sigmoid"](margin, 0.0).sum(), [chosen, rejected])
    expected = -2 / (1 + math.exp(2.5))  # −s σ(−m)
    assert [g.item() for g in slopes] == pytest.approx([expected, -expected], rel=1e-13)
    assert hinge(margin).item() == 0
    wrong = ranking_margin(rejected, chosen, scale=2.0, gap=0.5)
    assert hinge(wrong).item() == 3.5
    assert [g.item() for g in torch.autograd.grad(hinge(wrong).sum(), [chosen, rejected])] == [2.0, -2.0]
    with pytest.raises(ValueError, match="no label smoothing"):
        hinge(margin, 0.1)


def test_rrhf_is_scale_one_without_a_gap():
    p = torch.tensor([-1.0, -0.4], dtype=torch.float64)  # judged better, but less likely: max(0, p_worse − p_better)
    assert hinge(ranking_margin(p[:1], p[1:])).item() == pytest.approx(0.6)
    assert hinge(ranking_margin(p[1:], p[:1])).item() == 0


def test_weights_within_prompts_by_hand():
    scores, prompts = torch.tensor([1.0, 0.0, 5.0, 5.0, 2.0]), torch.tensor([0, 0, 1, 1, 2])
    found = reward_weights(scores, prompts, beta=0.5)
    e = math.exp(2)
    expected = [5 / 3 * e / (e + 1), 5 / 3 / (e + 1), 5 / 6, 5 / 6, 5 / 3]
    assert found.tolist() == pytest.approx(expected, rel=1e-14)
    some = torch.tensor([7, 7, 3, 3, 12])  # a part of the prompts keeps its numbers
    assert reward_weights(scores, some, beta=0.5).tolist() == pytest.approx(expected, rel=1e-14)
    shifted = scores + torch.tensor([10.0, 10.0, -3.0, -3.0, 100.0])  # a prompt's level does not count
    assert reward_weights(shifted, prompts, beta=0.5).tolist() == pytest.approx(expected, rel=1e-14)


def test_weights_over_the_data_by_hand():
    scores, prompts = torch.tensor([1.0, 0.0, 5.0]), torch.tensor([0, 0, 1])
    powers = [math.exp(s / 2) for s in (1.0, 0.0, 5.0)]
    expected = [3 * p / sum(powers) for p in powers]
    assert reward_weights(scores, prompts, beta=2.0, over="data").tolist() == pytest.approx(expected, rel=1e-14)
    assert reward_weights(scores + 7, prompts, beta=2.0, over="data").tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("over", ["prompt", "data"])
def test_weights_have_mean_one_and_limits(over):
    scores, prompts = torch.tensor([0.1, 0.9, 0.5, 0.3]), torch.tensor([0, 0, 1, 1])
    for beta in (1e-4, 0.3, 1e6):
        assert reward_weights(scores, prompts, beta=beta, over=over).mean().item() == pytest.approx(1.0)
    assert reward_weights(scores, prompts, beta=1e9, over=over).tolist() == pytest.approx([1.0] * 4)
    only_best = {"prompt": [0, 2, 2, 0], "data": [0, 4, 0, 0]}[over]
    assert reward_weights(scores, prompts, beta=1e-4, over=over).tolist() == pytest.approx(only_best)  # and no overflow
    with pytest.raises(ValueError, match="beta must be positive"):
        reward_weights(scores, prompts, beta=0.0, over=over)


ROWS = [
    {"prompt": "a", "responses": ["x", "y", "z"], "scores": [0.5, 2, 2]},
    {"prompt": "b", "completion": "u", "score": "0.25"},
    {"prompt": [{"role": "user", "content": "b"}], "completion": "v", "score": True},
    {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "w"}], "score": -1},
]


def test_rows_of_every_shape_are_read_and_equal_prompts_are_one():
    found = read_judged(ROWS)
    assert [(j.row, j.prompt, j.response, j.score) for j in found] == [
        (0, 0, "x", 0.5), (0, 0, "y", 2.0), (0, 0, "z", 2.0), (1, 1, "u", 0.25), (2, 1, "v", 1.0), (3, 2, "w", -1.0),
    ]  # fmt: skip
    assert [j.response for j in best(found)] == ["y", "v", "w"]  # the first of equal ones
    assert [j.response for j in filtered(found, 1.0)] == ["y", "z", "v"]
    expected = [2 * w for w in torch.tensor([0.5, 2, 2]).double().softmax(0).tolist()]
    assert weights(found, beta=1.0, over="prompt")[:3] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completion": "x"}, "row 1: expected 'prompt', 'responses' and 'scores'"),
        ({"prompt": "a", "responses": ["x"], "scores": [1, 2]}, "row 1: has 1 responses but 2 scores"),
        ({"prompt": "a", "responses": "x", "scores": [1]}, "row 1: expected 'prompt', 'responses'"),
        ({"prompt": "a", "responses": [3], "scores": [1]}, "row 1: a response must be a text"),
        ({"prompt": "a", "completion": "x", "score": "good"}, "row 1: a score must be a finite number, not 'good'"),
        ({"prompt": "a", "completion": "x", "score": float("nan")}, "row 1: a score must be a finite number, not nan"),
        ({"messages": [{"role": "user", "content": "c"}], "score": 1}, "row 1: the conversation must end with"),
    ],
)  # fmt: skip
def test_a_broken_row_is_named(row, message):
    with pytest.raises(DataError, match=message):
        read_judged([ROWS[0], row])


def test_a_choice_of_one_is_no_choice():
    alone = read_judged([{"prompt": p, "completion": "x", "score": 1} for p in "ab"])
    with pytest.raises(DataError, match="mode=best compares the responses to one prompt, but no prompt has two"):
        need_choice(alone, "best")
    need_choice(read_judged(ROWS), "best")
    assert weights(alone, beta=1.0, over="prompt") == [1.0, 1.0]
    assert weights(alone, beta=1.0, over="data") == [1.0, 1.0]
    with pytest.raises(DataError, match=r"at least threshold = 3 \(the highest is 1\): lower it"):
        filtered(alone, 3.0)
