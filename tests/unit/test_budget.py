"""Budgets: never exceeded, counted over all roles, the same whatever runs at once, and told in rows and reports."""

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import BudgetSpentError, CapabilityError, ConfigError
from posttrain.core.protocols import Tools
from posttrain.core.types import Answer, Completion, Cost, Example, Message, ModelShape, Prompt, Sampling, Usage
from posttrain.engines.budget import MIN_TOKENS, Budgeted
from posttrain.engines.cache import Cached
from posttrain.engines.generations import Generations
from posttrain.engines.meter import Account, Metered
from posttrain.engines.purse import Allowance, Purse, Purses, Share
from posttrain.engines.scripted import ScriptedEngine
from posttrain.ledger.store import load_ledger
from posttrain.pipeline import evaluate as evaluating
from posttrain.pipeline.evaluate import Evaluation, evaluate
from posttrain.report.build import Rung, build_report, oracle_rows

SHAPE = ModelShape(parameters=1100, matmul_params=1000, head_params=100, layers=2, attention_width=8)
ASK = Prompt(messages=(Message(role="user", content="one two three four"),))  # 4 tokens
TEN = Sampling(temperature=1.0, max_tokens=20)


def words(n: int) -> str:
    return " ".join(["word"] * (n - 1))  # and the end of turn


def budgeted(limit: float, reply=lambda text, sample, seed: words(10), unit="tokens", **more):
    account = Account()
    share = Share(Purse(limit, unit, account))
    engine = ScriptedEngine(reply, shape=SHAPE, **more)
    return Metered(Budgeted(engine, share), account, "policy"), account, share


def draw(engine, n: int, sampling: Sampling = TEN, prompt: Prompt = ASK) -> list[Completion]:
    return asyncio.run(engine.generate(prompt, sampling, seed=0, samples=range(n)))


def test_what_fits_is_given_whole() -> None:
    engine, account, share = budgeted(4 + 3 * 20)
    drawn = draw(engine, 3)
    assert (len(drawn), account.total.usage) == (3, Usage(calls=1, prompt=4, generated=30))
    assert (share.left(), share.short) == (30, False)


def test_the_first_samples_are_drawn_and_what_they_leave_is_used_for_the_next() -> None:
    engine, account, share = budgeted(4 + 59)  # worst case: two at once, then 59 - 20 = 39: one, 29: one, 19: none
    drawn = draw(engine, 8)
    assert [c.sample for c in drawn] == [0, 1, 2, 3]
    assert account.total.usage == Usage(calls=1, prompt=4, generated=40)
    assert share.short
    assert share.left() == 19
    plain = ScriptedEngine(lambda text, sample, seed: words(10))
    assert [c.text for c in drawn] == [c.text for c in draw(plain, 4)]
    engine, account, share = budgeted(4 + 89)
    assert len(draw(engine, 8)) == 7  # all that the budget can hold but for what a reply might have needed
    engine, account, share = budgeted(4 + 90)
    assert len(draw(engine, 8)) == 8
    assert not share.short


def test_a_reply_is_shortened_when_not_one_fits_but_not_to_nothing() -> None:
    long = replace(TEN, max_tokens=100)
    engine, account, share = budgeted(4 + 30, reply=lambda text, sample, seed: words(50))
    (cut,) = draw(engine, 3, long)
    assert (cut.finish, cut.usage.generated, account.total.usage.tokens) == ("length", 30, 34)
    assert (share.left(), share.short) == (0, True)
    engine, account, share = budgeted(4 + 30)
    assert draw(engine, 3, long)[0].finish == "stop"  # it was short enough
    engine, account, share = budgeted(4 + MIN_TOKENS - 1)
    with pytest.raises(BudgetSpentError, match="budget of 19 tokens does not leave enough for a prompt of 4 tokens and 16"):
        draw(engine, 1, long)
    assert account.total == Cost()
    assert share.left() == 0  # a strategy that goes on as long as something is left must end
    engine, account, share = budgeted(4 + 8)
    assert len(draw(engine, 1, replace(TEN, max_tokens=8))) == 1  # a limit below the least is the least
    assert draw(budgeted(0)[0], 0) == []


