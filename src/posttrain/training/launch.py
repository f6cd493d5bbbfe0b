"""Joining the processes that torchrun has started, and ending all of them with one message when one fails."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..core.errors import ConfigError

__all__ = ["Failure", "Meeting", "lost_connection", "meet"]

_TELLING = timedelta(seconds=30)  # how long one that has failed waits for another's message to be printed


class Failure:
    """Who tells why a run has failed: the first process to ask; the others may end once it has told.

    The store that the processes met in is used, not a collective: it works while others are stuck or gone.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def is_mine(self) -> bool:
        """Whether this process is the first that failed."""
        try:
            return int(self._store.add("failed", 1)) == 1
        except RuntimeError:  # the store's own process has failed, told and gone
            return False

    def told(self) -> None:
        """Let the others end."""
        try:
            self._store.set("told", "1")
        except RuntimeError:
            return  # nobody is left

    def wait_until_told(self) -> None:
        """Wait for another's message: torchrun ends all processes as soon as one has ended."""
        try:
            self._store.wait(["told"], _TELLING)
        except RuntimeError:
            return


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """The processes know of each other; between `join` and `leave` they are a process group.

    After a failure nobody leaves: that could wait for the others.
    """

    rank: int
    world: int
    failure: Failure
    store: Any

    def join(self) -> None:
        """Form the process group: on CUDA devices by NCCL, else by gloo. Raises `ConfigError` for devices that cannot."""
        backend = "gloo" if _device() is None else "nccl"
        dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.world)

    def leave(self) -> None:
        """Dissolve the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def meet() -> Meeting:
    """Find the other processes that the environment tells of; raises `ConfigError` when they cannot be reached."""
    distributed: Any = dist
    try:
        store, rank, world = next(iter(distributed.rendezvous("env://")))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '')}"
        raise ConfigError(
            f"this process cannot meet the others at {where} ({str(error).splitlines()[0]}): start all with torchrun"
        ) from None
    prefixed = distributed.PrefixStore
    return Meeting(rank=rank, world=world, failure=Failure(prefixed("posttrain", store)), store=prefixed("group", store))


def _device() -> torch.device | None:
    """Take this process's CUDA device; None: train on the processor."""
    if not torch.cuda.is_available():
        if torch.backends.mps.is_available():
            raise ConfigError(
                "several processes train on CUDA devices or on processors, not on mps: start one, without torchrun"
            )
        return None
    local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= devices:
        raise ConfigError(
            f"more processes than CUDA devices on this machine: start torchrun with --nproc-per-node {devices}"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def lost_connection(error: BaseException) -> bool:
    """Whether an error only says that another process is gone."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
