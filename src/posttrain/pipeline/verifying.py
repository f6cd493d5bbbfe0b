"""The verifiers a strategy wants for one example, and what they tell of themselves afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ..core.protocols import Engine, Strategy, Task, Verifier
from ..core.specs import format_spec, parse, replaced
from ..core.types import Answer, Example
from ..verifiers.build import build_verifier, local_engine
from .opening import open_engine, static_fingerprint
from .recipe import STAGE, EvalStage

__all__ = ["open_once", "scorers", "told", "verifiers_for", "with_checkpoints"]


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
    """Return what decides the scores of the verifiers that bring a model of their own: its fingerprint, by spec.

    An earlier stage's model is known by that stage's key instead.
    """
    wanted: tuple[str, ...] = getattr(strategy, "verifiers", ())
    found = {}
    for spec in wanted:
        params = parse(spec).params
        models = [str(model) for model in (params.get("model"), *(params.get("models") or ())) if model is not None]
        if known := [static_fingerprint(model) for model in models if not model.startswith(STAGE)]:
            found[spec] = ",".join(known)
    return found


def with_checkpoints(config: EvalStage, folders: Mapping[str, Path]) -> str:
    """Return an evaluation's strategy with the checkpoints, in these folders, that its verifiers score with."""
    if not config.scoring:
        return config.strategy

    def placed(text: str) -> str:
        for name in sorted(config.scoring, key=len, reverse=True):
            text = text.replace(STAGE + name, str((folders[name] / "checkpoint").resolve()))
        return text

    return format_spec(replaced(parse(config.strategy), placed))


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
