"""Strict configuration: YAML into pydantic models; a complaint names the file, the key's path and the nearest valid key."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import ConfigError, did_you_mean

__all__ = ["Strict", "load_yaml", "read_yaml", "validate"]


class Strict(BaseModel):
    """A configuration section: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


M = TypeVar("M", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping a YAML file holds."""
    if not path.is_file():
        raise ConfigError(f"no such file: {path}")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected keys and values at the top level, found {type(loaded).__name__}")
    return loaded


def load_yaml(model: type[M], path: Path) -> M:
    """Read and validate a YAML file."""
    return validate(model, read_yaml(path), where=str(path))


def validate(model: type[M], values: Mapping[str, Any], *, where: str) -> M:
    """Validate values against a pydantic model; raises `ConfigError` for the first mistake."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(model, error)}") from None


def _sentence(model: type[BaseModel], error: ValidationError) -> str:
    unknown = [e for e in error.errors() if e["type"] == "extra_forbidden"]
    first = (unknown or error.errors())[0]
    path = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{path}'{did_you_mean(str(first['loc'][-1]), _keys(model, first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"'{path}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"'{path}': {message} (got {first['input']!r})" if path else message


def _path(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    current: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        current = _inner(current.model_fields[part].annotation) if part in getattr(current, "model_fields", {}) else None
        if current is None:
            return []
    return sorted(current.model_fields)


def _inner(annotation: Any) -> type[BaseModel] | None:
    """Return the configuration model inside `Model | None`, `list[Model]`, …"""
    if isinstance(annotation, type) and typing.get_origin(annotation) is None and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        found = _inner(argument)
        if found is not None:
            return found
    return None
