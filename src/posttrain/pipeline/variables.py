"""`${name}` in a recipe's texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..core.errors import ConfigError, did_you_mean

__all__ = ["filled"]


def filled(value: Any, variables: Mapping[str, str], *, where: str) -> Any:
    """Put the variables' values in place of `${name}` in every text."""

    def named(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise ConfigError(f"{where}: '{match[0]}' names no variable of 'vars'{did_you_mean(match[1], variables)}")
        return variables[match[1]]

    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", named, value)
    if isinstance(value, dict):
        return {key: filled(item, variables, where=where) for key, item in value.items()}
    return [filled(item, variables, where=where) for item in value] if isinstance(value, list) else value
