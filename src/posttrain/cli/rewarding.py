"""`posttrain data rewards`: how far a reward model, or a judge, agrees with judgements that it was not trained on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ..core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ..data.readable import Readable
    from ..data.shapes import Preference, Ranking, Scored
    from ..engines.rewards import RewardEngine
    from ..stats.rewards import JudgedReplies
    from ..stats.win_rate import Outcome

__all__ = ["rewards_report", "show_rewards"]


def rewards_report(
    data: str,
    *,
    model: str | None,
    judge: str | None = None,
    groups: str | None = None,
    skip_bad: bool = False,
    device: str,
    dtype: str,
    limit: int | None,
) -> dict[str, Any]:
    """Return what a reward model's rewards of the rows' answers, or a judge's verdicts, say of it, as JSON values."""
    from ..data.annotator_groups import groups_of
    from ..data.readable import readable
    from ..data.shapes import Preference, Ranking, Scored
    from ..data.sources import read_rows
    from ..stats.win_rate import win_rates_by_group

    if (model is None) == (judge is None):
        raise ConfigError("give either --model, a reward model, or --judge, a judge of two such as pairwise:model=…")
    found = readable(read_rows(data, limit=limit), data, skip=skip_bad, mend="--skip-bad")
    for number, one in zip(found.numbers, found.normal, strict=True):
        if not isinstance(one, Preference | Ranking | Scored):
            raise DataError(
                f"{data}, row {number}: is a {type(one).__name__.lower()}, but pairs, rankings or scores are needed"
            )
    told: list[tuple[tuple[str, float], ...]] = [()] * len(found.rows)
    if groups is not None:
        told = [
            groups_of(row, groups, f"{data}, row {number}", pair=isinstance(one, Preference))
            for row, one, number in zip(found.rows, found.normal, found.numbers, strict=True)
        ]
    about = {"data": data, "rows": len(found.rows), "bad_rows": found.bad, "first_bad": next(iter(found.reasons), None)}
    if judge is not None:
        report, outcomes = _by_judge(found, judge)
        about |= {"judge": judge}
    else:
        report, outcomes = _by_rewards(found, str(model), device, dtype)
        about |= {"model": model}
    of_groups = [
        replace(outcome, group=name, win=outcome.win if sides else 1 - outcome.win)
        for k, outcome in outcomes
        for name, sides in told[k]
    ]
    return {**about, **report, "groups": win_rates_by_group(of_groups) if groups is not None else {}}


def _by_rewards(found: Readable, model: str, device: str, dtype: str) -> tuple[dict[str, Any], list[tuple[int, Outcome]]]:
    from ..core.progress import progress
    from ..stats.rewards import reward_report
    from ..stats.win_rate import Outcome
    from ..verifiers.reward_model import RewardModel

    engine = cast("RewardEngine", RewardModel(task=cast(Any, None), model=model, device=device, dtype=dtype).open())

    async def all_of(advance: Callable[[], object]) -> list[JudgedReplies]:
        asked = zip(found.rows, found.normal, strict=True)
        return await asyncio.gather(*(_rewarded(engine, cast(Any, one), row.get("subset"), advance) for row, one in asked))

    with progress("rewards", len(found.rows), unit="rows") as advance:
        judged = asyncio.run(all_of(advance))
    outcomes = [
        (k, Outcome(item=repr(row.prompt), win=0.5 if difference == 0 else float(difference > 0)))
        for k, (one, row) in enumerate(zip(judged, cast(Any, found.normal), strict=True))
        for difference in one.differences
    ]
    return {"fingerprint": engine.fingerprint, **reward_report(judged)}, outcomes


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


