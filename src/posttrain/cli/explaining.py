"""`posttrain data explain`: the text a model would be trained on, the trained tokens marked."""

from __future__ import annotations

from pathlib import Path

__all__ = ["explain_rows"]


def explain_rows(model: str, data: str, rows: int, train_on: str, seed: int, chat_template: Path | None) -> None:
    """Print the first rows of `data` as the model's template renders them."""
    from rich.console import Console
    from rich.panel import Panel

    from ..core.errors import ConfigError, did_you_mean
    from ..data.explain import explain, render_rich
    from ..data.mixing import read_mix
    from ..data.question_rows import asks
    from ..models.load import tokenizer_of

    if train_on not in ("all", "last"):
        raise ConfigError(f"--train {train_on}: unknown{did_you_mean(train_on, ('all', 'last'))}")
    tokenizer = tokenizer_of(model, chat_template=chat_template)
    console = Console()
    for number, row in enumerate(read_mix(data, seed=seed, limit=rows).rows, 1):
        pieces = explain(tokenizer, row, train="all" if train_on == "all" else "last")
        told = "a question: what is trained is what the model writes behind it" if asks(row) else None
        console.print(
            Panel(render_rich(pieces), title=f"row {number}", title_align="left", subtitle=told, subtitle_align="left")
        )
    console.print("marked: trained; plain: context only", style="dim")
