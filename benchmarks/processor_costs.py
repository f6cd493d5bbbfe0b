"""What the engine and the training step gain on a processor, each measure apart: with it and without, in turn.

    python benchmarks/processor_costs.py

Linear layers: all those of the model once, with weights packed at every call (PyTorch's own way) or packed once. Helpers:
a decode step in a thread of its own while another thread's OpenMP helpers are idle, or after they have been released.
Sinks: forward and backward of one optimiser step's rows, with the gradients of embedding and head made by autograd, or
added where they are summed. Attention: forward and backward of a layer's, all of a group at once, or in blocks of queries.
Decode: attention of a layer for one new token of every row, as grouped products over dense copies (a stem that rows share is
read once), or of each row where its slot lies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from generate_vs_transformers import facts, spread
from posttrain.engines.local.decode_attention import attend_grouped, attend_in_place
from posttrain.engines.local.packing import PackedLinears
from posttrain.engines.local.runner import Runner
from posttrain.engines.local.runs import Run
from posttrain.engines.local.threads import release_helpers
from posttrain.finetuning.sft import encode_row
from posttrain.models.blocked_attention import Block, attend, blocks_of
from posttrain.models.forward import Forward
from posttrain.models.load import load
from posttrain.training.optimiser import Optimisation, Optimiser

Sides = dict[str, Callable[[], Any]]


def compared(sides: Sides, rounds: int) -> dict[str, Any]:
    """Milliseconds of two sides, measured in turn after a warm-up, and how many times as fast the second is."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, call in sides.items():
            began = time.perf_counter()
            call()
            if number:
                times[name].append((time.perf_counter() - began) * 1e3)
    slow, fast = times.values()
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"milliseconds": medians, "times_as_fast": spread([a / b for a, b in zip(slow, fast, strict=True)])}


def linears(model: Any, rounds: int) -> dict[str, Any]:
    layers = [m for m in model.modules() if type(m) is nn.Linear]
    packed, found = PackedLinears(model), {}
    for rows in (1, 16, 64, 1024):
        inputs = {n: torch.randn(rows, n, dtype=torch.bfloat16) for n in {layer.in_features for layer in layers}}

        def all_layers(inputs: dict[int, torch.Tensor] = inputs) -> None:
            for layer in layers:
                layer(inputs[layer.in_features])

        def with_packed(call: Callable[[], None] = all_layers) -> None:
            with packed.lent():
                call()

        with torch.inference_mode():
            found[f"{rows} rows"] = compared({"packed at every call": all_layers, "packed once": with_packed}, rounds)
    return found


def helpers(model: Any, rounds: int, rows: int = 16) -> dict[str, Any]:
    runner = Runner(model)
    runner.cache.reserve(rows, 256)
    runner.verify()

    def ten_steps() -> None:
        for _ in range(10):
            runner.decode(0, [5] * rows, [200] * rows, [Run(0, rows, 0, 224)])

    def in_a_thread(*, release: bool) -> None:
        torch.randn(1 << 20).sum()  # this thread has helpers now
        if release:
            release_helpers()
        thread = threading.Thread(target=ten_steps)
        thread.start()
        thread.join()

    return compared({"idle": lambda: in_a_thread(release=False), "released": lambda: in_a_thread(release=True)}, rounds)


def training(model: Any, tokenizer: Any, rows: list[dict[str, str]], rounds: int) -> dict[str, Any]:
    forward = Forward(model)
    optimiser = Optimiser(forward, Optimisation(lr=1e-5))
    encoded = [encode_row(tokenizer, row, train="all", where="row") for row in rows]

    def step(*, sinks: bool) -> None:
        forward.collect_into(optimiser.sink if sinks else lambda weight: None)
        for at in range(0, len(encoded), 2):
            batch = forward.batch([[one] for one in encoded[at : at + 2]])
            loss, _ = forward(batch, torch.full(batch.targets_N.shape, 1e-3))
            loss.backward()
        optimiser.discard()

    found = compared({"made by autograd": lambda: step(sinks=False), "added where summed": lambda: step(sinks=True)}, rounds)
    optimiser.close()
    return found


