"""The report: the numbers, the words, and a page that stands alone."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from posttrain.cli.trainings import trainings
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.files import write_json
from posttrain.core.types import Cost, Example, Usage
from posttrain.ledger import Ledger, Row, Samples, Timing
from posttrain.report.analysis import analyse
from posttrain.report.build import Rung, Trained, build_report, oracle_rows, print_report
from posttrain.report.compare import compare_ledgers, print_comparison
from posttrain.report.constant import best_constant, constant_notes
from posttrain.report.trained import columns, trained_facts, trained_rows
from posttrain.stats.intervals import wilson
from posttrain.stats.paired import holm, mcnemar, tango


def rows(scores: Sequence[float | None], *, flops: float = 10.0, tokens: int = 10, **changes: Any) -> list[Row]:
    values: dict[str, Any] = {
        "stage": "s",
        "task": "toy",
        "model": "m",
        "prompt": "zero_shot",
        "strategy": "greedy",
        "seed": 0,
        "answer": "1",
        "unparsed": False,
        "cost": {"policy": {"calls": 1, "prompt": tokens, "generated": 0, "scored": 0, "flops": flops}},
    }
    return [Row(example=f"q{i}", score=score, **(values | changes)) for i, score in enumerate(scores)]


def right(*which: int, n: int = 40) -> list[float]:
    return [float(i in which) for i in range(n)]


def rung(name: str, scores: Sequence[float | None], **changes: Any) -> Rung:
    flops = changes.pop("flops", 10.0)
    values: dict[str, Any] = {"label": name.title(), "lever": "prompting", "rows": rows(scores, flops=flops), "seconds": 3.0}
    return Rung(name=name, **(values | changes))


def analysed(*rungs: Rung) -> dict[str, Any]:
    return analyse("Toy", rungs, meta={}, notes=())


BASE = rung("base", right(*range(4)))


def test_numbers_of_a_small_ladder() -> None:
    report = analysed(
        BASE,
        rung("better", right(*range(1, 16)), flops=20.0),
        rung("other", right(*range(1, 18)), flops=30.0, against="better", lever="test-time"),
    )
    base, better, other = report["rungs"]
    assert (base["accuracy"], tuple(base["ci95"]), base["difference"]) == (0.1, wilson(4, 40), None)
    found = better["difference"]
    assert (found["gained"], found["lost"], found["difference"]) == (12, 1, pytest.approx(11 / 40))
    assert tuple(found["ci95"]) == tango(12, 1, 40)
    assert found["p"] == mcnemar(12, 1)
    assert other["difference"]["against"] == "better"
    assert (other["difference"]["gained"], other["difference"]["lost"]) == (2, 0)
    assert other["over_first"]["difference"] == pytest.approx(13 / 40)
    assert [found["p_holm"], other["difference"]["p_holm"]] == holm([mcnemar(12, 1), 0.5])
    assert (better["cost_ratio"], other["cost_ratio"]) == (2.0, 1.5)
    assert report["pareto"] == ["base", "better", "other"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_what_does_not_help_is_said_as_plainly() -> None:
    gain, none, loss = (
        rung("gain", right(*range(24)), flops=19.0),
        rung("none", right(*range(3), 30, 31), flops=19.0, fixed=Cost(flops=5e12)),
        rung("loss", right(4, n=40), flops=10.2, against="gain"),
    )
    report = analysed(BASE, gain, none, loss)
    told = {facts["name"]: facts["verdict"] for facts in report["rungs"]}
    assert told["base"] == ""
    low, high = (f"{100 * bound:.1f}" for bound in tango(20, 0, 40))
    assert told["gain"] == (
        f"Gain: +50.0 points [{low}, {high}] against Base, p < 0.001: a measurable gain at 1.9× the cost per query."
    )
    assert re.fullmatch(
        r"None: \+2\.5 points \[−\d+\.\d, \d+\.\d\] against Base, p = 1\.00: no measurable gain at 1\.9× the cost "
        r"per query, plus 5\.00 T FLOPs once\.",
        told["none"],
    )
    assert "−57.5 points" in told["loss"]
    assert "a measurable loss at 0.5× the cost per query." in told["loss"]
    assert report["headline"].startswith("Gain is the most accurate: 60.0% [44.6, 73.7], +50.0 points")
    assert (
        report["steps"]
        == "Measurable gains, step by step: Gain +50.0. Measurable losses: Loss −57.5. No measurable gain: None +2.5."
    )


def test_adjusting_can_take_a_finding_back_and_says_so() -> None:
    close = rung("close", right(*range(10)))  # 6 gained, 0 lost: p = 0.031
    many = [rung(f"same{i}", right(*range(4))) for i in range(3)]
    assert "a measurable gain at" in analysed(BASE, close)["rungs"][1]["verdict"]
    verdict = analysed(BASE, close, *many)["rungs"][1]["verdict"]
    assert "p = 0.12: no measurable gain (p = 0.031 before adjusting) at the same cost per query." in verdict


def test_nothing_helps() -> None:
    report = analysed(BASE, rung("a", right(*range(5))), rung("b", right()))
    assert report["headline"] == "Nothing measurably beats Base (10.0% [4.0, 23.1], n = 40)."


def test_break_even_in_queries() -> None:
    trained = rung("trained", right(*range(20)), fixed=Cost(flops=1e6), flops=10.0, lever="fine-tuning")
    search = rung("search", right(*range(12)), flops=110.0, lever="test-time")
    report = analysed(BASE, search, trained)
    (found,) = report["break_even"]
    assert (found["against"], found["queries"], found["more_once"], found["saved_per_query"]) == ("search", 1e4, 1e6, 100.0)
    assert found["sentence"] == (
        "Trained pays after 10,000 queries against Search (50.0% against 30.0%): 1.00 M FLOPs more once, 100 less per query."
    )
    dearer = rung("dearer", right(*range(20)), fixed=Cost(flops=1e6), flops=200.0)
    (found,) = analysed(BASE, search, dearer)["break_even"]
    assert found["queries"] is None
    assert "never pays back" in found["sentence"]
    assert "what it buys is +20.0 points" in found["sentence"]
    worse = rung("worse", right(), fixed=Cost(flops=1e6))
    (found,) = analysed(BASE, search, worse)["break_even"]
    assert found["sentence"].startswith("Worse has nothing to pay back against")


def test_a_second_training_is_compared_with_the_first_and_with_none() -> None:
    first = rung("first", right(*range(20)), fixed=Cost(flops=1e6))
    second = rung("second", right(*range(22)), fixed=Cost(flops=3e6))
    search = rung("search", right(*range(12)), flops=110.0)
    pays = [(found["rung"], found["against"]) for found in analysed(BASE, search, first, second)["break_even"]]
    assert pays == [("first", "search"), ("second", "first"), ("second", "search")]


def test_an_oracle_counts_nowhere() -> None:
    sampled = rows(right(*range(6)), candidates=({"answer": None, "score": 0.0, "finish": "length"},), unparsed=True)
    for index in range(20):
        two = ({"answer": "0", "score": 0.0, "finish": "stop"}, {"answer": "1", "score": 1.0, "finish": "stop"})
        sampled[index] = Row(**{name: getattr(sampled[index], name) for name in Row.__slots__} | {"candidates": two})
    oracle = Rung(
        name="oracle", label="pass@2", lever="oracle", rows=oracle_rows(sampled), oracle=True, fixed=Cost(flops=1.0)
    )
    report = analysed(BASE, rung("b", right(*range(5))), oracle)
    (told,) = report["oracles"]
    assert (told["accuracy"], told["samples"], told["unparsed_rate"]) == (0.5, 2, 0.5)
    assert told["difference"] is None
    assert told["verdict"] == ""
    elsewhere = {name: value for name, value in report.items() if name != "oracles"}
    assert "oracle" not in json.dumps(elsewhere)
    assert "pass@2" not in json.dumps(elsewhere)
    with pytest.raises(ConfigError, match="an oracle is no method"):
        analysed(BASE, rung("b", right(), against="oracle"), oracle)
    with pytest.raises(ConfigError, match="put a method first"):
        analysed(oracle, BASE)
    with pytest.raises(DataError, match="no candidates"):
        oracle_rows(rows([1.0]))


def test_rows_pair_by_example_not_by_position() -> None:
    shuffled = rows(right(*range(4)))
    random.Random(0).shuffle(shuffled)
    found = analysed(BASE, rung("same", [], rows=shuffled))["rungs"][1]["difference"]
    assert (found["gained"], found["lost"], found["p"]) == (0, 0, 1.0)


def test_rows_without_a_score_count_as_wrong() -> None:
    found = analysed(BASE, rung("failed", [None] * 40, rows=rows([None] * 40, error="overflow")))["rungs"][1]
    assert (found["accuracy"], found["error_rate"], found["difference"]["lost"]) == (0.0, 1.0, 4)


@pytest.mark.parametrize(
    ("others", "error", "words"),
    [
        ([rung("short", right(n=39))], DataError, r"'base' \(40 examples\) and 'short' \(39\) .* for instance 'q39'"),
        ([rung("else", [], rows=rows(right(), task="other"), against="base")], ConfigError, "different tasks: other, toy"),
        ([rung("base", right())], ConfigError, "two rungs are called 'base'"),
        ([rung("a", right(), against="bas")], ConfigError, "did you mean 'base'"),
        ([rung("empty", [])], DataError, "'empty' has no rows"),
        ([rung("twice", [], rows=[*rows(right()), *rows([1.0])])], DataError, "two rows for one example"),
        ([rung("partial", [0.5] * 40)], DataError, r"score 0\.5 is neither 0 nor 1"),
    ],
)
def test_bad_ladders_are_refused(others: list[Rung], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        analysed(BASE, *others)
    with pytest.raises(ConfigError, match="at least one rung"):
        analysed()


def test_without_flops_tokens_are_the_unit() -> None:
    fixed = Cost(usage=Usage(prompt=5_000))
    remote = [
        rung("a", [], rows=rows(right(1), flops=0.0)),
        rung("b", [], rows=rows(right(2), flops=0.0, tokens=30), fixed=fixed),
    ]
    report = analysed(*remote)
    assert report["unit"] == "tokens"
    assert report["rungs"][1]["cost_ratio"] == 3.0
    assert report["rungs"][1]["verdict"].endswith("no gain at 3.0× the cost per query, plus 5.00 k tokens once.")


class Page(HTMLParser):
    """Collects what the tests ask of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