def test_scores_and_streams_are_held_to_it() -> None:
    engine, account, share = budgeted(11)
    asyncio.run(engine.score(ASK, "five six seven"))
    assert account.total.usage == Usage(calls=1, prompt=4, scored=3)
    with pytest.raises(BudgetSpentError, match="a prompt of 4 tokens and 2 more"):
        asyncio.run(engine.score(ASK, "five six"))
    engine, account, share = budgeted(4 + 17, reply=lambda text, sample, seed: words(50))

    async def stream() -> Completion:
        return [delta async for delta in engine.stream(ASK, replace(TEN, max_tokens=90), seed=0)][-1].completion

    assert asyncio.run(stream()).finish == "length"
    assert (account.total.usage.tokens, share.left()) == (21, 0)


def test_flops_are_counted_as_the_meter_counts_them() -> None:
    one, account, _ = budgeted(1e12, unit="flops")
    draw(one, 3)
    price = account.total.flops
    exact, account, share = budgeted(price, unit="flops", reply=lambda text, sample, seed: words(10))
    drawn = draw(exact, 3, replace(TEN, max_tokens=10))
    assert (len(drawn), account.total.flops, share.left()) == (3, price, 0)
    less, account, share = budgeted(price - 1, unit="flops")
    assert len(draw(less, 3, replace(TEN, max_tokens=10))) == 2
    cut, account, share = budgeted(price * 0.7, unit="flops", reply=lambda text, sample, seed: words(500))
    (shorter,) = draw(cut, 3, replace(TEN, max_tokens=400))
    assert shorter.finish == "length"
    assert price * 0.7 - 3000 < account.total.flops <= price * 0.7
    with pytest.raises(CapabilityError, match="sizes are known"):
        Allowance(unit="flops", example=1.0).check(ScriptedEngine({}))


def test_an_engine_that_cannot_count_is_held_to_the_bytes_until_it_has_told() -> None:
    class Mute(ScriptedEngine):
        count_tokens = property()  # not there

    account = Account()
    share = Share(Purse(330, "tokens", account))
    mute = Mute(lambda text, sample, seed: words(10))
    real = ScriptedEngine.count_tokens
    mute_length = 256 + 32 + len("one two three four")
    assert mute_length == 306
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mute, "_completion", lambda self, prompt, *a, first, **k: replace(
            ScriptedEngine({}, respond=lambda *_: words(10))._completion(prompt, *a, first=False, **k),
            usage=Usage(calls=int(first), prompt=real(self, prompt) if first else 0, generated=10)))  # fmt: skip
        engine = Metered(Budgeted(mute, share), account, "policy")
        assert len(draw(engine, 3)) == 3  # one fits beside the bytes; then the prompt is known to be short
        assert len(draw(engine, 9)) == 9
    assert account.total.usage.prompt == 8


@given(
    limit=st.integers(0, 300),
    calls=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 40), st.booleans()), min_size=1, max_size=12),
    lengths=st.integers(0, 10**6),
    unit=st.sampled_from(["tokens", "flops"]),
)
@settings(max_examples=150, deadline=None)
def test_never_exceeded_whatever_runs_at_once_and_whoever_is_fast(limit, calls, lengths, unit) -> None:
    """Calls of two roles side by side: what each gets does not depend on how long any takes."""

    class Slow(ScriptedEngine):
        def __init__(self, speed: int) -> None:
            super().__init__(
                lambda text, sample, seed: words(1 + random.Random(f"{lengths} {seed} {sample}").randrange(40)), shape=SHAPE
            )
            self.speed = random.Random(speed)

        async def generate(self, *args, **more):
            for _ in range(self.speed.randrange(6)):
                await asyncio.sleep(0)
            return await super().generate(*args, **more)

    def outcome(speed: int):
        account = Account()
        amount = limit if unit == "tokens" else limit * 2200.0
        purse = Purse(amount, unit, account)
        share = Share(purse)
        engine = Budgeted(Slow(speed), share)

        def spent() -> float:
            return account.total.usage.tokens if unit == "tokens" else account.total.flops

        async def call(n: int, samples: int, most: int, verifier: bool):
            metered = Metered(engine, account, "verifier" if verifier else "policy")
            try:
                drawn = await metered.generate(ASK, Sampling(max_tokens=most), seed=n, samples=range(samples))
            except BudgetSpentError:
                return None
            assert spent() <= amount
            assert [c.sample for c in drawn] == list(range(len(drawn)))
            assert 1 <= len(drawn) <= samples
            return [(c.text, c.finish, c.usage) for c in drawn]

        async def everything():
            return await asyncio.gather(*(call(n, *each) for n, each in enumerate(calls)))

        found = asyncio.run(everything())
        assert spent() <= amount
        total = sum((usage for drawn in found if drawn for *_, usage in drawn), Usage())
        assert account.total.usage == total
        assert purse._reserved == 0
        return found

    first = outcome(0)
    assert outcome(1) == first
    assert outcome(2) == first


