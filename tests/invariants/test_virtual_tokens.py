"""Prefix and prompt tuning: training forward and local engine say what PEFT itself says, for each kind of attention."""

import asyncio
from functools import cache

import pytest
import torch
from test_local_engine_models import CONFIGS, FLOAT32, QUESTIONS, all_of, ask
from tiny_models import llama, model, tokenizer
from transformers import MambaConfig

from posttrain.core.errors import ContextOverflowError, ModelError
from posttrain.core.types import Sampling
from posttrain.data.chat import render_prompt
from posttrain.data.masks import Encoded
from posttrain.engines.local import LocalEngine
from posttrain.models.forward import Forward
from posttrain.models.virtual import add_virtual, virtual_states, virtual_tokens

torch.set_num_threads(1)

V = 5
KINDS = ["prefix", "prompt"]


def adapted(kind, name="llama", tokens=V, seed=3):
    """Return a `PeftModel` whose virtual tokens are no longer what they began as."""
    made = add_virtual(model(CONFIGS[name]).eval(), kind=kind, tokens=tokens, seed=seed).eval()
    generator = torch.Generator().manual_seed(7)
    for parameter in made.prompt_encoder.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made


def table(peft, ids):
    """PEFT's own forward over one sequence: log-probabilities after each of its tokens, [T, vocabulary]."""
    ids = torch.tensor([ids])
    with torch.no_grad():
        return peft(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -ids.shape[1] :].log_softmax(-1)


def greedy(peft, ids, n):
    """Token by token, every time from the beginning."""
    said = []
    for _ in range(n):
        said.append(int(table(peft, [*ids, *said])[-1].argmax()))
        if said[-1] == 257:
            return said[:-1]
    return said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FLOAT32)
def test_a_fresh_one_is_the_base_with_real_tokens_in_front(name, kind):
    base = model(CONFIGS[name]).eval()
    made = add_virtual(model(CONFIGS[name]).eval(), kind=kind, tokens=V, seed=3).eval()
    drawn = torch.randint(258, (V,), generator=torch.Generator().manual_seed(3)).tolist()
    ids = [11, 25, 3, 99, 180, 4, 7]
    with torch.no_grad():
        expected = base(torch.tensor([drawn + ids])).logits[0, V:].log_softmax(-1)
    torch.testing.assert_close(table(made, ids), expected, atol=1e-4, rtol=0)
    trained = {n for n, p in made.named_parameters() if p.requires_grad}
    assert trained == {"prompt_encoder.default.embedding.weight"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FLOAT32)
def test_the_training_forward_says_what_peft_says(name, kind):
    peft = adapted(kind, name)
    rows = [[11, 25, 3, 99, 180, 4, 7], [11, 25, 3, 8], [44] * 12]
    groups = [[Encoded(ids=tuple(ids), mask=tuple(i > 1 for i in range(len(ids)))) for ids in rows]]
    module = Forward(peft)
    assert not module.packs
    batch = module.batch(groups)
    got = module(batch)
    expected = torch.cat([torch.stack([table(peft, ids)[i - 1, ids[i]] for i in range(2, len(ids))]) for ids in rows])
    torch.testing.assert_close(got.detach(), expected, atol=1e-4, rtol=0)
    got.sum().backward()
    weight = peft.prompt_encoder["default"].embedding.weight
    assert (weight.grad.norm(dim=-1) > 0).all()
    step = 1e-2 * weight.grad / weight.grad.norm()
    values = []
    for sign in (1, -1):  # the gradient by central differences of PEFT's own forward
        weight.data += sign * step
        values.append(sum(float(table(peft, ids)[i - 1, ids[i]].double()) for ids in rows for i in range(2, len(ids))))
        weight.data -= sign * step
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(float(weight.grad.norm()), rel=2e-2)


def logps_after(peft, ids, tokens):
    logps = table(peft, [*ids, *tokens])
    return [float(logps[len(ids) - 1 + i, t]) for i, t in enumerate(tokens)]


@cache
def said(name, kind, question):
    """What PEFT generates and the log-probabilities of that and of a given text, once for all settings of the engine."""
    peft, ids = adapted(kind, name), render_prompt(tokenizer(), ask(question).messages)
    tokens, given = greedy(peft, ids, 12), tokenizer().encode("4 and 5", add_special_tokens=False)
    return tokens, logps_after(peft, ids, tokens), given, logps_after(peft, ids, given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FLOAT32)
