"""The verifiers a strategy wants for one example, and what they tell of themselves afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ..core.files import file_hash
from ..core.protocols import Engine, Strategy, Task, Verifier
from ..core.specs import parse
from ..core.types import Answer, Example
from ..verifiers.build import build_verifier, files_of, local_engine
from .naming import STAGE, placed
from .opening import open_engine, static_fingerprint
from .recipe import EvalStage

__all__ = ["fingerprints", "open_once", "scorers", "told", "verifiers_for", "with_checkpoints"]


def verifiers_for(
    strategy: Strategy, task: Task, example: Example, engine: Engine, meter: Callable[[Engine, str], Engine]
) -> dict[str, Verifier]:
    """Return the verifiers that a strategy names, by spec; `meter(engine, role)` is put around whatever engine one uses."""
    wanted: tuple[str, ...] = getattr(strategy, "verifiers", ())
    golds = {example.id: example}
    return {
        spec: build_verifier(spec, task=task, engine=engine, golds=golds, meter=meter, opener=open_once) for spec in wanted
    }


def scorers(strategy: Strategy) -> dict[str, str]:
    """Return what decides the scores of verifiers beside their settings: fingerprints of models and Python files, by spec.

    An earlier stage's model is known by that stage's key instead.
    """
    files = [file_hash(file) for file in getattr(strategy, "files", ())]
    return ({"files": ",".join(files)} if files else {}) | fingerprints(getattr(strategy, "verifiers", ()))


def fingerprints(specs: Sequence[str]) -> dict[str, str]:
    """Return the fingerprints of the models and Python files that verifiers and judges bring, by spec; see `scorers`."""
    found = {}
    for spec in specs:
        params = parse(spec).params
        models = [str(model) for model in (params.get("model"), *(params.get("models") or ())) if model is not None]
        known = [static_fingerprint(model) for model in models if not model.startswith(STAGE)]
        if known := known + [file_hash(file) for file in files_of(spec)]:
            found[spec] = ",".join(known)
    return found


def with_checkpoints(config: EvalStage, folders: Mapping[str, Path]) -> str:
    """Return an evaluation's strategy with the checkpoints, in these folders, that its verifiers score with."""
    return placed(config.strategy, folders)


def told(answer: Answer, verifiers: Mapping[str, Verifier]) -> Answer:
    """Return the answer with the verifiers' counts (unparsed, timeouts, flips, …) in its trace."""
    counts = {spec: dict(tally) for spec, verifier in verifiers.items() if (tally := getattr(verifier, "tally", None))}
    return replace(answer, trace={**answer.trace, "verifiers": counts}) if counts else answer


def open_once(ref: str) -> Engine:
    """Return the engine on a model that a verifier names; opened once per process, or anew when its files change."""
    return _named(ref) if ref.partition(":")[0] in ("scripted", "openai") else local_engine(ref)


@lru_cache(maxsize=8)
def _named(ref: str) -> Engine:
    return open_engine(ref).engine
