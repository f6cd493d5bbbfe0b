"""A reference that another run has computed is taken from the cache, number by number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import folder, preferences
from training_runs import metrics, same, weights

from posttrain.core.types import Checkpoint
from posttrain.preference.dpo import Dpo
from posttrain.preference.kto import Kto
from posttrain.training import kept_logps

DPO = Dpo(lr=1e-3, batch_size=4, dtype="float32", tokens_per_microbatch=60)
PAIRS = preferences(9)


@pytest.fixture
def start(tmp_path: Path) -> Checkpoint:
    return Checkpoint(path=folder(tmp_path / "model"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kept_logps, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "reference.sqlite"


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "reference" / "0.jsonl").read_text().splitlines()]


def spent(out: Path) -> list[float]:
    return [line["cost"]["flops_spent"] for line in lines(out)]


def test_another_method_on_the_same_pairs_computes_no_reference(start: Checkpoint, cache: Path, tmp_path: Path) -> None:
    first = DPO(start, PAIRS, tmp_path / "first", seed=1)
    assert len(spent(tmp_path / "first")) > 1
    assert min(spent(tmp_path / "first")) > 0
    ipo = replace(DPO, loss="ipo")
    ipo(start, PAIRS, tmp_path / "ipo", seed=1)
    assert not any(spent(tmp_path / "ipo"))
    for kept, made in zip(lines(tmp_path / "ipo"), lines(tmp_path / "first"), strict=True):
        assert kept["logps"] == made["logps"]  # bit for bit
        assert kept["cost"]["flops"] == made["cost"]["flops"] > 0  # charged as if it were computed
    again = DPO(start, PAIRS, tmp_path / "again", seed=1)
    same(weights(again), weights(first), rtol=0, atol=0)
    assert metrics(tmp_path / "again") == metrics(tmp_path / "first")
    assert again.cost.flops == first.cost.flops
    assert again.cost.flops_spent < first.cost.flops_spent


@pytest.mark.parametrize("what", ["rows", "start", "adapter", "sides"])
def test_what_differs_is_computed(what: str, start: Checkpoint, cache: Path, tmp_path: Path) -> None:
    DPO(start, PAIRS, tmp_path / "first", seed=1)
    rows, method = PAIRS, DPO
    if what == "rows":
        rows = [row | {"rejected": row["rejected"] + "?"} for row in PAIRS]
    elif what == "start":
        start = DPO(start, PAIRS, tmp_path / "other", seed=1)
    elif what == "adapter":
        method = replace(DPO, adapter="lora", rank=2)
    else:
        rows = [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS]
    method(start, rows, tmp_path / "second", seed=1)
    assert all(spent(tmp_path / "second"))


def test_a_damaged_cache_is_told_and_left_alone(
    start: Checkpoint, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.parent.mkdir()
    cache.write_bytes(b"no database" * 100)
    made = Kto(lr=1e-3, batch_size=4, dtype="float32")(start, PAIRS, tmp_path / "out", seed=1)
    assert made.path.is_dir()
    told = capsys.readouterr().err
    assert told.count("is left alone") == 1
    assert str(cache) in told
    assert all(spent(tmp_path / "out"))
    assert cache.read_bytes() == b"no database" * 100
