"""Every kind of adapter through the trainers: what changes, resuming, the reference, going on, counts, costs, refusals."""

import asyncio
import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import demonstrations, folder, llama, preferences
from training_runs import metrics, spread
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from posttrain.core.errors import ConfigError, ModelError
from posttrain.core.types import Checkpoint, Message, Prompt
from posttrain.data.masks import encode_completion
from posttrain.engines.local import LocalEngine
from posttrain.finetuning.sft import Sft
from posttrain.models.four_bit import in_four_bits
from posttrain.models.load import fingerprint_of, load
from posttrain.preference.dpo import Dpo
from posttrain.stats.flops import forward_flops, train_flops
from posttrain.training.artifact import run_key
from posttrain.training.state import Metrics
from posttrain.training.step import Learner

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

SETTINGS = {
    "lora": {"rank": 4},
    "rslora": {"rank": 4, "targets": ("q_proj", "down_proj")},
    "dora": {"rank": 4},
    "ia3": {},
    "prefix": {"virtual_tokens": 3},
    "prompt": {"virtual_tokens": 3},
    "bottleneck": {"width": 6},
}
MERGED = ("lora", "rslora", "dora", "ia3")
KEPT = ("prefix", "prompt", "bottleneck")
SFT = Sft(lr=2e-2, epochs=2, batch_size=5, dtype="float32", save_every=2)
DPO = Dpo(lr=2e-2, epochs=2, batch_size=5, dtype="float32", save_every=2)
METHODS = {"sft": (SFT, demonstrations(13)), "dpo": (DPO, preferences(13))}
WEIGHTS = ("adapter_model.safetensors", "bottleneck.safetensors")
D, FF, LAYERS, KEYS = 32, 48, 2, 16  # sizes of the tiny model; KEYS: all key heads together
COUNTS = {
    "lora": LAYERS * 4 * ((D + D) * 2 + (D + KEYS) * 2 + (D + FF) * 3),
    "rslora": LAYERS * 4 * ((D + D) + (D + FF)),
    "dora": LAYERS * (4 * ((D + D) * 2 + (D + KEYS) * 2 + (D + FF) * 3) + 2 * D + 2 * KEYS + 2 * FF + D),
    "ia3": LAYERS * (2 * KEYS + FF),
    "prefix": 3 * 2 * LAYERS * KEYS,
    "prompt": 3 * D,
    "bottleneck": LAYERS * 2 * (2 * D * 6 + D + 6),
}


def of(kind, name="sft", **changes):
    method, data = METHODS[name]
    return replace(method, adapter=kind, **{**SETTINGS[kind], **changes}), data


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model", llama(tie_word_embeddings=False)))


def saved(checkpoint):
    return load_file(next(checkpoint.path / name for name in WEIGHTS if (checkpoint.path / name).is_file()))


def logp(model, tokenizer, prompt, completion):
    encoded = encode_completion(tokenizer, [Message(role="user", content=prompt)], completion)
    ids = torch.tensor([encoded.ids])
    with torch.no_grad():
        table = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -ids.shape[1] :].log_softmax(-1)
    return sum(float(table[i - 1, encoded.ids[i]]) for i in range(len(encoded.ids)) if encoded.mask[i])


@pytest.mark.parametrize(("kind", "name"), spread(SETTINGS, METHODS))
def test_what_is_left_behind_says_what_was_trained_and_the_engine_says_it_too(kind, name, start, tmp_path, monkeypatch):
    seen = []
    update = Learner.update

    def watched(self, *arguments, **more):
        if not seen:
            seen.append({n: p.detach().clone() for n, p in self.module.model.named_parameters()})
        seen[1:] = [self.module.model]
        return update(self, *arguments, **more)

    monkeypatch.setattr(Learner, "update", watched)
    method, data = of(kind, name)
    before = (start.path / "model.safetensors").read_bytes()
    made = method(start, data, tmp_path, seed=1)
    first, in_memory = seen[0], seen[1].eval()
    for parameter_name, parameter in in_memory.named_parameters():
        assert torch.equal(parameter.detach(), first[parameter_name]) != parameter.requires_grad, parameter_name
    assert (start.path / "model.safetensors").read_bytes() == before

    loaded = load(made.path, dtype="float32")
    assert loaded.adapter == (kind if kind in KEPT else None)
    assert loaded.fingerprint == fingerprint_of(made.path)
    engine = LocalEngine(loaded.model, loaded.tokenizer, fingerprint="x", shape=loaded.shape)
    untrained = AutoModelForCausalLM.from_pretrained(start.path)
    if kind != "bottleneck":
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(start.path), made.path).eval()
    for prompt, completion in (("1 plus 3?", "x is 4"), ("elsewhere", "no")):
        expected = logp(in_memory, loaded.tokenizer, prompt, completion)
        if kind != "bottleneck":  # an ordinary PEFT folder
            assert logp(plain, loaded.tokenizer, prompt, completion) == pytest.approx(expected, abs=1e-4)
        assert logp(loaded.model, loaded.tokenizer, prompt, completion) == pytest.approx(expected, abs=1e-4)
        assert abs(logp(untrained, loaded.tokenizer, prompt, completion) - expected) > 1e-3
        asked = Prompt(messages=(Message(role="user", content=prompt),))
        scored = asyncio.run(engine.score(asked, completion)).logprobs
        alone = logp(in_memory, loaded.tokenizer, prompt, completion) - last(in_memory, loaded.tokenizer, prompt, completion)
        assert sum(scored) == pytest.approx(alone, abs=1e-4)


