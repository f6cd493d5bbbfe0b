"""Distillation through the trainer: one trajectory, resume, what counts, the cost, the teacher, and that it teaches."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import TEMPLATE, demonstrations, folder, llama, model, tokenizer
from training_runs import killed_after, metrics, same, weights
from transformers import AutoModelForCausalLM

from posttrain.core.errors import ConfigError, DataError, ModelError
from posttrain.core.types import Checkpoint, Message
from posttrain.data.masks import encode_completion
from posttrain.finetuning.distill import Distill, _Objective, _Row
from posttrain.finetuning.sft import Sft
from posttrain.models.forward import Forward
from posttrain.models.load import fingerprint_of, load
from posttrain.models.shape import shape_of
from posttrain.stats.flops import forward_flops, train_flops
from posttrain.training.heldout import split_by_question
from posttrain.training.rows import encode_row
from posttrain.training.state import Metrics
from posttrain.training.teacher import open_teacher

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

ROWS = demonstrations(13)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Wider, deeper, with a head of its own and more logits than the tokenizer has tokens."""
    sizes = {"vocab_size": 264, "hidden_size": 48, "num_hidden_layers": 3, "tie_word_embeddings": False}
    return folder(tmp_path_factory.mktemp("teacher") / "model", llama(**sizes), seed=7)


@pytest.fixture(scope="module")
def method(teacher):
    return Distill(teacher=str(teacher), lr=1e-2, epochs=2, batch_size=5, save_every=2, dtype="float32")


VARIANTS = {
    "forward": {},
    "reverse_top_k": {"divergence": "reverse_kl", "top_k": 5, "temperature": 2.0},
    "js_mixed_lora_dropout": {
        "divergence": "js", "beta": 0.3, "sft_weight": 0.4, "adapter": "lora", "rank": 4, "dropout": 0.3,
    },
    "head_adapter": {"adapter": "lora", "rank": 2, "targets": ("q_proj", "lm_head")},
}  # fmt: skip


def tables(path, rows, temperature=1.0):
    """Return log p of each trained position of each row by transformers alone, and the trained ids."""
    loaded = AutoModelForCausalLM.from_pretrained(path).eval() if not hasattr(path, "eval") else path.eval()
    found, targets = [], []
    for row in rows:
        encoded = encode_completion(tokenizer(), [Message(role="user", content=row["prompt"])], row["completion"])
        at = [i for i, trained in enumerate(encoded.mask) if trained]
        with torch.no_grad():
            logits = loaded(torch.tensor([encoded.ids])).logits[0, [i - 1 for i in at], :258].double()
        found.append((logits / temperature).log_softmax(-1))
        targets += [encoded.ids[i] for i in at]
    return torch.cat(found), torch.tensor(targets)


def kl(p, q):
    return (p.exp() * (p - q)).sum(-1).mean().item()


@pytest.mark.parametrize("name", ["forward", "reverse_top_k", "js_mixed_lora_dropout"])
def test_micro_batch_size_does_not_change_the_trajectory(name, method, start, tmp_path):
    chosen = replace(method, **{**VARIANTS[name], **({"dropout": 0.0} if "dropout" in VARIANTS[name] else {})})
    whole = replace(chosen, tokens_per_microbatch=100_000)(start, ROWS, tmp_path / "whole", seed=3)
    one_by_one = replace(chosen, tokens_per_microbatch=1)(start, ROWS, tmp_path / "one", seed=3)
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-5)
    # Adam turns the rounding of a gradient near 0 into a share of lr; the gradients themselves are compared below
    same(weights(whole), weights(one_by_one), rtol=1e-2, atol=3e-3)


