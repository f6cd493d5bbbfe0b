"""The remote engine against a server that is not ours, `transformers serve`, on the weights that the local engine has."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import tiny_models
from transformers import GenerationConfig
from transformers_server import transformers_server

from posttrain.core.errors import ServerError
from posttrain.core.protocols import Engine
from posttrain.core.types import Example, Message, Prompt, Sampling
from posttrain.engines.openai import OpenAIEngine, open_server, read_server
from posttrain.engines.purse import Allowance
from posttrain.ledger.row import Row
from posttrain.ledger.store import load_ledger
from posttrain.pipeline.evaluate import Evaluation, evaluate
from posttrain.pipeline.opening import open_engine

ASK = Prompt(messages=(Message(role="user", content="What is 2 + 2?"),))


@dataclass(frozen=True)
class Letters:
    """A task whose answer is the letters of the reply, so that two replies that differ are two answers."""

    name: str = "letters"
    version: str = "1"
    max_tokens: int = 24
    instruction: str = "Say anything."

    def examples(self, split: str) -> list[Example]:
        return [Example(id=str(n), question=f"Question {n}: {'why ' * n}?", answer="x") for n in range(6)]

    def extract(self, text: str) -> str | None:
        return "".join(char for char in text if char.isalpha()) or None

    def key(self, answer: str) -> str:
        return answer

    def grade(self, example: Example, answer: str | None) -> float:
        return float(len(answer or "") % 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model"
    tiny_models.folder(path, tiny_models.llama(max_position_embeddings=512))
    GenerationConfig(do_sample=True, top_k=0, eos_token_id=257, pad_token_id=257).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    with transformers_server(tmp_path_factory.mktemp("home"), str(folder)) as url:
        yield url


@pytest.fixture(scope="module")
def remote(folder: Path, url: str) -> OpenAIEngine:
    engine = open_engine(f"openai:model={folder},url={url},concurrency=4,shape={folder}").engine
    assert isinstance(engine, OpenAIEngine)
    return engine


@pytest.fixture(scope="module")
def local(folder: Path) -> Engine:
    return open_engine(str(folder), dtype="float32", device="cpu", slots=4).engine


def test_what_it_can_do_is_found(remote: OpenAIEngine) -> None:
    assert remote.can == {"stream"}
    assert remote.features.accepted == {"temperature", "top_p", "seed"}  # it answers 422 to the others
    assert remote.features.stops == "kept"


def test_greedy_text_and_usage_are_those_of_the_local_engine(remote: OpenAIEngine, local: Engine) -> None:
    for sampling in (Sampling(max_tokens=5), Sampling(max_tokens=40), Sampling(max_tokens=40, stop=("t",))):
        (theirs,) = asyncio.run(remote.generate(ASK, sampling, seed=0))
        (ours,) = asyncio.run(local.generate(ASK, sampling, seed=0))
        assert (theirs.text, theirs.finish, theirs.stopped_by) == (ours.text, ours.finish, ours.stopped_by)
        assert (theirs.usage.calls, theirs.usage.prompt) == (ours.usage.calls, ours.usage.prompt)
        assert theirs.usage.generated == ours.usage.generated
        assert remote.count_tokens(ASK) == theirs.usage.prompt  # by the tokenizer in the folder that `shape` names


def test_sample_i_is_the_same_alone_and_among_others(folder: Path, url: str) -> None:
    one_by_one = open_server(read_server(f"openai:model={folder},url={url},concurrency=1"))  # its seed is the process's
    hot = Sampling(temperature=1.0, max_tokens=12)
    four = asyncio.run(one_by_one.generate(ASK, hot, seed=3, samples=range(4)))
    assert len({completion.text for completion in four}) > 1
    (third,) = asyncio.run(one_by_one.generate(ASK, hot, seed=3, samples=(2,)))
    assert third.text == four[2].text


def test_a_stream_ends_in_the_same_completion(remote: OpenAIEngine) -> None:
    async def run():
        return [delta async for delta in remote.stream(ASK, Sampling(max_tokens=8), seed=0)]

    deltas = asyncio.run(run())
    (whole,) = asyncio.run(remote.generate(ASK, Sampling(max_tokens=8), seed=0))
    assert len(deltas) > 2
    assert "".join(delta.text for delta in deltas) == deltas[-1].completion.text
    assert deltas[-1].completion.usage == whole.usage
    assert deltas[-1].completion.text == whole.text.rstrip("\ufffd")  # a stream does not send half a character at the end


def test_a_model_it_does_not_have_is_one_sentence(url: str) -> None:
    with pytest.raises(ServerError, match="other/model") as raised:
        open_server(read_server(f"openai:other/model,url={url}"))
    assert "\n" not in str(raised.value)


def comparable(folder: Path) -> list[Row]:
    """The rows but for the likelihood of their samples, which this server does not tell."""
    return [
        replace(row, candidates=tuple({**candidate, "mean_logprob": None} for candidate in row.candidates))
        for row in load_ledger(folder).rows
    ]


@pytest.mark.parametrize("strategy", ["greedy", "self_consistency:n=2,temperature=0.0001"])
def test_the_same_strategy_gives_the_same_rows(strategy: str, remote: OpenAIEngine, local: Engine, tmp_path: Path) -> None:
    rows = {}
    for name, engine in (("local", local), ("remote", remote)):
        task = Letters()
        evaluation = Evaluation(
            stage="s", task=task, examples=task.examples("test"), prompt="zero_shot", strategy=strategy, model="m", seed=0
        )
        evaluate(evaluation, engine, tmp_path / name, title=name)
        rows[name] = comparable(tmp_path / name)
    assert rows["remote"] == rows["local"] or strategy != "greedy"
    assert [row.answer for row in rows["remote"]] == [row.answer for row in rows["local"]]
    assert [row.cost for row in rows["remote"]] == [row.cost for row in rows["local"]]  # FLOPs too: `shape` names the sizes
    assert rows["local"][0].cost["policy"]["flops"] > 0
    assert len({row.answer for row in rows["local"]}) > 1


def test_a_budget_gives_the_same_rows_on_both(remote: OpenAIEngine, local: Engine, tmp_path: Path) -> None:
    rows = {}
    for name, engine in (("local", local), ("remote", remote)):
        task = Letters()
        evaluation = Evaluation(
            stage="s", task=task, examples=task.examples("test"), prompt="zero_shot", strategy="greedy", model="m", seed=0,
            allowance=Allowance.of(tokens=80),
        )  # fmt: skip
        assert 0 < evaluate(evaluation, engine, tmp_path / name, title=name).budget_rate < 1
        rows[name] = comparable(tmp_path / name)
    assert rows["remote"] == rows["local"]
    assert all(row.cold().usage.tokens <= 80 for row in rows["remote"])


def test_the_command_line_takes_it(folder: Path, url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from posttrain.cli.main import main; main()", "eval", "--model", f"openai:{folder}"]
    command += ["--task", "reasoning_gym/chain_sum:min_terms=2,max_terms=2", "--limit", "3", "--max-tokens", "8", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "OPENAI_BASE_URL": url}
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["n"], told["model"]) == (3, str(folder))
    assert told["cost"]["tokens"] > 0
    assert told["flops"] is told["cost"]["flops"] is told["per_query"]["flops"] is told["spent"]["flops"] is None