def last(model, tokenizer, prompt, completion):
    """Return log p of the token that ends the turn, which `score` of a text does not have."""
    encoded = encode_completion(tokenizer, [Message(role="user", content=prompt)], completion)
    ids = torch.tensor([encoded.ids])
    at = max(i for i, trained in enumerate(encoded.mask) if trained)
    with torch.no_grad():
        table = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -ids.shape[1] :].log_softmax(-1)
    return float(table[at - 1, encoded.ids[at]])


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_share_of_trained_weights_is_told_in_closed_form(kind, start, tmp_path):
    method, data = of(kind, epochs=1)
    made = method(start, data, tmp_path, seed=1)
    base = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(start.path).parameters())
    told = json.loads((made.path / "posttrain.json").read_text())["parameters"]
    assert told == {
        "trained": COUNTS[kind],
        "total": base + COUNTS[kind],
        "share": COUNTS[kind] / (base + COUNTS[kind]),
    }
    assert sum(tensor.numel() for tensor in saved(made).values()) == COUNTS[kind]


def test_all_weights_are_a_share_of_one(start, tmp_path):
    made = replace(SFT, epochs=1)(start, demonstrations(4), tmp_path, seed=1)
    told = json.loads((made.path / "posttrain.json").read_text())["parameters"]
    assert told["trained"] == told["total"]
    assert told["share"] == 1.0


@pytest.mark.parametrize(("kind", "name"), spread(SETTINGS, METHODS, turned=True))
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(kind, name, start, tmp_path, monkeypatch):
    method, data = of(kind, name)
    expected = method(start, data, tmp_path / "whole", seed=3)
    write = Metrics.write

    def stopped(self, row):
        write(self, row)
        if row["step"] == 3:  # behind the last saved state
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Metrics, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            method(start, data, tmp_path / "cut", seed=3)
    resumed = method(start, data, tmp_path / "cut", seed=3)
    a, b = saved(resumed), saved(expected)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("kind", KEPT)
def test_micro_batch_size_does_not_change_the_trajectory(kind, start, tmp_path):
    method, data = of(kind)
    replace(method, tokens_per_microbatch=100_000)(start, data, tmp_path / "whole", seed=3)
    replace(method, tokens_per_microbatch=1)(start, data, tmp_path / "one", seed=3)
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("kind", SETTINGS)
def test_dpos_reference_is_the_start_without_the_adapter(kind, start, tmp_path):
    method, data = of(kind, "dpo", epochs=1)
    method(start, data, tmp_path, seed=1)
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(start.path), AutoTokenizer.from_pretrained(start.path)
    kept = {}
    for line in (tmp_path / "reference" / "0.jsonl").read_text().splitlines():
        entry = json.loads(line)
        kept |= dict(zip(entry["rows"], entry["logps"], strict=True))
    for i, row in enumerate(data):
        expected = [logp(plain, tokenizer, row["prompt"], row[side]) for side in ("chosen", "rejected")]
        assert kept[i] == pytest.approx(expected, abs=1e-3)
    if kind in ("prefix", "prompt"):  # they begin at random tokens in front, so not at the reference
        assert metrics(tmp_path)[0]["loss"] != pytest.approx(0.6931472, abs=1e-3)
    else:
        assert metrics(tmp_path)[0]["loss"] == pytest.approx(0.6931472, abs=1e-4)


