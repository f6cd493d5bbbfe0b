"""Training throughput and memory against TRL on the same rows, model, weights' type and optimiser step.

    python benchmarks/train_vs_trl.py
    python benchmarks/train_vs_trl.py dpo --data gsm8k_train.jsonl --quick
    python benchmarks/train_vs_trl.py reward --data gsm8k_train.jsonl
    python benchmarks/train_vs_trl.py grpo --data gsm8k_train.jsonl --threads 2

Every measurement is a process of its own (so peak memory is its own), the two sides alternate, the first optimiser step
warms up and does not count. TRL runs at its best setting, found by a small search over per-device batch and attention
implementation (no gradient checkpointing, no autocast: the fastest there is for bfloat16 weights) whose two best settings
are measured in every round. Both optimise `--batch` rows a step. With bfloat16 weights TRL keeps gradients and AdamW's
moments in bfloat16 too; posttrain keeps them and a copy of the weights in float32.

sft, dpo, reward: the loss is of the completion only. DPO's time includes the reference's log-probabilities. Measured in
every round beside TRL's best setting: TRL in two processes that have half of the threads each (`trl_two_processes`, for
posttrain, too, deals rows to the processors, in one process); TRL with float32 weights, gradients and moments and autocast,
as wide as what posttrain's optimiser sees, at the best setting of a search of its own (`trl_equal_types`, of two finalists
as well) and with all rows in one micro-batch (`trl_at_once`); TRL at its defaults, which are the same types, batch 8 and
gradient checkpointing; and two limits without an optimiser: forward and backward of the same tokens without any logits, and,
but for reward models, which have none, with the products that logits take, and DPO's reading of the start. The limits deal
rows to the processors as posttrain does.

grpo: a step is sampling, rewarding and one update: `--batch` questions, `--samples` completions each, temperature 1, no KL,
TRL sampling through transformers' `generate` (its default). The reward is a pseudo-random function of the text, so that
every completion is trained on both sides. The sides draw different completions, so all of them are made `--tokens` long:
TRL's may not draw an end token (`min_new_tokens`), ours draw it and go on. So a step is the same work on both sides and
seconds compare; no token of TRL's is padding between completions, which favours TRL. With `--natural` they end as they
will, and tokens a second compare: a generated token counts once, and so does each of a trained completion and its prompt,
as a plain trainer runs them. TRL with all completions in one micro-batch is a row of its own (`trl_at_once`). What skipping
completions without an advantage gains is told apart: with a reward that leaves `--flat-share` of a step's questions without
variance, posttrain as it is against posttrain made to train them all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from against_trl import grpo, offline

MODES = ("sft", "dpo", "reward", "grpo")


def measure(job: dict[str, Any]) -> dict[str, float]:
    """Do one measurement, in this process."""
    import torch

    processes = job.get("processes", 1)
    torch.set_num_threads(max(1, job["threads"] // processes))
    with tempfile.TemporaryDirectory() as out:
        found = (grpo if job["mode"] == "grpo" else offline).measure(job, Path(out))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if processes > 1:  # of all of them together
        together = torch.tensor(peak)
        torch.distributed.all_reduce(together)
        peak = float(together)
    return {**found, "peak_gb": peak}


def from_hub(folder: Path, parser: argparse.ArgumentParser) -> Path:
    """Fetch GSM8K's training problems."""
    from posttrain.core.errors import PosttrainError
    from posttrain.data.sources import read_rows

    try:
        rows = read_rows("openai/gsm8k", split="train", limit=200)
    except PosttrainError as error:
        parser.error(f"{error}; give a local copy with --data FILE")
    path = folder / "gsm8k.jsonl"
    path.write_text("".join(json.dumps({"question": r["question"], "rationale": r["answer"]}) + "\n" for r in rows))
    return path


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        found = measure(json.loads(sys.argv[2]))
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(found))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=[*MODES, "all"], nargs="?", default="all")
    parser.add_argument("--data", type=Path, help="GSM8K as JSONL with question and rationale [default: from the hub]")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch", type=int, help="rows (pairs, questions) of an optimiser step [default: 8; grpo: 4]")
    parser.add_argument("--steps", type=int, default=None, help="optimiser steps, the first of which warms up")
    parser.add_argument("--rounds", type=int, help="[default: 3; with --quick 1]")
    parser.add_argument("--quick", action="store_true", help="a search of two TRL settings, and fewer sides")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results", help="folder of results")
    of_grpo = parser.add_argument_group("grpo")
    of_grpo.add_argument("--samples", type=int, default=8, help="completions of a question")
    of_grpo.add_argument("--tokens", type=int, default=128, help="of a completion")
    of_grpo.add_argument("--natural", action="store_true", help="completions end as they will, at --tokens at the latest")
    of_grpo.add_argument("--flat-share", type=float, default=0.5, help="of the questions, without variance; 0: not measured")
    args = parser.parse_args()
    if args.steps is not None and args.steps < 2:
        parser.error("--steps must be at least 2: the first one warms up")
    if args.samples < 2 or args.tokens < 1 or not 0 <= args.flat_share < 1:
        parser.error("--samples must be at least 2, --tokens at least 1, and --flat-share in [0, 1)")
    if args.data is not None and not args.data.is_file():
        parser.error(f"no such file: {args.data}")
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or from_hub(Path(folder), parser)
        for mode in MODES if args.mode == "all" else (args.mode,):
            steps = args.steps or (3 if mode == "sft" and not args.quick else 2)
            batch = args.batch or (4 if mode == "grpo" else 8)
            rounds = args.rounds or (1 if args.quick else 3)
            changed = {"mode": mode, "steps": steps, "batch": batch, "data": data, "rounds": rounds}
            (grpo if mode == "grpo" else offline).compare(argparse.Namespace(**{**vars(args), **changed}))


if __name__ == "__main__":
    main()
