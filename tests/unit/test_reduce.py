"""Reductions over explicit global counts, by hand."""

import pytest
import torch

from posttrain.losses.reduce import constant_mean, sequence_mean, sequence_sums, token_mean

# two sequences of a micro-batch: (1, 2, 3) and (10), inside an optimiser step of 8 tokens and 3 sequences
VALUES = torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=torch.float64)
OWNER = torch.tensor([0, 0, 0, 1])


def test_values_by_hand():
    assert sequence_sums(VALUES, OWNER, 3).tolist() == [6.0, 10.0, 0.0]
    assert token_mean(VALUES, tokens=8).item() == 2.0
    assert sequence_mean(VALUES, OWNER, in_micro_batch=2, sequences=3).item() == (2 + 10) / 3
    assert constant_mean(VALUES, constant=4, sequences=2).item() == 2.0


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_shares_of_micro_batches_add_up_to_the_whole(cut):
    def shares(reduce):
        return sum(reduce(slice(a, b)) for a, b in ((0, cut), (cut, 4)))

    assert shares(lambda s: token_mean(VALUES[s], tokens=8)).item() == 2.0
    assert shares(lambda s: constant_mean(VALUES[s], constant=4, sequences=2)).item() == 2.0


def test_sequence_mean_gradient_is_one_over_length():
    values = VALUES.clone().requires_grad_()
    sequence_mean(values, OWNER, in_micro_batch=2, sequences=2).backward()
    assert values.grad.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_an_empty_sequence_adds_nothing_and_no_nan():
    assert sequence_mean(VALUES, OWNER, in_micro_batch=5, sequences=5).item() == (2 + 10) / 5


def test_a_count_of_zero_is_refused():
    with pytest.raises(ValueError, match="tokens must be positive"):
        token_mean(VALUES, tokens=0)


def test_owner_must_match():
    with pytest.raises(ValueError, match="do not match owners"):
        sequence_sums(VALUES, OWNER[:-1], 2)