@pytest.mark.parametrize("kind", KEPT)
def test_an_adapter_that_cannot_be_merged_is_trained_further_and_is_its_own_reference(kind, start, tmp_path):
    first_method, rows = of(kind)
    first = first_method(start, rows, tmp_path / "sft", seed=1)
    method, data = of(kind, "dpo", epochs=1)
    second = method(first, data, tmp_path / "dpo", seed=1)
    assert second.base == str(start.path)
    assert metrics(tmp_path / "dpo")[0]["loss"] == pytest.approx(0.6931472, abs=1e-4)
    loaded = load(first.path, dtype="float32")
    entry = json.loads((tmp_path / "dpo" / "reference" / "0.jsonl").read_text().splitlines()[0])
    row = data[entry["rows"][0]]
    expected = logp(loaded.model, loaded.tokenizer, row["prompt"], row["chosen"])
    assert entry["logps"][0][0] == pytest.approx(expected, abs=1e-3)
    before, after = saved(first), saved(second)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ConfigError, match=rf"is a {kind} adapter, which cannot be merged, so adapter=lora cannot go on top"):
        replace(SFT, adapter="lora")(first, rows, tmp_path / "no", seed=1)
    with pytest.raises(ConfigError, match=r"so adapter=full cannot go on top"):
        SFT(first, rows, tmp_path / "no", seed=1)
    setting = "width" if kind == "bottleneck" else "virtual_tokens"
    with pytest.raises(ConfigError, match=rf"has {setting} = \d, not 9: set {setting}=\d to train it further"):
        replace(method, **{setting: 9})(first, data, tmp_path / "no", seed=1)


@pytest.mark.parametrize("kind", MERGED)
def test_one_that_can_be_merged_is_merged_into_the_next_base(kind, start, tmp_path):
    first_method, rows = of(kind)
    first = first_method(start, rows, tmp_path / "one", seed=1)
    method, _ = of("bottleneck")
    second = method(first, rows, tmp_path / "two", seed=1)
    assert second.base == str(tmp_path / "two" / "base")
    merged, tokenizer = AutoModelForCausalLM.from_pretrained(second.base), AutoTokenizer.from_pretrained(first.path)
    expected = logp(load(first.path, dtype="float32").model, tokenizer, "1 plus 3?", "x is 4")
    assert logp(merged, tokenizer, "1 plus 3?", "x is 4") == pytest.approx(expected, abs=1e-4)


def test_an_adapter_on_an_adapter_that_cannot_be_merged_is_refused(start, tmp_path):
    method, rows = of("bottleneck", epochs=1)
    first = method(start, rows, tmp_path / "one", seed=1)
    method, _ = of("lora", epochs=1)
    second = method(start, rows, tmp_path / "two", seed=1)
    notes = second.path / "posttrain.json"
    notes.write_text(json.dumps({**json.loads(notes.read_text()), "base": str(first.path)}))
    with pytest.raises(ModelError, match="is itself a bottleneck adapter, which cannot be merged"):
        load(second.path)


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_bfloat16_trains_and_generates(kind, start, tmp_path):
    method, rows = of(kind, dtype="bfloat16", lr=0.1, epochs=4)
    made = method(start, rows, tmp_path, seed=1)
    assert metrics(tmp_path)[-1]["loss"] < metrics(tmp_path)[0]["loss"]
    loaded = load(made.path, dtype="bfloat16")
    engine = LocalEngine(loaded.model, loaded.tokenizer, fingerprint="x", shape=loaded.shape)
    scored = asyncio.run(engine.score(Prompt(messages=(Message(role="user", content="1 plus 3?"),)), "x is 4"))
    exact = load(made.path, dtype="float32")
    engine = LocalEngine(exact.model, exact.tokenizer, fingerprint="x", shape=exact.shape)
    expected = asyncio.run(engine.score(Prompt(messages=(Message(role="user", content="1 plus 3?"),)), "x is 4"))
    assert scored.logprobs == pytest.approx(expected.logprobs, abs=0.3)


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_virtual_tokens_are_paid_for(kind, start, tmp_path):
    method, data = of(kind, epochs=1)
    made = method(start, data, tmp_path, seed=1)
    shape, tokenizer = load(start.path).shape, AutoTokenizer.from_pretrained(start.path)
    expected = 0.0
    for row in data:
        encoded = encode_completion(tokenizer, [Message(role="user", content=row["prompt"])], row["completion"])
        n = len(encoded.ids)
        attention = sum(4.0 * shape.attention_width * 3 for _ in range(n))  # each token meets three more positions
        expected += train_flops(shape, tokens=n, logits=encoded.trained, frozen_backbone=True) + 3 * attention
        if kind == "prompt":  # and the three run through the frozen layers
            expected += train_flops(shape, tokens=3, logits=0, frozen_backbone=True)
    assert made.cost.flops == pytest.approx(expected)
    method, data = of(kind, "dpo", epochs=1)
    whole = method(start, data, tmp_path / "dpo", seed=1).cost.flops
    reference = 0.0  # the base's, with nothing in front
    from posttrain.models.sharing import shared_prefix
    from posttrain.preference.dpo import encode_pair

    policy = 0.0
    for row in data:
        pair = encode_pair(tokenizer, row, where="row")
        p = shared_prefix(pair)
        reference += forward_flops(shape, start=0, tokens=p, logits=0)
        for e in pair:
            reference += forward_flops(shape, start=p, tokens=len(e.ids) - p, logits=e.trained)
            policy += train_flops(shape, tokens=len(e.ids), logits=e.trained, frozen_backbone=True)
            policy += 3 * 4.0 * shape.attention_width * 3 * len(e.ids)
            policy += train_flops(shape, tokens=3, logits=0, frozen_backbone=True) if kind == "prompt" else 0.0
    assert whole == pytest.approx(reference + policy)