@pytest.mark.parametrize("name", ["forward", "reverse_top_k", "js_mixed_lora_dropout"])
def test_shares_of_loss_and_gradient_add_up_exactly(name, method, teacher, tmp_path):
    student = Forward(model().double().requires_grad_())
    opened = open_teacher(str(teacher), student=student, tokenizer=tokenizer(), dtype="float32")
    opened.module.model.double()
    items = [_Row(i, encode_row(tokenizer(), row, train="all", where="row")) for i, row in enumerate(ROWS)]
    objective = _Objective(
        replace(method, **VARIANTS[name]), opened, shape_of(student.model), False, virtual_flops=lambda *_, **__: 0.0
    )
    found = []
    for cuts in ([items], [items[:4], items[4:5], items[5:]], [[item] for item in items]):
        student.zero_grad()
        shares = [objective(student, part, objective.totals(items)) for part in cuts]
        for loss, _ in shares:
            loss.backward()
        measures = [sum(float(share[1][key]) for share in shares) for key in ("divergence", "cross_entropy")]
        gradients = [p.grad.clone() for p in student.parameters()]
        found.append((sum(loss.item() for loss, _ in shares), measures, gradients))
    for loss, measures, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-9)
        assert measures == pytest.approx(found[0][1], rel=1e-9)
        for a, b in zip(gradients, found[0][2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(name, method, start, teacher, tmp_path, monkeypatch):
    chosen = replace(method, **VARIANTS[name])
    if name == "head_adapter":
        start = Checkpoint(path=folder(tmp_path / "untied", llama(tie_word_embeddings=False)))
    expected = chosen(start, ROWS, tmp_path / "whole", seed=3)
    write = Metrics.write

    def stopping(self, row):
        write(self, row)
        if row["step"] == 3:  # behind the last saved state
            raise KeyboardInterrupt

    monkeypatch.setattr(Metrics, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        chosen(start, ROWS, tmp_path / "cut", seed=3)
    monkeypatch.setattr(Metrics, "write", write)
    moved = tmp_path / "moved"  # where the teacher lies is no part of the run
    moved.symlink_to(teacher)
    resumed = replace(chosen, teacher=str(moved))(start, ROWS, tmp_path / "cut", seed=3)
    same(weights(resumed), weights(expected), rtol=0, atol=0)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert (resumed.cost.usage, resumed.cost.flops) == (expected.cost.usage, expected.cost.flops)


def test_the_first_step_is_the_formula_worked_out_by_transformers_alone(method, start, teacher, tmp_path):
    chosen = replace(method, epochs=1, batch_size=13, temperature=2.0, sft_weight=0.25)
    chosen(start, ROWS, tmp_path, seed=3)
    p, targets = tables(teacher, ROWS, temperature=2.0)
    q, _ = tables(start.path, ROWS, temperature=2.0)
    plain, _ = tables(start.path, ROWS)
    divergence = 4 * kl(p, q)
    entropy = -plain.gather(1, targets[:, None]).mean().item()
    row = metrics(tmp_path)[0]
    assert row["divergence"] == pytest.approx(divergence, rel=1e-5)
    assert row["cross_entropy"] == pytest.approx(entropy, rel=1e-5)
    assert row["loss"] == pytest.approx(0.75 * divergence + 0.25 * entropy, rel=1e-5)
    assert row["trained_tokens"] == len(targets)


def test_only_trained_positions_count(method, start, tmp_path):
    turns = [("user", "hi"), ("assistant", "yes"), ("user", "and?"), ("assistant", "no")]
    data = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    for train, count in (("all", len("yes") + len("no") + 2), ("last", len("no") + 1)):
        replace(method, epochs=1, train=train)(start, data, tmp_path / train, seed=1)
        assert metrics(tmp_path / train)[0]["trained_tokens"] == count


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "js"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(divergence, start, tmp_path):
    chosen = Distill(teacher=str(start.path), divergence=divergence, lr=1e-2, batch_size=13, dtype="float32")
    chosen(start, ROWS, tmp_path, seed=3)
    row = metrics(tmp_path)[0]
    assert abs(row["loss"]) < 1e-6
    assert row["grad_norm"] < 1e-5


def test_a_student_comes_closer_to_its_teacher_on_rows_it_never_saw(method, start, teacher, tmp_path):
    data, held_out = demonstrations(60)[:48], demonstrations(60)[48:]
    p, _ = tables(teacher, held_out)
    before = kl(p, tables(start.path, held_out)[0])
    for name, settings, share in (("full", {}, 0.6), ("lora", {"adapter": "lora", "rank": 8}, 0.7)):
        chosen = replace(method, epochs=6, batch_size=8, save_every=0, **settings)
        made = chosen(start, data, tmp_path / name, seed=3)
        after = kl(p, tables(load(made.path, dtype="float32").model, held_out)[0])
        assert after < share * before, (name, before, after)


def test_cost_is_the_students_training_and_the_teachers_reading(method, start, teacher, tmp_path):
    made = replace(method, epochs=2)(start, ROWS, tmp_path / "full", seed=3)
    lora = replace(method, epochs=2, adapter="lora", rank=2)(start, ROWS, tmp_path / "lora", seed=3)
    student, theirs = load(start.path).shape, load(teacher).shape
    rows = [encode_completion(tokenizer(), [Message(role="user", content=r["prompt"])], r["completion"]) for r in ROWS]
    reading = sum(forward_flops(theirs, start=0, tokens=len(e.ids), logits=e.trained) for e in rows)
    for checkpoint, frozen in ((made, False), (lora, True)):
        own = sum(train_flops(student, tokens=len(e.ids), logits=e.trained, frozen_backbone=frozen) for e in rows)
        assert checkpoint.cost.flops == pytest.approx(2 * (own + reading))
        assert checkpoint.cost.usage.scored == 2 * 2 * sum(len(e.ids) for e in rows)
        facts = json.loads((checkpoint.path / "posttrain.json").read_text())
        assert facts["data"]["teacher"] == {
            "ref": str(teacher), "fingerprint": fingerprint_of(teacher), "flops_per_epoch": pytest.approx(reading)
        }  # fmt: skip
        assert facts["config"]["teacher"] == str(teacher)
    assert metrics(tmp_path / "full")[0]["tokens"] < sum(len(e.ids) for e in rows)  # the student's only


@pytest.mark.parametrize("adapter", ["lora", "prefix", "bottleneck"])
def test_an_adapter_folder_is_a_teacher(adapter, start, tmp_path):
    settings = {"lora": {"rank": 4}, "prefix": {"virtual_tokens": 3}, "bottleneck": {"width": 6}}[adapter]
    taught = Sft(lr=2e-2, epochs=4, batch_size=5, dtype="float32", adapter=adapter, **settings)(
        start, ROWS, tmp_path / "teacher", seed=1
    )
    Distill(teacher=str(taught.path), lr=1e-2, batch_size=13, dtype="float32")(start, ROWS, tmp_path / "out", seed=3)
    loaded = load(taught.path, dtype="float32").model

    def asked(ids):
        return loaded(input_ids=ids, attention_mask=torch.ones_like(ids))

    p = []
    for row in ROWS:
        encoded = encode_completion(tokenizer(), [Message(role="user", content=row["prompt"])], row["completion"])
        with torch.no_grad():
            logits = asked(torch.tensor([encoded.ids])).logits[0, -len(encoded.ids) :]
        p.append(logits[[i - 1 for i, trained in enumerate(encoded.mask) if trained]].double().log_softmax(-1))
    q, _ = tables(start.path, ROWS)
    assert metrics(tmp_path / "out")[0]["divergence"] == pytest.approx(kl(torch.cat(p), q), rel=1e-4)


KINDS = {
    "dora": {"rank": 2},
    "ia3": {},
    "prefix": {"virtual_tokens": 3},
    "prompt": {"virtual_tokens": 3},
    "bottleneck": {"width": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_learns_from_a_teacher(kind, method, start, tmp_path):
    chosen = replace(method, adapter=kind, lr=5e-2, epochs=4, batch_size=13, save_every=0, **KINDS[kind])
    made = chosen(start, ROWS, tmp_path, seed=3)
    rows = metrics(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert made.base == str(start.path)


def test_the_teacher_stays_as_it_is(method, start, teacher, tmp_path):
    before = (teacher / "model.safetensors").read_bytes()
    opened = []
    from posttrain.finetuning import distill

    kept = distill.open_teacher

    def watched(*args, **more):
        opened.append(kept(*args, **more))
        return opened[-1]

    distill.open_teacher = watched
    try:
        replace(method, epochs=1)(start, ROWS, tmp_path, seed=3)
    finally:
        distill.open_teacher = kept
    found = dict(opened[0].module.model.named_parameters())
    assert all(p.grad is None and not p.requires_grad for p in found.values())
    assert all(torch.equal(found[name], tensor) for name, tensor in load_file(teacher / "model.safetensors").items())
    assert (teacher / "model.safetensors").read_bytes() == before


def other_tokenizer(path: Path, swap: tuple[str, str] | None = None, template: str = TEMPLATE) -> Path:
    """A model folder whose tokenizer has two ids exchanged, or another template."""
    model(llama()).save_pretrained(path)
    made = tokenizer()
    made.chat_template = template
    made.save_pretrained(path)
    if swap is not None:
        state = json.loads((path / "tokenizer.json").read_text())
        vocab = state["model"]["vocab"]
        vocab[swap[0]], vocab[swap[1]] = vocab[swap[1]], vocab[swap[0]]
        (path / "tokenizer.json").write_text(json.dumps(state))
    return path


def test_another_tokenizer_is_one_clear_error_before_anything_trains(method, start, tmp_path):
    other = other_tokenizer(tmp_path / "other", swap=("a", "b"))
    with pytest.raises(ModelError, match=r"its tokenizer is not the student's .*'a' is id \d+ there and id \d+ here.*sft"):
        replace(method, teacher=str(other))(start, ROWS, tmp_path / "out", seed=3)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_another_chat_template_is_an_error_that_names_the_row(method, start, tmp_path):
    other = other_tokenizer(tmp_path / "other", template=TEMPLATE.replace("<|im_start|>{{", "<|im_start|>The {{"))
    with pytest.raises(DataError, match=r"row 0: teacher '.*' reads it as other tokens than the student, from token 1 on"):
        replace(method, teacher=str(other))(start, ROWS, tmp_path / "out", seed=3)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_a_head_with_fewer_logits_than_tokens_is_refused(method, start, tmp_path):
    short = folder(tmp_path / "short", llama(vocab_size=256, eos_token_id=255, pad_token_id=255))
    with pytest.raises(ModelError, match="the teacher has 256 logits, fewer than the tokenizer's 258 tokens"):
        replace(method, teacher=str(short))(start, ROWS, tmp_path / "out", seed=3)


def test_too_long_rows_are_an_error_or_counted_also_for_the_teachers_context(method, start, tmp_path):
    data = [*demonstrations(4), {"prompt": "long", "completion": "y" * 100}]
    small = folder(tmp_path / "small", llama(max_position_embeddings=90), seed=2)
    chosen = replace(method, teacher=str(small))
    with pytest.raises(DataError, match=r"row 4 has 1\d\d tokens, more than the 90 allowed"):
        chosen(start, data, tmp_path / "a", seed=0)
    made = replace(chosen, too_long="drop")(start, data, tmp_path / "b", seed=0)
    assert json.loads((made.path / "posttrain.json").read_text())["data"]["dropped_too_long"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": ""}, "distill: no teacher"),
        ({"teacher": "openai:gpt"}, "a server does not tell the probabilities of all tokens; fine-tune with sft"),
        ({"divergence": "js", "beta": 1.0}, "beta = 1.0 must be between 0 and 1"),
        ({"beta": 0.2}, "belongs to divergence=js"),
        ({"temperature": 0.0}, "temperature = 0.0 must be positive"),
        ({"top_k": -1}, "top_k = -1 not negative"),
        ({"sft_weight": 1.0}, r"sft_weight = 1.0 in \[0, 1\)"),
    ],
)
def test_settings_out_of_range(changes, message, method, start, tmp_path):
    with pytest.raises(ConfigError, match=message):
        replace(method, **changes)(start, ROWS, tmp_path, seed=1)


def test_another_teacher_is_another_run(method, start, tmp_path):
    replace(method, epochs=1)(start, demonstrations(3), tmp_path / "out", seed=3)
    with pytest.raises(ConfigError, match="finished run with another"):
        replace(method, epochs=1, teacher=str(start.path))(start, demonstrations(3), tmp_path / "out", seed=3)


def test_held_out_rows_are_measured_against_the_teacher_and_charged_its_reading(method, start, teacher, tmp_path):
    chosen = replace(method, eval_share=0.3, eval_every=2, sample_every=3, sample_tokens=4)
    made = chosen(start, ROWS, tmp_path / "run", seed=3)
    held = split_by_question(ROWS, 0.3, 3)
    asked, others = ([row for i, row in enumerate(ROWS) if (i in held) == side] for side in (True, False))
    told = json.loads((made.path / "posttrain.json").read_text())
    evaluations = {row["step"]: row for row in metrics(tmp_path / "run") if "eval_loss" in row}
    assert list(evaluations) == [2, 4]
    assert told["evaluation"]["rows"] == len(asked) == 4
    best = evaluations[told["evaluation"]["best_step"]]
    divergence = kl(tables(teacher, asked)[0], tables(made.path, asked)[0])
    assert best["eval_loss"] == pytest.approx(divergence, rel=1e-4)
    assert best["eval_divergence"] == pytest.approx(divergence, rel=1e-4)
    assert (tmp_path / "run" / "samples.jsonl").is_file()

    plain = method(start, others, tmp_path / "plain", seed=3)  # the same trajectory without held-out rows
    assert [row["loss"] for row in metrics(tmp_path / "plain")] == [row["loss"] for row in metrics(tmp_path / "run")]
    quiet = replace(chosen, sample_every=0)(start, ROWS, tmp_path / "quiet", seed=3)
    shapes = [load(path).shape for path in (start.path, teacher)]
    rows = [encode_completion(tokenizer(), [Message(role="user", content=r["prompt"])], r["completion"]) for r in asked]
    once = sum(forward_flops(s, start=0, tokens=len(e.ids), logits=e.trained) for s in shapes for e in rows)
    assert quiet.cost.flops - plain.cost.flops == pytest.approx(2 * once)
    assert quiet.cost.usage.scored - plain.cost.usage.scored == 2 * 2 * sum(len(e.ids) for e in rows)
    assert told["data"]["teacher"]["flops_per_epoch"] == pytest.approx(
        json.loads((plain.path / "posttrain.json").read_text())["data"]["teacher"]["flops_per_epoch"]
    )


def test_killed_between_evaluations_and_resumed_equals_uninterrupted(method, start, tmp_path):
    chosen = replace(method, eval_share=0.3, eval_every=1, activation_checkpointing=True)
    expected = chosen(start, ROWS, tmp_path / "whole", seed=3)
    killed_after(lambda: chosen(start, ROWS, tmp_path / "killed", seed=3), 3)
    resumed = chosen(start, ROWS, tmp_path / "killed", seed=3)
    same(weights(resumed), weights(expected), rtol=0, atol=0)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert resumed.cost.usage == expected.cost.usage


def test_a_held_out_file_is_read_and_a_broken_row_of_it_named(method, start, tmp_path):
    file = tmp_path / "held.jsonl"
    file.write_text(json.dumps({"prompt": "new", "completion": "row"}) + "\n" + json.dumps({"text": "plain text"}) + "\n")
    chosen = replace(method, epochs=1, eval_data=str(file))
    made = chosen(start, ROWS, tmp_path / "a", seed=3)
    assert json.loads((made.path / "posttrain.json").read_text())["evaluation"]["rows"] == 2
    file.write_text(json.dumps({"prompt": "new", "completion": "y" * 600}) + "\n")
    with pytest.raises(DataError, match=r"held.jsonl: row 0 has \d+ tokens"):
        chosen(start, ROWS, tmp_path / "b", seed=3)
