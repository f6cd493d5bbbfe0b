"""DeepConf: group confidences by hand, one decision online and offline, traces ended early, calibration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from simulated import ConfidentEngine, answer, purse, tools

from posttrain.core.errors import CapabilityError, ConfigError
from posttrain.core.seeds import rng
from posttrain.engines.scripted import ScriptedEngine
from posttrain.stats.confidence import auroc, calibration, confidence_bar, token_confidence, trace_confidence


def reply(question: str, sample: int, seed: int) -> str:
    source = rng(seed, "answer", sample)
    return "w " * (8 + source.randrange(12)) + f"Answer: {source.choice([1, 1, 2, 3])}"


def confidence(sample: int, words: Sequence[str]) -> list[float]:
    source = rng(7, "confidence", sample)
    return [1.0 + 4.0 * source.random() for _ in words]


def engine(**more: object) -> ConfidentEngine:
    return ConfidentEngine(reply, confidence, **more)


def test_token_confidence_by_hand_and_its_sign() -> None:
    peaked, flat = [math.log(0.96), *[math.log(0.01)] * 4], [math.log(0.2)] * 5
    assert token_confidence(peaked, 5) == pytest.approx(-(math.log(0.96) + 4 * math.log(0.01)) / 5)
    assert token_confidence(peaked, 5) > token_confidence(flat, 5)  # type: ignore[operator]  # high: sure
    assert token_confidence(peaked, 2) == pytest.approx(-(math.log(0.96) + math.log(0.01)) / 2)
    assert token_confidence([-0.1], 5) is None  # one alone would say the opposite
    assert token_confidence([-0.1, -math.inf, -2.1], 5) == pytest.approx(1.1)


def test_trace_confidence_by_hand() -> None:
    values = [4.0, 2.0, 3.0, 1.0, 5.0, 6.0]
    assert trace_confidence(values, 2) == pytest.approx(2.0)  # groups 3, 2.5, 2, 3, 5.5
    assert trace_confidence(values, 2, "tail") == pytest.approx(5.5)
    assert trace_confidence(values, 2, "mean") == pytest.approx(3.5)
    assert trace_confidence(values, 2, "bottom") == pytest.approx(2.0)
    assert trace_confidence(values, 6) == pytest.approx(3.5)
    assert trace_confidence(values, 7) == pytest.approx(3.5)  # shorter than the window: one group
    assert trace_confidence([], 2) is None
    many = [float(i) for i in range(40)]
    assert trace_confidence(many, 1, "bottom") == pytest.approx((0 + 1 + 2 + 3) / 4)


def test_the_bar_keeps_the_named_share() -> None:
    values = [float(i) for i in range(101)]
    assert confidence_bar(values, 0.1) == pytest.approx(90.0)  # low: the top 10 % stay
    assert confidence_bar(values, 0.9) == pytest.approx(10.0)


def test_offline_filters_and_weighs_by_confidence() -> None:
    levels = {0: 9.0, 1: 1.0, 2: 1.0, 3: 5.0, 4: 1.0}
    sure = ConfidentEngine(
        lambda question, sample, seed: f"so Answer: {[7, 8, 8, 7, 8][sample]}",
        lambda sample, words: [levels[sample]] * len(words),
    )
    found = answer("confidence_sampling:n=5,mode=offline,keep=0.4,window=2", tools(sure))
    assert found.answer == "7"  # the majority, 8, is what the model is unsure of
    assert found.trace["bar"] == pytest.approx(confidence_bar(list(levels.values()), 0.4))
    assert found.trace["voted"] == [True, False, False, True, False]
    assert found.trace["weights"] == {"7": 14.0, "8": 0.0}
    assert list(found.scores) == pytest.approx(list(levels.values()))
    everyone = answer("confidence_sampling:n=5,mode=offline,keep=1,window=2", tools(sure))
    assert everyone.trace["voted"] == [True] * 5
    assert everyone.trace["weights"] == {"7": 14.0, "8": 3.0}


def test_when_no_confident_trace_can_be_read_all_finished_ones_vote() -> None:
    sure = ConfidentEngine(
        lambda question, sample, seed: ["who knows", "Answer: 4"][sample],
        lambda sample, words: [9.0 - 8 * sample] * len(words),
    )
    found = answer("confidence_sampling:n=2,mode=offline,keep=0.5,window=1", tools(sure))
    assert (found.answer, found.trace["voted"]) == ("4", [True, True])


@pytest.mark.parametrize("window", [1, 4, 12, 50])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_online_decides_as_offline_on_the_same_traces(window: int, keep: float) -> None:
    """Replay: every trace is written whole, the bar is the warm-up's; the same traces vote, and the answer is the same."""
    for seed in range(6):
        whole = engine()
        given = tools(whole)
        online = answer(
            f"confidence_sampling:n=24,warmup=6,wave=5,consensus=1,keep={keep},window={window}", given, seed=seed
        )
        pool = answer("sample:n=24", given, seed=seed).candidates
        conf = [trace_confidence(confidence(i, c.text.split()), window) for i, c in enumerate(pool)]
        bar = confidence_bar([c for c in conf[:6] if c is not None], keep)
        assert online.trace["bar"] == pytest.approx(bar)
        offline = {i for i, c in enumerate(conf) if c is not None and c >= online.trace["bar"]}
        voted = {c.completion.sample for c, ok in zip(online.candidates, online.trace["voted"], strict=True) if ok}
        readable = {i for i in offline if pool[i].answer is not None}
        assert readable, "every trace of this script has an answer, and the warm-up's best is above its bar"
        assert voted == offline
        weights: dict[str, float] = {}
        for i in sorted(offline):
            weights[str(pool[i].answer)] = weights.get(str(pool[i].answer), 0.0) + (conf[i] or 0.0)
        assert {k: v for k, v in online.trace["weights"].items() if v} == pytest.approx(weights)
        assert online.answer == max(weights, key=lambda key: weights[key])
        assert online.trace["samples"] == 24 == len(online.candidates) + online.trace["stopped"]


