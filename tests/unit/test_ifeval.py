"""IFEval: each instruction on texts that follow it and texts that do not, strict and loose, by prompt and by instruction."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.core.errors import ConfigError, DataError
from posttrain.engines.scripted import ScriptedEngine
from posttrain.ledger.store import load_ledger
from posttrain.pipeline.evaluate import Evaluation, evaluate
from posttrain.stats.intervals import ratio, wilson
from posttrain.tasks import load_task
from posttrain.tasks._instructions import CHECKS, follows, follows_loosely, sentences

EN = "this is the way that we do it and there is not much more to say of it"

CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["oak", "Sea"]}, ["An oak by the seaside."], ["An oak."]),
    ("keywords:frequency", {"keyword": "so", "frequency": 2, "relation": "at least"}, ["So and so."], ["So."]),
    ("keywords:frequency", {"keyword": "so", "frequency": 2, "relation": "less than"}, ["So."], ["So and so."]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, ["A category."], ["The Cat sat."]),
    ("keywords:letter_frequency", {"letter": "Q", "let_frequency": 2, "let_relation": "at least"}, ["qQ"], ["q"]),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": "less than"}, ["a!"], ["!!"]),
    ("language:response_language", {"language": "de"}, ["Das ist nicht der Weg, und es ist zu spät."], [EN]),
    ("language:response_language", {"language": "hi"}, ["यह घर है और यह पानी नहीं है"], ["हे घर आहे आणि ते पाणी नाही", EN]),
    ("language:response_language", {"language": "mr"}, ["हे घर आहे आणि ते पाणी नाही"], ["यह घर है और यह पानी नहीं है"]),
    ("language:response_language", {"language": "bg"}, ["Той не е тук и това е добре за нас"], ["Он не здесь, и это мы"]),
    ("language:response_language", {"language": "ko"}, ["안녕하세요"], ["こんにちは", EN]),
    ("language:response_language", {"language": "vi"}, ["Tôi là một người của đất nước và không có gì"], [EN]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["one two three"], ["one two"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["one two"], ["one two three"]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, ["Go. Now!"], ["Mr. Go now."]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["a\n***\nb", "***\na\n***\nb"], ["a", "a***\n***b"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"},
        ["One.\n\n'weekend, he said."],
        ["One.\n\nThe weekend.", "weekend", "One.\n\nweekend\n\nMore."],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[name] and [place]"], ["[name] (place)"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Bye.\np. s. Write!"], ["Bye. PS write."]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["Bye.\nP.P.S. Write!"], ["P.S. Write!"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n- b"], ["* a", "* a\n* b\n* c", "**a**\n* b"]),
    ("detectable_format:constrained_response", {}, ["Well. My answer is maybe."], ["My answer is perhaps."]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, ["*a* and **b**"], ["*a* and **"]),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Day", "num_sections": 2},
        ["Day 1\nx\nDay 2\ny"],
        ["Day 1\nDay two"],
    ),
    ("detectable_format:json_format", {}, ['```json\n{"a": 1}\n```', "[1]"], ["{a: 1}", "It is {}"]),
    ("detectable_format:title", {}, ["<<A title>>\ntext"], ["<A title>", "<< >>"]),
    ("combination:two_responses", {}, ["a\n******\nb"], ["a******a", "a", "a******b******c"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, ["say it. Done."], ["Done. Say it."]),
    ("startend:end_checker", {"end_phrase": "Any more?"}, ['He said "any more?"'], ["Any more? No."]),
    ("startend:quotation", {}, ['"all of it"'], ['"part" of it', '"']),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["The USA and the UK."],
        ["The USA and Kent."],
    ),
    ("change_case:english_capital", {}, [EN.upper()], [EN, EN.upper() + " x", "DAS IST NICHT DER WEG UND SIE SIND ZU"]),
    ("change_case:english_lowercase", {}, [EN], [EN.upper(), "das ist nicht der weg und sie sind zu spät"]),
    ("punctuation:no_comma", {}, ["One and two."], ["One, two."]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "arguments", "followed", "broken"), CASES, ids=[case[0] for case in CASES])
def test_an_instruction_is_told_from_its_neglect(
    kind: str, arguments: dict[str, Any], followed: list[str], broken: list[str]
) -> None:
    for text in followed:
        assert follows(text, kind, arguments), text
    for text in (*broken, "", " \n"):
        assert not follows(text, kind, arguments), text


def test_every_kind_is_tested() -> None:
    assert {kind for kind, *_ in CASES} == set(CHECKS)
    assert len(CHECKS) == 25


def test_loose_forgives_an_opening_a_closing_and_asterisks() -> None:
    kind: tuple[str, dict[str, Any]] = ("startend:quotation", {})
    for text in ('Sure:\n"It is so."', '"It is so."\nAnything else?', 'Sure:\n"It is so."\nBye', '**"It is so."**'):
        assert not follows(text, *kind)
        assert follows_loosely(text, *kind)
    assert not follows_loosely("It is so.", *kind)
    assert not follows_loosely("", "punctuation:no_comma", {})


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("No stop", 1), ("One. Two? Three!", 3), ("Dr. Who met J. Doe at 3.5 km, e.g. Here.", 1), ("A… B", 2),
     ('He said "Go." Then left.', 2), ("Up.\n\n* Down.\n- 3 more.", 3), ("He ran... and fell.", 1)],
)  # fmt: skip
def test_sentences(text: str, count: int) -> None:
    assert sentences(text) == count


ROWS = [
    {
        "id": 7,
        "instruction": "Praise tea in quotes, no comma.",
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
        "kwargs": [{}, {"num_words": None}],
    },
    {"key": 8, "prompt": "Two bullets.", "instruction_id_list": ["detectable_format:number_bullet_lists"],
     "kwargs": [{"num_bullets": 2, "relation": None}]},
]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_ledger_holds_the_strict_score_and_the_other_measures(tmp_path: Path) -> None:
    task = load_task("ifeval", data=write(tmp_path / "ifeval.jsonl", ROWS))
    replies = {"Praise": 'Sure:\n"Tea is good."', "Two": "<think>* no</think>* a\n* b"}
    engine = ScriptedEngine(lambda question, sample, seed: replies[question.split()[0]])
    evaluation = Evaluation(
        stage="eval", task=task, examples=task.examples("test"), prompt="zero_shot", strategy="greedy", model="m", seed=0
    )
    summary = evaluate(evaluation, engine, tmp_path / "out", title="t")
    assert summary.accuracy == 0.5
    told = {name: (found["value"], found["of"]) for name, found in summary.to_dict()["measures"].items()}
    assert told == {
        "prompt-level loose": (1.0, 2),
        "instruction-level strict": (2 / 3, 3),
        "instruction-level loose": (1.0, 3),
    }
    rows = load_ledger(tmp_path / "out").rows
    assert [(row.example, row.score) for row in rows] == [("7", 0.0), ("8", 1.0)]
    assert rows[0].trace["measures"]["instruction-level strict"] == [1, 2]
    asked = asyncio.run(_asked(task))
    assert asked == "Praise tea in quotes, no comma."


async def _asked(task: Any) -> str:
    from posttrain.core.specs import build

    public = task.examples("test")[0].public()
    assert public.gold == {}
    return str(build("zero_shot", "posttrain.prompting", "prompter")(task, public, seed=0).messages[-1].content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}, r"row 1: unknown instruction .*did you mean"),
        (
            {"instruction_id_list": ["startend:end_checker"], "kwargs": [{}]},
            r"row 1: the arguments of 'startend:end_checker'",
        ),
        ({"kwargs": [{}]}, "2 instructions and 1 sets of arguments"),
        ({"instruction_id_list": None}, "row 1: a text 'prompt'"),
    ],
)
def test_a_broken_row_is_said(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    task = load_task("ifeval", data=write(tmp_path / "ifeval.jsonl", [ROWS[0] | change]))
    with pytest.raises(DataError, match=message):
        task.examples("test")


def test_only_the_test_split_and_known_languages(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split 'test' only, not 'train'"):
        load_task("ifeval", data=write(tmp_path / "ifeval.jsonl", ROWS)).examples("train")
    with pytest.raises(DataError, match="language 'xx' is not known"):
        follows("text", "language:response_language", {"language": "xx"})


def test_the_interval_of_a_ratio() -> None:
    ones = [(1.0, 1.0)] * 30 + [(0.0, 1.0)] * 10
    assert ratio(ones) == wilson(30, 40)
    assert ratio([(2.0 * right, 2.0 * of) for right, of in ones]) == wilson(30, 40)  # pairs that always agree add nothing
    assert ratio([(3, 3)] * 20) == wilson(20, 20)
    assert ratio([]) == (0.0, 1.0)
    low, high = ratio([(1, 2), (2, 2), (0, 1), (1, 1)])
    assert 0 < low < 4 / 6 < high < 1
