"""The one-line spec `name:key=value,key=value` that names any method the same way everywhere.

Grammar: `name[:key=value[,key=value]…]`. A value is a number, `true`, `false`, `null`, a bare or quoted string, a list
`[a,b]`, or another spec in parentheses, as in `best_of_n:n=16,verifier=(exact:mode=strict)`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ConfigError, did_you_mean
from .user_files import module_of

__all__ = ["Spec", "available", "build", "format_spec", "format_value", "instantiate", "lookup", "parse", "replaced"]


@dataclass(frozen=True, slots=True)
class Spec:
    """A name and its parameters."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return format_spec(self)


def parse(text: str | Mapping[str, Any] | Spec) -> Spec:
    """Parse a spec; raises `ConfigError` that shows the text and the place."""
    if isinstance(text, Spec):
        return text
    if isinstance(text, Mapping):
        params = dict(text)
        name = params.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(f"a spec written as a mapping needs a 'name': {dict(text)!r}")
        return Spec(name, params)
    name, colon, rest = text.strip().partition(":")
    if not name:
        raise ConfigError(f"empty spec {text!r}: write name:key=value,key=value")
    params = {}
    for piece in _split(rest, ",", text) if rest else []:
        key, equals, value = piece.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise ConfigError(f"spec {text!r}: {piece.strip()!r} is not key=value")
        if key.strip() in params:
            raise ConfigError(f"spec {text!r}: key '{key.strip()}' is given twice")
        params[key.strip()] = _value(value.strip(), text)
    if colon and not params:
        raise ConfigError(f"spec {text!r}: nothing after the colon; write {name}:key=value or just {name}")
    return Spec(name, params)


def format_spec(spec: Spec) -> str:
    """Write a spec so that `parse` reads it back."""
    if not spec.params:
        return spec.name
    return spec.name + ":" + ",".join(f"{key}={format_value(value)}" for key, value in sorted(spec.params.items()))


def replaced(value: Any, change: Callable[[str], str]) -> Any:
    """Return a spec, or a parameter of one, with every text among its parameters changed, however deep."""
    if isinstance(value, Spec):
        return Spec(value.name, {key: replaced(inner, change) for key, inner in value.params.items()})
    if isinstance(value, list | tuple):
        return [replaced(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def _split(text: str, separator: str, whole: str) -> list[str]:
    pieces, depth, quote, start = [], 0, "", 0
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
        elif char == separator and depth == 0:
            pieces.append(text[start:i])
            start = i + 1
        if depth < 0:
            break
    if depth or quote:
        raise ConfigError(f"spec {whole!r}: unbalanced bracket or quote")
    return [*pieces, text[start:]]


def _value(text: str, whole: str) -> Any:
    literals: dict[str, Any] = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in literals:
        return literals[text.lower()]
    if text[0] in "'\"" and text[-1] == text[0] and len(text) > 1:
        return text[1:-1]
    if text[0] == "[" and text[-1] == "]":
        return [_value(piece.strip(), whole) for piece in _split(text[1:-1], ",", whole) if piece.strip()]
    if text[0] == "(" and text[-1] == ")":
        return parse(text[1:-1])
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def format_value(value: Any) -> str:
    """Write one value as specs write it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Spec):
        return f"({format_spec(value)})"
    if isinstance(value, list | tuple):
        return "[" + ",".join(format_value(item) for item in value) + "]"
    if isinstance(value, str) and (not value or any(c in value for c in ",:()[]= '\"") or _value(value, value) != value):
        return f'"{value}"' if '"' not in value else f"'{value}'"
    return str(value)


def available(package: str) -> list[str]:
    """Return the method names of a lever folder: its public files, found without importing them."""
    found = importlib.util.find_spec(package)
    if found is None or found.submodule_search_locations is None:
        return []
    return sorted(m.name for m in pkgutil.iter_modules(found.submodule_search_locations) if not m.name.startswith("_"))


def lookup(name: str, package: str, kind: str) -> type[Any]:
    """Return the class a name names: `few_shot` is `FewShot` in `<package>/few_shot.py`, `Own@file.py` a user's `Own`."""
    cls, at, path = name.partition("@")
    if at:
        return _from_file(Path(path), cls, kind)
    names = available(package)
    if name not in names:
        raise ConfigError(f"unknown {kind} '{name}'{did_you_mean(name, names)}")
    module = importlib.import_module(f"{package}.{name}")
    found = getattr(module, "".join(part.capitalize() for part in name.split("_")))
    assert isinstance(found, type)
    return found


def _from_file(path: Path, cls: str, kind: str) -> type[Any]:
    where = f"{kind} '{cls}@{path}'"
    if not path.is_file():
        raise ConfigError(f"{where}: no such Python file")
    found = getattr(module_of(path, where), cls, None)
    if not isinstance(found, type):
        raise ConfigError(f"{where}: the file defines no class '{cls}'")
    return found


def build(spec: str | Mapping[str, Any] | Spec, package: str, kind: str) -> Any:
    """Make the method that a spec names; a wrong key or value is an error with the key's path and the nearest valid key."""
    parsed = parse(spec)
    return instantiate(lookup(parsed.name, package, kind), parsed.params, where=f"{kind} '{parsed.name}'")


def instantiate(cls: type[Any], params: Mapping[str, Any], *, where: str) -> Any:
    """Validate `params` against the fields of a dataclass and construct it."""
    from pydantic import TypeAdapter, ValidationError

    fields = {f.name for f in dataclasses.fields(cls) if f.init}
    for key in params:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key '{key}'{did_you_mean(key, fields)}")
    values = {key: format_spec(v) if isinstance(v, Spec) else v for key, v in params.items()}
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "value"
        raise ConfigError(f"{where}: {place}: {first['msg']} (got {first['input']!r})") from None