def test_traces_are_ended_early_and_an_engine_without_watch_gives_the_same_answer() -> None:
    spec = "confidence_sampling:n=24,warmup=6,wave=6,consensus=1,keep=0.3,window=3"
    watching, blind = engine(), engine(can=frozenset({"logprobs"}))
    early, late = answer(spec, tools(watching), seed=2), answer(spec, tools(blind), seed=2)
    assert early.trace["stopped"] > 5
    assert (early.trace["watch"], late.trace["watch"], late.trace["stopped"]) == (True, False, 0)
    assert early.answer == late.answer
    assert {k: v for k, v in late.trace["weights"].items() if v} == pytest.approx(
        {k: v for k, v in early.trace["weights"].items() if v}
    )
    assert watching.generated < 0.8 * blind.generated
    assert all(candidate.completion.finish != "watch" for candidate in early.candidates)


def test_sampling_stops_at_a_consensus_in_waves() -> None:
    same = ConfidentEngine(lambda question, sample, seed: "Answer: 3", lambda sample, words: [2.0] * len(words))
    assert answer("confidence_sampling:n=32,warmup=4", tools(same)).trace["samples"] == 4

    def split(question: str, sample: int, seed: int) -> str:
        return f"Answer: {1 if sample < 2 else 3}"

    two = ConfidentEngine(split, lambda sample, words: [2.0] * len(words))
    found = answer("confidence_sampling:n=32,warmup=4,wave=4,consensus=0.8", tools(two))
    assert found.trace["samples"] == 12  # 2:2, 2:6 = 0.75, 2:10 > 0.8
    assert found.answer == "3"


def test_what_cannot_work_is_said() -> None:
    with pytest.raises(CapabilityError, match="at least two log-probabilities a token, and this engine gave 1"):
        answer(
            "confidence_sampling:n=2",
            tools(ScriptedEngine({"Q": "Answer: 1"}, logprobs=lambda _, words: [0.0] * len(words))),
        )
    with pytest.raises(ConfigError, match="measure=tail is known only at a trace's end"):
        answer("confidence_sampling:measure=tail", tools(engine()))
    with pytest.raises(ConfigError, match="greater than or equal to 2"):
        answer("confidence_sampling:k=1", tools(engine()))


def test_a_budget_ends_the_waves() -> None:
    given, spent = purse(reply, 9)
    spent.engine = engine()
    found = answer("confidence_sampling:n=24,warmup=6,wave=6,consensus=1,window=3", given)
    assert (found.trace["samples"], spent.used) == (9, 9)
    assert found.answer is not None


def test_auroc_equals_counting_pairs() -> None:
    source = rng(3, "auroc")
    scores = [source.randrange(6) / 2 for _ in range(60)]
    right = [source.random() < 0.3 + 0.1 * score for score in scores]
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for (a, x), (b, y) in itertools.product(zip(scores, right, strict=True), repeat=2)
        if x and not y
    ]
    assert auroc(scores, right) == pytest.approx(float(np.mean(pairs)))
    assert auroc([1.0, 2.0], [True, True]) is None


def test_calibration_tells_easy_questions_from_right_traces() -> None:
    """Confidence that only knows which question is easy: high over all traces, worthless within a question."""
    easy = ([9.0] * 10, [1.0] * 9 + [0.0])
    hard = ([1.0] * 10, [1.0] + [0.0] * 9)
    found = calibration([easy, hard], bins=2)
    assert found.auroc == pytest.approx(0.9)
    assert (found.within, found.questions, found.n) == (0.5, 2, 20)
    assert [b.accuracy for b in found.bins] == pytest.approx([0.1, 0.9])
    assert [b.confidence for b in found.bins] == [(1.0, 1.0), (9.0, 9.0)]
    assert found.bins[0].ci95[0] < 0.1 < found.bins[0].ci95[1]
    assert calibration([([None, 2.0], [1.0, 0.0])]).n == 1
