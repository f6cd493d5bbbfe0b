import json
from pathlib import Path

import pytest

from posttrain.core.errors import DataError
from posttrain.data.mixing import read_mix
from posttrain.data.sources import read_rows, require_columns

ROWS = [{"a": 1, "b": "x"}, {"a": 2, "b": "é\n東"}, {"a": 3, "b": ""}]


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n", encoding="utf-8")
    return path


def test_reads_every_format(tmp_path: Path, jsonl: Path) -> None:
    import pyarrow
    from datasets import Dataset, DatasetDict
    from pyarrow import parquet

    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    DatasetDict({"train": Dataset.from_list(ROWS[:1]), "test": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    assert read_rows(jsonl) == ROWS
    assert read_rows(tmp_path / "rows.json") == ROWS
    assert read_rows(tmp_path / "rows.parquet") == ROWS
    assert read_rows(tmp_path / "saved") == ROWS
    assert read_rows(tmp_path / "splits") == ROWS[:1]
    assert read_rows(str(tmp_path / "splits"), split="test") == ROWS
    assert read_rows(jsonl, limit=2) == ROWS[:2]
    assert read_rows(tmp_path / "splits", split="test", limit=2) == ROWS[:2]


def test_csv_keeps_quoted_newlines_and_is_all_text(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('\ufeffa,b\n1,x\n2,"é\n東, ""q"""\n', encoding="utf-8")
    assert read_rows(tmp_path / "rows.csv") == [{"a": "1", "b": "x"}, {"a": "2", "b": 'é\n東, "q"'}]


def test_a_limit_stops_reading_before_a_later_broken_line(jsonl: Path) -> None:
    jsonl.write_text('{"a": 1}\n{broken\n')
    assert read_rows(jsonl, limit=1) == [{"a": 1}]


def test_a_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00002.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "train-00001-of-00002.jsonl").write_text('{"a": 2}\n')
    assert read_rows(tmp_path) == [{"a": 1}, {"a": 2}]
    (tmp_path / "test.jsonl").write_text('{"a": 3}\n')
    assert read_rows(tmp_path, split="test") == [{"a": 3}]
    assert read_rows(tmp_path, split="train", limit=1) == [{"a": 1}]
    with pytest.raises(DataError, match="holds several files"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match="no file for split 'dev'"):
        read_rows(tmp_path, split="dev")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl, line 2: not valid JSON \(Expecting value at column 6\): {\"a\":"),
        ("a.jsonl", b'{"a": 1}\n\n[1, 2]\n', r"a\.jsonl, line 3: a row must be a JSON object, this is a list: \[1, 2\]"),
        ("a.jsonl", b"[\n  {}\n]", "this is a JSON document, not one object per line; name it .json"),
        ("a.jsonl", b"", r"a\.jsonl: no rows; the source is empty"),
        ("a.jsonl", b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        ("a.json", b'{"a": 1}', "holds one object, but rows are wanted: an array of objects"),
        ("a.json", b'{"a": 1}\n{"a": 2}', r"line 2: not valid JSON .*one object per line: name it \.jsonl"),
        ("a.json", b'[{"a": 1}, 3]', "row 2: a row must be a JSON object, this is a number: 3"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "line 3: 3 fields, but the header names 2"),
        ("a.csv", b"a,b\n1\n", "line 2: 1 fields, but the header names 2"),
        ("a.csv", b'a,b\n1,"2', "after line 1: not valid CSV"),
        ("a.csv", b"a,b\n", "no rows"),
        ("a.parquet", b"PAR1 but not really", "not a readable Parquet file"),
        ("a.txt", b"hello", r"cannot read '\.txt' files; convert it to one of \.jsonl"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


def test_missing_files_and_folders(tmp_path: Path, jsonl: Path) -> None:
    with pytest.raises(DataError, match=r"no such data file: .*row\.jsonl; did you mean 'rows\.jsonl'"):
        read_rows(tmp_path / "row.jsonl")
    with pytest.raises(DataError, match="no such data file: nothing_here"):
        read_rows("nothing_here")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data file"):
        read_rows(tmp_path / "empty")


def test_an_unknown_split_of_a_saved_dataset(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train_sft": Dataset.from_list(ROWS), "test_sft": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match="no split 'train_stf'; did you mean 'train_sft'"):
        read_rows(tmp_path / "d", split="train_stf")
    with pytest.raises(DataError, match="no split 'train'; did you mean 'train_sft'"):
        read_rows(tmp_path / "d")


def test_a_hub_id_is_read_by_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import HfApi

    splits = {"train_sft": ROWS, "test_sft": ROWS[:1]}
    asked = []

    def load(name: str, *, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset.from_list(splits[split])

    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: list(splits))
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_rows("owner/name", split="train_sft", limit=2) == ROWS[:2]
    assert list(read_mix("owner/name@test_sft", seed=0).rows) == ROWS[:1]
    assert asked == [("owner/name", "train_sft"), ("owner/name", "test_sft")]
    with pytest.raises(DataError, match="owner/name: no split 'train'; did you mean 'train_sft'"):
        read_rows("owner/name")


def test_the_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known\nand a long trace")

    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    with pytest.raises(DataError, match=r"cannot read 'owner/name': .* \(Name or service not known\); HF_HUB_OFFLINE=1"):
        read_rows("owner/name")


def test_require_columns() -> None:
    require_columns(ROWS, ["a", "b"], "rows.jsonl")
    with pytest.raises(DataError, match=r"rows, row 2: no column 'prompt'; did you mean 'promt'\? \(columns: promt, x\)"):
        require_columns([{"prompt": 1}, {"promt": 1, "x": 2}], ["prompt"], "rows")
    with pytest.raises(DataError, match=r"rows, row 1: no column 'zzz'; choose from: a, b"):
        require_columns(ROWS, ["zzz"], "rows")
