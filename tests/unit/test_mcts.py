"""MCTS: finds the deep best leaf behind misleading shallow values, selects through all levels, returns all leaves."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from step_worlds import Judge, Oracle, Recorded, answer, at_random, by_turns, digits, letters, metered, tools, written

from posttrain.core.types import Answer, Prompt, Score

DEPTH, BEST = 9, "babbabbab"


def misleading(text: str) -> float:
    """Shallow states look the better the further they are from the best leaf; what a finished reply is worth is true."""
    path = letters(text)
    if len(path) < DEPTH:
        return path.count("a") / (len(path) + 1) * 0.8
    common = next((i for i in range(DEPTH) if path[i] != BEST[i]), DEPTH)
    return 0.1 + 0.9 * common / DEPTH


def rest_at_random(prompt: Prompt, sample: int, seed: int) -> str:
    """Steps of one call are a and b by turns; what follows the first letter is drawn."""
    path, said = letters(written(prompt)), ""
    while len(path) < DEPTH:
        letter = by_turns(path, sample, seed) if not said else at_random(path, sample, seed)
        path, said = path + letter, said + letter + "\n"
    return said + f"Answer: {digits(path)}"


def test_the_best_leaf_behind_misleading_shallow_values() -> None:
    """Greedy descent by value and a beam of 4 both follow them; MCTS, with the same verifier, does not."""

    def world() -> object:
        return tools(Recorded({}, respond=rest_at_random), v=Judge(misleading))

    settings = f"verifier=v,steps={DEPTH + 1}"
    descent = answer(f"diverse_tree_search:n=1,width=2,{settings}", world())
    greedy = answer(f"beam_search:width=1,expand=2,{settings}", world())
    beam = answer(f"beam_search:width=4,expand=2,{settings}", world())
    for found in (descent, greedy, beam):
        assert found.answer is not None
        assert found.answer[0] == "1"  # all lost at the first step
        assert misleading(found.text) == 0.1
    for policy in ("uct", "puct"):
        found = answer(f"mcts:simulations=150,expand=2,exploration=0.5,policy={policy},{settings}", world())
        assert found.answer == digits(BEST)
        assert found.trace["depth"] >= DEPTH  # selection went through the levels


def test_it_draws_less_than_enumeration() -> None:
    engine = Recorded({}, respond=rest_at_random)
    found = answer(
        "mcts:simulations=400,expand=2,exploration=0.3,verifier=v,accept=0.99", tools(engine, v=Judge(misleading))
    )
    assert found.answer == digits(BEST)
    assert found.trace["simulations"] < 64  # one reply a simulation, of 512 there are
    assert found.trace["generations"] == len(engine.given)


@pytest.mark.parametrize("policy", ["uct", "puct"])
@pytest.mark.parametrize("leaf", ["rollout", "value"])
def test_values_on_another_scale_give_the_same_search(policy: str, leaf: str) -> None:
    """Values are stretched to [0, 1] before they meet the exploration term."""

    def run(value: Callable[[str], float]) -> Answer:
        given = tools(Recorded({}, respond=rest_at_random), v=Judge(value))
        return answer(f"mcts:simulations=60,expand=2,policy={policy},leaf={leaf},verifier=v", given)

    plain, stretched = run(misleading), run(lambda text: 100 * misleading(text) - 50)
    assert [c.text for c in plain.candidates] == [c.text for c in stretched.candidates]
    assert plain.trace["visits"] == stretched.trace["visits"]
    assert plain.text == stretched.text
    low, high = plain.trace["values"]
    assert stretched.trace["values"] == pytest.approx([100 * low - 50, 100 * high - 50])


def test_all_finished_replies_are_candidates_with_their_values() -> None:
    engine = Recorded({}, respond=rest_at_random)
    found = answer("mcts:simulations=40,expand=2,verifier=v", tools(engine, v=Judge(misleading)))
    ended = [c for c in engine.given if c.stopped_by is None]
    assert found.trace["finished"] == len(found.candidates) == len(ended)
    assert list(found.scores) == [misleading(candidate.text) for candidate in found.candidates]
    assert sum(found.trace["visits"]) == found.trace["simulations"] == 40  # every simulation ends in one of them
    assert all(candidate.answer == digits(letters(candidate.text)) for candidate in found.candidates)


def test_more_simulations_only_add() -> None:
    few, many = (
        answer(f"mcts:simulations={n},expand=2,verifier=v", tools(Recorded({}, respond=rest_at_random), v=Judge(misleading)))
        for n in (10, 30)
    )
    assert [candidate.text for candidate in many.candidates[: len(few.candidates)]] == [c.text for c in few.candidates]
    assert len(many.candidates) > len(few.candidates)


def bandit(prompt: Prompt, sample: int, seed: int) -> str:
    """One step: three finished replies, drawn by turns."""
    return "Answer: " + "123"[sample % 3]


def test_uct_is_the_bandit_rule() -> None:
    """On one level with fixed values the visits are those of UCB1, worked out apart."""
    values = {"1": 0.2, "2": 0.9, "3": 0.5}
    found = answer(
        "mcts:simulations=50,expand=3,exploration=0.8,verifier=v",
        tools(Recorded({}, respond=bandit), v=Judge(lambda text: values[text[-1]])),
    )
    scaled, visits = [0.0, 1.0, (0.5 - 0.2) / 0.7], [0, 0, 0]
    for n in range(50):
        if 0 in visits:
            visits[visits.index(0)] += 1
            continue
        rank = [q + 0.8 * math.sqrt(math.log(n) / v) for q, v in zip(scaled, visits, strict=True)]
        visits[rank.index(max(rank))] += 1
    assert found.trace["visits"] == visits
    assert found.trace["generations"] == 3  # a known leaf is not paid for again


def test_puct_gives_the_often_drawn_more_visits() -> None:
    """Equal values: visits follow the priors, the shares of the draws."""

    def skewed(prompt: Prompt, sample: int, seed: int) -> str:
        return "Answer: " + "1112"[sample]

    found = answer(
        "mcts:simulations=80,expand=4,policy=puct,verifier=v", tools(Recorded({}, respond=skewed), v=Judge(lambda t: 0.5))
    )
    assert found.trace["duplicates"] == 2
    assert found.trace["visits"][0] / 80 == pytest.approx(0.75, abs=0.03)


def test_the_ways_to_choose() -> None:
    """Six replies at one level: 1 three times (different words), 2 twice, 3 once."""
    replies = ["w0 Answer: 1", "w1 Answer: 1", "w2 Answer: 1", "w3 Answer: 2", "w4 Answer: 2", "w5 Answer: 3"]
    values = [0.3, 0.3, 0.3, 0.6, 0.6, 0.9]

    def found(choose: str) -> Answer:
        engine = Recorded({}, respond=lambda prompt, sample, seed: replies[sample])
        judge = Oracle(lambda text: Score(value=values[int(text[1])]))
        return answer(f"mcts:simulations=60,expand=6,exploration=0.3,verifier=v,choose={choose}", tools(engine, v=judge))

    assert {choose: found(choose).answer for choose in ("best", "vote", "weighted", "visits")} == {
        "best": "3",
        "vote": "1",  # 3 votes
        "weighted": "2",  # 0.9 = 0.9 < 1.2
        "visits": "3",
    }
    assert found("visits").trace["choose"] == "visits"
    assert found("best").trace["oracle"] is True


def test_every_expansion_and_rollout_is_paid_and_bounded() -> None:
    engine = Recorded({}, respond=rest_at_random)
    meter, account = metered(engine)
    found = answer("mcts:simulations=20,expand=3,rollouts=2,verifier=v", tools(meter, v=Judge(misleading)))
    assert found.trace["generations"] == len(engine.given) <= 20 * (3 + 2)
    new = sum(len(completion.tokens) + (completion.stopped_by is None) for completion in engine.given)
    assert account.total.usage.generated == new


def test_a_value_tree_without_a_finished_reply_writes_its_favourite_to_the_end() -> None:
    engine = Recorded({}, respond=rest_at_random)
    found = answer("mcts:simulations=4,expand=2,leaf=value,verifier=v", tools(engine, v=Judge(misleading)))
    assert found.trace["finished"] == len(found.candidates) == 1
    assert found.answer is not None
    assert len(engine.given) == found.trace["generations"]


def test_likelihood_is_the_default_value() -> None:
    found = answer("mcts:simulations=5", tools(Recorded({}, respond=rest_at_random)))
    assert found.scores == pytest.approx([math.exp(-1.0)] * len(found.candidates))
    assert found.trace["verifier"] == "likelihood"
