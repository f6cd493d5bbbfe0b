"""The estimate before the first step, against the memory that a step really takes; and what it advises."""

import gc
import json
import warnings
from dataclasses import replace

import pytest
import torch
from tiny_models import demonstrations, folder, llama, preferences
from torch.profiler import ProfilerActivity, profile
from training_runs import metrics

from posttrain.core.types import Checkpoint
from posttrain.finetuning.sft import Sft
from posttrain.models.forward import Forward
from posttrain.models.load import load
from posttrain.preference.dpo import Dpo
from posttrain.training import session
from posttrain.training.estimate import Estimate, Sizes, advice, estimate, free_memory, measure, words
from posttrain.training.step import Learner

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # PEFT calling transformers
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),  # the profiler's, of CUDA
]

FACTOR = 3.0  # the estimate is a bound: it must not be below the measured peak, nor above this many times
SIZES = Sizes(
    weights=2_000, trained=1_000, width=2, layers=4, hidden=8, vocabulary=100, linear=400.0, quadratic=0.5, tokens=64
)


def measured_peak(trace) -> int:
    """The most bytes that were allocated at once above what there was at the beginning."""
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation_checkpointing": True},
        {"dtype": "bfloat16"},
        {"adapter": "lora", "rank": 4},
        {"tokens_per_microbatch": 60},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", [Sft, Dpo], ids=["sft", "dpo"])
def test_the_measured_peak_of_a_step_is_below_it_and_within_a_factor(method, changes, tmp_path, monkeypatch):
    config = llama(hidden_size=96, intermediate_size=256, num_hidden_layers=6, vocab_size=2000, num_attention_heads=4)
    start = Checkpoint(path=folder(tmp_path / "model", config))
    data = demonstrations(32) if method is Sft else preferences(32)
    settings = {"batch_size": 16, "dtype": "float32", "tokens_per_microbatch": 400, "lr": 1e-4, **changes}
    update, peaks = Learner.update, []
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def profiled(self, items, *, step, lr):
        if step == 0:  # in the first step Adam's moments are made, in the second they lie beside the activations
            kept = [m.grad for m in self.optimiser.masters] + [
                moment for state in self.optimiser._adamw.state.values() for moment in state.values()
            ]
            peaks.append(sum(tensor.nbytes for tensor in kept if tensor is not None))  # or they are there already
            profiler.start()
        measured = update(self, items, step=step, lr=lr)
        if step == 1:
            profiler.stop()
            profiler.export_chrome_trace(str(tmp_path / "trace.json"))
            peaks[0] += measured_peak(tmp_path / "trace.json")
        return measured

    monkeypatch.setattr(Learner, "update", profiled)
    made = method(**settings)(start, data, tmp_path / "run", seed=1)
    told = json.loads((made.path / "posttrain.json").read_text())["estimate"]
    assert told == json.loads((tmp_path / "run" / "estimate.json").read_text())
    bound = sum(told[part] for part in ("gradients", "adam", "activations", "logits"))  # the rest was there before
    print(method.__name__, changes, "measured", peaks[0], "estimated", bound, f"{bound / peaks[0]:.2f}")
    assert peaks[0] <= bound <= FACTOR * peaks[0]
    assert told["steps"] == 2
    assert 0 < told["seconds"] < 600


def test_the_parts_by_hand():
    found = estimate(SIZES)
    kept = 400 * 64 + 0.5 * 64 * 64
    assert (found.weights, found.masters, found.gradients, found.adam) == (2000, 4000, 4000, 8000)
    assert found.activations == kept + kept / 4
    assert found.logits == 64 * 100 * (2 + 8) + 64 * 100 * 2
    assert found.total == found.more + 2000
    assert found.overhead == 0
    on_processor = estimate(replace(SIZES, cpu=True))
    assert on_processor.more == pytest.approx(1.25 * (on_processor.more - on_processor.overhead), abs=1)
    wide = estimate(replace(SIZES, width=4))
    assert (wide.masters, wide.gradients, wide.adam) == (0, 4000, 8000)
    double = estimate(replace(SIZES, width=8))
    assert (double.masters, double.gradients, double.adam) == (0, 8000, 16000)
    assert estimate(replace(SIZES, eight_bit=True)).adam == 2000
    again = estimate(replace(SIZES, recomputed=True))
    assert again.activations == 4 * 64 * 8 * 2 + 2 * kept / 4  # four inputs, and one layer's with its gradients


