"""Opening an engine from a model reference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..core.protocols import Engine
from ..core.seeds import rng
from ..core.specs import parse

__all__ = ["SLOTS", "Opened", "open_engine", "open_once"]

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
) -> Opened:
    """Open the local engine on a model.

    `scripted[:latency=0.01,replies=20]` gives made-up answers instead, to rehearse a run without a model.
    """
    if ref.partition(":")[0] == "scripted":
        return _scripted(ref)
    from ..engines.local import LocalEngine
    from ..models.load import load

    loaded = load(ref, device=device, dtype=dtype, chat_template=chat_template)
    engine = LocalEngine(
        loaded.model, loaded.tokenizer, fingerprint=loaded.fingerprint, shape=loaded.shape, slots=slots or SLOTS
    )
    return Opened(engine=engine, name=loaded.name)


def open_once(ref: str) -> Engine:
    """Return the engine on a model that a verifier names; opened once per process, or anew when its files change."""
    from ..verifiers.build import local_engine

    return _named(ref) if ref.partition(":")[0] in ("scripted", "openai") else local_engine(ref)


@lru_cache(maxsize=8)
def _named(ref: str) -> Engine:
    return open_engine(ref).engine


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
