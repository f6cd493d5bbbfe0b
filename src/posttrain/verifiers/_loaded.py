"""Models that verifiers bring along, loaded once per process however many examples build a verifier."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import ConfigError
from ..core.protocols import Engine

__all__ = ["engine_of", "local_engine", "once", "stamp"]

_KEPT = 8  # of models and engines on them; the one unused for longest is let go
_lock = threading.RLock()
_held: OrderedDict[Hashable, Any] = OrderedDict()

T = TypeVar("T")


def once(key: Hashable, make: Callable[[], T]) -> T:
    """Return what `make` made for this key before, or make it now."""
    with _lock:
        if key not in _held:
            _held[key] = make()
            while len(_held) > _KEPT:
                _held.popitem(last=False)
        _held.move_to_end(key)
        found: T = _held[key]
        return found


def stamp(ref: str) -> tuple[Hashable, ...]:
    """Return what names a model's files as they are now: a folder that was written anew is loaded anew."""
    path = (_resolve(ref) if Path(ref).expanduser().exists() else _resolve_once(ref)).resolve()
    files = sorted(file for pattern in ("*.safetensors", "*.json", "*.jinja") for file in path.glob(pattern))
    return (str(path), *((file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files))


def _resolve(ref: str) -> Path:
    from ..models.load import resolve

    return resolve(ref)


_resolve_once = lru_cache(_resolve)  # an alias or a hub id: not asked again for every example


def local_engine(ref: str) -> Engine:
    """Return the in-process engine on a model, on the best device and number type there are."""
    from ..engines.local import LocalEngine
    from ..models.load import load

    def make() -> Engine:
        loaded = load(ref)
        return LocalEngine(loaded.model, loaded.tokenizer, fingerprint=loaded.fingerprint, shape=loaded.shape)

    return once(("engine", stamp(ref)), make)


def engine_of(engine: Engine | None, model: str | None, where: str) -> Engine:
    """Return the engine a verifier was given, or else the one on the model that its setting names."""
    if engine is None and model is None:
        raise ConfigError(f"{where} needs an engine: give it one, or name a model")
    return engine if engine is not None else local_engine(model or "")
