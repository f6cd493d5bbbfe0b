import importlib
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.core.errors import ConfigError
from posttrain.core.specs import Spec, build, format_spec, instantiate, lookup, parse


@pytest.mark.parametrize(
    ("text", "name", "params"),
    [
        ("greedy", "greedy", {}),
        ("best_of_n:n=16,verifier=exact", "best_of_n", {"n": 16, "verifier": "exact"}),
        ("a/b:x=1.5,y=true,z=null", "a/b", {"x": 1.5, "y": True, "z": None}),
        ("a:x=[1,two],y='p,q'", "a", {"x": [1, "two"], "y": "p,q"}),
        ("a:v=(prm:agg=min)", "a", {"v": Spec("prm", {"agg": "min"})}),
        ("sft:lr=1e-4", "sft", {"lr": 1e-4}),
    ],
)
def test_parse(text: str, name: str, params: dict[str, object]) -> None:
    assert parse(text) == Spec(name, params)
    assert parse(format_spec(parse(text))) == parse(text)


@pytest.mark.parametrize("text", ["", ":a=1", "a:", "a:b", "a:b=", "a:=1", "a:b=1,b=2", "a:b=(c", "a:b=[1", "a:b='x"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-99, 99)
    | st.floats(-9, 9).map(lambda x: round(x, 3))
    | st.text("ab ,:=()[]", max_size=6),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(st.dictionaries(st.text("xyz", min_size=1, max_size=3), VALUES, max_size=3))
def test_format_is_read_back(params: dict[str, object]) -> None:
    spec = Spec("name", params)
    assert parse(format_spec(spec)) == spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    width: int = 2
    rate: float = 0.5


def test_wrong_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"strategy 'own': unknown key 'widht'; did you mean 'width'\?"):
        instantiate(Own, {"widht": 3}, where="strategy 'own'")


def test_wrong_type_names_the_key_and_value() -> None:
    with pytest.raises(ConfigError, match=r"own: width: .*integer.*'two'"):
        instantiate(Own, {"width": "two"}, where="own")


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'greedy'"):
        build("gredy", "posttrain.test_time", "strategy")


def test_own_class_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Mine:\n    n: int = 1\n")
    assert build(f"Mine@{file}:n=4", "posttrain.test_time", "strategy").n == 4
    with pytest.raises(ConfigError, match="no such Python file"):
        lookup(f"Mine@{tmp_path}/none.py", "posttrain.test_time", "strategy")
    with pytest.raises(ConfigError, match="defines no class 'Other'"):
        lookup(f"Other@{file}", "posttrain.test_time", "strategy")


def test_a_file_named_as_a_standard_module_does_not_stand_in_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "statistics", raising=False)
    file = tmp_path / "statistics.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "@dataclass(frozen=True, slots=True, kw_only=True)\n"
        "class Mine:\n"
        "    kind: ClassVar[str] = 'mine'\n"
        "    n: int | None = None\n"
        "class Second: ...\n"
    )
    made = build(f"Mine@{file}:n=4", "posttrain.test_time", "strategy")
    assert importlib.import_module("statistics").mean([1, 2, 6]) == 3
    assert (made.n, made.kind, pickle.loads(pickle.dumps(made))) == (4, "mine", made)
    assert lookup(f"Second@{file}", "posttrain.test_time", "strategy").__module__ == type(made).__module__
    assert pickle.loads(pickle.dumps(made)) == made  # the file is still the one module that `made` is of


def test_files_of_one_name_are_two_modules_and_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    for place, n in (("a", 1), ("b", 2)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text(f"class Mine:\n    n = {n}\n")
    first, second = (lookup(f"Mine@{tmp_path}/{place}/mine.py", "posttrain.test_time", "strategy") for place in "ab")
    assert (first.n, second.n, pickle.loads(pickle.dumps(first))) == (1, 2, first)
    (tmp_path / "a" / "mine.py").write_text("class Mine:\n    n = 3\n")
    assert lookup(f"Mine@{tmp_path}/a/mine.py", "posttrain.test_time", "strategy").n == 3


def test_a_file_that_cannot_be_loaded_is_one_sentence_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("import os\nwrong = nothing\n")
    with pytest.raises(ConfigError, match=r"'Mine@.*broken\.py, line 2, cannot be loaded: NameError: name 'nothing'"):
        lookup(f"Mine@{file}", "posttrain.test_time", "strategy")
    assert not [name for name in sys.modules if name.endswith("_broken")]
