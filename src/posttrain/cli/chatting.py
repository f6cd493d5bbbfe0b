"""`posttrain chat`: a conversation in the terminal, streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..core.errors import PosttrainError
from ..core.protocols import Engine
from ..core.types import Completion, Message, Prompt, Sampling

__all__ = ["converse"]


def converse(
    model: str,
    system: str | None,
    temperature: float,
    max_tokens: int,
    seed: int,
    device: str,
    dtype: str,
    chat_template: Path | None,
) -> None:
    """Read turns and answer each; an answer that Ctrl-C stops stays in the conversation as far as it got."""
    from rich.console import Console

    from ..pipeline.opening import open_engine

    console = Console()
    opened = open_engine(model, device=device, dtype=dtype, chat_template=chat_template)
    console.print(f"[bold]{opened.name}[/]  /new starts over, /quit leaves", highlight=False)
    opening = [Message(role="system", content=system)] if system else []
    turns, number = list(opening), 0
    sampling = Sampling(temperature=temperature, top_p=0.95 if temperature else 1.0, max_tokens=max_tokens)
    while True:
        try:
            said = console.input("[bold cyan]you[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if said == "/quit":
            return
        if said == "/new":
            turns, number = list(opening), 0
            continue
        if not said:
            continue
        asked = [*turns, Message(role="user", content=said)]
        console.print("[bold green]model[/] ", end="")
        try:
            answer = _answer(opened.engine, asked, sampling, seed + number)
        except PosttrainError as error:  # the conversation outgrew the context, say: the turn is not kept
            console.print(f"[red]{error}[/]  /new starts over", highlight=False)
            continue
        turns, number = [*asked, Message(role="assistant", content=answer)], number + 1


def _answer(engine: Engine, messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    pieces: list[str] = []
    ended: list[Completion] = []

    async def speak() -> None:
        async for delta in engine.stream(Prompt(messages=tuple(messages)), sampling, seed=seed):
            print(delta.text, end="", flush=True)
            pieces.append(delta.text)
            if delta.completion is not None:
                ended.append(delta.completion)

    try:
        asyncio.run(speak())
    except KeyboardInterrupt:
        print(" …", end="")
    if ended and ended[0].finish == "length":
        print(" … (cut at --max-tokens)", end="")
        return replace(ended[0]).text
    print(flush=True)
    return "".join(pieces)
