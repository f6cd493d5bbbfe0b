from dataclasses import dataclass

import pytest

from posttrain.core.types import ModelShape
from posttrain.models.sharing import share_opening

WIDE = ModelShape(parameters=0, matmul_params=10**8, head_params=0, layers=30, attention_width=17_280)


@dataclass(frozen=True)
class Row:
    ids: tuple[int, ...]
    mask: tuple[bool, ...] = ()


def rows(n: int, opening: int, own: int) -> list[Row]:
    return [Row((*range(opening), *(1000 * i + j for j in range(1, own + 1)))) for i in range(1, n + 1)]


@pytest.mark.parametrize(
    ("opening", "own", "size"),
    [
        (0, 60, 1),  # nothing in common
        (37, 62, 4),  # the quickstart's rows: short, with a long opening
        (25, 600, 1),  # attention over several long rows would cost more than it saves
        (400, 10, 16),  # few-shot prompts that all share
    ],
)
def test_the_size_follows_the_operations(opening: int, own: int, size: int) -> None:
    groups = share_opening(rows(16, opening, own), WIDE)
    assert [len(group) for group in groups] == [size] * (16 // size)


def test_no_row_is_lost_or_moved() -> None:
    given = rows(11, 37, 60)
    assert [row for group in share_opening(given, WIDE) for row in group] == given


def test_one_row_is_one_group() -> None:
    (only,) = rows(1, 10, 10)
    assert share_opening([only], WIDE) == [[only]]
