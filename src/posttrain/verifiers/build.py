"""From a verifier's spec to the verifier: its settings come from the spec, its needs from what is at hand."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..core.errors import CapabilityError, ConfigError, did_you_mean
from ..core.protocols import Engine, Task, Verifier
from ..core.specs import Spec, available, format_spec, lookup, parse
from ..core.types import Example

__all__ = ["build_verifier"]


def build_verifier(
    spec: str | Mapping[str, Any] | Spec,
    *,
    task: Task,
    engine: Engine | None = None,
    golds: Mapping[str, Example] | None = None,
) -> Verifier:
    """Return the verifier that a spec names.

    A verifier is a dataclass; its fields called `task`, `engine` and `golds` are filled from the arguments, the others
    are settings.

    Raises:
        ConfigError: an unknown verifier or setting, or one that needs an engine or gold answers that are not there.
        CapabilityError: the engine cannot do what the verifier needs.
    """
    parsed = parse(spec)
    where = f"verifier '{parsed.name}'"
    names = [name for name in available(__package__ or "") if name != "build"]
    if "@" not in parsed.name and parsed.name not in names:
        raise ConfigError(f"unknown verifier '{parsed.name}'{did_you_mean(parsed.name, names)}")
    cls = lookup(parsed.name, __package__ or "", "verifier")
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls) if f.init}
    at_hand: dict[str, Any] = {"task": task, "engine": engine, "golds": golds}
    values: dict[str, Any] = {}
    for name in fields & at_hand.keys():
        if at_hand[name] is None:
            raise ConfigError(f"{where} needs {'gold answers' if name == 'golds' else 'an engine'}, and none is given here")
        values[name] = at_hand[name]
    needs: frozenset[str] = getattr(cls, "needs", frozenset())
    missing = needs - (engine.can if engine is not None else frozenset())
    if "engine" in fields and missing:
        raise CapabilityError(f"{where} needs an engine that can do: {', '.join(sorted(missing))}")
    for key, value in parsed.params.items():
        settings = fields - at_hand.keys()
        if key not in settings:
            raise ConfigError(f"{where}: unknown key '{key}'{did_you_mean(key, settings)}")
        try:
            plain = format_spec(value) if isinstance(value, Spec) else value
            values[key] = TypeAdapter(hints[key]).validate_python(plain)
        except ValidationError as error:
            raise ConfigError(f"{where}: {key}: {error.errors()[0]['msg']} (got {value!r})") from None
    try:
        verifier: Verifier = cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
    return verifier
