"""Training throughput and memory against TRL on the same rows, model, weights' type and optimiser step.

    python benchmarks/train_vs_trl.py
    python benchmarks/train_vs_trl.py dpo --data gsm8k_train.jsonl --quick
    python benchmarks/train_vs_trl.py reward --data gsm8k_train.jsonl

Every measurement is a process of its own (so peak memory is its own), the two sides alternate, the first optimiser step
warms up and does not count. TRL runs at its best setting, found by a small search over per-device batch and attention
implementation (no gradient checkpointing, no autocast: the fastest there is for bfloat16 weights) whose two best settings
are measured in every round, and at its defaults beside it. Both optimise `--batch` rows a step on the loss of the
completion only. DPO's time includes the reference's log-probabilities. With bfloat16 weights TRL keeps gradients and
AdamW's moments in bfloat16 too; posttrain keeps them and a copy of the weights in float32, so TRL with float32 weights
and autocast is shown as well. The limit is forward and backward of the same tokens without any logits or optimiser.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def rows_of(mode: str, path: Path, count: int) -> list[dict[str, str]]:
    """Read prompts and solutions; a pair's rejected response is the solution of the next problem."""
    read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[: count + 1]]
    if mode == "sft":
        return [{"prompt": r["question"], "completion": r["rationale"]} for r in read[:count]]
    pairs = itertools.pairwise(read)
    return [{"prompt": a["question"], "chosen": a["rationale"], "rejected": b["rationale"]} for a, b in pairs]


# One measurement, in a process of its own ----------------------------------------------------------------------------


