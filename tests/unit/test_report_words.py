"""Numbers in words."""

import pytest

from posttrain.report import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (7.25, "7.25"),
        (80, "80"),
        (999.7, "1.00 k"),
        (1000, "1.00 k"),
        (21_600, "21.6 k"),
        (123_456, "123 k"),
        (999_700, "1.00 M"),
        (4.2e9, "4.20 G"),
        (3e15, "3.00 P"),
        (0.5, "0.50"),
        (-2500, "-2.50 k"),
    ],
)
def test_si(value: float, text: str) -> None:
    assert words.si(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.2, "1"), (99.2, "100"), (612.3, "620"), (12_345, "13,000"), (4.2e9, "4.20 G")]
)
def test_count_rounds_up(value: float, text: str) -> None:
    assert words.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "an unknown cost"),
        (1.04, "the same cost"),
        (1.9, "1.9× the cost"),
        (12.4, "12× the cost"),
        (0.25, "0.2× the cost"),
        (0.031, "0.031× the cost"),
    ],
)
def test_ratio(value: float | None, text: str) -> None:
    assert words.ratio(value) == text


def test_signs_and_intervals() -> None:
    assert words.points(0.041) == "+4.1"
    assert words.points(-0.041) == "−4.1"
    assert words.points(-0.0001) == "0.0"
    assert words.interval([-0.01, 0.09]) == "[−1.0, 9.0]"
    assert words.percent(0.4567) == "45.7%"


@pytest.mark.parametrize(("p", "text"), [(0.0004, "< 0.001"), (0.031, "= 0.031"), (0.2, "= 0.20"), (1.0, "= 1.00")])
def test_probability(p: float, text: str) -> None:
    assert words.probability(p) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.21, "0.2 s"), (14.4, "14 s"), (300, "5 min"), (9000, "2.5 h")])
def test_duration(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text
