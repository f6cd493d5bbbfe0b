"""The command line in a forked process: as a user's own in all but the imports, which cost a fresh one ten seconds.

Standard streams, working directory, arguments, exit code and a kill are those of a process of its own.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import IO

import torch

from posttrain.cli.main import main

# What a recipe imports when it comes to it: here once, for all children.
for name in ("transformers.models.llama.modeling_llama", "peft", "matplotlib.pyplot", "posttrain.pipeline.run",
             "posttrain.cli.reporting", "posttrain.finetuning.sft", "posttrain.preference.dpo"):  # fmt: skip
    importlib.import_module(name)


class Command:
    """`posttrain` with these arguments, begun."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self.arguments = arguments
        self._streams = [tempfile.TemporaryFile() for _ in ("out", "error")]  # noqa: SIM115
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of forks beside threads, as pytest-xdist's
            self.pid = os.fork()
        if self.pid == 0:
            _become(arguments, cwd, self._streams)
        self._code: int | None = None

    def running(self) -> bool:
        """Whether it has not ended."""
        if self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if ended else None
        return self._code is None

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended, and wait for the end."""
        if self.running():
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Return what it wrote and its exit code, when it has ended."""
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        told = []
        for stream in self._streams:
            stream.seek(0)
            told.append(stream.read().decode())
            stream.close()
        return subprocess.CompletedProcess(self.arguments, self._code, *told)


def posttrain(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return Command(*arguments, cwd=cwd).wait()


def _become(arguments: tuple[str, ...], cwd: Path, streams: list[IO[bytes]]) -> None:
    code = 1
    try:
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream.fileno(), number)
        sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
        os.chdir(cwd)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of which they would warn after a fork
        torch.set_num_threads(torch.get_num_threads())  # as in training_runs.in_child
        sys.argv = ["posttrain", *arguments]
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
