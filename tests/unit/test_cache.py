"""The cache of generations: one pool for every N and strategy, the same results with and without it, damage is said."""

import asyncio
import contextlib
import math
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.core.errors import DataError, ModelError
from posttrain.core.types import Completion, Example, Message, ModelShape, Prompt, Sampling, Usage
from posttrain.engines.cache import Cached
from posttrain.engines.generations import Generations
from posttrain.engines.meter import Account, Metered
from posttrain.engines.scripted import ScriptedEngine
from posttrain.pipeline.evaluate import Evaluation, evaluate
from posttrain.pipeline.opening import open_engine
from posttrain.tasks.extraction import extractor

SHAPE = ModelShape(parameters=1100, matmul_params=1000, head_params=100, layers=2, attention_width=8)
ASK = Prompt(messages=(Message(role="user", content="how many"),))
HOT = Sampling(temperature=1.0)


class Counting(ScriptedEngine):
    """Knows which samples it was asked for."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.drawn: list[int] = []

    async def generate(self, prompt, sampling, *, seed, samples=(0,), watch=None):
        self.drawn += samples
        return await super().generate(prompt, sampling, seed=seed, samples=samples, watch=watch)


def counting(**more) -> Counting:
    return Counting(
        lambda text, sample, seed: f"{text}: sample {sample} of seed {seed}\nAnswer: {sample % 3}",
        logprobs=lambda text, words: [-0.1 * (n + 1) for n in range(len(words))],
        **({"shape": SHAPE} | more),
    )


@pytest.fixture
def kept(tmp_path: Path):
    with Generations(tmp_path / "kept.sqlite") as found:
        yield found


def draw(engine, sampling: Sampling = HOT, prompt: Prompt = ASK, **more) -> list[Completion]:
    return asyncio.run(engine.generate(prompt, sampling, **({"seed": 0} | more)))


def texts(completions: list[Completion]) -> list[tuple]:
    return [(c.text, c.tokens, c.raw_logprobs, c.finish, c.sample) for c in completions]


def cold(completions: list[Completion]) -> list[Usage]:
    return [replace(c.usage, cached=0, replayed=0) for c in completions]


def test_a_larger_n_draws_only_what_is_missing_and_costs_the_same(kept: Generations) -> None:
    engine = counting()
    cached = Cached(engine, kept)
    draw(cached, samples=range(4))
    eight = draw(cached, samples=range(8))
    assert engine.drawn == [0, 1, 2, 3, 4, 5, 6, 7]
    plain = draw(counting(), samples=range(8))
    assert texts(eight) == texts(plain)
    assert cold(eight) == [c.usage for c in plain]
    assert [c.usage.replayed > 0 for c in eight] == [True] * 4 + [False] * 4
    again = draw(cached, samples=(6, 2))
    assert len(engine.drawn) == 8
    assert [c.sample for c in again] == [6, 2]
    assert again[0].usage == Usage(calls=1, prompt=2, cached=2, generated=10, replayed=10)


def test_the_meter_charges_all_and_spends_nothing_on_what_is_replayed(kept: Generations) -> None:
    costs = []
    for engine in (counting(), Cached(counting(), kept), Cached(counting(), kept)):
        account = Account()
        draw(Metered(engine, account, "policy"), samples=range(3))
        asyncio.run(Metered(engine, account, "verifier").score(ASK, "two words"))
        costs.append(account.total)
    assert [(c.flops, c.usage.tokens, c.usage.calls) for c in costs] == [(costs[0].flops, costs[0].usage.tokens, 2)] * 3
    assert [c.flops_spent for c in costs] == [costs[0].flops, costs[0].flops, 0.0]
    assert [c.usage.tokens_spent for c in costs] == [costs[0].usage.tokens, costs[0].usage.tokens, 0]


DIFFERENT = {
    "question": {"prompt": Prompt(messages=(Message(role="user", content="how much"),))},
    "role": {"prompt": Prompt(messages=(Message(role="system", content="how many"),))},
    "opening": {"prompt": replace(ASK, opening="So")},
    "prefix": {"prompt": replace(ASK, prefix="So")},
    "opening and prefix": {"prompt": replace(ASK, opening="So", prefix="So")},
    "pieces": {"prompt": replace(ASK, prefix=("So", Completion(text="So", tokens=(7,))))},
    "prefix tokens": {"prompt": replace(ASK, prefix=Completion(text="So", tokens=(7,)))},
    "temperature": {"sampling": replace(HOT, temperature=0.5)},
    "top_p": {"sampling": replace(HOT, top_p=0.9)},
    "top_k": {"sampling": replace(HOT, top_k=5)},
    "max_tokens": {"sampling": replace(HOT, max_tokens=5)},
    "stop": {"sampling": replace(HOT, stop=("x",))},
    "keep_stop": {"sampling": replace(HOT, stop=("x",), keep_stop=True)},
    "seed": {"seed": 1},
    "sample": {"samples": (1,)},
}


def test_whatever_changes_what_is_sampled_is_another_entry(kept: Generations) -> None:
    engine = counting()
    cached = Cached(engine, kept)
    for n, changes in enumerate([{}, *DIFFERENT.values(), {}, *DIFFERENT.values()]):
        draw(cached, **changes)
        assert len(engine.drawn) == min(n + 1, len(DIFFERENT) + 1)
    other = counting(fingerprint="other weights")
    draw(Cached(other, kept))
    assert other.drawn == [0]
    draw(cached, prompt=replace(ASK, cue="Therefore"))  # the second stage is a call of its own
    assert len(engine.drawn) == len(DIFFERENT) + 1
    draw(cached, prompt=replace(ASK, prefix=("So",)))  # one piece is that piece
    draw(cached, prompt=replace(ASK, messages=(replace(ASK.messages[0], shot=1, shots=("how",)),)))  # marks are not read
    assert len(engine.drawn) == len(DIFFERENT) + 1
    greedy = Sampling()
    draw(cached, greedy)
    draw(cached, replace(greedy, top_p=0.5, top_k=3))
    assert len(engine.drawn) == len(DIFFERENT) + 2


def test_more_log_probabilities_serve_a_call_that_asks_for_fewer(kept: Generations) -> None:
    engine = counting()
    cached = Cached(engine, kept)
    draw(cached)
    rich = draw(cached, replace(HOT, logprobs=1))
    assert engine.drawn == [0, 0]  # what was kept lacked them
    assert rich[0].top_logprobs is not None
    assert draw(cached)[0].top_logprobs is None
    assert draw(cached, replace(HOT, logprobs=1))[0].top_logprobs == rich[0].top_logprobs
    assert engine.drawn == [0, 0]


def test_everything_comes_back_exactly(kept: Generations) -> None:
    odd = Completion(
        text="half a pair \ud83d, é, \x00", tokens=(1, 2**31), logprobs=(0.1 + 0.2, -0.0), raw_logprobs=(-math.inf, -1e-300),
        top_logprobs=(((1, -0.1), (2, -math.inf)), ()), end_logprob=-1 / 3, finish="length", stopped_by="\n",
        usage=Usage(calls=1, prompt=3, generated=2),
    )  # fmt: skip
    bare = Completion(text="", usage=Usage(calls=1, prompt=3, generated=1))
    kept.put({b"odd": odd, b"bare": bare}, top=2)
    assert kept.get([b"odd", b"bare", b"none"], top=2) == {b"odd": odd, b"bare": bare}
    assert kept.get([b"odd"], top=3) == {}
    kept.put({b"odd": bare}, top=2)
    assert kept.get([b"odd"]) == {b"odd": odd}  # the first one stays
    many = {f"key {n}".encode(): replace(bare, text=str(n)) for n in range(1300)}
    kept.put(many)
    assert kept.get(list(many)) == many


def test_scores_are_kept_and_streams_pass_through(kept: Generations) -> None:
    engine = counting()
    cached = Cached(engine, kept)
    first, again = (asyncio.run(cached.score(ASK, "two words")) for _ in range(2))
    assert (first.raw_logprobs, engine.calls) == (again.raw_logprobs, 1)
    assert again.usage == Usage(calls=1, prompt=2, cached=2, scored=2, replayed=2)
    asyncio.run(cached.score(ASK, "other words"))
    asyncio.run(cached.score(ASK, first))  # by its ids
    assert engine.calls == 3

    async def stream() -> str:
        return "".join([delta.text async for delta in cached.stream(ASK, HOT, seed=0)])

    assert asyncio.run(stream()) == asyncio.run(stream()) == draw(engine)[0].text
    assert cached.count_tokens(ASK) == 2
    assert cached.can == engine.can
    assert not hasattr(cached, "update")


@given(st.lists(st.integers(0, 12), min_size=4, max_size=4), st.sets(st.integers(0, 3)))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_watch_sees_a_kept_trace_as_it_would_the_engine(tmp_path: Path, ends: list[int], known: set[int]) -> None:
    def watch(seen: list) -> object:
        def ended(event) -> bool:
            seen.append(event)
            return event.index == ends[event.sample]

        return ended

    sampling = replace(HOT, logprobs=1)
    # A file for each time: what is drawn may be drawn again, and must not find what it kept before.
    with Generations(Path(tempfile.mkdtemp(dir=tmp_path)) / "kept.sqlite") as kept:
        cached = Cached(counting(), kept)
        if known:
            draw(cached, sampling, samples=sorted(known))
        seen, expected = [], []
        watched = draw(cached, sampling, samples=range(4), watch=watch(seen))
        plain = draw(counting(), sampling, samples=range(4), watch=watch(expected))
        assert [replace(c, usage=u) for c, u in zip(watched, cold(watched), strict=True)] == plain
        assert sorted(map(repr, seen)) == sorted(map(repr, expected))
        assert {c.sample for c in watched if c.usage.replayed} == known
        ended = {c.sample for c in plain if c.finish == "watch"}
        assert len(kept) == len(known | ({0, 1, 2, 3} - ended))  # a trace that was cut is not kept


def test_a_trace_whose_end_was_cut_off_is_generated_again_under_a_watch(kept: Generations) -> None:
    engine = counting()
    cached = Cached(engine, kept)
    stopping = replace(HOT, stop=("Answer",))
    draw(cached, stopping)
    draw(cached, stopping, watch=lambda event: False)
    assert engine.drawn == [0, 0]
    keeping = replace(stopping, keep_stop=True)
    draw(cached, keeping)
    draw(cached, keeping, watch=lambda event: False)
    assert engine.drawn == [0, 0, 0]


class Sums:
    name, version, max_tokens, instruction = "sums", "1", 40, "End with Answer: and the number."

    def examples(self, split: str) -> list[Example]:
        return [Example(id=str(n), question=f"What is {n} + {n}?", answer=str(2 * n % 3)) for n in range(7)]

    def extract(self, text: str) -> str | None:
        return extractor("number")(text)

    def key(self, answer: str) -> str:
        return answer

    def grade(self, example: Example, answer: str | None) -> float:
        return float(answer == example.answer)


def run(engine, folder: Path, strategy: str, prompt: str = "zero_shot") -> tuple[bytes, bytes]:
    task = Sums()
    evaluation = Evaluation(
        stage="s", task=task, examples=task.examples("test"), prompt=prompt, strategy=strategy, model="m", seed=3
    )
    evaluate(evaluation, engine, folder, title="t")
    return (folder / "ledger.jsonl").read_bytes(), (folder / "samples.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("strategy", "prompt"),
    [
        ("greedy", "zero_shot"),
        ("self_consistency:n=5", "zero_shot_cot"),
        ("best_of_n:n=3,verifier=(likelihood)", "zero_shot"),
        ("best_of_n:n=6,verifier=likelihood", "zero_shot"),
    ],
)
def test_the_ledger_is_the_same_to_the_byte(strategy: str, prompt: str, kept: Generations, tmp_path: Path) -> None:
    plain = run(counting(), tmp_path / "plain", strategy, prompt)
    engine = counting()
    assert run(Cached(engine, kept), tmp_path / "first", strategy, prompt) == plain
    calls = engine.calls
    assert run(Cached(engine, kept), tmp_path / "second", strategy, prompt) == plain
    assert engine.calls == calls


def test_strategies_share_one_pool(kept: Generations, tmp_path: Path) -> None:
    engine = counting()
    run(Cached(engine, kept), tmp_path / "a", "self_consistency:n=6")
    drawn = len(engine.drawn)
    run(Cached(engine, kept), tmp_path / "b", "best_of_n:n=4,verifier=likelihood")
    assert len(engine.drawn) == drawn
    run(Cached(engine, kept), tmp_path / "c", "self_consistency:n=8")
    assert len(engine.drawn) == drawn + 7 * 2


def test_a_run_that_failed_half_way_goes_on_at_no_cost(kept: Generations, tmp_path: Path) -> None:
    class Failing(Counting):
        async def generate(self, prompt, *args, samples=(0,), **more):
            if "What is 6" in prompt.messages[-1].content and 3 in samples:
                raise ModelError("out of memory")
            return await super().generate(prompt, *args, samples=samples, **more)

    def waves(**more):
        return Failing(lambda text, sample, seed: "Answer: 1", fingerprint="same", **more)

    engine = waves()
    for samples in (range(2), range(4)):  # as an adaptive strategy would
        for n in range(7):
            prompt = Prompt(messages=(Message(role="user", content=f"What is {n}"),))
            try:
                draw(Cached(engine, kept), prompt=prompt, samples=samples)
            except ModelError:
                assert (n, samples) == (6, range(4))
    assert len(engine.drawn) == 7 * 4 - 2
    again = Counting(lambda text, sample, seed: "Answer: 1", fingerprint="same")
    for n in range(7):
        draw(Cached(again, kept), prompt=Prompt(messages=(Message(role="user", content=f"What is {n}"),)), samples=range(4))
    assert again.drawn == [2, 3]


WORKER = """
import asyncio, sys
from pathlib import Path
from posttrain.core.types import Message, Prompt, Sampling
from posttrain.engines.cache import Cached
from posttrain.engines.generations import Generations
from posttrain.engines.scripted import ScriptedEngine

