"""The other commands: what they print, for people and for programs."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
from typer.testing import CliRunner

from posttrain.cli.main import app
from posttrain.core.errors import ConfigError, ContextOverflowError, DataError, ModelError

RUNNER = CliRunner()


def invoke(*arguments: str, **more: str) -> str:
    done = RUNNER.invoke(app, arguments, catch_exceptions=False, **more)  # type: ignore[arg-type]
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.folder(tmp_path_factory.mktemp("models") / "tiny")


def test_methods_lists_every_method_of_the_four_levers() -> None:
    found = {method["name"]: method for method in json.loads(invoke("methods", "--json"))}
    assert {"zero_shot", "few_shot_cot", "self_consistency", "best_of_n", "sft", "dpo", "verified_pairs"} <= found.keys()
    assert found["self_consistency"]["paper"].endswith("2203.11171")
    assert "n=8" in found["self_consistency"]["settings"]
    assert found["worked_examples"]["lever"] == "fine-tuning data"
    assert "self_consistency" in invoke("methods")


def test_every_method_says_what_it_is() -> None:
    for method in json.loads(invoke("methods", "--json")):
        assert method["summary"], method["name"]


def test_models_and_tasks() -> None:
    assert "smollm2-135m" in invoke("models")
    tasks = [task["task"] for task in json.loads(invoke("tasks", "--json"))]
    assert "gsm8k" in tasks
    assert "reasoning_gym/chain_sum" in tasks
    assert len(tasks) > 90


def test_doctor_checks_this_machine() -> None:
    done = RUNNER.invoke(app, ["doctor", "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    checks = {check["name"]: check for check in found["checks"]}
    assert {"python", "packages", "compute", "threads", "memory", "disk for runs", "disk for cache"} == checks.keys()
    assert done.exit_code == (0 if all(check["ok"] for check in checks.values()) else 1)
    assert all(check["ok"] or check["mend"] for check in checks.values())


def test_explain_marks_what_is_trained(tiny: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "2+2?", "completion": "It is 4"}) + "\n")
    shown = invoke("data", "explain", "--model", str(tiny), "--data", str(rows))
    assert "⟦It is 4<|im_end|>" in shown.replace("│", "").replace("\n", "")
    with pytest.raises(ConfigError, match="did you mean 'last'"):
        RUNNER.invoke(
            app, ["data", "explain", "-m", str(tiny), "--data", str(rows), "--train", "lats"], catch_exceptions=False
        )


def test_train_then_eval_then_compare(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in tiny_models.demonstrations(8)))
    method = "sft:adapter=lora,rank=2,lr=1e-3,batch_size=4,dtype=float32"
    trained = json.loads(invoke("train", method, "-m", str(tiny), "--data", str(rows), "--out", "out", "--json"))
    assert (Path(trained["checkpoint"]) / "adapter_config.json").is_file()
    assert trained["cost"]["usage"]["scored"] > 0
    task = "reasoning_gym/chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=1"
    for name, model in (("before", str(tiny)), ("after", trained["checkpoint"])):
        common = ("--task", task, "--limit", "4", "--max-tokens", "8", "--dtype", "float32")
        shown = invoke("eval", "-m", model, *common, "-o", name)
        assert "accuracy" in shown
    found = json.loads(invoke("compare", "before", "after", "--json"))
    assert "before" in json.dumps(found)
    assert "after" in invoke("compare", "before", "after")


def test_chat_streams_and_leaves(tiny: Path) -> None:
    shown = invoke("chat", "-m", str(tiny), "--max-tokens", "5", "--temperature", "0", input="hello\n/new\nagain\n/quit\n")
    assert shown.count("model") >= 2


def test_train_refuses_rows_of_another_shape(tiny: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"words": "just words"}\n')
    with pytest.raises(DataError):
        RUNNER.invoke(
            app, ["train", "sft", "-m", str(tiny), "--data", str(rows), "-o", str(tmp_path / "o")], catch_exceptions=False
        )


def test_a_prompt_longer_than_the_context_is_one_sentence(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.jsonl").write_text(json.dumps({"question": "why " * 200, "answer": "4"}) + "\n")
    with pytest.raises(ContextOverflowError, match=r"(?=.*256)(?=.*8)") as caught:
        RUNNER.invoke(
            app,
            ["eval", "-m", str(tiny), "-t", "gsm8k", "--data", "long.jsonl", "--max-tokens", "8", "--json"],
            catch_exceptions=False,
        )
    assert "\n" not in str(caught.value)


def test_a_model_without_a_chat_template_says_how_to_give_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bare = tmp_path / "bare"
    shutil.copytree(tiny, bare)
    template = bare / "chat_template.jinja"
    text = template.read_text()
    template.unlink()
    (tmp_path / "own.jinja").write_text(text)
    arguments = ["eval", "-m", str(bare), "-t", "reasoning_gym/chain_sum", "--limit", "1", "--max-tokens", "4", "--json"]
    with pytest.raises(ModelError, match="--chat-template FILE"):
        RUNNER.invoke(app, arguments, catch_exceptions=False)
    assert json.loads(invoke(*arguments, "--chat-template", "own.jinja"))["n"] == 1
