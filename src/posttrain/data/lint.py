"""What is wrong with training data, or may be: read before money is spent on training.

An error is something that training would stop at, or that makes its result worthless; a warning is something to look at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from .contamination import Question, overlap
from .diversity import distinct, segmental_type_token_ratio
from .duplicates import near_duplicates, self_similarity, sketch
from .findings import Report, percentiles
from .formats import Conversation, Normal, Plain
from .labels import label_balance
from .language import script_and_guess
from .preference_checks import check_preferences
from .preferences import answers_of, judged_answers
from .question_rows import Asked
from .row_checks import check_encoding, check_shapes, check_turns, read
from .shapes import Judgement
from .words import Hasher, words

__all__ = ["lint", "passes"]


def lint(
    rows: Sequence[Mapping[str, Any]],
    where: str,
    *,
    tokenizer: Any = None,
    context: int | None = None,
    train: Literal["all", "last"] = "all",
    against: Mapping[str, Sequence[Question]] | None = None,
    ngram: int = 13,
    near: float = 0.8,
    advance: Callable[[], object] = lambda: None,
) -> Report:
    """Check rows of any known shape; nothing is changed.

    Args:
        rows: as they were read.
        where: what to call them in messages.
        tokenizer: with it, rows are rendered and masked as for training, and lengths are in tokens.
        context: the model's context in tokens, if known.
        train: which assistant turns would be trained.
        against: evaluations by name, whose questions the rows must not hold.
        ngram: words that a row and a question must have in common.
        near: Jaccard similarity from which two rows are near-duplicates.
        advance: called for each row as often as `passes` says.
    """
    report = Report(rows=len(rows))
    known = read(rows, where, report, advance)
    numbers, normals = list(known), list(known.values())
    turns = [_turns(normal) for normal in normals]
    answers = [_answers(normal) for normal in normals]
    check_shapes(report, known)
    check_turns(report, known)
    check_preferences(report, known)
    _lengths(report, turns, answers)
    if tokenizer is not None:
        check_encoding(report, known, tokenizer, context, train, advance)
        _skip(advance, len(rows) - len(known))
    hasher = Hasher()
    compared = [it.question if isinstance(it, Asked) else "\n".join(row) for row, it in zip(turns, normals, strict=True)]
    _duplicates(report, numbers, turns, compared, near, hasher, advance)
    report.duplicates["questions_with_several_answers"] = _several(turns, normals)
    spoken: Counter[str] = Counter()
    for row in turns:
        spoken[script_and_guess("\n".join(row))] += 1
        advance()
    _skip(advance, len(rows) - len(turns))
    report.languages = {name: round(count / len(turns), 4) for name, count in spoken.most_common()}
    _diversity(report, [text for group in answers for text in group])
    _labels(report, numbers, normals)
    for name, asked in (against or {}).items():
        _contamination(report, numbers, turns, name, asked, ngram, hasher, advance)
    return report


def passes(*, encoded: bool, evaluations: int) -> int:
    """Return how often `lint` goes through the rows, for a progress bar."""
    return 3 + encoded + evaluations


def _skip(advance: Callable[[], object], count: int) -> None:
    for _ in range(count):
        advance()


def _lengths(report: Report, turns: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]) -> None:
    report.lengths["words per row"] = percentiles([sum(len(words(text)) for text in row) for row in turns])
    if (told := [len(words(text)) for row in answers for text in row]) or not turns:
        report.lengths["words per answer"] = percentiles(told)


def _duplicates(
    report: Report,
    numbers: Sequence[int],
    turns: Sequence[Sequence[str]],
    compared: Sequence[str],
    near: float,
    hasher: Hasher,
    advance: Callable[[], object],
) -> None:
    """Find copies by all of their turns, and near-duplicates by the texts to be compared."""
    same: dict[tuple[str, ...], list[int]] = defaultdict(list)
    texts: dict[tuple[str, ...], str] = {}
    for number, row, text in zip(numbers, turns, compared, strict=True):
        same[tuple(row)].append(number)
        texts.setdefault(tuple(row), text)
    repeated = [number for group in same.values() for number in group[1:]]
    pairs = [(group[0], group[1]) for group in same.values() if len(group) > 1]
    if repeated:
        message = f"exact copies of earlier rows, for example row {pairs[0][1] + 1} of row {pairs[0][0] + 1}"
        report.add("warning", "duplicates", message, repeated)
    first = [group[0] for group in same.values()]
    sketches = sketch(list(texts.values()), hasher=hasher, advance=advance)
    _skip(advance, report.rows - len(first))
    groups = near_duplicates(sketches, threshold=near)
    copies = sorted(first[i] for group in groups for i in group[1:])
    if copies:
        a, b = (first[i] for i in groups[0][:2])
        many = "1 group" if len(groups) == 1 else f"{len(groups)} groups"
        message = (
            f"near-duplicates (Jaccard similarity of word 3-grams {near:g} or more) in {many}, for example rows {a + 1} and "
            f"{b + 1}"
        )
        report.add("warning", "near-duplicates", message, copies)
    report.duplicates = {"exact": len(repeated), "near": len(copies), "near_groups": len(groups)}
    similarity = self_similarity(sketches)
    report.diversity["self_similarity"] = None if similarity is None else round(similarity, 4)
    if similarity is not None and similarity > 0.5 and len(first) >= 20:
        message = f"two rows share {similarity:.0%} of their word 3-grams on average: little variety"
        report.add("warning", "diversity", message, first, len(first))


def _several(turns: Sequence[Sequence[str]], normals: Sequence[Normal | Asked]) -> int:
    """Return how many questions have answers that differ; of rows that only ask, gold answers."""
    asked: dict[tuple[str, ...], set[tuple[str | None, ...]]] = defaultdict(set)
    for row, normal in zip(turns, normals, strict=True):
        if isinstance(normal, Asked):
            asked[tuple(row)].add((normal.gold,))
        elif question := tuple(row[: len(row) - max(1, judged_answers(normal))]):
            asked[question].add(tuple(row))
    return sum(len(told) > 1 for told in asked.values())


def _diversity(report: Report, answers: Sequence[str]) -> None:
    for n in (1, 2, 3):
        report.diversity[f"distinct_{n}"] = _rounded(distinct(answers, n))
    report.diversity["type_token_ratio_of_100_words"] = _rounded(segmental_type_token_ratio(answers))


def _labels(report: Report, numbers: Sequence[int], normals: Sequence[Normal | Asked]) -> None:
    report.labels = label_balance(
        [None if isinstance(it, Plain | Judgement | Asked) else _answers(it)[-1] for it in normals]
    )
    if report.labels is not None and report.labels["largest"] >= 0.8:
        name = next(iter(report.labels["shares"]))
        message = f"{report.labels['largest']:.0%} of the answers are {name!r}: always saying so would look right"
        report.add("warning", "balance", message, numbers, round(report.labels["largest"] * len(numbers)))


def _contamination(
    report: Report,
    numbers: Sequence[int],
    turns: Sequence[Sequence[str]],
    name: str,
    questions: Sequence[Question],
    ngram: int,
    hasher: Hasher,
    advance: Callable[[], object],
) -> None:
    found = overlap(turns, questions, n=ngram, hasher=hasher, advance=advance)
    _skip(advance, report.rows - len(turns))
    examples = [{"row": numbers[hit.row] + 1, "example": hit.example, "shared": hit.shared} for hit in found.hits[:10]]
    report.contamination.append(
        {
            "against": name,
            "ngram": ngram,
            "examples": found.questions,
            "examples_hit": found.examples,
            "rows_hit": found.rows,
            "wording_ngrams_left_out": found.wording,
            "hits": examples,
        }
    )
    if found.hits:
        first = found.hits[0]
        message = (
            f"rows hold {found.examples} of the {found.questions} questions of {name}, for example row "
            f"{numbers[first.row] + 1}: {first.shared!r} (example {first.example})"
        )
        report.add("error", "contamination", message, sorted({numbers[hit.row] for hit in found.hits}))


def _turns(normal: Normal | Asked) -> list[str]:
    """Return the texts of a row in order; of a judgement the answers last, of a question the prompt's alone."""
    if isinstance(normal, Plain):
        return [normal.text]
    if isinstance(normal, Conversation):
        return [message.content for message in normal.messages]
    prompt = [message.content for message in normal.prompt]
    return prompt if isinstance(normal, Asked) else [*prompt, *answers_of(normal)]


def _answers(normal: Normal | Asked) -> list[str]:
    """Return the texts that are trained; none of a question."""
    if isinstance(normal, Asked):
        return []
    if isinstance(normal, Conversation):
        return [message.content for message in normal.messages if message.role == "assistant"]
    if isinstance(normal, Plain):
        return [normal.text]
    return answers_of(normal)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
