"""Equal answers: one key for all spellings of a number, math-verify behind a hard time limit."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tasks import equivalence
from posttrain.tasks.equivalence import answer_key, same_mathematics, same_number
from posttrain.tasks.numerals import find_numbers, number


@pytest.mark.parametrize(
    "text",
    [
        "1000",
        "1,000",
        "1000.0",
        "$1,000.00",
        "1000 dollars",
        "1000.",
        "+1000",
        " 1000 eggs",
        "01000",
        "\\$1{,}000",
        "1000%",
        "$1000$",
        "1e3",
        "2000/2",
        "\\frac{2000}{2}",
        "1000 km per hour",
    ],
)
def test_equal_numbers_have_equal_keys(text: str) -> None:
    assert answer_key(text) == "1000"
    assert same_number("1000", text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-3", Fraction(-3)),
        ("−3", Fraction(-3)),
        ("-$3.50", Fraction(-7, 2)),
        ("3/4", Fraction(3, 4)),
        ("1 1/2", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        (".5", Fraction(1, 2)),
        ("50%", Fraction(50)),
        ("\\dfrac{1}{3}", Fraction(1, 3)),
        ("1/0", None),
        ("1,00", None),
        ("abc", None),
        ("", None),
        ("3, 4", None),
        ("x + 1", None),
        ("5-3", None),
        ("1e99999999", None),
        ("9" * 5000, None),
        ("1.2.3", None),
    ],
)
def test_number(text: str, value: Fraction | None) -> None:
    assert number(text) == value


def test_find_numbers() -> None:
    assert find_numbers("5-3 and -2, then 1,234.5 of 10/20 (7)") == ["5", "3", "-2", "1,234.5", "10/20", "7"]
    assert find_numbers("3.") == ["3"]
    assert find_numbers("1, 2, 3") == ["1", "2", "3"]


@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_spellings_of_a_decimal_share_a_key(value: int, decimals: int) -> None:
    exact = Fraction(value, 10**decimals)
    sign, digits = "-" * (value < 0), str(abs(value)).rjust(decimals + 1, "0")
    whole, part = (digits[:-decimals], digits[-decimals:]) if decimals else (digits, "")
    grouped = f"{int(whole):,}"
    for text in (f"{sign}{whole}.{part}00", f"{sign}${grouped}.{part}0", f"{sign}{grouped}.{part}0 apples"):
        assert number(text) == exact
        assert answer_key(text) == str(exact)


def test_texts_that_are_no_numbers_keep_what_tells_them_apart() -> None:
    assert answer_key("x + 1") == answer_key("$x+1$") != answer_key("x - 1")
    assert answer_key("Tips, Taps") == answer_key("Tips,Taps") != answer_key("tips,taps")
    assert answer_key("\\left( 1, 2 \\right)") == answer_key("(1,2)")


def test_mathematics() -> None:
    assert same_mathematics("\\frac{1}{2}", "0.5")
    assert same_mathematics("x^2+2x+1", "(x+1)^2")
    assert same_mathematics("2\\sqrt{2}", "\\sqrt{8}")
    assert not same_mathematics("x^2", "x^3")
    assert not same_mathematics("1", "2")
    assert not same_mathematics("\\sqrt{", "")


def test_mathematics_works_off_the_main_thread() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(same_mathematics("\\sqrt{9}+x", "x+3")))
    thread.start()
    thread.join()
    assert found == [True]


def test_a_hung_comparison_is_killed_counted_and_does_not_poison_the_next(caplog: pytest.LogCaptureFixture) -> None:
    checker = equivalence._Checker()
    try:
        assert checker.ask("x+x", "2x", 30.0)
        for kills in (1, 2):  # the second by a fresh worker: its start takes nothing from the limit, and adds nothing to it
            began = time.monotonic()
            assert checker.ask("10^{10^{10^{10}}}", "9^{9^{9^{9^{9}}}}", 0.5) is None  # sympy would be at it for ever
            assert checker.timeouts == kills
            assert time.monotonic() - began < equivalence._START_SECONDS / 2
        assert "counted as different" in caplog.text
        assert checker.ask("y+y", "2y", 30.0)  # a fresh worker: no late reply of the killed one
    finally:
        checker.stop()


def test_a_dead_worker_is_replaced() -> None:
    checker = equivalence._Checker()
    try:
        assert checker.ask("x+x", "2x", 30.0)
        assert checker._process is not None
        checker._process.kill()
        checker._process.wait()
        assert checker.ask("y+y", "2y", 30.0)
        assert checker.timeouts == 0
    finally:
        checker.stop()


def test_light_import() -> None:
    code = "import sys, posttrain.tasks, posttrain.prompting, posttrain.test_time, posttrain.verifiers\n" + (
        "heavy = {'torch', 'transformers', 'sympy', 'math_verify', 'reasoning_gym', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
