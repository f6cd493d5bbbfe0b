import errno
import os
from pathlib import Path

import pytest

from posttrain.core.errors import PosttrainError
from posttrain.core.files import disk_errors, read_json, write_atomic, write_json
from posttrain.core.seeds import derive, rng


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PosttrainError, match=r"disk full while writing .*a\.json: free some space"):
        write_atomic(path, "new")
    assert read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_unwritable_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PosttrainError, match="cannot write"), disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_broken_json_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(PosttrainError, match=r"b\.json: not valid JSON"):
        read_json(tmp_path / "b.json")


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "c.json", float("nan"))


def test_seeds_are_stable_and_distinct() -> None:
    assert derive(0, "a", 1) == derive(0, "a", 1) == 8099636131030796142
    parts = [(0, "a", 1), (0, "a", "1"), (0, "a1"), (1, "a", 1), (0, "a", 1, 1), (0, "", "a", 1)]
    assert len({derive(*part) for part in parts}) == len(parts)  # type: ignore[arg-type]
    assert rng(3, "x").random() == rng(3, "x").random()
    assert 0 <= derive(-5) < 2**63
