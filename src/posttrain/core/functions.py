"""A user's own Python function, named `path/to/file.py:name`: found, and its mistakes told in one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError, DataError, did_you_mean
from .user_files import module_of

__all__ = ["called", "file_of", "load_function"]


def file_of(call: str, where: str) -> Path:
    """Return the file of `path/to/file.py:name`; raises `ConfigError` when it is not so written or there is no such file."""
    path, _, name = call.rpartition(":")
    if not path or not name.isidentifier():
        raise ConfigError(f"{where}: call={call}: write path/to/file.py:name")
    if not Path(path).is_file():
        raise ConfigError(f"{where}: call={call}: no such file: {path}")
    return Path(path)


def load_function(call: str, *, where: str, second: Sequence[str], shapes: str) -> tuple[Callable[..., Any], str]:
    """Return a function of two arguments, the second of which has one of the names `second`, and that name.

    `where` begins the sentence of an error, `shapes` says in it what the function has to be.
    """
    path = file_of(call, where)
    module = module_of(path, where)
    function = getattr(module, call.rpartition(":")[2], None)
    if not callable(function):
        here = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        name = call.rpartition(":")[2]
        raise ConfigError(f"{where}: call={call}: the file has no function '{name}'{did_you_mean(name, here)}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    needed = [p for p in parameters[2:] if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    places = [p for p in parameters[:2] if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(places) != 2 or needed or places[1].name not in second:
        shown = ", ".join(str(parameter) for parameter in parameters)
        raise ConfigError(f"{where}: call={call}: takes ({shown}), but has to be {shapes}")
    return function, places[1].name


async def called(function: Callable[..., Any], *given: Any, where: str) -> Any:
    """Call it, waiting where it is `async`; whatever it raises is a `DataError` that begins with `where`."""
    try:
        found = function(*given)
        return await found if inspect.isawaitable(found) else found
    except Exception as error:  # whatever a user's code raises
        raise DataError(f"{where}: raised {_said(error)}") from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
