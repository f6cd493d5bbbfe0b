"""The rules that keep the code readable: layers, a light import, a ceiling on file length."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import posttrain

ROOT = Path(posttrain.__file__).parent
LAYERS = [
    {"core"},
    {"losses", "stats", "data", "ledger"},
    {"tasks", "models"},
    {"engines", "training"},
    {"verifiers"},
    {"environments"},
    {"prompting", "test_time", "finetuning", "preference"},
    {"pipeline", "report", "serve"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
LEVERS = LAYERS[6]
HEAVY = {"torch", "transformers", "peft", "datasets", "matplotlib"}
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> list[tuple[str, ...]]:
    """Every module of this package that a file imports, anywhere in it, as its path below the package."""
    package = ("posttrain", *path.relative_to(ROOT).parts[:-1])
    found: list[tuple[str, ...]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(package[: len(package) - node.level + 1])
            target = f"{base}.{node.module}" if node.module else base
            names = [target] if node.module else [f"{target}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        found += [
            tuple(name.split(".")[1:]) for name in names if name.startswith("posttrain.") and "__version__" not in name
        ]
    return found


def test_every_folder_has_a_layer() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= LEVEL.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    if len(parts) == 1:
        assert imports(path) == ([("cli", "main")] if path.name == "__main__.py" else [])
        return
    here = parts[0]
    for target in imports(path):
        assert target[0] in LEVEL, f"{path}: imports unknown {target}"
        if target[0] != here:
            assert LEVEL[target[0]] < LEVEL[here], f"{path} (L{LEVEL[here]}) imports {'.'.join(target)}"
        elif here in LEVERS and path.name != "__init__.py" and len(target) > 1:
            assert target[1].startswith("_"), f"{path}: method files share only underscore files, not {'.'.join(target)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("command", ["import posttrain", "import posttrain.cli.main"])
def test_import_is_light(command: str) -> None:
    code = f"import sys; {command}; print(*[m for m in {sorted(HEAVY)!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_levers_and_tasks_need_no_torch() -> None:
    code = (
        "import sys, importlib, pkgutil\n"
        "for name in ('tasks', 'prompting', 'test_time', 'stats', 'ledger', 'data', 'verifiers'):\n"
        "    package = importlib.import_module('posttrain.' + name)\n"
        "    for module in pkgutil.iter_modules(package.__path__):\n"
        "        importlib.import_module(f'posttrain.{name}.{module.name}')\n"
        "print(*[m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