def attention(config: Any, rounds: int) -> dict[str, Any]:
    heads, keys = config.num_attention_heads, config.num_key_value_heads
    size, found = config.hidden_size // heads, {}
    for prefix, branches in ((0, (128,)), (0, (430,)), (0, (1000,)), (100, (128,) * 8)):
        length, blocks = prefix + sum(branches), blocks_of(prefix, branches, None)
        bias = torch.full((length, length), float("-inf"))
        for block in blocks:
            bias[block.start : block.end, : block.prefix] = block.bias_nm[:, : block.prefix]
            bias[block.start : block.end, block.first : block.end] = block.bias_nm[:, block.prefix :]
        shapes = ((heads, length, size), (keys, length, size), (keys, length, size))
        given = [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
        upstream = torch.randn(shapes[0], dtype=torch.bfloat16)

        def layer(blocks: tuple[Block, ...], given: list[torch.Tensor] = given, upstream: torch.Tensor = upstream) -> None:
            q, k, v = given
            torch.autograd.grad(attend(q, k, v, blocks, q.shape[-1] ** -0.5), given, upstream)

        whole = (Block(0, length, 0, 0, bias),)
        name = f"{length} tokens" if not prefix else f"a prompt of {prefix} with {len(branches)} replies of {branches[0]}"
        sides = {"all at once": lambda b=whole, f=layer: f(b), "in blocks": lambda b=blocks, f=layer: f(b)}
        found[name] = compared(sides, 4 * rounds)
    return found


def decode(config: Any, rounds: int) -> dict[str, Any]:
    heads, keys = config.num_attention_heads, config.num_key_value_heads
    size, found = config.hidden_size // heads, {}
    for rows, of_a_prompt, prompt, reach in ((128, 8, 32, 128), (128, 1, 0, 320), (16, 1, 0, 320), (64, 64, 992, 1088)):
        query = torch.randn(rows, heads, 1, size, dtype=torch.bfloat16)
        key, value = torch.randn(2, rows, keys, reach + 64, size).bfloat16()
        mask = torch.zeros(rows, 1, 1, reach + 64, dtype=torch.bfloat16)
        shared = [Run(low, low + of_a_prompt, prompt, reach) for low in range(0, rows, of_a_prompt)] if prompt else []
        runs, scale = shared or [Run(0, rows, 0, reach)], size**-0.5

        def grouped(runs: list[Run] = runs, given: Any = (query, key, value, mask), scale: float = scale) -> None:
            q, k, v, m = given
            q = (q * scale).reshape(len(q), keys, heads // keys, -1)
            for run in runs:
                attend_grouped(run, q, k, v, m, None)

        def in_place(reach: int = reach, given: Any = (query, key, value, mask), scale: float = scale) -> None:
            attend_in_place(Run(0, len(given[0]), 0, reach), *given, scale)

        name = f"{rows} rows of {reach} tokens" + (f", {of_a_prompt} to a prompt of {prompt}" if prompt else "")
        with torch.inference_mode():
            found[name] = compared({"grouped": grouped, "in place": in_place}, 10 * rounds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    loaded = load(args.model, dtype="bfloat16", device="cpu")
    words = "Each of the apples costs two coins and there are seven of them in a box. "
    rows = [{"prompt": words * (3 + i % 3), "completion": words * (5 + i % 4)} for i in range(8)]
    found = {
        "linear layers": linears(loaded.model, args.rounds),
        "a decode step of 16 rows beside another thread's helpers": helpers(loaded.model, args.rounds),
        "forward and backward of 8 rows, gradients of embedding and head": training(
            loaded.model, loaded.tokenizer, rows, args.rounds
        ),
        "attention of a layer, forward and backward": attention(loaded.model.config, args.rounds),
        "attention of a layer in a decode step": decode(loaded.model.config, args.rounds),
    }
    report = {**facts(args), "command": f"python benchmarks/processor_costs.py --rounds {args.rounds}", "results": found}
    path = Path(__file__).parent / "results" / "processor_costs.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))
    print(f"written: benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
