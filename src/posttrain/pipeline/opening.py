"""Opening an engine from a model reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.protocols import Engine
from ..engines.services import SERVICES, open_service

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
    if ref.partition(":")[0] in SERVICES:
        engine, name = open_service(ref)
        return Opened(engine=engine, name=name)
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
