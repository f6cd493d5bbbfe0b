"""SFT, DPO and the reward model beside TRL's: given rows, the same tokens on both sides."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

from .common import Found, finalists_of, in_rounds, ratios, read, search, setting_of, winner_of, write


def rows_of(mode: str, path: Path, count: int) -> list[dict[str, str]]:
    """Read prompts and solutions; a pair's rejected response is the solution of the next problem."""
    found = read(path, count + 1)
    if mode == "sft":
        return [{"prompt": r["question"], "completion": r["rationale"]} for r in found[:count]]
    pairs = itertools.pairwise(found)
    return [{"prompt": a["question"], "chosen": a["rationale"], "rejected": b["rationale"]} for a, b in pairs]


def measure(job: dict[str, Any], out: Path) -> Found:
    rows = rows_of(job["mode"], Path(job["data"]), job["batch"] * job["steps"])
    return {"posttrain": measure_posttrain, "trl": measure_trl, "limit": measure_limit}[job["side"]](job, rows, out)


def rates(ends: list[float], tokens: list[int], job: dict[str, Any], reference_seconds: float = 0.0) -> Found:
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


def measure_posttrain(job: dict[str, Any], rows: list[dict[str, str]], out: Path) -> Found:
    from posttrain.core.types import Checkpoint
    from posttrain.finetuning.sft import Sft
    from posttrain.preference.dpo import Dpo
    from posttrain.preference.reward_model import RewardModel
    from posttrain.training import reference
    from posttrain.training.batching import step_rows
    from posttrain.training.kept_logps import KeptLogps
    from posttrain.training.step import Learner

    ends: list[float] = []
    update = Learner.update

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = update(self, *args, **kwargs)
        ends.append(time.perf_counter())
        return found

    Learner.update = timed  # type: ignore[method-assign]
    KeptLogps.get = lambda *_: None  # type: ignore[method-assign]  # what a round before has read is read again
    kind = {"sft": Sft, "dpo": Dpo, "reward": RewardModel}[job["mode"]]
    method = kind(batch_size=job["batch"], dtype=job["dtype"], save_every=0, lr=1e-5, lanes=job.get("lanes", 0))
    method(Checkpoint(path=Path(job["model"])), rows, out, seed=0)
    lengths = row_tokens(job, rows)
    order = [step_rows(s, rows=len(rows), batch_size=job["batch"], seed=0) for s in range(job["steps"])]
    tokens = [sum(lengths[i] for i in step) for step in order]
    spent = reference._read(out / "reference", _key(out))[1].seconds if job["mode"] == "dpo" else 0.0
    return rates(ends, tokens, job, spent)


def _key(out: Path) -> str:
    return str(json.loads((out / "checkpoint" / "posttrain.json").read_text())["key"])


def measure_trl(job: dict[str, Any], rows: list[dict[str, str]], out: Path) -> Found:
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
    at_a_time = job["device_batch"] * job.get("processes", 1)
    common = {
        "output_dir": str(out), "per_device_train_batch_size": job["device_batch"], "num_train_epochs": 1,
        "gradient_accumulation_steps": job["batch"] // at_a_time, "learning_rate": 1e-5, "report_to": [],
        "save_strategy": "no", "use_cpu": True, "max_length": None, "disable_tqdm": True,
    }  # fmt: skip
    if not job["defaults"]:
        common |= {"gradient_checkpointing": False, "bf16": bool(job.get("autocast"))}
    if "processes" in job:
        common |= {"ddp_backend": "gloo", "ddp_find_unused_parameters": False}
    spent = 0.0
    if job["mode"] == "sft":
        config: Any = SFTConfig(**common, completion_only_loss=True)
        kind: Any = SFTTrainer
    elif job["mode"] == "reward":
        config, kind = RewardConfig(**common), RewardTrainer
    else:
        ahead = not job["defaults"] and "processes" not in job  # TRL's processes look for it in folders of their own
        config = DPOConfig(**common, precompute_ref_log_probs=ahead)
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


def measure_limit(job: dict[str, Any], rows: list[dict[str, str]], out: Path) -> Found:
    import torch

    from posttrain.finetuning.sft import encode_row
    from posttrain.models.forward import Forward
    from posttrain.models.load import load
    from posttrain.preference.dpo import encode_pair
    from posttrain.training.batching import dealt, micro_batches, step_rows
    from posttrain.training.lanes import Lanes

    loaded = load(job["model"], dtype=job["dtype"])
    lanes = Lanes(Forward(loaded.model), min(2, job["threads"]))
    head = loaded.model.get_output_embeddings().weight.detach()
    ends: list[float] = []
    lengths = row_tokens(job, rows)
    tokens, computed, trained = [], 0, 0
    for s in range(job["steps"]):
        chosen = step_rows(s, rows=len(rows), batch_size=job["batch"], seed=0)
        if job["mode"] == "sft":
            groups: list[Any] = [[encode_row(loaded.tokenizer, rows[i], train="all", where="")] for i in chosen]
        else:
            groups = [encode_pair(loaded.tokenizer, rows[i], where="") for i in chosen]
        shares = dealt(groups, [sum(len(e.ids) for e in g) for g in groups], len(lanes))

        def work(forward: Any, lane: int, shares: Any = shares) -> list[tuple[int, int]]:
            counts = []
            for batch in micro_batches(*shares[lane], 1024):
                packed = forward.batch(batch)
                hidden = forward.hidden(packed)
                hidden.backward(torch.ones_like(hidden))
                counts.append((packed.tokens, len(packed.targets_N)))
                if job.get("whole"):
                    with torch.no_grad():
                        reads = [hidden] if job["mode"] == "sft" else [hidden, forward.hidden(packed)]  # DPO's start
                        for i, read in enumerate(reads):
                            _products(read, head, backward=i == 0)
            forward.zero_grad()
            return counts

        for here, there in itertools.chain.from_iterable(lanes.run(work)):
            computed, trained = computed + here, trained + there
        tokens.append(sum(lengths[i] for i in chosen))
        ends.append(time.perf_counter())
    shape = loaded.shape
    share = 0.0 if job["mode"] == "reward" else shape.head_params * trained / (shape.matmul_params * computed)
    return {**rates(ends, tokens, job), "products_of_the_head": share}  # as a share of the others, in it or not


