"""Votes by weight and by variant, best-of-N by steps, adaptive consistency: against closed forms, under budgets."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta as beta_law
from simulated import PROMPT, Given, Noisy, Poor, answer, answers, as_verifiers, policy, purse, tools

from posttrain.core.errors import BudgetSpentError, ConfigError
from posttrain.core.types import Completion, Example, Message, Prompt, Sampling, Score
from posttrain.engines.scripted import ScriptedEngine
from posttrain.stats.proxy import best_of_k, proxy_gold_curve
from posttrain.stats.stopping import beta_confidence, expected_adaptive, replay, settled, settled_at

P = {"1": 0.5, "2": 0.3, "3": 0.2}
REPLIES = ["Answer: 1", "Answer: 2", "Answer: 2.0", "Answer: 3"]


def within(observed: float, expected: float, trials: int, spread: float | None = None) -> bool:
    deviation = math.sqrt(expected * (1 - expected)) if spread is None else spread
    return abs(observed - expected) < 3 * deviation / math.sqrt(trials)


# --- self-consistency ---------------------------------------------------------------------------------------------------


def test_votes_weighted_by_a_verifier_are_summed_per_equivalent_answer() -> None:
    spec = "self_consistency:n=4,vote=verifier,verifier=given"
    found = answer(spec, tools(REPLIES, verifiers=as_verifiers(given=Given([0.1, 0.4, 0.5, 0.7]))))
    assert found.answer == "2.0"  # 0.4 + 0.5 > 0.7; the text is the better scored of the two
    assert found.trace["weights"] == {"1": 0.1, "2": 0.9, "3": 0.7}
    assert found.scores == (0.1, 0.4, 0.5, 0.7)
    oracle = answer(spec, tools(REPLIES, verifiers=as_verifiers(given=Given([0, 0, 0, 1.0], oracle=True))))
    assert (oracle.answer, oracle.trace["oracle"]) == ("3", True)
    missing = answer(spec, tools(REPLIES, verifiers=as_verifiers(given=Given([0.1, math.nan, math.nan, 0.3]))))
    assert (missing.answer, missing.trace["unscored"], missing.scores) == ("3", 2, ())


def test_a_verifier_with_raw_rewards_votes_through_a_sigmoid() -> None:
    spec = "self_consistency:n=4,vote=verifier,verifier=given"
    rewards = [-3.0, -0.4, -0.4, 0.1]
    with pytest.raises(
        ConfigError, match=r"self_consistency:vote=verifier sums scores, and .* gave -3: .*transform=sigmoid"
    ):
        answer(spec, tools(REPLIES, verifiers=as_verifiers(given=Given(rewards))))
    found = answer(spec + ",transform=sigmoid", tools(REPLIES, verifiers=as_verifiers(given=Given(rewards))))
    assert found.answer == "2"
    assert found.scores == pytest.approx([1 / (1 + math.exp(-r)) for r in rewards])
    huge = answer(spec + ",transform=sigmoid", tools(REPLIES, verifiers=as_verifiers(given=Given([-1e4, 0, 0, 1e4]))))
    assert huge.scores == (0.0, 0.5, 0.5, 1.0)


def test_likelihood_marginalised_votes_use_the_probability_per_token() -> None:
    values = {"1": -0.1, "2": -1.5, "3": -2.0}
    engine = ScriptedEngine(
        {"Q": ["so so so so it is 1", "Answer: 2", "Answer: 2", "Answer: 3"]},
        logprobs=lambda _, words: [values[words[-1].strip()]] * len(words),
    )
    found = answer("self_consistency:n=4,vote=likelihood", tools(engine))
    assert found.answer == "1"  # exp(-0.1) > 2·exp(-1.5); a sum of log-probabilities would have preferred the short ones
    assert found.trace["weights"] == pytest.approx({"1": math.exp(-0.1), "2": 2 * math.exp(-1.5), "3": math.exp(-2)})
    assert answer("self_consistency:n=4", tools(engine)).answer == "2"


def test_entropy_of_the_answers_is_in_the_trace() -> None:
    found = answer("self_consistency:n=5", tools(["Answer: 1", "Answer: 1", "Answer: 2", "Answer: 1", "hm"]))
    assert found.trace["entropy"] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), abs=1e-6)


class Seeing(ScriptedEngine):
    """Keeps the prompts of all samples."""

    def __init__(self) -> None:
        super().__init__({}, respond=self.see)
        self.seen: dict[int, Prompt] = {}

    def see(self, prompt: Prompt, sample: int, seed: int) -> str:
        self.seen[sample] = prompt
        return f"Answer: {sample}"


def shots(*names: str) -> Prompt:
    turns = [Message(role="system", content="S")]
    for name in names:
        turns += [Message(role="user", content=f"q{name}"), Message(role="assistant", content=f"a{name}")]
    return Prompt(messages=(*turns, Message(role="user", content="Q")))


def test_wordings_are_spread_over_the_samples_whatever_their_number() -> None:
    prompts = []
    for n in (4, 7):
        engine = Seeing()
        found = answer(
            f'self_consistency:n={n},diversity=wording,wordings=["","Be brief.","Be, well, slow."]', tools(engine)
        )
        prompts.append([engine.seen[i].messages[-1].content for i in range(n)])
        assert found.trace["variants"] == [i % 3 for i in range(n)]
        assert [candidate.completion.sample for candidate in found.candidates] == list(range(n))
    assert prompts[0] == ["Q", "Q\n\nBe brief.", "Q\n\nBe, well, slow.", "Q"]
    assert prompts[1][:4] == prompts[0]


def test_orders_of_the_shots_are_distinct_and_keep_shots_system_and_question() -> None:
    engine = Seeing()
    prompt = shots("1", "2", "3")
    answer("self_consistency:n=12,diversity=order,variants=20", tools(engine), prompt=prompt)
    contents = [tuple(m.content for m in engine.seen[i].messages) for i in range(12)]
    assert contents[0] == tuple(m.content for m in prompt.messages)
    assert len(set(contents)) == 6 == math.factorial(3)
    assert contents[:6] == contents[6:]  # sample i uses variant i mod 6
    for content in contents:
        assert (content[0], content[-1]) == ("S", "Q")
        pairs = list(zip(content[1:-1:2], content[2:-1:2], strict=True))
        assert sorted(pairs) == [("q1", "a1"), ("q2", "a2"), ("q3", "a3")]
    few = Seeing()
    answer("self_consistency:n=3,diversity=order,variants=3", tools(few), prompt=prompt)
    assert [few.seen[i] for i in range(3)] == [engine.seen[i] for i in range(3)]  # variant j whatever their number


def test_orders_need_shots_that_are_turns_and_leave_a_conversation_alone() -> None:
    with pytest.raises(ConfigError, match="at least two shots that are turns"):
        answer("self_consistency:diversity=order", tools(Seeing()), prompt=shots("1"))
    history = (
        Message(role="user", content="hi"),
        Message(role="assistant", content="ho"),
        Message(role="user", content="Q"),
    )
    with pytest.raises(ConfigError, match="at least two shots"):
        answer(
            "self_consistency:diversity=order",
            tools(Seeing()),
            prompt=Prompt(messages=history),
            example=Example(id="e", messages=history),
        )


def test_self_consistency_settings_that_do_not_fit_together() -> None:
    for spec in ("self_consistency:vote=verifier", "self_consistency:verifier=rule"):
        with pytest.raises(ConfigError, match="go together"):
            answer(spec, tools(REPLIES))


# --- best-of-N ----------------------------------------------------------------------------------------------------------

STEPS = [Score(value=0.0, steps=(0.9, 0.2)), Score(value=0.0, steps=(0.6, 0.5)), Score(value=0.0, steps=(0.1, 0.55, 0.6))]


@pytest.mark.parametrize(
    ("aggregate", "scores", "best"),
    [
        ("last", (0.2, 0.5, 0.6), "3"),
        ("min", (0.2, 0.5, 0.1), "2"),
        ("product", (0.18, 0.3, 0.033), "2"),
        ("mean", (0.55, 0.55, 1.25 / 3), "1"),
    ],
)
def test_scores_of_steps_are_aggregated_as_named(aggregate: str, scores: tuple[float, ...], best: str) -> None:
    given = tools(["Answer: 1", "Answer: 2", "Answer: 3"], verifiers=as_verifiers(given=Given(STEPS)))
    found = answer(f"best_of_n:n=3,verifier=given,aggregate={aggregate}", given)
    assert (found.answer, found.trace["aggregate"]) == (best, aggregate)
    assert found.scores == pytest.approx(scores)


def test_steps_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match=r"aggregate=min needs scores of steps, and verifier 'given' gives none"):
        answer("best_of_n:n=4,verifier=given,aggregate=min", tools(REPLIES, verifiers=as_verifiers(given=Given([1.0] * 4))))
    with pytest.raises(ConfigError, match="likelihood has none"):
        answer("best_of_n:n=4,aggregate=min", tools(REPLIES))
    empty = [Score(value=1.0, steps=()), Score(value=0.0, steps=(0.3,))]
    given = tools(REPLIES, verifiers=as_verifiers(given=Given(empty)))
    found = answer("best_of_n:n=2,verifier=given,aggregate=last", given)  # a text without steps has no score
    assert (found.answer, found.trace["unscored"]) == ("2", 1)
    negative = tools(REPLIES, verifiers=as_verifiers(given=Given([Score(value=0.0, steps=(-1.0, -2.0))])))
    with pytest.raises(ConfigError, match="aggregate=product multiplies probabilities"):
        answer("best_of_n:n=1,verifier=given,aggregate=product", negative)


def best_of_n_accuracy(n: int, p: float, hit: float, slip: float) -> float:
    """A binary verifier, ties to the first: an accepted sample is right with pt/q, and if none is, a rejected one with
    p(1 − t)/(1 − q), where q = pt + (1 − p)f is the chance of being accepted."""
    q = p * hit + (1 - p) * slip
    none = (1 - q) ** n
    return (1 - none) * p * hit / q + none * p * (1 - hit) / (1 - q)


@pytest.mark.parametrize("n", [1, 4, 12])
def test_best_of_n_accuracy_is_the_closed_form(n: int) -> None:
    """Another verifier for every trial: the noise is independent, as the closed form assumes."""
    trials = 400
    right = 0
    for seed in range(trials):
        given = tools(policy(P), verifiers=as_verifiers(noisy=Noisy("1", 0.7, 0.2, seed=seed)))
        right += answer(f"best_of_n:n={n},verifier=noisy", given, seed=seed).answer == "1"
    assert within(right / trials, best_of_n_accuracy(n, 0.5, 0.7, 0.2), trials)


def test_the_proxy_curve_is_the_mean_over_all_subsets() -> None:
    proxy, gold = [0.3, 0.9, 0.3, None, 0.9, 0.1], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    for k in range(1, 7):
        golds = []
        for subset in itertools.combinations(range(6), k):
            values = [-math.inf if proxy[i] is None else proxy[i] for i in subset]
            ties = [gold[i] for i, v in zip(subset, values, strict=True) if v == max(values)]
            golds.append(sum(ties) / len(ties))
        assert best_of_k(proxy, gold, k).gold == pytest.approx(sum(golds) / len(golds), abs=1e-12)
    assert best_of_k([None, None], [1.0, 0.0], 2) == replace(best_of_k([None, None], [1.0, 0.0], 2), gold=0.5, proxy=None)
    with pytest.raises(ValueError, match="between 1 and 6"):
        best_of_k(proxy, gold, 7)


def test_a_gamed_proxy_shows_in_the_curve() -> None:
    """A proxy that tells right from wrong, but for 3 % of samples that please it most and are wrong."""
    pools = []
    for question in range(20):
        proxy: list[float | None] = []
        gold = []
        for i in range(100):
            if i % 33 == 32:
                proxy.append(10.0 + i)
                gold.append(0.0)
            else:
                right = (i * 7 + question) % 10 < 5
                proxy.append((1.0 if right else 0.0) + ((i * 13) % 100) / 400)
                gold.append(float(right))
        pools.append((proxy, gold))
    curve = proxy_gold_curve(pools, [1, 2, 4, 8, 16, 32, 64, 100])
    proxies, golds = [point.proxy for point in curve], [point.gold for point in curve]
    assert all(a < b for a, b in itertools.pairwise(proxies))  # the proxy only rises
    assert max(golds) == golds[2]  # the gold rises, then falls: over-optimised
    assert golds[0] == pytest.approx(0.485, abs=0.02)
    assert golds[2] > golds[0] + 0.2
    assert golds[-1] == 0.0
    assert curve[2].ci95[0] <= curve[2].gold <= curve[2].ci95[1]


# --- adaptive consistency -----------------------------------------------------------------------------------------------


def test_the_beta_rule_in_closed_form() -> None:
    assert [beta_confidence(v, 0) for v in range(1, 6)] == pytest.approx([1 - 0.5 ** (v + 1) for v in range(1, 6)])
    for first, second in [(3, 1), (5, 2), (20, 19), (7, 7)]:
        direct, _ = quad(beta_law(first + 1, second + 1).pdf, 0.5, 1)
        assert beta_confidence(first, second) == pytest.approx(direct, abs=1e-9)
    assert settled(["a"] * 4, 0.95)
    assert not settled(["a"] * 3, 0.95)
    assert not settled([None] * 40, 0.95)  # four unparsed samples do not agree on anything
    assert settled_at([None, "a", "a", None, "a", "a", "a"], 0.95) == 6


def expected_run(probabilities: dict[str, float], threshold: float, n: int) -> tuple[float, float, float]:
    """Exact E[samples], its standard deviation and P(answer = "1"), by walking the counts; a tie at the end is shared."""
    states: dict[tuple[int, ...], float] = {(0, 0, 0): 1.0}
    mean = square = right = 0.0
    for used in range(1, n + 1):
        grown: Counter[tuple[int, ...]] = Counter()
        for counts, chance in states.items():
            for i, probability in enumerate(probabilities.values()):
                grown[tuple(c + (i == j) for j, c in enumerate(counts))] += chance * probability
        states = {}
        for counts, chance in grown.items():
            first, second, _ = sorted(counts, reverse=True)
            if 1 - beta_law(first + 1, second + 1).cdf(0.5) >= threshold or used == n:
                mean, square = mean + chance * used, square + chance * used * used
                if counts[0] == first:
                    right += chance / counts.count(first)
            else:
                states[counts] = chance
    return mean, math.sqrt(square - mean * mean), right


def test_adaptive_consistency_uses_as_many_samples_as_the_enumeration_says() -> None:
    mean, deviation, right = expected_run(P, 0.95, 12)
    trials = 500
    runs = answers("adaptive_consistency:n=12", tools(policy(P)), trials)
    used = [run.trace["samples"] for run in runs]
    assert within(sum(used) / trials, mean, trials, deviation)
    assert within(sum(run.answer == "1" for run in runs) / trials, right, trials)
    assert all(run.trace["samples"] == len(run.candidates) for run in runs)


def test_unanimous_samples_stop_at_the_known_count_and_the_overshoot_of_a_wave_is_counted() -> None:
    same = tools(["Answer: 5"])
    one = answer("adaptive_consistency", same)
    assert (one.answer, one.trace["samples"], one.trace["overshoot"], one.trace["settled"]) == ("5", 4, 0, True)
    wave = answer("adaptive_consistency:wave=3", same)
    assert (wave.trace["samples"], wave.trace["overshoot"]) == (6, 2)
    assert answer("adaptive_consistency:threshold=0.99", same).trace["samples"] == 6  # 1 − 2^−7 ≥ 0.99
    assert answer("adaptive_consistency:n=3", same).trace == {
        "votes": {"5": 3},
        "unparsed": 0,
        "entropy": 0.0,
        "samples": 3,
        "settled": False,
        "overshoot": 0,
    }
    nothing = answer("adaptive_consistency:n=7", tools(["hm"]))
    assert (nothing.answer, nothing.trace["samples"], nothing.trace["settled"]) == (None, 7, False)


def test_the_replay_of_an_order_is_what_the_strategy_does() -> None:
    mixed = {"1": 0.45, "2": 0.35, "?": 0.2}
    for wave in (1, 4):
        for seed in range(25):
            run = answer(f"adaptive_consistency:n=20,wave={wave}", tools(policy(mixed)), seed=seed)
            pool = answer("self_consistency:n=20", tools(policy(mixed)), seed=seed)
            keys = [candidate.answer for candidate in pool.candidates]
            chosen = [float(key == run.answer) for key in keys]
            order = np.arange(20)[None, :]
            (found,), (used,) = replay(keys, chosen, order, wave=wave)
            one_by_one = replay(keys, chosen, order)[1][0]
            assert (used, used - one_by_one) == (run.trace["samples"], run.trace["overshoot"])
            assert found == 1.0 if run.trace["settled"] else found > 0  # the vote's winner, or one of several
            assert [c.text for c in run.candidates] == [c.text for c in pool.candidates][:used]


def test_the_expectation_over_orders_equals_enumeration() -> None:
    keys: list[str | None] = ["a", "a", "a", "a", "b", None, "b"]
    grades = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    runs = [[keys[i] for i in order] for order in itertools.permutations(range(7))]
    stops = [settled_at(run, 0.8) or 7 for run in runs]
    used = sum(stops) / len(stops)
    votes = [Counter(run[:stop]) for run, stop in zip(runs, stops, strict=True)]
    right = sum(vote["a"] > vote["b"] for vote in votes) / len(votes)  # never equal at the end
    found = expected_adaptive(keys, grades, threshold=0.8, orders=3000)
    assert abs(found.samples - used) < 3 * found.samples_se
    assert abs(found.accuracy - right) < 3 * found.accuracy_se + 1e-9
    assert found == expected_adaptive(keys, grades, threshold=0.8, orders=3000)
    waves = expected_adaptive(keys, grades, threshold=0.8, wave=3, orders=500)
    assert waves.samples > found.samples
    assert waves.overshoot > 0


# --- budgets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        "self_consistency:n=8",
        "best_of_n:n=8",
        "adaptive_consistency:n=8,wave=3,threshold=0.999",
        "self_consistency:n=8,diversity=wording",
    ],
)
def test_a_spent_budget_ends_with_the_best_so_far(spec: str) -> None:
    replies = ["Answer: 1", "Answer: 2", "Answer: 2", "Answer: 3", "Answer: 2"]
    given, engine = purse(lambda question, sample, seed: replies[sample % 5], 5)
    found = answer(spec, given)
    assert len(found.candidates) == 5 == engine.used
    if "wording" not in spec:
        assert [c.completion.sample for c in found.candidates] == [0, 1, 2, 3, 4]
        assert found.answer == ("1" if "best" in spec else "2")
    empty, _ = purse(["Answer: 1"], 0)
    with pytest.raises(BudgetSpentError):
        answer(spec, empty)


def test_without_a_budget_for_the_verifier_votes_and_first_answers_remain() -> None:
    given = tools(["hm", "Answer: 1", "Answer: 2", "Answer: 2"], verifiers=as_verifiers(poor=Poor()))
    assert answer("self_consistency:n=4,vote=verifier,verifier=poor", given).answer == "2"
    best = answer("best_of_n:n=4,verifier=poor", given)
    assert (best.answer, best.trace["unscored"]) == ("1", 4)


def test_a_trace_that_a_watch_ended_is_not_asked_for_its_answer() -> None:
    import asyncio

    asked: list[str] = []

    class Counting(ScriptedEngine):
        async def generate(self, prompt: Prompt, *args: object, **kwargs: object) -> list[Completion]:
            asked.append(prompt.begun)
            return await super().generate(prompt, *args, **kwargs)  # type: ignore[arg-type]

    given = tools(Counting({"Q": "a b c"}))
    prompt = replace(PROMPT, prefix="Well,", cue="So:")
    (ended,) = asyncio.run(given.sample(prompt, Sampling(), seed=0, watch=lambda event: event.index == 1))
    assert (ended.text, asked) == ("a b", ["Well,"])
