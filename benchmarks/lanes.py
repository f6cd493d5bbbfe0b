"""What training in two lanes gains over one: the same rows, weights and steps, on all threads of this machine.

    python benchmarks/lanes.py --data gsm8k_train.jsonl

SFT, DPO (its reading of the start included) and the reward model, as `train_vs_trl.py` measures posttrain: every
measurement is a process of its own, the two alternate, the first of the steps does not count.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from against_trl.common import BENCHMARKS, facts, in_rounds, ratios

MODES = {"sft": "tokens_per_second", "dpo": "rows_per_second", "reward": "rows_per_second"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="GSM8K as JSONL with question and rationale")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "lanes.json")
    args = parser.parse_args()
    base = {
        "side": "posttrain", "data": str(args.data.resolve()), "model": args.model, "batch": 8, "steps": 3,
        "threads": args.threads, "dtype": "bfloat16",
    }  # fmt: skip
    found = {}
    for mode, unit in MODES.items():
        print(mode)
        sides = {f"{lanes} lanes": {**base, "mode": mode, "lanes": lanes} for lanes in (1, 2)}
        rounds = in_rounds(sides, args.rounds, unit)
        measures = {"speed_ratio": unit, "memory_ratio": "peak_gb"}
        found[mode] = {"summary": ratios(rounds["2 lanes"], rounds["1 lanes"], measures), "rounds": rounds}
        print(f"  {found[mode]['summary']}")
    settings = {name: base[name] for name in ("batch", "steps", "dtype")} | {"model": Path(args.model).name}
    result = {"benchmark": "lanes", **facts(args.threads), "settings": settings, "found": found}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
