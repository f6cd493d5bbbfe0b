"""Distillation on the student's own samples: what is drawn, its gradient by enumeration, one trajectory, resume, cost."""

import json
import time
from dataclasses import replace

import pytest
import torch
from tiny_models import demonstrations, folder, llama, model, tokenizer
from training_runs import killed_after, metrics, same, two_processes, weights

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.types import Checkpoint, Message, Prompt, Sampling
from posttrain.data.chat import render_prompt
from posttrain.engines.local.replies import drawn, replies
from posttrain.finetuning.distill import Distill, _Objective, _Row
from posttrain.models.forward import Forward
from posttrain.models.load import load
from posttrain.models.shape import shape_of
from posttrain.models.virtual import add_virtual
from posttrain.training.rollouts import Policy
from posttrain.training.settings import key_config
from posttrain.training.teacher import open_teacher

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

ROWS = demonstrations(11)
FIELDS = ("on_policy", "generated", "cut")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    sizes = {"vocab_size": 264, "hidden_size": 48, "num_hidden_layers": 3, "tie_word_embeddings": False}
    return folder(tmp_path_factory.mktemp("teacher") / "model", llama(**sizes), seed=7)


@pytest.fixture(scope="module")
def method(teacher):
    return Distill(
        teacher=str(teacher), on_policy=1.0, rollout_tokens=6, lr=1e-2, epochs=2, batch_size=4, save_every=2, dtype="float32"
    )


def policy(net, *, tokens=6, temperature=1.0, seed=3):
    sampling = Sampling(temperature=temperature, max_tokens=tokens)
    return Policy(draw=drawn, model=net, tokenizer=tokenizer(), shape=shape_of(net), sampling=sampling, seed=seed)


def asking(text):
    return Prompt(messages=(Message(role="user", content=text),))


def ends_often(net):
    """Make the end of the turn likely, so that short samples have every form."""
    with torch.no_grad():
        net.get_input_embeddings().weight[257] *= 3
    return net


def test_a_rollout_is_the_prompt_and_all_that_was_drawn():
    net = ends_often(model().eval())
    began = time.perf_counter()
    found, cost = policy(net).rollouts([asking("1?"), asking("2?")], step=0, samples=20)
    assert 0 < cost.seconds <= time.perf_counter() - began  # the time that passed, not every call's wait
    ends = set()
    for prompt, rollouts in zip(("1?", "2?"), found, strict=True):
        asked = render_prompt(tokenizer(), asking(prompt).messages)
        for rollout in rollouts:
            tokens = rollout.completion.tokens
            end = [] if rollout.cut else [257]
            ends.add(rollout.cut)
            assert rollout.encoded.ids == [*asked, *tokens, *end]
            assert rollout.encoded.mask == [False] * len(asked) + [True] * (len(tokens) + len(end))
    assert ends == {True, False}
    drawn_tokens = [r.encoded.trained for rollouts in found for r in rollouts]
    assert cost.usage.generated == sum(drawn_tokens)
    assert cost.flops > 0


def test_equal_prompts_of_a_step_get_different_samples_and_every_step_its_own():
    net = model().eval()
    asked = [asking("1?"), asking("2?"), asking("1?")]
    found, _ = policy(net).rollouts(asked, step=0)
    texts = [rollouts[0].encoded.ids for rollouts in found]
    assert texts[0] != texts[2]
    again, _ = policy(net).rollouts(asked, step=0)
    assert [rollouts[0].encoded.ids for rollouts in again] == texts
    later, _ = policy(net).rollouts(asked, step=1)
    assert [rollouts[0].encoded.ids for rollouts in later] != texts
    group, _ = policy(net).rollouts([asking("1?")], step=0, samples=2)
    assert [rollout.encoded.ids for rollout in group[0]] == [texts[0], texts[2]]


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_the_mean_gradient_of_samples_is_the_one_by_enumeration(divergence, teacher):
    """With two tokens to draw, every response can be listed: E_y Σ_t ∇D = ∇D(first) + Σ_v q(v) ∇D(second | v)."""
    net = ends_often(model())
    student = Forward(net)
    opened = open_teacher(str(teacher), student=student, tokenizer=tokenizer(), dtype="float32")
    chosen = Distill(teacher="x", divergence=divergence)
    objective = _Objective(chosen, opened, shape_of(net), False, virtual_flops=lambda *_, **__: 0.0)
    count = 2000
    found, _ = policy(net, tokens=2).rollouts([asking("1?")], step=0, samples=count)
    own = [_Row(i, rollout.encoded) for i, rollout in enumerate(found[0])]
    loss = 0.0
    for at in range(0, count, 100):  # a mean over sequences of sums over tokens
        share, _ = objective(student, own[at : at + 100], count)
        share.backward()
        loss += share.item()
    sampled = torch.cat([p.grad.flatten() for p in net.parameters()])
    net.zero_grad()

    def distances(ids):
        with torch.no_grad():
            p = opened.module.model(torch.tensor(ids)).logits[:, -1, :258].log_softmax(-1)
        q = net(torch.tensor(ids)).logits[:, -1].log_softmax(-1)
        left, right = (p, q) if divergence == "forward_kl" else (q, p)
        return (left.exp() * (left - right)).sum(-1), q

    asked = render_prompt(tokenizer(), asking("1?").messages)
    first, q = distances([asked])
    goes_on = [v for v in range(258) if v != 257]
    second, _ = distances([[*asked, v] for v in goes_on])
    exact = first[0] + (q[0, goes_on].detach().exp() * second).sum()
    exact.backward()
    enumerated = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert loss == pytest.approx(exact.item(), rel=0.03)
    assert (sampled - enumerated).norm() < 0.1 * enumerated.norm()
    assert torch.nn.functional.cosine_similarity(sampled, enumerated, dim=0) > 0.995


