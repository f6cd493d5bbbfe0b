"""`posttrain data rewards`: how far a reward model agrees with judgements that it was not trained on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from ..core.errors import DataError

if TYPE_CHECKING:
    from ..data.shapes import Preference, Ranking, Scored
    from ..engines.rewards import RewardEngine
    from ..stats.rewards import JudgedReplies

__all__ = ["rewards_report", "show_rewards"]


def rewards_report(data: str, *, model: str, device: str, dtype: str, limit: int | None) -> dict[str, Any]:
    """Return what a reward model's rewards of the rows' answers say of it, as JSON values."""
    from ..core.progress import progress
    from ..data.formats import normalise
    from ..data.shapes import Preference, Ranking, Scored
    from ..data.sources import read_rows
    from ..stats.rewards import reward_report
    from ..verifiers.reward_model import RewardModel

    rows = read_rows(data, limit=limit)
    judged = [normalise(row, f"{data}, row {number}") for number, row in enumerate(rows, start=1)]
    for number, one in enumerate(judged, start=1):
        if not isinstance(one, Preference | Ranking | Scored):
            raise DataError(
                f"{data}, row {number}: is a {type(one).__name__.lower()}, but pairs, rankings or scores are needed"
            )
    engine = cast("RewardEngine", RewardModel(task=cast(Any, None), model=model, device=device, dtype=dtype).open())

    async def all_of(advance: Callable[[], object]) -> list[JudgedReplies]:
        asked = zip(rows, judged, strict=True)
        return await asyncio.gather(*(_rewarded(engine, cast(Any, one), row.get("subset"), advance) for row, one in asked))

    with progress("rewards", len(rows), unit="rows") as advance:
        found = asyncio.run(all_of(advance))
    report = reward_report(found)
    return {"data": data, "model": model, "rows": len(rows), "fingerprint": engine.fingerprint, **report}


async def _rewarded(
    engine: RewardEngine, judged: Preference | Ranking | Scored, subset: str | None, advance: Callable[[], object]
) -> JudgedReplies:
    from ..core.types import Prompt
    from ..data.preferences import answers_of, comparisons
    from ..stats.rewards import JudgedReplies

    prompt, texts = Prompt(messages=judged.prompt), answers_of(judged)
    scored = await asyncio.gather(*(engine.score(prompt, text) for text in texts))
    advance()
    return JudgedReplies(
        rewards=tuple(completion.rewards[0] for completion in scored if completion.rewards),
        lengths=tuple(completion.usage.scored for completion in scored),
        comparisons=tuple((better, worse) for better, worse, _ in comparisons(judged)),
        subset=subset,
    )


def show_rewards(found: dict[str, Any]) -> None:
    """Print the report in a few lines."""
    low, high = found["accuracy_ci95"]
    counted = f"{found['comparisons']:,} comparisons of {found['prompts']:,} prompts"
    print(f"{found['model']} on {found['data']}: {found['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {counted}")
    for name, part in found["subsets"].items():
        print(f"  {name}: {part['accuracy']:.1%} of {part['comparisons']:,}")
    print(f"calibration error (ECE) {found['ece']:.3f}")
    shown = {name: "–" if found[name] is None else f"{found[name]:.2f}" for name in ("length_correlation", "longer_wins")}
    judged = found["longer_is_judged_better"]
    beside = "" if judged is None else f" (judged so {judged:.2f})"
    print(f"rewards with length: correlation {shown['length_correlation']}, the longer wins {shown['longer_wins']}{beside}")