def _products(hidden_ND: Any, head_VD: Any, *, backward: bool) -> None:
    """Do a head's matrix products, in blocks of tokens, and nothing else: logits, and their gradients' where wanted."""
    for block_ND in hidden_ND.split(512):
        logits_NV = block_ND.mm(head_VD.T)
        if backward:
            logits_NV.mm(head_VD)
            logits_NV.T.mm(block_ND)


# The comparison ------------------------------------------------------------------------------------------------------


def compare(args: argparse.Namespace) -> None:
    unit = "tokens_per_second" if args.mode == "sft" else "rows_per_second"
    base = {
        "mode": args.mode, "data": str(args.data.resolve()), "model": args.model, "batch": args.batch, "steps": args.steps,
        "threads": args.threads, "dtype": args.dtype, "defaults": False,
    }  # fmt: skip
    short = {**base, "steps": 2}  # the same rows for every setting
    batches = [b for b in ((1, 2) if args.quick else sorted({1, 2, args.batch})) if args.batch % b == 0]
    attentions = ("eager",) if args.quick else ("eager", "sdpa")
    sides: dict[str, dict[str, Any]] = {"posttrain": {**base, "side": "posttrain"}}
    searched = search(((b, a, short) for b in batches for a in attentions), unit)
    theirs = {f"trl_{i + 1}": entry for i, entry in enumerate(finalists_of(searched, unit, quick=args.quick))}
    sides |= {name: {**base, "side": "trl", **setting_of(entry)} for name, entry in theirs.items()}
    best_of = {"trl_best": list(theirs)}
    if args.threads > 1:
        many = {"processes": 2}
        singly = [b for b in batches if args.batch % (2 * b) == 0]
        found = search(((b, a, {**short, **many}) for b in singly for a in attentions), unit, needed=False)
        searched += found
        for entry in finalists_of(found, unit, quick=True):  # none, where it failed at every setting
            sides["trl_two_processes"] = {**base, "side": "trl", **setting_of(entry)}
    if not args.quick:
        wide = {"dtype": "float32", "autocast": args.dtype != "float32"}  # what the optimiser sees with us
        found = search(((b, a, {**short, **wide}) for b in batches for a in attentions), unit)
        searched += found
        same = {**base, "side": "trl", **wide}
        theirs = {f"trl_equal_types_{i + 1}": entry for i, entry in enumerate(finalists_of(found, unit, quick=False))}
        sides |= {name: {**same, **setting_of(entry)} for name, entry in theirs.items()}
        best_of["trl_equal_types"] = list(theirs)
        at_once = [entry for entry in found if entry["device_batch"] == args.batch]
        if at_once:
            sides["trl_at_once"] = {**same, **setting_of(finalists_of(at_once, unit, quick=True)[0])}
        if args.batch % 8 == 0:
            defaults = {"device_batch": 8, "attention": "sdpa", "defaults": True, "dtype": "float32"}
            sides["trl_defaults"] = {**base, "side": "trl", **defaults}
    sides["limit_without_logits"] = {**base, "side": "limit"}
    if args.mode != "reward":
        sides["limit_with_logits"] = {**base, "side": "limit", "whole": True}
    rounds = in_rounds(sides, args.rounds, unit)
    for side, names in best_of.items():
        winner = winner_of({name: rounds[name] for name in names}, unit)
        rounds[side], sides[side] = rounds.pop(winner), sides.pop(winner)
    best = sides["trl_best"]
    measures = {"speed_ratio": unit, "memory_ratio": "peak_gb"}
    summary = ratios(rounds["posttrain"], rounds["trl_best"], measures)
    for name in ("trl_two_processes", "trl_equal_types", "trl_at_once", "trl_defaults"):
        if rounds.get(name):
            summary[name] = ratios(rounds["posttrain"], rounds[name], measures)
    if rounds["limit_without_logits"]:
        limit = rounds["limit_without_logits"]
        summary["of_the_limit"] = ratios(rounds["posttrain"], limit, {"speed_ratio": unit})
        summary["of_the_limit"]["products_of_the_head"] = limit[0]["products_of_the_head"]
    if rounds.get("limit_with_logits"):
        summary["of_the_limit_with_logits"] = ratios(rounds["posttrain"], rounds["limit_with_logits"], {"speed_ratio": unit})
    print(f"{args.mode}: TRL's best is batch {best['device_batch']}, {best['attention']}")
    for name, told in {"trl_best": summary, **{n: t for n, t in summary.items() if isinstance(t, dict)}}.items():
        low, high = told["speed_ratio_range"]
        memory = f", peak memory {told['memory_ratio']:.2f}" if "memory_ratio" in told else ""
        print(f"  posttrain / {name:20} speed {told['speed_ratio']:.2f} [{low:.2f}, {high:.2f}]{memory}")
    if rounds["limit_without_logits"]:
        told = summary["limit_of_trl_best"] = ratios(
            rounds["limit_without_logits"], rounds["trl_best"], {"speed_ratio": unit}
        )
        print(f"  the limit without logits / trl_best: {told['speed_ratio']:.2f}")
    settings = {name: setting_of(side) for name, side in sides.items() if side["side"] == "trl"}
    write(args, unit, summary, rounds, {}, searched, settings)