def measure(job: dict[str, Any]) -> dict[str, float]:
    import torch

    torch.set_num_threads(job["threads"])
    rows = rows_of(job["mode"], Path(job["data"]), job["batch"] * job["steps"])
    with tempfile.TemporaryDirectory() as out:
        found = {"posttrain": measure_posttrain, "trl": measure_trl, "limit": measure_limit}[job["side"]](
            job, rows, Path(out)
        )
    return {**found, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def rates(ends: list[float], tokens: list[int], job: dict[str, Any], reference_seconds: float = 0.0) -> dict[str, float]:
    """Rates over all steps but the first; the reference's time counts in proportion to the rows."""
    seconds = ends[-1] - ends[0] + reference_seconds * (job["steps"] - 1) / job["steps"]
    measured = (job["steps"] - 1) * job["batch"]
    return {"tokens_per_second": sum(tokens[1:]) / seconds, "rows_per_second": measured / seconds, "seconds": seconds}


def row_tokens(job: dict[str, Any], rows: list[dict[str, str]]) -> list[int]:
    """Return each row's tokens as a plain trainer sees them: the prompt once per response."""
    from posttrain.finetuning.sft import encode_row
    from posttrain.models.load import load_tokenizer, resolve
    from posttrain.preference.dpo import encode_pair

    tokenizer = load_tokenizer(resolve(job["model"]))
    if job["mode"] == "sft":
        return [len(encode_row(tokenizer, row, train="all", where="row").ids) for row in rows]
    return [sum(len(e.ids) for e in encode_pair(tokenizer, row, where="row")) for row in rows]


def measure_posttrain(job: dict[str, Any], rows: list[dict[str, str]], out: Path) -> dict[str, float]:
    from posttrain.core.types import Checkpoint
    from posttrain.finetuning.sft import Sft
    from posttrain.preference.dpo import Dpo
    from posttrain.preference.reward_model import RewardModel
    from posttrain.training import reference
    from posttrain.training.batching import step_rows
    from posttrain.training.step import Learner

    ends: list[float] = []
    update = Learner.update

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = update(self, *args, **kwargs)
        ends.append(time.perf_counter())
        return found

    Learner.update = timed  # type: ignore[method-assign]
    kind = {"sft": Sft, "dpo": Dpo, "reward": RewardModel}[job["mode"]]
    method = kind(batch_size=job["batch"], dtype=job["dtype"], save_every=0, lr=1e-5)
    method(Checkpoint(path=Path(job["model"])), rows, out, seed=0)
    lengths = row_tokens(job, rows)
    order = [step_rows(s, rows=len(rows), batch_size=job["batch"], seed=0) for s in range(job["steps"])]
    tokens = [sum(lengths[i] for i in step) for step in order]
    spent = reference._read(out / "reference", _key(out))[1].seconds if job["mode"] == "dpo" else 0.0
    return rates(ends, tokens, job, spent)


def _key(out: Path) -> str:
    return str(json.loads((out / "checkpoint" / "posttrain.json").read_text())["key"])


def measure_trl(job: dict[str, Any], rows: list[dict[str, str]], out: Path) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    from posttrain.models.load import resolve
    from posttrain.training.batching import step_rows

    path = resolve(job["model"])
    order = [i for s in range(job["steps"]) for i in step_rows(s, rows=len(rows), batch_size=job["batch"], seed=0)]
    lengths = row_tokens(job, rows)
    tokens = [sum(lengths[i] for i in order[s * job["batch"] :][: job["batch"]]) for s in range(job["steps"])]

    def turns(row: dict[str, str]) -> dict[str, Any]:
        return {k: [{"role": "user" if k == "prompt" else "assistant", "content": v}] for k, v in row.items()}

    data = Dataset.from_list([turns(rows[i]) for i in order])
    loader: Any = AutoModelForSequenceClassification if job["mode"] == "reward" else AutoModelForCausalLM
    model = loader.from_pretrained(
        path, dtype=getattr(torch, job["dtype"]), attn_implementation=job["attention"],
        **({"num_labels": 1} if job["mode"] == "reward" else {}),
    )  # fmt: skip
    common = {
        "output_dir": str(out), "per_device_train_batch_size": job["device_batch"], "num_train_epochs": 1,
        "gradient_accumulation_steps": job["batch"] // job["device_batch"], "learning_rate": 1e-5, "report_to": [],
        "save_strategy": "no", "use_cpu": True, "max_length": None, "disable_tqdm": True,
    }  # fmt: skip
    if not job["defaults"]:
        common |= {"gradient_checkpointing": False, "bf16": bool(job.get("autocast"))}
    spent = 0.0
    if job["mode"] == "sft":
        config: Any = SFTConfig(**common, completion_only_loss=True)
        kind: Any = SFTTrainer
    elif job["mode"] == "reward":
        config, kind = RewardConfig(**common), RewardTrainer
    else:
        config = DPOConfig(**common, precompute_ref_log_probs=not job["defaults"])
        kind = DPOTrainer

    class InOrder(kind):  # type: ignore[misc]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal spent
            began = time.perf_counter()
            found = super()._precompute_ref_logps(*args, **kwargs)
            spent += time.perf_counter() - began
            return found

    ends: list[float] = []

    class Stamp(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    trainer = InOrder(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(path),
        callbacks=[Stamp()],
    )
    trainer.train()
    return rates(ends, tokens, job, spent)


def measure_limit(job: dict[str, Any], rows: list[dict[str, str]], out: Path) -> dict[str, float]:
    import torch

    from posttrain.finetuning.sft import encode_row
    from posttrain.models.forward import Forward
    from posttrain.models.load import load
    from posttrain.preference.dpo import encode_pair
    from posttrain.training.batching import micro_batches, step_rows

    loaded = load(job["model"], dtype=job["dtype"])
    forward = Forward(loaded.model)
    ends: list[float] = []
    lengths = row_tokens(job, rows)
    tokens = []
    for s in range(job["steps"]):
        chosen = step_rows(s, rows=len(rows), batch_size=job["batch"], seed=0)
        if job["mode"] == "sft":
            groups: list[Any] = [[encode_row(loaded.tokenizer, rows[i], train="all", where="")] for i in chosen]
        else:
            groups = [encode_pair(loaded.tokenizer, rows[i], where="") for i in chosen]
        for batch in micro_batches(groups, [sum(len(e.ids) for e in g) for g in groups], 1024):
            hidden = forward.hidden(forward.batch(batch))
            hidden.backward(torch.ones_like(hidden))
        loaded.model.zero_grad()
        tokens.append(sum(lengths[i] for i in chosen))
        ends.append(time.perf_counter())
    return rates(ends, tokens, job)


# The comparison ------------------------------------------------------------------------------------------------------


def run(job: dict[str, Any]) -> dict[str, float] | None:
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        print(f"  failed: {done.stderr.strip().splitlines()[-1][:200]}", flush=True)
        return None
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def show(name: str, found: dict[str, float], unit: str) -> None:
    print(f"  {name:34} {found[unit]:8.2f} {unit.replace('_per_second', '/s')}   {found['peak_gb']:.2f} GB peak", flush=True)


def compare(args: argparse.Namespace) -> None:
    unit = "tokens_per_second" if args.mode == "sft" else "rows_per_second"
    base = {
        "mode": args.mode, "data": str(args.data.resolve()), "model": args.model, "batch": args.batch, "steps": args.steps,
        "threads": args.threads, "dtype": args.dtype, "defaults": False,
    }  # fmt: skip
    batches = [b for b in ((1, 2) if args.quick else (1, 2, 4, 8)) if args.batch % b == 0]
    attentions = ("eager",) if args.quick else ("eager", "sdpa")
    searched = []
    print("search for TRL's best setting", flush=True)
    for device_batch in batches:
        for attention in attentions:
            small = max(device_batch, args.batch // 2)
            job = {**base, "side": "trl", "device_batch": device_batch, "attention": attention, "batch": small, "steps": 2}
            if found := run(job):
                searched.append({"device_batch": device_batch, "attention": attention, **found})
                show(f"TRL batch {device_batch} {attention}", found, unit)
    # A search of two steps is noisy: its two best settings both take part, and the one that is faster there is the best.
    finalists = sorted(searched, key=lambda entry: -entry[unit])[: 1 if args.quick else 2]
    sides = {"posttrain": {**base, "side": "posttrain"}}
    for place, entry in enumerate(finalists):
        change = {"device_batch": entry["device_batch"], "attention": entry["attention"]}
        sides[f"trl_{place + 1}"] = {**base, "side": "trl", **change}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(1 if args.quick else args.rounds):
        print(f"round {number + 1}", flush=True)
        for name, job in list(sides.items())[:: 1 if number % 2 == 0 else -1]:
            if found := run(job):
                rounds[name].append(found)
                show(name, found, unit)
    medians = {
        name: statistics.median(r[unit] for r in rounds[name]) for name in sides if name != "posttrain" and rounds[name]
    }
    winner = max(medians, key=lambda name: medians[name])
    best = finalists[int(winner.removeprefix("trl_")) - 1]
    others = {name: rounds.pop(name) for name in list(rounds) if name not in ("posttrain", winner)}
    rounds["trl_best"] = rounds.pop(winner)
    sides["trl_best"] = sides[winner]
    extra: dict[str, Any] = {"trl_other_finalists": others} if others else {}
    for name, change in (
        ("limit_without_logits", {"side": "limit"}),
        ("trl_float32_weights_autocast", {**sides["trl_best"], "autocast": True, "steps": 2}),
        ("trl_defaults", {"side": "trl", "device_batch": 8, "attention": "sdpa", "defaults": True, "steps": 2}),
    ):
        if (name == "limit_without_logits" or (args.batch % 8 == 0 and not args.quick)) and (
            found := run({**base, **change})
        ):
            extra[name] = found
            show(name, found, unit)
    report(args, unit, best, searched, rounds, extra)


def report(args: argparse.Namespace, unit: str, best: Any, searched: Any, rounds: Any, extra: Any) -> None:
    ours, theirs = rounds["posttrain"], rounds["trl_best"]
    ratios = [a[unit] / b[unit] for a, b in zip(ours, theirs, strict=True)]
    memory = [a["peak_gb"] / b["peak_gb"] for a, b in zip(ours, theirs, strict=True)]
    summary = {
        "speed_ratio": statistics.median(ratios),
        "speed_ratio_range": [min(ratios), max(ratios)],
        "memory_ratio": statistics.median(memory),
        "memory_ratio_range": [min(memory), max(memory)],
    }
    print(
        f"{args.mode}: posttrain / TRL's best (batch {best['device_batch']}, {best['attention']}): speed "
        f"{summary['speed_ratio']:.2f} [{min(ratios):.2f}, {max(ratios):.2f}], peak memory {summary['memory_ratio']:.2f}"
    )
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False
    ).stdout.strip()
    result = {
        "benchmark": f"train_vs_trl {args.mode}",
        "command": "python benchmarks/train_vs_trl.py " + " ".join([args.mode, *(["--quick"] if args.quick else [])]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "hardware": {"processor": _processor(), "threads": args.threads, "system": platform.system()},
        "versions": {name: version(name) for name in ("posttrain", "torch", "transformers", "trl")},
        "settings": {"model": Path(args.model).name, "dtype": args.dtype, "batch": args.batch, "steps": args.steps},
        "unit": unit,
        "summary": summary,
        "rounds": rounds,
        "extra": extra,
        "trl_search": searched,
    }
    path = HERE / "results" / f"train_vs_trl_{args.mode}{'_quick' if args.quick else ''}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {path.relative_to(HERE.parent)}")


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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(measure(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["sft", "dpo", "reward", "all"], nargs="?", default="all")
    parser.add_argument("--data", type=Path, help="GSM8K as JSONL with question and rationale [default: from the hub]")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch", type=int, default=8, help="rows (pairs) of an optimiser step")
    parser.add_argument("--steps", type=int, default=None, help="optimiser steps, the first of which warms up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two TRL settings, one round")
    args = parser.parse_args()
    if args.steps is not None and args.steps < 2:
        parser.error("--steps must be at least 2: the first one warms up")
    if args.data is not None and not args.data.is_file():
        parser.error(f"no such file: {args.data}")
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or from_hub(Path(folder), parser)
        for mode in ("sft", "dpo", "reward") if args.mode == "all" else (args.mode,):
            steps = args.steps or (3 if mode == "sft" and not args.quick else 2)
            compare(argparse.Namespace(**{**vars(args), "mode": mode, "steps": steps, "data": data}))


if __name__ == "__main__":
    main()
