"""The command line under torchrun: one checkpoint, one message, no process left waiting."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_models
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

METHOD = "sft:lr=1e-2,epochs=2,batch_size=5,dtype=float32,tokens_per_microbatch=80,save_every=2"


def torchrun(*arguments: str, cwd: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    began = time.monotonic()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "posttrain"]
    done = subprocess.run(
        [*command, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done, time.monotonic() - began


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tiny_models.demonstrations(13)))
    return path


def test_train_in_two_sharded_processes_writes_one_ordinary_checkpoint(tiny: Path, rows: Path, tmp_path: Path) -> None:
    done, _ = torchrun(
        "train", f"{METHOD},sharding=full", "-m", str(tiny), "--data", str(rows), "--out", "out", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1  # one process prints
    assert done.stderr.count("note: sft: about") == 1
    found = json.loads(done.stdout)
    assert [path.parent.name for path in tmp_path.rglob("model*.safetensors")] == ["checkpoint"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / found["checkpoint"])
    assert {str(p.dtype) for p in model.parameters()} == {"torch.float32"}
    assert len(AutoTokenizer.from_pretrained(tmp_path / found["checkpoint"])) == 258
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    starts = json.loads((tmp_path / "out" / "manifest.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [2]
    before = AutoModelForCausalLM.from_pretrained(tiny)
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)


ODD = """
from dataclasses import dataclass

from posttrain.core.errors import DataError
from posttrain.finetuning.sft import Sft
from posttrain.training.processes import rank_and_world


@dataclass(frozen=True, slots=True, kw_only=True)
class OddSft(Sft):
    '''Finds a row bad in one process only.'''

    def __call__(self, start, data, out, *, seed):
        if rank_and_world()[0] == 1:
            raise DataError("row 3: cannot be read here; mend it")
        return Sft.__call__(self, start, data, out, seed=seed)
"""


def test_an_error_in_one_process_ends_all_with_one_sentence(tiny: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    done, seconds = torchrun(
        "train", "OddSft@odd.py:lr=1e-2", "-m", str(tiny), "--data", str(rows), "--out", "out", cwd=tmp_path
    )
    assert done.returncode != 0
    assert done.stderr.count("row 3: cannot be read here; mend it") == 1
    assert "error: row 3: cannot be read here; mend it\n" in done.stderr
    assert seconds < 200
    assert not (tmp_path / "out" / "checkpoint").exists()


CUT = """
import os
import signal
from dataclasses import dataclass

from posttrain.finetuning.sft import Sft
from posttrain.training.state import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class CutSft(Sft):
    '''Of several processes, the first is killed after three steps.'''

    def __call__(self, start, data, out, *, seed):
        write = Metrics.write

        def counted(self, row):
            write(self, row)
            if row["step"] == 3 and "WORLD_SIZE" in os.environ:
                os.kill(os.getpid(), signal.SIGKILL)

        Metrics.write = counted
        return Sft.__call__(self, start, data, out, seed=seed)
"""


@pytest.mark.slow
def test_killed_in_two_sharded_processes_goes_on_in_one(tiny: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.py").write_text(CUT)
    settings = METHOD.partition(":")[2]
    given = ("-m", str(tiny), "--data", str(rows), "--out", "out")
    done, seconds = torchrun("train", f"CutSft@cut.py:{settings},sharding=full", *given, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error: another process of this run has ended without a word") <= 1  # torchrun may be faster
    assert "Traceback" not in done.stderr.partition("torch/distributed")[0]
    assert seconds < 200
    alone = [sys.executable, "-m", "posttrain", "train", f"CutSft@cut.py:{settings}", *given]
    subprocess.run(alone, cwd=tmp_path, check=True, capture_output=True)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    starts = json.loads((tmp_path / "out" / "manifest.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [2, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "sft:lr=-1", "-m", "MODEL", "--data", "ROWS", "-o", "out"), "error: lr = -1"),
        (("train", "sft", "-m", "nowhere/at/all", "--data", "ROWS", "-o", "out"), "error: unknown model"),
        (("train", "sft", "-m", "MODEL", "--data", "ROWS"), "Missing option '--out'"),
        (("eval", "-m", "MODEL", "-t", "gsm8k"), "error: posttrain eval is for one process"),
    ],
)
def test_an_error_in_all_processes_is_told_once(
    arguments: tuple[str, ...], sentence: str, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    given = [{"MODEL": str(tiny), "ROWS": str(rows)}.get(word, word) for word in arguments]
    done, seconds = torchrun(*given, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count(sentence) == 1, done.stderr
    assert seconds < 200


RECIPE = {
    "name": "shared",
    "task": "reasoning_gym/chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=1",
    "examples": {"train": 12, "test": 4},
    "dtype": "float32",
    "stages": [
        {"name": "before", "lever": "prompting", "eval": {"prompt": "zero_shot", "max_tokens": 4}},
        {"name": "rows", "data": {"file": "rows.jsonl"}},
        {"name": "sft", "train": {"method": f"{METHOD},sharding=full", "data": "rows"}},
        {"name": "after", "lever": "fine-tuning", "model": "sft", "eval": {"prompt": "zero_shot", "max_tokens": 4}},
    ],
}


@pytest.mark.slow
def test_a_recipe_trains_in_all_processes_and_does_the_rest_in_the_first(tiny: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(rows.read_text())
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "model": str(tiny)}))
    for finished in (False, True):
        done, _ = torchrun("run", "recipe.yaml", "--out", "out", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("stages run") == 1
        assert ("0 stages run, 4 skipped" in done.stderr) == finished
    assert (tmp_path / "out" / "03-sft" / "checkpoint" / "model.safetensors").is_file()
    assert len((tmp_path / "out" / "04-after" / "ledger.jsonl").read_text().splitlines()) >= 4
    assert (tmp_path / "out" / "report.html").is_file()
