"""Ctrl-C and SIGTERM lose nothing of a training: the step is finished, its state saved, the same command goes on."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from tiny_models import demonstrations, folder, preferences
from training_runs import exit_of, in_child, metrics, same, two_processes, weights

from posttrain.core.types import Checkpoint
from posttrain.finetuning.sft import Sft
from posttrain.preference.dpo import Dpo
from posttrain.training.state import Metrics
from posttrain.training.stopping import heeding_signals

torch.set_num_threads(1)

SFT = Sft(lr=1e-2, epochs=2, batch_size=5, save_every=0, dtype="float32", dropout=0.3, adapter="lora", rank=4)
DPO = Dpo(lr=1e-2, epochs=2, batch_size=5, save_every=0, dtype="float32")
METHODS = {"sft": (SFT, demonstrations(13)), "dpo": (DPO, preferences(13))}
EXITS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(autouse=True)
def interruptible():
    """A shell starts background jobs with Ctrl-C ignored, and what they start inherits it: the tests are about the rest."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


def asked_after(work, lines, *signals, of=0):
    """Run, and ask process `of` to stop when its metrics have that many lines; ends as the command line would."""
    write = Metrics.write

    def counted(self, row):
        write(self, row)
        if row["step"] == lines and "loss" in row:
            for number in signals:
                os.kill(os.getpid(), number)

    Metrics.write = counted
    try:
        work()
    except KeyboardInterrupt:
        os._exit(130)
    except SystemExit as end:
        os._exit(end.code)


@pytest.mark.parametrize(("name", "number", "lines"), [
    ("sft", signal.SIGTERM, 3), ("dpo", signal.SIGINT, 1), ("sft", signal.SIGINT, 6), ("dpo", signal.SIGTERM, 6),
])  # fmt: skip
def test_asked_to_stop_and_resumed_equals_uninterrupted_bit_for_bit(name, number, lines, start, tmp_path):
    method, data = METHODS[name]
    expected = method(start, data, tmp_path / "whole", seed=3)
    out = tmp_path / "stopped"
    assert exit_of(in_child(lambda: asked_after(lambda: method(start, data, out, seed=3), lines, number))) == EXITS[number]
    assert [path.name for path in (out / "state").iterdir()] == [f"step-{lines:08d}"], "6 is the last step: it is kept, too"
    assert len(metrics(out)) == lines
    assert not (out / "checkpoint").exists()
    resumed = method(start, data, out, seed=3)
    same(weights(resumed), weights(expected), rtol=0, atol=0)
    assert metrics(out) == metrics(tmp_path / "whole")
    assert not (out / "state").exists()


def test_asked_again_it_stops_at_once(start, tmp_path):
    method, data = METHODS["sft"]
    out = tmp_path / "out"
    child = in_child(lambda: asked_after(lambda: method(start, data, out, seed=3), 2, signal.SIGINT, signal.SIGINT))
    assert exit_of(child) == 130
    assert not (out / "state").exists()


def test_one_of_two_processes_is_asked_and_both_stop_after_the_same_step(start, tmp_path):
    """Process 0 alone writes metrics, and so gets the signal; process 1 leaves with it."""
    method, data = replace(DPO, batch_size=4), METHODS["dpo"][1]
    expected = method(start, data, tmp_path / "whole", seed=3)
    out = tmp_path / "stopped"
    work = lambda: method(start, data, out, seed=3)  # noqa: E731
    assert two_processes(lambda: asked_after(work, 2, signal.SIGTERM), tmp_path / "meeting") == [143, 130]
    assert [path.name for path in (out / "state").iterdir()] == ["step-00000002"]
    assert two_processes(work, tmp_path / "again") == [0, 0]
    for a, b in zip(metrics(out), metrics(tmp_path / "whole"), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-5)
    same(weights(method(start, data, out, seed=3)), weights(expected), rtol=1e-2, atol=1e-3)


def test_signals_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in EXITS]
    with heeding_signals() as asked:
        assert not asked.everywhere()
        assert [signal.getsignal(number) for number in EXITS] != before
    assert [signal.getsignal(number) for number in EXITS] == before


def test_a_signal_that_nobody_looked_for_in_time_is_obeyed_at_the_end():
    seen = []

    def work():
        with heeding_signals() as asked:
            signal.raise_signal(signal.SIGINT)
            seen.append(asked.noted)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_the_starter_chose_to_ignore_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heeding_signals() as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked.noted
    finally:
        signal.signal(signal.SIGINT, before)