async def main():
    with Generations(Path(sys.argv[1])) as kept:
        engine = Cached(ScriptedEngine(lambda text, sample, seed: f"{text} {sample}" * 20), kept)
        for n in range(60):
            prompt = Prompt(messages=(Message(role="user", content=str(n)),))
            drawn = await engine.generate(prompt, Sampling(temperature=1.0), seed=0, samples=range(8))
            assert [c.text for c in drawn] == [f"{n} {k}" * 20 for k in range(8)]

asyncio.run(main())
"""


def test_processes_may_share_a_file_from_its_first_moment(tmp_path: Path) -> None:
    path = tmp_path / "shared.sqlite"
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(path)], stderr=subprocess.PIPE, text=True) for _ in range(6)
    ]
    for worker in workers:
        _, error = worker.communicate(timeout=120)
        assert worker.returncode == 0, error
    with Generations(path) as kept:
        assert len(kept) == 60 * 8


def filled(path: Path) -> bytes:
    with Generations(path) as kept:
        draw(Cached(counting(), kept), samples=range(200))
    return path.read_bytes()


def test_a_damaged_file_is_said_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite"
    whole = filled(path)

    def complaint() -> str:
        with pytest.raises(DataError, match="generations") as raised, Generations(path) as kept:
            draw(Cached(counting(), kept), samples=range(200))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    for name, content in {
        "garbage": b"not a database at all" * 300,
        "cut": whole[: len(whole) // 2],
        "header": b"\xff" * 64 + whole[64:],
        "pages": whole[:8192] + b"\xab" * (len(whole) - 8192),
    }.items():
        path.write_bytes(content)
        told = complaint()
        assert str(path) in told, name
        assert "damaged" in told, name
        assert "--no-cache" in told, name
        assert path.read_bytes()[:64] == content[:64], name  # left as it is, for whoever wants to mend it
    for at in range(
        len(whole) // 3, len(whole), len(whole) // 7
    ):  # a flipped bit anywhere is a complaint or changes nothing
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with contextlib.suppress(DataError), Generations(path) as kept:
            drawn = draw(Cached(counting(), kept), samples=range(200))
            assert texts(drawn) == texts(draw(counting(), samples=range(200)))
    path.write_bytes(whole)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE completions SET body = zeroblob(40) WHERE rowid = 7")
    assert "does not match its checksum" in complaint()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.sqlite"
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"mine\.sqlite is not a cache of generations"):
        Generations(path)
    assert path.read_bytes() == before
    folder = tmp_path / "folder"
    folder.mkdir()
    with Generations(folder) as kept:
        assert kept.path == folder / "generations.sqlite"
    with Generations(tmp_path / "new") as kept:
        assert kept.path == tmp_path / "new" / "generations.sqlite"


def test_a_file_held_by_another_process_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.engines.generations._WAIT", 0.1)
    path = tmp_path / "kept.sqlite"
    with Generations(path) as kept, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DataError, match="another process has held it"):
            draw(Cached(counting(), kept))
        other.execute("ROLLBACK")
        assert len(draw(Cached(counting(), kept))) == 1


def test_opening_a_model_with_a_cache_wraps_it(kept: Generations) -> None:
    opened = open_engine("scripted", kept=kept)
    assert isinstance(opened.engine, Cached)
    draw(opened.engine)
    assert len(kept) == 1
