"""A user's own Python file as a module, under a name that no other module has."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

from .errors import ConfigError
from .files import file_hash

__all__ = ["module_of"]


def module_of(path: Path, where: str) -> ModuleType:
    """Return a file's module, loaded once for each content; raises `ConfigError`, begun with `where`, if it cannot be.

    It is in `sys.modules`, where pickling and dataclasses with postponed annotations look a class's module up; and under a
    private name, as a file called `random.py` must not become what everybody else gets from `import random`.
    """
    path = path.resolve()
    place = hashlib.sha256(f"{path}\n{file_hash(path)}".encode()).hexdigest()[:16]
    name = f"posttrain_user_{place}_" + re.sub(r"\W", "_", path.stem)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{where}: {path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file does
        del sys.modules[name]
        lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(path)]
        at = f", line {lines[-1]}," if lines else ""
        raise ConfigError(f"{where}: {path}{at} cannot be loaded: {type(error).__name__}: {error}".rstrip(": ")) from error
    return module
