"""The folder that a server reads: an ordinary model, an adapter merged as `merge` does it, nothing changed in training."""

import copy
import json

import pytest
import torch
from tiny_models import llama, model, tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig

from posttrain.core.errors import ModelError, PosttrainError
from posttrain.models import bottleneck
from posttrain.models.adapters import add_ia3, add_lora, merge, merged_state
from posttrain.training import published
from posttrain.training.published import publish, withdraw

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers


def adapted(kind, dtype):
    base = model(llama(tie_word_embeddings=False), dtype=dtype)
    made = add_ia3(base, seed=1) if kind == "ia3" else add_lora(base, rank=4, alpha=8, variant=kind, seed=1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "ia3"])
def test_an_adapter_is_merged_as_at_the_end_and_trains_on(kind, dtype, tmp_path):
    made = adapted(kind, dtype)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    expected = merge(copy.deepcopy(made)).state_dict()
    _, state = merged_state(made)
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name
    folder = publish(made, tokenizer(), tmp_path, step=3, end=257)
    read = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert read.dtype == dtype
    assert all(torch.equal(value, expected[name]) for name, value in read.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_all_weights_with_one_matrix_at_both_ends(tmp_path):
    made = model()
    folder = publish(made, tokenizer(), tmp_path, step=0, end=257)
    assert folder.is_absolute()
    read = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in read.state_dict().items())


def test_a_servers_defaults_are_neutral_and_only_the_last_folder_stays(tmp_path):
    made = model()
    made.generation_config = GenerationConfig(do_sample=True, temperature=0.3, top_k=5, eos_token_id=[256, 257])
    first = publish(made, tokenizer(), tmp_path, step=1, end=257)
    told = json.loads((first / "generation_config.json").read_text())
    assert (told["do_sample"], told["top_k"], told["eos_token_id"]) == (True, 0, 257)
    assert told.get("temperature", 1.0) == told.get("top_p", 1.0) == 1.0
    again = publish(made, tokenizer(), tmp_path, step=1, end=None)
    assert again.name != first.name
    assert json.loads((again / "generation_config.json").read_text())["eos_token_id"] == [256, 257]
    withdraw(tmp_path, but=again)
    assert [path.name for path in (tmp_path / published.FOLDER).iterdir()] == [again.name]
    withdraw(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_merged_is_refused():
    made = model()
    bottleneck.add(made, width=4, seed=0)
    with pytest.raises(ModelError, match="bottleneck"):
        merged_state(made)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(published, "save_model", full)
    with pytest.raises(PosttrainError, match="disk full"):
        publish(model(), tokenizer(), tmp_path, step=0, end=257)
    assert list((tmp_path / published.FOLDER).iterdir()) == []
