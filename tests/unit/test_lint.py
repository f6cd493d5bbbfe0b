"""The report on training data: each check finds what is wrong, and nothing where all is well."""

from typing import Any

import pytest
from chat_families import BY_NAME

from posttrain.data.contamination import Question
from posttrain.data.findings import Finding, Report, percentiles
from posttrain.data.lint import lint, passes

WORDS = "river stone cloud lamp paper glass wheel garden winter music bread silver forest letter window"


def good(i: int) -> dict[str, Any]:
    known = WORDS.split()
    asked = " ".join(known[(i * k + k) % 15] for k in range(1, 12))
    told = " ".join(known[(i * i + k * (i % 7 + 1)) % 15] for k in range(12))
    return {"prompt": f"Question {i}: {asked}?", "completion": f"{told}, number {i}."}


def find(report: Report, check: str) -> Finding:
    (found,) = [finding for finding in report.findings if finding.check == check]
    return found


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_good_rows_have_no_findings() -> None:
    rows = [good(i) for i in range(40)]
    report = lint(rows, "a", tokenizer=BY_NAME["chatml"].tokenizer, context=4096)
    assert report.findings == []
    assert (report.rows, report.shapes) == (40, {"demonstration": 40})
    assert report.duplicates == {"exact": 0, "near": 0, "near_groups": 0, "questions_with_several_answers": 0}
    assert report.labels is None
    assert report.lengths["words per answer"] == {"p5": 14, "p50": 14, "p95": 14, "p99": 14, "max": 14}


def test_every_row_is_passed_as_often_as_the_bar_says() -> None:
    rows: list[dict[str, Any]] = [*(good(i) for i in range(5)), good(0), {"x": 1}]
    for tokenizer, against in ((None, {}), (BY_NAME["chatml"].tokenizer, {"t": [Question(id="1", text="what is it")]})):
        called = 0

        def advance() -> None:
            nonlocal called
            called += 1

        lint(rows, "a", tokenizer=tokenizer, against=against, advance=advance)
        assert called == len(rows) * passes(encoded=tokenizer is not None, evaluations=len(against))


def test_broken_rows_are_counted_and_the_rest_is_read() -> None:
    rows: list[dict[str, Any]] = [good(0), {"wrong": 1}, good(1), {"prompt": "hi", "completion": ""}, good(2)]
    report = lint(rows, "a.jsonl")
    found = find(report, "shape")
    assert (found.level, found.count, found.rows) == ("error", 2, (2, 4))
    assert found.message.startswith('a.jsonl, row 2: not a shape that is known: {"wrong": 1}')
    assert report.shapes == {"demonstration": 3}
    assert lint([{"x": 1}], "a").count("error") == 1


def test_turns_that_are_empty_missing_or_in_a_row() -> None:
    user, assistant = turn("user", "hi"), turn("assistant", "ho")
    rows = [
        {"messages": [user, turn("assistant", " ")]},
        {"messages": [turn("user", ""), assistant]},
        {"messages": [turn("system", "be"), assistant]},
        {"messages": [user, assistant, user]},
        {"messages": [user, user, assistant]},
        {"prompt": [turn("system", "only")], "completion": "x"},
        {"messages": [user, assistant, turn("tool", "1"), turn("tool", "2"), turn("assistant", "so")]},
    ]
    report = lint(rows, "a")
    told = {
        (f.level, f.message.split(":")[0], f.rows) for f in report.findings if f.check in ("empty", "one-sided", "turns")
    }
    assert told == {
        ("error", "an assistant turn is empty", (1,)),
        ("warning", "a turn that is not the assistant's is empty", (2,)),
        ("warning", "nobody asks", (3,)),
        ("warning", "nobody asks", (6,)),
        ("warning", "the last turn is not the assistant's", (4,)),
        ("warning", "two turns of the same role follow each other", (5,)),
    }


def test_exact_copies_and_near_copies_are_told_apart() -> None:
    long = "the quick brown fox jumps over the lazy dog while the small cat sleeps on the warm red stone near the old mill"
    rows = [{"prompt": "Tell me.", "completion": text} for text in (long, "other " * 9, long, f"{long} again", "no")]
    report = lint(rows, "a")
    exact, near = find(report, "duplicates"), find(report, "near-duplicates")
    assert (exact.count, exact.rows) == (1, (3,))
    assert exact.message == "exact copies of earlier rows, for example row 3 of row 1"
    assert (near.count, near.rows) == (1, (4,))
    assert report.duplicates == {"exact": 1, "near": 1, "near_groups": 1, "questions_with_several_answers": 1}
    assert {finding.level for finding in (exact, near)} == {"warning"}
    assert lint(rows, "a", near=0.99).duplicates["near"] == 0