def test_a_call_that_is_cancelled_gives_back_what_it_had_set_aside() -> None:
    async def main() -> None:
        account = Account()
        purse = Purse(100, "tokens", account)
        slow = Budgeted(ScriptedEngine(lambda text, sample, seed: words(10), latency=30), Share(purse))
        fast = Budgeted(ScriptedEngine(lambda text, sample, seed: words(10)), Share(purse))
        first = asyncio.create_task(slow.generate(ASK, TEN, seed=0, samples=range(4)))
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(fast.generate(ASK, TEN, seed=0, samples=range(4)))
        last = asyncio.create_task(fast.generate(ASK, TEN, seed=0, samples=range(1)))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert not last.done()  # later calls wait for earlier ones, even where they would fit
        waiting.cancel()
        first.cancel()
        assert len(await last) == 1

    asyncio.run(main())


def test_settings_in_two_units_are_refused() -> None:
    assert Allowance.of() is None
    assert Allowance.of(run_flops=5.0) == Allowance(unit="flops", run=5.0)
    with pytest.raises(ConfigError, match="tokens or in FLOPs, not both"):
        Allowance.of(tokens=5, run_flops=5.0)


@dataclass(frozen=True)
class Sums:
    name: str = "sums"
    version: str = "1"
    max_tokens: int = 20
    instruction: str = "Answer: a number."

    def examples(self, split: str) -> list[Example]:
        return [Example(id=str(n), question=f"number {n}", answer="1") for n in range(12)]

    def extract(self, text: str) -> str | None:
        return text.rpartition("Answer: ")[2] or None if "Answer: " in text else None

    def key(self, answer: str) -> str:
        return answer

    def grade(self, example: Example, answer: str | None) -> float:
        return float(answer == example.answer)


@dataclass(frozen=True)
class Stubborn:
    """Draws one sample after the other, scores each with a verifier, until it is told to stop or runs into the wall."""

    n: int = 6
    verifiers: tuple[str, ...] = ("likelihood",)

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        got: list = []
        scores: list[float] = []
        for sample in range(self.n):
            if tools.spent():
                break
            try:
                got += await tools.sample(prompt, replace(tools.sampling, temperature=1.0), seed=seed, samples=[sample])
                scores += [s.value for s in await tools.verifiers["likelihood"](example, [got[-1].text])]
            except BudgetSpentError:
                if not got:
                    raise
                break
        return Answer(text=got[0].text, answer=got[0].answer, candidates=tuple(got), trace={"scored": len(scores)})


@dataclass(frozen=True)
class Grouped(Stubborn):
    """Lets a group of its own carry the error out."""

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(super().__call__(prompt, example, tools, seed=seed))
        return task.result()


def reply(text: str, sample: int, seed: int) -> str:
    return "hm " * (int(text.split()[1]) % 7 + sample % 2) + "Answer: 1"


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, engine=None, strategy=None, only: Sequence[int] = (), **allowance):
    task = Sums()
    monkeypatch.setattr(evaluating, "build_strategy", lambda spec: strategy or Stubborn())
    evaluation = Evaluation(
        stage="s", task=task, examples=task.examples("test"), prompt="zero_shot", strategy="stubborn", model="m", seed=3,
        allowance=Allowance.of(**allowance),
    )  # fmt: skip
    engine = engine or ScriptedEngine(reply, shape=SHAPE)
    summary = evaluate(evaluation, engine, folder, title="t")
    return summary, load_ledger(folder).rows


def without(folder: Path, copy: Path, stopped: set[str]) -> Path:
    """A copy of a run as it would be had these examples not been finished."""
    copy.mkdir()
    for path in folder.iterdir():
        lines = path.read_text().splitlines(keepends=True)
        if path.suffix == ".jsonl":
            lines = [line for line in lines if json.loads(line)["example"] not in stopped]
        (copy / path.name).write_text("".join(lines))
    return copy