@pytest.mark.parametrize(
    ("method", "key"),
    [(Sft(), "99a1fe68e8d46d9c"), (Sft(adapter="lora", rank=8, lr=1e-3), "45d56206f6f48c07"),
     (Dpo(), "96df3bb8ff1a83d7"), (Dpo(adapter="lora", beta=0.3), "4ac9bdb9c59ee653")],
)  # fmt: skip
def test_keys_are_what_they_were_before_there_were_more_settings(method, key):
    assert run_key(method=method, start="s", data="d", seed=3) == key
    for change in ({"width": 9}, {"virtual_tokens": 9}, {"targets": ("q_proj",)}):
        assert run_key(method=replace(method, **change), start="s", data="d", seed=3) != key


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"adapter": "ia3", "rank": 8}, "rank = 8 has no effect with adapter=ia3: it belongs to adapter=lora or rslora"),
     ({"adapter": "prefix", "dropout": 0.1}, "dropout = 0.1 has no effect with adapter=prefix"),
     ({"adapter": "bottleneck", "targets": ("q_proj",)}, "has no effect with adapter=bottleneck"),
     ({"adapter": "lora", "width": 8}, "width = 8 has no effect with adapter=lora: it belongs to adapter=bottleneck"),
     ({"adapter": "dora", "virtual_tokens": 8}, "it belongs to adapter=prefix or prompt"),
     ({"width": 8}, "width = 8 has no effect with adapter=full"),
     ({"targets": ("q_proj",)}, "has no effect with adapter=full"),
     ({"adapter": "prompt", "virtual_tokens": 0}, "virtual_tokens = 0 must be at least 1"),
     ({"adapter": "bottleneck", "width": 0}, "width = 0 must be at least 1"),
     ({"adapter": "rslora", "rank": 0}, "rank = 0"), ({"adapter": "dora", "alpha": 0.0}, "alpha = 0.0 must be positive"),
     ({"adapter": "lora", "targets": ()}, "names no layer"),
     ({"adapter": "lora", "targets": ("all-linear", "q_proj")}, "all-linear stands alone"),
     ({"adapter": "houlsby"}, "adapter = 'houlsby': choose from full, lora"),
     ({"adapter": "ia3", "weight_decay": 0.1}, "would pull IA3's factors to 0"),
     ({"adapter": "prefix", "activation_checkpointing": True}, "cannot compute the keys and values of adapter=prefix")],
)  # fmt: skip
def test_a_setting_that_the_kind_does_not_read_is_refused(settings, message, start, tmp_path):
    for method, data in METHODS.values():
        with pytest.raises(ConfigError, match=message):
            replace(method, **settings)(start, data, tmp_path, seed=1)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_the_tables_of_an_untied_model_can_be_targets(target, start, tmp_path, monkeypatch):
    kept = []
    update = Learner.update
    monkeypatch.setattr(Learner, "update", lambda self, *a, **k: (kept.append(self.module.model), update(self, *a, **k))[1])
    method, data = of("lora", targets=(target, "v_proj"))
    made = method(start, data, tmp_path, seed=1)
    assert any(target in name for name in saved(made))
    loaded = load(made.path, dtype="float32")
    expected = logp(kept[-1].eval(), loaded.tokenizer, "1 plus 3?", "x is 4")
    assert logp(loaded.model, loaded.tokenizer, "1 plus 3?", "x is 4") == pytest.approx(expected, abs=1e-4)