NASTY = 'A <script>alert("x")</script> & $5^2$ | label'


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("report")
    sampled = rows(right(*range(9)), candidates=({"answer": "1", "score": 1.0, "finish": "stop"},))
    rungs = [
        BASE,
        rung("nasty", right(*range(6)), label=NASTY, note="Said <plainly>.", flops=11.0),
        rung("sft", right(*range(20)), lever="fine-tuning", fixed=Cost(flops=1e4), flops=10.5, prompt="zero_shot"),
        rung("dpo", right(*range(21)), lever="preference", fixed=Cost(flops=2e4), flops=10.4, against="sft"),
        rung("vote", right(*range(1, 12)), lever="test-time", flops=80.0),
        Rung(name="oracle", label="pass@1", lever="oracle", rows=oracle_rows(sampled), oracle=True),
    ]
    meta = {"model": "tiny", "packages": {"torch": "2"}}
    made = Trained(
        name="sft",
        label=NASTY,
        method="sft:adapter=ia3",
        weights=40_000,
        share=0.0003,
        peak_bytes=3_200_000_000,
        seconds=61.0,
        tokens=5000,
        flops=1e12,
        steps=9,
        losses=(2.5, 1.25),
        held_out={"start_loss": 2.0, "best_loss": 1.5},
    )
    return out, build_report("A <title>", rungs, out, meta=meta, notes=["Mind & note."], trained=[made])