def _by_judge(found: Readable, spec: str) -> tuple[dict[str, Any], list[tuple[int, Outcome]]]:
    """Ask a judge of each comparison in both orders; it wins where it prefers what was judged better."""
    from ..core.progress import progress
    from ..core.types import Example
    from ..data.preferences import answers_of, comparisons
    from ..pipeline.judging import check_judge
    from ..pipeline.verifying import open_once
    from ..stats.win_rate import Outcome, win_of, win_rate, win_rates_by_group
    from ..tasks.plain import Plain
    from ..verifiers.build import build_judge, compares

    if not compares(spec):
        raise ConfigError(f"--judge '{spec}': a judge of two is needed, such as pairwise:model=…")
    check_judge(spec, alone=False)
    judge = build_judge(spec, task=Plain(), opener=open_once)
    gate = asyncio.Semaphore(256)

    async def of(k: int, one: Any, subset: str | None, advance: Callable[[], object]) -> list[tuple[int, Outcome]]:
        example, texts, item = Example(id=str(k), messages=one.prompt), answers_of(one), repr(one.prompt)
        made = []
        async with gate:
            for better, worse, _ in comparisons(one):
                said = (await judge(example, texts[better], texts[worse])).said
                lengths = (len(texts[better]), len(texts[worse]))
                read = "unparsed" not in said
                win = Outcome(item=item, win=win_of(said), lengths=lengths, said=said, judged=read, group=subset)
                made.append((k, win))
        advance()
        return made

    async def all_of(advance: Callable[[], object]) -> Sequence[list[tuple[int, Outcome]]]:
        asked = enumerate(zip(found.rows, found.normal, strict=True))
        return await asyncio.gather(*(of(k, one, row.get("subset"), advance) for k, (row, one) in asked))

    with progress("verdicts", len(found.rows), unit="rows") as advance:
        found_by_row = [each for inside in asyncio.run(all_of(advance)) for each in inside]
    outcomes = [outcome for _, outcome in found_by_row]
    if not outcomes:
        raise DataError("no comparisons to report on: every row is a tie")
    rate = win_rate(outcomes)
    subsets = {
        name: {"accuracy": one["rate"], "comparisons": one["comparisons"]}
        for name, one in win_rates_by_group(outcomes).items()
    }
    return {
        "accuracy": rate["rate"],
        "accuracy_ci95": rate["ci95"],
        "prompts": rate["items"],
        "subsets": subsets,
        **{name: rate[name] for name in ("comparisons", "unjudged", "flips", "first_share", "longer_wins")},
    }, found_by_row


def show_rewards(found: dict[str, Any]) -> None:
    """Print the report in a few lines."""
    low, high = found["accuracy_ci95"]
    counted = f"{found['comparisons']:,} comparisons of {found['prompts']:,} prompts"
    who = found.get("model") or found["judge"]
    print(f"{who} on {found['data']}: {found['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {counted}")
    if found["bad_rows"]:
        print(f"left out: {found['bad_rows']} rows that cannot be read; the first: {found['first_bad']}")
    for name, part in found["subsets"].items():
        print(f"  {name}: {part['accuracy']:.1%} of {part['comparisons']:,}")
    for name, part in found["groups"].items():
        low, high = part["ci95"]
        known = f"{part['comparisons']:,}, p {part['p_holm']:.3f} (Holm) that it is chance"
        print(f"  agrees with {name}: {part['rate']:.1%} [{low:.1%}, {high:.1%}] of {known}")
    if "judge" in found:
        flips, first = found["flips"], found["first_share"]
        if flips is not None:
            place = "" if first is None else f", prefers what it is shown first in {first:.1%} of its verdicts"
            print(f"changes its mind with the order in {flips['flip_rate']:.1%}{place}; unread: {found['unjudged']}")
        return
    print(f"calibration error (ECE) {found['ece']:.3f}")
    shown = {name: "–" if found[name] is None else f"{found[name]:.2f}" for name in ("length_correlation", "longer_wins")}
    judged = found["longer_is_judged_better"]
    beside = "" if judged is None else f" (judged so {judged:.2f})"
    print(f"rewards with length: correlation {shown['length_correlation']}, the longer wins {shown['longer_wins']}{beside}")
