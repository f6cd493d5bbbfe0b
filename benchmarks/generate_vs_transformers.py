"""Tokens per second of the local engine and of transformers, on the same requests, interleaved in one run.

    python benchmarks/generate_vs_transformers.py

Every side answers the same prompts, samples at temperature 1 and writes the same number of tokens per request (the end
of turn is ignored), so that all generate equally many tokens. transformers' `generate` gets the best of a search over
batch size, attention and cache, with requests sorted by output length (which a server could not know); its continuous
batching (`generate_batch`'s manager) gets each request's own limit. A batch of 8 is shown beside.

Models are loaded and engines opened before the clock starts. Every repeat opens a new engine, which has seen nothing of
the work; how long that takes, and the ratio with it in the time, is told beside.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from posttrain.core.types import Message, Prompt, Sampling
from posttrain.data.chat import render_prompt
from posttrain.engines.local import LocalEngine

RESULTS = Path(__file__).parent / "results"
WORDS = ("how", "many", "apples", "trains", "hours", "each", "has", "left", "gives", "takes", "then", "twice", "half")


@dataclass
class Request:
    prompt: Prompt
    ids: list[int]
    tokens: int


def requests(tokenizer, n: int, scale: float, seed: int = 0) -> list[Request]:
    """Prompts of 20 to 150 words, outputs of 32 to 256 tokens (more short than long)."""
    rng, made = random.Random(seed), []
    for _ in range(n):
        words = " ".join(rng.choices(WORDS, k=rng.randint(20, 150)))
        prompt = Prompt(messages=(Message(role="user", content=words),))
        tokens = max(4, round(scale * min(256, 32 + rng.expovariate(1 / 80))))
        made.append(Request(prompt, render_prompt(tokenizer, prompt.messages), tokens))
    return made


def engine_for(model, tokenizer, slots: int | None) -> LocalEngine:
    """A new engine that has packed its weights and checked itself on the model, but has not seen the work."""
    engine = LocalEngine(model, tokenizer, fingerprint="benchmark", **({} if slots is None else {"slots": slots}))
    hello = Prompt(messages=(Message(role="user", content="Hello"),))
    asyncio.run(engine.generate(hello, Sampling(max_tokens=1), seed=0))
    return engine


def ours(engine: LocalEngine, work: list[Request]) -> int:
    async def go():
        return await asyncio.gather(
            *[engine.generate(r.prompt, Sampling(temperature=1.0, max_tokens=r.tokens), seed=i) for i, r in enumerate(work)]
        )

    return sum(len(c.tokens) for completions in asyncio.run(go()) for c in completions)


def generate(model, tokenizer, work: list[Request], *, batch: int, attention: str, cache: str) -> int:
    """Return the useful tokens: what a batch writes beyond a request's own limit is waste."""
    model.set_attn_implementation(attention)
    work = sorted(work, key=lambda r: (r.tokens, len(r.ids)), reverse=True)
    for at in range(0, len(work), batch):
        part = work[at : at + batch]
        width = max(len(r.ids) for r in part)
        ids = torch.tensor([[0] * (width - len(r.ids)) + r.ids for r in part])
        mask = torch.tensor([[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in part])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=part[0].tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=0,
                cache_implementation=cache if cache != "dynamic" else None,
                disable_compile=True,
            )
        if out.shape[1] != width + part[0].tokens:
            raise RuntimeError("generate stopped early: the comparison would not be fair")
    return sum(r.tokens for r in work)


def continuous(model, tokenizer, work: list[Request], *, page: int = 32) -> int:
    """transformers' continuous batching, every request with its own limit."""
    model.set_attn_implementation("sdpa")
    config = transformers.GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=0, max_new_tokens=256
    )
    longest = max(len(r.ids) + r.tokens for r in work)
    settings = transformers.ContinuousBatchingConfig(
        page_size=page,
        num_blocks=len(work) * (longest // page + 2),
        max_batch_tokens=1024,
        use_cuda_graph=False,
        auto_switch_to_flash=False,
    )
    done, tokens = 0, 0
    with model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=settings, block=True, timeout=5
    ) as manager:
        for r in work:
            manager.add_request(input_ids=r.ids, max_new_tokens=r.tokens)
        while done < len(work):
            result = manager.get_result(timeout=60)
            if result is None:
                raise RuntimeError("continuous batching gave nothing for a minute")
            if result.is_finished():
                done, tokens = done + 1, tokens + len(result.generated_tokens)
    return tokens


def timed(call, expected: int) -> float:
    """Return tokens per second; all sides must have written the same number of tokens."""
    begun = time.perf_counter()
    tokens = call()
    if tokens != expected:
        raise RuntimeError(f"{tokens} tokens instead of {expected}: the comparison would not be fair")
    return tokens / (time.perf_counter() - begun)


