"""Stages of one folder shared by processes: who may run what, in which order, and what is noticed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from posttrain.core.errors import PosttrainError
from posttrain.core.types import Cost, Usage
from posttrain.pipeline.done import Done, cost_to
from posttrain.pipeline.recipe import StageConfig
from posttrain.pipeline.sharing import SharedStages

RUN = {"eval": {}}
STAGES = [
    StageConfig.model_validate(values)
    for values in (
        {"name": "first", **RUN},
        {"name": "sft", "train": {"method": "sft", "data": "first"}},
        {"name": "free", **RUN},
        {"name": "last", "model": "sft", **RUN},
    )
]


class Someone:
    """A process with its own view of the folder."""

    def __init__(self, out: Path) -> None:
        self.out, self.said = out, list[str]()
        self.done: dict[str, Done] = {}
        folders = {stage.name: out / stage.name for stage in STAGES}
        self.shared = SharedStages(
            STAGES, out, self.done, key=lambda s: f"key of {s.name}", folders=folders, say=self.said.append
        )
        self.taken = iter(self.shared)

    def take(self) -> str:
        stage, key, finished = next(self.taken)
        if finished is not None:
            self.done[stage.name] = Done(name=stage.name, key=key, folder=self.out / stage.name, cost=Cost(), skipped=True)
            return f"{stage.name} is there"
        return stage.name

    def finish(self, name: str, key: str | None = None) -> None:
        finish(self.out, name, key)
        self.done[name] = Done(name=name, key=f"key of {name}", folder=self.out / name, cost=Cost())


def finish(out: Path, name: str, key: str | None = None) -> None:
    (out / name).mkdir(exist_ok=True)
    record = {"key": key or f"key of {name}", "cost": cost_to(Cost(usage=Usage()))}
    (out / name / "DONE.json").write_text(json.dumps(record))


def test_one_process_follows_the_recipe(tmp_path: Path) -> None:
    alone = Someone(tmp_path)
    for stage in STAGES:
        assert alone.take() == stage.name
        alone.finish(stage.name)
    with pytest.raises(StopIteration):
        next(alone.taken)
    assert not alone.said


def test_each_takes_what_is_ready_and_free(tmp_path: Path) -> None:
    one, other = Someone(tmp_path), Someone(tmp_path)
    assert one.take() == "first"
    assert other.take() == "free"  # not sft, whose data are not there
    one.finish("first")
    assert one.take() == "sft"
    other.finish("free")
    assert other.take() == "first is there"
    one.finish("sft")
    finish(tmp_path, "sft")  # while the other waits for it
    assert other.take() == "sft is there"
    assert other.take() == "last"
    assert one.take() == "free is there"


def test_waiting_is_said_once_and_ends_when_the_other_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Someone(tmp_path), Someone(tmp_path)
    assert one.take() == "first"
    assert other.take() == "free"
    other.finish("free")
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            finish(tmp_path, "first")

    monkeypatch.setattr("posttrain.pipeline.sharing.time.sleep", sleep)
    assert other.take() == "first is there"
    assert len(looks) == 3
    assert other.said == ["waiting for first: another process of this run works on it"]


def test_what_a_dead_process_held_is_free(tmp_path: Path) -> None:
    """The lock is the system's: no file has to be removed by hand."""
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom filelock import FileLock\n"
            "lock = FileLock(sys.argv[1])\nlock.acquire()\nprint('held', flush=True)\ntime.sleep(60)",
            str(tmp_path / ".locks" / "first.lock"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    (tmp_path / ".locks").mkdir(exist_ok=True)
    assert holder.stdout.readline() == "held\n"
    assert Someone(tmp_path).take() == "free"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert Someone(tmp_path).take() == "first"


def test_a_failure_lets_go(tmp_path: Path) -> None:
    one = Someone(tmp_path)
    assert one.take() == "first"
    lock = FileLock(tmp_path / ".locks" / "first.lock", timeout=0)
    one.taken.close()
    with lock:
        pass


def test_an_input_made_anew_by_another_recipe_is_noticed(tmp_path: Path) -> None:
    one = Someone(tmp_path)
    assert one.take() == "first"
    one.finish("first")
    assert one.take() == "sft"
    one.shared.check_inputs(STAGES[1])
    finish(tmp_path, "first", key="another key")
    with pytest.raises(PosttrainError, match="'sft': its input 'first' was made anew by another process"):
        one.shared.check_inputs(STAGES[1])
