"""`posttrain data lint`: what is wrong with training data, or may be, before training on it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ..data.contamination import Question
    from ..data.findings import Report

__all__ = ["convert_rows", "examine_rows", "show_lint"]

_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_RELIABLE = 0.667  # Krippendorff 2004, "Content Analysis", chapter 11: below it not even tentative conclusions
_ASKING = ("question", "prompt", "problem", "instruction", "input", "text")


def examine_rows(
    data: str,
    *,
    model: str | None,
    against: Sequence[str],
    split: str,
    ngram: int,
    near: float,
    train_on: str,
    limit: int | None,
    seed: int,
    chat_template: Path | None,
) -> dict[str, Any]:
    """Return the report on a data source as JSON values."""
    from ..core.errors import did_you_mean
    from ..core.progress import progress
    from ..data.lint import lint, passes
    from ..data.mixing import read_mix
    from ..models.load import tokenizer_of

    if train_on not in ("all", "last"):
        raise ConfigError(f"--train {train_on}: unknown{did_you_mean(train_on, ('all', 'last'))}")
    if not 0 < near <= 1:
        raise ConfigError(f"--near {near:g}: a similarity lies above 0 and up to 1")
    questions = {ref: _questions(ref, split) for ref in against}
    tokenizer = tokenizer_of(model, chat_template=chat_template) if model is not None else None
    rows = read_mix(data, seed=seed, limit=limit).rows
    total = len(rows) * passes(encoded=tokenizer is not None, evaluations=len(questions))
    with progress("lint", total, unit="rows") as advance:
        report = lint(
            rows,
            data,
            tokenizer=tokenizer,
            context=None if model is None else _context(model),
            train="all" if train_on == "all" else "last",
            against=questions,
            ngram=ngram,
            near=near,
            advance=advance,
        )
    agreement = _agreement(report, rows)
    errors, warnings = report.count("error"), report.count("warning")
    found = {"data": data, "model": model, "errors": errors, "warnings": warnings} | asdict(report)
    return found if agreement is None else found | {"agreement": agreement}


def _agreement(report: Report, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return how far the annotators agree, where rows name what each said; little agreement is a warning."""
    from ..data.preference_checks import annotators_of
    from ..stats.agreement import agreement_of

    found = agreement_of(annotators_of(rows))
    alpha = None if found is None else found["krippendorff_alpha"]
    if alpha is not None and alpha < _RELIABLE:
        message = f"annotators agree little: Krippendorff's alpha is {alpha:.2f}, below {_RELIABLE}"
        report.add("warning", "agreement", message, [i for i, row in enumerate(rows) if row.get("annotators")])
    return found


def convert_rows(data: str, *, to: str, out: Path, margin: float, threshold: float) -> int:
    """Write the judgements of a source as another kind of judgement and return how many there are."""
    from ..core.files import write_atomic
    from ..data.preferences import convert
    from ..data.sources import read_rows

    if out.exists():
        raise ConfigError(f"{out} is already there: remove it or choose another file")
    made = convert(read_rows(data), to, data, margin=margin, threshold=threshold)
    if not made:
        raise DataError(f"{data}: nothing is left: no two answers to one prompt differ by at least {margin:g}")
    write_atomic(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made))
    return len(made)


def _questions(ref: str, split: str) -> list[Question]:
    """Return what an evaluation asks: of a task's split, or of a file of evaluation rows."""
    from ..data.contamination import Question

    if Path(ref).suffix.lower() in _FILES:
        return _asked_in(ref)
    from ..tasks.registry import load_task

    found = []
    for example in load_task(ref).examples(split):
        asked = [message.content for message in example.messages if message.role == "user"]
        texts = [example.question or "\n".join(asked), example.rationale or ""]
        found += [Question(id=example.id, text=text) for text in texts if text.strip()]
    if not found:
        raise DataError(f"--against {ref}: its {split} split asks nothing; choose another with --against-split")
    return found


