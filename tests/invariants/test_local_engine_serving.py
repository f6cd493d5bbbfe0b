"""Serving: stopping, watching, streaming, cancelling, overflow, new weights, errors, usage."""

import asyncio
import threading
from dataclasses import replace

import pytest
import torch
from tiny_models import llama, model, tokenizer

from posttrain.core.errors import ConfigError, ContextOverflowError, ModelError
from posttrain.core.protocols import Engine
from posttrain.core.types import Message, Prompt, Sampling, Usage
from posttrain.data.chat import render_prompt
from posttrain.engines.local import LocalEngine
from posttrain.engines.local.sequence import Detokenizer, cut_at_stop

torch.set_num_threads(1)

LONG = Sampling(temperature=1.0, max_tokens=60)


def ask(text):
    return Prompt(messages=(Message(role="user", content=text),))


def engine(**options):
    return LocalEngine(model(llama()), tokenizer(), fingerprint="tiny", **options)


def run(coroutine):
    return asyncio.run(coroutine)


def length(text):
    return len(render_prompt(tokenizer(), ask(text).messages))


def test_it_is_an_engine():
    assert isinstance(engine(), Engine)


def test_stop_strings_cut_text_and_tokens_alike():
    local = engine()
    (whole,) = run(local.generate(ask("q"), LONG, seed=3))
    middle = next(
        i for i in range(20, 50) if whole.text[i : i + 2].isascii() and whole.text.find(whole.text[i : i + 2]) == i
    )
    stop = whole.text[middle : middle + 2]
    (cut,) = run(local.generate(ask("q"), Sampling(temperature=1.0, max_tokens=60, stop=("never there", stop)), seed=3))
    assert cut.text == whole.text[:middle]
    assert cut.finish == "stop"
    assert cut.tokens == whole.tokens[: len(cut.tokens)]
    assert tokenizer().decode(cut.tokens) == cut.text
    assert len(cut.logprobs) == len(cut.raw_logprobs) == len(cut.tokens)
    assert cut.usage.generated > len(cut.tokens)  # the stop string was generated, and is charged
    assert cut.usage.generated < whole.usage.generated


def test_text_grows_in_whole_characters():
    text = "naïve 😀 → 日本語 e\u0301 done"
    ids = tokenizer()(text)["input_ids"]  # one token per byte: every other token splits a character
    growing, seen = Detokenizer(tokenizer()), []
    for token in ids:
        growing.add(token)
        seen.append(growing.text)
        assert text.startswith(growing.text)
    assert growing.text == text
    assert len(set(seen)) == len(text)
    assert cut_at_stop(text, ("日本", "→ ")) == text.index("→ ")


def test_end_of_turn_is_charged_but_not_returned():
    local = engine()
    drawn = run(local.generate(ask("q"), Sampling(temperature=2.0, max_tokens=200), seed=0, samples=range(12)))
    stopped = [c for c in drawn if c.finish == "stop"]
    assert stopped, "some of twelve random traces meet the end token"
    for c in stopped:
        assert 257 not in c.tokens
        assert c.usage.generated == len(c.tokens) + 1
        assert c.end_logprob < 0
    for c in drawn:
        if c.finish == "length":
            assert c.usage.generated == len(c.tokens) == 200
            assert c.end_logprob is None


def test_watch_sees_every_token_and_can_end_the_trace():
    local, events = engine(), []

    def watch(event):
        events.append(event)
        return event.sample == 1 and event.index == 4

    sampling = Sampling(temperature=1.0, max_tokens=10, logprobs=2)
    plain = run(local.generate(ask("q"), sampling, seed=0, samples=range(3)))
    watched = run(local.generate(ask("q"), sampling, seed=0, samples=range(3), watch=watch))
    assert [c.finish for c in watched] == ["length", "watch", "length"]
    assert watched[1].tokens == plain[1].tokens[:5]
    assert watched[1].usage.generated == 5
    for c in watched:
        mine = [e for e in events if e.sample == c.sample]
        assert tuple(e.token for e in mine) == c.tokens
        assert tuple(e.logprob for e in mine) == c.raw_logprobs
        assert tuple(e.top_logprobs for e in mine) == c.top_logprobs


