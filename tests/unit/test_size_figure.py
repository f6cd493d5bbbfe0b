"""The gain by model size: which rungs are a size's before and after, and the figure of them."""

from pathlib import Path
from typing import Any

import pytest

from posttrain.ledger import Row
from posttrain.report.build import Rung, build_report
from posttrain.report.size_figure import pairs_by_size


def rung(name: str, right: int, **changes: Any) -> Rung:
    cost = {"policy": {"calls": 1, "prompt": 10, "generated": 0, "scored": 0, "flops": 10.0}}
    about: dict[str, Any] = {"stage": "s", "task": "toy", "model": "m", "prompt": "p", "strategy": "greedy", "seed": 0}
    rows = [Row(example=f"q{i}", score=float(i < right), answer="1", unparsed=False, cost=cost, **about) for i in range(40)]
    return Rung(name=name, rows=rows, **({"label": name, "lever": "fine-tuning"} | changes))


BIG = (rung("big", 4, parameters=135_000_000), rung("big-tuned", 30, parameters=135_000_000, against="big"))
SMALL = (rung("small", 0, parameters=10_000_000), rung("small-tuned", 8, parameters=10_000_000, against="small"))


def report(*rungs: Rung, out: Path) -> dict[str, Any]:
    return build_report("Toy", rungs, out, meta={}, notes=())


def test_the_gain_of_each_size_is_drawn_smallest_first(tmp_path: Path) -> None:
    found = report(*BIG, *SMALL, out=tmp_path)
    assert [(a["name"], b["name"]) for a, b in pairs_by_size(found)] == [("small", "small-tuned"), ("big", "big-tuned")]
    assert (tmp_path / "figures" / "gain_by_size.png").stat().st_size > 1000
    drawn = (tmp_path / "figures" / "gain_by_size.svg").read_text()
    for shown in ("+65.0", "+20.0", "10.0 M", "135 M"):
        assert f">{shown}<" in drawn or f"<!-- {shown} -->" in drawn, shown
    words = "10.0 M parameters: small 0.0%, small-tuned 20.0%, +20.0"
    assert words in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "rungs",
    [
        BIG,  # one size
        (*BIG, SMALL[0]),  # nothing was trained at the other
        (*BIG, rung("small", 0, parameters=10_000_000), rung("other", 9, parameters=10_000_000, against="big")),
        (*BIG, *SMALL, rung("again", 9, parameters=10_000_000, against="small")),  # two gains of one size
        (BIG[0], rung("big-tuned", 9, against="big"), *SMALL),  # a server does not tell its size
        (BIG[0], rung("voted", 9, parameters=135_000_000, against="big", lever="test-time"), *SMALL),
    ],
)
def test_nothing_is_drawn_where_sizes_are_not_compared(rungs: tuple[Rung, ...], tmp_path: Path) -> None:
    assert pairs_by_size(report(*rungs, out=tmp_path)) == []
    assert not (tmp_path / "figures" / "gain_by_size.png").exists()
