"""What verifiers that ask a model in words share: filling a prompt and showing the question."""

from __future__ import annotations

import re

from ..core.errors import ConfigError, did_you_mean
from ..core.protocols import Task
from ..core.types import Example
from ..tasks.wording import conversation

__all__ = ["fill", "shown", "unescaped"]


def fill(template: str, where: str, **parts: str) -> str:
    """Return the template with `{name}` replaced; braces inside the parts (formulas) are left alone."""

    def part(match: re.Match[str]) -> str:
        if match[1] not in parts:
            raise ConfigError(f"{where}: the prompt has an unknown place {{{match[1]}}}{did_you_mean(match[1], parts)}")
        return parts[match[1]]

    return re.sub(r"\{([a-z_]+)\}", part, template)


def shown(task: Task, example: Example) -> str:
    """Return the question as it was put to the model; the turns of a conversation are headed by who speaks."""
    turns = conversation(task, example)
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in turns)


def unescaped(text: str) -> str:
    r"""Return the text with a written `\n` or `\t` made the character, as specs on a command line need."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