def test_a_failing_watch_fails_its_own_call_only():
    local = engine()

    def bad(event):
        raise ValueError("mine")

    async def go():
        return await asyncio.gather(
            local.generate(ask("a"), LONG, seed=0, watch=bad), local.generate(ask("b"), LONG, seed=0), return_exceptions=True
        )

    failed, (fine,) = run(go())
    assert isinstance(failed, ValueError)
    assert len(fine.tokens) > 0
    assert local.busy == 0


def test_a_kept_stop_string_stays_in_text_and_tokens_and_the_continuation_joins():
    local = engine()
    (whole,) = run(local.generate(ask("q"), Sampling(temperature=1.0, max_tokens=60), seed=3))
    at = next(i for i in range(20, 50) if whole.text[i : i + 2].isascii() and whole.text.find(whole.text[i : i + 2]) == i)
    stop = whole.text[at : at + 2]
    sampling = Sampling(temperature=1.0, max_tokens=60, stop=(stop,), keep_stop=True)
    (kept,) = run(local.generate(ask("q"), sampling, seed=3))
    assert kept.finish == "stop"
    assert kept.stopped_by == stop
    assert stop in kept.text
    assert whole.text.startswith(kept.text)
    assert whole.tokens[: len(kept.tokens)] == kept.tokens
    (cut,) = run(local.generate(ask("q"), replace(sampling, keep_stop=False), seed=3))
    assert (cut.text, cut.stopped_by) == (whole.text[:at], stop)
    ids = render_prompt(tokenizer(), ask("q").messages, prefix=kept)
    assert ids == render_prompt(tokenizer(), ask("q").messages) + list(whole.tokens[: len(kept.tokens)])


@pytest.mark.parametrize("stop", [(), ("e", "zz")])
def test_stream_gives_the_same_text_in_pieces(stop):
    local = engine()
    sampling = Sampling(temperature=1.0, max_tokens=40, stop=stop)

    async def go():
        deltas = [delta async for delta in local.stream(ask("q"), sampling, seed=2)]
        (whole,) = await local.generate(ask("q"), sampling, seed=2)
        return deltas, whole

    deltas, whole = run(go())
    assert "".join(delta.text for delta in deltas) == whole.text
    assert deltas[-1].completion.text == whole.text
    assert deltas[-1].completion.tokens == whole.tokens
    assert all(delta.completion is None for delta in deltas[:-1])


async def until_idle(local):
    for _ in range(500):
        if not local.busy:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a slot was not freed")


def test_closing_a_stream_frees_its_slot():
    local = engine(slots=1)

    async def go():
        stream = local.stream(ask("q"), Sampling(temperature=1.0, max_tokens=230), seed=2)
        async for _ in stream:
            break
        await stream.aclose()
        steps = local._scheduler.steps
        (other,) = await asyncio.wait_for(local.generate(ask("r"), Sampling(max_tokens=3), seed=0), 10)
        assert local._scheduler.steps < steps + 100  # the abandoned one did not run to its end
        await until_idle(local)
        return other

    assert run(go()).usage.generated > 0


def test_cancelling_a_task_frees_its_slots_and_tells_the_usage():
    local = engine(slots=2)

    async def go():
        begun = threading.Event()
        watch = lambda event: begun.set() or False  # noqa: E731
        call = local.generate(ask("q"), Sampling(temperature=1.0, max_tokens=220), seed=2, samples=range(4), watch=watch)
        task = asyncio.create_task(call)
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        usage = sum(caught.value.usages, Usage())
        assert usage.calls == 1
        assert usage.prompt == length("q")
        assert 0 < usage.generated < 4 * 220
        await until_idle(local)

    run(go())


def test_context_overflow_names_all_three_lengths():
    local = engine()
    with pytest.raises(ContextOverflowError, match=rf"prompt of {length('q')} tokens with 240 to come.*context of 256"):
        run(local.generate(ask("q"), Sampling(max_tokens=240), seed=0))
    assert local._scheduler.steps == 0
    (exact,) = run(local.generate(ask("q"), Sampling(temperature=1.0, max_tokens=256 - length("q")), seed=1))  # just fits
    assert exact.usage.generated <= 256 - length("q")
    with pytest.raises(ContextOverflowError, match="context of 100"):
        run(engine(max_context=100).generate(ask("q"), Sampling(max_tokens=90), seed=0))


