"""Judgements: read from rows, turned into one another, linted, handed to trainers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from posttrain.cli.main import app
from posttrain.core.errors import ConfigError, DataError
from posttrain.data.formats import normalise, training_row
from posttrain.data.lint import lint
from posttrain.data.preferences import (
    best_and_worst,
    comparisons,
    convert,
    pairs_of,
    pairs_of_thumbs,
    ranking_of,
    thumbs_of,
)
from posttrain.data.rows import rows_with_scores
from posttrain.data.shapes import Preference, Ranking, Scored, Steps, Thumb
from posttrain.training.rows import encode_row

PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
RANKED = {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]}
SCORED = {"prompt": "q", "responses": ["a", "b", "c", "d"], "scores": [0.5, 1, -1, 0.5]}
LIKED = {"prompt": "q", "completion": "a", "label": True}


def test_shapes_are_recognised_and_come_back_as_they_were():
    for row, kind in ((PAIR, Preference), (RANKED, Ranking), (SCORED, Scored), (LIKED, Thumb)):
        normal = normalise(row)
        assert isinstance(normal, kind)
        again = training_row(normal)
        assert again.pop("prompt") == [{"role": "user", "content": "q"}]
        assert again == {key: value for key, value in row.items() if key != "prompt"}
        assert normalise({**again, "prompt": "q"}) == normal
    assert normalise({"prompt": "q", "completion": "a", "label": "False"}).label is False  # a CSV file's
    assert normalise({**LIKED, "system": "Be kind."}).prompt[0].role == "system"
    assert not isinstance(normalise({"prompt": "q", "completion": "a", "label": "spam"}), Thumb)


def test_margins_are_kept_and_read_from_two_scores():
    assert normalise({**PAIR, "margin": "1.5"}).margin == 1.5
    assert training_row(normalise({**PAIR, "margin": 2})) == {**training_row(normalise(PAIR)), "margin": 2.0}
    assert normalise({**PAIR, "score_chosen": 8, "score_rejected": 6.5}).margin == 1.5
    assert normalise({**PAIR, "margin": None}).margin is None
    turns = [{"role": "user", "content": "q"}]
    implicit = {side: [*turns, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    assert normalise({**implicit, "margin": 3}) == Preference(
        prompt=normalise(PAIR).prompt, chosen="chosen", rejected="rejected", margin=3.0
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**PAIR, "margin": "big"}, "'margin': must be a finite number, not 'big'"),
        ({**RANKED, "ranks": [1, 2]}, "has 3 responses but 2 ranks"),
        ({**RANKED, "ranks": [0, 1, 2]}, "must be whole numbers from 1"),
        ({**RANKED, "ranks": [1.5, 1, 2]}, "must be whole numbers from 1"),
        ({**SCORED, "scores": [1, 2, 3, True]}, "'scores': must be a finite number, not True"),
        ({**SCORED, "responses": "a"}, "'responses' and 'scores' must be two lists"),
        ({**LIKED, "completion": " "}, "'completion': is empty"),
    ],
)
def test_broken_judgements(row, message):
    with pytest.raises(DataError, match=message):
        normalise(row)


def test_rankings_and_pairs():
    assert ranking_of(normalise(SCORED)).ranks == (2, 1, 4, 2)
    assert ranking_of(normalise(PAIR)).ranks == (1, 2)
    assert comparisons(normalise(RANKED)) == [(1, 0, 0.0), (1, 2, 0.0)]
    assert [(b, w, round(m, 3)) for b, w, m in comparisons(normalise(SCORED))] == [
        (1, 0, 0.5), (0, 2, 1.5), (1, 2, 2.0), (1, 3, 0.5), (3, 2, 1.5)
    ]  # fmt: skip
    assert [(p.chosen, p.rejected, p.margin) for p in pairs_of(normalise(SCORED), margin=1)] == [
        ("a", "c", 1.5), ("b", "c", 2.0), ("d", "c", 1.5)
    ]  # fmt: skip
    assert [(p.chosen, p.rejected, p.margin) for p in pairs_of(normalise(RANKED))] == [("b", "a", None), ("b", "c", None)]
    best = best_and_worst(normalise(SCORED))
    assert (best.chosen, best.rejected, best.margin) == ("b", "c", 2.0)
    assert best_and_worst(normalise(SCORED), margin=2.5) is None
    assert best_and_worst(normalise({**SCORED, "scores": [1, 1, 1, 1]})) is None


@given(st.lists(st.integers(1, 5), min_size=2, max_size=7))
def test_a_ranking_without_ties_makes_k_times_k_minus_one_half_comparisons(ranks):
    found = comparisons(normalise({"prompt": "q", "responses": [str(i) for i in range(len(ranks))], "ranks": ranks}))
    tied = sum(ranks[i] == ranks[j] for i in range(len(ranks)) for j in range(i))
    assert len(found) == len(ranks) * (len(ranks) - 1) // 2 - tied
    assert all(ranks[better] < ranks[worse] for better, worse, _ in found)


def test_thumbs():
    assert [t.label for t in thumbs_of(normalise(PAIR))] == [True, False]
    assert [t.label for t in thumbs_of(normalise(SCORED), threshold=0.5)] == [True, True, False, True]
    rows = [LIKED, {**LIKED, "completion": "b", "label": False}, {**LIKED, "completion": "c"}, {**LIKED, "prompt": "other"}]
    pairs = pairs_of_thumbs([normalise(row) for row in rows])
    assert [(p.chosen, p.rejected) for p in pairs] == [("a", "b"), ("c", "b")]
    back = pairs_of_thumbs(thumbs_of(normalise(PAIR)))
    assert back == [normalise(PAIR)]


def test_convert():
    assert len(convert([RANKED, PAIR], "pairs", "f")) == 3
    assert [row["ranks"] for row in convert([SCORED, PAIR], "rankings", "f")] == [[2, 1, 4, 2], [1, 2]]
    assert convert([SCORED, {**SCORED, "scores": [1] * 4}], "best_and_worst", "f")[0]["margin"] == 2.0
    assert len(convert([PAIR, LIKED], "thumbs", "f")) == 3
    with pytest.raises(DataError, match="f, row 2: a thumb cannot become rankings, which takes preference, ranking, scored"):
        convert([PAIR, LIKED], "rankings", "f")
    with pytest.raises(ConfigError, match="unknown kind of judgement 'pair'; did you mean 'pairs'"):
        convert([PAIR], "pair", "f")


def test_convert_on_the_command_line(tmp_path):
    source, target = tmp_path / "scores.jsonl", tmp_path / "pairs.jsonl"
    source.write_text(json.dumps(SCORED) + "\n")
    done = CliRunner().invoke(app, ["data", "convert", str(source), "--to", "pairs", "--margin", "1", "--out", str(target)])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["margin"] for row in rows] == [1.5, 2.0, 1.5]
    again = CliRunner().invoke(app, ["data", "convert", str(source), "--to", "pairs", "--out", str(target)])
    assert again.exit_code != 0


def find(report, check):
    return next(finding for finding in report.findings if finding.check == check)


def test_lint_of_judgements():
    reversed_pair = {"prompt": "q", "chosen": "bad", "rejected": "good"}
    tied = {"prompt": "p", "responses": ["x", "y"], "ranks": [1, 1]}
    report = lint([PAIR, {**PAIR, "prompt": "r"}, reversed_pair, tied, {**RANKED, "prompt": "z"}], "f")
    assert (find(report, "both orders").level, find(report, "both orders").rows) == ("warning", (3,))
    assert "for example rows 1 and 3" in find(report, "both orders").message
    assert find(report, "all tied").rows == (4,)
    assert report.shapes == {"preference": 3, "ranking": 2}
    same = lint([{**PAIR, "rejected": "good "}], "f")
    assert find(same, "identical sides").level == "error"
    assert not [f for f in same.findings if f.check == "all tied"]
    thumbs = lint([LIKED, {**LIKED, "label": False}], "f")
    assert "liked and not liked" in find(thumbs, "both orders").message
    assert thumbs.lengths["liked"] == 0.5


def test_length_bias_counts_every_comparison_of_different_length():
    rows = [{"prompt": f"q{i}", "responses": ["long answer", "short", "mid one"], "ranks": [1, 3, 2]} for i in range(8)]
    report = lint(rows, "f")
    assert report.lengths["chosen is the longer"] == 1.0
    assert find(report, "length").count == 24


def test_agreement_on_the_command_line(tmp_path):
    file = tmp_path / "pairs.jsonl"
    said = [[1, 1, 1], [2, 2, 1], [1, 2, 0], [2, 2, 2]]
    rows = [{**PAIR, "prompt": f"q{i}", "annotators": votes} for i, votes in enumerate(said)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(app, ["data", "lint", str(file), "--json"])
    found = json.loads(done.stdout)
    assert found["agreement"]["units"] == 4
    assert found["agreement"]["krippendorff_alpha"] == pytest.approx(1 - (5 / 12) / (82 / 132))
    assert any(finding["check"] == "agreement" for finding in found["findings"])
    assert "krippendorff alpha" in CliRunner().invoke(app, ["data", "lint", str(file)]).stdout


def test_rows_on_their_way_to_a_trainer_keep_margin_and_subset_and_sft_refuses_judgements():
    kept = rows_with_scores([{**PAIR, "margin": 1, "subset": "x", "other": 1}], "f")[0]
    assert (kept["margin"], kept["subset"], "other" in kept) == (1.0, "x", False)
    steps = {"question": "q", "steps": ["a", "b"], "mistake_index": 0}
    assert normalise(steps) == Steps(prompt=normalise(PAIR).prompt, steps=("a", "b"), labels=(0.0, None))
    assert rows_with_scores([steps], "f")[0]["labels"] == [0.0, None]
    gap = {"question": "q", "steps": ["a", " ", "b", "c"], "mistake_index": 2}
    assert (normalise(gap).steps, normalise(gap).labels) == (("a", "b", "c"), (1.0, 0.0, None))
    with pytest.raises(DataError, match="step 1: is empty, and the first wrong one"):
        normalise({**gap, "mistake_index": 1})
    with pytest.raises(DataError, match=r"row 3: is a judgement \(label = true\), no demonstration"):
        encode_row(None, training_row(normalise(LIKED)), train="all", where="row 3")
