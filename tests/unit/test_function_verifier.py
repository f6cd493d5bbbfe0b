"""A user's own function as a verifier: how it is called, what it may see, and what its mistakes say."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.types import Example
from posttrain.pipeline.verifying import fingerprints, scorers
from posttrain.tasks import load_task
from posttrain.verifiers import build_verifier

TASK = load_task("reasoning_gym/chain_sum:max_terms=3,max_digits=2,test=5")
GOLD = Example(id="7", question="2 + 2", answer="4", gold={"digits": 1})

SOURCE = """
import asyncio
import numpy as np

CALLS = []

def single(example, text):
    CALLS.append(text)
    return len(text) / 2

def together(example, texts):
    return [len(text) for text in texts]

async def waits(example, text, scale=3):
    await asyncio.sleep(0)
    return scale * len(text)

async def waits_together(question, texts):
    return tuple(text == "a" for text in texts)

def array(example, texts):
    return np.array([len(text) for text in texts], dtype=np.float32)

def scalar(example, text):
    return np.int64(3)

class Scale:
    def __call__(self, example, text):
        return 2.0

scale = Scale()

def answers(example, text):
    return float(text == example.answer)

def hidden(example, text):
    return float(example.answer is None and not example.gold and example.question == "2 + 2")

def raises(example, text):
    raise KeyError("no such subject")

def late(example, text):
    raise ValueError("line one")

def nothing(example, text):
    return None

def words(example, text):
    return "0.5"

def nan(example, text):
    return float("nan")

def infinite(example, texts):
    return [1.0, float("-inf")]

def few(example, texts):
    return [1.0]

def one_number(example, texts):
    return 0.5

def pair(example, text):
    return np.array([1.0, 2.0])

def other_names(example, reply):
    return 1.0

def three(example, text, reference):
    return 1.0

def alone(text):
    return 1.0

VALUE = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(SOURCE)
    return path


def values(spec: str, texts: Sequence[str] = ("a", "bcd")) -> list[float]:
    verifier: Any = build_verifier(spec, task=TASK, golds={"7": GOLD})
    return [score.value for score in asyncio.run(verifier(GOLD.public(), texts))]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("single", [0.5, 1.5]),
        ("together", [1, 3]),
        ("waits", [3, 9]),
        ("waits_together", [1, 0]),
        ("array", [1, 3]),
        ("scalar", [3, 3]),
        ("scale", [2, 2]),
        ("hidden", [1, 1]),
    ],
)
def test_plain_and_async_one_by_one_and_together(file: Path, name: str, expected: list[float]) -> None:
    found = values(f"function:call={file}:{name}")
    assert found == expected
    assert all(type(value) is float for value in found)
    assert values(f"function:call={file}:{name}", []) == []


def test_the_gold_answer_is_seen_only_when_asked_for(file: Path) -> None:
    sees = f"function:call={file}:answers,gold=true"
    assert values(sees, ["4", "5"]) == [1, 0]
    assert values(f"function:call={file}:answers", ["4", "5"]) == [0, 0]
    assert build_verifier(sees, task=TASK, golds={"7": GOLD}).oracle
    assert not build_verifier(f"function:call={file}:answers", task=TASK).oracle  # and needs no gold answers
    with pytest.raises(ConfigError, match=r"rewards.py:answers needs gold answers \(gold=true\), and none is given"):
        build_verifier(sees, task=TASK)
    with pytest.raises(DataError, match=r"rewards.py:answers, example '8': there is no gold answer"):
        asyncio.run(build_verifier(sees, task=TASK, golds={"7": GOLD})(Example(id="8"), ["4"]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "raised KeyError: 'no such subject'"),
        ("late", "raised ValueError: line one"),
        ("nothing", "gave None, which is not a number"),
        ("words", "gave '0.5', which is not a number"),
        ("nan", "gave nan: a reward must be a finite number"),
        ("infinite", "gave -inf: a reward must be a finite number"),
        ("few", "gave 1 values for 2 texts: return one number a text"),
        ("one_number", "gave 0.5 for 2 texts: return one number a text"),
        ("pair", "which is not a number"),
    ],
)
def test_mistakes_name_file_function_and_example(file: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=f"{file}:{name}, example '7': .*{message}"):
        values(f"function:call={file}:{name}")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("{file}:singl", "the file has no function 'singl'; did you mean 'single'"),
        ("{file}:VALUE", "the file has no function 'VALUE'"),
        ("{file}:other_names", r"takes \(example, reply\), but has to be \(example, text\) -> float"),
        ("{file}:three", r"takes \(example, text, reference\)"),
        ("{file}:alone", r"takes \(text\)"),
        ("{file}", "write path/to/file.py:name"),
        ("{file}:a b", "write path/to/file.py:name"),
        ("{file}x:single", "no such file"),
    ],
)
def test_what_cannot_be_called_is_said_before_anything_runs(file: Path, call: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_verifier({"name": "function", "call": call.format(file=file)}, task=TASK)
    with pytest.raises(ConfigError, match="its setting 'call' must be given"):
        build_verifier("function", task=TASK)


def test_a_file_that_cannot_be_loaded(tmp_path: Path) -> None:
    for name, source, message in (
        ("a.py", "def f(:\n", "cannot be loaded: SyntaxError"),
        ("b.py", "import nowhere_at_all\n", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("c.txt", "x = 1\n", "its name must end in .py"),
    ):
        (tmp_path / name).write_text(source)
        with pytest.raises(ConfigError, match=message):
            build_verifier(f"function:call={tmp_path}/{name}:f", task=TASK)


def test_its_content_is_part_of_what_decides_the_scores(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def f(example, text):\n    return 1.0\n")
    spec = f"function:call={path}:f"
    first = fingerprints([spec, "exact"])
    assert list(first) == [spec]
    assert values(spec) == [1, 1]
    path.write_text("def f(example, text):\n    return 2.0\n")
    assert fingerprints([spec]) != first
    assert scorers(SimpleNamespace(verifiers=(spec,))) == fingerprints([spec])  # type: ignore[arg-type]
    assert values(spec) == [2, 2]  # and the new content is what runs
    own = tmp_path / "short.py"
    own.write_text("class Short: ...\n")
    before = fingerprints([f"Short@{own}:limit=3"])
    own.write_text("class Short: pass\n")
    assert before != fingerprints([f"Short@{own}:limit=3"])
