"""`posttrain data …`, and training on a mix: what they print, for people and for programs."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from typer.testing import CliRunner, Result

from posttrain.cli.main import app
from posttrain.core.errors import ConfigError, DataError

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("a.jsonl", tiny_models.demonstrations(6))
    write("b.jsonl", [{"text": f"A plain text, the {i}th of its kind."} for i in range(6)])
    return tmp_path


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def invoke(*arguments: str) -> Result:
    return RUNNER.invoke(app, arguments, catch_exceptions=False)


@pytest.mark.usefixtures("folder")
def test_lint_prints_json_and_exits_with_zero_without_errors(tiny: str) -> None:
    done = invoke("data", "lint", "a.jsonl", "--model", tiny, "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert (found["data"], found["rows"], found["errors"]) == ("a.jsonl", 6, 0)
    assert found["lengths"]["tokens per sequence"]["context"] == 256
    assert found["shapes"] == {"demonstration": 6}
    assert found["lengths"]["trained tokens per sequence"]["max"] == len("xxxxx is 9") + 1  # bytes, and the end


@pytest.mark.usefixtures("folder")
def test_lint_exits_with_one_on_errors_and_shows_them(tiny: str) -> None:
    question = "Two trains leave the town at nine and meet at noon; how far is it?"
    write("bad.jsonl", [{"prompt": question, "completion": "x" * 300}, {"oops": 1}])
    write(
        "exam.jsonl",
        [
            {"problem": question},
            {"messages": [{"role": "user", "content": "Another question of eight words or more, here?"}]},
        ],
    )
    done = invoke("data", "lint", "bad.jsonl", "-m", tiny, "--against", "exam.jsonl", "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert {finding["check"] for finding in found["findings"]} == {"shape", "too long", "contamination"}
    (against,) = found["contamination"]
    assert (against["against"], against["examples"], against["examples_hit"]) == ("exam.jsonl", 2, 1)
    assert against["hits"][0]["example"] == "row 1"
    shown = invoke("data", "lint", "bad.jsonl", "-m", tiny, "--against", "exam.jsonl")
    assert shown.exit_code == 1
    assert "3 errors, 0 warnings" in shown.stdout
    assert "1 of 2 questions, in 1 row" in shown.stdout


@pytest.mark.usefixtures("folder")
def test_lint_against_a_task_whose_question_is_inside() -> None:
    from posttrain.tasks.registry import load_task

    task = "reasoning_gym/word_sorting:min_words=9,max_words=9"
    first = load_task(task).examples("test")[0]
    write("leaked.jsonl", [{"prompt": f"Hear this: {first.question}", "completion": "so"}, *tiny_models.demonstrations(3)])
    done = invoke("data", "lint", "leaked.jsonl", "--against", task, "--json")
    assert done.exit_code == 1
    (against,) = json.loads(done.stdout)["contamination"]
    assert against["examples_hit"] >= 1
    assert first.id in {hit["example"] for hit in against["hits"]}
    assert against["wording_ngrams_left_out"] > 0
    clean = invoke("data", "lint", "a.jsonl", "--against", task, "--against-split", "validation", "--json")
    assert clean.exit_code == 0


@pytest.mark.usefixtures("folder")
def test_warnings_alone_exit_with_zero() -> None:
    write("twice.jsonl", [*tiny_models.demonstrations(4), *tiny_models.demonstrations(1)])
    done = invoke("data", "lint", "twice.jsonl")
    assert done.exit_code == 0
    assert "0 errors, 1 warning" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["none.jsonl"], DataError, r"no such data file: none\.jsonl"),
        (["a.jsonl", "--near", "1.5"], ConfigError, "--near 1.5: a similarity lies above 0 and up to 1"),
        (["a.jsonl", "--train", "lats"], ConfigError, "did you mean 'last'"),
        (["a.jsonl", "--against", "gsm9k"], ConfigError, "unknown task 'gsm9k'"),
        (["a.jsonl", "--against", "odd.jsonl"], DataError, r"--against odd\.jsonl, row 1: nothing is asked"),
        (["a.jsonl*2"], ConfigError, "a weight says nothing of a single source"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_wrong_option_is_one_sentence(arguments: list[str], error: type[Exception], message: str) -> None:
    write("odd.jsonl", [{"x": "y"}])
    with pytest.raises(error, match=message):
        invoke("data", "lint", *arguments)


@pytest.mark.usefixtures("folder")
def test_explain_shows_rows_of_a_mix(tiny: str) -> None:
    done = invoke("data", "explain", "-m", tiny, "--data", "a.jsonl*1,b.jsonl*1", "--rows", "12")
    shown = done.stdout.replace("│", "").replace("\n", "")
    assert shown.count("A⟦ plain text, the") == 6  # the first token follows nothing, so it is not trained
    assert shown.count("plus") == 6


@pytest.mark.usefixtures("folder")
def test_questions_are_linted_and_explained(tiny: str) -> None:
    write("asked.jsonl", [{"prompt": "2 + 2?", "answer": "4"}, {"id": "b", "prompt": "And why?", "opening": "As "}])
    done = invoke("data", "lint", "asked.jsonl", "-m", tiny, "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["shapes"] == {"question": 2}
    assert [(each["check"], each["rows"]) for each in found["findings"]] == [("no gold", [2])]
    assert found["lengths"]["tokens per prompt"]["context"] == 256
    table = invoke("data", "lint", "asked.jsonl", "-m", tiny).stdout
    assert "2 questions" in table
    assert "tokens per prompt" in table
    shown = " ".join(invoke("data", "explain", "-m", tiny, "--data", "asked.jsonl", "--rows", "2").stdout.split())
    assert "⟦" not in shown
    assert shown.count("a question: what is trained is what the model writes behind it") == 2


@pytest.mark.usefixtures("folder")
def test_training_on_a_mix_of_shapes(tiny: str) -> None:
    done = invoke(
        "train",
        "sft:adapter=lora,rank=2,batch_size=4,dtype=float32",
        "-m",
        tiny,
        "--data",
        "a.jsonl,b.jsonl",
        "-o",
        "out",
        "--json",
    )
    trained = json.loads(done.stdout)
    assert trained["rows"] == 12
    facts = json.loads((Path(trained["checkpoint"]) / "posttrain.json").read_text())
    assert facts["data"]["rows"] == 12
