"""What `benchmarks/thoughts_of_divisors.py` counts, by hand."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def thoughts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import thoughts_of_divisors

    return thoughts_of_divisors


def test_steps_are_worked_out_again_and_told_apart_from_answers(thoughts):
    replies = {
        "a": "<think>\n69 mod 34 = 1\n34 mod 1 = 0\n</think>\nAnswer: 1",
        "b": "69 mod 34 = 69, 34 mod 69 = 4, 5 mod 0 = 5. Answer: 1",
        "c": "8 mod 6 = 2 and 6 mod 2 = 0. Answer: 3",
        "d": "The answer is 1.",
    }
    assert thoughts.true_steps(replies["b"]) == [False, False, False]
    assert thoughts.judged(replies, {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0}) == {
        "replies": 4,
        "with_steps": 3,
        "steps": 7,
        "right_steps": 4,
        "right_answers": 2,
        "right_answers_by_right_steps": 1,
        "wrong_answers_by_right_steps": 1,
    }


def test_guesses_are_counted_by_answer_and_by_parity(thoughts):
    gold = {"a": "2", "b": "2", "c": "1", "d": "4"}
    found = thoughts.by_answer({"a": "2", "b": "1", "c": "1", "d": None}, gold)
    assert found["2"] == {"questions": 2, "given": 1, "right": 1}
    assert found["1"] == {"questions": 1, "given": 2, "right": 1}
    assert found["4"] == {"questions": 1, "given": 0, "right": 0}
    assert [thoughts.by_parity(f"GCD of {a}, {b}?") for a, b in ((4, 6), (3, 4), (9, 3))] == ["2", "1", "1"]
