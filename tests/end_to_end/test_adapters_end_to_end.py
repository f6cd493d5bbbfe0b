"""Adapters from the command line: trained, evaluated, talked to, as recipe stages, exported as folders and GGUF files."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config
from typer.testing import CliRunner

from posttrain.cli.main import app
from posttrain.core.errors import ConfigError, ModelError
from posttrain.core.types import Checkpoint
from posttrain.finetuning.sft import Sft
from posttrain.models.gguf import convert
from posttrain.models.gguf_write import write_gguf
from posttrain.models.load import fingerprint_of, load
from posttrain.training.plain import export_plain

RUNNER = CliRunner()
SETTINGS = {
    "lora": "rank=2",
    "rslora": "rank=2,targets=[q_proj,v_proj]",
    "dora": "rank=2",
    "ia3": "lr=1e-2",
    "prefix": "virtual_tokens=3",
    "prompt": "virtual_tokens=3",
    "bottleneck": "width=4",
}
TASK = "reasoning_gym/chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=1"
IDS = torch.tensor([[1, 5, 9, 2, 7, 100, 3]])


def invoke(*arguments: str, **more: str) -> str:
    done = RUNNER.invoke(app, arguments, catch_exceptions=False, **more)  # type: ignore[arg-type]
    assert done.exit_code == 0, done.output
    return done.stdout


def tokenizer(*, digits: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with merges, one special and one plain added token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, "hi", "Ġhi", "12"]
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(names)}, merges=[("h", "i"), ("Ġ", "hi"), ("1", "2")]))
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    inner.pre_tokenizer = pre_tokenizers.Sequence(steps) if digits else steps[0]
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<|im_start|>", special=True, normalized=False)])
    inner.add_special_tokens([AddedToken("<|im_end|>", special=True, normalized=False)])
    inner.add_tokens([AddedToken("<think>", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>",
        chat_template=tiny_models.TEMPLATE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "tiny"
    config = tiny_models.llama(vocab_size=270, head_dim=16, eos_token_id=260, pad_token_id=260)
    tiny_models.model(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint of every kind, made by the command line."""
    work = tmp_path_factory.mktemp("trained")
    rows = work / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in tiny_models.demonstrations(8)))
    made = {}
    for kind, settings in SETTINGS.items():
        lr = "" if "lr=" in settings else "lr=3e-2,"
        method = f"sft:adapter={kind},{lr}{settings},batch_size=4,epochs=2,dtype=float32"
        done = invoke("train", method, "-m", str(tiny), "--data", str(rows), "--out", str(work / kind), "--json")
        made[kind] = Path(json.loads(done)["checkpoint"])
    return made


@pytest.mark.parametrize("kind", SETTINGS)
def test_eval_and_chat_open_it(kind: str, trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    common = ("--task", TASK, "--limit", "3", "--max-tokens", "6", "--dtype", "float32")
    assert json.loads(invoke("eval", "-m", str(trained[kind]), *common, "--json"))["n"] == 3
    shown = invoke("chat", "-m", str(trained[kind]), "--max-tokens", "4", "--temperature", "0", input="hello\n/quit\n")
    assert "model" in shown


@pytest.mark.parametrize("kind", ["prefix", "prompt", "bottleneck"])
def test_as_stages_of_a_recipe(kind: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_models.demonstrations(8)))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_models.preferences(8)))
    common = f"adapter={kind},{SETTINGS[kind]},batch_size=4,dtype=float32"
    recipe = {
        "name": "adapters",
        "model": str(tiny),
        "task": TASK,
        "dtype": "float32",
        "examples": {"test": 3},
        "stages": [
            {"name": "rows", "data": {"file": "rows.jsonl"}},
            {"name": "sft", "train": {"method": f"sft:{common}", "data": "rows"}},
            {"name": "pairs", "data": {"file": "pairs.jsonl"}},
            {"name": "dpo", "model": "sft", "train": {"method": f"dpo:{common}", "data": "pairs"}},
            {"name": "after", "lever": "preference", "model": "dpo", "eval": {"max_tokens": 6}},
        ],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    invoke("run", "recipe.yaml", "--out", "out")
    assert len((tmp_path / "out" / "05-after" / "ledger.jsonl").read_text().splitlines()) == 3
    again = RUNNER.invoke(app, ["run", "recipe.yaml", "--out", "out"], catch_exceptions=False)
    assert "0 stages run, 5 skipped" in again.output.replace("\n", " ")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "ia3"])
