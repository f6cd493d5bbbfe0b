"""Options that several commands have, with one meaning and one text of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AsJson",
    "Data",
    "Device",
    "Dtype",
    "Limit",
    "MaxTokens",
    "Model",
    "Prompt",
    "Rows",
    "Seed",
    "Slots",
    "Split",
    "Task",
    "Template",
]

Model = Annotated[
    str, typer.Option("--model", "-m", help="Alias, folder, adapter folder, hub id, .gguf file, or openai:NAME.")
]
Task = Annotated[str, typer.Option("--task", "-t", help="Named task, reasoning_gym/<name>:key=value, or a task.yaml.")]
Prompt = Annotated[str, typer.Option("--prompt", "-p", help="Prompter, for example few_shot_cot:k=8.")]
Data = Annotated[str | None, typer.Option("--data", help="Local copy of the task's data, or train=FILE,test=FILE.")]
Rows = Annotated[
    str,
    typer.Option("--data", help="JSONL, Parquet or CSV file, folder or hub id; or a mix: a.jsonl*0.7,owner/name@train*0.3"),
]
Split = Annotated[str, typer.Option(help="Which split to answer.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Answer at most this many examples.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Tokens per response [default: the task's].")]
Seed = Annotated[int, typer.Option(help="Everything random follows from this.")]
Slots = Annotated[int | None, typer.Option(min=1, help="Sequences generated at once.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
Template = Annotated[Path | None, typer.Option("--chat-template", help="Jinja file for a model that has none.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
