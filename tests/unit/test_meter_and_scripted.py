"""The scripted engine, and the meter around it: usage, FLOPs and seconds where they are spent."""

import asyncio

import pytest

from posttrain.core.errors import CapabilityError
from posttrain.core.protocols import Engine
from posttrain.core.types import Completion, Cost, Message, ModelShape, Prompt, Sampling, Usage
from posttrain.engines.meter import Account, Metered, usage_flops
from posttrain.engines.scripted import ScriptedEngine

SHAPE = ModelShape(parameters=1100, matmul_params=1000, head_params=100, layers=2, attention_width=8)


def ask(text, prefix=None):
    return Prompt(messages=(Message(role="system", content="be brief"), Message(role="user", content=text)), prefix=prefix)


def run(coroutine):
    return asyncio.run(coroutine)


def test_replies_are_a_function_of_question_sample_and_seed():
    engine = ScriptedEngine(lambda text, sample, seed: f"{text} {sample} {seed}")
    assert isinstance(engine, Engine)
    drawn = run(engine.generate(ask("q"), Sampling(), seed=7, samples=(2, 5)))
    assert [c.text for c in drawn] == ["q 2 7", "q 5 7"]
    assert [c.sample for c in drawn] == [2, 5]
    assert drawn[0].usage == Usage(calls=1, prompt=3, generated=4)  # three words and the end of turn
    assert drawn[1].usage == Usage(generated=4)


def test_mapping_replies_repeat_and_a_missing_one_is_named():
    engine = ScriptedEngine({"a": "x", "b": ["y", "z"]})
    assert [c.text for c in run(engine.generate(ask("b"), Sampling(), seed=0, samples=range(3)))] == ["y", "z", "y"]
    with pytest.raises(CapabilityError, match="no reply to 'c'"):
        run(engine.generate(ask("c"), Sampling(), seed=0))


def test_words_join_to_the_text_and_limits_cut_them():
    engine = ScriptedEngine({"q": "one  two\nthree. four"})
    (whole,) = run(engine.generate(ask("q"), Sampling(), seed=0))
    assert whole.text == "one  two\nthree. four"
    assert len(whole.tokens) == len(whole.logprobs) == 4
    (short,) = run(engine.generate(ask("q"), Sampling(max_tokens=2), seed=0))
    assert (short.text, short.finish, short.usage.generated) == ("one  two", "length", 2)
    (stopped,) = run(engine.generate(ask("q"), Sampling(stop=("three", "\n")), seed=0))
    assert (stopped.text, stopped.finish, stopped.tokens) == ("one  two", "stop", whole.tokens[:2])


def test_a_stop_string_is_kept_when_asked_and_the_script_may_see_the_whole_prompt():
    engine = ScriptedEngine({"q": "one two\nthree"})
    (kept,) = run(engine.generate(ask("q"), Sampling(stop=("\n",), keep_stop=True), seed=0))
    assert (kept.text, kept.finish, kept.stopped_by) == ("one two\n", "stop", "\n")
    (whole,) = run(engine.generate(ask("q"), Sampling(), seed=0))
    assert whole.stopped_by is None
    seeing = ScriptedEngine({}, respond=lambda prompt, sample, seed: f"after {prompt.prefix.text!r} {sample} {seed}")
    (said,) = run(seeing.generate(ask("q", prefix=kept), Sampling(), seed=4, samples=(2,)))
    assert said.text == "after 'one two\\n' 2 4"


def test_watch_stream_score_and_prefix():
    engine = ScriptedEngine({"q": "one two three"}, logprobs=lambda text, words: [-float(len(w)) for w in words])
    (watched,) = run(engine.generate(ask("q"), Sampling(), seed=0, watch=lambda e: e.logprob == -4.0))
    assert (watched.text, watched.finish, watched.usage.generated) == ("one two", "watch", 2)
    assert watched.logprobs == (-3.0, -4.0)

    async def stream():
        return [delta async for delta in engine.stream(ask("q"), Sampling(), seed=0)]

    deltas = run(stream())
    assert [d.text for d in deltas] == ["one", " two", " three", ""]
    assert deltas[-1].completion.text == "one two three"
    scored = run(engine.score(ask("q"), "ab cde"))
    assert (scored.raw_logprobs, scored.usage) == ((-2.0, -4.0), Usage(calls=1, prompt=3, scored=2))
    assert run(engine.generate(ask("q", prefix="so far"), Sampling(), seed=0))[0].usage.prompt == 5


