"""What two threads that share every product leave of two processors: forward and backward of the same pairs, three ways.

    python benchmarks/threads_or_processes.py --data gsm8k_train.jsonl

One thread alone; two threads; two processes of one thread each, beside each other, whose rows a second are added up. The
work is the reward model's limit of `train_vs_trl.py`: no logits, no optimiser.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from against_trl.common import BENCHMARKS, Found, facts, run

UNIT = "rows_per_second"


def measured(job: dict[str, Any], processes: int) -> list[Found]:
    """Do the job in so many processes at once."""
    with ThreadPoolExecutor(processes) as pool:
        found = list(pool.map(run, [job] * processes))
    if None in found:
        raise SystemExit("a measurement failed")
    return [each for each in found if each is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="GSM8K as JSONL with question and rationale")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "threads_or_processes.json")
    args = parser.parse_args()
    base = {
        "mode": "reward", "side": "limit", "data": str(args.data.resolve()), "model": args.model, "batch": 8, "steps": 2,
        "dtype": "bfloat16", "defaults": False,
    }  # fmt: skip
    ways = {"one thread": (1, 1), "two threads": (2, 1), "two processes of one thread": (1, 2)}
    rates = {}
    for name, (threads, processes) in ways.items():
        rates[name] = sum(each[UNIT] for each in measured({**base, "threads": threads}, processes))
        print(f"{name:30} {rates[name]:.3f} rows/s", flush=True)
    settings = {name: base[name] for name in ("batch", "steps", "dtype")} | {"model": Path(args.model).name}
    result = {"benchmark": "threads_or_processes", **facts(2), "settings": settings, "unit": UNIT, "rates": rates}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
