"""The documentation tells the truth about what can be checked: methods, settings, recipes, commands, the README's task."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from posttrain.cli.reporting import report_run
from posttrain.pipeline.methods import Described, build_prompter, build_strategy, build_trainer, describe_methods
from posttrain.pipeline.recipe import Recipe, load_recipe
from posttrain.pipeline.run import run_recipe
from posttrain.tasks.user import load_user_task
from posttrain.training.settings import NEUTRAL

ROOT = Path(__file__).parents[2]
METHODS = list(describe_methods())
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HEADINGS = ("The maths", "When to use it", "What it costs", "How it fails", "Settings", "Command", "Measured")


@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
def test_a_page_has_all_parts_and_the_settings_that_the_class_has(method: Described) -> None:
    text = (ROOT / "docs" / "methods" / f"{method.name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {method.name}\n\n**What it is.**")
    at = [text.index(f"\n## {heading}\n") for heading in HEADINGS]
    assert at == sorted(at)
    section = text[text.index("\n## Settings\n") : text.index("\n## Command\n")]
    assert [f"{key}={value}" for key, value in re.findall(r"^\| `(\w+)` \| `(.+?)` \|", section, re.MULTILINE)] == list(
        method.settings
    )
    published = re.search(rf"^<!-- measured:{method.name} --> \S", text, re.MULTILINE)  # by benchmarks/publish.py
    assert method.measured == bool(published), "the class's `measured` and its page's result do not agree"
    assert bool(published) != ("not measured yet" in text.lower())


def test_the_settings_that_all_trainers_share_stand_in_one_table() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = text[text.index("\n## Settings of every trainer\n") : text.index("\n## Files\n")]
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| (\* )?", section, re.MULTILINE)
    trainers = [method for method in METHODS if method.shared]
    assert {"sft", "dpo"} <= {method.name for method in trainers}
    assert {method.shared for method in trainers} == {tuple(f"{key}={value}" for key, value, _ in rows)}
    assert {key for key, _, mark in rows if mark} == NEUTRAL
    for method in trainers:
        page = (ROOT / "docs" / "methods" / f"{method.name}.md").read_text(encoding="utf-8")
        assert "(../training.md#settings-of-every-trainer)" in page


def test_the_index_and_the_navigation_name_every_method() -> None:
    index = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for method in METHODS:
        assert f"[{method.name}]({method.name}.md)" in index
        assert f"methods/{method.name}.md" in navigation


def _blocks(page: Path) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_every_recipe_in_the_documentation_is_valid() -> None:
    texts = [body for page in PAGES for block in _blocks(page) for body in (_heredocs(block).values() or [block])]
    recipes = [text for text in texts if re.search(r"^stages:", text, re.MULTILINE)]
    assert len(recipes) >= 4
    for text in recipes:
        recipe = Recipe.model_validate(yaml.safe_load(text))
        for stage in recipe.stages:
            if stage.eval is not None:
                build_prompter(stage.eval.prompt), build_strategy(stage.eval.strategy)


def test_every_command_names_methods_that_exist() -> None:
    commands = [
        line
        for page in PAGES
        for line in re.findall(
            r"posttrain (?:eval|train|prompt-search|sensitivity|icl-curve) .*",
            page.read_text(encoding="utf-8").replace("\\\n", " "),
        )
    ]
    specs = [
        (kind, quoted or spec)
        for line in commands
        for kind, quoted, spec in re.findall(r"--(prompt|strategy) (?:'([^']+)'|([a-z_]+:[\w=.,]+|[a-z_]+))", line)
    ]
    trained = [spec for line in commands for spec in re.findall(r"posttrain train ([a-z_]+(?::[\w=.,-]+)?)", line)]
    assert len(specs) >= 8
    assert len(trained) >= 4
    for kind, spec in specs:
        build_prompter(spec) if kind == "prompt" else build_strategy(spec)
    for spec in trained:
        build_trainer(spec)


def _heredocs(block: str) -> dict[str, str]:
    return dict(re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END$", block, re.MULTILINE | re.DOTALL))


def _readme_files(folder: Path) -> dict[str, str]:
    files = {name: body for block in _blocks(ROOT / "README.md") for name, body in _heredocs(block).items()}
    for name, body in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(body, encoding="utf-8")
    return files


def test_the_readme_task_reads_asks_and_grades(tmp_path: Path) -> None:
    files = _readme_files(tmp_path)
    task = load_user_task(tmp_path / "tickets" / "task.yaml")
    assert (len(task.examples("train")), len(task.examples("test"))) == (6, 3)
    first = task.examples("test")[0]
    assert first.question == "Which team should handle this ticket?\n\nMy card was declined but the money is gone."
    assert task.grade(first, task.extract("It is about money.\nAnswer: Billing.")) == 1.0
    assert task.grade(first, task.extract("Answer: account")) == 0.0
    assert (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8").count(files["tickets/task.yaml"]) == 1


def test_the_readme_recipe_runs_but_for_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_load(_readme_files(tmp_path)["tickets/recipe.yaml"])
    recipe["model"] = "scripted"
    recipe["stages"] = [stage for stage in recipe["stages"] if "train" not in stage and "model" not in stage]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    report = run_recipe(load_recipe(path), path, tmp_path / "out", report_run)
    assert [rung["name"] for rung in report["rungs"]] == ["zero-shot", "few-shot"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "03-rows" / "rows.jsonl").read_text().splitlines()]
    teams = [row["completion"].removeprefix("Answer: ") for row in rows]
    assert sorted(teams) == ["account", "account", "billing", "billing", "technical", "technical"]
