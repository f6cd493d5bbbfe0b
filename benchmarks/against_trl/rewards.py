"""Rewards of GRPO's comparison, the same function on both sides: worthless as rewards, exact in what they leave to train.

`posttrain` opens this file as a verifier (`function:call=against_trl/rewards.py:apart`), TRL calls it through `for_trl`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

FLAT = "flat"  # the answer of a question all of whose replies are to be worth the same


def apart(example: Any, texts: Sequence[str]) -> list[float]:
    """Return a pseudo-random number in [0, 1) for each text, a function of the text and of how often it came before.

    So no two texts of a group are worth the same, even equal ones: none has a group without variance.
    """
    before: Counter[str] = Counter()
    found = []
    for text in texts:
        digest = hashlib.sha256(f"{before[text]}:{text}".encode(errors="replace")).digest()
        found.append(int.from_bytes(digest[:6]) / 2**48)
        before[text] += 1
    return found


def some_flat(example: Any, texts: Sequence[str]) -> list[float]:
    """As `apart`, but nothing tells the texts of a question apart whose gold answer is `FLAT`."""
    return [0.5] * len(texts) if example.answer == FLAT else apart(example, texts)


def for_trl(samples: int) -> Callable[..., list[float]]:
    """Return `apart` as TRL calls a reward: of all completions, those of one prompt next to each other."""

    def reward(completions: Sequence[Any], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        groups = [texts[i : i + samples] for i in range(0, len(texts), samples)]
        return [value for group in groups for value in apart(None, group)]

    return reward
