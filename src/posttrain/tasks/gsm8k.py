"""GSM8K: grade-school mathematics word problems that take two to eight steps.

Source: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems" (arXiv 2110.14168).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ._sources import row_sources
from .table import Columns, Table

__all__ = ["load_gsm8k"]

Row = Mapping[str, Any]


def load_gsm8k(data: str | Path | None = None) -> Table:
    """Return the benchmark from `data` (a file, a folder, `train=FILE,test=FILE`), or from the hub.

    Rows have `question` and `answer`, and may have `rationale`; the original's form, all in `answer` behind "####", is
    read too. When only a test file is given, few-shot examples come from eight problems written for this package.
    """
    sources: dict[str, Callable[[], Sequence[Row]]] = dict(
        row_sources("openai/gsm8k" if data is None else data, name="gsm8k")
    )
    read = {split: _cleaned(source, split) for split, source in sources.items()}
    if "train" not in read:
        read["train"] = lambda: SHOTS
    return Table(
        "gsm8k",
        read,
        columns=Columns(rationale="rationale"),
        extract="number",
        grade="number",
        instruction='Finish with a line "Answer: " followed by the final answer as a number.',
        max_tokens=400,
    )


def _cleaned(source: Callable[[], Sequence[Row]], split: str) -> Callable[[], list[Row]]:
    def read() -> list[Row]:
        return [_clean(row, at, split) for at, row in enumerate(source(), 1)]

    return read


def _clean(row: Row, at: int, split: str) -> Row:
    for column in ("question", "answer"):
        if column not in row:
            raise DataError(f"gsm8k {split}, row {at}: no column '{column}'; the columns are: {', '.join(map(str, row))}")
    answer = str(row["answer"])
    steps, marked, final = answer.rpartition("####")
    solution = steps if marked else str(row.get("rationale") or "").rpartition("####")[0] or str(row.get("rationale") or "")
    solution = re.sub(r"<<[^<>]*>>", "", solution)  # the original's calculator annotations
    lines = [" ".join(line.split()) for line in solution.splitlines() if line.strip()]
    return {"question": row["question"], "answer": final.strip(), "rationale": "\n".join(lines)}


def _shot(question: str, answer: int, *steps: str) -> Row:
    return {"question": question, "answer": str(answer), "rationale": "\n".join(steps)}


SHOTS: list[Row] = [
    _shot(
        "A bakery fills 6 trays with 12 rolls each. By noon 45 rolls are sold. How many rolls are left?",
        27,
        "The bakery makes 6 * 12 = 72 rolls.",
        "After noon 72 - 45 = 27 rolls are left.",
    ),
    _shot(
        "Ines has 18 stamps. Her uncle has three times as many, and he gives her a third of his. How many has she now?",
        36,
        "Her uncle has 18 * 3 = 54 stamps.",
        "He gives her 54 / 3 = 18 stamps.",
        "She now has 18 + 18 = 36 stamps.",
    ),
    _shot(
        "A ferry takes 40 minutes each way and waits 15 minutes at the far shore. How many minutes do two round trips take, "
        "if it also waits 15 minutes between them?",
        205,
        "One round trip takes 40 + 15 + 40 = 95 minutes.",
        "Two round trips take 95 * 2 = 190 minutes.",
        "With the wait between them it is 190 + 15 = 205 minutes.",
    ),
    _shot(
        "Tickets cost $9 for adults and $5 for children. A group of 4 adults and 7 children pays with a $100 note. "
        "How many dollars do they get back?",
        29,
        "The adults cost 4 * 9 = 36 dollars.",
        "The children cost 7 * 5 = 35 dollars.",
        "Together they cost 36 + 35 = 71 dollars.",
        "They get back 100 - 71 = 29 dollars.",
    ),
    _shot(
        "A gardener plants 5 rows of 14 tulips. A tenth of them do not come up, and deer eat 9 of the others. "
        "How many tulips bloom?",
        54,
        "The gardener plants 5 * 14 = 70 tulips.",
        "A tenth of 70 is 70 / 10 = 7, so 70 - 7 = 63 come up.",
        "After the deer 63 - 9 = 54 tulips bloom.",
    ),
    _shot(
        "Omar reads 24 pages on Monday and half as many again on Tuesday. His book has 150 pages. "
        "How many are left to read?",
        90,
        "On Tuesday he reads 24 + 24 / 2 = 36 pages.",
        "He has read 24 + 36 = 60 pages.",
        "There are 150 - 60 = 90 pages left.",
    ),
    _shot(
        "Four friends share the price of a tent equally. If a fifth friend joined, each would pay $6 less, which would be "
        "$24. What is the price of the tent in dollars?",
        120,
        "With five friends each pays 24 dollars.",
        "The tent costs 24 * 5 = 120 dollars, and 120 / 4 = 30 is 6 more than 24.",
    ),
    _shot(
        "A tank holds 300 litres and is 40% full. A pump adds 12 litres a minute. After how many minutes is it full?",
        15,
        "The tank holds 300 * 40 / 100 = 120 litres now.",
        "It lacks 300 - 120 = 180 litres.",
        "The pump needs 180 / 12 = 15 minutes.",
    ),
]