def test_the_table_of_trainings_names_what_was_measured_on_held_out_rows() -> None:
    loss = {"start_loss": 2.0, "best_loss": 1.5}  # as it was written before there was another criterion
    reward = {"criterion": "reward", "best_reward": 0.25}

    def told(*held_out: dict[str, Any] | None) -> tuple[str, list[str]]:
        made = Trained(
            name="x", label="x", method="x", weights=1, share=1.0, peak_bytes=1, seconds=1.0, tokens=1, flops=1.0, steps=1,
            losses=(1.0, 1.0),
        )  # fmt: skip
        facts = trained_facts([replace(made, held_out=held) for held in held_out])
        heads, rows = columns(facts), trained_rows(facts)
        assert {len(row) for row in rows} <= {len(heads)}
        return heads[-1], [row[-1] for row in rows]

    assert told(None, loss) == ("held-out loss", ["", "2.000 → 1.500"])
    assert told(reward | {"start_reward": 0.125}, None) == ("held-out reward", ["0.125 → 0.250", ""])
    assert told(loss, None, reward) == ("held-out", ["loss 2.000 → 1.500", "", "reward 0.250"])
    assert told(None) == ("held-out loss", [""])


def test_a_sentence_says_what_was_reached_on_held_out_rows(tmp_path: Path) -> None:
    facts = {"rows": 8, "best_step": 4, "last_step": 6}
    lines = [{"step": 2, "eval_reward": 0.5}, {"step": 3}, {"step": 4, "eval_reward": 0.75}]
    stages = []
    for name, evaluated, metrics in (
        ("grpo", {"criterion": "reward", "start_reward": 0.25, "best_reward": 0.75, "last_reward": 0.5}, lines),
        ("sft", {"best_loss": 1.0, "last_loss": 2.0}, [{"step": 4, "eval_loss": 1.0}]),
    ):
        write_json(tmp_path / name / "checkpoint" / "posttrain.json", {"evaluation": {**facts, **evaluated}})
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        stages.append(SimpleNamespace(name=name, label="", train=SimpleNamespace(method=name)))
    done = {stage.name: SimpleNamespace(folder=tmp_path / stage.name) for stage in stages}
    shop: Any = SimpleNamespace(recipe=SimpleNamespace(stages=stages), done=done)
    online, sft = trainings(shop)
    assert online["sentence"] == (
        "reward on 8 held-out questions, answered greedily: 0.250 before training, 0.750 at step 4, whose weights were "
        "kept; 0.500 at the end, step 6."
    )
    assert (online["losses"], online["rewards"]) == ([], [{"step": 2, "reward": 0.5}, {"step": 4, "reward": 0.75}])
    assert sft["sentence"] == (
        "loss on 8 held-out rows: 1.000 (perplexity 2.7) at step 4, whose weights were kept; 2.000 (perplexity 7.4) at the "
        "end, step 6."
    )
    assert (sft["losses"], sft["rewards"]) == ([{"step": 4, "loss": 1.0}], [])


