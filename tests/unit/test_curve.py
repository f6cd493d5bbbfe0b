"""`posttrain curve`: pools read, priced, scored and replayed; figures, sentences, and one sentence for each mistake."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from posttrain.cli.main import app
from posttrain.core.errors import ConfigError, DataError, PosttrainError
from posttrain.core.files import read_json
from posttrain.core.types import ModelShape
from posttrain.engines.scripted import ScriptedEngine
from posttrain.ledger.store import load_ledger
from posttrain.pipeline.curve import CurveRequest, trace_curves
from posttrain.pipeline.curve_rules import RULES, build_rule
from posttrain.pipeline.evaluate import Evaluation, evaluate
from posttrain.pipeline.methods import build_strategy
from posttrain.pipeline.pool_scores import verifier_scores
from posttrain.pipeline.pools import Source, likelihoods, read_pool, voted_scores
from posttrain.report.curve_words import curve_sentences, equal_cost_sentence, reach_sentence
from posttrain.stats.allocation_table import parse_table
from posttrain.stats.vote import expected_majority
from posttrain.tasks.registry import load_task

TASK = "reasoning_gym/chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=1"
SHAPE = ModelShape(parameters=1000, matmul_params=800, head_params=100, layers=2, attention_width=16)
BIG = ModelShape(parameters=4000, matmul_params=3200, head_params=100, layers=4, attention_width=32)


def make(
    folder: Path, chance: float, *, strategy: str = "sample:n=8", shape: ModelShape | None = SHAPE, questions: int = 30,
    prompt: str = "zero_shot",
) -> Path:  # fmt: skip
    """A pool of a policy that is right with this chance, in words of different number; likelier when right."""
    task = load_task(TASK, sizes={"test": questions})
    examples = task.examples("test")
    by_question = {example.question: example.answer for example in examples}

    def reply(asked: str, sample: int, seed: int) -> str:
        rng = random.Random(f"{asked}/{sample}/{chance}")
        gold = next(answer for question, answer in by_question.items() if question in asked)
        text = gold if rng.random() < chance else str(rng.randrange(90, 93)) if rng.random() < 0.9 else "none"
        return "so " * rng.randrange(1, 6) + f"Answer: {text}"

    def logprobs(asked: str, words: Sequence[str]) -> list[float]:
        return [-0.1 if words[-1].strip() not in ("90", "91", "92") else -0.2] * len(words)

    engine = ScriptedEngine(reply, shape=shape, logprobs=logprobs, fingerprint=f"policy-{chance}")
    evaluation = Evaluation(stage="eval", task=task, examples=examples, prompt=prompt, strategy=strategy, model="m", seed=0)
    evaluate(evaluation, engine, folder, title="pool")
    return folder


def request(tmp_path: Path, *strategies: str, **more: Any) -> CurveRequest:
    values: dict[str, Any] = {"sizes": [1, 2, 4, 8], "out": tmp_path / "out", "draws": 300} | more
    return CurveRequest(source=Source(task=TASK, limit=30), strategies=strategies, **values)


def points(found: dict[str, Any], strategy: str, model: str | None = None) -> list[dict[str, Any]]:
    return next(
        curve["points"] for curve in found["curves"] if curve["strategy"] == strategy and model in (None, curve["model"])
    )


def test_a_pool_costs_what_its_ledger_says(tmp_path: Path) -> None:
    folder = make(tmp_path / "pool", 0.6)
    pool = read_pool(folder, "m", load_task(TASK, sizes={"test": 30}))
    assert (pool.n, pool.parameters, pool.priced) == (8, 1000, True)
    assert read_json(folder / "engine.json")["shape"] == asdict(SHAPE)
    for line in (folder / "ledger.jsonl").read_text().splitlines():
        row = json.loads(line)
        item, paid = pool.items[row["example"]], row["cost"]["policy"]
        assert item.prompt_tokens == paid["prompt"]
        assert sum(item.tokens) == pytest.approx(paid["generated"])
        assert item.prompt_flops + sum(item.flops) == pytest.approx(paid["flops"], rel=1e-12)
        assert [c["tokens"] for c in row["candidates"]] == list(item.tokens)
        assert {c["mean_logprob"] for c in row["candidates"]} <= {-0.1, -0.2}
    assert 0 < pool.unparsed_rate < 0.2


def test_two_calls_per_sample_are_priced_in_full(tmp_path: Path) -> None:
    folder = make(tmp_path / "pool", 0.6, prompt="zero_shot_cot")
    pool = read_pool(folder, "m", load_task(TASK, sizes={"test": 30}))
    for line in (folder / "ledger.jsonl").read_text().splitlines():
        row = json.loads(line)
        item, paid = pool.items[row["example"]], row["cost"]["policy"]
        assert paid["calls"] == 9
        assert item.prompt_tokens + sum(item.tokens) == pytest.approx(paid["prompt"] + paid["generated"])
        assert item.prompt_flops + sum(item.flops) == pytest.approx(paid["flops"])
        # the first stage's prompt: within the cue's few words of what the question has
        assert 0 <= item.prompt_tokens - len(load_task(TASK, sizes={"test": 30}).examples("test")[0].question.split()) < 40


def test_every_strategy_and_n_from_one_pool(tmp_path: Path) -> None:
    folder = make(tmp_path / "pool", 0.6)
    pool = read_pool(folder, "m", load_task(TASK, sizes={"test": 30}))
    asked = (
        "self_consistency",
        "pass_at_k",
        "best_of_n",
        "adaptive_consistency:wave=2",
        "compute_optimal:pilot=2",
        "verified_search:feedback=false,verifier=exact,wave=2",
        "sample",
    )
    found = trace_curves(request(tmp_path, *asked, pools=[f"m={folder}"]))
    assert found["unit"] == "flops"
    assert found["questions"] == 30
    for point in points(found, "self_consistency"):
        values = [expected_majority(item.keys, item.right, point["n"]) for item in pool.items.values()]
        assert point["accuracy"] == pytest.approx(sum(values) / 30)
        assert point["ci95"][0] < point["accuracy"] < point["ci95"][1]
        assert point["samples"] == point["n"]
    assert [point["n"] for point in points(found, "compute_optimal:pilot=2")] == [2, 4, 8]
    assert points(found, "sample")[0]["accuracy"] == pytest.approx(points(found, "self_consistency")[0]["accuracy"])
    # the likelihood knows who is right: best of n is near the oracle, but for what is unparsed
    best, oracle = points(found, "best_of_n")[-1]["accuracy"], points(found, "pass_at_k")[-1]["accuracy"]
    assert points(found, "self_consistency")[-1]["accuracy"] < best <= oracle
    assert [curve["oracle"] for curve in found["curves"]] == [name in ("pass_at_k", asked[5]) for name in asked]
    # with the gold answer it is right where any sample is, and it does not draw them all
    searched = points(found, asked[5])
    for point, bound in zip(searched, points(found, "pass_at_k"), strict=True):
        assert point["accuracy"] == pytest.approx(bound["accuracy"], abs=4 * point["monte_carlo_error"] + 1e-9)
    assert searched[-1]["samples"] < 8
    adaptive = points(found, "adaptive_consistency:wave=2")
    assert adaptive[-1]["samples"] < 8
    assert {one["n"] for one in found["savings"] if one["strategy"] == asked[4]} == {2, 4, 8}
    assert {one["n"] for one in found["savings"] if one["strategy"] == asked[5]} == {1, 2, 4, 8}
    one = next(one for one in found["savings"] if one["unit"] == "samples" and one["n"] == 8)
    assert one["cost_ratio"] == pytest.approx(adaptive[-1]["samples"] / 8)
    assert one["difference"] == pytest.approx(adaptive[-1]["accuracy"] - points(found, "self_consistency")[-1]["accuracy"])


def test_the_strategy_reads_the_table_that_the_curve_fitted(tmp_path: Path) -> None:
    """It spends on each question what the replay says of its samples in their own order, and is charged the same tokens."""
    folder = make(tmp_path / "pool", 0.6)
    found = trace_curves(request(tmp_path, "compute_optimal:pilot=2", pools=[f"m={folder}"]))
    (curve,) = found["curves"]
    assert curve["tables"].keys() == {"2", "4", "8"}
    path = tmp_path / "out" / curve["tables"]["8"]
    table = parse_table(path.read_text(), "here")
    assert (table.pilot, table.difficulty, table.questions) == (2, "agreement", 30)
    assert len({row.n for row in table.rows}) > 1
    run = load_ledger(make(tmp_path / "run", 0.6, strategy=f"compute_optimal:pilot=2,table={path}"))
    pool = read_pool(folder, "m", load_task(TASK, sizes={"test": 30}))
    for row in run.rows:
        item = pool.items[row.example]
        first, second = item.keys[:2]
        level = 0 if first is None and second is None else 2 if first == second else 1
        wanted = table.row(float(2 - level))[1].n
        assert (row.trace["n"], len(row.candidates)) == (wanted, wanted)
        paid = (2 if wanted > 2 else 1) * item.prompt_tokens + sum(item.tokens[:wanted])
        assert row.cost["policy"]["prompt"] + row.cost["policy"]["generated"] == pytest.approx(paid)


@pytest.mark.parametrize("name", RULES)
def test_rules_have_the_settings_of_the_strategies(name: str) -> None:
    """Under the same names, with the same defaults; what a replay fits with is its own."""
    own = {"compute_optimal": {"verifier", "accept", "splits"}}.get(name, set())
    if name == "pass_at_k":
        return
    strategy, rule = build_strategy(name), build_rule(name)
    for field in dataclasses.fields(rule):
        if field.name not in own:
            assert getattr(strategy, field.name) == getattr(rule, field.name), field.name


def test_a_verifier_with_a_model_of_its_own_needs_no_policy(tmp_path: Path) -> None:
    folder = make(tmp_path / "pool", 0.6)
    spec = "best_of_n:verifier=(judge:model=(scripted:replies=5))"
    (curve,) = trace_curves(request(tmp_path, spec, pools=[str(folder)]))["curves"]
    assert curve["points"][-1]["tokens"] > curve["points"][0]["tokens"]
    with pytest.raises(ConfigError, match="comparing them with each other"):
        trace_curves(request(tmp_path, "best_of_n:verifier=tournament", pools=[str(folder)]))
    with pytest.raises(ConfigError, match="runs the model of pool"):
        trace_curves(request(tmp_path, "best_of_n:verifier=judge", pools=[str(folder)]))


def test_verifier_scores_are_made_once_kept_and_priced(tmp_path: Path) -> None:
    folder = make(tmp_path / "pool", 0.6)
    task = load_task(TASK, sizes={"test": 30})
    pool = read_pool(folder, "m", task)
    examples = {example.id: example for example in task.examples("test")}
    engine = ScriptedEngine({}, shape=SHAPE, logprobs=lambda asked, words: [-0.5] * len(words))
    made = verifier_scores(pool, "likelihood", task, examples, engine)
    assert engine.calls == 30 * 8
    first = next(iter(made.values()))
    assert first.values == pytest.approx([2.718281828**-0.5] * 8)
    assert all(tokens > 0 for tokens in first.tokens)
    assert all(flops > 0 for flops in first.flops)
    (path,) = folder.glob("scores-*.jsonl")
    whole = path.read_bytes()
    assert verifier_scores(pool, "likelihood", task, examples, engine) == made
    assert engine.calls == 30 * 8
    lines = whole.split(b"\n")
    path.write_bytes(b"\n".join(lines[:11]) + b"\n" + lines[11][:20])  # killed in the middle of a line
    assert verifier_scores(pool, "likelihood", task, examples, engine) == made
    assert engine.calls == 30 * 8 + 20 * 8
    assert path.read_bytes() == whole
    path.write_bytes(b"")  # killed before the first line
    assert verifier_scores(pool, "likelihood", task, examples, engine) == made
    path.write_bytes(lines[0] + b"\nnonsense\n")
    with pytest.raises(DataError, match="line 2: broken"):
        verifier_scores(pool, "likelihood", task, examples, engine)


def test_an_oracle_verifier_is_marked(tmp_path: Path) -> None:
    folder = make(tmp_path / "pool", 0.6)
    found = trace_curves(
        request(tmp_path, "best_of_n:verifier=exact", "pass_at_k", "best_of_n:verifier=rule", pools=[str(folder)])
    )
    assert [curve["oracle"] for curve in found["curves"]] == [True, True, False]
    exact, oracle = (points(found, name) for name in ("best_of_n:verifier=exact", "pass_at_k"))
    assert [point["accuracy"] for point in exact] == pytest.approx([point["accuracy"] for point in oracle])


def test_two_models_cross(tmp_path: Path) -> None:
    small, large = make(tmp_path / "small", 0.6), make(tmp_path / "large", 0.75, shape=BIG)
    found = trace_curves(request(tmp_path, "self_consistency", "best_of_n", pools=[f"small={small}", f"large={large}"]))
    reach = next(one for one in found["crossings"] if one["kind"] == "reach" and one["strategy"] == "self_consistency")
    assert (reach["model"], reach["reference"], reach["size_ratio"]) == ("small", "large", 4.0)
    costs = [point["flops"] for point in points(found, "self_consistency", "small")]
    rights = [point["accuracy"] for point in points(found, "self_consistency", "small")]
    target = points(found, "self_consistency", "large")[0]["accuracy"]
    at = next(i for i, right in enumerate(rights) if right >= target)
    assert costs[at - 1] < reach["cost"] <= costs[at]
    assert reach["ci95"][0] < reach["ratio"]
    told = curve_sentences(found)
    assert any(
        sentence.startswith("small with self_consistency equals large, a model 4.0 times larger (one sample: ")
        for sentence in told
    )
    assert any("small and large with self_consistency" in sentence for sentence in told)
    json.dumps(found, allow_nan=False)


def test_sentences_say_what_never_happens() -> None:
    base = {
        "kind": "reach", "unit": "flops", "model": "s", "strategy": "sc", "n": 16, "reference": "l", "size_ratio": 2.7,
        "target": 0.5, "reference_cost": 2e9, "cost": None, "ratio": None, "ci95": [0.5, None], "never": 1.0,
        "at_start": False, "best": 0.42,
    }  # fmt: skip
    assert reach_sentence(base) == (
        "s with sc does not reach l, a model 2.7 times larger (one sample: 50.0% at 2.00 G FLOPs) with up to 16 samples: "
        "42.0% at most."
    )
    reached = base | {"cost": 1e9, "ratio": 0.5, "ci95": [0.3, 0.9], "never": 0.01}
    assert reach_sentence(reached) == (
        "s with sc equals l, a model 2.7 times larger (one sample: 50.0% at 2.00 G FLOPs) at 1/2.0 of its FLOPs (1.00 G; "
        "interval [0.30, 0.90] of it); in 1.0% of the resamples it never does."
    )
    assert "3.0 times its FLOPs" in reach_sentence(reached | {"ratio": 3.0})
    equal = {
        "kind": "equal_cost", "unit": "tokens", "model": "s", "other": "l", "strategy": "sc", "span": [10.0, 100.0],
        "cost": None, "ci95": None, "above": False, "above_share": 0.1, "never": 1.0,
    }  # fmt: skip
    assert equal_cost_sentence(equal) == (
        "s and l with sc do not cross: at equal tokens, from 10 to 100, l is above throughout (at 100 in 90.0% of the "
        "resamples)."
    )
    assert "no tokens in common" in equal_cost_sentence(equal | {"span": None})
    crossed = equal_cost_sentence(
        equal | {"cost": 30.0, "ci95": [20.0, 50.0], "above": True, "above_share": 0.9, "never": 0.2}
    )
    assert crossed.startswith("s and l with sc cross at 30 [20, 50] tokens: beyond it, as far as 100, s is above")
    assert crossed.endswith("in 20.0% of the resamples they do not cross.")


MISTAKES = [
    (["tree_of_thoughts"], {}, "cannot replay strategy 'tree_of_thoughts'"),
    (["self_consistency:n=4"], {}, "leave 'n' out, a curve takes it from --n"),
    (["self_consistency:temperature=0.9"], {}, "no pool was drawn as the strategies ask"),
    (["self_consistency"], {"sizes": [1, 16]}, "has 8 samples a question: ask for --n up to 8"),
    (["self_consistency"], {"sizes": [0, 2]}, "give numbers of samples from 1"),
    (["compute_optimal"], {"sizes": [1, 2]}, "an n of at least its pilot's 4"),
    (["best_of_n:verifier=(likelihood)"], {}, None),
    (["adaptive_consistency:threshold=2"], {}, "threshold"),
    (["verified_search"], {}, "feedback=false"),
]


@pytest.mark.parametrize(("strategies", "more", "sentence"), MISTAKES)
def test_mistakes_are_one_sentence(
    tmp_path: Path, strategies: list[str], more: dict[str, Any], sentence: str | None
) -> None:
    folder = make(tmp_path / "pool", 0.6)
    if sentence is None:  # the samples' own likelihood needs no engine
        trace_curves(request(tmp_path, *strategies, pools=[str(folder)], **more))
        return
    with pytest.raises(PosttrainError, match=sentence):
        trace_curves(request(tmp_path, *strategies, pools=[str(folder)], **more))


def test_what_is_no_pool_is_refused(tmp_path: Path) -> None:
    task = load_task(TASK, sizes={"test": 30})
    with pytest.raises(ConfigError, match="needs a --model to sample from, or a finished --pool"):
        trace_curves(request(tmp_path, "self_consistency"))
    folder = make(tmp_path / "pool", 0.6)
    ledger = folder / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"sample:n=8"', '"beam_search:width=8"'))
    with pytest.raises(DataError, match="candidates are no independent samples"):
        read_pool(folder, "m", task)
    back = ledger.read_text().replace("beam_search:width=8", "sample:n=8")
    ledger.write_text(back.replace('"mean_logprob": -0.', '"x": -0.'))
    with pytest.raises(DataError, match="make the pool anew"):
        read_pool(folder, "m", task)
    other = load_task("reasoning_gym/gcd", sizes={"test": 2})
    with pytest.raises(DataError, match="holds answers to reasoning_gym/chain_sum"):
        read_pool(folder, "m", other)
    bare = make(tmp_path / "bare", 0.6, shape=None)
    pool = read_pool(bare, "m", task)
    assert not pool.priced
    empty = pool.mean_logprobs | dict.fromkeys(pool.mean_logprobs, (None,) * 8)
    with pytest.raises(ConfigError, match="gave no log-probabilities"):
        likelihoods(dataclasses.replace(pool, mean_logprobs=empty))


def test_a_replayed_vote_is_the_strategy_itself(tmp_path: Path) -> None:
    task = load_task(TASK, sizes={"test": 30})
    pool = read_pool(make(tmp_path / "pool", 0.5), "m", task)
    for n in (1, 3, 4, 8):
        ledger = make(tmp_path / f"vote{n}", 0.5, strategy=f"self_consistency:n={n}") / "ledger.jsonl"
        rows = [json.loads(line) for line in ledger.read_text().splitlines()]
        assert voted_scores(pool, n) == {row["example"]: row["score"] for row in rows}


def test_names_and_rules() -> None:
    assert build_rule("greedy").sampling.strategy(8) == "greedy"
    assert (
        build_rule("self_consistency:temperature=1,top_p=0.9").sampling.strategy(8) == "sample:n=8,temperature=1,top_p=0.9"
    )
    assert build_rule("best_of_n:verifier=(rule:steps=false)").scored_by == "rule:steps=false"


def test_the_command_draws_once_prints_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["curve", "-m", "a=scripted:replies=3", "-m", "b=scripted:replies=9", "-t", TASK, "--limit", "12"]
    arguments += [
        "-s",
        "self_consistency",
        "-s",
        "pass_at_k",
        "-s",
        "greedy",
        "--n",
        "1,2,4",
        "--draws",
        "200",
        "--out",
        "c",
    ]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "oracle: chosen with the gold answer" in done.stdout
    assert "·" in done.stdout
    names = {path.name for path in (tmp_path / "c" / "figures").iterdir()}
    assert names == {f"accuracy_by_{axis}.{kind}" for axis in ("n", "tokens") for kind in ("png", "svg")}
    found = json.loads((tmp_path / "c" / "curve.json").read_text())
    assert len(found["curves"]) == 6
    assert (tmp_path / "c" / "curve.md").read_text().count("\n| ") == 14
    pools = {path: path.read_bytes() for path in (tmp_path / "c" / "pools").glob("*/ledger.jsonl")}
    assert len(pools) == 4
    again = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(again.stdout) == found
    assert {path: path.read_bytes() for path in pools} == pools
    reused = next(path.parent for path in pools if "-samples-" in str(path))
    from_pool = ["curve", "--pool", f"a={reused}", "-t", TASK, "-s", "self_consistency", "--n", "1,2,4", "--limit", "12"]
    alone = CliRunner().invoke(app, [*from_pool, "--draws", "200", "--out", "d", "--json"], catch_exceptions=False)
    curves = json.loads(alone.stdout)["curves"]
    model = next(c["model"] for c in found["curves"] if f"/{c['model']}-samples" in str(reused))
    assert curves[0]["points"] == points(found, "self_consistency", model)


def test_subsets_do_not_know_the_order_of_the_pool() -> None:
    keys, right = ["a", "b", "a", None, "b"], [1.0, 0.0, 1.0, 0.0, 0.0]
    for permutation in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        moved = expected_majority([keys[i] for i in permutation], [right[i] for i in permutation], 3)
        assert moved == pytest.approx(expected_majority(keys, right, 3))
