"""Greedy, sample, self-consistency, best-of-N: votes by equivalence, unparsed never win, one pool for every n."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import pytest

from posttrain.core.errors import BudgetSpentError, CapabilityError, ConfigError
from posttrain.core.protocols import Tools, Watch
from posttrain.core.specs import build
from posttrain.core.types import Answer, Completion, Example, Message, Prompt, Sampling, Score
from posttrain.engines.scripted import ScriptedEngine
from posttrain.tasks.equivalence import answer_key
from posttrain.tasks.extraction import extractor

EXAMPLE = Example(id="e", question="Q")
PROMPT = Prompt(messages=(Message(role="user", content="Q"),))


def answer(spec: str, tools: Tools, *, seed: int = 0) -> Answer:
    return asyncio.run(build(spec, "posttrain.test_time", "strategy")(PROMPT, EXAMPLE, tools, seed=seed))


def tools(reply: Callable[[str, int, int], str] | Sequence[str], **more: object) -> Tools:
    script = reply if callable(reply) else {"Q": list(reply)}
    engine = more.pop("engine", None) or ScriptedEngine(script, logprobs=more.pop("logprobs", None))
    return Tools(engine=engine, extract=extractor("number"), key=answer_key, sampling=Sampling(max_tokens=99), **more)


class Recorder(ScriptedEngine):
    """Keeps what it was asked for."""

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, seed: int, samples: Sequence[int] = (0,), watch: Watch | None = None
    ) -> list[Completion]:
        self.asked = (sampling, tuple(samples))
        self.prompt = prompt
        return await super().generate(prompt, sampling, seed=seed, samples=samples, watch=watch)


def test_sampling_asked_for() -> None:
    engine = Recorder({"Q": "Answer: 1"})
    answer("greedy", tools([], engine=engine))
    assert engine.asked == (Sampling(temperature=0.0, max_tokens=99), (0,))
    answer("sample:temperature=0.9,top_p=0.8", tools([], engine=engine))
    assert engine.asked == (Sampling(temperature=0.9, top_p=0.8, max_tokens=99), (0,))
    answer("self_consistency:n=5,temperature=0.5", tools([], engine=engine))
    assert engine.asked == (Sampling(temperature=0.5, max_tokens=99), (0, 1, 2, 3, 4))
    answer("best_of_n:n=3,temperature=0.5", tools([], engine=engine))
    assert engine.asked == (Sampling(temperature=0.5, max_tokens=99), (0, 1, 2))


def test_equivalent_answers_vote_together() -> None:
    found = answer(
        "self_consistency:n=5", tools(["Answer: 7", "Answer: 1,000", "Answer: 7", "Answer: $1000.00", "It is 1000.0"])
    )
    assert found.answer == "1,000"
    assert found.text == "Answer: 1,000"  # the winner's first sample
    entropy = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    assert found.trace == {"votes": {"7": 2, "1000": 3}, "unparsed": 0, "entropy": round(entropy, 6), "tied": False}
    assert [candidate.answer for candidate in found.candidates] == ["7", "1,000", "7", "1000.00", "1000.0"]


def test_unparsed_samples_never_win() -> None:
    found = answer("self_consistency:n=5", tools(["dunno", "dunno", "dunno", "dunno", "Answer: 3"]))
    assert found.answer == "3"
    assert found.trace["unparsed"] == 4
    nothing = answer("self_consistency:n=3", tools(["dunno", "hm", "dunno"]))
    assert (nothing.answer, nothing.text) == (None, "dunno")
    assert nothing.trace == {"votes": {}, "unparsed": 3, "entropy": 0.0, "tied": False}
    assert len(nothing.candidates) == 3


def by_answer(values: dict[str, float]) -> Callable[[str, Sequence[str]], list[float]]:
    return lambda asked, words: [values[words[-1].strip()]] * len(words)


def test_ties_go_to_the_likelier_then_to_the_first() -> None:
    replies = ["Answer: 1", "Answer: 2", "Answer: 2", "Answer: 1"]
    likely = answer("self_consistency:n=4", tools(replies, logprobs=by_answer({"1": -2.0, "2": -0.5})))
    assert (likely.answer, likely.trace["tied"]) == ("2", True)
    even = answer("self_consistency:n=4", tools(replies))
    assert even.answer == "1"
    # normalised by length: ten words at -0.5 beat two at -1
    long = "so it is, all in all, as I said, 2"
    replies = ["Answer: 1", long]
    found = answer(
        "self_consistency:n=2", tools(replies, logprobs=lambda _, words: [-0.5 if len(words) > 2 else -1.0] * len(words))
    )
    assert found.answer == "2"


def test_ties_without_logprobs_go_to_the_first() -> None:
    class Bare(ScriptedEngine):
        async def generate(self, *args: object, **kwargs: object) -> list[Completion]:
            return [replace(c, raw_logprobs=None) for c in await super().generate(*args, **kwargs)]  # type: ignore[arg-type]

    found = answer("self_consistency:n=2", tools([], engine=Bare({"Q": ["Answer: 2", "Answer: 1"]}, can=frozenset())))
    assert found.answer == "2"


def policy(asked: str, sample: int, seed: int) -> str:
    """Right (0) with probability 0.5, else one of two wrong answers with 0.3 and 0.2."""
    draw = random.Random(f"{seed}/{sample}").random()
    return f"Answer: {0 if draw < 0.5 else 1 if draw < 0.8 else 2}"


def majority_accuracy(n: int, probabilities: Sequence[float]) -> float:
    """P(answer 0 has the most votes) by summing the multinomial; ties go to the first seen, each tied one equally likely
    weighted by its chance of appearing first: with equal counts the order is exchangeable, so 1 / ties."""
    total = 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            c = n - a - b
            ways = math.factorial(n) / (math.factorial(a) * math.factorial(b) * math.factorial(c))
            chance = ways * probabilities[0] ** a * probabilities[1] ** b * probabilities[2] ** c
            best = max(a, b, c)
            if a == best:
                total += chance / [a, b, c].count(best)
    return total


@pytest.mark.parametrize("n", [1, 5, 8])
def test_majority_accuracy_is_the_multinomial_s(n: int) -> None:
    assert majority_accuracy(1, (0.5, 0.3, 0.2)) == pytest.approx(0.5)
    trials = 600
    engine = tools(policy)
    right = sum(answer(f"self_consistency:n={n}", engine, seed=seed).answer == "0" for seed in range(trials)) / trials
    expected = majority_accuracy(n, (0.5, 0.3, 0.2))
    assert abs(right - expected) < 3 * math.sqrt(expected * (1 - expected) / trials)


def test_a_larger_n_draws_more_of_the_same_pool() -> None:
    pools = [
        answer(f"{name}:n={n}", tools(policy), seed=3).candidates
        for n in (4, 9)
        for name in ("self_consistency", "best_of_n")
    ]
    texts = [[candidate.text for candidate in pool] for pool in pools]
    assert texts[0] == texts[1] == texts[2][:4] == texts[3][:4]
    assert texts[2] == texts[3]
    drawn = answer("sample:n=9", tools(policy), seed=3)
    assert [candidate.text for candidate in drawn.candidates] == texts[2]
    assert drawn.text == answer("sample", tools(policy), seed=3).text == texts[0][0]


def test_best_of_n_by_likelihood() -> None:
    values = {"1": -2.0, "2": -0.5, "3": -1.0, "hm": -0.1}
    found = answer("best_of_n:n=4", tools(["Answer: 1", "Answer: 2", "Answer: 3", "hm"], logprobs=by_answer(values)))
    assert found.answer == "2"  # the likeliest of all, "hm", holds no answer
    assert found.scores == pytest.approx([math.exp(-2.0), math.exp(-0.5), math.exp(-1.0), math.exp(-0.1)])
    assert "oracle" not in found.trace
    assert answer("best_of_n:n=2", tools(["hm", "hum"])).answer is None


class Given:
    """A verifier with given scores."""

    oracle: ClassVar[bool] = False

    def __init__(self, *values: float) -> None:
        self.values = values

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        assert example.answer is None
        return [Score(value=value) for value, _ in zip(self.values, texts, strict=True)]


class Oracle(Given):
    oracle: ClassVar[bool] = True


def scored(replies: Sequence[str], verifier: Given, spec: str) -> Answer:
    return answer(f"best_of_n:n={len(replies)},verifier=given{spec}", tools(replies, verifiers={"given": verifier}))


REPLIES = ["Answer: 1", "Answer: 2", "Answer: 2.0", "Answer: 3"]


def test_best_of_n_by_a_verifier_naive_and_weighted() -> None:
    assert scored(REPLIES, Given(0.1, 0.4, 0.5, 0.7), "").answer == "3"
    weighted = scored(REPLIES, Given(0.1, 0.4, 0.5, 0.7), ",weighted=true")
    assert weighted.answer == "2.0"  # 0.4 + 0.5 > 0.7, and of the two the better scored text
    assert weighted.scores == (0.1, 0.4, 0.5, 0.7)
    # the sum, not the mean: the mean of 0.4 and 0.5 is below 0.7
    assert scored(REPLIES, Given(0.5, 0.5, 0.5, 0.5), "").answer == "1"  # ties: the first


def test_best_of_n_with_missing_scores() -> None:
    found = scored(REPLIES, Given(math.nan, 0.2, 0.1, math.nan), "")
    assert found.answer == "2"
    assert found.trace["unscored"] == 2
    assert found.trace["scores"] == [None, 0.2, 0.1, None]
    assert found.scores == ()
    assert scored(REPLIES, Given(math.nan, 0.2, 0.1, math.nan), ",weighted=true").answer == "2"
    assert scored(REPLIES, Given(*[math.nan] * 4), "").answer == "1"


def test_best_of_n_marks_an_oracle() -> None:
    assert scored(REPLIES, Oracle(0, 0, 1, 0), "").trace["oracle"] is True


def test_best_of_n_errors() -> None:
    with pytest.raises(
        ConfigError, match=r"sums scores, and verifier 'given' gave -1: use a verifier with scores from 0 to 1"
    ):
        scored(REPLIES, Given(-1.0, 0.2, 0.1, 0.0), ",weighted=true")
    with pytest.raises(ConfigError, match="verifier 'prm' was not set up"):
        answer("best_of_n:n=2,verifier=prm", tools(REPLIES))
    with pytest.raises(CapabilityError, match="needs log-probabilities"):
        answer("best_of_n:n=2", tools([], engine=ScriptedEngine({"Q": "1"}, can=frozenset())))
    for spec in ("self_consistency:temperature=0", "self_consistency:n=0", "best_of_n:top_p=0", "sample:temperature=-1"):
        with pytest.raises(ConfigError):
            build(spec, "posttrain.test_time", "strategy")


def test_needed_verifiers_are_named() -> None:
    assert build("best_of_n", "posttrain.test_time", "strategy").verifiers == ()
    strategy = build("best_of_n:verifier=(rule:steps=false)", "posttrain.test_time", "strategy")
    assert strategy.verifiers == ("rule:steps=false",)


def test_the_second_stage_of_zero_shot_cot_is_read() -> None:
    asked: list[Prompt] = []

    class Two(ScriptedEngine):
        async def generate(self, prompt: Prompt, *args: object, **kwargs: object) -> list[Completion]:
            asked.append(prompt)
            self._reply = {"Q": " 3 + 4 is 8, or 7." if prompt.cue else " 7."}
            return await super().generate(prompt, *args, **kwargs)  # type: ignore[arg-type]

    prompt = replace(PROMPT, opening="Let's think step by step.", cue="Therefore, the answer is")
    strategy = build("greedy", "posttrain.test_time", "strategy")
    found = asyncio.run(strategy(prompt, EXAMPLE, tools([], engine=Two({"Q": ""})), seed=0))
    assert found.answer == "7"
    assert asked[1].begun == "Let's think step by step. 3 + 4 is 8, or 7.\nTherefore, the answer is"
    # the reasoning is continued by its own tokens, and only the cue is text
    first = asyncio.run(ScriptedEngine({"Q": " 3 + 4 is 8, or 7."}).generate(PROMPT, Sampling(), seed=0))[0]
    assert asked[1].opening == "Let's think step by step."
    reasoning, cue = asked[1].pieces
    assert isinstance(reasoning, Completion)
    assert reasoning.tokens == first.tokens
    assert cue == "\nTherefore, the answer is"


def test_the_second_stage_goes_on_from_what_was_written_before() -> None:
    engine = Recorder({"Q": " so 7."})
    begun = Completion(text=" First,", tokens=(11, 12))
    prompt = replace(PROMPT, opening="Let's think.", prefix=begun, cue="Answer:")
    (found,) = asyncio.run(tools([], engine=engine).sample(prompt, Sampling(), seed=0))
    assert found.text == " so 7.\nAnswer: so 7."
    assert engine.prompt.begun == "Let's think. First, so 7.\nAnswer:"
    assert engine.prompt.pieces[0].tokens == (11, 12)


def test_a_budget_spent_after_the_reasoning_leaves_the_reasoning() -> None:
    class Poor(ScriptedEngine):
        async def generate(self, prompt: Prompt, *args: object, **kwargs: object) -> list[Completion]:
            if prompt.cue is None:
                raise BudgetSpentError("spent")
            return await super().generate(prompt, *args, **kwargs)  # type: ignore[arg-type]

    prompt = replace(PROMPT, opening="Let's think.", cue="Answer:")
    (found,) = asyncio.run(tools([], engine=Poor({"Q": " it must be 7"})).sample(prompt, Sampling(), seed=0))
    assert (found.text, found.answer) == (" it must be 7", "7")
