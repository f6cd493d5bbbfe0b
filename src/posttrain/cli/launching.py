"""A command in the several processes of torchrun: one prints, a failure of any ends all with one message."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout

from ..core.errors import ConfigError, OtherProcessError

__all__ = ["launched", "together"]

_SHARED = ("train", "run")  # commands that several processes can share


def launched() -> bool:
    """Whether torchrun (or a launcher with the same variables) has started several of this process."""
    several = os.environ.get("WORLD_SIZE", "1").isdigit() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and "RANK" in os.environ and "MASTER_ADDR" in os.environ


def together(guarded: Callable[[Callable[[], None], Callable[[str], None]], int], command: Callable[[], None]) -> int:
    """Run a command in all processes and return this one's exit code; `guarded(command, tell)` turns errors into words.

    After a failure this does not return: it ends the process without the order that would wait for others.
    """
    from ..training.launch import lost_connection, meet

    errors, meeting = sys.stderr, meet()
    mine: bool | None = None  # whether this process tells why all end; None: it has had nothing to tell
    rank, failure = meeting.rank, meeting.failure
    with ExitStack() as quiet:

        def tell(sentence: str) -> None:
            nonlocal mine
            mine = failure.is_mine()
            if mine:
                print(sentence, file=errors, flush=True)

        if rank > 0:
            silence = quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))
            quiet.enter_context(redirect_stdout(silence))
            quiet.enter_context(redirect_stderr(silence))
        try:
            code = guarded(lambda: _shared(command, meeting.join), tell)
        except BaseException as error:
            code = 1
            tell(_LOST if lost_connection(error) else traceback.format_exc())
        if not code:
            meeting.leave()
            return 0
        if mine or (mine is None and rank == 0):  # what is wrong on the command line, process 0 has printed already
            failure.told()
        else:
            failure.wait_until_told()
        sys.stdout.flush()
        errors.flush()
        os._exit(code)


_LOST = (
    "error: another process of this run has ended without a word: it was killed, or its memory was not enough; the same "
    "command goes on from the last saved state"
)


def _shared(command: Callable[[], None], join: Callable[[], None]) -> None:
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    if name is not None and name not in _SHARED:
        raise ConfigError(f"posttrain {name} is for one process: start it without torchrun, which is for train and run")
    join()
    try:
        command()
    except OtherProcessError:
        sys.exit(1)