@pytest.mark.slow
def test_samples_come_as_often_as_the_student_says():
    net = ends_often(model().eval())
    asked = render_prompt(tokenizer(), asking("1?").messages)
    with torch.no_grad():
        expected = (net(torch.tensor([asked])).logits[0, -1] / 0.7).softmax(-1)
    found, _ = policy(net, tokens=1, temperature=0.7).rollouts([asking("1?")], step=5, samples=2000)
    counts = torch.zeros(258)
    for rollout in found[0]:
        counts[rollout.encoded.ids[-1]] += 1
    often = expected * 2000 > 5
    chi = ((counts - expected * 2000)[often] ** 2 / (expected * 2000)[often]).sum()
    assert chi < often.sum() + 5 * (2 * often.sum()) ** 0.5


def test_the_first_step_is_worked_out_on_the_samples_by_transformers_alone(method, start, teacher, tmp_path):
    replace(method, batch_size=11, epochs=1)(start, ROWS, tmp_path, seed=3)
    net, big = load(start.path, dtype="float32").model, load(teacher, dtype="float32").model
    found, _ = policy(net).rollouts([asking(row["prompt"]) for row in ROWS], step=0)  # no prompt twice: the order is free
    total, trained = 0.0, 0
    for (rollout,) in found:
        at = [i - 1 for i, mask in enumerate(rollout.encoded.mask) if mask]
        with torch.no_grad():
            p, q = (m(torch.tensor([rollout.encoded.ids])).logits[0, at, :258].double().log_softmax(-1) for m in (big, net))
        total, trained = total + float((p.exp() * (p - q)).sum()), trained + len(at)
    row = metrics(tmp_path)[0]
    assert row["loss"] == pytest.approx(total / trained, rel=1e-5)
    assert (row["trained_tokens"], row["generated"], row["on_policy"]) == (trained, trained, 1)
    assert row["cut"] == pytest.approx(sum(rollout.cut for (rollout,) in found) / 11)


def test_a_share_of_the_steps_and_none_at_all(method, start, tmp_path):
    half = replace(method, on_policy=0.5, epochs=6)
    half(start, ROWS, tmp_path / "half", seed=3)
    on = [row["on_policy"] for row in metrics(tmp_path / "half")]
    assert 4 <= sum(on) <= 14
    assert all((row["generated"] > 0) == bool(row["on_policy"]) for row in metrics(tmp_path / "half"))
    off = replace(method, on_policy=0.0, rollout_tokens=128)
    off(start, ROWS, tmp_path / "off", seed=3)
    assert not set(FIELDS) & metrics(tmp_path / "off")[0].keys()
    assert not {"on_policy", "rollout_tokens", "rollout_temperature"} & key_config(off).keys()


VARIANTS = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "mixed_js": {"on_policy": 0.5, "divergence": "js", "rollout_temperature": 0.7},
    "lora_dropout": {"adapter": "lora", "rank": 4, "dropout": 0.3},
    "prefix": {"adapter": "prefix", "virtual_tokens": 3},
    "held_out": {"eval_share": 0.3, "eval_every": 2, "sample_every": 2, "sample_tokens": 4},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(name, method, start, tmp_path):
    chosen = replace(method, **VARIANTS[name])
    expected = chosen(start, ROWS, tmp_path / "whole", seed=3)
    killed_after(lambda: chosen(start, ROWS, tmp_path / "cut", seed=3), 3)  # behind the last saved state
    resumed = chosen(start, ROWS, tmp_path / "cut", seed=3)
    same(weights(resumed), weights(expected), rtol=0, atol=0)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert (resumed.cost.usage, resumed.cost.flops) == (expected.cost.usage, expected.cost.flops)


