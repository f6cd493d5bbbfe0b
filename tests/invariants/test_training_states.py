"""Saved states: how many are kept, a disk that is full, a newest one that is broken. The last good one is never lost."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import demonstrations, folder
from training_runs import killed_after, metrics, same, two_processes, weights

from posttrain.core.errors import ConfigError, PosttrainError
from posttrain.core.files import disk_errors
from posttrain.core.types import Checkpoint
from posttrain.finetuning.sft import Sft
from posttrain.training import state as module
from posttrain.training.state import keep_states, load_newest, save_state

torch.set_num_threads(1)

SFT = Sft(lr=1e-2, epochs=4, batch_size=4, save_every=2, dtype="float32")
DATA = demonstrations(13)  # 16 steps


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


@pytest.fixture(scope="module")
def expected(start, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return SFT(start, DATA, out, seed=3), metrics(out)


def steps(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "state").glob("step-*"))


@pytest.mark.parametrize(("keep", "kept"), [(1, [8]), (2, [6, 8]), (3, [4, 6, 8]), (9, [2, 4, 6, 8])])
def test_the_newest_are_kept(keep, kept, start, expected, tmp_path):
    method = replace(SFT, keep=keep)
    killed_after(lambda: method(start, DATA, tmp_path, seed=3), 9)
    assert steps(tmp_path) == kept
    made = replace(method, keep=1)(start, DATA, tmp_path, seed=3)  # keep is no part of what a run is
    same(weights(made), weights(expected[0]), rtol=0, atol=0)


def half_written(tensors, file):
    """Write some bytes as torch.save would, then find the disk full."""
    file.write(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_sentence_and_the_last_good_state_goes_on(start, expected, tmp_path, monkeypatch):
    save, calls = torch.save, []

    def full_the_third_time(tensors, file):
        calls.append(1)
        return half_written(tensors, file) if len(calls) == 3 else save(tensors, file)

    monkeypatch.setattr(torch, "save", full_the_third_time)
    with pytest.raises(PosttrainError, match=r"^disk full while writing .*step-00000006: free some space and run the same"):
        SFT(start, DATA, tmp_path, seed=3)
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["step-00000004"]  # nothing half written is left
    made = SFT(start, DATA, tmp_path, seed=3)
    same(weights(made), weights(expected[0]), rtol=0, atol=0)
    assert metrics(tmp_path) == expected[1]


def test_a_disk_that_is_full_at_the_export_loses_nothing(start, expected, tmp_path, monkeypatch):
    def full(model, tokenizer, aside):
        (aside / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")  # as safetensors

    with monkeypatch.context() as patch:
        patch.setattr("posttrain.training.artifact.save_model", full)
        with pytest.raises(PosttrainError, match=r"disk full while writing .*checkpoint"):
            SFT(start, DATA, tmp_path, seed=3)
    assert not (tmp_path / "checkpoint").exists()
    assert not (tmp_path / ".writing-checkpoint").exists()
    assert steps(tmp_path) == [14]
    made = SFT(start, DATA, tmp_path, seed=3)
    same(weights(made), weights(expected[0]), rtol=0, atol=0)


def test_a_real_full_device_is_recognised():
    if not Path("/dev/full").is_char_device():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(PosttrainError, match="disk full"), disk_errors(Path("x")), open("/dev/full", "wb") as file:
        torch.save({"weights": torch.zeros(10**6)}, file)


def test_a_full_disk_in_the_first_of_two_processes_ends_both(start, tmp_path):
    def work():
        if torch.distributed.get_rank() == 0:
            torch.save = half_written
        SFT(start, DATA, tmp_path / "two", seed=3)

    assert two_processes(work, tmp_path / "meet") == [1, 1]


@pytest.mark.parametrize("damage", ["cut", "garbage", "facts", "no state"])
def test_a_broken_newest_state_falls_back_to_the_one_before(damage, start, expected, tmp_path, capsys):
    method = replace(SFT, keep=2)
    killed_after(lambda: method(start, DATA, tmp_path, seed=3), 9)
    newest = tmp_path / "state" / "step-00000008"
    if damage == "cut":
        whole = (newest / "state.pt").read_bytes()
        (newest / "state.pt").write_bytes(whole[: len(whole) // 2])
    elif damage == "garbage":
        (newest / "state.pt").write_bytes(b"\0" * 1000)
    elif damage == "facts":
        (newest / "facts.json").write_text('{"key": ')
    else:
        (newest / "state.pt").unlink()
    made = method(start, DATA, tmp_path, seed=3)
    told = capsys.readouterr().err
    assert "step-00000008" in told
    assert "going on from the state before it" in told
    same(weights(made), weights(expected[0]), rtol=0, atol=0)
    assert metrics(tmp_path) == expected[1]


def test_without_one_before_a_broken_state_is_an_error(start, tmp_path):
    killed_after(lambda: SFT(start, DATA, tmp_path, seed=3), 9)
    (tmp_path / "state" / "step-00000008" / "state.pt").write_bytes(b"")
    with pytest.raises(PosttrainError, match=r"state.pt cannot be read .*remove .*step-00000008 to start again"):
        SFT(start, DATA, tmp_path, seed=3)


def test_states_of_another_run_are_no_fallback(tmp_path):
    for step, key in ((1, "other"), (2, "mine")):
        save_state(tmp_path, step, {"x": torch.ones(1)}, {"key": key})
    read = {"device": torch.device("cpu"), "say": lambda _: None}
    assert load_newest(tmp_path, key="mine", **read)[0]["x"] == 1
    (tmp_path / "step-00000002" / "state.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match="unfinished run with another"):
        load_newest(tmp_path, key="mine", **read)
    assert load_newest(tmp_path / "none", key="mine", **read) is None


def test_a_state_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    save_state(tmp_path, 1, {"x": torch.ones(1)}, {"key": "k"})
    monkeypatch.setattr(module, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):  # stopped between the two files
        save_state(tmp_path, 2, {"x": torch.ones(1)}, {"key": "k"})
    assert [p.name for p in module.all_states(tmp_path)] == ["step-00000001"]
    keep_states(tmp_path, {1})
    assert json.loads((tmp_path / "step-00000001" / "facts.json").read_text()) == {"key": "k"}
    shutil.rmtree(tmp_path / "step-00000001")
