"""Lanes, micro-batches at once in two threads: one trajectory, the same numbers each time, and what cannot have them."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import test_grpo
import test_kto
import test_ppo
import test_reward_training
import torch
from tiny_models import demonstrations, ending_folder, folder, llama, preferences, tokenizer
from training_runs import die_after, metrics, same, weights
from transformers import AutoModelForCausalLM, GPT2Config

from posttrain.core.errors import ConfigError
from posttrain.core.types import Checkpoint
from posttrain.finetuning.distill import Distill
from posttrain.finetuning.preference_sft import PreferenceSft
from posttrain.finetuning.sft import Sft
from posttrain.models.forward import Forward
from posttrain.models.load import load
from posttrain.preference.dpo import Dpo
from posttrain.training.estimate import Sizes, advice, estimate, words
from posttrain.training.lanes import Lanes, choose, hindrance, open_lanes, sharing_weights
from posttrain.training.optimiser import Optimisation, Optimiser
from posttrain.training.rows import encode_pair
from posttrain.training.settings import LoopSettings, key_config

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

SFT = Sft(lr=1e-2, epochs=2, batch_size=5, save_every=2, dtype="float32", tokens_per_microbatch=80)
DPO = Dpo(lr=1e-2, epochs=2, batch_size=5, save_every=2, dtype="float32", tokens_per_microbatch=80)
HELD = {"eval_share": 0.3, "eval_start": True, "eval_every": 2}
CASES = {
    "sft": (SFT, demonstrations(13)),
    "sft_held_out": (replace(SFT, **HELD), demonstrations(13)),
    "sft_lora": (replace(SFT, adapter="lora", rank=4), demonstrations(13)),
    "sft_dora": (replace(SFT, adapter="dora", rank=4), demonstrations(13)),
    "sft_ia3": (replace(SFT, adapter="ia3"), demonstrations(13)),
    "sft_prefix": (replace(SFT, adapter="prefix", virtual_tokens=3), demonstrations(13)),
    "sft_prompt": (replace(SFT, adapter="prompt", virtual_tokens=3), demonstrations(13)),
    "sft_bottleneck": (replace(SFT, adapter="bottleneck", width=6), demonstrations(13)),
    "dpo": (DPO, preferences(13)),
    "ranked": (PreferenceSft(lr=1e-2, batch_size=5, dtype="float32", margin="sigmoid"), preferences(13)),
    "kto": (test_kto.BASE, test_kto.ROWS),
    "reward": (replace(test_reward_training.BASE, **HELD), preferences(13)),
    "grpo": (replace(test_grpo.BASE, kl=0.1, kl_in="loss", clip_high=0.3, batch_size=4), test_grpo.ROWS),
    "ppo": (replace(test_ppo.BASE, **test_ppo.VARIANTS["adaptive"]), test_ppo.ROWS),
}
QUICK = ("sft", "sft_held_out", "sft_lora", "sft_prompt", "dpo", "kto", "reward", "ppo")
OFTEN = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    plain = Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))
    ending = Checkpoint(path=ending_folder(tmp_path_factory.mktemp("ending") / "model"))
    return lambda name: ending if name in ("grpo", "ppo") else plain


@pytest.fixture
def seen(monkeypatch):
    """The names of the threads in which a lane ran anything."""
    names, run = set(), Lanes.run

    def noted(self, work):
        def told(module, lane):
            names.add(threading.current_thread().name)
            return work(module, lane)

        return run(self, told)

    monkeypatch.setattr(Lanes, "run", noted)
    return names


@pytest.mark.parametrize("name", OFTEN)
def test_two_lanes_follow_the_trajectory_of_one(name, starts, tmp_path, seen):
    method, data = CASES[name]
    alone = replace(method, lanes=1)(starts(name), data, tmp_path / "one", seed=3)
    assert seen <= {"MainThread"}
    beside = replace(method, lanes=2)(starts(name), data, tmp_path / "two", seed=3)
    assert len(seen) == 2
    assert torch.get_num_threads() == 2
    assert len(metrics(tmp_path / "one")) > 2
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-4)
    same(weights(beside), weights(alone), rtol=1e-2, atol=1e-3)
    assert beside.cost.flops == alone.cost.flops


def train(name, lanes, start, out):
    method, data = CASES[name]
    return replace(method, lanes=lanes)(Checkpoint(path=Path(start)), data, Path(out), seed=3)


def train_and_die(name, start, out):
    die_after(3)
    train(name, 0, start, out)


def train_as(rank, meeting, *args):
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    train(*args)


def interpreter(function, *args):
    """Start a fresh interpreter, for threads do not outlive a fork: what two of them shared would wait for ever."""
    code = f"import torch, test_lanes; torch.set_num_threads(2); test_lanes.{function}(*{args!r})"
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})


@pytest.mark.parametrize("name", ["dpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sft_lora", "ppo"))])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(name, starts, tmp_path, seen):
    expected = train(name, 0, starts(name).path, tmp_path / "whole")
    assert len(seen) == 2  # chosen without being asked for
    killed = interpreter("train_and_die", name, str(starts(name).path), str(tmp_path / "cut"))
    assert killed.wait(120) == -signal.SIGKILL
    resumed = train(name, 0, starts(name).path, tmp_path / "cut")
    same(weights(resumed), weights(expected), rtol=0, atol=0)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_two_processes_of_two_lanes_follow_the_trajectory_of_one(starts, tmp_path):
    expected = train("dpo", 1, starts("dpo").path, tmp_path / "one")
    told = (str(tmp_path / "meet"), "dpo", 2, str(starts("dpo").path), str(tmp_path / "two"))
    assert [process.wait(120) for process in [interpreter("train_as", rank, *told) for rank in (0, 1)]] == [0, 0]
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-4)
    same(weights(Checkpoint(path=tmp_path / "two" / "checkpoint")), weights(expected), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_gradient_is_that_of_both_lanes_rows_worked_out_by_transformers_alone(dtype, tied, tmp_path):
    loaded = load(folder(tmp_path / "model", llama(tie_word_embeddings=tied)), dtype=dtype)
    rows = [tokenizer()(f"{i} plus {i * 7} is much").input_ids for i in range(2)]
    module = Forward(loaded.model.requires_grad_(True))
    lanes = open_lanes("sft", module, 2)
    optimiser = Optimiser(module, Optimisation(lr=1e-2))
    lanes.collect_into(optimiser)

    class Row:
        def __init__(self, ids):
            self.ids, self.mask = ids, [i > 0 for i in range(len(ids))]

    def work(module, lane):
        loss = -module(module.batch([[Row(rows[lane])]])).sum()
        loss.backward()
        return float(loss.detach())

    for weight in (1, 2):  # a second call adds to the first one's gradients, and to them alone
        losses = lanes.run(work)
        reference = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
        total = 0.0
        for ids, ours in zip(rows, losses, strict=True):
            each = (
                -reference(torch.tensor([ids])).logits[0, :-1].log_softmax(-1).gather(1, torch.tensor(ids)[1:, None]).sum()
            )
            assert ours == pytest.approx(float(each.detach()), rel=1e-5 if dtype == "float32" else 3e-2)
            total = total + weight * each
        total.backward()
        expected = {name: p.grad for name, p in reference.named_parameters()}
        for name, found in zip(optimiser.names, optimiser.gradients(), strict=True):
            exact = expected[name.removeprefix("model.")]
            assert float((found - exact).norm() / exact.norm()) < (1e-5 if dtype == "float32" else 0.05), name
    lanes.close()
    optimiser.close()


def test_a_copy_has_the_weights_in_common_and_the_ties_among_them(tmp_path):
    module = Forward(load(folder(tmp_path / "model"), dtype="bfloat16").model)
    other = sharing_weights(module)
    pairs = list(zip(module.parameters(), other.parameters(), strict=True))
    assert all(a is not b and a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert other.model.get_output_embeddings().weight is other.model.get_input_embeddings().weight
    with torch.no_grad():
        module.model.get_input_embeddings().weight.zero_()
    assert not other.model.get_output_embeddings().weight.any()


def test_a_copy_that_reaches_into_the_first_is_noticed(tmp_path, capsys):
    module = Forward(load(folder(tmp_path / "model"), dtype="float32").model.requires_grad_(True))
    assert open_lanes("sft", module, 1) is None
    layer = module.model.model.layers[0].mlp
    bias = torch.nn.Parameter(torch.zeros(32))
    layer.register_parameter("shift", bias)
    layer.register_forward_hook(lambda _module, _args, output: output + bias)  # a closure: its cell is not copied
    assert open_lanes("sft", module, 2) is None
    assert "a copy of it reaches into the first): it is trained in one" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"sft: lanes = 2 cannot be: the model cannot be copied .*reaches into the first"):
        open_lanes("sft", module, 2, wanted=2)
    assert all(p.grad is None for p in module.parameters())


def test_a_model_that_cannot_be_copied_is_trained_in_one_lane(tmp_path, capsys):
    module = Forward(load(folder(tmp_path / "model"), dtype="float32").model)
    module.model.lock = threading.Lock()
    assert open_lanes("sft", module, 2) is None
    assert "cannot be copied for several lanes (cannot pickle" in capsys.readouterr().err
    del module.model.lock
    module.model.model.layers[1].__class__.__deepcopy__ = lambda self, memo: torch.nn.Identity()  # a copy that is none
    try:
        assert open_lanes("sft", module, 2) is None
    finally:
        del module.model.model.layers[1].__class__.__deepcopy__
    assert "several lanes (a copy of it fails: " in capsys.readouterr().err


def test_what_was_not_opened_is_not_told(starts, tmp_path, monkeypatch, seen):
    """A run whose model cannot be copied says in `posttrain.json` that it had one lane."""
    method, data = CASES["sft"]
    monkeypatch.setattr("posttrain.training.lanes._fault", lambda *_: "no")
    made = method(starts("sft"), data, tmp_path / "out", seed=3)
    assert not seen
    assert json.loads((made.path / "posttrain.json").read_text())["estimate"]["lanes"] == 1


def test_lanes_that_would_be_uneven_leave_all_threads_to_one_item_after_the_other(starts, tmp_path, seen):
    class Module(torch.nn.Module):
        pass

    lanes = Lanes(Module(), 2)
    assert lanes.deal("ab", [5, 5]) == [(["a"], [5]), (["b"], [5])]
    assert lanes.deal("ab", [6, 4]) is not None  # 1.2 times the mean
    assert lanes.deal("ab", [7, 4]) is None
    assert lanes.deal("a", [5]) is None
    assert lanes.deal("abc", [5, 5, 5]) is None  # 10 and 5 take longer than 15 by both threads
    lanes.close()
    one_row = replace(SFT, batch_size=1, epochs=1)
    alone = replace(one_row, lanes=1)(starts("sft"), demonstrations(4), tmp_path / "one", seed=3)
    beside = one_row(starts("sft"), demonstrations(4), tmp_path / "two", seed=3)
    assert not seen
    same(weights(beside), weights(alone), rtol=0, atol=0)


def test_an_error_in_a_lane_is_raised_when_the_others_have_ended():
    class Module(torch.nn.Module):
        pass

    lanes, ended = Lanes(Module(), 2), []

    def work(_module, lane):
        ended.append(lane)
        if lane == 1:
            raise ValueError("of lane 1")

    with pytest.raises(ValueError, match="of lane 1"):
        lanes.run(work)
    assert sorted(ended) == [0, 1]
    assert torch.get_num_threads() == 2
    with torch.no_grad():
        assert lanes.run(lambda _module, _lane: torch.is_grad_enabled()) == [False, False]
    assert lanes.run(lambda _module, _lane: (torch.is_grad_enabled(), torch.get_num_threads())) == [(True, 1), (True, 1)]
    lanes.close()


REFUSED = {
    "dropout": (replace(SFT, adapter="lora", dropout=0.1), demonstrations(5)),
    "activation_checkpointing": (replace(SFT, activation_checkpointing=True), demonstrations(5)),
    "reads other models": (Distill(teacher="", dtype="float32", lr=1e-2), demonstrations(5)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_have_lanes_is_trained_in_one_and_refuses_several(why, starts, tmp_path, seen):
    method, data = REFUSED[why]
    if isinstance(method, Distill):
        method = replace(method, teacher=str(starts("sft").path))
    method(starts("sft"), data, tmp_path / "chosen", seed=3)
    assert seen <= {"MainThread"}
    with pytest.raises(ConfigError, match=f"lanes = 2 cannot be: .*{why}.*Leave lanes out"):
        replace(method, lanes=2)(starts("sft"), data, tmp_path / "asked", seed=3)


def test_a_rate_of_dropout_in_the_configuration_is_seen(tmp_path):
    objective, loop = type("O", (), {"side_by_side": True})(), LoopSettings()
    for rate in (0.0, 0.1):
        config = GPT2Config(
            vocab_size=258, n_embd=32, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=rate, bos_token_id=None,
            eos_token_id=257,
        )  # fmt: skip
        module = Forward(load(folder(tmp_path / f"gpt{rate}", config), dtype="float32").model)
        assert (hindrance([module], objective, loop) is None) == (rate == 0)
    assert "bear several threads" in str(hindrance([module], object(), loop))


SIZES = Sizes(
    weights=2_000, trained=1_000, width=2, layers=4, hidden=8, vocabulary=100, linear=400.0, quadratic=0.5, tokens=64
)


def test_each_lane_needs_gradients_activations_and_logits(tmp_path):
    one, two = estimate(SIZES), estimate(replace(SIZES, lanes=2))
    assert two.gradients == 2 * one.gradients == 8_000
    assert (two.activations, two.logits) == (2 * one.activations, 2 * one.logits)
    assert (two.masters, two.adam, two.weights) == (one.masters, one.adam, one.weights)
    assert "7 steps in 2 lanes, about" in words("sft", replace(two, steps=7))
    assert "7 steps, about" in words("sft", replace(one, steps=7))
    tight = replace(two, free=one.more)
    assert "lanes=1" in str(advice(replace(SIZES, lanes=2), tight, longest=64, cuda=False))


def test_lanes_are_chosen_by_threads_and_memory_and_kept_on_resume(tmp_path):
    def chosen(wanted=0, free=None, hindered=None):
        return choose("sft", wanted, SIZES, tmp_path, hindered=hindered, free=free)

    needs = estimate(replace(SIZES, lanes=2)).more
    assert (chosen(), chosen(free=needs), chosen(free=needs - 1), chosen(hindered="no")) == (2, 2, 1, 1)
    assert (chosen(1), chosen(2), chosen(2, free=0)) == (1, 2, 2)
    (tmp_path / "estimate.json").write_text('{"lanes": 2}')
    assert chosen(free=0) == 2
    (tmp_path / "estimate.json").write_text('{"lanes": 1}')
    assert chosen() == 1
    (tmp_path / "estimate.json").write_text("{}")  # of a run that began before there were lanes
    assert chosen() == 1
    with pytest.raises(ConfigError, match="lanes = 3 are more than the 2 threads of this process: set lanes=2"):
        chosen(3)
    torch.set_num_threads(1)
    (tmp_path / "estimate.json").write_text('{"lanes": 2}')
    assert chosen() == 1
    with pytest.raises(ConfigError, match="lanes = -1 is out of range"):
        LoopSettings.of(replace(SFT, lanes=-1))


def test_lanes_do_not_change_what_a_run_is():
    assert key_config(replace(SFT, lanes=2)) == key_config(SFT)


def test_a_copy_of_a_module_in_training_leaves_its_optimiser_alone(tmp_path):
    module = Forward(load(folder(tmp_path / "model"), dtype="bfloat16").model.requires_grad_(True))
    optimiser = Optimiser(module, Optimisation(lr=1e-2))
    module.collect_into(optimiser.sink)
    copied = sharing_weights(module)
    assert copied._sink is None
    assert module._sink == optimiser.sink
    copied(copied.batch([encode_pair(tokenizer(), preferences(1)[0], where="row")])).sum().backward()
    assert not any(bool(master.grad.any()) for master in optimiser.masters)
    optimiser.close()
