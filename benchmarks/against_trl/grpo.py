"""GRPO beside TRL's: a step is sampling, rewarding and one update, of the same questions on both sides."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import rewards
from .common import Found, finalists_of, in_rounds, ratios, read, search, setting_of, winner_of, write

LR = 1e-6
UNIT = "tokens_per_second"
MEASURES = {"speed_ratio": UNIT, "seconds_ratio": "seconds_per_step", "memory_ratio": "peak_gb"}


def rows_of(path: Path, *, batch: int, steps: int, flat: int) -> list[dict[str, str]]:
    """Return different questions, in the order of the file; `flat` of each step's are marked to have no variance."""
    from posttrain.training.batching import step_rows

    questions = list(dict.fromkeys(row["question"] for row in read(path)))[: batch * steps]
    if len(questions) < batch * steps:
        raise SystemExit(f"{path}: {len(questions)} different questions, and {steps} steps of {batch} need {batch * steps}")
    rows = [{"prompt": question, "answer": "apart"} for question in questions]
    for s in range(steps):
        for i in step_rows(s, rows=len(rows), batch_size=batch, seed=0)[:flat]:
            rows[i]["answer"] = rewards.FLAT
    return rows


# One measurement ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Steps:
    """What each step did, and when it ended. Lengths are of every completion: its prompt's tokens, its own."""

    ends: list[float] = field(default_factory=list)
    sampling: list[float] = field(default_factory=list)  # seconds
    drawn: list[list[tuple[int, int]]] = field(default_factory=list)
    trained: list[list[tuple[int, int]]] = field(default_factory=list)

    @contextmanager
    def sampled(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.sampling.append(time.perf_counter() - began)


def rates(steps: Steps) -> Found:
    """Return a step's means over all steps but the first, which warms up.

    A plain trainer's tokens count: each generated token once, and of each completion trained its prompt and itself.
    """
    count = len(steps.ends) - 1
    seconds, sampling = steps.ends[-1] - steps.ends[0], sum(steps.sampling[1:])
    drawn, trained = ([pair for step in each[1:] for pair in step] for each in (steps.drawn, steps.trained))
    generated, sequences = sum(own for _, own in drawn), sum(prompt + own for prompt, own in trained)
    return {
        "tokens_per_second": (generated + sequences) / seconds,
        "seconds_per_step": seconds / count,
        "sampling_seconds_per_step": sampling / count,
        "training_seconds_per_step": (seconds - sampling) / count,  # rewards too
        "generated_tokens_per_step": generated / count,
        "trained_tokens_per_step": sum(own for _, own in trained) / count,
        "trained_sequence_tokens_per_step": sequences / count,
        "completions_per_step": len(drawn) / count,
        "trained_completions_per_step": len(trained) / count,
    }


def measure(job: dict[str, Any], out: Path) -> Found:
    rows = rows_of(Path(job["data"]), batch=job["batch"], steps=job["steps"], flat=job["flat"])
    return rates((measure_posttrain if job["side"] == "posttrain" else measure_trl)(job, rows, out))


def measure_posttrain(job: dict[str, Any], rows: Sequence[dict[str, str]], out: Path) -> Steps:
    from posttrain.core.types import Checkpoint
    from posttrain.engines.local import engine
    from posttrain.preference.grpo import Grpo

    if job["full"]:  # nothing ends a completion but the limit; TRL has a setting for it
        engine.end_ids = lambda *_: frozenset()  # type: ignore[assignment]
    function = "some_flat,gold=true" if job["flat"] else "apart"
    method = Grpo(
        task="gsm8k", task_data=job["data"], rewards=(f"function:call={rewards.__file__}:{function}",), group=job["samples"],
        rollout_tokens=job["tokens"], batch_size=job["batch"], dtype=job["dtype"], save_every=0, lr=LR,
    )  # fmt: skip
    steps = watched(every=job["every"])
    method(Checkpoint(path=Path(job["model"])), rows, out, seed=0)
    return steps


def watched(*, every: bool) -> Steps:
    """Have posttrain's GRPO in this process note its steps; with `every` it trains completions without an advantage too."""
    from posttrain.preference import grpo
    from posttrain.training.rollouts import Policy
    from posttrain.training.step import Learner

    steps = Steps()
    update, rollouts, parts_of = Learner.update, Policy.rollouts, grpo.parts_of

    def updated(self: Any, items: Sequence[Any], **given: Any) -> Any:
        found = update(self, items, **given)
        steps.ends.append(time.perf_counter())
        steps.trained.append([_lengths(encoded) for item in items for encoded in item.group])
        return found

    def sampled(self: Any, *args: Any, **given: Any) -> Any:
        with steps.sampled():
            found = rollouts(self, *args, **given)
        steps.drawn.append([_lengths(rollout.encoded) for each in found[0] for rollout in each])
        return found

    Learner.update, Policy.rollouts = updated, sampled  # type: ignore[method-assign]
    if every:
        grpo.parts_of = lambda *args, **given: parts_of(*args, **{**given, "every": True})
    return steps


def _lengths(encoded: Any) -> tuple[int, int]:
    return len(encoded.ids) - encoded.trained, encoded.trained


def measure_trl(job: dict[str, Any], rows: Sequence[dict[str, str]], out: Path) -> Steps:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from posttrain.models.load import resolve
    from posttrain.training.batching import step_rows

    steps = Steps()

    class Timed(GRPOTrainer):  # type: ignore[misc]
        def _generate_single_turn(self, prompt_ids: Any, *args: Any, **given: Any) -> Any:
            with steps.sampled():
                found = super()._generate_single_turn(prompt_ids, *args, **given)
            steps.drawn.append([(len(asked), len(own)) for asked, own in zip(prompt_ids, found[0], strict=True)])
            return found

    class Stamp(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.ends.append(time.perf_counter())
            steps.trained.append(steps.drawn[-1])

    path = resolve(job["model"])
    order = [i for s in range(job["steps"]) for i in step_rows(s, rows=len(rows), batch_size=job["batch"], seed=0)]
    Timed(
        model=AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, job["dtype"]), attn_implementation=job["attention"]
        ),
        reward_funcs=rewards.for_trl(job["samples"]),
        args=GRPOConfig(
            output_dir=str(out), per_device_train_batch_size=job["device_batch"], num_train_epochs=1,
            gradient_accumulation_steps=job["batch"] * job["samples"] // job["device_batch"], learning_rate=LR,
            num_generations=job["samples"], max_completion_length=job["tokens"], temperature=1.0, beta=0.0, loss_type="grpo",
            shuffle_dataset=False, gradient_checkpointing=False, bf16=False, use_cpu=True, report_to=[], save_strategy="no",
            disable_tqdm=True, generation_kwargs={"min_new_tokens": job["tokens"]} if job["full"] else None,
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": rows[i]["prompt"]}]} for i in order]),
        processing_class=AutoTokenizer.from_pretrained(path),
        callbacks=[Stamp()],
    ).train()  # fmt: skip
    return steps


# The comparison -------------------------------------------------------------------------------------------------------


def compare(args: argparse.Namespace) -> None:
    whole = args.batch * args.samples
    base = {
        "mode": "grpo", "data": str(args.data.resolve()), "model": args.model, "batch": args.batch, "steps": args.steps,
        "samples": args.samples, "tokens": args.tokens, "threads": args.threads, "dtype": args.dtype,
        "full": not args.natural, "flat": 0, "every": False,
    }  # fmt: skip
    batches = [b for b in ((4,) if args.quick else (1, 2, 4, 8)) if whole % b == 0 and b < whole]
    attentions = ("eager",) if args.quick else ("eager", "sdpa")
    searched = search(((b, a, {**base, "steps": 2}) for b in (*batches, whole) for a in attentions), UNIT)
    finalists = finalists_of(searched, UNIT, quick=args.quick)
    sides: dict[str, dict[str, Any]] = {"posttrain": {**base, "side": "posttrain"}}
    sides |= {f"trl_{i + 1}": {**base, "side": "trl", **setting_of(entry)} for i, entry in enumerate(finalists)}
    at_once = finalists_of([e for e in searched if e["device_batch"] == whole], UNIT, quick=True)
    if at_once and at_once[0] not in finalists:
        sides["trl_at_once"] = {**base, "side": "trl", **setting_of(at_once[0])}
    flat = round(args.flat_share * args.batch)
    if flat:
        sides["some_flat_skipped"] = {**base, "side": "posttrain", "flat": flat}
        sides["some_flat_trained"] = {**base, "side": "posttrain", "flat": flat, "every": True}
    rounds = in_rounds(sides, args.rounds, UNIT)
    _check(rounds, whole, whole - flat * args.samples)
    report(args, sides, rounds, searched)


def _check(rounds: dict[str, list[Found]], whole: int, fewer: int) -> None:
    """Exit if a side did not train as many completions as its rewards are made for."""
    for name, found in rounds.items():
        wanted = fewer if name == "some_flat_skipped" else whole
        for each in found:
            if (each["completions_per_step"], each["trained_completions_per_step"]) != (whole, wanted):
                raise SystemExit(f"{name} drew and trained other completions than {whole} and {wanted} a step: {each}")


def report(
    args: argparse.Namespace, sides: dict[str, dict[str, Any]], rounds: dict[str, list[Found]], searched: Sequence[Any]
) -> None:
    whole, ours = args.batch * args.samples, rounds["posttrain"]
    winner = winner_of({n: r for n, r in rounds.items() if n != "trl_at_once"}, UNIT)
    at_once = next((n for n, s in sides.items() if s.get("device_batch") == whole and rounds[n]), None)
    summary = ratios(ours, rounds[winner], MEASURES)
    if at_once is not None:
        summary["at_once"] = ratios(ours, rounds[at_once], MEASURES)
    skipped, trained = (rounds.get(f"some_flat_{name}") for name in ("skipped", "trained"))
    if skipped and trained:
        gain = ratios(skipped, trained, {"training_ratio": "training_seconds_per_step", "seconds_ratio": "seconds_per_step"})
        summary["zero_advantage"] = {"share_of_questions": round(args.flat_share * args.batch) / args.batch, **gain}
    for name, found in (("best", summary), ("at once", summary.get("at_once"))):
        if found:
            side = sides[winner if name == "best" else str(at_once)]
            print(
                f"grpo: posttrain / TRL, {name} (batch {side['device_batch']}, {side['attention']}): "
                f"{found['speed_ratio']:.2f} in tokens a second, {found['seconds_ratio']:.2f} in seconds a step, peak "
                f"memory {found['memory_ratio']:.2f}"
            )
    if "zero_advantage" in summary:
        found = summary["zero_advantage"]
        print(
            f"grpo: skipping completions without an advantage, where {found['share_of_questions']:.0%} of the questions "
            f"have no variance: {found['training_ratio']:.2f} in training, {found['seconds_ratio']:.2f} in seconds a step"
        )
    settings = {
        "samples": args.samples, "tokens": args.tokens, "full_length": not args.natural, "flat_share": args.flat_share,
        "trl_best": setting_of(sides[winner]), "trl_at_once": None if at_once is None else setting_of(sides[at_once]),
    }  # fmt: skip
    named = {"trl_best" if name == winner else name: found for name, found in rounds.items()}
    extra = {name: named.pop(name) for name in list(named) if name not in ("posttrain", "trl_best")}
    write(args, UNIT, summary, named, extra, searched, settings)