def test_capabilities_that_are_not_there_are_refused():
    engine = ScriptedEngine({"q": "a"}, can=frozenset())
    with pytest.raises(CapabilityError, match="without 'score'"):
        run(engine.score(ask("q"), "x"))
    with pytest.raises(CapabilityError, match="without 'prefix'"):
        run(engine.generate(ask("q", prefix="x"), Sampling(), seed=0))
    with pytest.raises(CapabilityError, match="without 'watch'"):
        run(engine.generate(ask("q"), Sampling(), seed=0, watch=lambda e: False))


def by_hand(positions, logits):
    """2 FLOPs per weight and token, 4 per attended position and unit of attention width: Kaplan et al. 2020, table 1."""
    return sum(2 * 1000 + 4 * 8 * (p + 1) for p in positions) + 2 * 100 * logits


def test_flops_by_hand():
    usages = [Usage(calls=1, prompt=10, cached=4, generated=3), Usage(generated=2, replayed=1)]
    cold, spent = usage_flops(SHAPE, 10, usages)
    assert cold == by_hand([*range(10), *range(10, 13), *range(10, 12)], logits=5)
    assert spent == by_hand([*range(4, 10), *range(10, 13), 11], logits=4)


class Stub:
    """An engine with given usages, or that fails or waits."""

    can = frozenset({"stream"})
    fingerprint = "stub"
    shape = SHAPE

    def __init__(self, usages=(), error=None, wait=0.0):
        self.usages, self.error, self.wait = usages, error, wait

    async def generate(self, prompt, sampling, *, seed, samples=(0,), watch=None):
        try:
            await asyncio.sleep(self.wait)
        except asyncio.CancelledError as error:
            error.usages = list(self.usages)
            raise
        if self.error:
            raise self.error
        return [Completion(text="", usage=usage) for usage in self.usages]


def test_roles_add_up_and_seconds_are_waited():
    account = Account()
    usages = (Usage(calls=1, prompt=10, generated=3), Usage(generated=2))
    policy, judge = (Metered(Stub(usages, wait=0.05), account, role) for role in ("policy", "judge"))

    async def go():
        await policy.generate(ask("q"), Sampling(), seed=0, samples=range(2))
        await policy.generate(ask("q"), Sampling(), seed=1, samples=range(2))
        await judge.generate(ask("q"), Sampling(), seed=0, samples=range(2))

    run(go())
    costs = account.by_role()
    one = usage_flops(SHAPE, 10, usages)[0]
    assert costs["policy"].usage == Usage(calls=2, prompt=20, generated=10)
    assert costs["policy"].flops == pytest.approx(2 * one)
    assert costs["judge"].flops == pytest.approx(one)
    assert 0.1 <= costs["policy"].seconds < 5
    assert account.total.usage == Usage(calls=3, prompt=30, generated=15)


def test_a_failed_call_is_free_and_a_cancelled_one_is_not():
    account = Account()
    with pytest.raises(RuntimeError):
        run(Metered(Stub(error=RuntimeError("no")), account, "policy").generate(ask("q"), Sampling(), seed=0))
    assert account.by_role() == {}
    assert account.total == Cost()

    async def cancel():
        waiting = Metered(Stub((Usage(calls=1, prompt=7, generated=2),), wait=60), account, "policy")
        task = asyncio.create_task(waiting.generate(ask("q"), Sampling(), seed=0))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(cancel())
    assert account.by_role()["policy"].usage == Usage(calls=1, prompt=7, generated=2)
    assert account.by_role()["policy"].flops == by_hand(range(9), logits=2)


def test_streams_are_charged_when_they_end_and_when_they_are_closed():
    account = Account()
    metered = Metered(ScriptedEngine({"q": "one two three four"}, shape=SHAPE), account, "policy")

    async def whole():
        return [delta async for delta in metered.stream(ask("q"), Sampling(), seed=0)]

    run(whole())
    assert account.by_role()["policy"].usage == Usage(calls=1, prompt=3, generated=5)

    async def part():
        stream = metered.stream(ask("q"), Sampling(), seed=0)
        await anext(stream)
        await anext(stream)
        await stream.aclose()

    run(part())
    assert account.by_role()["policy"].usage == Usage(calls=2, prompt=6, generated=7)


def test_watch_ended_traces_and_scores_are_charged():
    account = Account()
    metered = Metered(ScriptedEngine({"q": "one two three four"}, shape=SHAPE), account, "policy")
    run(metered.generate(ask("q"), Sampling(), seed=0, watch=lambda e: e.index == 1))
    assert account.by_role()["policy"].usage == Usage(calls=1, prompt=3, generated=2)
    run(metered.score(ask("q"), "a b c"))
    assert account.by_role()["policy"].usage == Usage(calls=2, prompt=6, generated=2, scored=3)
    assert (metered.can, metered.fingerprint, metered.shape) == (ScriptedEngine({}).can, "scripted", SHAPE)
