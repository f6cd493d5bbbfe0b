"""The remote engine against a server whose every answer is known: what is sent, what is read, what is tried again."""

import asyncio
import email.utils
import json
import time
from contextlib import contextmanager
from pathlib import Path

import fake_server
import pytest
import yaml
from fake_server import Fake, serving

from posttrain.cli.main import app
from posttrain.cli.reporting import report_run
from posttrain.core.errors import CapabilityError, ConfigError, ContextOverflowError, PosttrainError, ServerError
from posttrain.core.protocols import Engine
from posttrain.core.types import Completion, Message, Prompt, Sampling, Usage
from posttrain.engines.openai import OpenAIEngine, open_server, read_server
from posttrain.engines.openai.transport import Transport
from posttrain.pipeline.recipe import load_recipe
from posttrain.pipeline.run import run_recipe

ASK = Prompt(messages=(Message(role="user", content="name some numbers"),))
TASK = "reasoning_gym/chain_sum:min_terms=2,max_terms=2"
HOT = Sampling(temperature=1.0, max_tokens=50)


@contextmanager
def opened(options: str = "", monkeypatch=None, **changes):
    with serving(**changes) as fake:
        engine = open_server(read_server(f"openai:toy,url={fake.url}" + (f",{options}" if options else "")))
        fake.requests.clear()
        fake.headers.clear()
        fake.most_at_once = 0
        yield fake, engine


