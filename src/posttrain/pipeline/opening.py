"""Opening an engine from a model reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ConfigError
from ..core.protocols import Engine
from ..core.seeds import rng
from ..core.specs import parse
from ..core.types import ModelShape, Prompt

if TYPE_CHECKING:
    from ..engines.generations import Generations

__all__ = ["SLOTS", "Opened", "open_engine", "static_fingerprint"]

SLOTS = 128  # sequences generated at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An engine ready to use, with the name that reports show."""

    engine: Engine
    name: str


def open_engine(
    ref: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    slots: int | None = None,
    chat_template: Path | None = None,
    kept: Generations | None = None,
) -> Opened:
    """Open the local engine on a model, or the remote one on a server's: `openai:NAME`, `openai:model=NAME,url=…`.

    `scripted[:latency=0.01,replies=20]` gives made-up answers instead, to rehearse a run without a model. With `kept`, what
    it generates is kept there and never generated again.
    """
    opened = _open(ref, device, dtype, slots, chat_template)
    if kept is None:
        return opened
    from ..engines.cache import Cached

    return replace(opened, engine=Cached(opened.engine, kept))


def _open(ref: str, device: str, dtype: str, slots: int | None, chat_template: Path | None) -> Opened:
    kind = ref.partition(":")[0]
    if kind == "scripted":
        return _scripted(ref)
    if kind == "openai":
        return _remote(ref)
    from ..engines.local import LocalEngine
    from ..models.load import load

    loaded = load(ref, device=device, dtype=dtype, chat_template=chat_template)
    fingerprint = f"{loaded.fingerprint}:{str(loaded.dtype).removeprefix('torch.')}"  # other numbers, other samples
    engine = LocalEngine(loaded.model, loaded.tokenizer, fingerprint=fingerprint, shape=loaded.shape, slots=slots or SLOTS)
    return Opened(engine=engine, name=loaded.name)


def static_fingerprint(ref: str) -> str:
    """Return what a model reference says of the model without loading it, or asking a server."""
    kind = ref.partition(":")[0]
    if kind == "scripted":
        return ref
    if kind == "openai":
        from ..engines.openai import read_server

        server = read_server(ref)
        return f"openai:{server.base}:{server.model or ''}:{server.version}:{server.extra}"
    from ..models.load import fingerprint_of

    return fingerprint_of(ref)


def _remote(ref: str) -> Opened:
    from ..engines.openai import open_server, read_server

    server = read_server(ref)
    shape, count = (None, None) if server.shape is None else _known(server.shape)
    engine = open_server(server, shape=shape, count_tokens=count)
    return Opened(engine=engine, name=engine.name)


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


def _scripted(ref: str) -> Opened:
    from ..core.specs import instantiate
    from ..engines.scripted import ScriptedEngine

    options = instantiate(_Rehearsal, parse(ref).params, where="model 'scripted'")

    def reply(question: str, sample: int, seed: int) -> str:
        return f"I think so.\nAnswer: {rng(seed, question, sample).randrange(options.replies)}"

    return Opened(engine=ScriptedEngine(reply, latency=options.latency, fingerprint=ref), name="scripted")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rehearsal:
    latency: float = 0.0
    replies: int = 20
