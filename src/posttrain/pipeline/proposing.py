"""Asking a model which instruction its friend must have been given, from demonstrations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..core.files import read_json, write_json
from ..core.protocols import Engine
from ..core.seeds import derive, rng
from ..core.types import Example, Message, Prompt, Sampling
from ..engines.fitting import Fitting
from ..engines.meter import Account, Metered
from ..prompting._nearest import text_of
from ..prompting._shots import normalised
from .done import cost_to
from .points import Bench

__all__ = ["proposals"]

_ASKED = (
    "I gave a friend an instruction and {n} inputs. The friend read the instruction and wrote an output for every one of "
    "the inputs. Here are the input-output pairs:\n\n{pairs}\n\nWhat was the instruction? Reply with the instruction, and "
    "nothing else."
)
_OPENING = "The instruction was to"


def proposals(
    bench: Bench, pool: Sequence[Example], model: str, *, candidates: int, demonstrations: int, temperature: float
) -> dict[str, Any]:
    """Return the proposed instructions, how many were asked for and lost, and the cost; kept in `proposals.json`.

    ρ_i ~ p(· | D_i), D_i drawn from the pool anew for each i: proposal i does not depend on how many are asked for. One
    that the token limit cut, an empty one and one that was there before do not count.

    Source: Zhou et al. 2022 (arXiv 2211.01910), section 3.1, forward generation; the wording follows the paper's.
    """
    path = bench.out / "proposals.json"
    of = [bench.models.fingerprint(model), bench.task.version, bench.seed, [example.id for example in pool]]
    of += [candidates, demonstrations, temperature]
    if path.is_file() and (kept := read_json(path))["of"] == of:
        return dict(kept)
    account, began = Account(), time.monotonic()
    texts: list[tuple[str, bool]] = []
    if candidates:
        engine = Metered(Fitting(bench.models.open(model).engine), account, "policy")
        sampling = Sampling(temperature=temperature, max_tokens=96, stop=("\n",) if "prefix" in engine.can else ())
        texts = asyncio.run(_ask(bench, pool, engine, sampling, candidates, demonstrations))
    counts = {"asked": len(texts), "empty": 0, "cut": 0, "repeated": 0}
    found: dict[str, str] = {}
    for text, whole in texts:
        instruction = _cleaned(text)
        if not whole or not instruction:
            counts["empty" if whole else "cut"] += 1
        elif normalised(instruction) in found:
            counts["repeated"] += 1
        else:
            found[normalised(instruction)] = instruction
    result = {
        "of": of,
        "instructions": list(found.values()),
        "counts": {**counts, "kept": len(found)},
        "cost": cost_to(replace(account.total, seconds=time.monotonic() - began)),
    }
    write_json(path, result)
    return result


async def _ask(
    bench: Bench, pool: Sequence[Example], engine: Engine, sampling: Sampling, candidates: int, demonstrations: int
) -> list[tuple[str, bool]]:
    """Return the proposals' texts, and whether each ended of itself."""
    opening = _OPENING if "prefix" in engine.can else ""

    async def one(number: int) -> tuple[str, bool]:
        shown = rng(bench.seed, "propose", number).sample(list(pool), demonstrations)
        pairs = "\n\n".join(f"Input: {text_of(example)}\nOutput: {example.answer}" for example in shown)
        asked = Message(role="user", content=_ASKED.format(n=len(shown), pairs=pairs))
        prompt = Prompt(messages=(asked,), opening=opening)
        (found,) = await engine.generate(prompt, sampling, seed=derive(bench.seed, "propose", number))
        return found.text, found.finish != "length"

    return await asyncio.gather(*(one(number) for number in range(candidates)))


def _cleaned(text: str) -> str:
    """Return the instruction in a reply: its first line, without quotes around it and words that announce it."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "").replace('"', "'")
    for lead in (_OPENING, "The instruction was:", "The instruction was", "Instruction:"):
        line = line.removeprefix(lead).strip()
    line = line.strip("'`*: ")
    return line[:1].upper() + line[1:] if len(line) > 2 else ""
