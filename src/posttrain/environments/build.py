"""From an environment's spec to the environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.environment import Environment
from ..core.errors import ConfigError, did_you_mean
from ..core.functions import file_of
from ..core.protocols import Verifier
from ..core.specs import available, instantiate, lookup, parse
from ..core.types import Example
from ..verifiers.build import check_spec
from ..verifiers.build import files_of as files_of_verifier

__all__ = ["build_environment", "check_environment", "files_of", "verifiers_of"]

_GIVEN = {"golds", "parts"}  # fields that are no settings


def check_environment(spec: str) -> type[Any]:
    """Return the class of the environment that a spec names; raises `ConfigError` for a wrong name or setting."""
    parsed = parse(spec)
    names = [name for name in available(__package__ or "") if name != "build"]
    if "@" not in parsed.name and parsed.name not in names:
        raise ConfigError(f"unknown environment '{parsed.name}'{did_you_mean(parsed.name, names)}")
    cls = lookup(parsed.name, __package__ or "", "environment")
    for key in _GIVEN & parsed.params.keys():
        raise ConfigError(f"environment '{parsed.name}': '{key}' is no setting: leave it out")
    for verifier in verifiers_of(spec):
        check_spec(verifier)
    return cls


def verifiers_of(spec: str) -> tuple[str, ...]:
    """Return the specs of the verifiers that an environment asks."""
    return tuple(getattr(_made(spec, golds={}), "verifiers", ()))


def build_environment(
    spec: str, *, verifier: Callable[[str], Verifier] | None = None, golds: Mapping[str, Example] | None = None
) -> Environment:
    """Return the environment that a spec names.

    Args:
        spec: `name:key=value,…`, or `Own@file.py`.
        verifier: gives the verifiers that it asks, by their specs.
        golds: id -> example with its gold answer; None where an environment must not see any.
    """
    check_environment(spec)
    made = _made(spec, golds=golds)
    if getattr(made, "gold", False) and golds is None:
        raise ConfigError(f"environment '{spec}' needs gold answers (gold=true), and none is given here")
    wanted = getattr(made, "verifiers", ())
    if wanted:
        assert verifier is not None
        made = dataclasses.replace(made, parts={each: verifier(each) for each in wanted})
    environment: Environment = made
    return environment


def files_of(spec: str) -> list[Path]:
    """Return the Python files whose content decides what an environment says."""
    parsed = parse(spec)
    if parsed.name == "function":
        return [file_of(str(parsed.params.get("call", "")), "environment 'function'")]
    path = Path(parsed.name.partition("@")[2])
    return [path] if path.is_file() else [file for each in verifiers_of(spec) for file in files_of_verifier(each)]


def _made(spec: str, *, golds: Mapping[str, Example] | None) -> Any:
    parsed = parse(spec)
    cls = lookup(parsed.name, __package__ or "", "environment")
    made = instantiate(cls, parsed.params, where=f"environment '{parsed.name}'")
    if "golds" in {field.name for field in dataclasses.fields(cls)} and golds is not None:
        made = dataclasses.replace(made, golds=golds)
    return made
