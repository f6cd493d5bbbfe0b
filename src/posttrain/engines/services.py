"""Engines that are named and not loaded: a server's, and made-up answers to rehearse with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ConfigError
from ..core.protocols import Engine
from ..core.seeds import rng
from ..core.specs import parse
from ..core.types import ModelShape, Prompt

__all__ = ["SERVICES", "open_service"]

SERVICES = ("openai", "scripted")


def open_service(ref: str) -> tuple[Engine, str]:
    """Return the engine that `openai:NAME`, `openai:model=NAME,url=…` or `scripted[:latency=0.01,replies=20]` names, and
    the name that reports show.
    """
    return _scripted(ref) if ref.partition(":")[0] == "scripted" else _remote(ref)


def _remote(ref: str) -> tuple[Engine, str]:
    from .openai import open_server, read_server

    server = read_server(ref)
    shape, count = (None, None) if server.shape is None else _known(server.shape)
    engine = open_server(server, shape=shape, count_tokens=count)
    return engine, engine.name


def _known(ref: str) -> tuple[ModelShape, Callable[[Prompt], int] | None]:
    """Return the sizes that a model folder's configuration tells, and how its tokenizer counts a prompt, if it has one."""
    from transformers import AutoConfig

    from ..data.chat import render_prompt
    from ..models.load import load_tokenizer, resolve
    from ..models.shape import shape_of

    path = Path(ref).expanduser() if Path(ref).expanduser().is_dir() else resolve(ref)
    if not (path / "config.json").is_file():
        raise ConfigError(f"model 'openai': shape '{ref}' has no config.json: give a model folder or an alias")
    shape = shape_of(AutoConfig.from_pretrained(path))
    if not (path / "tokenizer.json").is_file():
        return shape, None
    tokenizer = load_tokenizer(path)
    if not tokenizer.chat_template:
        return shape, None
    return shape, lambda prompt: len(render_prompt(tokenizer, prompt.messages, opening=prompt.opening, prefix=prompt.prefix))


def _scripted(ref: str) -> tuple[Engine, str]:
    from ..core.specs import instantiate
    from .scripted import ScriptedEngine

    options = instantiate(_Rehearsal, parse(ref).params, where="model 'scripted'")

    def reply(question: str, sample: int, seed: int) -> str:
        return f"I think so.\nAnswer: {rng(seed, question, sample).randrange(options.replies)}"

    return ScriptedEngine(reply, latency=options.latency, fingerprint=ref), "scripted"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rehearsal:
    latency: float = 0.0
    replies: int = 20