def test_one_target_needs_no_list(start, tmp_path):
    for targets in ("q_proj", ("q_proj",)):
        made = replace(SFT, adapter="lora", rank=4, epochs=1, targets=targets)(
            start, demonstrations(2), tmp_path / str(len(targets)), seed=1
        )
        assert {name.split(".")[-3] for name in saved(made)} == {"q_proj"}


def test_what_an_architecture_or_machine_lacks_is_one_sentence(start, tmp_path):
    with pytest.raises(ModelError, match="target 'q_prj' names no module"):
        replace(SFT, adapter="lora", targets=("q_prj",))(start, demonstrations(2), tmp_path, seed=1)
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match=r"\(adapter=qlora\) need a CUDA device .*; use adapter=lora instead"):
            replace(SFT, adapter="qlora")(start, demonstrations(2), tmp_path, seed=1)
    made = replace(SFT, adapter="lora", epochs=1)(start, demonstrations(2), tmp_path / "lora", seed=1)
    with pytest.raises(ModelError, match="is an adapter; merge it first"):
        replace(SFT, adapter="qlora")(made, demonstrations(2), tmp_path, seed=1)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="it is installed here")
def test_four_bits_without_the_package_is_one_sentence():
    with pytest.raises(ModelError, match="need the package bitsandbytes, which is not here"):
        in_four_bits(torch.device("cuda"), torch.float32)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own
@pytest.mark.parametrize("name", METHODS)
def test_qlora_follows_lora_on_the_dequantised_base(name, tmp_path, monkeypatch):
    import bitsandbytes
    from bitsandbytes.functional import dequantize_4bit

    def on_this_processor(
        _device, dtype
    ):  # refused to users: its fast path here has no backward pass, so it is switched off
        return in_four_bits(torch.device("cuda"), dtype) | {"device_map": {"": "cpu"}}

    monkeypatch.setattr("posttrain.models.load.in_four_bits", on_this_processor)
    monkeypatch.setattr("posttrain.models.load.pick_device", lambda _="auto": torch.device("cpu"))
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
    base = Checkpoint(path=folder(tmp_path / "model", llama(hidden_size=64, intermediate_size=128)))  # whole 4-bit blocks
    method, data = METHODS[name]
    made = replace(method, adapter="qlora", rank=4)(base, data, tmp_path / "qlora", seed=1)
    quantised = load(base.path, dtype="float32", four_bit=True).model
    plain = AutoModelForCausalLM.from_pretrained(base.path)
    rounded = [name for name, module in quantised.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(rounded) == 2 * 7
    for layer in rounded:
        weight = quantised.get_submodule(layer).weight
        plain.get_submodule(layer).weight.data = dequantize_4bit(weight.data, weight.quant_state).float()
    plain.save_pretrained(tmp_path / "rounded")
    AutoTokenizer.from_pretrained(base.path).save_pretrained(tmp_path / "rounded")
    lora = replace(method, adapter="lora", rank=4)(Checkpoint(path=tmp_path / "rounded"), data, tmp_path / "lora", seed=1)
    for a, b in zip(metrics(tmp_path / "qlora"), metrics(tmp_path / "lora"), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    told = [json.loads((c.path / "posttrain.json").read_text())["parameters"] for c in (made, lora)]
    assert told[0] == told[1]  # counted as weights, not as bytes
    assert load(made.path).adapter is None


@pytest.mark.parametrize("kind", KEPT)
def test_gpt2_takes_them_too(kind, tmp_path):
    config = GPT2Config(
        vocab_size=258, n_embd=32, n_layer=2, n_head=4, n_positions=128, eos_token_id=257, bos_token_id=257,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    other = Checkpoint(path=folder(tmp_path / "model", config))
    method, data = of(kind, epochs=6)
    made = method(other, data, tmp_path / "out", seed=1)
    losses = [row["loss"] for row in metrics(tmp_path / "out")]
    assert losses[-1] < losses[0]
    loaded = load(made.path, dtype="float32")
    engine = LocalEngine(loaded.model, loaded.tokenizer, fingerprint="x", shape=loaded.shape)
    assert asyncio.run(engine.score(Prompt(messages=(Message(role="user", content="1 plus 3?"),)), "x is 4")).logprobs