def test_files_are_written(written: tuple[Path, dict[str, Any]]) -> None:
    out, report = written
    assert json.loads((out / "report.json").read_text(encoding="utf-8")) == report
    names = sorted(path.name for path in (out / "figures").iterdir())
    assert names == [f"{name}.{kind}" for name in ("accuracy_by_cost", "gains", "ladder") for kind in ("png", "svg")]
    for path in (out / "figures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    for path in (out / "figures").glob("*.svg"):
        assert "var(--" not in path.read_text(encoding="utf-8")


def test_page_stands_alone_and_is_well_formed(written: tuple[Path, dict[str, Any]]) -> None:
    text = (written[0] / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert "<script" not in text
    assert "@import" not in text
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"url\((?!#)", text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert used <= set(ids)
    svgs = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(svgs) == 6
    assert all(attributes["role"] == "img" and len(attributes["aria-label"] or "") > 40 for attributes in svgs)
    assert {"viewport", "color-scheme"} <= {attributes.get("name") for tag, attributes in page.tags if tag == "meta"}
    assert sum(tag == "th" and attributes.get("scope") == "row" for tag, attributes in page.tags) == 7
    assert "prefers-color-scheme: dark" in text
    assert "A &lt;title&gt;" in text


def test_every_rung_and_sentence_is_on_every_page(written: tuple[Path, dict[str, Any]]) -> None:
    out, report = written
    markdown = (out / "report.md").read_text(encoding="utf-8")
    for facts in report["rungs"]:
        assert facts["verdict"] in markdown
    for found in report["break_even"]:
        assert found["sentence"] in markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table[:8]} == {12}
    assert "packages | torch 2" in markdown
    (told,) = [line for line in markdown.splitlines() if "adapter=ia3" in line]
    for cell in ("40.0 k", "0.030%", "3.20 GB", "2.500 → 1.250", "2.000 → 1.500"):
        assert f"| {cell} |" in told
    assert len(re.findall(r"(?<!\\)\|", told)) == 11
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        print_report(report, console)
        shown = console.export_text()
    assert report["headline"][:60] in shown
    assert NASTY[:20] in shown
    assert "◆" in shown
    assert "2.000 → 1.500" in shown


def test_narrow_terminal_keeps_every_column(
    written: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    print_report(written[1], Console(width=80))
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines()) <= 80
    for column in ("accuracy", "paired", "Holm", "parsed", "length", "tokens", "FLOPs", "time"):
        assert column in shown
    assert "…" not in shown


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_report("T", [BASE], tmp_path / name, meta={}, notes=())
    for file in ("report.html", "report.md", "report.json", "figures/ladder.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert not (tmp_path / "a" / "figures" / "gains.png").exists()


@pytest.mark.parametrize("seed", range(6))
def test_labels_do_not_overlap(seed: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from posttrain.report.labels import place_labels

    draw = random.Random(seed)
    spots = [(10 ** draw.uniform(0, 2), draw.uniform(5, 95)) for _ in range(10)]
    spots += [
        (spots[0][0] * 1.01, spots[0][1] + 0.5),
        (spots[0][0] * 1.02, spots[0][1] - 0.5),
    ]  # almost on top of each other
    figure = Figure(figsize=(7.4, 4.6))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_xlim(0.5, 200)
    axes.set_ylim(0, 100)
    names = [f"Method number {i}\nwith a second line"[: draw.randrange(8, 34)] for i in range(12)]
    spans = [(y - 4, y + 4) for _, y in spots]
    texts = place_labels(axes, spots, names, spans, colours=("black", "grey", "white"), size=8.5)
    boxes = [text.get_window_extent() for text in texts]
    frame = axes.get_window_extent()
    assert sorted(text.get_text() for text in texts) == sorted(names)
    for index, box in enumerate(boxes):
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
        assert frame.y0 <= box.y0 < box.y1 <= frame.y1
        for other in boxes[index + 1 :]:
            assert not box.overlaps(other)
        for spot in spots:
            assert not box.contains(*axes.transData.transform(spot))


def ledger(folder: Path, scores: Sequence[float], *, skip: int = 0, task: str = "toy", replayed: int = 0) -> Path:
    kept = rows(scores, task=task)[skip:]
    with Ledger(folder, [row.example for row in kept]) as store:
        for row in kept:
            store.add(row, Samples(example=row.example, text=""), Timing(example=row.example, replayed=replayed))
    return folder


def test_compare_ledgers_on_shared_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # short folder names, which no table folds
    a = ledger(Path("a"), right(*range(4)))
    b = ledger(Path("b"), right(*range(1, 30)), skip=2)
    c = ledger(Path("c"), right(*range(4)), replayed=5)
    found = compare_ledgers([a, b, c])
    assert (found["task"], found["n"]) == ("toy", 38)
    first, second, third = found["evaluations"]
    assert (first["accuracy"], first["answered"], first["difference"]) == (pytest.approx(2 / 38), 40, None)
    pair = second["difference"]
    assert (pair["gained"], pair["lost"], pair["p"]) == (26, 0, mcnemar(26, 0))
    assert [pair["p_holm"], third["difference"]["p_holm"]] == holm([mcnemar(26, 0), 1.0])
    assert first["per_query"] == third["per_query"]  # what a cache replayed does not make a method cheaper
    json.dumps(found, allow_nan=False)
    print_comparison(found, Console(width=140))
    shown = capsys.readouterr().out
    assert "26 : 0" in shown
    assert "(40 answered)" in shown
    print_comparison(found, Console(width=80))
    narrow = capsys.readouterr().out
    assert "…" not in narrow
    assert "FLOPs/q" in narrow


def test_incomparable_ledgers_are_refused(tmp_path: Path) -> None:
    a = ledger(tmp_path / "a", [1.0])
    with pytest.raises(DataError, match="different tasks: toy, other"):
        compare_ledgers([a, ledger(tmp_path / "b", [1.0], task="other")])
    with pytest.raises(DataError, match="no example in common"):
        compare_ledgers([a, ledger(tmp_path / "c", [1.0, 1.0], skip=1)])
    with pytest.raises(DataError, match="no ledger in"):
        compare_ledgers([a, tmp_path / "missing"])
    with pytest.raises(DataError, match="no finished row"):
        compare_ledgers([a, ledger(tmp_path / "d", [])])


class Choices:
    """A task in which the letters b and B are the same answer."""

    def grade(self, example: Example, answer: str | None) -> float:
        return float(answer is not None and answer.lower() == str(example.answer).lower())


def questions(*answers: str | None) -> list[Example]:
    return [Example(id=f"q{i}", answer=answer) for i, answer in enumerate(answers)]


def test_one_answer_to_every_question_by_hand() -> None:
    assert best_constant(Choices(), questions(*"aBbcBbaabBaccBbaBbcB")) == ("B", 0.55)
    assert best_constant(Choices(), questions(*"aaaaaaaaab", None)) is None  # open: nobody says what is right
    assert best_constant(Choices(), questions(*(str(i % 21) for i in range(210)))) is None  # too many right answers
    assert best_constant(Choices(), questions("1", "2", "2", "3")) is None  # few questions, and open for all one knows
    assert best_constant(Choices(), questions(*"aaaaaaaaaa")) is None  # nothing to choose between


def test_a_gain_up_to_a_habit_is_told() -> None:
    asked = questions(*(["yes", "yes", "yes", "no", "no"] * 2))
    start = rung("start", [], rows=rows([0, 0, 0, 1, 1] * 2, answer="no"))
    tuned = rung("tuned", [], rows=rows([1, 1, 1, 0, 0] * 2, answer="yes"))
    good = rung("good", [1, 1, 1, 1, 0] * 2)
    said = ["yes", "yes", "yes", "no", None] * 2
    good = replace(good, rows=[replace(row, answer=x) for row, x in zip(good.rows, said, strict=True)])
    oracle = replace(start, name="o", label="Oracle", oracle=True)
    assert constant_notes([start, tuned, good, oracle], {"toy": (Choices(), asked)}) == [
        "toy: 'yes' to every question would be right in 60.0%. No better than that: Start; Tuned. "
        "Start says 'no' to 100.0%. Tuned says 'yes' to 100.0%."
    ]
    assert constant_notes([start], {"toy": (Choices(), questions("1", None))}) == []
