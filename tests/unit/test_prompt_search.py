"""Prompt search: finds a planted instruction, scores all on one subset, reports on held-out examples, counts its cost."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from posttrain.core.errors import CapabilityError, ConfigError
from posttrain.core.protocols import Watch
from posttrain.core.seeds import rng
from posttrain.core.types import Completion, Example, ModelShape, Prompt, Sampling
from posttrain.engines.scripted import ScriptedEngine
from posttrain.pipeline.methods import build_prompter
from posttrain.pipeline.opening import Opened
from posttrain.pipeline.points import Bench, Models
from posttrain.pipeline.prompt_search import PromptSearch, prompt_search, splits_of
from posttrain.tasks.equivalence import answer_key


@cache
def _sums(split: str, start: int, size: int) -> list[Example]:
    return [
        Example(id=f"{split}{i}", question=f"{start + i} and {i % 7}", answer=str(start + i + i % 7)) for i in range(size)
    ]


@dataclass
class Sums:
    """Two numbers; the answer is their sum, and no question says so."""

    train: int = 300
    test: int = 60
    name: str = "sums"
    version: str = "1"
    max_tokens: int = 20
    instruction: str = 'Finish with "Answer: ".'

    def examples(self, split: str) -> Sequence[Example]:
        return _sums(split, *{"train": (1000, self.train), "test": (5000, self.test)}[split])

    def extract(self, text: str) -> str | None:
        found = re.search(r"Answer: (\d+)", text)
        return found[1] if found else None

    def key(self, answer: str) -> str:
        return answer_key(answer)

    def grade(self, example: Example, answer: str | None) -> float:
        return float(answer == example.answer)


ACCURACY = {"add the two numbers": 1.0, "combine both numbers": 0.6, "give the larger number": 0.2, "say a number": 0.3}
PROPOSED = [
    " add the two numbers",
    " combine both numbers.",
    ' "give the larger number"',
    " say a number",
    " ",
    " say a number",
]


def right(example_question: str, chance: float) -> bool:
    return rng(0, "right", example_question).random() < chance


def respond(prompt: Prompt, sample: int, seed: int) -> str:
    asked = prompt.messages[-1].content
    if asked.startswith("I gave a friend"):
        assert prompt.opening == "The instruction was to"
        assert len(re.findall(r"Output: \d+", asked)) == 3
        return rng(seed, "proposal").choice(PROPOSED)
    question = re.search(r"(\d+) and (\d+)", asked)
    assert question is not None
    chance = next((c for text, c in ACCURACY.items() if text in asked.lower()), 0.1)
    total = int(question[1]) + int(question[2])
    return f"Answer: {total if right(question[0], chance) else 0}"


class Counting(ScriptedEngine):
    """Keeps the questions asked under each instruction; stops working after so many calls."""

    def __init__(self, stop_after: int | None = None, **more: Any) -> None:
        super().__init__({}, respond=respond, shape=ModelShape(parameters=9, matmul_params=5, head_params=2, layers=1,
                         attention_width=4), **more)  # fmt: skip
        self.left = stop_after
        self.asked: dict[str, list[str]] = {}

    def _count(self, prompt: Prompt) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        head, _, rest = prompt.messages[-1].content.partition("\n\n")
        if not head.startswith("I gave"):
            text, question = ("", head) if re.fullmatch(r"\d+ and \d+", head) else (head, rest.split("\n")[0])
            self.asked.setdefault(text, []).append(question)

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, seed: int, samples: Sequence[int] = (0,), watch: Watch | None = None
    ) -> list[Completion]:
        self._count(prompt)
        return await super().generate(prompt, sampling, seed=seed, samples=samples, watch=watch)

    async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
        self._count(prompt)
        return await super().score(prompt, continuation)


@dataclass
class Given(Models):
    """Engines that are already there."""

    engines: dict[str, Any] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)

    def fingerprint(self, ref: str) -> str:
        return f"f:{ref}"

    def open(self, ref: str) -> Opened:
        self.opened.append(ref)
        return Opened(engine=self.engines[ref], name=ref)


def run(out: Path, engine: Counting, *, task: Any = None, search: PromptSearch | None = None, **more: Any) -> Any:
    task = task or Sums()
    bench = Bench(out=out, task=task, models=Given(engines={"m": engine}))
    plan = search or PromptSearch(candidates=24, demonstrations=3, propose=12, select=40, first=10)
    return prompt_search(plan, bench, task.examples("test"), model="m", **more)


def without_time(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "seconds"}


def test_finds_the_planted_instruction(tmp_path: Path) -> None:
    found = run(tmp_path, Counting())
    assert found["instruction"] == "Add the two numbers"
    assert json.loads(json.dumps(found)) == json.loads((tmp_path / "prompt_search.json").read_text())
    report = found["report"]
    assert report["winner"]["accuracy"] == 1.0
    assert report["winner"]["n"] == 60
    expected = sum(right(e.question, 0.1) for e in Sums().examples("test")) / 60
    assert report["without"]["accuracy"] == pytest.approx(expected)
    assert report["difference"]["difference"] == pytest.approx(1 - expected)
    # the other candidates, their words cleaned and each once
    texts = [row["instruction"] for row in found["table"]]
    assert sorted(texts) == ["", "Add the two numbers", "Combine both numbers.", "Give the larger number", "Say a number"]
    counts = found["proposals"]
    assert counts["asked"] == 24 == counts["empty"] + counts["repeated"] + counts["kept"]
    assert counts["kept"] == 4
    # the file is a prompt
    prompter = build_prompter(f"instructed:file={tmp_path / 'prompt_search.json'}")
    assert prompter(Sums(), Sums().examples("test")[0].public(), seed=0) == build_prompter(found["prompt"])(
        Sums(), Sums().examples("test")[0].public(), seed=0
    )


def test_all_candidates_of_a_round_answer_the_same_examples(tmp_path: Path) -> None:
    engine = Counting()
    found = run(tmp_path, engine)
    task = Sums()
    questions = {example.id: example.question for split in ("train", "test") for example in task.examples(split)}
    pools = {name: [questions[i] for i in ids] for name, ids in found["examples"].items()}
    assert {name: len(pool) for name, pool in pools.items()} == {"propose": 12, "select": 40, "report": 60}
    assert len(set().union(*pools.values())) == 112  # disjoint
    for row in found["table"]:
        asked = [q for q in engine.asked[row["instruction"]] if q not in pools["report"]]
        size = row["rounds"][-1]["n"]
        assert sorted(asked) == sorted(pools["select"][:size])  # the first of one list, each once
        chance = ACCURACY.get(row["instruction"].lower().strip("."), 0.1)
        for told in row["rounds"]:
            assert told["score"] == pytest.approx(sum(right(q, chance) for q in pools["select"][: told["n"]]) / told["n"])
    # five candidates: 5 on 10, 3 on 20, 2 on 40
    assert [[r["n"] for r in row["rounds"]] for row in found["table"]] == [[10, 20, 40]] * 2 + [[10, 20]] + [[10]] * 2
    # held-out examples were asked only of the winner and of no instruction
    for text, asked in engine.asked.items():
        assert (set(pools["report"]) <= set(asked)) == (text in ("", found["instruction"]))


@pytest.mark.parametrize(
    ("candidates", "rounds"),
    [
        (1, [(1, 64)]),
        (2, [(2, 64)]),
        (8, [(8, 16), (4, 32), (2, 64)]),
        (33, [(33, 16), (17, 16), (9, 16), (5, 16), (3, 32), (2, 64)]),
    ],
)
def test_rounds_halve(candidates: int, rounds: list[tuple[int, int]]) -> None:
    assert PromptSearch().rounds(candidates) == rounds
    assert PromptSearch(keep=0.9).rounds(4)[-1] == (2, 64)


def test_the_search_s_cost_is_what_the_engine_did(tmp_path: Path) -> None:
    found = run(tmp_path, Counting())
    cost = found["cost"]
    for name in ("calls", "prompt", "generated", "flops"):
        assert cost["search"][name] == pytest.approx(cost["propose"][name] + cost["select"][name])
    assert cost["propose"]["calls"] == 24
    assert cost["select"]["calls"] == 5 * 10 + 3 * 10 + 2 * 20
    assert cost["report"]["calls"] == 2 * 60
    # "Answer: 1234" and the end of turn, for each call
    assert cost["select"]["generated"] == 3 * cost["select"]["calls"]
    assert cost["select"]["flops"] > 0


def test_a_cut_search_goes_on_to_the_same_result(tmp_path: Path) -> None:
    whole_engine = Counting()
    whole = run(tmp_path / "whole", whole_engine)
    for stop in (10, 40, 100, 180):
        out = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            run(out, Counting(stop))
        again = Counting()
        assert without_time(run(out, again)) == without_time(whole)
        if stop > 24:
            assert not any(text.startswith("I gave") for text in again.asked)
    # finished: nothing is asked and no model opened
    task = Sums()
    models = Given(engines={"m": Counting(0)})
    plan = PromptSearch(candidates=24, demonstrations=3, propose=12, select=40, first=10)
    bench = Bench(out=tmp_path / "whole", task=task, models=models)
    assert without_time(prompt_search(plan, bench, task.examples("test"), model="m")) == without_time(whole)
    assert models.opened == []


def by_instruction(asked: str, words: Sequence[str]) -> list[float]:
    """Every word of the answer costs 0.1 under "combine", 1 otherwise."""
    return [-0.1 if "combine" in asked.lower() else -1.0] * len(words)


def test_selection_by_likelihood(tmp_path: Path) -> None:
    search = PromptSearch(candidates=24, demonstrations=3, propose=12, select=40, first=10, score="likelihood")
    engine = Counting(logprobs=by_instruction)
    found = run(tmp_path, engine, search=search)
    assert found["instruction"] == "Combine both numbers."
    best = found["table"][0]
    assert best["rounds"][-1] == {"n": 40, "score": pytest.approx(-0.1)}
    assert found["table"][1]["rounds"][-1]["score"] == pytest.approx(-1.0)
    assert found["cost"]["select"]["scored"] == found["cost"]["select"]["calls"] == 5 * 10 + 3 * 10 + 2 * 20
    assert found["report"]["winner"]["accuracy"] < 1.0  # graded by answering, whatever selected
    rehearsed = run(tmp_path, Counting(0, logprobs=by_instruction), search=search)
    assert without_time(rehearsed) == without_time(found)
    with pytest.raises(CapabilityError, match="score=likelihood needs an engine with score; use score=accuracy"):
        run(tmp_path / "no", Counting(can=frozenset({"prefix"})), search=search)


def test_given_instructions_compete_and_none_may_win(tmp_path: Path) -> None:
    search = PromptSearch(candidates=0, propose=12, select=20, first=20)
    found = run(tmp_path / "a", Counting(), search=search, given=["Add the two numbers, please: it's easy."])
    assert found["instruction"] == "Add the two numbers, please: it's easy."
    assert found["table"][0]["source"] == "given"
    assert found["cost"]["propose"]["calls"] == 0

    worse = run(tmp_path / "b", Counting(), search=search, given=["give nothing of it"])
    assert worse["instruction"] in ("", "give nothing of it")
    alone = run(tmp_path / "c", Counting(), search=search)
    assert (alone["instruction"], alone["prompt"]) == ("", "zero_shot")
    assert "difference" not in alone["report"]
    assert alone["cost"]["report"]["calls"] == 60  # one evaluation, not the same one twice
    with pytest.raises(ConfigError, match="both kinds of quotes"):
        run(tmp_path / "d", Counting(), search=search, given=["""Say "it's"."""])


def test_composes_with_few_shot(tmp_path: Path) -> None:
    search = PromptSearch(candidates=24, demonstrations=3, propose=12, select=20, first=10, prompt="few_shot:k=2")
    found = run(tmp_path, Counting(), search=search)
    assert found["prompt"] == 'instructed:prompt=(few_shot:k=2),text="Add the two numbers"'
    example = Sums().examples("test")[0].public()
    from_file = build_prompter(f"instructed:file={tmp_path / 'prompt_search.json'}")  # with the shots it was found with
    assert from_file(Sums(), example, seed=0) == build_prompter(found["prompt"])(Sums(), example, seed=0)


def test_copies_of_the_report_are_not_searched_on() -> None:
    class Leaky(Sums):
        def examples(self, split: str) -> Sequence[Example]:
            found = list(super().examples(split))
            return [*found[:50], *super().examples("test")] if split == "train" else found

    task = Leaky()
    search = PromptSearch(propose=20, select=25, demonstrations=3)
    splits = splits_of(search, task, task.examples("test"), 0)
    held_out = {example.question for example in splits.report}
    assert not held_out & {example.question for example in (*splits.propose, *splits.select)}
    with pytest.raises(ConfigError, match=r"20 \+ 30 training examples for a search with propose=20 and select=31"):
        splits_of(PromptSearch(propose=20, select=31, demonstrations=3), task, task.examples("test"), 0)
    assert splits_of(search, task, task.examples("test"), 1) != splits


def test_user_errors() -> None:
    with pytest.raises(ConfigError, match="without 'instructed'"):
        PromptSearch(prompt="instructed:text=a")
    with pytest.raises(ConfigError, match="9 demonstrations do not fit a pool of 8"):
        PromptSearch(demonstrations=9, propose=8)


def test_likelihood_is_the_sum_over_the_answer_s_tokens(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    class Seeing(Counting):
        async def score(self, prompt: Prompt, continuation: str | Completion) -> Completion:
            seen.append((prompt.begun, str(continuation)))
            return await super().score(prompt, continuation)

    logs: Callable[[str, Sequence[str]], list[float]] = lambda asked, words: [-0.5] * len(words)  # noqa: E731
    bench = Bench(out=tmp_path, task=Sums(), models=Given(engines={"m": Seeing(logprobs=logs)}))
    examples = [Example(id="a", question="1 and 2", answer="three four"), Example(id="b", question="3 and 4", answer="7")]
    scores, cost = bench.likelihood("m", "zero_shot", examples)
    assert scores == pytest.approx([-1.0, -0.5])
    assert sorted(seen) == [("Answer:", " 7"), ("Answer:", " three four")]
    assert cost.usage.scored == 3
    assert math.isfinite(cost.flops)


@pytest.mark.parametrize("score", ["accuracy", "likelihood"])
def test_on_a_real_engine(tmp_path: Path, score: str) -> None:
    tiny = tiny_models.folder(tmp_path / "tiny", tiny_models.llama(max_position_embeddings=2048))
    bench = Bench(out=tmp_path / "out", task=Sums(test=4), models=Models(device="cpu", dtype="float32", slots=8))
    search = PromptSearch(candidates=2, demonstrations=2, propose=4, select=4, first=2, score=score)  # type: ignore[arg-type]
    report = bench.task.examples("test")
    found = prompt_search(search, bench, report, model=str(tiny), given=["Add."])
    again = Bench(out=tmp_path / "out", task=bench.task, models=Models(device="cpu", dtype="float32", slots=8))
    assert without_time(prompt_search(search, again, report, model=str(tiny), given=["Add."])) == without_time(found)
    assert found["cost"]["select"]["flops"] > 0
    if score == "likelihood":
        engine = bench.models.open(str(tiny)).engine
        last = next(row for row in found["table"] if row["instruction"] == "Add.")["rounds"][-1]
        ids = found["examples"]["select"][: last["n"]]
        asked = [example for example in bench.task.examples("train") if example.id in ids]
        prompter = build_prompter('instructed:text="Add."')

        async def direct() -> list[float]:
            prompts = [replace(prompter(bench.task, e.public(), seed=0), opening="Answer:") for e in asked]
            scored = [await engine.score(p, f" {e.answer}") for p, e in zip(prompts, asked, strict=True)]
            return [math.fsum(one.raw_logprobs or ()) for one in scored]

        assert last["score"] == pytest.approx(math.fsum(asyncio.run(direct())) / last["n"], abs=1e-4)
