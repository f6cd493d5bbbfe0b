"""Searches over reasoning steps: bounded, joined exactly, billed once, and right where greed is not."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from step_worlds import (
    EXAMPLE,
    PROMPT,
    Judge,
    Limited,
    Oracle,
    Recorded,
    answer,
    at_random,
    by_turns,
    digits,
    letters,
    metered,
    tools,
    tree,
    written,
)

from posttrain.core.errors import BudgetSpentError, CapabilityError, ConfigError
from posttrain.core.protocols import Tools
from posttrain.core.specs import build
from posttrain.core.types import Completion, Prompt, Score
from posttrain.engines.scripted import ScriptedEngine

METHODS = (
    "beam_search",
    "diverse_tree_search",
    "particle_filtering",
    "mcts:leaf=value",
    "tree_of_thoughts:evaluate=verifier",
)


def spec(method: str, **settings: object) -> str:
    return method + ("," if ":" in method else ":") + ",".join(f"{key}={value}" for key, value in settings.items())


def along(target: str) -> Judge:
    """Knows the right path: the share of the letters so far that are on it."""

    def value(text: str) -> Score:
        right = tuple(float(letter == wanted) for letter, wanted in zip(letters(text), target, strict=False))
        return Score(value=sum(right) / max(len(right), 1), steps=right)

    return Judge(value)


def test_a_step_verifier_finds_the_path_that_greedy_misses() -> None:
    engine = Recorded({}, respond=tree(4, by_turns))
    assert answer("greedy", tools(engine)).answer == digits("aaaa")
    found = answer("beam_search:width=1,expand=2,verifier=v,aggregate=mean", tools(engine, v=along("abba")))
    assert (found.answer, found.text) == (digits("abba"), "a\nb\nb\na\nAnswer: 1221")
    subtrees = answer("diverse_tree_search:n=3,width=2,verifier=v,aggregate=mean", tools(engine, v=along("abba")))
    assert [candidate.answer for candidate in subtrees.candidates] == [digits("abba")] * 3
    assert subtrees.trace["subtrees"] == [True, True, True]


@pytest.mark.parametrize(("width", "expand"), [(1, 1), (2, 3), (4, 4), (3, 1)])
def test_the_work_is_bounded_by_the_width_and_finished_beams_use_it_up(width: int, expand: int) -> None:
    """Turns end at random from the second step on: never more finished than the width, never more draws than stated."""

    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        so_far = written(prompt)
        ends = len(so_far) > 2 and (len(so_far) * 7 + sample * 3) % 5 == 0
        return f"Answer: {len(so_far)}" if ends else "abcdefgh"[sample % 8] + "\n" + "Answer: 3"

    engine = Recorded({}, respond=respond)
    found = answer(f"beam_search:width={width},expand={expand},steps=9", tools(engine, max_tokens=500))
    draws = sum(len(samples) for _, _, samples in engine.asked)
    assert found.trace["generations"] == draws == len(engine.given) <= 9 * width * expand
    assert found.trace["finished"] == len(found.candidates) <= width
    assert all(candidate.completion.finish == "stop" for candidate in found.candidates)
    texts = [path for prompt, _, _ in engine.asked if (path := letters(str(getattr(prompt.prefix, "text", ""))))]
    per_level = [sum(len(text) == level for text in texts) for level in range(1, 9)]
    assert max(per_level, default=0) <= width


def test_a_finished_beam_keeps_its_place() -> None:
    """One beam of two finishes at once: from then on only one is expanded."""

    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        return "Answer: 7" if prompt.prefix is None and sample == 0 else "b\nb\nb\nAnswer: 8"

    engine = Recorded({}, respond=respond)
    found = answer("beam_search:width=2,expand=2,steps=4", tools(engine))
    assert [samples for _, _, samples in engine.asked] == [(0, 1, 2, 3), (0, 1), (0, 1), (0, 1)]
    assert sorted(candidate.answer or "" for candidate in found.candidates) == ["7", "8"]


def test_duplicates_are_merged_and_counted() -> None:
    engine = Recorded({}, respond=tree(3, lambda *_: "a"))
    judge = along("aaa")
    found = answer("beam_search:width=3,expand=2,verifier=v", tools(engine, v=judge))
    assert [samples for _, _, samples in engine.asked] == [tuple(range(6)), (0, 1), (0, 1), (0, 1)]
    assert found.trace["duplicates"] == 5 + 1 + 1 + 1
    assert len(found.candidates) == 1
    assert len(judge.texts) == len(set(judge.texts)) == 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("separator", [r"\n", r"\n\n"])
def test_no_empty_last_step_is_ever_scored(method: str, separator: str) -> None:
    """What is scored never ends with a separator: score(prefix + separator) is score(prefix), and asked once."""

    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        blank = "\n" * (sample % 3)  # some steps are nothing but separators
        return blank + f"a{sample}\n\nb\n\nAnswer: 3"

    judge = Judge(lambda text: 0.5)
    answer(spec(method, verifier="v", steps=5, separator=separator), tools(Recorded({}, respond=respond), v=judge))
    assert judge.texts
    assert all(text and text == text.rstrip() for text in judge.texts)
    assert len(judge.texts) == len(set(judge.texts))


@pytest.mark.parametrize("method", METHODS)
def test_billed_tokens_are_generated_tokens(method: str) -> None:
    """Pruned and discarded branches included, shared beginnings not again: the meter holds each call's new tokens, once."""
    engine = Recorded({}, respond=tree(3, at_random))
    meter, account = metered(engine)
    found = answer(spec(method, verifier="v"), tools(meter, v=along("aba")))
    new = sum(len(completion.tokens) + (completion.stopped_by is None) for completion in engine.given)  # + end of turn
    assert account.total.usage.generated == new
    assert account.total.usage.calls == engine.calls == len(engine.asked)
    assert found.trace["generations"] == len(engine.given)
    kept = sum(len(candidate.completion.tokens) for candidate in found.candidates)
    assert all(candidate.completion.usage.generated == 0 for candidate in found.candidates)
    assert method != "beam_search" or kept < new