def test_an_exported_folder_is_plain_and_says_what_the_adapter_said(
    kind: str, tiny: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    from peft import PeftModel

    told = json.loads(invoke("models", "export", str(trained[kind]), "--out", str(tmp_path / "plain"), "--json"))
    assert told["dtype"] == "float32"  # as the base is saved
    with pytest.warns(FutureWarning):  # PEFT asking transformers by a deprecated name
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), trained[kind])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(plain), logits(adapted), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(plain), logits(AutoModelForCausalLM.from_pretrained(tiny)), atol=1e-3)
    assert not (tmp_path / "plain" / "adapter_config.json").exists()
    notes = json.loads((tmp_path / "plain" / "posttrain.json").read_text())["exported"]
    assert notes == {"from": str(trained[kind]), "fingerprint": fingerprint_of(trained[kind]), "dtype": "float32"}
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").chat_template == tiny_models.TEMPLATE
    half = export_plain(str(trained[kind]), tmp_path / "half", dtype="bfloat16")
    assert half["dtype"] == "bfloat16"
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert all(torch.equal(p, q.bfloat16()) for p, q in zip(saved.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["prefix", "prompt", "bottleneck"])
def test_what_cannot_be_merged_cannot_be_exported(kind: str, trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"a {kind} adapter is no change of its base's weights"):
        export_plain(str(trained[kind]), tmp_path / "plain")
    assert not any(tmp_path.iterdir())


def test_export_overwrites_nothing_and_knows_its_types(trained: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is already there"):
        export_plain(str(trained["lora"]), tmp_path / "there")
    with pytest.raises(ConfigError, match="choose auto, float32, bfloat16 or float16"):
        export_plain(str(trained["lora"]), tmp_path / "new", dtype="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_gguf_file_reads_back_the_same(dtype: str, tied: bool, tiny: Path, tmp_path: Path) -> None:
    model = tiny_models.model(tiny_models.llama(vocab_size=270, head_dim=16, tie_word_embeddings=tied)).bfloat16()
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "model")
    export_plain(str(tmp_path / "model"), tmp_path / "out.gguf", dtype=dtype)
    again, before = (load(tmp_path / name, dtype="float32") for name in ("out.gguf", "model"))
    assert torch.equal(logits(again.model), logits(before.model))  # bfloat16 values are exact in all three types
    own = before.tokenizer
    for text in ("hi 12 hi", "<|im_start|>user\nÄpfel 東京 😀 1234<|im_end|>", "<think> hi</think>"):
        assert again.tokenizer(text)["input_ids"] == own(text)["input_ids"]
    assert again.tokenizer.chat_template == own.chat_template
    assert (again.tokenizer.bos_token, again.tokenizer.eos_token) == (own.bos_token, own.eos_token)
    assert again.model.config.head_dim == 16


def test_transformers_own_reader_agrees(trained: dict[str, Path], tmp_path: Path) -> None:
    export_plain(str(trained["dora"]), tmp_path / "merged.gguf", dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="merged.gguf", dtype=torch.float32)
    ours = load(trained["dora"], dtype="float32").model
    torch.testing.assert_close(logits(theirs), logits(ours), atol=1e-5, rtol=1e-5)


def test_a_gguf_export_goes_on_as_a_model(trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    assert invoke("models", "export", str(trained["lora"]), "-o", "m.gguf", "--dtype", "bfloat16") == "m.gguf: bfloat16\n"
    common = ("--task", TASK, "--limit", "2", "--max-tokens", "4", "--dtype", "float32")
    assert json.loads(invoke("eval", "-m", "m.gguf", *common, "--json"))["n"] == 2
    data = tiny_models.demonstrations(4)
    made = Sft(dtype="float32", adapter="lora", rank=2)(Checkpoint(path=Path("m.gguf")), data, tmp_path / "on", seed=0)
    assert load(made.path).shape.parameters > 0


def test_without_digit_splitting_the_pre_tokenizer_is_gpt2s(tiny: Path, tmp_path: Path) -> None:
    write_gguf(AutoModelForCausalLM.from_pretrained(tiny), tokenizer(digits=False), tmp_path / "a.gguf", kind="float32")
    convert(tmp_path / "a.gguf", tmp_path / "hf")
    again = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert again.tokenize("hi12") == tokenizer(digits=False).tokenize("hi12") == ["hi", "12"]


def test_what_gguf_would_hold_differently_is_refused(tiny: Path, tmp_path: Path) -> None:
    def refused(model: object, words: str, own: object = None) -> None:
        with pytest.raises(ModelError, match=words):
            write_gguf(model, own or tokenizer(), tmp_path / "no.gguf", kind="float16")
        assert not (tmp_path / "no.gguf").exists()

    sizes = {"vocab_size": 270, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    refused(AutoModelForCausalLM.from_config(Qwen2Config(**sizes)), "architecture qwen2")
    refused(tiny_models.model(tiny_models.llama(vocab_size=270, attention_bias=True)), "biases")
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    refused(tiny_models.model(tiny_models.llama(vocab_size=270, rope_parameters=scaled)), "scaled rotary embeddings")
    refused(
        tiny_models.model(tiny_models.llama(vocab_size=100, eos_token_id=3, pad_token_id=3)),
        "do not fit the model's 100 embeddings",
    )
    huge = AutoModelForCausalLM.from_pretrained(tiny)
    huge.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    refused(huge, "'model.layers.0.mlp.up_proj.weight' is too large for float16")
    spaced = tokenizer()
    spaced.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    refused(AutoModelForCausalLM.from_pretrained(tiny), "byte-level BPE tokenizers", spaced)
