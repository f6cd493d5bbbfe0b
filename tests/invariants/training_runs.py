"""Training runs as tests need them: read, compared, killed, in several processes."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from posttrain.core.types import Checkpoint
from posttrain.training.state import Metrics


def metrics(out: Path, timings: bool = False) -> list[dict]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return rows if timings else [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return load_file(next(checkpoint.path.glob("*.safetensors")))


def same(a: dict, b: dict, **tolerance) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def in_child(work: Callable[[], object]) -> int:
    """Run in a forked process (a fresh interpreter would import torch for seconds); returns its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            # torch makes its pool of threads anew after a fork, and threads that ask for it together may find none
            torch.set_num_threads(torch.get_num_threads())
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def exit_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_after(work: Callable[[], object], lines: int) -> None:
    """Run in a process of its own that gets SIGKILL when its metrics have that many lines."""

    def with_count():
        die_after(lines)
        work()

    assert exit_of(in_child(with_count)) == -signal.SIGKILL


def die_after(lines: int) -> None:
    """Let this process get SIGKILL when the metrics of what it trains have that many lines."""
    write = Metrics.write

    def counted(self, row):
        write(self, row)
        if row["step"] == lines and "loss" in row:
            os.kill(os.getpid(), signal.SIGKILL)

    Metrics.write = counted


def two_processes(work: Callable[[], object], meeting: Path) -> list[int]:
    """Run the same in two processes that know of each other; returns their exit codes."""

    def process(rank):
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
        work()

    children = [in_child(lambda rank=rank: process(rank)) for rank in range(2)]
    return [exit_of(child) for child in children]


def spread(first: Iterable, second: Iterable, *, turned: bool = False) -> list:
    """Pairs of both as parameters of a test: every second one in `make test` (`turned`: the others), all in `make test-all`.

    So each value of either meets some of the other's; two tests that are turned against each other meet all pairs.
    """
    pairs = [(i, j, a, b) for i, a in enumerate(first) for j, b in enumerate(second)]
    return [pytest.param(a, b, marks=pytest.mark.slow if (i + j) % 2 != turned else ()) for i, j, a, b in pairs]
