"""From a verifier's spec to the verifier: its settings come from the spec, its needs from what is at hand."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..core.errors import CapabilityError, ConfigError, did_you_mean
from ..core.functions import file_of
from ..core.protocols import Engine, Judge, Task, Verifier
from ..core.specs import Spec, available, format_spec, lookup, parse
from ..core.types import Example
from ._loaded import local_engine

__all__ = ["build_judge", "build_verifier", "check_spec", "compares", "files_of", "local_engine", "weighted"]

Meter = Callable[[Engine, str], Engine]
Opener = Callable[[str], Engine]
_GIVEN = {"task", "engine", "golds", "parts"}  # fields that are no settings
_WEIGHT = re.compile(r"^\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*(.+)$", re.DOTALL)
_JUDGES = {"pairwise"}  # these compare two texts, and do not score one


def _unmetered(engine: Engine, role: str) -> Engine:
    return engine


def build_verifier(
    spec: str | Mapping[str, Any] | Spec,
    *,
    task: Task,
    engine: Engine | None = None,
    golds: Mapping[str, Example] | None = None,
    meter: Meter = _unmetered,
    opener: Opener = local_engine,
) -> Verifier:
    """Return the verifier that a spec names.

    A verifier is a dataclass; its fields called `task`, `engine` and `golds` are filled from the arguments, `parts` with the
    verifiers that its property `members` names; the others are settings. Its engine is, in this order: what its own method
    `open()` gives (reward models), the engine of its setting `model`, or `engine`.

    Args:
        spec: `name:key=value,…`.
        task: the task of the examples.
        engine: what to use where the verifier brings no model of its own: not metered yet, if `meter` is given.
        golds: id -> example with its gold answer, for oracles.
        meter: `(engine, role) -> engine`, put around whatever engine the verifier uses, so that its work is charged to
            the verifier's role ("verifier", or "judge"). Models are loaded once per process; meters may be per example.
        opener: opens the engine that a setting `model=…` names; it should keep what it opened.

    Raises:
        ConfigError: an unknown verifier or setting, or one that needs an engine or gold answers that are not there.
        CapabilityError: the engine cannot do what the verifier needs.
        ModelError: its own model cannot be loaded.
    """
    parsed = parse(spec)
    if parsed.name in _JUDGES:
        raise ConfigError(f"'{parsed.name}' is a judge that compares two texts; as a verifier of n texts use 'tournament'")
    names = [name for name in available(__package__ or "") if name != "build" and name not in _JUDGES]
    verifier: Verifier = _build(parsed, "verifier", names, task, engine, golds, meter, opener)
    return verifier


def build_judge(
    spec: str | Mapping[str, Any] | Spec,
    *,
    task: Task,
    engine: Engine | None = None,
    meter: Meter = _unmetered,
    opener: Opener = local_engine,
) -> Judge:
    """Return the judge of two texts that a spec names (`pairwise:model=…`); arguments as for `build_verifier`."""
    judge: Judge = _build(parse(spec), "judge", sorted(_JUDGES), task, engine, None, meter, opener)
    return judge


def compares(spec: str | Mapping[str, Any] | Spec) -> bool:
    """Return whether a spec names a judge that compares two texts."""
    return parse(spec).name in _JUDGES


def files_of(spec: str | Mapping[str, Any] | Spec) -> list[Path]:
    """Return the Python files whose content decides a verifier's scores: its own class's, or its function's."""
    parsed = parse(spec)
    if parsed.name == "function":
        return [file_of(str(parsed.params.get("call", "")), "verifier 'function'")]
    path = Path(parsed.name.partition("@")[2])
    return [path] if path.is_file() else []


def check_spec(spec: str | Mapping[str, Any] | Spec) -> type[Any]:
    """Return the class of the verifier or judge that a spec names; raises `ConfigError` for a wrong name or setting."""
    parsed = parse(spec)
    names = [name for name in available(__package__ or "") if name != "build"]
    where = f"verifier '{parsed.name}'"
    if "@" not in parsed.name and parsed.name not in names:
        raise ConfigError(f"unknown verifier or judge '{parsed.name}'{did_you_mean(parsed.name, names)}")
    cls = lookup(parsed.name, __package__ or "", "verifier")
    _settings(cls, parsed.params, {f.name for f in dataclasses.fields(cls) if f.init} - _GIVEN, where)
    return cls


def weighted(text: str) -> tuple[float, str]:
    """Read `weight*spec`. Raises `ConfigError` for a wrong verifier or setting, or a weight of 0."""
    found = _WEIGHT.match(text)
    weight, spec = (float(found[1]), found[2].strip()) if found else (1.0, text.strip())
    if not math.isfinite(weight) or weight == 0:
        raise ConfigError(f"rewards: '{text}': a weight must be a number other than 0; leave out what is not to count")
    check_spec(spec)
    return weight, spec


def _build(
    parsed: Spec,
    kind: str,
    names: list[str],
    task: Task,
    engine: Engine | None,
    golds: Mapping[str, Example] | None,
    meter: Meter,
    opener: Opener,
) -> Any:
    where = f"{kind} '{parsed.name}'"
    if "@" not in parsed.name and parsed.name not in names:
        raise ConfigError(f"unknown {kind} '{parsed.name}'{did_you_mean(parsed.name, names)}")
    cls = lookup(parsed.name, __package__ or "", kind)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    values = _settings(cls, parsed.params, fields.keys() - _GIVEN, where)
    if "task" in fields:
        values["task"] = task
    if "golds" in fields:
        if golds is None and fields["golds"].default is dataclasses.MISSING:
            raise ConfigError(f"{where} needs gold answers, and none is given here")
        values["golds"] = golds
    if "parts" in fields:  # each is metered by itself
        members = _made(cls, values, where).members
        values["parts"] = tuple(build_verifier(member, task=task, meter=meter, opener=opener) for member in members)
    if "engine" not in fields:
        return _made(cls, values, where)
    source = _made(cls, values, where).open() if hasattr(cls, "open") else engine
    if values.get("model") is not None and not hasattr(cls, "open"):
        source = opener(values["model"])
    if source is None:
        raise ConfigError(
            f"{where} needs an engine, and none is given here"
            + ("; name one with its setting 'model'" if "model" in fields else "")
        )
    made = _made(cls, values | {"engine": meter(source, getattr(cls, "role", "verifier"))}, where)
    missing = made.needs - source.can if hasattr(made, "needs") else frozenset()
    if missing:
        raise CapabilityError(f"{where} needs an engine that can do: {', '.join(sorted(missing))}")
    return made


def _settings(cls: type[Any], params: Mapping[str, Any], settings: set[str], where: str) -> dict[str, Any]:
    hints, values = typing.get_type_hints(cls, include_extras=True), {}
    for key, value in params.items():
        if key not in settings:
            raise ConfigError(f"{where}: unknown key '{key}'{did_you_mean(key, settings)}")
        try:
            plain = format_spec(value) if isinstance(value, Spec) else value
            values[key] = TypeAdapter(hints[key]).validate_python(plain)
        except ValidationError as error:
            raise ConfigError(f"{where}: {key}: {error.errors()[0]['msg']} (got {value!r})") from None
    for name, parameter in inspect.signature(cls).parameters.items():
        if name in settings - values.keys() and parameter.default is parameter.empty:
            raise ConfigError(f"{where}: its setting '{name}' must be given")
    return values


def _made(cls: type[Any], values: Mapping[str, Any], where: str) -> Any:
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
