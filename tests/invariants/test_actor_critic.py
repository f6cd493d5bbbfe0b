"""Policy and value model as one module: where values are read, where the value model begins, rates and clipping by group."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import demonstrations, folder, llama, preferences
from transformers import AutoModelForTokenClassification, GPT2Config

from posttrain.core.errors import ConfigError, ModelError, TrainingError
from posttrain.core.types import Checkpoint, Message
from posttrain.data.masks import encode_completion
from posttrain.models.actor_critic import ActorCritic, load_value
from posttrain.models.forward import Forward
from posttrain.models.load import load
from posttrain.models.scoring import ScoreForward, load_scoring, score_head
from posttrain.preference.reward_model import RewardModel
from posttrain.training.critic import CriticStart, open_critic
from posttrain.training.estimate import Sizes, estimate
from posttrain.training.optimiser import Group, Optimisation, Optimiser

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

GPT2 = GPT2Config(
    n_embd=32, n_layer=2, n_head=4, n_positions=256, vocab_size=258, pad_token_id=257, eos_token_id=257, bos_token_id=None,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip


def encoded(tokenizer, row):
    return encode_completion(tokenizer, [Message(role="user", content=row["prompt"])], row["completion"])


@pytest.mark.parametrize("config", [llama(), GPT2], ids=["llama", "gpt2"])
def test_the_value_of_a_state_is_read_where_its_action_is_predicted(config, tmp_path):
    path = folder(tmp_path / "model", config)
    policy, valued = load(path, dtype="float32"), load_value(path, dtype="float32")
    module = ActorCritic(Forward(policy.model), ScoreForward(valued.model)).eval()
    assert not score_head(valued.model).weight.any()
    with torch.no_grad():
        score_head(valued.model).weight.normal_()
    rows = [encoded(policy.tokenizer, row) for row in demonstrations(3)]
    alike = [encoded(policy.tokenizer, {"prompt": "one", "completion": text}) for text in ("ab", "acd")]
    groups = [[rows[0]], alike, [rows[1]], [rows[2]]]
    assert module.packs
    valued.model.save_pretrained(tmp_path / "value")
    own = AutoModelForTokenClassification.from_pretrained(tmp_path / "value", dtype=torch.float32).eval()
    with torch.no_grad():
        logps_N, values_N = module(module.batch(groups))
        expected, logps = [], []
        for row in (row for group in groups for row in group):
            ids = torch.tensor([row.ids])
            actions = [t for t, trained in enumerate(row.mask) if trained]
            expected += [float(own(ids).logits[0, t - 1, 0]) for t in actions]
            every = policy.model(ids).logits[0].log_softmax(-1)
            logps += [float(every[t - 1, row.ids[t]]) for t in actions]
    assert values_N.tolist() == pytest.approx(expected, abs=1e-5)
    assert logps_N.tolist() == pytest.approx(logps, abs=1e-5)


def test_one_that_does_not_pack_makes_the_batch_plain(tmp_path):
    path = folder(tmp_path / "model")
    module = ActorCritic(Forward(load(path, dtype="float32").model), ScoreForward(load_value(path, dtype="float32").model))
    rows = [encoded(load(path).tokenizer, row) for row in demonstrations(3)]
    packed = module(module.batch([rows]))
    module.value.packs = False
    plain = module.batch([rows])
    assert plain.layout is None
    for a, b in zip(packed, module(plain), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_reward_model_s_head_and_backbone_are_the_value_model_s_first_opinion(adapter, tmp_path):
    path = folder(tmp_path / "model")
    method = RewardModel(lr=1e-2, dtype="float32", batch_size=4, adapter=adapter, rank=16, alpha=32.0)
    made = method(Checkpoint(path=path), preferences(8), tmp_path / "reward", seed=1)
    valued = load_value(made.path, dtype="float32")
    assert valued.model.config.id2label == {0: "value"}
    module = ScoreForward(valued.model).eval()
    row = encoded(load(path).tokenizer, demonstrations(1)[0])
    with torch.no_grad():
        got = float(module(module.batch([[row]]))[-1, 0])
    own = load_scoring(made.path, "sequence", ["reward"], dtype="float32").model
    with torch.no_grad():
        whole = own(torch.tensor([row.ids])).logits  # lag 0: read at the last token itself
    assert got == pytest.approx(float(whole), abs=1e-5) != 0


def test_another_tokenizer_or_number_of_labels_is_refused(tmp_path):
    start = folder(tmp_path / "model")
    other = folder(tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace("<|im_start|>", "<|start|>"))
    with pytest.raises(ModelError, match=r"the value model .*other' has another tokenizer than the policy"):
        open_critic("m", CriticStart(ref=str(other)), start, lr=1e-3, dtype="float32")
    with pytest.raises(ConfigError, match="learning rate, -1, must not be negative"):
        open_critic("m", CriticStart(lr=-1), start, lr=1e-3, dtype="float32")
    model = AutoModelForTokenClassification.from_pretrained(start, num_labels=2)
    model.save_pretrained(tmp_path / "two")
    load(start).tokenizer.save_pretrained(tmp_path / "two")
    with pytest.raises(ModelError, match="has 2 labels, but 1 are needed here"):
        load_value(tmp_path / "two")


def test_groups_are_two_optimisers_in_one():
    """Each with its own rate and clipped by its own norm, as if each were alone."""

    def parts():
        torch.manual_seed(0)
        return torch.nn.ModuleDict({"policy": torch.nn.Linear(4, 3), "value": torch.nn.Linear(4, 1).bfloat16()})

    groups = (Group(name="policy", prefix="policy."), Group(name="value", prefix="value.", factor=10.0))
    settings = {"weight_decay": 0.1, "clip": 0.5}
    both, apart = parts(), parts()
    joint = Optimiser(both, Optimisation(lr=1e-2, groups=groups, **settings))
    alone = [Optimiser(apart[name], Optimisation(lr=1e-2, **settings)) for name in apart]
    for step in range(5):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        for made in (both, apart):
            loss = 100 * made["policy"](x).square().mean() + 0.1 * made["value"](x.bfloat16()).float().square().mean()
            loss.backward()
        norms = [optimiser.norm() for optimiser in alone]
        assert joint.norm() == pytest.approx(math.hypot(*norms))
        told = joint.update(1e-2, joint.norm())
        assert told == {"policy": pytest.approx(norms[0]), "value": pytest.approx(norms[1])}
        assert norms[0] > 0.5 > norms[1]
        for optimiser, norm, lr in zip(alone, norms, (1e-2, 1e-1), strict=True):
            assert optimiser.update(lr, norm) == {}
    for a, b in zip(both.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    again = Optimiser(parts(), Optimisation(lr=1e-2, groups=groups, **settings))
    again.load(joint.state())
    assert all(torch.equal(a, b) for a, b in zip(again.masters, joint.masters, strict=True))
    with pytest.raises(TrainingError, match="each of 4 weights must be in one group of policy"):
        Optimiser(parts(), Optimisation(lr=1e-2, groups=groups[:1]))


def test_the_estimate_counts_both_models_and_what_is_only_read():
    one = Sizes(
        weights=4_000, trained=100, width=4, layers=4, hidden=8, vocabulary=100, linear=40.0, quadratic=0.5, tokens=64,
        full=False,
    )  # fmt: skip
    second = replace(one, weights=3_000, trained=750, layers=2, linear=30.0, quadratic=0.2, tokens=1, full=True)
    alone, beside = estimate(one), estimate(replace(second, tokens=64))
    found = estimate(replace(one, beside=second, held=4_000))
    assert found.weights == 4_000 + 3_000 + 4_000
    for part in ("masters", "gradients", "adam", "activations"):
        assert getattr(found, part) == getattr(alone, part) + getattr(beside, part)
    assert found.logits == alone.logits