def _asked_in(path: str) -> list[Question]:
    from ..data.contamination import Question
    from ..data.sources import read_rows

    found = []
    for number, row in enumerate(read_rows(path), start=1):
        texts = [row[key] for key in _ASKING if isinstance(row.get(key), str)]
        for turn in row["messages"] if isinstance(row.get("messages"), list) else []:
            if isinstance(turn, dict) and turn.get("role") == "user" and isinstance(turn.get("content"), str):
                texts.append(turn["content"])
        if not texts:
            raise DataError(
                f"--against {path}, row {number}: nothing is asked; a text is needed in one of {', '.join(_ASKING)}, or "
                f"messages (columns: {', '.join(sorted(row))})"
            )
        found += [Question(id=f"row {number}", text=text) for text in texts if text.strip()]
    return found


def _context(model: str) -> int | None:
    from transformers import AutoConfig

    from ..models.adapters import base_of, is_adapter
    from ..models.load import resolve
    from ..models.shape import context_of

    path = resolve(model)
    if is_adapter(path):
        return _context(str(base_of(path)))
    return context_of(AutoConfig.from_pretrained(path, trust_remote_code=False))


def show_lint(found: dict[str, Any]) -> None:
    """Print the report: findings first, then the figures."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    shapes = ", ".join(_many(count, name) for name, count in found["shapes"].items()) or "none of a known shape"
    console.print(f"[bold]{escape(found['data'])}[/]: {found['rows']:,} rows: {shapes}", highlight=False)
    if found["findings"]:
        table = Table("", "check", "rows", "what", "first rows")
        for finding in sorted(found["findings"], key=lambda it: str(it["level"])):
            level = "[red]error[/]" if finding["level"] == "error" else "[yellow]warning[/]"
            first = ", ".join(str(row) for row in finding["rows"])
            table.add_row(level, finding["check"], f"{finding['count']:,}", escape(finding["message"]), first)
        console.print(table)
    figures = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _figures(found):
        figures.add_row(escape(name), escape(value))
    console.print(figures)
    for each in found["contamination"]:
        for hit in each["hits"][:3]:
            line = f"  row {hit['row']} holds of example {hit['example']}: {hit['shared']}"
            console.print(escape(line), style="dim", highlight=False)
    verdict = f"{_many(found['errors'], 'error')}, {_many(found['warnings'], 'warning')}"
    console.print(verdict, style="bold", highlight=False)


def _many(count: int, name: str) -> str:
    return f"{count:,} {name}" + ("" if count == 1 else "s")


def _figures(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, values in found["lengths"].items():
        if isinstance(values, dict):
            yield name, ", ".join(f"{key} {value:,}" for key, value in values.items()) or "none"
        else:
            yield name, f"{values:.1%} of the {'answers' if name == 'liked' else 'pairs'}"
    yield "duplicates", ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in found["duplicates"].items())
    yield "scripts (?: guess)", ", ".join(f"{name} {share:.1%}" for name, share in found["languages"].items()) or "none"
    if (agreement := found.get("agreement")) is not None:
        shown = [f"{key.replace('_', ' ')} {value:.2f}" for key, value in agreement.items() if isinstance(value, float)]
        yield f"annotators of {agreement['units']:,} rows", ", ".join(shown)
    if (labels := found["labels"]) is not None:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in labels["shares"].items())
        yield "labels", f"{labels['labels']}, evenness {labels['evenness']:.2f}: {shares}"
    varied = [f"{name.replace('_', ' ')} {value:.3f}" for name, value in found["diversity"].items() if value is not None]
    yield "diversity", ", ".join(varied) or "none"
    for each in found["contamination"]:
        line = f"{each['examples_hit']} of {each['examples']} questions, in {each['rows_hit']} rows ({each['ngram']}-grams)"
        if each["wording_ngrams_left_out"]:
            line += f"; {each['wording_ngrams_left_out']} n-grams of the task's wording left out"
        yield f"held of {each['against']}", line
