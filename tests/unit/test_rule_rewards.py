"""Rewards by rules on the text: form, language, length, repetition; values worked out by hand."""

from __future__ import annotations

import asyncio
import json

import pytest

from posttrain.core.errors import ConfigError
from posttrain.core.types import Example, Message
from posttrain.data.language import language_of, script_and_guess, share_in
from posttrain.tasks import load_task
from posttrain.verifiers import build_verifier

TASK = load_task("reasoning_gym/chain_sum:max_terms=3,max_digits=2,test=5")
ENGLISH = Example(id="1", question="What is the sum of the two numbers?")


def value(spec: str, text: str, example: Example = ENGLISH) -> float:
    verifier = build_verifier(spec, task=TASK)
    assert not verifier.oracle
    (score,) = asyncio.run(verifier(example, [text]))
    return score.value


@pytest.mark.parametrize(
    ("text", "whole", "partial"),
    [
        ("<think>2 + 2</think>4", 1, 1),
        ("\n <think>\nzwei\n</think>\n\nvier 四\n", 1, 1),
        ("", 0, 0),
        ("4", 0, 0),
        ("<think>", 0, 1 / 3),
        ("</think>", 0, 1 / 3),
        ("<think></think>", 0, 2 / 3),
        ("<think> \n</think>4", 0, 2 / 3),  # empty reasoning
        ("<think>2 + 2</think> \n", 0, 2 / 3),  # empty answer
        ("So: <think>2 + 2</think>4", 0, 2 / 3),  # text before the opening
        ("</think>4<think>2", 0, 1 / 3),  # the wrong way round: the closing one comes too early
        ("<think>a<think>b</think>c</think>4", 0, 0),  # nested: no tag stands once
        ("<think>a</think>4<think>b</think>5", 0, 0),
        ("<think>a<think>b</think>4", 0, 1 / 3),  # twice opened: the closing tag alone is right
        ("<THINK>a</THINK>4", 0, 0),
        ("<think>2 + 2", 0, 1 / 3),
    ],
)
def test_form(text: str, whole: float, partial: float) -> None:
    assert value("format", text) == whole
    assert value("format:partial=true", text) == pytest.approx(partial)


@pytest.mark.parametrize(
    ("text", "whole", "partial"),
    [
        ("<think>a</think><answer>4</answer>", 1, 1),
        ("<think>a</think>\n<answer>\n4\n</answer>\n", 1, 1),
        ("<think>a</think>4", 0, 2 / 5),
        ("<think>a</think>so <answer>4</answer>", 0, 4 / 5),
        ("<think>a</think><answer>4</answer>.", 0, 4 / 5),
        ("<think>a</think><answer></answer>", 0, 4 / 5),
        ("<think><answer>4</answer></think>", 0, 2 / 5),  # the answer's tags are not behind the reasoning's end
        ("<answer>4</answer>", 0, 2 / 5),
    ],
)
def test_form_with_tags_around_the_answer(text: str, whole: float, partial: float) -> None:
    spec = "format:answer_tags=[<answer>,</answer>]"
    assert value(spec, text) == whole
    assert value(f"{spec},partial=true", text) == pytest.approx(partial)


@pytest.mark.parametrize(
    ("text", "whole", "partial"),
    [("a</think>4", 1, 1), ("<think>a</think>4", 0, 1 / 2), ("a", 0, 0), ("</think>4", 0, 1 / 2), ("a</think>", 0, 1 / 2)],
)
def test_form_of_a_block_that_the_prompt_has_opened(text: str, whole: float, partial: float) -> None:
    assert value("format:opened=true", text) == whole
    assert value("format:opened=true,partial=true", text) == pytest.approx(partial)