def draw(engine: OpenAIEngine, sampling: Sampling = HOT, prompt: Prompt = ASK, **more) -> list[Completion]:
    return asyncio.run(engine.generate(prompt, sampling, **({"seed": 1} | more)))


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries, not slept."""
    taken: list[float] = []
    real = asyncio.sleep

    async def nap(seconds: float) -> None:
        taken.append(seconds)
        await real(0)

    monkeypatch.setattr("posttrain.engines.openai.transport.asyncio.sleep", nap)
    return taken


def test_what_a_full_server_can_do_is_found_by_asking() -> None:
    with opened() as (fake, engine):
        assert isinstance(engine, Engine)
        assert engine.can == {"logprobs", "prefix", "stream"}
        assert engine.fingerprint == f"openai:{fake.url}:toy:toy-2026"
        found = engine.features
        assert (found.stops, found.prefix, found.trims, found.stream_usage) == ("named", "flags", False, True)


@pytest.mark.parametrize(
    ("changes", "can", "stops", "prefix"),
    [
        ({"logprobs": False}, {"prefix", "stream"}, "named", "flags"),
        ({"refused": frozenset({"logprobs"})}, {"prefix", "stream"}, "named", "flags"),
        ({"prefix": None}, {"logprobs", "stream"}, "named", None),
        ({"prefix": "nature"}, {"logprobs", "prefix", "stream"}, "named", "nature"),
        ({"refused": frozenset({"continue_final_message"}), "prefix": "nature"}, {"logprobs", "prefix", "stream"}, "named",
         "nature"),
        ({"refused": frozenset({"stream"})}, {"logprobs", "prefix"}, "named", "flags"),
        ({"stops": "hidden"}, {"logprobs", "prefix", "stream"}, "hidden", "flags"),
        ({"stops": "kept"}, {"logprobs", "prefix", "stream"}, "kept", "flags"),
    ],
)  # fmt: skip
def test_what_a_server_cannot_do_is_found_too(changes, can, stops, prefix) -> None:
    with opened(**changes) as (_, engine):
        assert (engine.can, engine.features.stops, engine.features.prefix) == (can, stops, prefix)


def test_a_sample_is_a_request_whose_seed_does_not_depend_on_the_others() -> None:
    with opened(reply=lambda body, choice: f"seed {body['seed']}") as (fake, engine):
        four = draw(engine, samples=range(4))
        assert [c.sample for c in four] == [0, 1, 2, 3]
        assert len({c.text for c in four}) == 4
        assert draw(engine, samples=(2,))[0].text == four[2].text
        assert draw(engine, samples=(3, 1))[1].text == four[1].text
        assert draw(engine, samples=(2,), seed=2)[0].text != four[2].text
        other = Prompt(messages=(Message(role="user", content="other"),))
        assert draw(engine, prompt=other, samples=(2,))[0].text != four[2].text  # no common random numbers between questions
        assert all(0 <= body["seed"] < 2**31 and "n" not in body for body in fake.requests)


def test_the_prompt_is_charged_once_a_call_and_tokens_as_reported() -> None:
    with opened() as (fake, engine):
        drawn = draw(engine, samples=range(3))
        prompt = fake.prompt_tokens({"messages": [{"role": "user", "content": "name some numbers"}]})
        assert [c.usage for c in drawn] == [Usage(calls=1, prompt=prompt, generated=7), *[Usage(generated=7)] * 2]


def test_what_is_sent_leaves_nothing_to_the_servers_own_defaults() -> None:
    with opened() as (fake, engine):
        draw(engine, Sampling(temperature=0.5, top_p=0.9, top_k=7, max_tokens=9, logprobs=2))
        body = fake.requests[0]
        body.pop("seed")
        assert body == {
            "model": "toy", "messages": [{"role": "user", "content": "name some numbers"}], "temperature": 0.5, "top_p": 0.9,
            "top_k": 7, "min_p": 0.0, "repetition_penalty": 1.0, "max_tokens": 9, "logprobs": True, "top_logprobs": 2,
        }  # fmt: skip


def test_settings_that_a_server_refuses_are_left_out_or_refused_but_never_ignored() -> None:
    refused = frozenset({"top_k", "min_p", "repetition_penalty", "logprobs"})
    with opened(refused=refused) as (fake, engine):
        draw(engine)
        assert not refused & fake.requests[0].keys()
        draw(engine, Sampling(top_k=5))  # greedy: nothing to cut off
        with pytest.raises(CapabilityError, match="does not take 'top_k', and top_k=5"):
            draw(engine, Sampling(temperature=1.0, top_k=5))
        with pytest.raises(CapabilityError, match="log-probabilities"):
            draw(engine, Sampling(logprobs=3))


def test_a_server_that_wants_max_completion_tokens() -> None:
    class Newer(fake_server.Handler):
        def answer(self, body):
            if "max_tokens" in body:
                return self.send(400, {"error": {"message": "Use max_completion_tokens"}})
            limit = body.pop("max_completion_tokens")
            return super().answer({**body, "max_tokens": limit})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_server, "Handler", Newer)
        with opened() as (_, engine):
            assert draw(engine, Sampling(max_tokens=3))[0].text == "one two three"


def test_log_probabilities_are_read_and_cut_with_the_text() -> None:
    with opened(ids=True) as (_, engine):
        (whole,) = draw(engine, Sampling(temperature=1.0, logprobs=2))
        assert whole.tokens == (0, 1, 2, 3, 4, 5)
        assert whole.raw_logprobs == whole.logprobs == (-0.5, -1.5, -2.5, -3.5, -4.5, -5.5)
        assert whole.end_logprob == -99.5
        assert whole.top_logprobs[1] == ((1, -1.5), (1, -1.5))
        (cut,) = draw(engine, Sampling(temperature=1.0, stop=("four",)))
        assert (cut.text, cut.tokens, cut.end_logprob, cut.top_logprobs) == ("one two three ", (0, 1, 2), None, None)
        (warm,) = draw(engine, Sampling(temperature=0.7))
        assert (warm.logprobs, warm.raw_logprobs) == (None, whole.raw_logprobs)  # the distribution sampled from is not told
        assert draw(engine, Sampling())[0].logprobs == (0.0,) * 6
    with opened() as (_, engine):
        first, again = draw(engine, samples=range(2))
        assert first.tokens == again.tokens
        assert len(set(first.tokens)) == 6  # names made from the tokens' bytes


@pytest.mark.parametrize("stops", ["named", "kept", "hidden"])
def test_what_ended_a_text_is_known_on_every_server(stops: str) -> None:
    with opened(stops=stops, reply=lambda body, choice: "one two\nthree four") as (fake, engine):
        (cut,) = draw(engine, Sampling(stop=("\n",)))
        assert (cut.text, cut.finish, cut.stopped_by) == ("one two", "stop", "\n")
        (kept,) = draw(engine, Sampling(stop=("\n",), keep_stop=True))
        assert (kept.text, kept.stopped_by) == ("one two\n", "\n")
        (ended,) = draw(engine, Sampling(stop=("seven",)))
        assert (ended.text, ended.finish, ended.stopped_by) == ("one two\nthree four", "stop", None)
        (short,) = draw(engine, Sampling(max_tokens=3, stop=("seven",)))
        assert (short.finish, short.usage.generated) == ("length", 3)
        assert ("stop" in fake.requests[0]) == (stops != "hidden")


@pytest.mark.parametrize("prefix", ["flags", "nature"])
def test_a_begun_answer_is_continued(prefix: str) -> None:
    def reply(body, choice):
        return " three" if body["messages"][-1]["role"] == "assistant" else "one two"

    with opened(prefix=prefix, reply=reply) as (fake, engine):
        (begun,) = draw(engine)
        (more,) = draw(engine, prompt=Prompt(messages=ASK.messages, prefix=begun))
        assert begun.text + more.text == "one two three"
        body = fake.requests[-1]
        assert body["messages"][-1] == {"role": "assistant", "content": "one two"}
        assert body.get("continue_final_message", False) == (prefix == "flags")
        assert draw(engine, prompt=Prompt(messages=ASK.messages, prefix="so: "))[0].text == " three"
    with opened(prefix=None) as (_, engine), pytest.raises(CapabilityError, match="does not continue"):
        draw(engine, prompt=Prompt(messages=ASK.messages, prefix="so: "))


def test_white_space_that_a_template_trims_at_the_seam_is_not_doubled() -> None:
    def reply(body, choice):
        return "\ntwo" if body["messages"][-1]["role"] == "assistant" else "one"

    with opened(trims=True, reply=reply) as (fake, engine):
        assert engine.features.trims
        (more,) = draw(engine, prompt=Prompt(messages=ASK.messages, prefix="one\n"))
        assert fake.requests[-1]["messages"][-1]["content"] == "one"
        assert "one\n" + more.text == "one\ntwo"


def test_together_asks_for_all_in_one_request_and_again_when_fewer_come() -> None:
    def reply(body, choice):
        return " ".join(["word"] * (choice + 1 + 10 * (body.get("n", 1) == 1)))

    with opened("together=true", reply=reply, most=2) as (fake, engine):
        drawn = draw(engine, samples=range(5))
        assert [body.get("n") for body in fake.requests] == [5, 3, None]
        assert [c.sample for c in drawn] == [0, 1, 2, 3, 4]
        assert [len(c.text.split()) for c in drawn] == [1, 2, 1, 2, 11]
        assert sum(c.usage.generated for c in drawn) == 2 + 3 + 2 + 3 + 12
        assert [c.usage.calls for c in drawn] == [1, 0, 0, 0, 0]
        assert [c.usage.prompt > 0 for c in drawn] == [True, False, False, False, False]


def test_no_more_requests_at_once_than_allowed() -> None:
    with opened("concurrency=3", pause=0.01) as (fake, engine):
        draw(engine, samples=range(12))
        assert len(fake.requests) == 12
        assert 1 < fake.most_at_once <= 3


def failing(status: int, body, **headers: str) -> fake_server.Failure:
    return lambda handler: handler.send(status, body, **headers)


def dropped(handler: fake_server.Handler) -> None:
    handler.close_connection = True


def test_passing_failures_are_tried_again_after_pauses_that_follow_from_the_seed(naps: list[float]) -> None:
    with opened("retries=4") as (fake, engine):
        for _ in range(2):
            fake.failures += [failing(500, b"oops"), dropped, failing(200, b"{broken"), failing(503, {"error": "busy"})]
            assert draw(engine)[0].text == "one two three four five six"
        assert naps[:4] == naps[4:]
        assert all(0.25 * 2**n <= nap < 0.5 * 2**n for n, nap in enumerate(naps[:4]))
        assert len(set(naps)) == 4
        fake.failures += [failing(500, b"oops")]
        draw(engine, seed=2)
        assert naps[-1] != naps[0]


def test_a_pause_that_the_server_asks_for_is_honoured(naps: list[float]) -> None:
    soon = email.utils.format_datetime(email.utils.localtime(), usegmt=False)
    later = email.utils.formatdate(time.time() + 40, usegmt=True)
    with opened() as (fake, engine):
        fake.failures += [
            failing(429, {"error": {"message": "slow down"}}, retry_after="7"),
            failing(503, b"", retry_after=later),
            failing(429, b"", retry_after=soon),
            failing(429, b"", retry_after="nonsense"),
        ]
        draw(engine)
        seconds, date, past, nonsense = naps
        assert 7.25 <= seconds < 7.5
        assert 38 < date < 42
        assert 1.0 <= past < 3.0
        assert 2.0 <= nonsense < 4.0
        fake.failures += [failing(429, b"", retry_after="3600")]
        with pytest.raises(ServerError, match=r"limits the rate \(429\); it wants a pause of 3600 s"):
            draw(engine)


SENTENCES = {
    "rate": ([failing(429, b"")] * 3, ServerError, r"limits the rate \(429\): lower concurrency"),
    "quota": ([failing(429, {"error": {"code": "insufficient_quota", "message": "none"}})], ServerError, "quota is used"),
    "server": ([failing(500, {"error": {"message": "CUDA died"}})] * 3, ServerError, r"failed \(500\): CUDA died"),
    "inside": ([failing(200, {"error": {"code": 502, "message": "no one"}})] * 3, ServerError, r"failed \(502\): no one"),
    "dropped": ([dropped] * 3, ServerError, "broke the connection off"),
    "json": ([failing(200, b"<html>hello</html>")] * 3, ServerError, r"not JSON \('<html>hello"),
    "choices": ([failing(200, {"choices": []})] * 3, ServerError, "3 times without choices"),
    "forbidden": ([failing(403, b"")], ServerError, r"refuses access \(403\): it wants a key: set OPENAI_API_KEY"),
    "refused": ([failing(400, {"message": "bad words"})], ServerError, r"refused the request \(400\): bad words"),
    "usage": ([failing(200, {"choices": [{"message": {"content": "x"}}]})], ServerError, "reports no token usage"),
}  # fmt: skip


@pytest.mark.parametrize("case", SENTENCES)
def test_every_failure_is_one_sentence(case: str, naps: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    failures, kind, sentence = SENTENCES[case]
    with opened("retries=2") as (fake, engine):
        fake.failures += failures
        with pytest.raises(kind, match=sentence) as raised:
            draw(engine)
        assert "\n" not in str(raised.value)
        assert not fake.failures
        assert draw(engine)[0].finish == "stop"  # and the next call works


def test_a_prompt_that_does_not_fit_is_an_overflow() -> None:
    with opened(context=300) as (_, engine), pytest.raises(ContextOverflowError, match="maximum context length is 300"):
        draw(engine, Sampling(max_tokens=400))


def test_a_server_that_is_too_slow(naps: list[float]) -> None:
    with opened("timeout=0.2,retries=1") as (fake, engine):
        fake.pause = 0.6
        with pytest.raises(ServerError, match=r"did not answer within 0.2 s"):
            draw(engine)


def test_opening_says_what_is_wrong(naps: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def opening(ref: str) -> str:
        with pytest.raises(PosttrainError) as raised:
            open_server(read_server(ref))
        return str(raised.value)

    with serving(models=["llama-3", "qwen-2"]) as fake:
        assert "has no model 'lama-3'; did you mean 'llama-3'?" in opening(f"openai:lama-3,url={fake.url}")
        assert "it lists: llama-3, qwen-2" in opening(f"openai:url={fake.url}")
        assert "no chat endpoint at this URL" in opening(f"openai:qwen-2,url={fake.url.removesuffix('/v1')}")
    assert f"no server answers at {fake.url}" in opening(f"openai:qwen-2,url={fake.url}")
    with serving(usage=False) as fake:
        assert "reports no token usage" in opening(f"openai:url={fake.url}")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert "where is the server?" in opening("openai:toy")
    assert "must look like" in opening("openai:toy,url=localhost:8000")
    assert "user, password or query" in opening("openai:toy,url=http://me:secret@host/v1")
    assert "did you mean 'concurrency'" in opening("openai:toy,url=http://host/v1,concurency=3")
    assert "extra is not valid JSON" in opening("openai:toy,url=http://host/v1,extra='{'")
    assert "never the key itself" in opening("openai:toy,url=http://host/v1,key_env=sk-1234")
    assert "MY_KEY (key_env) is not set" in opening("openai:toy,url=http://host/v1,key_env=MY_KEY")


def test_the_reference_takes_names_with_colons_and_the_only_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:11434/v1/")
    assert (read_server("openai:llama3:8b").model, read_server("openai:llama3:8b").base) == (
        "llama3:8b",
        "http://localhost:11434/v1",
    )
    spelt = read_server('openai:Qwen/Qwen3-8B,concurrency=4,extra=\'{"a": {"b": [1, 2]}}\'')
    assert (spelt.model, spelt.concurrency, spelt.more) == ("Qwen/Qwen3-8B", 4, {"a": {"b": [1, 2]}})
    assert read_server("openai:model=m,version=3").version == 3
    with serving() as fake:
        engine = open_server(read_server(f"openai:url={fake.url},version=3"))
        assert engine.name == "toy"
        assert engine.fingerprint.endswith(":toy:toy-2026:3")


def test_the_key_is_sent_and_written_nowhere(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with serving(key="sk-very-secret") as fake:
        ref = f"openai:toy,url={fake.url},key_env=MY_KEY,retries=0"
        engine = open_server(read_server(ref))
        draw(engine)
        assert fake.headers[-1]["authorization"] == "Bearer sk-very-secret"
        fake.failures += [failing(400, {"error": {"message": "bad key sk-very-secret in body"}})]
        with pytest.raises(ServerError, match=r"bad key \*\*\* in body") as told:
            draw(engine)
        fake.key = "another"
        with pytest.raises(ServerError, match=r"refuses access \(401\): the key in MY_KEY is not accepted") as refused:
            draw(engine)
        monkeypatch.delenv("MY_KEY")
        with pytest.raises(ServerError, match="it wants a key: set OPENAI_API_KEY"):
            open_server(read_server(f"openai:toy,url={fake.url}"))
        known = [
            engine.fingerprint,
            repr(engine),
            repr(engine.features),
            repr(read_server(ref.replace(",key_env=MY_KEY", ""))),
        ]
        for text in (str(told.value), str(refused.value), caplog.text, *known, *map(str, vars(engine).values())):
            assert "very-secret" not in text


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server that wants a key; afterwards no file of the run may hold it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with serving(key="sk-very-secret", reply=lambda body, choice: "Answer: 3") as fake:
        yield f"openai:toy,url={fake.url},key_env=MY_KEY"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"very-secret" in path.read_bytes()]


def test_an_evaluation_writes_no_key_and_keeps_what_was_paid_for(secret: str, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*more: str) -> dict:
        arguments = ["eval", "--model", secret, "--task", TASK, "--limit", "4", "--max-tokens", "20", "--json", *more]
        app(arguments, standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    plain = told("--strategy", "self_consistency:n=2")
    assert not Path("runs/generations.sqlite").exists()  # a server's weights are not seen: nothing is kept unasked
    assert (plain["n"], plain["flops"], plain["unparsed_rate"]) == (4, None, 0)
    cold = told("--strategy", "self_consistency:n=2", "--cache", "kept", "--out", "cold")
    warm = told("--strategy", "self_consistency:n=2", "--cache", "kept", "--out", "warm")
    assert plain["cost"] == cold["cost"] == warm["cost"]
    assert (cold["spent"]["replayed"], warm["spent"]["tokens"]) == (0, 0)
    held = told("--strategy", "self_consistency:n=8", "--budget-tokens", "800", "--out", "held")
    assert held["budget_rate"] == 0  # the first answer has told how short the prompt is
    less = told("--strategy", "self_consistency:n=8", "--budget-tokens", "100", "--out", "less")
    assert (less["budget_rate"], less["cost"]["calls"]) == (1, 0)  # taken by its bytes, the prompt does not fit


def test_a_recipe_takes_a_server(secret: str, tmp_path: Path) -> None:
    stages = [{"name": "a", "lever": "prompting", "eval": {"max_tokens": 20}}]
    stages.append({"name": "b", "lever": "test-time", "eval": {"strategy": "self_consistency:n=3", "max_tokens": 20}})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "r", "model": secret, "task": TASK, "examples": {"test": 3}, "stages": stages}))
    report = run_recipe(load_recipe(path), path, tmp_path / "out", report_run)
    assert report["unit"] == "tokens"
    assert report["totals"]["flops"] is None
    assert all(rung["per_query"]["flops"] is None for rung in report["rungs"])
    again = run_recipe(load_recipe(path), path, tmp_path / "out", report_run)
    assert again["rungs"] == report["rungs"]


def stream_all(engine: OpenAIEngine, sampling: Sampling = HOT):
    async def run():
        return [delta async for delta in engine.stream(ASK, sampling, seed=1)]

    return asyncio.run(run())


def test_a_stream_gives_pieces_and_then_the_whole() -> None:
    with opened(ids=True) as (fake, engine):
        deltas = stream_all(engine)
        assert [d.text for d in deltas[:-1]] == ["one", " two", " three", " four", " five", " six"]
        whole = deltas[-1].completion
        (plain,) = draw(engine)
        assert whole == plain
        assert fake.requests[0]["seed"] == fake.requests[1]["seed"]
        cut = stream_all(engine, Sampling(stop=(" three",), temperature=1.0))
        assert "".join(d.text for d in cut) == cut[-1].completion.text == "one two"
        assert cut[-1].completion.stopped_by == " three"


def test_a_stream_without_usage_is_charged_by_its_pieces() -> None:
    with opened(refused=frozenset({"stream_options"}), logprobs=False) as (_, engine):
        assert engine.features.stream
        assert stream_all(engine)[-1].completion.usage == Usage(calls=1, generated=6)


def half(handler: fake_server.Handler) -> None:
    choice = handler.fake.choice({"max_tokens": 50}, 0)
    handler.stream(choice, None, cut=3)


def test_a_stream_that_breaks_off_half_way_is_an_error_not_an_answer(naps: list[float]) -> None:
    with opened() as (fake, engine):
        fake.failures += [half]
        with pytest.raises(ServerError, match="the stream broke off after 3 pieces"):
            stream_all(engine)
        fake.failures += [failing(503, b"busy"), dropped]  # before anything was said it is tried again
        assert stream_all(engine)[-1].completion.text == "one two three four five six"
        assert len(naps) == 2


def test_closing_a_stream_ends_the_request() -> None:
    with opened(reply=lambda body, choice: " ".join(["word"] * 40)) as (fake, engine):
        fake.pause = 0.05

        async def listen() -> int:
            heard = 0
            stream = engine.stream(ASK, HOT, seed=0)
            async for _ in stream:
                heard += 1
                if heard == 2:
                    await stream.aclose()
            return heard

        assert asyncio.run(listen()) == 2
        assert fake.broken_off.wait(5)


def test_a_cancelled_call_closes_its_requests_and_tells_what_was_finished() -> None:
    with opened("concurrency=1", pause=0.15) as (fake, engine):

        async def start() -> list[Usage]:
            task = asyncio.create_task(engine.generate(ASK, HOT, seed=0, samples=range(5)))
            while len(fake.requests) < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await task
            return cancelled.value.usages

        usages = asyncio.run(start())
        assert [(u.calls, u.generated) for u in usages] == [(1, 7)]
        assert len(fake.requests) == 2


def test_what_a_chat_endpoint_cannot_do_is_refused() -> None:
    with opened() as (_, engine):
        with pytest.raises(CapabilityError, match="cannot be watched"):
            draw(engine, watch=lambda event: True)
        with pytest.raises(CapabilityError, match="cannot score"):
            asyncio.run(engine.score(ASK, "text"))
        with pytest.raises(ConfigError, match="stop string must not be empty"):
            draw(engine, Sampling(stop=("",)))
        assert draw(engine, samples=()) == []


def test_requests_carry_what_extra_adds() -> None:
    with serving() as fake:
        fake_server.KNOWN.add("chat_template_kwargs")
        engine = open_server(
            read_server(f"openai:toy,url={fake.url},extra='{json.dumps({'chat_template_kwargs': {'x': 1}})}'")
        )
        draw(engine)
        assert all(body["chat_template_kwargs"] == {"x": 1} for body in fake.requests)
        assert len(engine.fingerprint.rpartition(":toy-2026:")[2]) == 12


def test_a_filtered_answer_is_not_a_finished_one() -> None:
    class Filter(Fake):
        def choice(self, body, index):
            return super().choice(body, index) | {"finish_reason": "content_filter"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_server, "Fake", Filter)
        with opened() as (_, engine):
            assert draw(engine)[0].finish == "cancelled"


def test_one_transport_works_in_one_event_loop_after_another() -> None:
    with serving() as fake:
        transport = Transport(read_server(f"openai:toy,url={fake.url}"))
        assert [asyncio.run(transport.get("/models"))["data"][0]["id"] for _ in range(2)] == ["toy", "toy"]
