"""A model in training whose samples a server writes: it is given the weights as folders, and asked for token ids."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError
from ...core.types import Completion, Cost, ModelShape, Prompt, Sampling
from ...data.chat import turn_end
from ..meter import Account, Metered
from .engine import OpenAIEngine, open_server
from .exact import Reader
from .settings import Server
from .transport import Transport, run
from .updating import take

__all__ = ["ServerPolicy"]


class ServerPolicy:
    """Draws samples from the weights that the server was last given.

    Args:
        server: which, and how it takes weights (`update`).
        tokenizer: of the model in training; a copy is used, because another thread may be asking.
        ends: the tokens that may end a turn.
        shape: sizes for the FLOPs formulas.
    """

    def __init__(self, server: Server, tokenizer: Any, *, ends: frozenset[int], shape: ModelShape) -> None:
        if not server.update:
            raise ConfigError(
                "model 'openai': rollouts need a server that takes new weights, and its settings do not say how: write "
                "update=model_name, update=sglang or update=vllm"
            )
        if server.together:
            raise ConfigError("model 'openai': together tells no sample's own tokens, which rollouts need: leave it out")
        self._server = server if server.update != "vllm" else replace(server, extra=_with_ids(server))
        own = copy.deepcopy(tokenizer)
        self.end = turn_end(own, ends)
        self._reader = Reader(tokenizer=own, ends=ends, end=self.end)
        self._shape = shape
        self._engine: OpenAIEngine | None = None

    @property
    def engine(self) -> OpenAIEngine:
        """The engine, once weights were given."""
        assert self._engine is not None
        return self._engine

    def update_from(self, folder: Path) -> None:
        """Give the server new weights; the first time, what it can do is asked, too."""
        if self._engine is None:
            known = self._server
            if known.update == "model_name":  # whose name must be one that it knows before anything else is asked
                known = replace(known, model=str(folder))
                run(take(Transport(known), known.update, folder, more=known.more))
            self._engine = open_server(known, shape=self._shape, reader=self._reader)
        self._engine.update_from(folder)

    def draw(
        self, asked: Sequence[tuple[Prompt, Sequence[int]]], sampling: Sampling, *, seed: int
    ) -> tuple[list[list[Completion]], Cost]:
        """Return for each prompt the samples with these indices, and what they cost in the role of the policy."""
        began = time.perf_counter()
        account = Account()
        metered = Metered(self.engine, account, "policy")

        async def all_of_them() -> list[list[Completion]]:
            try:
                async with asyncio.TaskGroup() as group:
                    calls = [
                        group.create_task(metered.generate(prompt, sampling, seed=seed, samples=indices))
                        for prompt, indices in asked
                    ]
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None
            return [call.result() for call in calls]

        found = run(all_of_them())
        return found, replace(account.total, seconds=time.perf_counter() - began)


def _with_ids(server: Server) -> str:
    """Return what is added to requests, with vLLM's field that has token ids told."""
    return json.dumps({**server.more, "return_token_ids": True})
