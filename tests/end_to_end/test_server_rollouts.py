"""GRPO whose rollouts a server draws that is not ours, `transformers serve`, from weights that it is given as folders."""

import asyncio
import re
import shutil
from pathlib import Path

import pytest
from tiny_models import plain_folder
from training_runs import metrics
from transformers_server import transformers_server

from posttrain.core.types import Checkpoint, Message, Prompt, Sampling
from posttrain.engines.openai import open_server, read_server
from posttrain.pipeline.opening import open_engine
from posttrain.preference import _rollout_server
from posttrain.preference.grpo import Grpo
from posttrain.training.published import FOLDER

ROWS = [{"prompt": f"{i} plus {i * 3 % 7}?", "answer": str(i)} for i in range(6)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def url(home: Path):
    with transformers_server(home) as url:
        yield url


def test_every_step_is_answered_by_the_weights_that_it_has(
    url: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    real = _rollout_server.withdraw

    def copied_first(out: Path, *, but: Path | None = None) -> None:
        if but is not None:
            shutil.copytree(but, kept / but.name)
        real(out, but=but)

    monkeypatch.setattr(_rollout_server, "withdraw", copied_first)
    start = Checkpoint(path=plain_folder(tmp_path / "model"))
    server = f"openai:url={url},update=model_name,concurrency=1"
    method = Grpo(
        task="reasoning_gym/chain_sum", rewards=("rule:parses=false,steps=false,regex='[a-m]'",), rollout_tokens=6, group=4,
        lr=2e-2, batch_size=2, dtype="float32", rollout_server=server,
    )  # fmt: skip
    method(start, ROWS, tmp_path / "run", seed=3)
    rows = metrics(tmp_path / "run")
    assert len(rows) == 3
    assert any(row["grad_norm"] > 0 for row in rows[:2])
    assert all(row.get("guessed", 0) < 0.5 for row in rows)
    assert not (tmp_path / "run" / FOLDER).exists()

    folders = sorted(kept.iterdir())  # of steps 0, 1 and 2
    asked = re.findall(r"Model: \S*/(step-\d{8}-\w+)@main", (home / "log").read_text())
    order = [name for i, name in enumerate(asked) if i == 0 or asked[i - 1] != name]
    assert order == [folder.name for folder in folders]
    assert all(asked.count(folder.name) >= 8 for folder in folders)  # two questions, four samples

    prompts = [Prompt(messages=(Message(role="user", content=row["prompt"]),)) for row in ROWS]
    replies = []
    for folder in folders:  # what the server says with each of these weights is what they say here
        there = open_server(read_server(f"openai:model={folder},url={url}"))
        here = open_engine(str(folder), dtype="float32", device="cpu", slots=4).engine
        said = [
            [asyncio.run(e.generate(p, Sampling(max_tokens=12), seed=0))[0].text for p in prompts] for e in (there, here)
        ]
        assert said[0] == said[1]
        replies.append(said[0])
    assert replies[0] != replies[-1]