def test_other_tags_and_wrong_ones() -> None:
    assert value('format:tags=["[THINK]","[/THINK]"]', "[THINK]a[/THINK]4") == 1
    for spec, message in (
        ("format:tags=[think,/think]", "'think' stands inside the tag '/think'"),
        ("format:answer_tags=[<think>,</answer>]", "'<think>' stands inside the tag '<think>'"),
        ('format:tags=[<think>," "]', "a tag is empty"),
        ("format:tags=[<think>]", "tags: .*<think>"),
        ("format:open=true", "unknown key 'open'; did you mean 'opened'"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_verifier(spec, task=TASK)


CHINESE = Example(id="2", question="两个数的和是多少？")
SUMS = Example(id="3", question="2 + 2 = ?")


@pytest.mark.parametrize(
    ("example", "text", "expected"),
    [
        (ENGLISH, "<think>The sum is 4.</think>四", 1),
        (ENGLISH, "<think>The sum is 四.</think>4", 3 / 4),
        (ENGLISH, "So it is 计算。</think>4", 3 / 5),
        (ENGLISH, "计算 seven</think>The answer is the sum of it", 1 / 3),
        (ENGLISH, "", 0),
        (ENGLISH, "<think></think>The sum is 4", 0),
        (ENGLISH, "2 + 2 = 4, x1 = 3", 0),  # no words
        (ENGLISH, "Der Wert ist nicht die Summe. The sum is the value of it.", 7 / 13),  # sentence by sentence
        (ENGLISH, "Сумма is four", 2 / 3),
        (ENGLISH, "Blorp fnord", 1),  # no function words: no guess against it
        (CHINESE, "设 x 为 $a + b$ 的和", 1),  # variables and formulas do not count
        (CHINESE, "和 `print(total)` 是 \\frac{1}{2}", 1),
        (CHINESE, "The 和", 1 / 2),
        (CHINESE, "数は四です。", 0),  # Japanese: its Han does not count as Chinese
        (SUMS, "все что угодно", 1),
        (SUMS, "", 1),
    ],
)
def test_language_of_the_question(example: Example, text: str, expected: float) -> None:
    assert value("language", text, example) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("target", "text", "expected"),
    [
        ("en", "It costs $5 in total or $6", 1),  # prices are no formula
        ("en", "It costs $5 по скидке or $6", 3 / 5),
        ("en", "The sum\nLa suma de los dos es siete\nof it is", 5 / 12),
        ("en", "La suma de los dos es siete. Entonces.", 0),  # without a guess a sentence goes with the whole
        ("en", "Now a b c d and then e", 1),  # single letters are no French
        ("latin", "La suma de los dos es siete", 1),
        ("es", "La suma de los dos es siete", 1),
        ("ja", "数は四です。", 1),
        ("ja", "数は四です。结论。", 5 / 7),  # Han alone is not Japanese
        ("kana", "Die Summe は", 1 / 3),
        ("zh", "人々", 1),
        ("ko", "합은 four 입니다", 2 / 3),
        ("hi", "यह हिन्दी है sum", 3 / 4),  # vowel signs do not cut words in two
        ("ar", "المجموع four", 1 / 2),
        ("th", "ผล", 1),
        ("ru", "сумма и é", 1),  # a single Latin letter is a variable
        ("el", "α β το άθροισμα", 1),
        ("en", "https://example.org/один <b>bold</b> words", 1),
    ],
)
def test_share_of_words(target: str, text: str, expected: float) -> None:
    assert share_in(text, target) == pytest.approx(expected)


def test_no_words_have_no_share() -> None:
    assert [share_in(text, "en") for text in ("", "1 + 1 = 2", "$x^2$ ```\ncode is here\n```", "x")] == [None] * 4
    assert [language_of(text) for text in ("2 + 2", "Hm", "The sum is it", "和は")] == [None, "latin", "en", "kana"]
    assert script_and_guess("人々") == "han"


def test_settings_of_the_language() -> None:
    turns = (Message(role="system", content="Réponds."), Message(role="user", content="两个数的和是多少？"))
    assert value("language", "和", Example(id="4", messages=turns)) == 1
    assert value("language:target=en,part=all", "<think>和</think>four") == 1 / 2
    assert value("language:target=en,part=answer", "<think>和</think>four") == 1
    assert value("language:target=en,part=answer", "four") == 0  # never closed: no answer
    assert value("language:target=en,tags=[<a>,</a>]", "<a>four</a>和") == 1
    verifier = build_verifier("language", task=TASK)
    asyncio.run(verifier(ENGLISH, ["12", "the sum"]))
    asyncio.run(verifier(SUMS, ["12"]))
    assert verifier.tally == {"texts": 3, "wordless": 1, "no_target": 1}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="cannot tell the target 'sv'"):
        build_verifier("language:target=sv", task=TASK)


