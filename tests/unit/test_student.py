"""Students cut out of a teacher: shapes, counts, exactness at full size, better than chance when narrower, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import demonstrations, folder, llama, model, tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, Qwen2Config
from typer.testing import CliRunner

from posttrain.cli.main import app
from posttrain.core.errors import ConfigError, ModelError
from posttrain.core.types import Checkpoint
from posttrain.finetuning.sft import Sft
from posttrain.models.calibration import measure, texts_written
from posttrain.models.load import load
from posttrain.models.shape import shape_of
from posttrain.models.student import SIZES, StudentShape, layers_kept, nearest_scale, shrink
from posttrain.training.rows import encode_row
from posttrain.training.student import make_student

torch.set_num_threads(1)

IDS = torch.arange(40)[None] * 5 % 258


def mistral() -> MistralConfig:
    sizes = llama().to_dict()
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "eos_token_id")
    return MistralConfig(
        **{name: sizes[name] for name in same}, num_hidden_layers=3, bos_token_id=None, pad_token_id=257,
        max_position_embeddings=256, tie_word_embeddings=False, sliding_window=16,
    )  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned something, so that there is something to keep."""
    path = tmp_path_factory.mktemp("teacher")
    start = folder(path / "start", llama(num_hidden_layers=4, hidden_size=48))
    method = Sft(lr=1e-2, epochs=12, batch_size=16, save_every=0, dtype="float32")
    return method(Checkpoint(path=start), demonstrations(48), path / "run", seed=1).path


@pytest.mark.parametrize("config", [llama(), llama(tie_word_embeddings=False), mistral()], ids=["tied", "untied", "mistral"])
def test_with_all_layers_and_full_width_it_is_the_teacher(config: object) -> None:
    whole = model(config).eval()
    student, facts = shrink(whole, StudentShape(layers=whole.config.num_hidden_layers), seed=0)
    assert torch.equal(student(IDS).logits, whole(IDS).logits)
    assert facts["parameters"] == sum(p.numel() for p in whole.parameters())
    assert (facts["logit_scale"], facts["tokens_written"]) == (1.0, 0)


def test_fewer_layers_are_the_teachers_own_layers() -> None:
    whole = model(llama(num_hidden_layers=5)).eval()
    student, facts = shrink(whole, StudentShape(layers=3), seed=0)
    assert facts["layers_kept"] == [0, 2, 4]
    whole.model.layers = torch.nn.ModuleList([whole.model.layers[i] for i in (0, 2, 4)])
    for index, layer in enumerate(whole.model.layers):
        layer.self_attn.layer_idx = index
    torch.testing.assert_close(student(IDS).logits, facts["logit_scale"] * whole(IDS).logits, rtol=1e-3, atol=1e-3)
    assert torch.equal(student.model.layers[1].mlp.up_proj.weight, whole.model.layers[1].mlp.up_proj.weight)


@pytest.mark.parametrize(
    ("of", "count", "kept"), [(30, 9, [0, 4, 7, 11, 14, 18, 22, 25, 29]), (30, 1, [0]), (3, 3, [0, 1, 2])]
)
def test_layers_are_spread_evenly(of: int, count: int, kept: list[int]) -> None:
    assert layers_kept(of, count) == kept


@pytest.mark.parametrize("tied", [True, False])
def test_channels_that_say_nothing_go_without_loss(tied: bool) -> None:
    whole = model(llama(tie_word_embeddings=tied, rms_norm_eps=1e-12)).eval()
    silent = [0, 3, 7, 8, 12, 17, 20, 21, 25, 26, 30, 31]
    with torch.no_grad():
        for name, weight in whole.named_parameters():
            if name.endswith("embed_tokens.weight"):
                weight[:, silent] = 0
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                weight[silent] = 0
            elif name.endswith("norm.weight"):
                weight.uniform_(0.5, 1.5)
    student, facts = shrink(whole, StudentShape(hidden=20), seed=0)
    assert student.config.hidden_size == 20
    assert facts["logit_scale"] == pytest.approx(1.0, abs=1e-3)
    torch.testing.assert_close(student(IDS).logits, whole(IDS).logits, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0])
def test_the_scale_of_the_logits_is_found(scale: float) -> None:
    z = torch.randn(50, 30, generator=torch.Generator().manual_seed(1), dtype=torch.double) * 4
    assert nearest_scale(scale * z, z) == pytest.approx(scale, abs=1e-4)
    assert nearest_scale(2 * z, z) == 1.0


