"""Choosing among a model's replies to one question, shared by the makers that train on replies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import ConfigError
from ..core.protocols import Prompter, Task
from ..core.types import Example

__all__ = ["row"]


def row(task: Task, example: Example, text: str, *, ask: Prompter, sampled_with: Prompter, seed: int) -> Mapping[str, Any]:
    """Return a training row: the question as `ask` asks it, the reply with what the sampling prompt had opened it with."""
    public = example.public()
    opening = sampled_with(task, public, seed=seed).begun
    prompt = ask(task, public, seed=seed)
    if ask is not sampled_with and prompt.begun:
        raise ConfigError("prompt: it begins the assistant's turn itself; train on replies with a prompt that does not")
    return {
        "id": example.id,
        "prompt": [message.to_dict() for message in prompt.messages],
        "completion": opening + text,
    }
