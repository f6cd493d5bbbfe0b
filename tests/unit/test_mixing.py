import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.core.errors import ConfigError, DataError
from posttrain.data.formats import training_rows
from posttrain.data.mixing import Source, content_hash, parse_sources, portions, read_mix


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import pyarrow
    from pyarrow import parquet

    monkeypatch.chdir(tmp_path)
    rows = {name: [{"prompt": f"{name}{i}", "completion": "x"} for i in range(n)] for name, n in (("a", 70), ("b", 60))}
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows["a"]))
    parquet.write_table(pyarrow.Table.from_pylist(rows["b"]), "b.parquet")
    Path("c.csv").write_text("prompt,completion\nc0,x\nc1,x\n")
    Path("owner/name").mkdir(parents=True)
    Path("owner/name/train.jsonl").write_text('{"prompt": "t0", "completion": "x"}\n')
    Path("owner/name/test.jsonl").write_text('{"prompt": "e0", "completion": "x"}\n')
    return tmp_path


def names(spec: object, seed: int = 0) -> list[str]:
    return [row["prompt"] for row in read_mix(spec, seed=seed).rows]  # type: ignore[arg-type]


def test_the_grammar() -> None:
    assert parse_sources("a.jsonl*0.7, owner/name@train_sft*3") == (
        Source(data="a.jsonl", weight=0.7),
        Source(data="owner/name", split="train_sft", weight=3.0),
    )
    assert parse_sources("owner/name@test") == (Source(data="owner/name", split="test"),)
    assert parse_sources(["a.jsonl*2", {"data": "b.csv", "weight": 1}]) == (
        Source(data="a.jsonl", weight=2.0),
        Source(data="b.csv", weight=1.0),
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a.jsonl*0.5", r"a\.jsonl: a weight says nothing of a single source; leave '\*0\.5' out"),
        ("a.jsonl*0.5,b.jsonl", r"b\.jsonl has no weight, but other sources have"),
        ("a.jsonl*0,b.jsonl*1", "weight '0' is not a positive number"),
        ("a.jsonl*x,b.jsonl*1", "weight 'x' is not a positive number"),
        ("a.jsonl*nan,b.jsonl*1", "not a positive number"),
        ("a.jsonl*,b.jsonl*1", "weight '' is not a positive number"),
        ("a.jsonl,,b.jsonl", "data source ''"),
        ("a.jsonl,b.jsonl,a.jsonl", r"a\.jsonl is given twice"),
        ([{"data": "a", "wieght": 1}], "unknown key 'wieght'; the keys are data, split and weight"),
        ([{"weight": 1}], "'data' is missing"),
        ([{"data": "a", "split": 3}], "'split' must be a text"),
        ([], "no data source"),
    ],
)
def test_a_wrong_spec_is_one_sentence(given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_sources(given)  # type: ignore[arg-type]


@pytest.mark.usefixtures("folder")
def test_a_path_that_exists_is_itself() -> None:
    Path("odd,name*2@x.jsonl").write_text('{"prompt": "odd", "completion": "x"}\n')
    assert names("odd,name*2@x.jsonl") == ["odd"]


@pytest.mark.usefixtures("folder")
def test_one_source_keeps_its_order_and_its_limit() -> None:
    assert names("a.jsonl") == [f"a{i}" for i in range(70)]
    assert [row["prompt"] for row in read_mix("a.jsonl", seed=3, limit=2).rows] == ["a0", "a1"]
    assert names("owner/name@test") == ["e0"]
    assert names([{"data": "owner/name", "split": "train"}]) == ["t0"]


@pytest.mark.usefixtures("folder")
def test_sources_without_weights_are_all_their_rows_shuffled() -> None:
    found = names("a.jsonl,b.parquet,c.csv")
    assert Counter(found) == Counter([f"a{i}" for i in range(70)] + [f"b{i}" for i in range(60)] + ["c0", "c1"])
    assert found[:20] != [f"a{i}" for i in range(20)]
    assert len({name[0] for name in found[:40]}) > 1


@pytest.mark.usefixtures("folder")
def test_weights_give_the_largest_mix_that_repeats_nothing() -> None:
    mix = read_mix("a.jsonl*0.7,b.parquet*0.3", seed=0)
    assert mix.used == {"a.jsonl": 70, "b.parquet": 30}  # a is used up; 70 : 30
    assert mix.unused == {"a.jsonl": 0, "b.parquet": 30}
    found = [row["prompt"] for row in mix.rows]
    assert len(set(found)) == 100
    assert Counter(name[0] for name in found) == {"a": 70, "b": 30}
    assert names("a.jsonl*7,b.parquet*3") == found  # only the proportions count
    assert names("a.jsonl*0.7,b.parquet*0.3", seed=1) != found
    drawn = {name for name in found if name[0] == "b"}
    assert drawn != {f"b{i}" for i in range(30)}  # drawn, not the first ones


@pytest.mark.usefixtures("folder")
def test_a_source_that_would_give_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match=r"a\.jsonl would give no row at weight 0\.1: c\.csv has only 2"):
        names("a.jsonl*0.1,c.csv*10")


@pytest.mark.usefixtures("folder")
def test_errors_name_the_sources_own_row() -> None:
    Path("bad.jsonl").write_text('{"prompt": "p", "completion": "x"}\n{"wrong": 1}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl, row 2: not a shape that is known: {\"wrong\": 1}"):
        read_mix("a.jsonl,bad.jsonl", seed=0, prepare=training_rows)


@pytest.mark.usefixtures("folder")
def test_the_hash_follows_rows_weights_and_splits() -> None:
    first = content_hash("a.jsonl*0.7,b.parquet*0.3")
    assert content_hash("a.jsonl*0.7,b.parquet*0.3") == first != content_hash("a.jsonl*0.6,b.parquet*0.4")
    assert content_hash("owner/name@test") != content_hash("owner/name@train")
    Path("a.jsonl").write_text('{"prompt": "a0", "completion": "y"}\n')
    assert content_hash("a.jsonl*0.7,b.parquet*0.3") != first


@given(
    sizes=st.lists(st.integers(1, 500), min_size=2, max_size=5),
    weights=st.lists(st.floats(0.01, 100), min_size=5, max_size=5),
)
def test_portions_keep_the_proportions_and_use_one_source_up(sizes: list[int], weights: list[float]) -> None:
    weights = weights[: len(sizes)]
    found = portions(sizes, weights)
    exact = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    for count, size, weight in zip(found, sizes, weights, strict=True):
        assert 0 <= count <= size
        assert abs(count - exact * weight) <= 1 + 1e-6
    assert any(count == size for count, size in zip(found, sizes, strict=True))