def test_advice_names_what_fits():
    need = estimate(SIZES)

    def advised(free, sizes=SIZES, longest=16, cuda=False):
        return advice(sizes, replace(estimate(sizes), free=free), longest=longest, cuda=cuda)

    assert advised(need.more) is None
    assert advised(None) is None
    tight = advised(need.more - 1)
    assert "tokens_per_microbatch=32" in tight
    assert "activation_checkpointing=true" in tight
    assert "adapter=lora" in tight
    assert "adamw8bit" not in tight
    assert "adamw8bit" in advised(need.more - 1, cuda=True)
    assert "tokens_per_microbatch" not in advised(need.more - 1, longest=64)  # a row is that long
    assert "tokens_per_microbatch=16" in advised(estimate(replace(SIZES, tokens=16)).more)
    little = advised(10)
    assert "no single setting is enough: combine" in little
    done = replace(SIZES, full=False, recomputed=True, tokens=16)
    assert "combine" in advised(1, done) or "smaller model" in advised(1, done)


def test_words():
    found = Estimate(
        weights=2**30, masters=2**31, gradients=0, adam=2**20, activations=0, logits=0, seconds=600.0, steps=7, free=2**33
    )
    assert words("sft", found) == (
        "sft: about 3.0 GiB of memory at most (weights 1.0 GiB, masters 2.0 GiB, Adam 1 MiB); 2.0 GiB beside the weights, "
        "8.0 GiB free; 7 steps, about 10 min"
    )
    asked = words("grpo", found, asks=True)
    assert asked.endswith("7 steps, about 10 min, were every sample as long as it may be and none without gradient")


def test_it_is_told_before_the_first_step_and_advice_with_it(tmp_path, monkeypatch, capsys):
    start = Checkpoint(path=folder(tmp_path / "model"))
    monkeypatch.setattr(session, "free_memory", lambda device: 1000)

    def first(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "update", first)
    with pytest.raises(KeyboardInterrupt):
        Sft(dtype="float32")(start, demonstrations(8), tmp_path / "run", seed=1)
    told = capsys.readouterr().err
    assert "note: sft: about" in told
    assert "more than is free" in told
    assert json.loads((tmp_path / "run" / "estimate.json").read_text())["free"] == 1000


def test_measuring_changes_nothing(tmp_path, monkeypatch):
    start = Checkpoint(path=folder(tmp_path / "model"))
    method = Sft(dtype="float32", adapter="lora", dropout=0.3, lr=1e-2)
    method(start, demonstrations(8), tmp_path / "a", seed=1)
    state = torch.get_rng_state()
    called = []
    monkeypatch.setattr(session, "measure", lambda *a, **k: (called.append(1), measure(*a, **k), measure(*a, **k))[1])
    method(start, demonstrations(8), tmp_path / "b", seed=1)
    assert called
    assert torch.equal(torch.get_rng_state(), state)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_measuring_keeps_nothing(tmp_path):
    made = load(folder(tmp_path / "model"))
    module = Forward(made.model)

    def held() -> int:
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # looking at every object wakes deprecated ones
            return sum(isinstance(found, torch.Tensor) for found in gc.get_objects())

    before = held()
    measure(module, made.shape, context=64, tokens=32, recomputed=False, eight_bit=False, full=True)
    assert held() == before


def test_free_memory_of_this_machine():
    found = free_memory(torch.device("cpu"))
    assert found is None or 1e6 < found < 1e14