@pytest.mark.parametrize("method", [*METHODS, "mcts"])
def test_every_step_continues_what_was_written_by_its_tokens(method: str) -> None:
    engine = Recorded({}, respond=tree(3, at_random))
    answer(spec(method, verifier="v"), tools(engine, v=along("aba")))
    seen: set[tuple[tuple[int, ...], str]] = {((), "")}
    made = iter(engine.given)
    for prompt, sampling, samples in engine.asked:
        prefix = prompt.prefix
        start = ((), "") if prefix is None else (prefix.tokens, prefix.text)  # type: ignore[union-attr]
        assert start in seen
        assert sampling.keep_stop
        for _ in samples:
            step = next(made)
            seen.add((start[0] + step.tokens, start[1] + step.text))


@pytest.mark.parametrize("method", [*METHODS, "mcts"])
def test_a_length_finish_is_not_a_completion(method: str) -> None:
    """Every reply runs into the token limit just behind "Answer: 12": it is cut, so there is no answer."""
    engine = Recorded({}, respond=lambda prompt, sample, seed: "a\nAnswer: 12 or more words to come and go on")
    found = answer(spec(method, verifier="v", steps=4), tools(engine, max_tokens=5, v=Judge(lambda text: 0.5)))
    assert found.answer is None
    assert found.trace["finished"] == 0
    assert {candidate.completion.finish for candidate in found.candidates} == {"length"}
    assert all(len(candidate.completion.tokens) <= 5 for candidate in found.candidates)


def test_a_cut_beam_loses_to_a_finished_one_however_well_scored() -> None:
    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        return "Answer: 3" if sample else "x " * 50

    judge = Judge(lambda text: 0.9 if "x" in text else 0.1)
    for method in ("beam_search:width=1,expand=2", "diverse_tree_search:n=1,width=2", "particle_filtering:n=2"):
        found = answer(method + ",verifier=v", tools(Recorded({}, respond=respond), max_tokens=8, v=judge))
        assert (found.answer, found.trace["finished"]) == ("3", 1)


def test_a_step_that_is_too_long_is_continued() -> None:
    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        words = ["one", "two", "three", "four", "five", "six", "seven\nAnswer:", "4"]
        done = 0 if prompt.prefix is None else len(prompt.prefix.tokens)  # type: ignore[union-attr]
        return " ".join(words)[len(" ".join(words[:done])) :] if done < 7 else "Answer: 4"

    engine = Recorded({}, respond=respond)
    found = answer("beam_search:width=1,expand=1,step_tokens=3", tools(engine))
    assert found.text == "one two three four five six seven\nAnswer: 4"
    assert [given.finish for given in engine.given] == ["length", "length", "stop", "stop"]


@pytest.mark.parametrize(
    ("how", "best"), [("last", "b"), ("min", "a"), ("product", "c"), ("mean", "d")], ids=["last", "min", "product", "mean"]
)
def test_aggregation_is_a_named_setting(how: str, best: str) -> None:
    """Four one-step replies, each the best by another aggregation; the trace says which was used."""
    steps = {"a": (0.5, 0.5, 0.5, 0.5, 0.5), "b": (0.1, 0.1, 0.95), "c": (0.45,), "d": (0.9, 0.9, 0.2, 0.9)}
    assert max(steps, key=lambda s: math.prod(steps[s])) == "c"
    engine = Recorded({}, respond=lambda prompt, sample, seed: "abcd"[sample] + " Answer: 1")
    judge = Judge(lambda text: Score(value=0.0, steps=steps[text[0]]))
    for method in ("beam_search:width=4,expand=1", "diverse_tree_search:n=1,width=4"):
        found = answer(f"{method},verifier=v,aggregate={how}", tools(engine, v=judge))
        assert found.text[0] == best
        assert (found.trace["aggregate"], found.trace["verifier"]) == (how, "v")


