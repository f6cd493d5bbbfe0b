"""The one family of errors a user can meet: a sentence that says what, where and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PosttrainError(Exception):
    """Bad input or an impossible request; the command line prints the message and exits with `exit_code`."""

    exit_code = 1


class ConfigError(PosttrainError):
    """A key, value or file in a recipe, spec or option is wrong."""

    exit_code = 2


class DataError(PosttrainError):
    """A data file or row is missing, broken or of the wrong shape."""


class ModelError(PosttrainError):
    """A model cannot be found, loaded or used this way."""


class ContextOverflowError(PosttrainError):
    """A prompt does not fit the model's context; the message names both lengths."""


class CapabilityError(PosttrainError):
    """A method needs something this engine cannot do."""


class ServerError(PosttrainError):
    """A server that a model is asked from cannot be reached, refuses or fails."""


class BudgetSpentError(PosttrainError):
    """A call does not fit what is left of the budget; a strategy that has something answers with it."""


class TrainingError(PosttrainError):
    """Training cannot go on (for example a loss that is not finite)."""


class OtherProcessError(PosttrainError):
    """Another process of this run has failed, and tells why itself; this one only ends."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest of `valid`, or the list of them when none is near."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; choose from: {', '.join(names)}" if names else ""
