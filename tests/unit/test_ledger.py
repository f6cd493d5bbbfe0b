"""The ledger: nothing lost, halved or doubled by a kill at any byte; resumed equals uninterrupted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import DataError
from posttrain.core.types import Cost, Usage
from posttrain.ledger import Ledger, Row, Samples, Timing, cold, load_ledger, timing_of

IDS = [f"item-{i}" for i in range(6)]
NAMES = ("ledger.jsonl", "samples.jsonl", "timings.jsonl")


def records(example: str, **changes: Any) -> tuple[Row, Samples, Timing]:
    number = IDS.index(example) if example in IDS else 0
    values: dict[str, Any] = {
        "stage": "eval",
        "task": "toy",
        "example": example,
        "model": "m",
        "prompt": "zero_shot",
        "strategy": "greedy",
        "seed": 3,
        "score": float(number % 2),
        "answer": f"zwölf {number}",
        "unparsed": False,
        "candidates": ({"answer": "1", "score": 0.1 + number, "finish": "stop"},),
        "cost": {"policy": {"calls": 1, "prompt": 7, "generated": number, "scored": 0, "flops": 1e9 / 3}},
        "trace": {"votes": [["1", 2]]},
    }
    return (
        Row(**(values | changes)),
        Samples(example=example, text="line one\nline two", texts=("a\u2028b",)),
        Timing(example=example, seconds=0.5, cached=2),
    )


def fill(folder: Path, order: list[str], examples: list[str] = IDS) -> None:
    with Ledger(folder, examples) as ledger:
        for example in order:
            if example not in ledger.done:
                ledger.add(*records(example))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in NAMES}


def test_closed_files_do_not_depend_on_the_order_of_finishing(tmp_path: Path) -> None:
    fill(tmp_path / "a", IDS)
    fill(tmp_path / "b", IDS[::-1])
    fill(tmp_path / "c", IDS[3:])
    fill(tmp_path / "c", IDS)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    fill(tmp_path, IDS[::-1])
    loaded = load_ledger(tmp_path)
    assert [row.example for row in loaded.rows] == IDS
    row, samples, timing = records(IDS[4])
    assert (loaded.rows[4], loaded.samples[4], loaded.timings[4]) == (row, samples, timing)
    assert json.loads((tmp_path / "ledger.jsonl").read_text(encoding="utf-8").splitlines()[0])["answer"] == "zwölf 0"


def test_every_cut_of_the_last_write_is_done_again(tmp_path: Path) -> None:
    """Cut the three files at every point a kill can leave behind, resume, and compare with the uninterrupted run."""
    fill(tmp_path / "whole", IDS)
    whole = contents(tmp_path / "whole")
    first = {name: whole[name].index(b"\n") + 1 for name in NAMES}
    sequence = ["samples.jsonl", "timings.jsonl", "ledger.jsonl"]  # the order of writing
    cuts = 0
    for position, name in enumerate(sequence):
        second = whole[name].split(b"\n")[1] + b"\n"
        for length in range(len(second) + 1):
            if length % 17 and length not in (1, len(second) - 1, len(second)):
                continue
            folder = tmp_path / f"cut-{position}-{length}"
            folder.mkdir()
            for index, other in enumerate(sequence):
                line = whole[other].split(b"\n")[1] + b"\n"
                part = line if index < position else line[:length] if index == position else b""
                (folder / other).write_bytes(whole[other][: first[other]] + part)
            notes: list[str] = []
            with Ledger(folder, IDS, say=notes.append) as ledger:
                finished = position == 2 and length == len(second)
                assert ledger.done == set(IDS[: 2 if finished else 1])
                for example in IDS:
                    if example not in ledger.done:
                        ledger.add(*records(example))
            assert contents(folder) == whole
            clean = finished or (position == 0 and length == 0)
            assert bool(notes) is not clean
            assert any("cut in the middle" in note for note in notes) is (0 < length < len(second))
            cuts += 1
    assert cuts > 40


def test_a_killed_process_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_ledger import IDS, records; from posttrain.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]), IDS)\n"
        "for example in IDS[::-1]:\n"
        "    ledger.add(*records(example)); print('added', flush=True); time.sleep(0.02)\n"
        "time.sleep(60)\n"
    )
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", script, str(killed), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "added\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with Ledger(killed, IDS) as ledger:
        assert len(ledger.done) >= 3
        for example in IDS:
            if example not in ledger.done:
                ledger.add(*records(example))
    fill(tmp_path / "whole", IDS)
    assert contents(killed) == contents(tmp_path / "whole")


@settings(max_examples=40, deadline=None)
@given(st.permutations(IDS), st.integers(0, 6), st.data())
def test_any_interruption_gives_the_uninterrupted_ledger(order: list[str], stop: int, data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder, reference = Path(name) / "cut", Path(name) / "whole"
        fill(reference, IDS)
        ledger = Ledger(folder, IDS)
        for example in order[:stop]:
            ledger.add(*records(example))
        ledger.close()
        for file in NAMES:  # one file lost an arbitrary tail
            path = folder / file
            if data.draw(st.booleans()):
                path.write_bytes(path.read_bytes()[: data.draw(st.integers(0, path.stat().st_size))])
        with Ledger(folder, IDS, say=lambda note: None) as ledger:
            for example in IDS:
                if example not in ledger.done:
                    ledger.add(*records(example))
        assert contents(folder) == contents(reference)


def test_a_broken_line_in_the_middle_names_file_and_line(tmp_path: Path) -> None:
    fill(tmp_path, IDS)
    path = tmp_path / "ledger.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([lines[0], '{"example": \n', *lines[2:]]), encoding="utf-8")
    with pytest.raises(DataError, match=r"ledger\.jsonl, line 2: broken"):
        Ledger(tmp_path, IDS)
    path.write_text("".join([*lines[:3], lines[3].replace('"stage"', '"stag"'), *lines[4:]]), encoding="utf-8")
    with pytest.raises(DataError, match=r"line 4: broken: unknown field 'stag'"):
        load_ledger(tmp_path)
    path.write_text("".join([*lines, lines[0]]), encoding="utf-8")
    with pytest.raises(DataError, match=r"line 7: a second row for example 'item-0'"):
        load_ledger(tmp_path)


def test_after_an_error_the_folder_is_free_again(tmp_path: Path) -> None:
    fill(tmp_path, IDS)
    with pytest.raises(DataError, match="does not ask"):
        Ledger(tmp_path, IDS[:2])
    Ledger(tmp_path, IDS).close()


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path, IDS), pytest.raises(DataError, match="another process is writing"):
        Ledger(tmp_path, IDS)
    Ledger(tmp_path, IDS).close()


def test_misuse_is_an_error(tmp_path: Path) -> None:
    row, samples, timing = records(IDS[0])
    ledger = Ledger(tmp_path, IDS)
    ledger.add(row, samples, timing)
    with pytest.raises(ValueError, match="already finished"):
        ledger.add(row, samples, timing)
    with pytest.raises(ValueError, match="different examples"):
        ledger.add(records(IDS[1])[0], samples, timing)
    with pytest.raises(ValueError, match="not in the list"):
        ledger.add(*records("stranger"))
    with pytest.raises(DataError, match="not finite"):
        ledger.add(*records(IDS[1], score=float("nan")))
    ledger.close()
    ledger.close()
    with pytest.raises(ValueError, match="closed"):
        ledger.add(*records(IDS[1]))
    assert load_ledger(tmp_path).rows == (row,)
    with pytest.raises(DataError, match="no ledger in"):
        load_ledger(tmp_path / "nowhere")


def test_half_a_surrogate_pair_is_kept(tmp_path: Path) -> None:
    row, _, timing = records(IDS[0])
    with Ledger(tmp_path, IDS) as ledger:
        ledger.add(row, Samples(example=IDS[0], text="broken \ud83d emoji"), timing)
    assert load_ledger(tmp_path).samples[0].text == "broken \ud83d emoji"


def test_a_row_is_on_disk_when_add_returns(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, IDS)
    for example in IDS:
        ledger.add(*records(example))
    assert [row.example for row in load_ledger(tmp_path).rows] == IDS
    ledger.close()


def test_costs_split_into_cold_and_paid() -> None:
    policy = Cost(
        usage=Usage(calls=2, prompt=10, cached=4, generated=6, replayed=3, scored=1),
        flops=50.0,
        flops_spent=20.0,
        seconds=9.0,
    )
    judge = Cost(usage=Usage(calls=1, prompt=5), flops=7.0, flops_spent=7.0)
    counts = cold(policy)
    assert counts == {"calls": 2, "prompt": 10, "generated": 6, "scored": 1, "flops": 50.0}
    timing = timing_of("x", {"policy": policy, "judge": judge}, 1.5)
    assert timing == Timing(example="x", seconds=1.5, cached=4, replayed=3, flops_spent=27.0)
    row = records(IDS[0], cost={"policy": counts, "judge": cold(judge)})[0]
    assert row.cold() == Cost(usage=Usage(calls=3, prompt=15, generated=6, scored=1), flops=57.0)
