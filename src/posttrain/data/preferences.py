"""One kind of judgement from another. Pure; nothing is made up: a tie gives no pair, a pair gives no score.

pair      (x, y⁺, y⁻, margin, soft label)
ranking   (x, y_1 … y_K, ranks): rank 1 is the best, equal ranks are ties
scored    (x, y_1 … y_K, scores)
thumb     (x, y, liked or not)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, cast

from ..core.errors import ConfigError, DataError, did_you_mean
from ..core.types import Message
from .formats import normalise, training_row
from .shapes import Demonstration, Judgement, Normal, Preference, Ranking, Scored, Steps, Thumb
from .turns import show

__all__ = [
    "answers_of", "best_and_worst", "comparisons", "convert", "judged_answers", "pairs_of", "pairs_of_thumbs", "ranking_of",
    "thumbs_of",
]  # fmt: skip


def answers_of(normal: Demonstration | Judgement) -> list[str]:
    """Return the answers of a row, in its order; of a pair the chosen one first."""
    if isinstance(normal, Preference):
        return [normal.chosen, normal.rejected]
    if isinstance(normal, Steps):
        return ["\n".join(normal.steps)]
    return list(normal.responses) if isinstance(normal, Ranking | Scored) else [normal.completion]


def judged_answers(normal: Normal) -> int:
    """Return how many answers a judgement is about; 0 for any other shape."""
    return len(answers_of(normal)) if isinstance(normal, Judgement) else 0


def ranking_of(judged: Preference | Ranking | Scored) -> Ranking:
    """Return the order that a pair or scores tell: rank 1 + the number of answers that are better.

    Of a pair with a soft label the likelier order; one of ½ is a tie.
    """
    if isinstance(judged, Ranking):
        return judged
    if isinstance(judged, Preference):
        better = 1.0 if judged.preference is None else judged.preference
        order = (1, 2) if better > 0.5 else (2, 1) if better < 0.5 else (1, 1)
        return Ranking(prompt=judged.prompt, responses=(judged.chosen, judged.rejected), ranks=order)
    ranks = tuple(1 + sum(other > score for other in judged.scores) for score in judged.scores)
    return Ranking(prompt=judged.prompt, responses=judged.responses, ranks=ranks)


def comparisons(judged: Preference | Ranking | Scored) -> list[tuple[int, int, float]]:
    """Return (better, worse, margin) by index for each two answers that are not tied: K(K − 1)/2 of a ranking without ties.

    The margin is the pair's own, or the difference of two scores; 0 where none is known. Equal texts are not compared.
    """
    ranked, texts = ranking_of(judged), answers_of(judged)
    scores = judged.scores if isinstance(judged, Scored) else None
    own = judged.margin or 0.0 if isinstance(judged, Preference) else 0.0
    found = []
    for i, j in combinations(range(len(texts)), 2):
        if ranked.ranks[i] == ranked.ranks[j] or texts[i] == texts[j]:
            continue
        better, worse = (i, j) if ranked.ranks[i] < ranked.ranks[j] else (j, i)
        found.append((better, worse, own if scores is None else scores[better] - scores[worse]))
    return found


def pairs_of(judged: Preference | Ranking | Scored, *, margin: float = 0.0) -> list[Preference]:
    """Return all pairs of a ranking or of scores; of scores those that differ by at least `margin`, with the difference."""
    if isinstance(judged, Preference):
        return [judged]
    texts, scored = answers_of(judged), isinstance(judged, Scored)
    return [
        Preference(prompt=judged.prompt, chosen=texts[i], rejected=texts[j], margin=gap if scored else None)
        for i, j, gap in comparisons(judged)
        if not scored or gap >= margin
    ]


def best_and_worst(judged: Scored, *, margin: float = 0.0) -> Preference | None:
    """Return the pair of highest and lowest score, the first of equal ones; None if they do not differ by `margin`."""
    best = max(range(len(judged.scores)), key=lambda i: (judged.scores[i], -i))
    worst = min(range(len(judged.scores)), key=lambda i: (judged.scores[i], i))
    gap = judged.scores[best] - judged.scores[worst]
    if gap <= 0 or gap < margin or judged.responses[best] == judged.responses[worst]:
        return None
    return Preference(prompt=judged.prompt, chosen=judged.responses[best], rejected=judged.responses[worst], margin=gap)


def thumbs_of(judged: Preference | Scored, *, threshold: float = 0.5) -> list[Thumb]:
    """Return chosen as liked and rejected as not (nothing of a tie); of scores, those of at least `threshold` as liked."""
    texts = answers_of(judged)
    if isinstance(judged, Preference):
        first, second = ranking_of(judged).ranks
        liked: tuple[bool, ...] = () if first == second else (first < second, second < first)  # a tie tells of neither
    else:
        liked = tuple(score >= threshold for score in judged.scores)
    return [Thumb(prompt=judged.prompt, completion=text, label=label) for text, label in zip(texts, liked, strict=False)]


def pairs_of_thumbs(thumbs: Sequence[Thumb]) -> list[Preference]:
    """Return every liked answer over every other that was not, to the same prompt, prompts in order of appearance."""
    asked: dict[tuple[Message, ...], tuple[list[str], list[str]]] = {}
    for thumb in thumbs:
        liked, other = asked.setdefault(thumb.prompt, ([], []))
        side = liked if thumb.label else other
        if thumb.completion not in side:
            side.append(thumb.completion)
    return [
        Preference(prompt=prompt, chosen=chosen, rejected=rejected)
        for prompt, (liked, other) in asked.items()
        for chosen in liked
        for rejected in other
        if chosen != rejected
    ]


def convert(
    rows: Sequence[Mapping[str, Any]], to: str, where: str, *, margin: float = 0.0, threshold: float = 0.5
) -> list[dict[str, Any]]:
    """Return rows of judgements as `pairs`, `rankings`, `thumbs` or `best_and_worst`, in the shape that trainers read.

    Raises `DataError` naming a row that cannot become that: a thumb no ranking, a ranking no thumbs.
    """
    read = [normalise(row, f"{where}, row {number}") for number, row in enumerate(rows, start=1)]
    if to == "pairs" and read and all(isinstance(normal, Thumb) for normal in read):
        return [training_row(pair) for pair in pairs_of_thumbs(cast(list[Thumb], read))]
    best: Callable[[Any], list[Preference]] = lambda it: [pair] if (pair := best_and_worst(it, margin=margin)) else []  # noqa: E731
    ways: dict[str, tuple[tuple[type[Any], ...], Callable[[Any], Sequence[Normal]]]] = {
        "pairs": ((Preference, Ranking, Scored), lambda it: pairs_of(it, margin=margin)),
        "rankings": ((Preference, Ranking, Scored), lambda it: [ranking_of(it)]),
        "thumbs": (
            (Preference, Scored, Thumb),
            lambda it: [it] if isinstance(it, Thumb) else thumbs_of(it, threshold=threshold),
        ),
        "best_and_worst": ((Scored,), best),
    }
    if to not in ways:
        raise ConfigError(f"unknown kind of judgement '{to}'{did_you_mean(to, ways)}")
    kinds, way = ways[to]
    made: list[dict[str, Any]] = []
    for number, normal in enumerate(read, start=1):
        if not isinstance(normal, kinds):
            raise DataError(
                f"{where}, row {number}: a {type(normal).__name__.lower()} cannot become {to}, which takes "
                f"{', '.join(kind.__name__.lower() for kind in kinds)}: {show(rows[number - 1])}"
            )
        made += [training_row(new) for new in way(normal)]
    return made
