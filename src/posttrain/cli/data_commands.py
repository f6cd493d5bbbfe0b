"""`posttrain data`: looking at training data before training on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Model, Rows, Seed, Template

__all__ = ["data_app"]

data_app = typer.Typer(no_args_is_help=True, help="Look at training data.")


@data_app.command("explain")
def explain(
    model: Model,
    data: Rows,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to show.")] = 3,
    train_on: Annotated[str, typer.Option("--train", help="all: every assistant turn; last: the last one.")] = "all",
    seed: Seed = 0,
    chat_template: Template = None,
) -> None:
    """Print what a model would be trained on: the rendered text with the trained tokens marked."""
    from .explaining import explain_rows

    explain_rows(model, data, rows, train_on, seed, chat_template)


@data_app.command("lint")
def lint(
    data: Annotated[str, typer.Argument(metavar="FILE", help="A source of rows, or a mix of several, as for train --data.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Render and mask rows as for it; lengths in tokens.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="A task, or a file of evaluation rows, not to be found in the data."),
    ] = None,
    against_split: Annotated[str, typer.Option(help="Which split of these tasks.")] = "test",
    ngram: Annotated[int, typer.Option(min=3, help="Words in a row that a question and a row must share.")] = 13,
    near: Annotated[float, typer.Option(help="Jaccard similarity that makes two rows near-duplicates.")] = 0.8,
    train_on: Annotated[str, typer.Option("--train", help="all: every assistant turn; last: the last one.")] = "all",
    limit: Annotated[int | None, typer.Option(min=1, help="Look at the first so many rows.")] = None,
    seed: Seed = 0,
    chat_template: Template = None,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong with training data: copies, empty turns, lengths, balance, variety, test questions inside.

    Exits with 1 if there are errors; warnings are for you to judge.
    """
    from .linting import examine_rows, show_lint

    found = examine_rows(
        data,
        model=model,
        against=against or [],
        split=against_split,
        ngram=ngram,
        near=near,
        train_on=train_on,
        limit=limit,
        seed=seed,
        chat_template=chat_template,
    )
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        show_lint(found)
    if found["errors"]:
        raise typer.Exit(1)


@data_app.command("convert")
def convert(
    data: Annotated[str, typer.Argument(metavar="FILE", help="A source of judgements: pairs, rankings, scores or thumbs.")],
    to: Annotated[str, typer.Option(help="pairs, rankings, thumbs, or best_and_worst (one pair of each prompt's scores).")],
    out: Annotated[Path, typer.Option(help="The JSONL file to write; it must not exist.")],
    margin: Annotated[float, typer.Option(help="Least difference of two scores that makes a pair.")] = 0.0,
    threshold: Annotated[float, typer.Option(help="Least score that is a thumb up.")] = 0.5,
) -> None:
    """Make one kind of judgement of another: all pairs of a ranking, pairs of thumbs, thumbs of scores."""
    from .linting import convert_rows

    print(f"{convert_rows(data, to=to, out=out, margin=margin, threshold=threshold)} rows in {out}")


@data_app.command("rewards")
def rewards(
    data: Annotated[str, typer.Argument(metavar="FILE", help="Judgements: pairs, rankings or scored responses.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="A reward model's folder or hub id.")] = None,
    judge: Annotated[str | None, typer.Option(help="Or a judge of two: pairwise:model=…")] = None,
    groups: Annotated[str | None, typer.Option(help="The column that says which annotators preferred what.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be read, counted.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many rows.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Say how far a reward model, or a judge, agrees with judgements: by subset and group; calibration; length."""
    from .rewarding import rewards_report, show_rewards

    found = rewards_report(
        data, model=model, judge=judge, groups=groups, skip_bad=skip_bad, device=device, dtype=dtype, limit=limit
    )
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        show_rewards(found)
