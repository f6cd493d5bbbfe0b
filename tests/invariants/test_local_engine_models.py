"""The local engine computes what transformers computes: tokens, log-probabilities, scores, for each kind of attention."""

import asyncio
from functools import cache

import pytest
import torch
from tiny_models import llama, model, tokenizer
from transformers import Gemma2Config, Gemma3TextConfig, GPT2Config, MambaConfig, MistralConfig, Qwen3Config

from posttrain.core.errors import ModelError
from posttrain.core.types import Completion, Message, Prompt, Sampling
from posttrain.data.chat import render_prompt
from posttrain.engines.local import LocalEngine

torch.set_num_threads(1)

SIZES = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 257,
}
CONFIGS = {
    "llama": llama(),
    "llama-bf16": llama(),
    "qwen3": Qwen3Config(**SIZES, head_dim=12),
    # window 8: shorter than every prompt, so that prefill, continued prefill and decode all slide
    "gemma2": Gemma2Config(
        **SIZES, head_dim=8, sliding_window=8, query_pre_attn_scalar=16, attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
    ),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=8, query_pre_attn_scalar=16),
    "mistral": MistralConfig(**SIZES, sliding_window=10),
    "gpt2": GPT2Config(
        vocab_size=258, n_embd=32, n_layer=2, n_head=4, n_positions=256, scale_attn_by_inverse_layer_idx=True,
        bos_token_id=None, eos_token_id=257,
    ),
}  # fmt: skip
FLOAT32 = [name for name in CONFIGS if name != "llama-bf16"]
QUESTIONS = ["Hi", "What is 2 plus 3?", "What is 2 plus 3? Think step by step.", "Äpfel und Birnen: wie viele?", "a" * 60]


def ask(text, prefix=None):
    return Prompt(messages=(Message(role="user", content=text),), prefix=prefix)


def engine(name, **options):
    built = model(CONFIGS[name], dtype=torch.bfloat16 if name.endswith("bf16") else torch.float32)
    return LocalEngine(built.eval(), tokenizer(), fingerprint=name, **options)


def all_of(engine, prompts, sampling, **options):
    async def go():
        return await asyncio.gather(*[engine.generate(p, sampling, seed=1, **options) for p in prompts])

    return asyncio.run(go())


def plain_greedy(built, ids, n):
    """Transformers' own generate, one prompt at a time: the reference."""
    out = built.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=n, do_sample=False
    )
    tokens = out[0, len(ids) :].tolist()
    return tokens[:-1] if tokens[-1] == 257 else tokens


@cache
def generated(name, question):
    """What transformers generates, once for all settings of the engine."""
    return plain_greedy(model(CONFIGS[name]).eval(), render_prompt(tokenizer(), ask(question).messages), 20)


@pytest.mark.parametrize("name", FLOAT32)
@pytest.mark.parametrize("options", [{}, {"prefix_reuse": False}, {"slots": 1}, {"slots": 3}], ids=str)
def test_greedy_equals_generate(name, options):
    local = engine(name, **options)
    questions = QUESTIONS * 2  # again: now from the slots' prefixes
    got = all_of(local, [ask(q) for q in questions], Sampling(max_tokens=20))
    for question, (completion,) in zip(questions, got, strict=True):
        expected = generated(name, question)
        assert list(completion.tokens) == expected
        assert completion.text == tokenizer().decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("name", FLOAT32)
def test_score_equals_a_plain_forward_and_generated_logprobs(name):
    local = engine(name, slots=4)
    drawn = [c for cs in all_of(local, [ask(q) for q in QUESTIONS], Sampling(max_tokens=15, temperature=1.0)) for c in cs]

    async def go():
        return await asyncio.gather(*[local.score(ask(q), c) for q, c in zip(QUESTIONS, drawn, strict=True)])

    for question, completion, scored in zip(QUESTIONS, drawn, asyncio.run(go()), strict=True):
        ids = render_prompt(tokenizer(), ask(question).messages)
        with torch.no_grad():
            logits = local._model(input_ids=torch.tensor([[*ids, *completion.tokens]])).logits[0].double()
        full = logits.log_softmax(-1)[len(ids) - 1 : -1]
        expected = full.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0].tolist()
        assert scored.raw_logprobs == pytest.approx(expected, abs=2e-5)
        assert scored.logprobs == scored.raw_logprobs
        assert completion.raw_logprobs == pytest.approx(expected, abs=2e-5)
        assert completion.logprobs == pytest.approx(expected, abs=2e-5)  # temperature 1: the same distribution
        assert scored.text == completion.text
        assert scored.usage.scored == len(completion.tokens)


def test_bf16_runs_in_bf16_and_stays_near_float32():
    exact, half = engine("llama"), engine("llama-bf16")
    text = "the quick brown fox"

    async def score(e):
        return await e.score(ask("Say it."), text)

    a, b = asyncio.run(score(exact)), asyncio.run(score(half))
    assert half._runner.cache.keys_SGCD[0].dtype == torch.bfloat16
    assert b.raw_logprobs == pytest.approx(a.raw_logprobs, abs=0.2)
    assert b.raw_logprobs != a.raw_logprobs


