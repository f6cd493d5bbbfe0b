"""Trackers: TensorBoard for real where it is installed, the others as the calls that their libraries would get."""

import importlib.util
import json
import sys
import types
from dataclasses import replace

import pytest
import torch
from tiny_models import demonstrations, folder
from training_runs import killed_after, metrics, same, weights

from posttrain.core.errors import ConfigError
from posttrain.core.types import Checkpoint
from posttrain.finetuning.sft import Sft
from posttrain.training.tracking import Tracking

torch.set_num_threads(1)

SFT = Sft(lr=1e-2, epochs=2, batch_size=4, save_every=2, dtype="float32", eval_share=0.2, eval_every=2)
DATA = demonstrations(12)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


class Library(types.ModuleType):
    """Records every call; what is called returns an object of the same kind, as a run has methods too."""

    def __init__(self, name, calls=None):
        super().__init__(name)
        self.calls = [] if calls is None else calls
        self.info = types.SimpleNamespace(run_id="r1")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return Library(f"{self.__name__}.{name}", self.calls)

        return call


@pytest.fixture
def library(monkeypatch, request):
    made = Library(request.param)
    monkeypatch.setitem(sys.modules, request.param, made)
    return made


def logged(library) -> list[tuple[dict, int]]:
    return [(args[0], kwargs["step"]) for name, args, kwargs in library.calls if name in ("log", "log_metrics")]


@pytest.mark.parametrize("library", ["wandb", "mlflow", "trackio"], indirect=True)
def test_a_tracker_gets_the_run_its_settings_and_every_line(library, start, tmp_path):
    track = library.__name__
    out = tmp_path / "my-run"
    made = replace(SFT, track=track)(start, DATA, out, seed=3)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert logged(library) == [({k: float(v) for k, v in row.items() if k != "step"}, row["step"]) for row in rows]
    assert "eval_loss" in logged(library)[1][0]
    names = [name for name, _, _ in library.calls]
    assert names[-1] == {"wandb": "finish", "mlflow": "end_run", "trackio": "finish"}[track]
    if track == "mlflow":
        assert library.calls[0] == ("set_experiment", ("posttrain",), {})
        assert library.calls[1] == ("start_run", (), {"run_name": "my-run"})
        assert library.calls[2][1][0]["lr"] == 1e-2
    else:
        name, _, how = library.calls[0]
        assert (name, how["project"], how["resume"]) == ("init", "posttrain", "allow")
        assert how["config"]["batch_size"] == 4
        assert made.key in how["id" if track == "wandb" else "name"]


@pytest.mark.parametrize("library", ["wandb", "mlflow", "trackio"], indirect=True)
def test_a_resumed_run_is_the_same_run_of_the_tracker(library, start, tmp_path):
    method = replace(SFT, track=library.__name__)
    killed_after(lambda: method(start, DATA, tmp_path / "run", seed=3), 3)
    made = method(start, DATA, tmp_path / "run", seed=3)
    assert [step for _, step in logged(library)] == [3, 4, 5, 6]  # the killed process's calls are not in this one
    if library.__name__ == "mlflow":
        assert library.calls[1] == ("start_run", (), {"run_id": "r1"})
        assert "log_params" not in [name for name, _, _ in library.calls]
    else:
        assert any(made.key in str(value) for value in library.calls[0][2].values())


@pytest.mark.parametrize("track", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_library_that_is_missing_is_named_before_anything_is_loaded(track, start, tmp_path, monkeypatch):
    for name in (track, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("posttrain.training.session.open_start", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=rf"^track={track} needs the package {track} .*pip install {track}"):
        replace(SFT, track=track)(start, DATA, tmp_path, seed=3)


@pytest.mark.parametrize("library", ["wandb"], indirect=True)
def test_a_tracker_that_cannot_begin_is_one_sentence(library, tmp_path):
    library.init = lambda **_: (_ for _ in ()).throw(RuntimeError("no API key"))
    with pytest.raises(ConfigError, match=r"track=wandb cannot begin a run \(no API key\)"):
        Tracking.open("wandb", tmp_path, key="k", config={}, done=0)


@pytest.mark.parametrize("library", ["trackio"], indirect=True)
def test_a_tracker_that_fails_is_told_once_and_training_goes_on(library, start, tmp_path, capsys):
    library.log = lambda *_, **__: (_ for _ in ()).throw(OSError("connection lost"))
    made = replace(SFT, track="trackio")(start, DATA, tmp_path / "run", seed=3)
    plain = SFT(start, DATA, tmp_path / "plain", seed=3)
    same(weights(made), weights(plain), rtol=0, atol=0)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "plain")
    assert capsys.readouterr().err.count("track=trackio failed (connection lost)") == 1


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard itself
def test_tensorboard_reads_back_what_was_measured_through_a_kill(start, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    method = replace(SFT, track="tensorboard")
    killed_after(lambda: method(start, DATA, tmp_path / "run", seed=3), 3)
    method(start, DATA, tmp_path / "run", seed=3)
    read = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    read.Reload()
    rows = metrics(tmp_path / "run")
    for name in ("loss", "lr", "grad_norm"):
        found = {event.step: event.value for event in read.Scalars(name)}
        assert found == pytest.approx({row["step"]: row[name] for row in rows}, rel=1e-6)
    held_out = {event.step: event.value for event in read.Scalars("eval_loss")}
    assert held_out == pytest.approx({row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}, rel=1e-6)
    assert sorted(event.step for event in read.Scalars("loss")) == [row["step"] for row in rows]  # no step twice