@pytest.mark.parametrize("options", [{}, {"prefix_reuse": False}, {"slots": 2}], ids=str)
def test_the_engine_generates_and_scores_what_peft_says(name, kind, options):
    engine = LocalEngine(adapted(kind, name), tokenizer(), fingerprint=name, **options)
    questions = QUESTIONS * 2  # again: now from the slots' prefixes
    got = all_of(engine, [ask(q) for q in questions], Sampling(max_tokens=12))
    for question, (completion,) in zip(questions, got, strict=True):
        tokens, logps, given, given_logps = said(name, kind, question)
        assert list(completion.tokens) == tokens
        assert list(completion.raw_logprobs) == pytest.approx(logps, abs=1e-4)
        scored = asyncio.run(engine.score(ask(question), "4 and 5"))
        assert list(scored.tokens) == given
        assert list(scored.logprobs) == pytest.approx(given_logps, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_depend_on_what_else_runs(kind):
    sampling = Sampling(max_tokens=16, temperature=1.0)
    together = all_of(LocalEngine(adapted(kind), tokenizer(), fingerprint="x"), [ask(q) for q in QUESTIONS], sampling)
    alone = [
        all_of(LocalEngine(adapted(kind), tokenizer(), fingerprint="x"), [ask(q)], sampling)[0] for q in QUESTIONS[::-1]
    ]
    assert [c[0].tokens for c in together] == [c[0].tokens for c in alone[::-1]]
    many = LocalEngine(adapted(kind), tokenizer(), fingerprint="x", slots=3)
    samples = asyncio.run(many.generate(ask("Hi"), sampling, seed=1, samples=range(9)))
    assert samples[0].tokens == together[0][0].tokens
    assert len({s.tokens for s in samples}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_in_place_is_seen(kind):
    peft = adapted(kind)
    engine = LocalEngine(peft, tokenizer(), fingerprint="x")
    before = asyncio.run(engine.score(ask("Hi"), "4 and 5")).logprobs
    peft.prompt_encoder["default"].embedding.weight.data *= -1.5
    engine.update(())
    after = asyncio.run(engine.score(ask("Hi"), "4 and 5"))
    ids = render_prompt(tokenizer(), ask("Hi").messages)
    logps = table(peft, [*ids, *after.tokens])
    assert list(after.logprobs) == pytest.approx(
        [float(logps[len(ids) - 1 + i, t]) for i, t in enumerate(after.tokens)], abs=1e-4
    )
    assert before != after.logprobs


def test_virtual_tokens_take_their_room_in_the_context():
    engine = LocalEngine(adapted("prompt"), tokenizer(), fingerprint="x")
    length = len(render_prompt(tokenizer(), ask("Hi").messages))
    assert asyncio.run(engine.generate(ask("Hi"), Sampling(max_tokens=256 - V - length), seed=0))
    with pytest.raises(ContextOverflowError, match=str(256 - V)):
        asyncio.run(engine.generate(ask("Hi"), Sampling(max_tokens=256 - V - length + 1), seed=0))


def test_their_number_and_states():
    peft = adapted("prefix")
    assert virtual_tokens(peft) == V
    assert virtual_tokens(peft.get_base_model()) == 0
    states = virtual_states(peft)
    assert [(k.shape, v.shape) for k, v in states] == [((2, V, 8), (2, V, 8))] * 2
    row = peft.prompt_encoder["default"].embedding.weight.view(V, 4, 2, 8)  # token, (layer, key or value), head, size
    torch.testing.assert_close(states[1][0], row[:, 2].transpose(0, 1).detach())
    torch.testing.assert_close(states[1][1], row[:, 3].transpose(0, 1).detach())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_counted_in_closed_form(kind):
    config = llama()
    made = add_virtual(model(config), kind=kind, tokens=7, seed=0)
    trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
    head = config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head if kind == "prefix" else config.hidden_size
    assert trained == 7 * per_token


def test_what_cannot_be():
    with pytest.raises(ModelError, match="at least 1 virtual token"):
        add_virtual(model(), kind="prompt", tokens=0, seed=0)
    mamba = model(MambaConfig(vocab_size=258, hidden_size=32, num_hidden_layers=2, state_size=4))
    with pytest.raises(ModelError, match="MambaForCausalLM cannot take prefix tuning"):
        add_virtual(mamba, kind="prefix", tokens=3, seed=0)
    with pytest.raises(ModelError, match="attention window"):
        virtual_states(add_virtual(model(CONFIGS["gemma2"]), kind="prefix", tokens=9, seed=0))