def test_micro_batch_size_does_not_change_the_trajectory(method, start, tmp_path):
    slow = replace(method, lr=1e-4)  # so that rounding does not flip a sample
    whole = replace(slow, tokens_per_microbatch=100_000)(start, ROWS, tmp_path / "whole", seed=3)
    one_by_one = replace(slow, tokens_per_microbatch=1)(start, ROWS, tmp_path / "one", seed=3)
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "one"), strict=True):
        assert [a[name] for name in FIELDS] == [b[name] for name in FIELDS]
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    same(weights(whole), weights(one_by_one), rtol=1e-2, atol=1e-4)


def test_two_processes_draw_what_one_draws(method, start, tmp_path):
    chosen = replace(method, lr=1e-4, epochs=1)
    expected = chosen(start, ROWS, tmp_path / "one", seed=3)
    assert two_processes(lambda: chosen(start, ROWS, tmp_path / "two", seed=3), tmp_path / "meeting") == [0, 0]
    one, two = (metrics(tmp_path / name) for name in ("one", "two"))
    assert [[row[name] for name in FIELDS] for row in one] == [[row[name] for name in FIELDS] for row in two]
    told = json.loads((tmp_path / "two" / "checkpoint" / "posttrain.json").read_text())
    assert told["cost"]["usage"]["generated"] == expected.cost.usage.generated


def test_what_is_generated_is_charged(method, start, tmp_path):
    made = method(start, ROWS, tmp_path, seed=3)
    lines = metrics(tmp_path)
    assert made.cost.usage.generated == sum(row["generated"] for row in lines) > 0
    tokens = sum(row["tokens"] for row in lines)
    assert made.cost.usage.scored == 2 * tokens  # the student's training and the teacher's reading, of the samples
    assert made.cost.usage.prompt > 0


def test_a_student_comes_closer_to_its_teacher_where_it_goes_itself(method, start, tmp_path):
    chosen = replace(method, epochs=16, batch_size=11, divergence="reverse_kl", save_every=0)
    chosen(start, ROWS, tmp_path, seed=3)
    lines = [row["divergence"] for row in metrics(tmp_path)]
    assert sum(lines[-3:]) < 0.7 * sum(lines[:3])


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_virtual_tokens_are_in_effect_when_a_model_writes(kind):
    net = model().eval()
    ask, how = [asking("1 plus 3?")], {"seed": 1, "shape": shape_of(net)}
    before, _ = replies(net, tokenizer(), ask, Sampling(max_tokens=8), **how)
    adapted = add_virtual(net, kind=kind, tokens=4, seed=1).eval()
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.normal_(0, 3)
    after, _ = replies(adapted, tokenizer(), ask, Sampling(max_tokens=8), **how)
    assert after[0].tokens != before[0].tokens
    ids = render_prompt(tokenizer(), ask[0].messages)
    with torch.no_grad():
        logits = adapted(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits
    assert int(logits[0, -1].argmax()) == after[0].tokens[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_policy": 1.5}, r"on_policy = 1.5 must be in \[0, 1\]"),
        ({"rollout_tokens": 0}, "rollout_tokens = 0 at least 1,"),
        ({"sharding": "full"}, "sharding=full does not go with samples of the model in training"),
        ({"rollout_temperature": -1.0}, "rollout_temperature = -1.0 not negative"),
        ({"on_policy": 0.0}, "belong to on_policy: set it"),
        ({"sft_weight": 0.3}, "puts the student's own in their place: leave one of them out"),
    ],
)
def test_settings_out_of_range(changes, message, method, start, tmp_path):
    with pytest.raises(ConfigError, match=message):
        replace(method, **changes)(start, ROWS, tmp_path, seed=1)


def test_rows_that_no_response_can_be_drawn_for(method, start, tmp_path):
    with pytest.raises(DataError, match="row 1: on_policy needs a 'prompt' or 'messages'"):
        method(start, [ROWS[0], {"text": "plain"}], tmp_path / "a", seed=1)
    long = replace(method, rollout_tokens=240)
    with pytest.raises(DataError, match=r"row 0 with its rollout_tokens has 2\d\d tokens, more than the 256 allowed"):
        long(start, ROWS, tmp_path / "b", seed=1)
    data = [{"prompt": "1" * 300, "completion": "x"}, *ROWS]
    made = replace(method, too_long="drop")(start, data, tmp_path / "c", seed=1)
    assert json.loads((made.path / "posttrain.json").read_text())["data"]["dropped_too_long"] == 1
