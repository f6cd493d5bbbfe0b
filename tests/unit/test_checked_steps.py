"""Steps judged by their own arithmetic."""

import pytest
import reasoning_gym
from test_step_rollouts import ASKED, Task, prompter

from posttrain.core.errors import DataError
from posttrain.core.types import Sampled
from posttrain.data.formats import normalise
from posttrain.data.shapes import Steps
from posttrain.preference.checked_steps import CheckedSteps, calculation_holds
from posttrain.tasks.worked import worked


@pytest.mark.parametrize(("step", "holds"), [
    ("72 mod 57 = 15", True),
    ("72 mod 57 = 9", False),
    ("72 mod 0 = 72", None),  # has no value
    ("2 * (3 + 4) = 14", True),
    ("8 - (-2) = 10", True),
    ("12 - -3 = 14", False),
    ("5 - 7 = -2", True),
    ("3 x 4 = 12 = 6 + 6", True),
    ("3 x 4 = 12 = 6 + 7", False),
    ("He pays 5, 3 + 4 = 7 apples.", True),  # a comma that parts a sentence is none of a thousand
    ("1,200 / 2 = 600.", True),
    ("$5 * 2 = $10.50", False),
    ("7 / 2 = 3 (rounded down)", None),
    ("gcd(72, 57) = 3", None),
    ("50% of 10 = 5", None),
    ("0.5 * 7.1 = 3.55%", None),
    ("2 ^ 3 + 1 = 9", None),
    ("2^3 + 1 = 9", None),
    ("10% + 5 + 1 = 9", None),
    ("3 + 4 = 7.5", False),
    ("item3 + 4 = 9", None),
    ("x = 5", None),
    ("5 = 5", None),
    ("so it is 7", None),
])  # fmt: skip
def test_a_calculation_holds_or_not_or_there_is_none(step: str, holds: bool | None) -> None:
    assert calculation_holds(step) is holds


@pytest.mark.parametrize("text", ["1-" * 2000, "1 " * 2000, "1" + " " * 2000, "(" * 2000, "1" * 4000, "- " * 2000])
def test_what_a_broken_model_writes_is_read_at_once_and_not_judged(text: str) -> None:
    """A pattern that tries all ways to part such a text would never come back."""
    assert calculation_holds(f"{text}z = {text}") is None


@pytest.mark.parametrize("name", ["gcd", "chain_sum", "basic_arithmetic"])
def test_worked_solutions_hold_and_a_changed_result_does_not(name: str) -> None:
    found = 0
    for entry in reasoning_gym.create_dataset(name, seed=1, size=30):
        steps = (worked(name, entry) or "").split("\n")
        assert False not in [calculation_holds(step) for step in steps]
        for step in steps:
            if calculation_holds(step):
                left, _, right = step.rpartition("= ")
                assert calculation_holds(f"{left}= {int(right) + 1}") is False
                found += 1
    assert found > 30


def item(texts: list[str], scores: list[float], finishes: list[str] | None = None) -> Sampled:
    return Sampled(
        example=ASKED, texts=tuple(texts), scores=tuple(scores), finishes=tuple(finishes or ["stop"] * len(texts)),
        answers=(None,) * len(texts),
    )  # fmt: skip


def test_labels_go_up_to_the_first_wrong_step_and_the_last_is_the_graders() -> None:
    texts = ["2 + 3 = 5\n5 + 4 = 9", "2 + 3 = 6\n6 + 4 = 10", "2 + 3 = 5\nthen\n5 + 3 = 8", "9\n", "2 + 3 = 5\n5 + 4 = 8"]
    made = CheckedSteps()(Task(), prompter, [item(texts, [1.0, 0.0, 0.0, 1.0, 0.0])], seed=0)
    assert [row["labels"] for row in made.rows] == [
        [True, True], [False, None], [True, None, False], [True], [True, False],
    ]  # fmt: skip
    assert made.counts["with_a_wrong_step"] == 3
    normal = normalise(made.rows[1])
    assert isinstance(normal, Steps)
    assert normal.labels == (0.0, None)


def test_what_cannot_be_judged_is_left_out_and_counted() -> None:
    made = CheckedSteps()(
        Task(), prompter, [item(["a", "a", "b", " "], [1.0] * 4, ["stop", "stop", "length", "stop"])], seed=0
    )
    assert made.counts == {
        "questions": 1, "replies": 4, "cut": 1, "repeated": 1, "without_steps": 1, "with_a_wrong_step": 0, "rows": 1
    }  # fmt: skip
    with pytest.raises(DataError, match="no rows: of 1 replies 1 were cut by the token limit"):
        CheckedSteps()(Task(), prompter, [item(["b"], [1.0], ["length"])], seed=0)
