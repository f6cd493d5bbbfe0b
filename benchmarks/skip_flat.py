"""What skipping completions without an advantage gains GRPO, on a finished training's own questions and rewards.

    python benchmarks/skip_flat.py runs/grpo/08-grpo --data runs/grpo/07-asked/rows.jsonl

The first `--steps` steps of that training are taken from its start, and from what it ended with: as GRPO takes them, and
made to train every completion, in turn, a process each. The learning rate is so small that no weight changes, so both sides
of every step have the same completions, the same loss and the same gradient, which is checked; the first step warms up and
is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from against_trl import grpo
from against_trl.common import BENCHMARKS, Found, facts, ratios, read, show

RATE = 1e-30  # added to a float32 weight it is nothing
MEASURES = {"training_ratio": "training_seconds_per_step", "seconds_ratio": "seconds_per_step"}
TOLERANCE = {"grad_norm": 0.05, "loss": 0.02}  # relative and absolute: with bfloat16 weights sums are rounded by their order


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Take the steps in this process; the measures of every step are beside their means."""
    import torch

    from posttrain.core.types import Checkpoint
    from posttrain.preference.grpo import Grpo

    torch.set_num_threads(job["threads"])
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in job["config"].items()}
    method = Grpo(**{field.name: given[field.name] for field in fields(Grpo) if field.name in given})
    method = replace(method, lr=RATE, save_every=0, eval_share=0.0, eval_data=None, eval_start=False, epochs=1)
    rows = read(Path(job["data"]), job["steps"] * method.batch_size)
    steps = grpo.watched(every=job["every"])
    with tempfile.TemporaryDirectory() as folder:
        method(Checkpoint(path=Path(job["start"])), rows, Path(folder), seed=job["seed"])
        logged = read(Path(folder) / "metrics.jsonl")[1:]
    kept = ("loss", "grad_norm", "reward", "zero_variance", "trained", "reply_tokens")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {**grpo.rates(steps), "peak_gb": peak, "steps": [{name: step[name] for name in kept} for step in logged]}


def run(job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
    if done.returncode:
        sys.exit(f"a measurement failed:\n{done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def check(skipped: dict[str, Any], every: dict[str, Any]) -> None:
    """Exit unless both sides drew the same completions and found the same loss and gradient for them."""
    for a, b in zip(skipped["steps"], every["steps"], strict=True):
        same = all(a[name] == b[name] for name in ("reward", "zero_variance", "reply_tokens"))
        apart = abs(a["grad_norm"] - b["grad_norm"]) / max(a["grad_norm"], b["grad_norm"], 1e-6)
        if not same or apart > TOLERANCE["grad_norm"] or abs(a["loss"] - b["loss"]) > TOLERANCE["loss"]:
            sys.exit(f"the sides differ in more than what they trained:\n{a}\n{b}")


def compare(base: dict[str, Any], count: int) -> dict[str, Any]:
    """Measure both sides in turn, every second round backwards."""
    rounds: dict[bool, list[Any]] = {False: [], True: []}
    for number in range(count):
        for every in (False, True) if number % 2 == 0 else (True, False):
            rounds[every].append(run({**base, "every": every}))
            show("every completion trained" if every else "flat ones skipped", rounds[every][-1], "seconds_per_step")
        check(rounds[False][-1], rounds[True][-1])
    steps = rounds[False][0]["steps"]
    told: Found = {name: statistics.mean(step[name] for step in steps) for name in ("reward", "zero_variance", "trained")}
    told |= ratios(rounds[False], rounds[True], MEASURES)
    return {**told, "rounds": {"skipped": rounds[False], "every": rounds[True]}}


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(measure(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", type=Path, help="folder of a finished training by GRPO, without KL in the loss")
    parser.add_argument("--data", type=Path, required=True, help="the questions that it asked, as JSONL")
    parser.add_argument("--steps", type=int, default=4, help="of which the first one warms up")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "skip_flat.json")
    args = parser.parse_args()
    card = args.stage / "checkpoint" / "posttrain.json"
    if not card.is_file() or not args.data.is_file():
        parser.error(f"no such file: {card if not card.is_file() else args.data}")
    made = json.loads(card.read_text())
    if made["method"] != "grpo" or (made["config"]["kl"] and made["config"]["kl_in"] == "loss"):
        parser.error(f"{args.stage}: not made by grpo without KL in the loss, where every completion has a gradient")
    if args.steps < 2 or args.rounds < 1:
        parser.error("--steps must be at least 2, since the first one warms up, and --rounds at least 1")
    base = {
        "config": made["config"], "data": str(args.data), "steps": args.steps, "threads": args.threads, "seed": made["seed"],
    }  # fmt: skip
    summary = {}
    for name, start in (("at its start", made["start"]["path"]), ("at its end", args.stage / "checkpoint")):
        print(f"{args.stage.name}, {name}", flush=True)
        summary[name] = found = compare({**base, "start": str(start)}, args.rounds)
        print(
            f"{name}: {found['zero_variance']:.0%} of the questions have no variance: skipping their completions is "
            f"{found['training_ratio']:.2f} times as fast in training, {found['seconds_ratio']:.2f} in a whole step"
        )
    settings = {"training": made["config"], "steps": args.steps, "rounds": args.rounds}
    result = {"benchmark": "skip_flat", "stage": args.stage.name, **facts(args.threads), "settings": settings, **summary}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
