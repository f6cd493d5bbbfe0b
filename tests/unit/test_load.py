import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_families import BY_NAME
from transformers import AutoModelForCausalLM, LlamaConfig

from posttrain.core.errors import ModelError
from posttrain.models.adapters import add_lora, save_adapter
from posttrain.models.load import fingerprint_of, load, pick_device, pick_dtype, resolve, tokenizer_of

IDS = torch.tensor([[1, 5, 9, 2, 7]])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))


def make(folder: Path, *, seed: int = 0, template: bool = True, **config: Any) -> Path:
    """Write a small random Llama with the ChatML tokenizer."""
    tokenizer = BY_NAME["chatml"].tokenizer
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **sizes, **config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not template:
        (folder / "chat_template.jinja").unlink()
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def test_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "model")
    capfd.readouterr()
    loaded = load(str(folder), device="cpu", dtype="float32")
    assert capfd.readouterr() == ("", "")
    assert (loaded.name, loaded.path, loaded.device, loaded.dtype) == (
        str(folder),
        folder,
        torch.device("cpu"),
        torch.float32,
    )
    assert loaded.shape.parameters == sum(p.numel() for p in loaded.model.parameters())
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training
    assert loaded.tokenizer.chat_template == BY_NAME["chatml"].template
    assert torch.equal(logits(loaded.model), logits(AutoModelForCausalLM.from_pretrained(folder)))


def test_the_fingerprint_names_the_content(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    first = load(folder, device="cpu").fingerprint
    assert load(shutil.copytree(folder, tmp_path / "b"), device="cpu").fingerprint == first
    assert load(make(tmp_path / "c", seed=1), device="cpu").fingerprint != first
    assert load(make(tmp_path / "d", rope_parameters={"rope_type": "default", "rope_theta": 5e3})).fingerprint != first
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    other = load(folder, device="cpu", chat_template=template)
    assert other.fingerprint != first
    assert other.tokenizer.chat_template == template.read_text()


def test_changed_weights_under_the_same_name_are_noticed(tmp_path: Path) -> None:
    config = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 1}
    tokenizer = BY_NAME["chatml"].tokenizer
    tokenizer.save_pretrained(tmp_path / "m")
    found = []
    for seed in (0, 1):  # more than a megabyte, so that the hash is remembered
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **config)).save_pretrained(tmp_path / "m")
        found += [load(tmp_path / "m").fingerprint, load(tmp_path / "m").fingerprint]
    assert found[0] == found[1] != found[2] == found[3]
    assert list((tmp_path / "cache" / "hashes").iterdir())


def test_an_adapter_finds_its_base_and_is_merged(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    adapted = add_lora(AutoModelForCausalLM.from_pretrained(base), rank=2, alpha=4, seed=0).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(adapted, tmp_path / "adapter", str(base))
    merged = load(tmp_path / "adapter", dtype="float32")
    torch.testing.assert_close(logits(merged.model), logits(adapted), atol=1e-5, rtol=1e-4)
    assert type(merged.model).__name__ == "LlamaForCausalLM"
    assert merged.path == tmp_path / "adapter"
    assert merged.fingerprint != load(base).fingerprint
    kept = load(tmp_path / "adapter", dtype="float32", merge=False)
    assert type(kept.model).__name__ == "PeftModelForCausalLM"
    assert torch.equal(logits(kept.model), logits(adapted))
    assert kept.fingerprint == merged.fingerprint
    assert fingerprint_of(tmp_path / "adapter") == merged.fingerprint
    assert tokenizer_of(tmp_path / "adapter").get_vocab() == merged.tokenizer.get_vocab()
    assert fingerprint_of(base) == load(base).fingerprint


def test_a_model_without_a_template_says_how_to_give_one(tmp_path: Path) -> None:
    from posttrain.core.types import Message
    from posttrain.data.chat import render_prompt

    loaded = load(make(tmp_path / "model", template=False))
    with pytest.raises(ModelError, match=r"has no chat template: .*--chat-template FILE"):
        render_prompt(loaded.tokenizer, [Message(role="user", content="hi")])
    with pytest.raises(ModelError, match=r"cannot read the chat template .*nowhere\.jinja: No such file"):
        load(tmp_path / "model", chat_template=tmp_path / "nowhere.jinja")


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ModelError, match=r"holds only pytorch_model\.bin, a pickle.*save_pretrained"):
        load(folder)


def test_no_code_from_a_repository_is_run(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Config: ...\nclass Model: ...\n")
    with pytest.raises(ModelError):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing .*model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_a_truncated_file_is_one_sentence(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("smolm2-135m", "unknown model 'smolm2-135m': no such folder, and no such alias; did you mean 'smollm2-135m'"),
        ("./nothing/here", "unknown model './nothing/here': no such folder"),
        ("/nothing/here", "no such folder"),
        ("nothing.gguf", "no such GGUF file: nothing.gguf"),
    ],
)
def test_unknown(ref: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve(ref)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty: not a model folder"):
        load(tmp_path / "empty")


def test_the_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known\nand a long trace")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=r"cannot get 'owner/smollm2-135M': .*\(Name or service not known\); did you mean"):
        load("owner/smollm2-135M")


def test_devices_and_types() -> None:
    cpu = torch.device("cpu")
    assert pick_device("cpu") == cpu
    assert pick_dtype("float16", cpu) == torch.float16
    native = torch.cpu.get_capabilities()
    expected = torch.bfloat16 if native.get("avx512_bf16") or native.get("amx_bf16") or native.get("bf16") else torch.float32
    assert pick_dtype("auto", cpu) == expected
    with pytest.raises(ModelError, match="unknown device 'gpu': choose auto, cpu, cuda, cuda:N or mps"):
        pick_device("gpu")
    with pytest.raises(ModelError, match="device 'cuda:99' is not available here"):
        pick_device("cuda:99")
    with pytest.raises(ModelError, match="unknown dtype 'bfloat61'; did you mean 'bfloat16'"):
        pick_dtype("bfloat61", cpu)
