"""The alarm: what explodes against a running median, before weights change, with the rows at fault, through a resume."""

from dataclasses import replace

import pytest
import torch
from tiny_models import demonstrations, folder
from training_runs import killed_after, metrics, same, two_processes, weights

from posttrain.core.errors import TrainingError
from posttrain.core.types import Checkpoint
from posttrain.finetuning.sft import Sft
from posttrain.models.forward import Forward
from posttrain.training.alarm import LEAST, WINDOW, Alarm
from posttrain.training.optimiser import Optimiser

torch.set_num_threads(1)

SFT = Sft(lr=1e-3, epochs=6, batch_size=3, save_every=5, dtype="float32", explode=8.0)
DATA = demonstrations(12)  # 24 steps


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


def test_the_median_by_hand():
    alarm = Alarm(factor=3.0)
    for i in range(LEAST):
        assert alarm.exceeded(1e9, 1e9) is None  # nothing is judged yet
        alarm.note(1.0 + i % 2, 10.0)
    assert alarm.exceeded(4.4, 30.0) is None  # median 1.5: 3 × 1.5 = 4.5; 3 × 10 = 30 is not above
    assert alarm.exceeded(4.6, 1.0) == f"loss 4.6 is 3.1 times the median of the last {LEAST} steps (1.5)"
    assert "gradient norm 31 is 3.1 times" in alarm.exceeded(1.0, 31.0)
    alarm.note(1e6, 1e6)  # one odd step does not move the measure
    assert alarm.exceeded(6.1, 1.0) is not None
    for _ in range(WINDOW):
        alarm.note(-1.0, 100.0)
    assert alarm.exceeded(1e9, 1.0) is None  # a loss that is not positive has no scale
    again = Alarm(factor=3.0)
    again.load(alarm.state())
    assert again.state() == alarm.state()
    assert len(again.norms) == WINDOW


def explode_at(monkeypatch, step, factor=100.0):
    """Let row 7's loss be that many times as large from a step on."""
    forward, updates = Forward.forward, []
    update = Optimiser.update
    monkeypatch.setattr(Optimiser, "update", lambda self, *a: (updates.append(1), update(self, *a))[1])

    def blown(self, batch, weights_N=None):
        found = forward(self, batch, weights_N)
        odd = weights_N is not None and len(updates) >= step and (batch.ids_BT == ord("7") - 33).any()
        return (found[0] * factor, found[1]) if odd else found

    monkeypatch.setattr(Forward, "forward", blown)
    return updates


def test_an_explosion_stops_before_the_update_and_names_the_row(start, tmp_path, monkeypatch):
    data = [{"prompt": f"{'abcdefghijkl'[i]}?", "completion": "7" if i == 7 else "yes"} for i in range(12)]
    updates = explode_at(monkeypatch, 20)
    method = replace(SFT, tokens_per_microbatch=1)
    with pytest.raises(TrainingError, match=r"^step 2\d: (loss|gradient norm) .*times the median.*by themselves are row 7:"):
        method(start, data, tmp_path, seed=3)
    assert len(updates) == len(metrics(tmp_path))
    assert 20 <= len(updates) < 24
    monkeypatch.undo()
    # the reason is gone: the same command, with a higher factor even, goes on from the last saved state
    made = replace(method, explode=50.0)(start, data, tmp_path, seed=3)
    whole = replace(method, explode=0.0)(start, data, tmp_path / "whole", seed=3)
    same(weights(made), weights(whole), rtol=0, atol=0)
    assert metrics(tmp_path) == metrics(tmp_path / "whole")


def test_two_processes_stop_together(start, tmp_path):
    def work():
        Optimiser.norm = lambda self, usual=Optimiser.norm: usual(self) * (100.0 if len(taken) >= 20 else 1.0)
        update, taken = Optimiser.update, []
        Optimiser.update = lambda self, *a: (taken.append(1), update(self, *a))[1]
        SFT(start, DATA, tmp_path / "two", seed=3)

    assert two_processes(work, tmp_path / "meet") == [1, 1]
    assert len(metrics(tmp_path / "two")) == 20


def test_a_usual_run_is_not_stopped_and_resumes_with_its_memory(start, tmp_path, monkeypatch):
    seen = []
    note = Alarm.note
    monkeypatch.setattr(Alarm, "note", lambda self, loss, norm: (note(self, loss, norm), seen.append(self.state()))[0])
    whole = SFT(start, DATA, tmp_path / "whole", seed=3)
    uninterrupted = seen[-1]
    killed_after(lambda: SFT(start, DATA, tmp_path / "killed", seed=3), 18)
    made = SFT(start, DATA, tmp_path / "killed", seed=3)
    assert seen[-1] == uninterrupted
    assert len(seen[-1]["losses"]) == 24
    same(weights(made), weights(whole), rtol=0, atol=0)
