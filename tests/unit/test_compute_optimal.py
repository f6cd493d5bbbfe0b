"""Allocation: the knapsack against brute force, expectations against enumeration, the table on disk, the strategy."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from simulated import Given, answer, as_verifiers, drawn, purse, tools

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.seeds import rng
from posttrain.core.specs import build
from posttrain.stats.allocation import Pool, allocate, assess, difficulty_of, fit, uniform
from posttrain.stats.allocation_table import Table, parse_table
from posttrain.stats.vote import expected_majority

EASY, HARD = {"1": 0.97, "2": 0.03}, {"1": 0.46, "2": 0.3, "3": 0.24}


def pool(probabilities: dict[str, float], size: int, seed: int, **more: object) -> Pool:
    keys = tuple(drawn(probabilities, "pool", i, seed=seed) for i in range(size))
    return Pool(keys=keys, grades=tuple(float(k == "1") for k in keys), tokens=(10.0,) * size, prompt=20.0, **more)  # type: ignore[arg-type]


def pools(count: int, size: int = 32, start: int = 0) -> list[Pool]:
    return [pool(EASY if i % 2 else HARD, size, start + i) for i in range(count)]


def test_the_allocation_is_the_best_of_all() -> None:
    source = rng(1, "knapsack")
    for _ in range(60):
        bins, choices = source.randrange(1, 5), source.randrange(1, 5)
        shares = [source.random() for _ in range(bins)]
        accuracy = [[source.random() for _ in range(choices)] for _ in range(bins)]
        cost = [[source.randrange(1, 30) * 1.0 for _ in range(choices)] for _ in range(bins)]
        budget = 12.0 * sum(shares)

        def worth(chosen: Sequence[int], table: list[list[float]], shares: list[float] = shares) -> float:
            return math.fsum(s * table[b][c] for b, (s, c) in enumerate(zip(shares, chosen, strict=True)))

        fitting = [c for c in itertools.product(range(choices), repeat=bins) if worth(c, cost) <= budget]
        if not fitting:
            with pytest.raises(ConfigError, match="below the cheapest allocation"):
                allocate(shares, accuracy, cost, budget)
            continue
        found = allocate(shares, accuracy, cost, budget)
        assert worth(found, cost) <= budget * (1 + 1e-6)
        assert worth(found, accuracy) == pytest.approx(max(worth(c, accuracy) for c in fitting))


def test_difficulty_by_hand() -> None:
    assert difficulty_of("entropy", ["a"] * 4) == 0.0
    assert difficulty_of("entropy", ["a", "b", "c", "d"]) == pytest.approx(1.0)
    assert difficulty_of("entropy", ["a", "a", "b", "b"]) == pytest.approx(0.5)
    assert difficulty_of("entropy", [None] * 4) == pytest.approx(1.0)  # unparsed samples do not agree
    assert difficulty_of("entropy", ["a"]) == 0.0
    assert difficulty_of("entropy", [None]) == 1.0
    assert difficulty_of("score", ["a", "b"], [0.2, 0.4]) == pytest.approx(-0.3)


def test_disagreement_by_hand() -> None:
    assert difficulty_of("agreement", ["a", "b", "a", None]) == 2.0
    assert difficulty_of("agreement", ["a"] * 4) == 0.0
    assert difficulty_of("agreement", [None] * 4) == 4.0  # four unparsed samples agree on nothing


def test_uniform_expectations_equal_the_exact_ones() -> None:
    given = pools(6)
    for n in (1, 8, 32):
        for pooled, (accuracy, tokens) in zip(given, uniform(given, "majority", n, orders=4000), strict=True):
            exact = expected_majority(pooled.keys, pooled.grades, n)
            assert abs(accuracy - exact) < 3 * math.sqrt(max(exact * (1 - exact), 1e-12) / 4000) + 1e-9
            assert tokens == 20 + 10 * n
    values = (0.1, 0.9, 0.4, 0.9)
    small = Pool(keys=("1", "2", "1", "1"), grades=(1, 0, 1, 1), tokens=(1, 2, 3, 4), prompt=5, values=values, scoring=7)
    ((best, tokens),) = uniform([small], "best", 2)
    chosen = []
    for pair in itertools.combinations(range(4), 2):
        top = [i for i in pair if values[i] == max(values[j] for j in pair)]
        chosen.append(sum(small.grades[i] for i in top) / len(top))
    assert best == pytest.approx(sum(chosen) / len(chosen))
    assert tokens == pytest.approx(2 * 2.5 + 5 + 2 * 7)
    ((weighted, _),) = uniform([small], "weighted", 3)
    sums = [sum(values[i] * (1 if small.grades[i] else -1) for i in t) for t in itertools.combinations(range(4), 3)]
    assert weighted == pytest.approx(sum(1.0 if s > 1e-12 else 0.5 if abs(s) <= 1e-12 else 0.0 for s in sums) / 4)


def test_the_expectation_of_a_table_is_enumerated_over_all_orders() -> None:
    question = Pool(keys=("1", "1", "2", "3", "1", None), grades=(1, 1, 0, 0, 1, 0), tokens=(1, 2, 3, 4, 5, 6), prompt=10)
    table = fit([question], budget=60, pilot=2, sizes=(2, 6), bins=8)
    assert [row.n for row in table.rows] == [2, 6]
    accuracy = tokens = 0.0
    orders = list(itertools.permutations(range(6)))
    for order in orders:
        two = [question.keys[i] for i in order[:2]]
        if len(set(two)) == 1 and None not in two:
            accuracy += two[0] == "1"
            tokens += 10 + sum(question.tokens[i] for i in order[:2])
        else:
            accuracy += 1.0  # the majority of all six
            tokens += 20 + 21
    ((found, paid),) = assess(table, [question])
    assert found == pytest.approx(accuracy / len(orders))
    assert paid == pytest.approx(tokens / len(orders))
    assert (table.accuracy, table.tokens) == pytest.approx((found, paid))


def test_hard_questions_get_more_and_held_out_ones_gain_over_uniform_spending() -> None:
    table = fit(pools(60), budget=220, pilot=4, sizes=(4, 8, 16, 32), bins=3)
    sizes = [row.n for row in table.rows]
    assert sizes == sorted(sizes)
    assert sizes[0] == 4 < sizes[-1]
    assert table.tokens <= 220
    held = pools(100, start=1000)
    mean = [sum(values) / len(held) for values in zip(*assess(table, held), strict=True)]
    even = [sum(values) / len(held) for values in zip(*uniform(held, "majority", 20), strict=True)]
    assert even[1] == 220
    assert mean[1] == pytest.approx(220, rel=0.05)
    assert mean[0] > even[0] + 0.02
    assert sum(row.share for row in table.rows) == pytest.approx(1.0)


def test_what_cannot_be_fitted_is_said() -> None:
    with pytest.raises(ConfigError, match="below the cheapest allocation"):
        fit(pools(4), budget=10)
    with pytest.raises(ConfigError, match="which has 8 samples"):
        fit(pools(4, size=8), budget=1000)
    with pytest.raises(ConfigError, match="need a verifier's scores"):
        fit(pools(4), budget=1000, rules=("best",))
    with pytest.raises(DataError, match="no questions"):
        fit([], budget=1000)
    with pytest.raises(ConfigError, match="some are negative"):
        fit([pool(EASY, 32, 0, values=(-1.0,) * 32)], budget=1000, rules=("weighted",))


def written(tmp_path: Path, **changes: object) -> str:
    values = {
        "kind": "posttrain allocation",
        "version": 1,
        "pilot": 2,
        "difficulty": "entropy",
        "verifier": None,
        "rows": [
            {"upto": 0.0, "rule": "majority", "n": 2, "share": 0.5, "accuracy": 0.9, "tokens": 40.0},
            {"upto": None, "rule": "majority", "n": 5, "share": 0.5, "accuracy": 0.5, "tokens": 90.0},
        ],
        "accuracy": 0.7,
        "tokens": 65.0,
        "questions": 10,
    } | changes
    path = tmp_path / "table.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return f"compute_optimal:table={path},pilot=2"


def test_the_table_survives_the_disk() -> None:
    table = fit(pools(10), budget=300, bins=3)
    assert parse_table(table.to_json(), "t") == table
    assert isinstance(table, Table)


def test_easy_questions_stop_at_the_pilot_and_hard_ones_go_on(tmp_path: Path) -> None:
    spec = written(tmp_path)
    easy = answer(spec, tools(["Answer: 4"]))
    assert (easy.answer, easy.trace["samples"], easy.trace["bin"], easy.trace["difficulty"]) == ("4", 2, 0, 0.0)
    replies = ["Answer: 4", "Answer: 5", "Answer: 5", "Answer: 6", "Answer: 4"]
    hard = answer(spec, tools(replies))
    assert (hard.trace["samples"], hard.trace["bin"]) == (5, 1)
    assert [c.text for c in hard.candidates] == replies  # the pilot samples are the first of the pool
    assert hard.answer == answer("self_consistency:n=5", tools(replies)).answer


def test_rules_and_difficulty_by_a_verifier(tmp_path: Path) -> None:
    rows = [
        {"upto": -0.5, "rule": "best", "n": 2, "share": 0.5, "accuracy": 0.9, "tokens": 40.0},
        {"upto": None, "rule": "weighted", "n": 4, "share": 0.5, "accuracy": 0.5, "tokens": 90.0},
    ]
    spec = written(tmp_path, difficulty="score", verifier="given", rows=rows)
    assert build(spec, "posttrain.test_time", "strategy").verifiers == ("given",)
    replies = ["Answer: 4", "Answer: 5", "Answer: 6", "Answer: 6"]
    best = answer(spec, tools(replies, verifiers=as_verifiers(given=Given([0.5, 0.9]))))
    assert (best.answer, best.trace["rule"], best.trace["samples"]) == ("5", "best", 2)
    more = Given([0.1, 0.4, 0.3, 0.3])
    weighted = answer(spec, tools(replies, verifiers=as_verifiers(given=more)))
    assert (weighted.answer, weighted.trace["rule"], weighted.trace["difficulty"]) == ("6", "weighted", pytest.approx(-0.25))
    assert more.at == 4  # no sample is scored twice


def test_difficulty_by_how_many_samples_a_verifier_accepts(tmp_path: Path) -> None:
    rows = [
        {"upto": 1.0, "rule": "best", "n": 2, "share": 0.5, "accuracy": 0.9, "tokens": 40.0},
        {"upto": None, "rule": "best", "n": 4, "share": 0.5, "accuracy": 0.5, "tokens": 90.0},
    ]
    spec = written(tmp_path, difficulty="accepted", accept=0.8, verifier="given", rows=rows)
    replies = ["Answer: 4", "Answer: 5", "Answer: 6", "Answer: 7"]
    one = answer(spec, tools(replies, verifiers=as_verifiers(given=Given([0.5, 0.9]))))
    assert (one.answer, one.trace["difficulty"], one.trace["samples"]) == ("5", 1.0, 2)
    none = answer(spec, tools(replies, verifiers=as_verifiers(given=Given([0.5, 0.7, 0.9, 0.1]))))
    assert (none.answer, none.trace["difficulty"], none.trace["samples"]) == ("6", 2.0, 4)
    assert difficulty_of("accepted", ["a", "b", None], [1.0, 0.99, 1.0]) == 1.0
    with pytest.raises(ConfigError, match="names no verifier"):
        answer(written(tmp_path, difficulty="accepted"), tools(["Answer: 1"]))


def test_a_missing_or_foreign_table_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no table nowhere\.json: give table=FILE"):
        answer("compute_optimal:table=nowhere.json", tools(["Answer: 1"]))
    foreign = tmp_path / "foreign.json"
    foreign.write_text('{"rows": []}', encoding="utf-8")
    with pytest.raises(ConfigError, match="is not an allocation table"):
        answer(f"compute_optimal:table={foreign}", tools(["Answer: 1"]))
    foreign.write_text("pilot = 4", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not JSON"):
        answer(f"compute_optimal:table={foreign}", tools(["Answer: 1"]))
    for changes, message in [
        ({"version": 2}, "has version 2"),
        ({"rows": []}, "is damaged"),
        ({"pilot": 9}, "is damaged"),
        ({"colour": "red"}, "is damaged"),
        ({"difficulty": "score"}, "names no verifier"),
        ({"rows": [{"upto": 0.5, "rule": "majority", "n": 2, "share": 1, "accuracy": 1, "tokens": 1}]}, "is damaged"),
    ]:
        with pytest.raises(ConfigError, match=message):
            answer(written(tmp_path, **changes), tools(["Answer: 1"]))
    with pytest.raises(ConfigError, match="was fitted with pilot=2: set pilot=2"):
        answer(written(tmp_path).replace("pilot=2", "pilot=3"), tools(["Answer: 1"]))


def test_compute_optimal_under_a_budget(tmp_path: Path) -> None:
    for budget in (1, 3):
        given, spent = purse(lambda question, sample, seed: f"Answer: {[4, 5, 5, 5, 5][sample]}", budget)
        found = answer(written(tmp_path), given)
        assert (found.trace["samples"], spent.used) == (budget, budget)
        assert found.answer == ("4" if budget == 1 else "5")