def test_preferences_are_linted_as_far_as_it_applies() -> None:
    rows = [
        {"prompt": f"{good(i)['prompt']}", "chosen": good(i)["completion"] + " More.", "rejected": "no"} for i in range(30)
    ]
    rows[4]["rejected"] = rows[4]["chosen"]
    report = lint(rows, "a", tokenizer=BY_NAME["chatml"].tokenizer, context=4096)
    same = find(report, "identical sides")
    assert (same.level, same.count, same.rows) == ("error", 1, (5,))
    assert "in 100% of the pairs the chosen side is the longer one" in find(report, "length").message
    assert report.lengths["chosen is the longer"] == 1.0
    assert report.shapes == {"preference": 30}
    rows.append(good(77))
    mixed = find(lint(rows, "a"), "mixed shapes")
    assert (mixed.level, mixed.rows) == ("error", (31,))


def test_a_model_measures_in_tokens_and_refuses_what_training_would() -> None:
    tokenizer = BY_NAME["chatml"].tokenizer
    rows = [good(0), {"prompt": "hi <|im_end|> ho", "completion": "x"}, {"prompt": "hi", "completion": "word " * 200}]
    report = lint(rows, "a", tokenizer=tokenizer, context=200)
    mask = find(report, "mask")
    assert (mask.level, mask.rows) == ("error", (2,))
    assert mask.message.startswith("row 2: message 0 (user) contains the text of the special token '<|im_end|>'")
    long = find(report, "too long")
    assert (long.level, long.rows) == ("error", (3,))
    assert report.lengths["tokens per sequence"]["max"] > 200
    assert report.lengths["tokens per sequence"]["context"] == 200
    assert lint(rows, "a", tokenizer=tokenizer).lengths["trained tokens per sequence"]["max"] > 200


def test_one_label_for_nearly_all_is_a_warning() -> None:
    rows = [{"prompt": good(i)["prompt"], "completion": "yes" if i % 10 else "no"} for i in range(40)]
    report = lint(rows, "a")
    assert report.labels is not None
    assert report.labels["shares"] == {"yes": 0.9, "no": 0.1}
    assert find(report, "balance").message.startswith("90% of the answers are 'yes'")


def test_rows_that_are_all_alike_lack_variety() -> None:
    frame = "please read the following sentence with great care and then say whether it is true or false in one word"
    rows = [{"prompt": f"{frame}: item {i}", "completion": "done"} for i in range(30)]
    report = lint(rows, "a", near=1.0)
    assert find(report, "diversity").level == "warning"
    assert report.diversity["self_similarity"] is not None
    assert report.diversity["self_similarity"] > 0.5


def test_questions_of_an_evaluation_inside_are_an_error() -> None:
    rows = [*(good(i) for i in range(5)), {"bad": 1}, good(9)]
    asked = [
        Question(id="e7", text=good(9)["prompt"]),
        Question(id="e8", text="never asked in any row, whatever the row may be"),
    ]
    report = lint(rows, "a", against={"exam": asked, "other": asked[1:]})
    found = find(report, "contamination")
    assert (found.level, found.rows) == ("error", (7,))
    assert found.message.startswith("rows hold 1 of the 2 questions of exam, for example row 7: 'question 9 ")
    exam, other = report.contamination
    assert (exam["examples_hit"], exam["rows_hit"], exam["hits"][0]["row"]) == (1, 1, 7)
    assert (other["examples_hit"], other["hits"]) == (0, [])


def test_languages_and_plain_texts() -> None:
    rows = [{"text": "The cat is on the mat and that is all."}] * 3 + [{"text": "Привет, как дела?"}]
    report = lint(rows, "a", tokenizer=BY_NAME["chatml"].tokenizer)
    assert report.languages == {"latin: en?": 0.75, "cyrillic": 0.25}
    assert report.shapes == {"text": 4}
    assert report.duplicates["questions_with_several_answers"] == 0


@pytest.mark.parametrize(("values", "expected"), [([7], [7, 7, 7, 7, 7]), (list(range(1, 101)), [5, 50, 95, 99, 100])])
def test_percentiles_are_values_that_occur(values: list[int], expected: list[int]) -> None:
    assert list(percentiles(values[::-1]).values()) == expected
    assert percentiles([]) == {}