def test_top_logprobs_are_the_models_own():
    local = engine("llama")
    ((completion,),) = all_of(local, [ask("Hi")], Sampling(max_tokens=6, temperature=0.5, top_k=3, logprobs=4))
    ids = render_prompt(tokenizer(), ask("Hi").messages)
    with torch.no_grad():
        logits = local._model(input_ids=torch.tensor([[*ids, *completion.tokens]])).logits[0].double()
    full = logits.log_softmax(-1)[len(ids) - 1 :]
    cut = (logits[len(ids) - 1 :] / 0.5).topk(3, dim=-1)
    for t, token in enumerate(completion.tokens):
        values, indices = full[t].topk(4)
        assert [i for i, _ in completion.top_logprobs[t]] == indices.tolist()
        assert [v for _, v in completion.top_logprobs[t]] == pytest.approx(values.tolist(), abs=2e-5)
        place = cut.indices[t].tolist().index(token)  # temperature and top-k: renormalised over three tokens
        assert completion.logprobs[t] == pytest.approx(cut.values[t].log_softmax(-1)[place].item(), abs=2e-5)


def test_continuing_a_completion_reuses_its_tokens():
    local = engine("llama")
    ((whole,),) = all_of(local, [ask("Tell")], Sampling(max_tokens=24))
    ((head,),) = all_of(local, [ask("Tell")], Sampling(max_tokens=9))
    ((tail,),) = all_of(local, [ask("Tell", prefix=head)], Sampling(max_tokens=15))
    assert head.tokens + tail.tokens == whole.tokens
    assert tail.usage.cached == tail.usage.prompt - 1  # everything but the last token lay in a slot


def test_pieces_of_a_prefix_join_by_their_ids():
    """An opening text, a completion, a text behind it, another completion: nothing is tokenised again across a seam."""
    local = engine("llama")
    messages = ask("Tell").messages
    ((first,),) = all_of(local, [ask("Tell", prefix="So,")], Sampling(max_tokens=7))
    ((second,),) = all_of(local, [ask("Tell", prefix=("So,", first, "Wait"))], Sampling(max_tokens=6))
    ids = render_prompt(tokenizer(), messages, prefix="So,") + list(first.tokens) + tokenizer()("Wait")["input_ids"]
    assert render_prompt(tokenizer(), messages, prefix=("So,", first, "Wait")) == ids
    assert list(second.tokens) == plain_greedy(local._model, ids, 6)
    assert render_prompt(tokenizer(), messages, prefix=("So", ",")) == render_prompt(tokenizer(), messages, prefix="So,")
    assert ask("Tell", prefix=("So,", first, "Wait", second)).begun == f"So,{first.text}Wait{second.text}"
    ((third,),) = all_of(local, [ask("Tell", prefix=("So,", first, "Wait", second))], Sampling(max_tokens=3))
    assert list(third.tokens) == plain_greedy(local._model, ids + list(second.tokens), 3)


def test_a_text_prefix_opens_the_answer():
    local = engine("llama")
    ((completion,),) = all_of(local, [ask("Tell", prefix="So,")], Sampling(max_tokens=8))
    ids = render_prompt(tokenizer(), ask("Tell").messages) + tokenizer()("So,")["input_ids"]
    assert list(completion.tokens) == plain_greedy(local._model, ids, 8)


def test_a_training_model_is_left_as_it_was():
    config = GPT2Config(vocab_size=258, n_embd=32, n_layer=1, n_head=2, n_positions=128, eos_token_id=257)  # dropout 0.1
    built = model(config).train()
    before = built.config._attn_implementation
    local = LocalEngine(built, tokenizer(), fingerprint="x")
    first, second = (all_of(local, [ask("Hi")], Sampling(max_tokens=8))[0][0] for _ in range(2))
    assert first.raw_logprobs == second.raw_logprobs  # no dropout
    assert built.training
    assert all(module.training for module in built.modules())
    assert built.config._attn_implementation == before
    built(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()


def test_unknown_architectures_are_refused_by_name():
    config = MambaConfig(vocab_size=258, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ModelError, match="MambaForCausalLM has"):
        LocalEngine(model(config), tokenizer(), fingerprint="x", max_context=64)


def test_a_model_whose_slots_disagree_is_refused():
    """An architecture that looks right but gives other logits through the cache is found by the check at first use."""
    local = engine("llama")
    local._runner.decoder = lambda **inputs: local._model.model(**{**inputs, "position_ids": inputs["position_ids"] + 1})
    with pytest.raises(ModelError, match="gives other logits"):
        all_of(local, [ask("Hi")], Sampling(max_tokens=2))


def test_scoring_text_is_tokenised_at_the_seam():
    local = engine("qwen3")

    async def go():
        text = await local.score(ask("Hi"), "yes")
        ids = await local.score(ask("Hi"), Completion(text="yes", tokens=tuple(tokenizer()("yes")["input_ids"])))
        return text, ids

    text, ids = asyncio.run(go())
    assert text.tokens == ids.tokens
    assert text.raw_logprobs == pytest.approx(ids.raw_logprobs, abs=1e-6)


def test_long_continuations_are_scored_in_pieces(monkeypatch):
    whole, pieces = engine("gemma2"), engine("gemma2")
    texts = ["x" * 40, "short", "and yet another one"]

    async def scores(local):
        return await asyncio.gather(*[local.score(ask("q"), text) for text in texts])

    expected = asyncio.run(scores(whole))
    monkeypatch.setattr("posttrain.engines.local.scoring._LOGITS", 258 * 7)  # seven tokens at a time
    sizes, extend = [], pieces._runner.extend
    pieces._runner.extend = lambda slots, starts, new: sizes.append(sum(map(len, new))) or extend(slots, starts, new)
    got = asyncio.run(scores(pieces))
    assert max(sizes) == 7
    for a, b in zip(got, expected, strict=True):
        assert a.raw_logprobs == pytest.approx(b.raw_logprobs, abs=1e-5)
        assert len(a.raw_logprobs) == len(a.tokens)
