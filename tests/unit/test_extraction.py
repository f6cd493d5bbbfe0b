"""Reading answers: generous to a raw model, and never a number from the middle of a cut thought."""

from __future__ import annotations

import pytest

from posttrain.core.errors import ConfigError
from posttrain.tasks.extraction import extractor, strip_thinking

NUMBERS = [
    ("34 + 5 = 39\n39 - 12 = 27\nAnswer: 27", "27"),
    ("**Answer:** 27", "27"),
    ("**Answer: 27**", "27"),
    ("Answer:\n27", "27"),
    ("ANSWER: $1,234.50.", "1,234.50"),
    ("Final answer: -5", "-5"),
    ("The final answer is 6 + 1 = 7.", "7"),
    ("The answer is 12 apples in 3 boxes.", "12"),  # first behind the marker
    ("Answer: 34 + 5 = 39", "39"),  # … but behind the last "="
    ("The final answer to the arithmetic problem is 6 + 1 = 7.", "7"),
    ("The answer (arabic numerals) is 18.", "18"),  # Kojima et al. 2022's cue
    ("so \\boxed{42} it is, after 7 steps", "42"),
    ("$\\boxed{\\frac{3}{4}}$", "3/4"),
    ("\\boxed{\\text{12 apples}}", "12"),
    ("<answer> 8 </answer> as 2 + 6", "8"),
    ("<answer>8", "8"),  # the tag was not closed before the limit
    ("She pays 5 dollars.\n#### 18", "18"),
    ("Answer: \\boxed{9}", "9"),
    ("\\boxed{5}. Check: 2 * 5 = 10. The answer is 5.", "5"),
    ("Answer: 3\nWait, that is wrong.\nAnswer: 4", "4"),  # the last marker
    ("Answer: 27\nLet me check: 34 + 5", "27"),  # not the 5 of an unfinished check
    ("7 eggs, 9 eggs. Answer:", None),  # cut behind the marker
    ("7 eggs and 9 more. The answer is", None),
    ("7 eggs \\boxed{", None),
    ("The answer is not obvious. We add 3 and 4, which makes 7", "7"),  # a phrase without a number is no marker
    ("We add 3 and 4, which makes 7.", "7"),
    ("It is −3.", "-3"),  # typographic minus
    ("range 5-3", "3"),  # an operator, not a sign
    ("no digits here", None),
    ("", None),
    ("<think>3 + 4 = 7</think>\nAnswer: 8", "8"),
    ("<think>3 + 4 = 7. Answer: 7", None),  # an unclosed thought is no answer
    ("3 + 4 = 7</think> so 8", "8"),  # templates that open the thought themselves
    ("Half of it, 1/2 of the cake.\nAnswer: 1/2", "1/2"),
    ("Answer: 50%", "50"),
    ("Answer: .5", ".5"),
    ("x2 and 3.14", "3.14"),
]


@pytest.mark.parametrize(("text", "expected"), NUMBERS)
def test_number(text: str, expected: str | None) -> None:
    assert extractor("number")(text) == expected


CHOICES = [
    ("Answer: B", "B"),
    ("The answer is (C).", "C"),
    ("Answer: (d) because A is wrong", "D"),
    ("\\boxed{A}", "A"),
    ("B", "B"),
    ("B) the blue one", "B"),
    ("I think option C fits best", "C"),
    ("(A) is out, so (B)", "B"),
    ("A cat sat on the mat", None),  # an article is no choice
    ("Answer: I do not know", None),
    ("Answer: the option B", "B"),
    ("Answer:", None),
    ("It could be anything", None),
    ("<think>(A)</think>Answer: E", "E"),
]


@pytest.mark.parametrize(("text", "expected"), CHOICES)
def test_choice(text: str, expected: str | None) -> None:
    assert extractor("choice", letters="ABCDE")(text) == expected


LINES = [
    ("Answer: aniomma", "aniomma"),
    ("Answer: `B A A`", "B A A"),
    ("aniomma", "aniomma"),  # a one-line reply is the answer
    ("Let me see.\nIt may be foo.", None),
    ("Answer: Amelia is a hero, and Bob is not.\n\nI hope this helps.", "Amelia is a hero, and Bob is not."),
    ("Answer: foo\nAnswer:", "foo"),
    ("Answer:", None),
    ("<answer>['1', '2']</answer>", "['1', '2']"),
]


@pytest.mark.parametrize(("text", "expected"), LINES)
def test_line(text: str, expected: str | None) -> None:
    assert extractor("line")(text) == expected


def test_block_spans_lines() -> None:
    read = extractor("block")
    assert read("Here it is.\nAnswer:\n1 2\n3 4") == "1 2\n3 4"
    assert read("Answer:\n```\n1 2\n3 4\n```") == "1 2\n3 4"
    assert read("<answer>1 2\n3 4</answer> done") == "1 2\n3 4"
    assert read("1 2\n3 4") == "1 2\n3 4"
    assert read("Answer:") is None


def test_other_extractors() -> None:
    assert extractor("boxed")("\\boxed{x^{2}+1} then \\boxed{y") == "x^{2}+1"
    assert extractor("boxed")("Answer: 5") is None
    assert extractor("last_line")("one\ntwo\n\n") == "two"
    assert extractor("last_line")("") is None
    assert extractor("text")("  all of it ") == "all of it"
    assert extractor("regex", pattern=r"result=(\d+)")("result=1 result=2") == "2"
    assert extractor("regex", pattern=r"yes|no")("no, yes") == "yes"
    assert extractor("regex", pattern=r"yes|no")("maybe") is None
    with pytest.raises(ConfigError, match="not a regular expression"):
        extractor("regex", pattern="(")


def test_strip_thinking_takes_the_last_close() -> None:
    assert strip_thinking("<think>a</think>b</think>c") == "c"
    assert strip_thinking("<think>a</think>b<think>c") is None
    assert strip_thinking("plain") == "plain"


def test_long_and_hostile_texts_are_fast() -> None:
    read = extractor("number")
    assert read("9" * 100_000) is not None
    assert read("\\boxed{" * 2_000) is None
    assert read("answer to " * 20_000) is None
    assert read("Answer: x\n" * 20_000 + "5") == "5"
    assert read("the answer is so\n" * 20_000) is None
