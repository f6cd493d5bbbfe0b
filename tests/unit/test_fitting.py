"""Prompts that are too long lose whole worked examples from the front: never a cut, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from test_prompting import Words

from posttrain.core.errors import ContextOverflowError
from posttrain.core.protocols import Tools, Watch
from posttrain.core.specs import build
from posttrain.core.types import Answer, Completion, Example, Message, Prompt, Sampling
from posttrain.data.chat import render_prompt
from posttrain.engines.fitting import Fitting, without_first_shot
from posttrain.engines.purse import Allowance
from posttrain.engines.scripted import ScriptedEngine
from posttrain.ledger.store import load_ledger
from posttrain.pipeline.evaluate import Evaluation, evaluate
from posttrain.pipeline.opening import open_engine
from posttrain.pipeline.single import evaluate_once


class Short(ScriptedEngine):
    """A scripted engine with a context of so many words; keeps the prompts that fitted."""

    def __init__(self, context: int, reply: Any = None) -> None:
        super().__init__(reply or (lambda asked, sample, seed: "Answer: 1"))
        self.context = context
        self.seen: list[Prompt] = []

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, seed: int, samples: Sequence[int] = (0,), watch: Watch | None = None
    ) -> list[Completion]:
        self._check(prompt, sampling.max_tokens)
        return await super().generate(prompt, sampling, seed=seed, samples=samples, watch=watch)

    async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
        self._check(prompt, 2)
        return await super().score(prompt, continuation)

    def _check(self, prompt: Prompt, more: int) -> None:
        if self.count_tokens(prompt) + more > self.context:
            raise ContextOverflowError(f"{self.count_tokens(prompt)} and {more} do not fit {self.context}")
        self.seen.append(prompt)


def prompt_of(spec: str, k: int = 4) -> Prompt:
    task = Words([f"question number {i}" for i in range(k)], name=f"fit{k}")
    return build(spec, "posttrain.prompting", "prompter")(task, Example(id="e", question="the asked one"), seed=0)


@pytest.mark.parametrize("style", ["chat", "text", "markdown"])
def test_whole_shots_go_from_the_front(style: str) -> None:
    longest = prompt_of(f"few_shot:k=4,style={style},select=fixed,system=Hi")
    messages: tuple[Message, ...] | None = longest.messages
    for first in range(1, 5):
        assert messages is not None
        messages = without_first_shot(messages)
        assert messages is not None
        text = "\n".join(message.content for message in messages)
        assert [f"number {i}" in text for i in range(4)] == [i >= first for i in range(4)]
        assert text.startswith("Hi\n")
        assert text.count("Answer: ") == 4 - first
        assert text.count("the asked one") == 1
    assert without_first_shot(messages) is None  # nothing but the question is left
    zero = prompt_of(f"few_shot:k=1,style={style},system=Hi", 1)
    assert [m.content for m in messages] == [m.content for m in without_first_shot(zero.messages) or ()]


def test_a_shot_of_several_turns_goes_as_a_whole() -> None:
    turns = [("user", 1), ("assistant", 1), ("user", 1), ("assistant", 1), ("user", 2), ("assistant", 2), ("user", 0)]
    messages = tuple(Message(role=role, content=str(at), shot=shot) for at, (role, shot) in enumerate(turns))  # type: ignore[arg-type]
    left = without_first_shot(messages)
    assert left is not None
    assert [message.content for message in left] == ["4", "5", "6"]


def test_as_few_as_needed_are_dropped_and_counted() -> None:
    prompt = prompt_of("few_shot:k=4")
    whole = ScriptedEngine({}).count_tokens(prompt)
    shot = sum(len(message.content.split()) for message in prompt.messages[:2])
    for context, dropped in ((whole + 5, 0), (whole + 4, 1), (whole + 5 - shot, 1), (whole + 4 - shot, 2)):
        engine = Short(context)
        fitting = Fitting(engine)
        asyncio.run(fitting.generate(prompt, Sampling(max_tokens=5), seed=0, samples=range(3)))
        assert fitting.dropped == dropped
        assert engine.seen[-1].messages == prompt.messages[2 * dropped :]
        asyncio.run(fitting.score(prompt, "two words"))  # this call has more room
        assert fitting.dropped == dropped
        trace = fitting.noted(Answer(text="", answer=None, trace={"a": 1})).trace
        assert trace == ({"a": 1, "shots_dropped": dropped} if dropped else {"a": 1})


def test_a_question_that_does_not_fit_alone_is_the_engine_s_error() -> None:
    with pytest.raises(ContextOverflowError, match="do not fit 9"):
        asyncio.run(Fitting(Short(9)).generate(prompt_of("few_shot:k=4"), Sampling(max_tokens=5), seed=0))
    with pytest.raises(ContextOverflowError, match="do not fit 2"):
        asyncio.run(Fitting(Short(2)).score(prompt_of("few_shot:k=4"), "1"))


def test_streaming_drops_too() -> None:
    async def heard(fitting: Fitting, prompt: Prompt) -> str:
        return "".join([delta.text async for delta in fitting.stream(prompt, Sampling(max_tokens=5), seed=0)])

    fitting = Fitting(Short(25))
    assert asyncio.run(heard(fitting, prompt_of("few_shot:k=4"))) == "Answer: 1"
    assert fitting.dropped > 0


@pytest.mark.parametrize("strategy", ["greedy", "self_consistency:n=3"])
def test_the_count_reaches_the_row(tmp_path: Path, strategy: str) -> None:
    task = Words([f"question number {i}" for i in range(30)], name="row")
    examples = [Example(id=f"e{n}", question="short" if n else "long " * 9, answer="1") for n in range(3)]
    evaluation = Evaluation(
        stage="s", task=task, examples=examples, prompt="few_shot:k=2", strategy=strategy, model="m", seed=0
    )
    summary = evaluate(evaluation, Short(50, lambda *_: "1"), tmp_path, title="t")
    rows = load_ledger(tmp_path).rows
    assert [row.trace.get("shots_dropped") for row in rows] == [1, None, None]
    assert summary.accuracy == 1.0
    # cost is that of the prompts that were run
    counts = [row.cost["policy"]["prompt"] for row in rows]
    assert counts[1] == counts[2]
    assert counts[0] < counts[1] + 8


def asked_once(tiny: Path, out: Path, **more: Any) -> dict[str, Any]:
    return evaluate_once(
        model=str(tiny), task="reasoning_gym/chain_sum:min_terms=2,max_terms=2,max_digits=2", prompt="few_shot:k=5",
        strategy="greedy", data=None, split="test", limit=3, max_tokens=8, seed=0, out=out, slots=4, device="cpu",
        dtype="float32", chat_template=None, **({"allowance": None, "cache": None} | more),
    )  # fmt: skip


def test_meter_budget_dropped_shots_and_cache_stack_up(tmp_path: Path) -> None:
    """Rows and costs are the same with any of them; the cache serves the second run, and a budget that holds is silent."""
    tiny, kept = tiny_models.folder(tmp_path / "tiny"), tmp_path / "kept.sqlite"
    asked_once(tiny, tmp_path / "plain")
    plain = load_ledger(tmp_path / "plain").rows
    for name in ("first", "again"):
        told = asked_once(tiny, tmp_path / name, cache=kept, allowance=Allowance(example=5000))
        assert load_ledger(tmp_path / name).rows == plain
        assert (told["spent"]["tokens"] == 0) == (name == "again")
    asked_once(tiny, tmp_path / "short", allowance=Allowance(example=100))
    assert all(row.trace["budget"] == "spent" for row in load_ledger(tmp_path / "short").rows)


def test_a_real_context_drops_shots(tmp_path: Path) -> None:
    tiny = tiny_models.folder(tmp_path / "tiny")  # 256 positions, a token per byte
    result = asked_once(tiny, tmp_path / "out")
    rows = load_ledger(tmp_path / "out").rows
    assert all(0 < row.trace["shots_dropped"] <= 5 for row in rows)
    assert all(row.cost["policy"]["prompt"] + 8 <= 256 for row in rows)
    assert result["shots_dropped"] == {
        "examples": 3,
        "shots": sum(row.trace["shots_dropped"] for row in rows),
    }


def test_an_instruction_stays_when_shots_go() -> None:
    for style in ("chat", "text"):
        prompt = prompt_of(f"instructed:text=Add.,prompt=(few_shot:k=2,style={style})", 2)
        messages = without_first_shot(without_first_shot(prompt.messages) or ())
        assert messages is not None
        assert len(messages) == 1
        assert messages[0].content.startswith("Add.\n\n")
        assert "number" not in messages[0].content


def test_the_second_stage_of_a_real_engine_continues_tokens(tmp_path: Path) -> None:
    config = tiny_models.llama(max_position_embeddings=512)
    engine = open_engine(str(tiny_models.folder(tmp_path / "tiny", config)), device="cpu", dtype="float32", slots=4).engine
    seen: list[tuple[Prompt, list[Completion]]] = []

    class Seeing(Fitting):
        async def generate(self, prompt: Prompt, *args: Any, **kwargs: Any) -> list[Completion]:
            seen.append((prompt, await super().generate(prompt, *args, **kwargs)))
            return seen[-1][1]

    task = Words(["a"])
    prompt = build("zero_shot_cot", "posttrain.prompting", "prompter")(task, Example(id="e", question="2 + 2?"), seed=0)
    sampling = Sampling(temperature=1.0, max_tokens=40)
    tools = Tools(engine=Seeing(engine), extract=task.extract, key=task.key)
    candidates = asyncio.run(tools.sample(prompt, sampling, seed=0, samples=range(3)))
    (_, firsts), *seconds = seen
    seconds.sort(key=lambda call: call[1][0].sample)  # they end in any order
    assert [call[1][0].sample for call in seconds] == [0, 1, 2]
    for first, (asked, (second,)) in zip(firsts, seconds, strict=True):
        # a token per byte: the random bytes are no text that could be read back to the same tokens
        assert asked.pieces[0] == first
        cue = str(asked.pieces[-1])
        assert second.usage.prompt == firsts[0].usage.prompt + len(first.tokens) + len(cue.encode())
        assert cue.endswith("Therefore, the answer is")
    assert any(first.text.encode() != bytes(first.text, "ascii", "replace") for first in firsts)
    assert [candidate.text for candidate in candidates] == [
        first.text + str(asked.pieces[-1]) + second.text for first, (asked, (second,)) in zip(firsts, seconds, strict=True)
    ]


class Tokens:
    """A tokenizer that would read a text otherwise than its pieces: a token for each run of letters, one per other sign."""

    chat_template, name_or_path = "x", "x"

    def __init__(self) -> None:
        self.vocabulary: dict[str, int] = {}

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        return "".join(message["content"] for message in messages)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        import re

        pieces = re.findall(r"[A-Za-z]+|.", text, re.DOTALL)
        return {"input_ids": [self.vocabulary.setdefault(piece, len(self.vocabulary)) for piece in pieces]}


def test_a_continuation_keeps_its_tokens_between_opening_and_text() -> None:
    tokenizer, messages = Tokens(), (Message(role="user", content="Q"),)

    def ids(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    written = Completion(text="solution", tokens=(900, 901))  # "sol", "ution": not what the text would be read as
    found = render_prompt(tokenizer, messages, opening="Let", prefix=(written, "\nSo"))
    assert found == [*ids("QLet"), 900, 901, *ids("\n"), *ids("So")]
    assert render_prompt(tokenizer, messages, prefix=(written, "So"))[-1:] == ids("So")
    assert render_prompt(tokenizer, messages, prefix=("Let", "us", written)) == [*ids("QLetus"), 900, 901]  # no opening
    assert render_prompt(tokenizer, messages, opening="Let", prefix="us") == [*ids("QLet"), *ids("us")]
    assert render_prompt(tokenizer, messages, opening="Let") == ids("QLet")