def test_full_slots_do_not_disturb_later_ones():
    """A sequence that filled the whole context stays in its slot; idle, it is stepped over by the others' batch."""
    local, fresh = engine(slots=3), engine(slots=3)
    full = Sampling(temperature=1.0, max_tokens=256 - length("q"))
    run(local.generate(ask("q"), full, seed=1, samples=range(3)))
    again = run(local.generate(ask("q"), full, seed=1, samples=range(3)))
    reference = run(fresh.generate(ask("q"), full, seed=1, samples=range(3)))
    assert [c.tokens for c in again] == [c.tokens for c in reference]


def test_update_changes_outputs_fingerprint_and_forgets_prefixes():
    local = engine()
    (before,) = run(local.generate(ask("q"), LONG, seed=0))
    other = model(llama(), seed=9)
    local.update(other.state_dict().items())
    (after,) = run(local.generate(ask("q"), LONG, seed=0))
    (expected,) = run(LocalEngine(other, tokenizer(), fingerprint="x").generate(ask("q"), LONG, seed=0))
    assert after.tokens == expected.tokens != before.tokens
    assert after.usage.cached == 0
    assert (local.fingerprint, engine().fingerprint) == ("tiny:v1", "tiny")
    with pytest.raises(ModelError, match="no weight 'nope'"):
        local.update([("nope", torch.zeros(1))])
    with pytest.raises(ModelError, match=r"'model.norm.weight' is \(32,\) in the model, not \(3,\)"):
        local.update([("model.norm.weight", torch.zeros(3))])


def test_update_is_refused_while_samples_run():
    local = engine()

    async def go():
        task = asyncio.create_task(local.generate(ask("q"), Sampling(temperature=1.0, max_tokens=200), seed=0))
        while not local.busy:
            await asyncio.sleep(0.001)
        with pytest.raises(ModelError, match="cannot be replaced while 1 samples"):
            local.update([])
        task.cancel()
        await until_idle(local)

    run(go())


def test_two_hundred_concurrent_calls():
    local = engine(slots=16)
    sampling = Sampling(temperature=1.0, max_tokens=8)

    async def go():
        return await asyncio.gather(*[local.generate(ask(f"number {i}"), sampling, seed=i) for i in range(200)])

    together = run(go())
    alone = engine(slots=1)
    for i in (0, 57, 199):
        assert run(alone.generate(ask(f"number {i}"), sampling, seed=i))[0].tokens == together[i][0].tokens
    usage = sum((c.usage for cs in together for c in cs), Usage())
    assert usage.calls == 200
    assert usage.prompt == sum(length(f"number {i}") for i in range(200))
    assert usage.generated == sum(len(cs[0].tokens) + (cs[0].finish == "stop") for cs in together)
    assert usage.cached > 199 * 0.9 * len("\nuser\nnumber ")  # the template's head and "number " are shared
    assert local._scheduler.steps < 200 * 8 / 4  # batched, not one after the other


def test_several_event_loops_one_after_the_other_and_at_once():
    local = engine()
    first = run(local.generate(ask("q"), LONG, seed=0))[0].tokens
    assert run(local.generate(ask("q"), LONG, seed=0))[0].tokens == first
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(run(local.generate(ask("q"), LONG, seed=0)))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r[0].tokens for r in results] == [first] * 3


def test_a_broken_forward_reaches_every_caller_and_the_engine_recovers():
    local = engine(slots=2)
    (good,) = run(local.generate(ask("q"), LONG, seed=0))
    decode = local._runner.decode

    def broken(*args, **kwargs):
        raise RuntimeError("device lost")

    async def go():
        return await asyncio.wait_for(
            asyncio.gather(
                *[local.generate(ask(str(i)), LONG, seed=0) for i in range(5)],
                local.score(ask("q"), "x"),
                return_exceptions=True,
            ),
            20,
        )

    local._runner.decode = broken
    *generated, scored = run(go())
    assert all(isinstance(r, RuntimeError) and str(r) == "device lost" for r in generated)
    assert isinstance(scored, RuntimeError) or scored.usage.scored == 1  # served before the failure, or told of it
    local._runner.decode = decode
    assert run(local.generate(ask("q"), LONG, seed=0))[0].tokens == good.tokens


