"""What SFT and DPO leave behind: ordinary folders with the trained log-probabilities; the right weights; the cost."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import demonstrations, folder, llama, preferences
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.types import Checkpoint, Message
from posttrain.data.masks import encode_completion
from posttrain.finetuning.sft import Sft
from posttrain.models.forward import Forward
from posttrain.models.load import load
from posttrain.preference.dpo import Dpo
from posttrain.stats.flops import forward_flops, train_flops
from posttrain.training.reference import reference_logps
from posttrain.training.step import Learner, Work

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

SFT = Sft(lr=1e-2, epochs=4, batch_size=8, dtype="float32", save_every=0)
DPO = Dpo(lr=3e-3, epochs=4, batch_size=8, dtype="float32", save_every=0)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model", llama(tie_word_embeddings=False)))


def logps(model, tokenizer, prompt: str, completion: str) -> float:
    encoded = encode_completion(tokenizer, [Message(role="user", content=prompt)], completion)
    with torch.no_grad():
        table = model(torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
    return sum(float(table[i - 1, encoded.ids[i]]) for i in range(len(encoded.ids)) if encoded.mask[i])


def trained_model(monkeypatch, method, start, data, out):
    """Train, and return (checkpoint, the model as it was in memory at the end)."""
    kept = []
    update = Learner.update
    monkeypatch.setattr(Learner, "update", lambda self, *a, **k: (kept.append(self.module.model), update(self, *a, **k))[1])
    return method(start, data, out, seed=1), kept[-1].eval()


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("method", [SFT, DPO], ids=["sft", "dpo"])
def test_loads_in_plain_transformers_and_peft_with_the_trained_log_probabilities(
    method, adapter, start, tmp_path, monkeypatch
):
    data = demonstrations(8) if method is SFT else preferences(8)
    made, in_memory = trained_model(monkeypatch, replace(method, adapter=adapter, rank=4), start, data, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    if adapter == "full":
        assert made.base is None
        plain = AutoModelForCausalLM.from_pretrained(made.path)
    else:
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(made.base), made.path)
    untrained = AutoModelForCausalLM.from_pretrained(start.path)
    for prompt, completion in (("1 plus 3?", "x is 4"), ("elsewhere", "no")):
        expected = logps(in_memory, tokenizer, prompt, completion)
        assert logps(plain, tokenizer, prompt, completion) == pytest.approx(expected, abs=1e-4)
        assert logps(load(made.path, dtype="float32").model, tokenizer, prompt, completion) == pytest.approx(
            expected, abs=1e-3
        )
        assert abs(logps(untrained, tokenizer, prompt, completion) - expected) > 0.05
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(start.path).chat_template


@pytest.mark.parametrize("method", [SFT, DPO], ids=["sft", "dpo"])
def test_every_weight_that_should_change_does_and_no_other(method, start, tmp_path):
    data = demonstrations(8) if method is SFT else preferences(8)
    before = load_file(start.path / "model.safetensors")
    full = method(start, data, tmp_path / "full", seed=1)
    after = load_file(full.path / "model.safetensors")
    assert before.keys() == after.keys()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    used = set()  # of the input embeddings, rows of tokens that occur; all rows of the output head
    tokenizer = AutoTokenizer.from_pretrained(start.path)
    for row in data:
        for response in (row[k] for k in ("completion", "chosen", "rejected") if k in row):
            used |= set(encode_completion(tokenizer, [Message(role="user", content=row["prompt"])], response).ids)
    moved = (before["model.embed_tokens.weight"] != after["model.embed_tokens.weight"]).any(1)
    assert set(moved.nonzero()[:, 0].tolist()) <= used

    lora = replace(method, adapter="lora", rank=4)(start, data, tmp_path / "lora", seed=1)
    adapter = load_file(lora.path / "adapter_model.safetensors")
    assert len(adapter) == 2 * 7 * 2  # A and B of seven linear layers in two blocks
    assert all(tensor.abs().sum() > 0 for tensor in adapter.values())
    assert all(torch.equal(t, before[n]) for n, t in load_file(start.path / "model.safetensors").items())


def test_sft_learns_and_dpo_prefers(start, tmp_path):
    Sft(lr=1e-2, epochs=12, batch_size=8, dtype="float32")(start, demonstrations(8), tmp_path / "sft", seed=1)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0]
    DPO(start, preferences(8), tmp_path / "dpo", seed=1)
    rows = [json.loads(line) for line in (tmp_path / "dpo" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(0.6931472, abs=1e-4)  # the policy begins at its reference
    assert rows[-1]["accuracy"] == 1.0
    for row in rows:
        assert row["margin"] == pytest.approx(row["reward_chosen"] - row["reward_rejected"], abs=1e-5)


def test_dpo_metrics_against_the_models_themselves(start, tmp_path):
    data = preferences(4)
    made = replace(DPO, epochs=1, batch_size=4, beta=0.5, label_smoothing=0.2)(start, data, tmp_path / "first", seed=1)
    policy, reference = (AutoModelForCausalLM.from_pretrained(c.path) for c in (made, start))
    tokenizer = AutoTokenizer.from_pretrained(start.path)
    h = {}
    for side in ("chosen", "rejected"):
        texts = [(row["prompt"], row[side]) for row in data]
        h[side] = torch.tensor([logps(policy, tokenizer, *t) - logps(reference, tokenizer, *t) for t in texts])
    margin = 0.5 * (h["chosen"] - h["rejected"])
    sigma = torch.sigmoid(margin)
    expected = -(0.8 * sigma.log() + 0.2 * (1 - sigma).log()).mean()
    # the same policy, evaluated inside DPO with the start as reference: a second run's reference is the start's
    module = Forward(load(start.path, dtype="float32").model)
    from posttrain.preference.dpo import _Objective, _Pair, encode_pair

    pairs = [_Pair(i, encode_pair(tokenizer, row, where="row"), 0) for i, row in enumerate(data)]
    values, _ = reference_logps(
        module, [p.group for p in pairs], [Work(tokens=50, flops=1.0)] * 4, out=tmp_path, key="k", tokens_per_microbatch=100
    )
    pairs = [replace(p, reference=(v[0], v[1])) for p, v in zip(pairs, values, strict=True)]
    trained = Forward(policy)
    objective = _Objective(replace(DPO, beta=0.5, label_smoothing=0.2), load(start.path).shape, False, trained.packs)
    loss, measures = objective(trained, pairs, 4)
    assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-4)
    assert float(measures["margin"]) == pytest.approx(float(margin.mean()), abs=1e-4)
    assert float(measures["reward_chosen"]) == pytest.approx(0.5 * float(h["chosen"].mean()), abs=1e-4)


def test_reference_is_kept_and_not_computed_again(start, tmp_path, monkeypatch):
    module = Forward(load(start.path, dtype="float32").model)
    tokenizer = AutoTokenizer.from_pretrained(start.path)
    from posttrain.preference.dpo import encode_pair

    groups = [encode_pair(tokenizer, row, where="row") for row in preferences(6)]
    work = [Work(tokens=sum(len(e.ids) for e in g), flops=1.0) for g in groups]
    arguments = {"out": tmp_path, "key": "k", "tokens_per_microbatch": 150}
    values, cost = reference_logps(module, groups, work, **arguments)
    path = tmp_path / "reference" / "0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) > 1
    path.write_text("".join(lines[:1]) + lines[1][:10])  # killed while writing the second line
    assert reference_logps(module, groups, work, **arguments)[0] == values
    monkeypatch.setattr(Forward, "forward", lambda *_: pytest.fail("computed again"))
    again, same_cost = reference_logps(module, groups, work, **arguments)
    assert again == values
    assert same_cost.usage == cost.usage
    with pytest.raises(ConfigError, match="another configuration"):
        reference_logps(module, groups, work, **{**arguments, "key": "other"})


def test_cost_by_hand(start, tmp_path):
    data = demonstrations(5)
    made = replace(SFT, epochs=2, batch_size=2)(start, data, tmp_path / "sft", seed=1)
    loaded = load(start.path)
    encoded = [
        encode_completion(loaded.tokenizer, [Message(role="user", content=r["prompt"])], r["completion"]) for r in data
    ]
    assert made.cost.usage.scored == 2 * sum(len(e.ids) for e in encoded)
    assert made.cost.usage.calls == 6
    expected = 2 * sum(3 * forward_flops(loaded.shape, start=0, tokens=len(e.ids), logits=e.trained) for e in encoded)
    assert made.cost.flops == pytest.approx(expected)
    assert made.cost.seconds > 0
    assert made.cost.peak_bytes > 1e6
    chained = replace(SFT, epochs=1)(made, data, tmp_path / "chained", seed=1)
    assert chained.cost.usage.scored == 3 * sum(len(e.ids) for e in encoded)  # a start's cost is carried along


def test_dpo_pays_a_shared_prompt_once(start, tmp_path):
    data = preferences(4)
    made = replace(DPO, epochs=1)(start, data, tmp_path, seed=1)
    loaded = load(start.path)
    from posttrain.models.sharing import shared_prefix
    from posttrain.preference.dpo import encode_pair

    pairs = [encode_pair(loaded.tokenizer, row, where="row") for row in data]
    tokens = sum(shared_prefix(p) + sum(len(e.ids) - shared_prefix(p) for e in p) for p in pairs)
    assert made.cost.usage.scored == 2 * tokens  # once for the reference, once for the policy
    flops = 0.0
    for p in pairs:
        shared = shared_prefix(p)
        flops += 4 * forward_flops(loaded.shape, start=0, tokens=shared, logits=0)
        flops += 4 * sum(forward_flops(loaded.shape, start=shared, tokens=len(e.ids) - shared, logits=e.trained) for e in p)
    assert made.cost.flops == pytest.approx(flops)  # 3 for training, 1 for the reference


def test_frozen_backbone_is_charged_two_thirds(start, tmp_path):
    made = replace(SFT, epochs=1, adapter="lora", rank=2)(start, demonstrations(3), tmp_path, seed=1)
    loaded = load(start.path)
    rows = demonstrations(3)
    encoded = [
        encode_completion(loaded.tokenizer, [Message(role="user", content=r["prompt"])], r["completion"]) for r in rows
    ]
    expected = sum(train_flops(loaded.shape, tokens=len(e.ids), logits=e.trained, frozen_backbone=True) for e in encoded)
    assert made.cost.flops == pytest.approx(expected)


def test_a_lora_checkpoint_as_start_is_merged_and_its_merger_kept(start, tmp_path):
    first = replace(SFT, adapter="lora", rank=4)(start, demonstrations(8), tmp_path / "one", seed=1)
    second = replace(SFT, adapter="lora", rank=2)(first, demonstrations(8), tmp_path / "two", seed=1)
    assert second.base == str(tmp_path / "two" / "base")
    tokenizer = AutoTokenizer.from_pretrained(first.path)
    merged = AutoModelForCausalLM.from_pretrained(second.base)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(start.path), first.path)
    a, b = (logps(m, tokenizer, "1 plus 3?", "x is 4") for m in (merged, peft))
    assert a == pytest.approx(b, abs=1e-4)
    full = SFT(first, demonstrations(8), tmp_path / "three", seed=1)
    assert full.base is None


def test_conversations_train_every_or_the_last_turn(start, tmp_path):
    turns = [("user", "hi"), ("assistant", "yes"), ("user", "and?"), ("assistant", "no")]
    data = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    for train, count in (("all", len("yes") + len("no") + 2), ("last", len("no") + 1)):
        replace(SFT, epochs=1, train=train)(start, data, tmp_path / train, seed=1)
        row = json.loads((tmp_path / train / "metrics.jsonl").read_text().splitlines()[0])
        assert row["trained_tokens"] == count


@pytest.mark.parametrize(
    ("method", "row", "message"),
    [
        (SFT, {"words": "x"}, "row 0: expected 'messages', 'prompt' and a text 'completion', or 'text'; found words"),
        (SFT, {"prompt": 3, "completion": "x"}, "row 0: prompt: expected text or a list of messages, found int"),
        (SFT, {"messages": [{"role": "robot", "content": "x"}]}, "row 0: messages: message 0 is not an object"),
        (DPO, {"prompt": "x", "chosen": "y"}, "row 0: no 'rejected'"),
        (DPO, {"prompt": "x", "chosen": "y", "rejected": "y"}, "row 0: 'chosen' and 'rejected' are the same text"),
        (DPO, {"chosen": "y", "rejected": "z"}, "row 0: 'chosen' is text, so a 'prompt' is needed"),
    ],
)  # fmt: skip
def test_a_broken_row_is_named(method, row, message, start, tmp_path):
    with pytest.raises(DataError, match=message):
        method(start, [row], tmp_path, seed=1)


def test_dpo_takes_conversations_too(start, tmp_path):
    common = [{"role": "user", "content": "1 plus 3?"}]
    rows = [
        {side: [*common, {"role": "assistant", "content": text}] for side, text in (("chosen", "4"), ("rejected", "no"))},
        {
            "prompt": common,
            "chosen": [{"role": "assistant", "content": "4"}],
            "rejected": [{"role": "assistant", "content": "5"}],
        },
    ]
    assert DPO(start, rows, tmp_path, seed=1).cost.usage.scored > 0
    other = {"chosen": rows[0]["chosen"], "rejected": [{"role": "user", "content": "else"}, *rows[0]["rejected"][1:]]}
    with pytest.raises(DataError, match="different conversations"):
        DPO(start, [other], tmp_path / "b", seed=1)


@pytest.mark.parametrize(
    ("method", "message"),
    [(replace(SFT, epochs=0), "epochs = 0"), (replace(SFT, lr=-1), "lr = -1"), (replace(DPO, beta=0.0), "beta = 0"),
     (replace(SFT, adapter="lora", rank=0), "rank = 0"), (replace(DPO, label_smoothing=0.7), "label_smoothing = 0.7")],
)  # fmt: skip
def test_settings_out_of_range(method, message, start, tmp_path):
    with pytest.raises(ConfigError, match=message):
        method(start, [], tmp_path, seed=1)
