"""Particle filtering against enumeration: what it samples from, resampling, weights of the finished and the cut."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from step_worlds import Judge, Limited, Recorded, answer, digits, letters, tools, tree, written

from posttrain.core.errors import ConfigError
from posttrain.core.seeds import rng
from posttrain.core.types import Prompt
from posttrain.test_time.particle_filtering import systematic

POLICY = {"a": 0.5, "b": 0.3, "c": 0.2}
SCORES = {"": 0.5, "a": 0.6, "b": 0.4, "c": 0.7, "aa": 0.3, "ab": 0.8, "ac": 0.5, "ba": 0.9, "bb": 0.2, "bc": 0.6}
SCORES |= {"ca": 0.35, "cb": 0.75, "cc": 0.55}


def draw(path: str, sample: int, seed: int) -> str:
    return rng(seed, path, sample).choices(list(POLICY), list(POLICY.values()))[0]


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def short_or_long(prompt: Prompt, sample: int, seed: int) -> str:
    """Replies of different length: the turn ends behind the first letter c, or after two letters."""
    path, said = letters(written(prompt)), ""
    while len(path) < 2 and not path.endswith("c"):
        letter = draw(path, sample, seed)
        path, said = path + letter, said + letter + "\n"
    return said + f"Answer: {digits(path)}"


def exact(weigh: str, leaves: list[str], softness: float) -> tuple[dict[str, float], float]:
    """The target over the leaves by enumeration, and its normalising constant.

    Levels: the letters, then "Answer: …", which is scored as the path that it follows (the last level's weight).
    """
    masses = {}
    for leaf in leaves:
        odds = [math.exp(logit(SCORES[leaf[:k]]) / softness) for k in range(1, len(leaf) + 1)]
        levels = [*odds, odds[-1]]  # the answer's own step has the score of the finished path
        levels += [odds[-1]] * (max(map(len, leaves)) + 1 - len(levels))  # a finished particle is weighed at every level
        masses[leaf] = math.prod(POLICY[letter] for letter in leaf) * (math.prod(levels) if weigh == "each" else odds[-1])
    total = sum(masses.values())
    return {digits(leaf): mass / total for leaf, mass in masses.items()}, total


EVEN = ["".join(pair) for pair in itertools.product("abc", repeat=2)]
UNEVEN = [leaf for leaf in EVEN if leaf[0] != "c"] + ["c"]


@pytest.mark.parametrize(("weigh", "softness"), [("each", 1.0), ("last", 1.0), ("each", 2.5), ("last", 0.5)])
@pytest.mark.parametrize("leaves", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_the_posterior_is_the_enumerated_one(weigh: str, softness: float, leaves: list[str]) -> None:
    """Ẑ Σ_i w_i 1[y_i = y] is an unbiased estimate of the unnormalised target, for any number of particles."""
    respond = tree(2, draw) if leaves is EVEN else short_or_long
    expected, total = exact(weigh, leaves, softness)
    runs = 500
    estimates: dict[str, list[float]] = {leaf: [0.0] * runs for leaf in expected}
    judge = Judge(lambda text: SCORES[letters(text)])
    for seed in range(runs):
        found = answer(
            f"particle_filtering:n=6,verifier=v,weigh={weigh},softness={softness}",
            tools(Recorded({}, respond=respond), v=judge),
            seed=seed,
        )
        evidence = math.exp(found.trace["log_evidence"])
        for candidate, weight in zip(found.candidates, found.trace["weights"], strict=True):
            estimates[candidate.answer or ""][seed] += evidence * weight
    for leaf, values in estimates.items():
        mean = sum(values) / runs
        error = math.sqrt(sum((value - mean) ** 2 for value in values) / (runs - 1) / runs)
        assert abs(mean - expected[leaf] * total) < 3.5 * error, leaf  # 66 comparisons in all: 3 would fail by chance
    whole = [sum(values[seed] for values in estimates.values()) for seed in range(runs)]
    mean = sum(whole) / runs
    assert abs(mean - total) < 3 * math.sqrt(sum((value - mean) ** 2 for value in whole) / (runs - 1) / runs)


def test_many_particles_have_the_posterior_themselves() -> None:
    expected, _ = exact("each", EVEN, 1.0)
    judge = Judge(lambda text: SCORES[letters(text)])
    shares: dict[str, list[float]] = {leaf: [] for leaf in expected}
    for seed in range(20):
        found = answer("particle_filtering:n=200,verifier=v", tools(Recorded({}, respond=tree(2, draw)), v=judge), seed=seed)
        mass: Counter[str] = Counter()
        for candidate, weight in zip(found.candidates, found.trace["weights"], strict=True):
            mass[candidate.answer or ""] += weight
        assert sum(mass.values()) == pytest.approx(1.0)
        assert found.answer == max(mass, key=lambda leaf: mass[leaf])  # the vote by weight
        for leaf in expected:
            shares[leaf].append(mass[leaf])
    for leaf, values in shares.items():
        mean = sum(values) / len(values)
        error = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
        assert abs(mean - expected[leaf]) < 3 * error + 0.002  # the ratio's bias is of order 1 / n


def test_systematic_resampling_keeps_everyone_within_one_of_his_share() -> None:
    generator = random.Random(0)
    counts: Counter[int] = Counter()
    weights = [0.05, 0.0, 0.4, 0.3, 0.25, 0.0]
    for _ in range(4000):
        chosen = systematic(weights, generator)
        once = Counter(chosen)
        assert len(chosen) == len(weights)
        assert all(abs(once[i] - len(weights) * weight) < 1 for i, weight in enumerate(weights))
        counts += once
    for i, weight in enumerate(weights):  # unbiased
        assert counts[i] / 4000 == pytest.approx(len(weights) * weight, abs=0.03)
    assert systematic([0.0, 0.0, 1.0], generator) == [2, 2, 2]
    assert systematic([1 / 3] * 3, generator) == [0, 1, 2]


def test_equal_particles_go_on_differently_and_share_one_prompt() -> None:
    engine = Recorded({}, respond=tree(3, lambda path, sample, seed: "a" if not path else "abcdefgh"[sample]))
    found = answer("particle_filtering:n=4,verifier=v", tools(engine, v=Judge(lambda text: 0.5)))
    assert [samples for _, _, samples in engine.asked[:2]] == [(0, 1, 2, 3)] * 2
    assert [candidate.text[:4] for candidate in found.candidates] == ["a\na\n", "a\nb\n", "a\nc\n", "a\nd\n"]


def test_a_finished_particle_keeps_its_weight_and_is_not_written_on() -> None:
    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        return "Answer: 9" if prompt.prefix is None and sample == 0 else "a\na\na\nAnswer: 1"

    engine = Recorded({}, respond=respond)
    judge = Judge(lambda text: 0.9 if "9" in text else 0.5)
    found = answer("particle_filtering:n=8,verifier=v,weigh=last", tools(engine, v=judge))
    # resampled once by odds 9 : 1 × 7, then weighed no more
    nines = sum(candidate.answer == "9" for candidate in found.candidates)
    assert nines in (4, 5)
    assert found.trace["weights"] == pytest.approx([1 / 8] * 8)
    again = answer("particle_filtering:n=8,verifier=v,weigh=each", tools(Recorded({}, respond=respond), v=judge))
    assert sum(candidate.answer == "9" for candidate in again.candidates) == 8  # 9 : 1 at every level


def test_a_cut_particle_has_no_weight() -> None:
    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        return "x " * 50 if sample % 2 and prompt.prefix is None else "a\na\nAnswer: 1"[len(written(prompt)) :]

    judge = Judge(lambda text: 0.999 if "x" in text else 0.5)
    found = answer("particle_filtering:n=6,verifier=v", tools(Recorded({}, respond=respond), max_tokens=20, v=judge))
    assert (found.answer, found.trace["finished"]) == ("1", 6)  # all of them come from those that were not cut


def test_extreme_missing_and_bad_scores() -> None:
    engine = Recorded({}, respond=lambda prompt, sample, seed: f"Answer: {sample}")
    judge = Judge(lambda text: [0.0, 1.0, math.nan][int(text[-1])])
    found = answer("particle_filtering:n=3,verifier=v", tools(engine, v=judge))
    assert found.answer == "1"
    assert found.trace["weights"][1] == pytest.approx(1.0)
    assert found.trace["scores"] == [0.0, 1.0, None]
    with pytest.raises(ConfigError, match=r"scores from 0 to 1, and verifier 'v' gave 3: use a verifier with probabilities"):
        answer("particle_filtering:n=3,verifier=v", tools(engine, v=Judge(lambda text: 3.0)))


def test_softness_evens_the_weights() -> None:
    engine = Recorded({}, respond=lambda prompt, sample, seed: f"Answer: {sample}")

    def weights(softness: float) -> list[float]:
        judge = Judge(lambda text: 0.8 if text[-1] == "0" else 0.5)
        found = answer(f"particle_filtering:n=2,verifier=v,softness={softness}", tools(engine, v=judge))
        return list(found.trace["weights"])

    assert weights(1.0) == pytest.approx([4 / 5, 1 / 5])
    assert weights(2.0) == pytest.approx([2 / 3, 1 / 3])


def test_a_smaller_budget_moves_the_first_particles_only() -> None:
    engine = Limited({}, respond=tree(3, draw), holds=9)
    found = answer("particle_filtering:n=6,verifier=v", tools(engine, v=Judge(lambda text: 0.5)))
    assert len(engine.given) == 9
    assert (found.answer, found.trace["finished"]) == (None, 0)
    assert len(letters(found.text)) == 2
