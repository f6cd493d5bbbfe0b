"""Opening an engine from a model reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..core.protocols import Engine
from ..core.seeds import rng
from ..core.specs import parse

__all__ = ["SLOTS", "Opened", "open_engine"]

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
