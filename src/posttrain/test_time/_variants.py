"""Other ways to put the same prompt: wordings, and orders of its shots. Pure functions of the prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from ..core.errors import ConfigError
from ..core.seeds import rng
from ..core.types import Example, Message, Prompt

__all__ = ["WORDINGS", "Diversity", "shot_orders", "variants", "wordings"]

Diversity = Literal["sampling", "wording", "order"]

WORDINGS = (
    "",
    "Think it through step by step before you answer.",
    "First say what is asked and what is given, then work it out.",
    "Solve it carefully and check the result before you answer.",
)


def variants(
    prompt: Prompt, example: Example, diversity: Diversity, *, count: int, words: Sequence[str], seed: int
) -> list[Prompt]:
    """Return the prompts over which samples are spread: sample i uses variant i mod v, whatever the number of samples."""
    if diversity == "wording":
        return wordings(prompt, words)
    if diversity == "order":
        return shot_orders(prompt, example, count=count, seed=seed)
    return [prompt]


def wordings(prompt: Prompt, words: Sequence[str]) -> list[Prompt]:
    """Return one prompt a wording: its text as a paragraph after the question ("" leaves the question as it is)."""
    *earlier, last = prompt.messages
    return [
        replace(prompt, messages=(*earlier, replace(last, content=f"{last.content}\n\n{text}"))) if text else prompt
        for text in words
    ]


def shot_orders(prompt: Prompt, example: Example, *, count: int, seed: int) -> list[Prompt]:
    """Return up to `count` prompts with the same shots in different orders, the given order first.

    Variant j does not depend on `count`; k shots have k! orders, so there may be fewer. Shots are the turns between the
    system message and the example's own turns; each ends with the assistant's reply.

    Raises:
        ConfigError: the prompt has fewer than two shots as turns.
    """
    head, shots, asked = _parts(prompt, example)
    if len(shots) < 2:
        raise ConfigError(
            "diversity=order needs a prompt with at least two shots that are turns of their own: use few_shot or "
            "few_shot_cot with k=2 or more and style=chat"
        )
    source = rng(seed, "shot order", example.id)
    orders = [tuple(range(len(shots)))]
    while len(orders) < min(count, math.factorial(len(shots))):
        order = tuple(source.sample(range(len(shots)), len(shots)))
        if order not in orders:
            orders.append(order)
    return [
        replace(prompt, messages=(*head, *(turn for index in order for turn in shots[index]), *asked)) for order in orders
    ]


def _parts(prompt: Prompt, example: Example) -> tuple[Sequence[Message], list[tuple[Message, ...]], Sequence[Message]]:
    messages = prompt.messages
    own = max(len(example.messages), 1)
    before, asked = messages[:-own], messages[-own:]
    heads = 1 if before and before[0].role == "system" and asked[0].role != "system" else 0
    shots: list[tuple[Message, ...]] = []
    turns: list[Message] = []
    per_shot = sum(message.role == "assistant" for message in asked) + 1  # a conversation's own replies, then the shown one
    for message in before[heads:]:
        turns.append(message)
        if sum(turn.role == "assistant" for turn in turns) == per_shot:
            shots.append(tuple(turns))
            turns = []
    if turns:
        raise ConfigError("diversity=order: the turns before the question are not whole shots; use diversity=sampling")
    return before[:heads], shots, asked
