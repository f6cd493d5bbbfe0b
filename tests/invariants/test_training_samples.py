"""Samples while training: what the weights of that step say, and not a bit of the trajectory is changed by asking."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_models import demonstrations, folder, preferences
from training_runs import killed_after, metrics, same, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.types import Checkpoint, Message
from posttrain.engines.local.replies import replies
from posttrain.finetuning.sft import Sft
from posttrain.models.load import load
from posttrain.preference.dpo import Dpo
from posttrain.training.samples import prompts_of

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

SHARED = {
    "lr": 1e-2,
    "epochs": 2,
    "batch_size": 4,
    "save_every": 3,
    "dtype": "float32",
    "eval_share": 0.3,
    "eval_every": 100,
}
SAMPLES = {"sample_every": 2, "sample_count": 2, "sample_tokens": 6}
METHODS = {
    "sft": (Sft(**SHARED), demonstrations(20)),
    "sft_lora_dropout": (Sft(**SHARED, adapter="lora", rank=4, dropout=0.3), demonstrations(20)),
    "sft_bfloat16": (Sft(**{**SHARED, "dtype": "bfloat16"}), demonstrations(20)),
    "sft_recomputed": (Sft(**SHARED, activation_checkpointing=True), demonstrations(20)),
    "dpo": (Dpo(**SHARED), preferences(20)),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


def samples(out) -> list[dict]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", METHODS)
def test_the_trajectory_is_bit_for_bit_the_same_with_and_without(name, start, tmp_path):
    method, data = METHODS[name]
    plain = method(start, data, tmp_path / "plain", seed=3)
    sampled = replace(method, **SAMPLES)(start, data, tmp_path / "sampled", seed=3)
    same(weights(sampled), weights(plain), rtol=0, atol=0)
    assert metrics(tmp_path / "sampled") == metrics(tmp_path / "plain")
    assert sampled.key == plain.key
    found = samples(tmp_path / "sampled")
    assert [row["step"] for row in found] == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]
    assert not (tmp_path / "plain" / "samples.jsonl").exists()
    assert sampled.cost.usage.generated > 0
    assert sampled.cost.flops > plain.cost.flops


def greedy(path, messages, tokens) -> str:
    """By transformers' own generation."""
    net, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = net.generate(**ids, do_sample=False, max_new_tokens=tokens, eos_token_id=257, pad_token_id=257)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_samples_are_the_weights_own_of_that_step(start, tmp_path):
    method, data = METHODS["sft"]
    made = replace(method, **SAMPLES)(start, data, tmp_path, seed=3)
    found = samples(tmp_path)
    for path, step in ((start.path, 0), (made.path, 8)):
        for row in (row for row in found if row["step"] == step):
            assert row["reply"] == greedy(path, row["messages"], 6)
    assert {row["reply"] for row in found if row["step"] == 0} != {row["reply"] for row in found if row["step"] == 8}


def test_an_adapter_is_in_effect(tmp_path, start):
    from posttrain.core.types import Prompt, Sampling
    from posttrain.models.adapters import add_lora

    loaded = load(start.path, dtype="float32")
    ask = [Prompt(messages=(Message(role="user", content="1 plus 3?"),))]
    how = {"seed": 1, "shape": loaded.shape}
    before, cost = replies(loaded.model, loaded.tokenizer, ask, Sampling(max_tokens=5), **how)
    assert cost.usage.generated == len(before[0].tokens) + (before[0].finish == "stop")
    lora = add_lora(loaded.model, rank=4, alpha=64.0, seed=1)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    after, _ = replies(lora, loaded.tokenizer, ask, Sampling(max_tokens=5), **how)
    assert after[0].text != before[0].text


def test_killed_and_resumed_writes_the_same_samples(start, tmp_path):
    method, data = METHODS["sft"]
    method = replace(method, **SAMPLES)
    expected = method(start, data, tmp_path / "whole", seed=3)
    for at in (2, 5, 7):
        killed_after(lambda: method(start, data, tmp_path / "killed", seed=3), at)
    made = method(start, data, tmp_path / "killed", seed=3)
    assert samples(tmp_path / "killed") == samples(tmp_path / "whole")
    same(weights(made), weights(expected), rtol=0, atol=0)
    assert made.cost.usage == expected.cost.usage


def test_prompts_come_from_a_file_in_any_form_and_must_fit(start, tmp_path):
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = [
        {"prompt": "long" * 100},  # does not fit 256 tokens
        {"prompt": "1 plus 1?"},
        {"prompt": [{"role": "user", "content": "1 plus 1?"}]},  # the same again
        {"messages": [*said, {"role": "assistant", "content": "d"}]},
        {"messages": said},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    method = replace(METHODS["sft"][0], eval_share=0.0, eval_every=0, epochs=1, **SAMPLES, sample_data=str(file))
    method(start, demonstrations(4), tmp_path / "run", seed=1)
    asked = [[turn["content"] for turn in row["messages"]] for row in samples(tmp_path / "run")]
    assert asked[:2] == [["1 plus 1?"], ["a", "b", "c"]]
    assert [len(turns) for turns in prompts_of(rows, "x")] == [1, 1, 3, 1]
    file.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(DataError, match=r"no prompt of .*prompts.jsonl fits the context of 256 tokens with 6 to come"):
        method(start, demonstrations(4), tmp_path / "other", seed=1)
    file.write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match=r"prompts.jsonl, row 1: expected text or a list of messages"):
        method(start, demonstrations(4), tmp_path / "other", seed=1)


def test_a_trainer_without_samples_says_so(start, tmp_path, monkeypatch):
    monkeypatch.setattr("posttrain.finetuning.sft.replies", None)
    method = replace(METHODS["sft"][0], **SAMPLES)
    with pytest.raises(ConfigError, match="sft writes no samples"):
        method(start, demonstrations(20), tmp_path, seed=1)