def test_likelihood_is_normalised_by_length() -> None:
    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        return "short\nAnswer: 1" if sample == 0 else "so very long a step\nAnswer: 2"

    def logprobs(asked: str, words: list[str]) -> list[float]:
        return [-0.5 if len(words) > 3 else -0.9] * len(words)

    engine = ScriptedEngine({}, respond=respond, logprobs=logprobs)
    found = answer("beam_search:width=1,expand=2,steps=1", tools(engine))
    assert found.answer == "2"  # by the sum, -0.9 × 3 > -0.5 × 7, it would be the other
    assert found.scores == pytest.approx([math.exp(-0.5)])


def test_choices_among_the_finished() -> None:
    engine = Recorded({}, respond=lambda prompt, sample, seed: f"w{sample}: Answer: {[1, 2, 2.0, 3][sample]}")
    values = {"w0": 0.1, "w1": 0.35, "w2": 0.4, "w3": 0.7}
    judge = Oracle(lambda text: values[text[:2]])
    found = {
        choose: answer(f"beam_search:width=4,expand=1,verifier=v,choose={choose}", tools(engine, v=judge))
        for choose in ("best", "majority", "weighted")
    }
    assert {choose: one.answer for choose, one in found.items()} == {"best": "3", "majority": "2.0", "weighted": "2.0"}
    assert found["best"].trace["oracle"] is True
    with pytest.raises(ConfigError, match="sums scores, and the verifier gave -1"):
        answer("beam_search:width=4,expand=1,verifier=v,choose=weighted", tools(engine, v=Judge(lambda text: -1.0)))


def test_missing_scores_rank_last() -> None:
    engine = Recorded({}, respond=lambda prompt, sample, seed: f"w{sample}: Answer: {sample}")
    found = answer(
        "beam_search:width=3,expand=1,verifier=v", tools(engine, v=Judge(lambda t: math.nan if t[1] == "0" else int(t[1])))
    )
    assert found.answer == "2"
    assert found.trace["scores"] == [2, 1, None]
    assert found.scores == ()


def test_wider_searches_keep_the_samples_of_narrower_ones() -> None:
    def texts(method: str) -> list[str]:
        engine = Recorded({}, respond=tree(4, at_random))
        found = answer(method, tools(engine, v=along("abab")), seed=5)
        return [c.text for c in engine.given[:8]] if method.startswith("beam") else [c.text for c in found.candidates]

    assert texts("beam_search:width=2,expand=4,verifier=v") == texts("beam_search:width=4,expand=4,verifier=v")
    few, many = (texts(f"diverse_tree_search:n={n},width=2,verifier=v") for n in (3, 7))
    assert many[:3] == few
    assert len(set(many)) > 1


@pytest.mark.parametrize("method", [*METHODS, "mcts"])
@pytest.mark.parametrize("holds", [1, 3, 5, 6, 9, 14])
def test_a_spent_budget_gives_the_best_so_far(method: str, holds: int) -> None:
    engine = Limited({}, respond=tree(3, at_random), holds=holds)
    found = answer(spec(method, verifier="v"), tools(engine, v=along("aba")))
    assert found.trace["generations"] == len(engine.given) <= holds
    assert bool(found.trace.get("budget_spent")) == engine.refused
    assert found.text
    assert (found.answer is not None) == (found.trace["finished"] > 0)
    if holds == 1:  # one step of a reply of four
        assert (found.answer, found.trace["finished"], found.text) == (None, 0, engine.given[0].text)
        assert found.trace["budget_spent"] is True


@pytest.mark.parametrize("method", [*METHODS, "mcts", "tree_of_thoughts:generate=propose,evaluate=verifier"])
def test_a_budget_that_holds_nothing_lets_the_error_pass(method: str) -> None:
    with pytest.raises(BudgetSpentError, match="is spent"):
        answer(spec(method, verifier="v"), tools(Limited({}, respond=tree(3, at_random), holds=0), v=along("aba")))


class Spent:
    def left(self) -> float:
        return 0.0


@pytest.mark.parametrize("method", [*METHODS, "mcts"])
def test_a_budget_that_is_used_up_stops_after_the_first_draw(method: str) -> None:
    engine = Recorded({}, respond=tree(5, at_random))
    given = replace(tools(engine, v=along("abaab")), budget=Spent())
    found = answer(spec(method, verifier="v"), given)
    assert len(engine.asked) == 1
    assert found.trace["budget_spent"] is True
    assert (found.answer, found.text) in [(None, "a\n"), (None, "b\n")]