def search(model, tokenizer, work: list[Request], batches: list[int]) -> dict:
    """Return the fastest setting of `generate`: batch size first, then attention, then cache, on a shortened workload."""
    best, best_rate = {"batch": 8, "attention": "sdpa", "cache": "dynamic"}, 0.0
    short = [Request(r.prompt, r.ids, max(4, r.tokens // 4)) for r in work]
    expected = sum(r.tokens for r in short)
    trials = [{"batch": b} for b in batches] + [{"attention": "eager"}, {"cache": "static"}]
    for change in trials:
        setting = {**best, **change}
        rate = timed(lambda setting=setting: generate(model, tokenizer, short, **setting), expected)
        print(f"  search {setting}: {rate:.0f} tokens/s", flush=True)
        if rate > best_rate:
            best, best_rate = setting, rate
    return best


def facts(args: argparse.Namespace) -> dict:
    model = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False).stdout
    return {
        "hardware": {"processor": model, "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "commit": commit + ("+changes" if changed.strip() else ""),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": "python benchmarks/generate_vs_transformers.py " + " ".join(sys.argv[1:]),
        "model": Path(args.model).name,
    }


def spread(values: list[float]) -> dict:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def opened(ref: str):
    if Path(ref).is_dir():
        tokenizer = transformers.AutoTokenizer.from_pretrained(ref)
        return transformers.AutoModelForCausalLM.from_pretrained(ref, dtype=torch.bfloat16).eval(), tokenizer
    from posttrain.models.load import load

    loaded = load(ref, dtype="bfloat16", device="cpu")
    return loaded.model, loaded.tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="alias, or a Hugging Face folder")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the lengths of the outputs")
    parser.add_argument("--slots", type=int, help="of the local engine; default: the engine's own")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 64], help="batch sizes tried for generate")
    parser.add_argument("--skip-continuous", action="store_true", help="leave out transformers' continuous batching")
    args = parser.parse_args()

    transformers.logging.set_verbosity_error()
    model, tokenizer = opened(args.model)
    model.generation_config.eos_token_id = None  # on all sides, every request writes all its tokens
    tokenizer.eos_token = None
    torch.manual_seed(0)
    work = requests(tokenizer, args.requests, args.scale)
    expected = sum(r.tokens for r in work)
    prompts = sum(len(r.ids) for r in work)
    print(f"{len(work)} requests, {prompts} prompt tokens, {expected} tokens to write", flush=True)

    default = {"batch": 8, "attention": "sdpa", "cache": "dynamic"}
    first = work[:2]
    ours(engine_for(model, tokenizer, args.slots), first)  # warm-up
    generate(model, tokenizer, first, **default)
    best = search(model, tokenizer, work, args.batches)
    engines: list[LocalEngine] = []
    sides = {
        "posttrain": lambda: ours(engines[-1], work),
        f"transformers generate, best ({best['batch']}, {best['attention']}, {best['cache']})": lambda: generate(
            model, tokenizer, work, **best
        ),
        "transformers generate_batch": lambda: continuous(model, tokenizer, work),
        "transformers generate, batch 8": lambda: generate(model, tokenizer, work, **default),
    }
    if args.skip_continuous:
        del sides["transformers generate_batch"]
    rates: dict[str, list[float]] = {name: [] for name in sides}
    setup: list[float] = []
    for repeat in range(args.repeats):
        begun = time.perf_counter()
        engines[:] = [engine_for(model, tokenizer, args.slots)]  # a new one: nothing of the work is in its slots yet
        setup.append(time.perf_counter() - begun)
        for name, call in sides.items():
            rates[name].append(timed(call, expected))
            print(f"  repeat {repeat + 1}: {name}: {rates[name][-1]:.0f} tokens/s", flush=True)

    mine, peers = rates["posttrain"], {name: r for name, r in rates.items() if name != "posttrain"}
    better = [max(r[i] for r in peers.values()) for i in range(args.repeats)]
    ratio = spread([a / b for a, b in zip(mine, better, strict=True)])
    whole = [expected / (expected / rate + seconds) for rate, seconds in zip(mine, setup, strict=True)]
    with_setup = spread([a / b for a, b in zip(whole, better, strict=True)])
    print(f"\n{'':64} tokens/s (min median max)   posttrain is … times as fast")
    for name, values in rates.items():
        s, q = spread(values), spread([a / b for a, b in zip(mine, values, strict=True)])
        print(
            f"{name:64} {s['min']:7.0f} {s['median']:7.0f} {s['max']:7.0f}   {q['min']:.2f} {q['median']:.2f} {q['max']:.2f}"
        )
    print(f"\nagainst the better peer of each repeat: {ratio['median']:.2f} (from {ratio['min']:.2f} to {ratio['max']:.2f})")
    print(f"with the opening of a new engine ({statistics.median(setup):.1f} s) in the time: {with_setup['median']:.2f}")

    report = {
        **facts(args),
        "workload": {"requests": len(work), "prompt_tokens": prompts, "output_tokens": expected, "temperature": 1.0},
        "best_generate": best,
        "tokens_per_second": rates,
        "ratio_to_better_peer": ratio,
        "setup_seconds": setup,
        "ratio_with_setup": with_setup,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "generate_vs_transformers.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written: benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