def test_usage_charges_the_prompt_once_and_says_what_was_cached():
    local = engine()
    first = run(local.generate(ask("the question"), Sampling(max_tokens=4), seed=0, samples=range(3)))
    assert [c.usage.prompt for c in first] == [length("the question"), 0, 0]
    assert [c.usage.calls for c in first] == [1, 0, 0]
    assert first[0].usage.cached == 0
    later = run(local.generate(ask("the question"), Sampling(max_tokens=4), seed=0, samples=range(3, 5)))
    assert later[0].usage.cached == length("the question") - 1
    assert later[1].usage == Usage(generated=later[1].usage.generated)
    other = run(local.generate(ask("the answer"), Sampling(max_tokens=4), seed=0))
    assert other[0].usage.cached == 1 + len("user\nthe ")  # <|im_start|> is one token, the rest are bytes
    assert run(engine(prefix_reuse=False).generate(ask("q"), LONG, seed=0, samples=(0, 1)))[0].usage.cached == 0


def test_many_scores_are_batched_and_mixed_with_generation():
    local = engine(slots=8)
    texts = [f"answer {'x' * i}" for i in range(20)]

    async def go():
        scores = [local.score(ask("which?"), text) for text in texts]
        return await asyncio.gather(local.generate(ask("q"), LONG, seed=0), *scores)

    (generated,), *scored = run(go())
    assert generated.tokens == run(engine().generate(ask("q"), LONG, seed=0))[0].tokens
    for i in (0, 7, 19):
        assert scored[i].text == texts[i]
        assert scored[i].raw_logprobs == pytest.approx(run(engine().score(ask("which?"), texts[i])).raw_logprobs, abs=1e-5)
    assert sum(s.usage.prompt - s.usage.cached for s in scored) < 2 * length("which?") + 20
    with pytest.raises(ConfigError, match="no tokens"):
        run(local.score(ask("q"), ""))


def test_no_samples_cost_nothing():
    local = engine()
    assert run(local.generate(ask("q"), LONG, seed=0, samples=())) == []
    assert local._scheduler.steps == 0


def test_no_more_slots_are_made_than_the_memory_for_keys_and_values_holds():
    """One after the other, many at once, and scored: a fresh slot each time would take the room of all slots in the end."""
    local = engine(slots=64)
    run(local.generate(ask("q"), Sampling(max_tokens=1), seed=0))
    cache = local._runner.cache
    local._scheduler._kv_bytes = 5 * cache.bytes_per_token * 100
    sampling = Sampling(temperature=1.0, max_tokens=100 - length("q"))
    for seed in range(12):
        run(local.generate(ask("q"), sampling, seed=seed))
    run(local.generate(ask("q"), sampling, seed=99, samples=range(20)))
    assert cache.rows == 5

    async def scores():
        return await asyncio.gather(*(local.score(ask("q"), "abcdefghijkl"[i] * sampling.max_tokens) for i in range(12)))

    assert len(run(scores())) == 12
    assert cache.rows == 5


def test_memory_bounds_what_runs_together():
    """With memory for two slots, eight samples run two at a time, and come out the same."""
    local, roomy = engine(slots=8), engine(slots=8)
    run(local.generate(ask("q"), Sampling(max_tokens=1), seed=0))  # the size of a position is known from now on
    local._scheduler._kv_bytes = 2 * local._runner.cache.bytes_per_token * (length("q") + 20)
    sampling, most = Sampling(temperature=1.0, max_tokens=20), []
    watch = lambda event: most.append(local.busy) or False  # noqa: E731
    drawn = run(local.generate(ask("q"), sampling, seed=0, samples=range(8), watch=watch))
    assert max(most) == 2
    assert [c.tokens for c in drawn] == [c.tokens for c in run(roomy.generate(ask("q"), sampling, seed=0, samples=range(8)))]