class Refusing(Judge):
    async def __call__(self, example: object, texts: object) -> list[Score]:
        raise BudgetSpentError("the verifier's call does not fit")


@pytest.mark.parametrize("method", [*METHODS, "mcts"])
def test_a_verifier_without_budget_ends_the_search(method: str) -> None:
    engine = Recorded({}, respond=tree(3, at_random))
    found = answer(spec(method, verifier="v"), tools(engine, v=Refusing(lambda text: 0.0)))
    assert found.trace["budget_spent"] is True
    assert len(engine.asked) <= 2


def test_the_task_s_own_stop_ends_a_reply_also_across_a_seam() -> None:
    engine = Recorded({}, respond=tree_then("a\nAnswer: 4\n\nQ: next"))
    found = answer("beam_search:width=1,expand=1", tools(engine, stop=("\n\nQ:",)))
    assert (found.text, found.answer) == ("a\nAnswer: 4", "4")
    assert found.candidates[0].completion.finish == "stop"


def tree_then(whole: str) -> Callable[[Prompt, int, int], str]:
    """A policy that writes one text, from wherever it is."""

    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        return whole[len(written(prompt)) :]

    return respond


@pytest.mark.parametrize("method", [*METHODS, "mcts"])
def test_the_two_stages_of_zero_shot_cot_are_kept(method: str) -> None:
    """What opens the turn opens every step's prompt, and the answer is read behind the cue."""

    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        assert prompt.begun.startswith("Let us think.")
        if prompt.begun.endswith("so it is"):
            assert prompt.pieces[-1] == "\nso it is"
            return f" {prompt.begun.count('b')}."
        so_far = prompt.begun.removeprefix("Let us think.")
        assert not so_far or isinstance(prompt.pieces[-1], Completion)
        return {"": "a\nb\ndone 99", "a\n": "b\ndone 99", "a\nb\n": "done 99"}[so_far]

    for opening, prefix in (("Let us think.", None), ("", "Let us think."), ("Let us", " think.")):
        prompt = replace(PROMPT, opening=opening, prefix=prefix, cue="so it is")
        engine = ScriptedEngine({}, respond=respond)
        found = answer(spec(method, verifier="v"), tools(engine, v=Judge(lambda t: 0.5)), prompt=prompt)
        assert (found.answer, found.text) == ("1", "a\nb\ndone 99\nso it is 1.")


def test_errors_are_one_sentence() -> None:
    engine = ScriptedEngine({"Q": "1"}, can=frozenset({"prefix"}))
    for method in ("beam_search", "diverse_tree_search", "particle_filtering", "mcts"):
        with pytest.raises(CapabilityError, match=f"{method}:verifier=likelihood needs log-probabilities"):
            answer(method, tools(engine))
        with pytest.raises(ConfigError, match=f"{method}: verifier 'prm' was not set up"):
            answer(f"{method}:verifier=prm", tools(engine))
        assert build(f"{method}:verifier=(rule:steps=false)", "posttrain.test_time", "strategy").verifiers == (
            "rule:steps=false",
        )
        assert build(method, "posttrain.test_time", "strategy").verifiers == ()
    for bad in (
        "beam_search:width=0",
        "mcts:policy=best",
        "diverse_tree_search:aggregate=max",
        "particle_filtering:softness=0",
    ):
        with pytest.raises(ConfigError):
            build(bad, "posttrain.test_time", "strategy")
    with pytest.raises(ConfigError, match="separator must not be empty"):
        answer('beam_search:separator=""', tools(ScriptedEngine({"Q": "1"})))


@pytest.mark.parametrize("method", [*METHODS, "mcts"])
def test_the_same_seed_gives_the_same_answer_among_others(method: str) -> None:
    engine = ScriptedEngine({}, latency=0.001, respond=tree(4, at_random))
    given = tools(engine, v=along("abba"))
    strategy = build(spec(method, verifier="v"), "posttrain.test_time", "strategy")

    async def many(given: Tools) -> list[object]:
        return await asyncio.gather(*(strategy(PROMPT, EXAMPLE, given, seed=seed) for seed in (1, 2, 1, 3)))

    found = asyncio.run(many(given))
    assert found[0] == found[2] == answer(spec(method, verifier="v"), given, seed=1)
    assert len({one.text for one in found} | {str(one.trace) for one in found}) > 2  # type: ignore[attr-defined]


def test_subtrees_are_drawn_apart_where_they_have_come_to_the_same_beginning() -> None:
    engine = Recorded({}, respond=tree(6, lambda path, sample, seed: "a" if not path else at_random(path, sample, seed)))
    found = answer("diverse_tree_search:n=4,width=1", tools(engine))
    assert len({candidate.text for candidate in found.candidates}) > 1
