"""What the comparisons with TRL share: processes that measure, the search for its best setting, the result file."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent.parent
COMMAND = BENCHMARKS / "train_vs_trl.py"
Found = dict[str, float]


def read(path: Path, count: int | None = None) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:  # not splitlines(): a text may hold separators of its own
        return [json.loads(line) for line in itertools.islice(lines, count) if line.strip()]


def run(job: Mapping[str, Any]) -> Found | None:
    """Measure in a process of its own; None where that fails, which is told."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.get('processes', 1)}"]
    command = [sys.executable, *(several if "processes" in job else []), str(COMMAND), "--worker", json.dumps(job)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}: perhaps out of memory"]
        print(f"  failed: {said[-1][:200]}", flush=True)
        return None
    found: Found = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def show(name: str, found: Found, unit: str) -> None:
    print(f"  {name:34} {found[unit]:8.2f} {unit.replace('_per_second', '/s')}   {found['peak_gb']:.2f} GB peak", flush=True)


def search(
    settings: Iterable[tuple[int, str, Mapping[str, Any]]], unit: str, *, needed: bool = True
) -> list[dict[str, Any]]:
    """Measure TRL once for each (per-device batch, attention, job)."""
    print("search for TRL's best setting", flush=True)
    searched = []
    for device_batch, attention, base in settings:
        job = {**base, "side": "trl", "device_batch": device_batch, "attention": attention}
        if found := run(job):
            how = {name: base[name] for name in ("autocast", "processes") if base.get(name)}
            searched.append({"device_batch": device_batch, "attention": attention, **how, **found})
            told = (", types as wide" if "autocast" in how else "") + (", 2 processes" if "processes" in how else "")
            show(f"TRL batch {device_batch} {attention}{told}", found, unit)
    if needed and not searched:
        sys.exit("TRL failed at every setting of the search: there is nothing to compare with")
    return searched


def finalists_of(searched: Sequence[dict[str, Any]], unit: str, *, quick: bool) -> list[dict[str, Any]]:
    """A search of two steps is noisy: its two best settings both take part, and the one that is faster there is the best."""
    return sorted(searched, key=lambda entry: -entry[unit])[: 1 if quick else 2]


def setting_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("device_batch", "attention", "processes") if name in entry}


def in_rounds(sides: Mapping[str, Mapping[str, Any]], count: int, unit: str) -> dict[str, list[Found]]:
    """Measure every side once a round, every second round backwards; a side that failed in a round lacks it."""
    rounds: dict[str, list[Found]] = {name: [] for name in sides}
    for number in range(count):
        print(f"round {number + 1}", flush=True)
        for name, job in list(sides.items())[:: 1 if number % 2 == 0 else -1]:
            if found := run(job):
                rounds[name].append(found)
                show(name, found, unit)
    return rounds


def winner_of(rounds: Mapping[str, Sequence[Found]], unit: str) -> str:
    """Return the fastest of TRL's finalists, `trl_1` and so on, by the median over the rounds."""
    medians = {n: statistics.median(r[unit] for r in found) for n, found in rounds.items() if n.startswith("trl_") and found}
    if not medians:
        sys.exit("TRL's best settings failed in every round: there is nothing to compare with")
    return max(medians, key=lambda name: medians[name])


def ratios(ours: Sequence[Found], theirs: Sequence[Found], of: Mapping[str, str]) -> dict[str, Any]:
    """Return the median and the range over rounds of ours / theirs; `of` names each ratio's measure.

    Of a time it is theirs / ours, so that what is faster is higher.
    """
    told: dict[str, Any] = {}
    for name, unit in of.items():
        found = [a[unit] / b[unit] for a, b in zip(ours, theirs, strict=False)]  # a side may have failed in a round
        if not found:
            sys.exit("posttrain failed in every round: there is nothing to compare")
        if unit.endswith("seconds_per_step"):
            found = [1 / ratio for ratio in found]
        told[name], told[f"{name}_range"] = statistics.median(found), [min(found), max(found)]
    return told


def write(
    args: argparse.Namespace, unit: str, summary: Any, rounds: Any, extra: Any, searched: Any, settings: Mapping[str, Any]
) -> None:
    given = [f"--{name}" for name in ("natural", "quick") if getattr(args, name)]
    given += [f"--rounds {args.rounds}"] if args.quick and args.rounds > 1 else []
    result = {
        "benchmark": f"train_vs_trl {args.mode}",
        "command": " ".join(["python benchmarks/train_vs_trl.py", args.mode, *given]),
        **facts(args.threads, "trl"),
        "settings": {
            "model": Path(args.model).name, "dtype": args.dtype, "batch": args.batch, "steps": args.steps, **settings
        },
        "unit": unit,
        "summary": summary,
        "rounds": rounds,
        "extra": extra,
        "trl_search": searched,
    }  # fmt: skip
    path = args.out / f"train_vs_trl_{args.mode}{'_quick' if args.quick else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {path}")


def facts(threads: int, *peers: str) -> dict[str, Any]:
    """Return what a result says of when, where and with what it was measured."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=BENCHMARKS, check=False)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "hardware": {"processor": _processor(), "threads": threads, "system": platform.system()},
        "versions": {name: version(name) for name in ("posttrain", "torch", "transformers", *peers)},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