def test_every_example_keeps_within_it_over_all_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, rows = run(tmp_path / "free", monkeypatch)
    assert free.budget_rate == 0
    assert all(len(row.candidates) == 6 and row.trace == {"scored": 6} for row in rows)
    for limit in (40, 60, 90, 150):
        summary, held = run(tmp_path / f"{limit}", monkeypatch, tokens=limit)
        assert all(row.cold().usage.tokens <= limit for row in held)
        assert {"policy", "verifier"} <= set(summary.usage)
        ended = [row for row in held if row.trace.get("budget") == "spent"]
        assert summary.budget_rate == len(ended) / 12
        assert summary.to_dict()["budget_rate"] == summary.budget_rate
        for row, whole in zip(held, rows, strict=True):
            assert [c["answer"] for c in row.candidates] == [c["answer"] for c in whole.candidates][: len(row.candidates)]
            assert (row in ended) == (row.cold().usage.tokens < whole.cold().usage.tokens)
    summary, held = run(tmp_path / "flops", monkeypatch, flops=1.5e5)
    assert all(row.cold().flops <= 1.5e5 for row in held)
    assert summary.budget_rate > 0


@pytest.mark.parametrize("strategy", [Stubborn(), Grouped()])
def test_a_method_with_nothing_is_a_wrong_row_that_says_why(
    strategy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, rows = run(tmp_path / "none", monkeypatch, strategy=strategy, tokens=10)
    assert (summary.accuracy, summary.unparsed_rate, summary.budget_rate, summary.cost.usage.tokens) == (0, 1, 1, 0)
    assert all((row.answer, row.score, row.trace, row.candidates) == (None, 0.0, {"budget": "spent"}, ()) for row in rows)
    _, whole = run(tmp_path / "whole", monkeypatch)
    rungs = [
        Rung(name="a", label="Whole", lever="prompting", rows=whole),
        Rung(name="b", label="Held", lever="test-time", rows=rows),
        Rung(name="c", label="Best", lever="oracle", rows=oracle_rows(rows), oracle=True),
    ]
    report = build_report("t", rungs, tmp_path / "report", meta={}, notes=["mine"])
    note = "The budget ended Held on 100.0% of the questions: it answered with what it had."
    assert report["notes"][:2] == ["mine", note]
    assert report["rungs"][1]["budget_rate"] == 1
    assert note in (tmp_path / "report" / "report.md").read_text()
    assert note in (tmp_path / "report" / "report.html").read_text()


def test_results_under_a_budget_do_not_depend_on_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = run(tmp_path / "plain", monkeypatch, tokens=75)
    with Generations(tmp_path / "kept.sqlite") as kept:
        for name in ("cold", "warm"):
            engine = ScriptedEngine(reply, shape=SHAPE)
            summary, rows = run(tmp_path / name, monkeypatch, engine=Cached(engine, kept), tokens=75)
            assert rows == plain
        assert engine.calls == 0
        assert summary.cost.usage.tokens_spent == 0


def test_a_run_budget_holds_for_all_examples_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary, rows = run(tmp_path / "run", monkeypatch, run_tokens=600)
    assert summary.cost.usage.tokens <= 600
    assert summary.budget_rate > 0
    assert len(rows) == 12
    for stopped in ({"0"}, {"0", "1", "11"}, set(map(str, range(9)))):  # what was spent before counts from the beginning
        cut = without(tmp_path / "run", tmp_path / f"cut {len(stopped)}", stopped)
        assert run(cut, monkeypatch, run_tokens=600)[0].cost.usage.tokens <= 600


@pytest.mark.parametrize("stopped", [{"0"}, {"3", "7"}, {"10", "11"}, set(map(str, range(1, 12)))])
def test_with_a_budget_per_example_too_a_resumed_run_equals_a_whole_one(
    stopped: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"tokens": 90, "run_tokens": 500}
    summary, rows = run(tmp_path / "whole", monkeypatch, **limits)
    assert summary.cost.usage.tokens <= 500
    spent = [row.cold().usage.tokens for row in rows]
    assert max(spent) <= 90
    left = 500
    for tokens in spent:  # each had what the ones before it had left
        assert tokens <= min(90, left)
        left -= tokens
    assert rows[0].trace != {"budget": "spent"}
    assert rows[-1].trace == {"budget": "spent"}

    cut = without(tmp_path / "whole", tmp_path / "cut", stopped)
    slow = ScriptedEngine(reply, shape=SHAPE, latency=0.001)
    again, resumed = run(cut, monkeypatch, engine=slow, **limits)
    assert resumed == rows
    assert again.budget_rate == summary.budget_rate


def test_examples_without_a_budget_get_none() -> None:
    async def main() -> None:
        async with Purses(None).example() as (account, share):
            assert (account.total, share) == (Cost(), None)
        await Purses(None).finished(Cost())

    asyncio.run(main())