@pytest.mark.parametrize(
    ("spec", "text", "expected"),
    [
        ("max=3", "one two three", 1),
        ("max=3", "one two three four", 0),
        ("max=3", "", 1),
        ("max=3,soft=4", "a b c d", 3 / 4),
        ("max=3,soft=4", "a b c d e f", 1 / 4),
        ("max=3,soft=4", "a b c d e f g", 0),
        ("min=4,soft=4", "a b c", 3 / 4),
        ("min=4,soft=4", "", 0),
        ("min=4,soft=8", "", 1 / 2),
        ("min=2,max=3", "a", 0),
        ("min=2,max=3,soft=2", "a", 1 / 2),
        ("min=2,max=3,soft=2", "a b c d", 1 / 2),
        ("max=3,soft=4,penalty=true", "one two three", 0),
        ("max=3,soft=4,penalty=true", "a b c d", -1 / 4),
        ("max=3,soft=4,penalty=true", "a b c d e f g h i", -1),
        ("max=3", "三个字", 1),
        ("max=3", "四个字了", 0),
        ("max=5,unit=characters", " naïve\n", 1),
        ("max=4,unit=characters", "naïve", 0),
        ("max=2,part=reasoning", "<think>a b</think> a b c d", 1),
        ("max=2,part=answer", "<think>a b c</think>a b", 1),
        ("max=2,part=answer", "a b c", 1),  # never closed: its answer is empty
        ("min=1,part=answer", "a b c", 0),
    ],
)
def test_length(spec: str, text: str, expected: float) -> None:
    assert value(f"length:{spec}", text) == pytest.approx(expected)


@pytest.mark.parametrize("over", [-3, 0, 1, 5, 8, 9])
def test_with_a_penalty_it_is_the_soft_overlong_punishment(over: int) -> None:
    longest, cache = 20, 8  # equation 13 of DAPO, in words: L_max and L_cache
    length = longest - cache + over
    expected = 0.0 if over <= 0 else -1.0 if length > longest else ((longest - cache) - length) / cache
    assert value(f"length:max={longest - cache},soft={cache},penalty=true", "word " * length) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("spec", "text", "expected"),
    [
        ("repetition", "", 0),
        ("repetition", "one two", 0),  # no three words
        ("repetition", "one two three four", 0),
        ("repetition", "a b c a b c", -1 / 4),  # abc bca cab abc
        ("repetition", "A b, c! a B c.", -1 / 4),  # case and punctuation do not matter
        ("repetition", "no " * 12, -9 / 10),
        ("repetition:max=0.5", "no " * 12, -9 / 20),
        ("repetition:n=1", "a b a", -1 / 3),
        ("repetition:n=2", "你好你好你", -2 / 4),
        ("repetition:n=1,part=reasoning", "<think>a b</think>a a a", 0),
        ("repetition:n=1,part=answer", "<think>a b</think>a a a", -2 / 3),
    ],
)
def test_repetition(spec: str, text: str, expected: float) -> None:
    assert value(spec, text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("length", "give min, max or both"),
        ("length:min=5,max=4", "needs 0 <= min <= max and soft >= 0, not min=5, max=4, soft=0"),
        ("length:max=4,soft=-1", "soft=-1"),
        ("length:max=4,unit=tokens", "unit: "),
        ("repetition:n=0", "n = 0 must be at least 1"),
        ("repetition:max=-1", "max = -1 must be positive"),
    ],
)
def test_user_errors_of_rules(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_verifier(spec, task=TASK)


def test_scores_are_plain_numbers() -> None:
    for spec in ("format", "language", "length:max=3,penalty=true", "repetition"):
        scores = asyncio.run(build_verifier(spec, task=TASK)(ENGLISH, ["", "the sum", "\x00 \ud7ff"]))
        json.dumps([score.value for score in scores], allow_nan=False)
        assert len(scores) == 3