def test_heads_and_units_that_do_nothing_go_first() -> None:
    whole = model(llama(num_attention_heads=8, num_key_value_heads=4)).eval()
    with torch.no_grad():
        for layer in whole.model.layers:
            layer.self_attn.o_proj.weight[:, 8:24] = 0  # two groups in the middle, each of two heads of size 4
            layer.mlp.down_proj.weight[:, 5:20] = 0
    student, _ = shrink(whole, StudentShape(heads=4, ff=33), seed=0)
    assert (student.config.num_attention_heads, student.config.num_key_value_heads, student.config.head_dim) == (4, 2, 4)
    torch.testing.assert_close(student(IDS).logits, whole(IDS).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_a_narrow_student_is_nearer_to_the_teachers_data_than_chance(tied: bool, teacher: Path) -> None:
    whole = load(teacher, dtype="float32").model
    if not tied:
        config = whole.config.__class__(**{**whole.config.to_dict(), "tie_word_embeddings": False})
        apart = AutoModelForCausalLM.from_config(config).eval()
        apart.load_state_dict(whole.state_dict())
        whole = apart
    student, _ = shrink(whole, StudentShape(layers=4, hidden=36, ff=40), seed=0)
    torch.manual_seed(0)
    random = AutoModelForCausalLM.from_config(student.config).eval()

    def loss(found: torch.nn.Module) -> float:
        total = 0.0
        for row in demonstrations(48)[:12]:
            encoded = encode_row(tokenizer(), row, train="all", where="row")
            at = [i for i, trained in enumerate(encoded.mask) if trained]
            with torch.no_grad():
                logps = found(torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
            total -= sum(float(logps[i - 1, encoded.ids[i]]) for i in at) / len(at)
        return total / 12

    assert loss(whole) < loss(student) < loss(random) - 0.5


def test_texts_and_statistics_follow_the_seed() -> None:
    whole = model(llama()).eval()
    assert torch.equal(texts_written(whole, seed=1), texts_written(whole, seed=1))
    assert not torch.equal(texts_written(whole, seed=1), texts_written(whole, seed=2))
    seen = measure(whole, [1], seed=1)
    norms = {"layers.1.input_layernorm", "layers.1.post_attention_layernorm", "norm"}
    assert set(seen.squares) == norms | {"layers.1.self_attn.o_proj", "layers.1.mlp.down_proj"}
    assert all(float(seen.squares[name].mean()) == pytest.approx(1, rel=1e-4) for name in norms)


def test_the_named_sizes_have_the_parameters_they_say() -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, tie_word_embeddings=True,
    )  # fmt: skip
    assert shape_of(config).parameters == 134_515_008
    for name, shape in SIZES.items():
        given = {"hidden_size": shape.hidden, "num_attention_heads": shape.heads, "intermediate_size": shape.ff}
        sizes = {**config.to_dict(), "head_dim": 64, "num_hidden_layers": shape.layers}
        sizes |= {key: value for key, value in given.items() if value}
        sizes["num_key_value_heads"] = sizes["num_attention_heads"] // 3
        assert shape_of(type(config)(**sizes)).parameters == pytest.approx(float(name[:-1]) * 1e6, rel=0.02)


def test_the_folder_is_an_ordinary_model_with_the_teachers_tokenizer(teacher: Path, tmp_path: Path) -> None:
    made = make_student(str(teacher), tmp_path / "student", StudentShape(layers=2, hidden=24, heads=2, ff=16), seed=0)
    loaded = load(tmp_path / "student", dtype="float32")
    config = loaded.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 24, 2)
    assert (config.num_key_value_heads, config.intermediate_size) == (1, 16)
    assert loaded.shape.parameters == made.facts["parameters"]
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "student" / name).read_bytes() == (teacher / name).read_bytes()
    told = json.loads((tmp_path / "student" / "posttrain.json").read_text())["student"]
    assert told["from"] == str(teacher)
    assert told["layers_kept"] == [0, 3]
    assert 0 < told["logit_scale"] <= 1
    assert made.checkpoint.cost.usage.generated == told["tokens_written"] > 0
    assert made.checkpoint.cost.flops > 0
    again = make_student(str(teacher), tmp_path / "again", StudentShape(layers=2, hidden=24, heads=2, ff=16), seed=0)
    assert load(again.checkpoint.path).fingerprint == loaded.fingerprint


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (StudentShape(layers=5), "a student with layers = 5: this teacher has 2, choose from 1 to 2"),
        (StudentShape(layers=0), "layers = 0: this teacher has 2"),
        (StudentShape(hidden=64), "hidden = 64: this teacher has 32"),
        (StudentShape(hidden=30), "hidden = 30 and heads = 4: its configuration wants the first to be a multiple"),
        (StudentShape(heads=3), "heads = 3: 2 query heads of this teacher share .* a multiple of 2"),
    ],
)
def test_a_shape_that_the_teacher_cannot_give(shape: StudentShape, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shrink(model(llama()), shape, seed=0)


def test_architectures_that_are_no_plain_llama() -> None:
    sizes = {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    other = Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2)
    with pytest.raises(
        ModelError, match="Qwen2ForCausalLM has the architecture qwen2; students are made of llama and mistral"
    ):
        shrink(model(other), StudentShape(layers=1), seed=0)
    with pytest.raises(ModelError, match=r"biases \('model.layers.0.self_attn.q_proj.bias'\)"):
        shrink(model(llama(attention_bias=True)), StudentShape(layers=1), seed=0)


def test_the_command(teacher: Path, tmp_path: Path) -> None:
    runner, out = CliRunner(), str(tmp_path / "student")
    command = ["models", "student", str(teacher), "--out", out]
    done = runner.invoke(app, [*command, "--layers", "2", "--hidden", "24", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["shape"] == {"layers": 2, "hidden": 24, "heads": 4, "ff": 48}
    with pytest.raises(ConfigError, match="is already there"):
        runner.invoke(app, [*command, "--layers", "2"], catch_exceptions=False)
    with pytest.raises(ConfigError, match="give either --size, or"):
        runner.invoke(app, ["models", "student", str(teacher), "--out", out + "2"], catch_exceptions=False)
    with pytest.raises(ConfigError, match="unknown size '31m' of a student; did you mean '30m'"):
        runner.invoke(app, ["models", "student", str(teacher), "--out", out + "2", "--size", "31m"], catch_exceptions=False)
