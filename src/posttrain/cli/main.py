"""The command line. Each command imports what it needs when it runs, so that `--help` is instant."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError, PosttrainError
from .curving import curve
from .data_commands import data_app
from .icl_curving import icl_curve
from .launching import launched, together
from .modelling import models_app
from .options import AsJson, Data, Device, Dtype, Limit, MaxTokens, Model, Prompt, Rows, Seed, Slots, Split, Task, Template
from .prompt_searching import prompt_search
from .sensitivity_testing import sensitivity

app = typer.Typer(
    name="posttrain",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Turn a pretrained language model into the assistant you need, with whichever lever pays: prompting, test-time "
    "scaling, fine-tuning, preference optimisation.\n\nStart with `posttrain run recipes/quickstart.yaml`; see what there "
    "is with `posttrain methods`.",
)
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, for example recipes/quickstart.yaml.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder [default: runs/<name>].")] = None,
    size: Annotated[str | None, typer.Option(help="One of the recipe's sizes, for example smoke.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override, for example stages.sft.train.method=sft:epochs=2.")
    ] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(help="Another run's folder: what it finished and is the same here is taken over."),
    ] = None,
    finished: Annotated[bool, typer.Option("--finished", help="Run nothing: report what is finished so far.")] = False,
) -> None:
    """Run a recipe; run it again after a stop and it goes on where it was. Finished stages are skipped."""
    from ..pipeline.recipe import load_recipe
    from ..pipeline.run import report_finished, run_recipe
    from .reporting import report_run

    overrides = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r} is not key=value")
        overrides[key] = _scalar(value)
    loaded = load_recipe(recipe, size=size, overrides=overrides)
    folder = out or Path("runs") / (loaded.name + (f"-{size}" if size else ""))
    if finished and reuse:
        raise ConfigError("--finished runs nothing, so --reuse has nothing to take over: leave one of them out")
    if finished:
        report_finished(loaded, folder, report_run)
    else:
        run_recipe(loaded, recipe, folder, report_run, size=size, reuse=reuse or ())


@app.command("eval")
def evaluate(
    model: Model,
    task: Task,
    prompt: Prompt = "zero_shot",
    strategy: Annotated[str, typer.Option("--strategy", "-s", help="For example self_consistency:n=16.")] = "greedy",
    data: Data = None,
    split: Split = "test",
    limit: Limit = None,
    max_tokens: MaxTokens = None,
    budget_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens per example, over all roles.")] = None,
    budget_flops: Annotated[float | None, typer.Option(min=1, help="Most FLOPs per example, over all roles.")] = None,
    run_budget_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens for the whole evaluation.")] = None,
    run_budget_flops: Annotated[float | None, typer.Option(min=1, help="Most FLOPs for the whole evaluation.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Keep and reuse generations here [default: runs/generations.sqlite].")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Generate everything anew, keep nothing.")] = False,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the ledger [default: by content].")] = None,
    slots: Slots = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    chat_template: Template = None,
    as_json: AsJson = False,
) -> None:
    """Measure one model, prompt and strategy on a task: accuracy with its interval, and what it cost."""
    from ..engines.purse import Allowance
    from ..pipeline.single import default_cache, evaluate_once

    if no_cache and cache is not None:
        raise ConfigError("--cache and --no-cache contradict each other: give one")
    allowance = Allowance.of(
        tokens=budget_tokens, flops=budget_flops, run_tokens=run_budget_tokens, run_flops=run_budget_flops
    )
    result = evaluate_once(
        model=model,
        task=task,
        prompt=prompt,
        strategy=strategy,
        data=data,
        split=split,
        limit=limit,
        max_tokens=max_tokens,
        allowance=allowance,
        cache=None if no_cache else cache or default_cache(model),
        seed=seed,
        out=out,
        slots=slots,
        device=device,
        dtype=dtype,
        chat_template=chat_template,
    )
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        from .show import show_result

        show_result(result)


@app.command()
def train(
    method: Annotated[str, typer.Argument(help="For example sft:adapter=lora,epochs=1 or dpo:beta=0.1.")],
    model: Model,
    data: Rows,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the checkpoint, metrics and resuming.")],
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a model on rows of your own; run it again after a stop and it goes on where it was.

    In several processes: `torchrun --nproc-per-node 2 -m posttrain train …`, with the same result; `sharding=full` in the
    method keeps weights, gradients and optimiser in slices.
    """
    from ..pipeline.single import train_once

    result = train_once(method=method, model=model, data=data, out=out, seed=seed)
    print(json.dumps(result, ensure_ascii=False) if as_json else f"checkpoint: {result['checkpoint']}")


@app.command()
def compare(
    ledgers: Annotated[list[Path], typer.Argument(help="Folders of two or more evaluations of the same examples.")],
    as_json: AsJson = False,
) -> None:
    """Compare evaluations on the examples they share: paired differences, McNemar, Holm, cost."""
    from ..report.compare import compare_ledgers, print_comparison

    if len(ledgers) < 2:
        raise ConfigError("compare needs two or more ledger folders")
    found = compare_ledgers(ledgers)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print_comparison(found)


@app.command()
def chat(
    model: Model = "smollm2-135m",
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1)] = 512,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    chat_template: Template = None,
) -> None:
    """Talk to a model in the terminal; Ctrl-C stops an answer, Ctrl-D or /quit leaves."""
    from .chatting import converse

    converse(model, system, temperature, max_tokens, seed, device, dtype, chat_template)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the methods of the four levers, with paper, settings, needs and cost."""
    from dataclasses import asdict

    from ..pipeline.methods import describe_methods

    found = [asdict(method) for method in describe_methods()]
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        from .show import show_methods

        show_methods(found)


@app.command()
def tasks(as_json: AsJson = False) -> None:
    """List the tasks that can be named."""
    from ..tasks.registry import list_tasks

    found = list_tasks()
    if as_json:
        print(json.dumps([{"task": name, "what": what} for name, what in found], ensure_ascii=False))
    else:
        from .show import show_pairs

        show_pairs("task", "what", found)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine: packages, processor, memory, disk, cache; say what would be slow or fail."""
    from .doctoring import examine, show

    found = examine()
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        show(found)
    if not all(check["ok"] for check in found["checks"]):
        raise typer.Exit(1)


# Studies of many evaluations, listed after what everybody needs.
app.command()(curve)
app.command("prompt-search")(prompt_search)
app.command("sensitivity")(sensitivity)
app.command("icl-curve")(icl_curve)


def _scalar(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def main() -> None:
    """Run the command line: one sentence and a non-zero exit for anything a user can mend."""
    command = (lambda: sys.exit(together(guarded, app))) if launched() else app
    sys.exit(guarded(command, lambda sentence: print(sentence, file=sys.stderr)))


def guarded(command: Callable[[], None], tell: Callable[[str], None]) -> int:
    """Run a command and return its exit code; what a user can mend is told in one sentence."""
    try:
        command()
    except SystemExit as end:
        if end.code in (130, 143):  # typer has turned Ctrl-C into the first; the other is a training's that got SIGTERM
            tell(_STOPPED)
        if isinstance(end.code, str):
            tell(end.code)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except PosttrainError as error:
        tell(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        tell(_STOPPED)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


_STOPPED = "stopped; the same command goes on from here"
