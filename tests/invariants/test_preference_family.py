"""The DPO family through its trainer: formulas, one trajectory, resume, what is refused, what is told."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_models import folder, preferences, tokenizer
from training_runs import killed_after, metrics, same, weights
from transformers import AutoModelForCausalLM

from posttrain.core.errors import ConfigError
from posttrain.core.types import Checkpoint, Message
from posttrain.data.masks import encode_completion
from posttrain.losses.pairs import PairLoss
from posttrain.pipeline.methods import build_trainer
from posttrain.preference._reference import both_fell
from posttrain.preference.dpo import Dpo
from posttrain.training.settings import key_config

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT calling transformers

BASE = Dpo(lr=1e-2, epochs=2, batch_size=5, save_every=2, dtype="float32")
PAIRS = preferences(13)
CASES = {
    "ipo": replace(BASE, loss="ipo"),
    "orpo": replace(BASE, loss="orpo", beta=0.5),
    "simpo_lora_dropout": replace(BASE, loss="simpo", beta=2.0, gap=1.0, adapter="lora", rank=4, dropout=0.3),
    "rpo_js": replace(BASE, likelihood=0.5, f_divergence="js"),
    "robust_per_token": replace(BASE, loss="robust", label_smoothing=0.1, per_token=True, beta=1.0),
    "cpo": replace(BASE, loss="cpo"),
    "hinge_reference_free": replace(BASE, loss="hinge", reference_free=True),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


@pytest.mark.parametrize("name", ["ipo", "orpo", "rpo_js"])
def test_micro_batch_size_does_not_change_the_trajectory(name, start, tmp_path):
    whole = replace(CASES[name], tokens_per_microbatch=100_000)(start, PAIRS, tmp_path / "whole", seed=3)
    one_by_one = replace(CASES[name], tokens_per_microbatch=1)(start, PAIRS, tmp_path / "one", seed=3)
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-4)
    same(weights(whole), weights(one_by_one), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(name, start, tmp_path):
    expected = CASES[name](start, PAIRS, tmp_path / "whole", seed=3)
    killed_after(lambda: CASES[name](start, PAIRS, tmp_path / "cut", seed=3), lines=3)
    resumed = CASES[name](start, PAIRS, tmp_path / "cut", seed=3)
    same(weights(resumed), weights(expected), rtol=0, atol=0)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert (resumed.cost.usage, resumed.cost.flops) == (expected.cost.usage, expected.cost.flops)


def sums(model, side):
    """Return summed log-probabilities and numbers of trained tokens, by transformers alone."""
    found = [encode_completion(tokenizer(), [Message(role="user", content=row["prompt"])], row[side]) for row in PAIRS]
    with torch.no_grad():
        tables = [model(torch.tensor([e.ids])).logits[0].double().log_softmax(-1) for e in found]
    logps = [
        sum(table[i - 1, e.ids[i]].item() for i, trained in enumerate(e.mask) if trained)
        for table, e in zip(tables, found, strict=True)
    ]
    return logps, [e.trained for e in found]


@pytest.mark.parametrize("name", CASES)
def test_the_loss_of_the_second_step_is_the_formula_of_both_models(name, start, tmp_path):
    # one step at rate lr, then a step on the same rows whose loss is read: trained model against the start
    method = replace(CASES[name], epochs=2, batch_size=100, dropout=0.0, schedule="constant", warmup=0.0)
    one = replace(method, epochs=1)(start, PAIRS, tmp_path / "one", seed=3)
    method(start, PAIRS, tmp_path / "two", seed=3)
    if method.adapter == "lora":
        from peft import PeftModel

        trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(start.path), one.path)
    else:
        trained = AutoModelForCausalLM.from_pretrained(one.path)
    table = {}
    for who, model in (("policy", trained.eval()), ("reference", AutoModelForCausalLM.from_pretrained(start.path))):
        chosen, rejected = sums(model, "chosen"), sums(model, "rejected")
        table[who] = torch.tensor([chosen[0], rejected[0]], dtype=torch.double).T
        tokens = torch.tensor([chosen[1], rejected[1]], dtype=torch.double).T
    losses, rewards = PairLoss.of(method)(table["policy"], table["reference"], tokens)
    line = metrics(tmp_path / "two")[1]
    assert line["loss"] == pytest.approx(losses.mean().item(), rel=1e-3, abs=1e-5)
    assert line["margin"] == pytest.approx((rewards[:, 0] - rewards[:, 1]).mean().item(), rel=1e-3, abs=1e-4)
    assert line["logp_chosen"] == pytest.approx(table["policy"][:, 0].mean().item(), rel=1e-4)
    needs = PairLoss.of(method).needs_reference
    assert ((tmp_path / "two" / "reference").is_dir(), "kl" in line) == (needs, needs)
    if needs:
        assert line["kl"] == pytest.approx((table["reference"] - table["policy"]).mean().item(), rel=1e-3, abs=1e-3)
    if method.likelihood or method.loss in ("cpo", "orpo"):
        assert line["cross_entropy"] == pytest.approx(-(table["policy"][:, 0] / tokens[:, 0]).mean().item(), rel=1e-4)


def test_without_a_reference_it_is_not_paid_for(start, tmp_path):
    with_one = replace(BASE, epochs=1)(start, PAIRS, tmp_path / "dpo", seed=3)
    without = replace(CASES["orpo"], epochs=1)(start, PAIRS, tmp_path / "orpo", seed=3)
    assert without.cost.flops == pytest.approx(with_one.cost.flops * 3 / 4)
    assert without.cost.usage.scored * 2 == with_one.cost.usage.scored


def test_settings_at_their_defaults_leave_the_keys_of_finished_runs_alone():
    later = {"gap", "per_token", "reference_free", "f_divergence", "f_alpha", "likelihood"}
    assert not later & key_config(Dpo()).keys()
    assert (
        later
        <= key_config(
            Dpo(gap=1.0, per_token=True, reference_free=True, f_divergence="js", f_alpha=0.1, likelihood=1.0)
        ).keys()
    )


@pytest.mark.parametrize(("change", "told"), [
    ({"loss": "hinge", "label_smoothing": 0.1}, "label_smoothing = 0.1 has no effect with loss=hinge"),
    ({"gap": 0.5}, "gap = 0.5 has no effect with loss=sigmoid"),
    ({"loss": "ipo", "per_token": True}, "per_token = True has no effect with loss=ipo"),
    ({"loss": "orpo", "likelihood": 0.5}, "likelihood = 0.5 has no effect with loss=orpo"),
    ({"loss": "simpo"}, "loss=simpo compares means"),
    ({"loss": "simpo", "beta": 2.0, "gap": -1.0}, "gap = -1.0"),
    ({"f_divergence": "js", "reference_free": True}, "leave per_token and reference_free out"),
    ({"f_divergence": "js", "f_alpha": 0.3}, "belongs to f_divergence=alpha"),
    ({"f_divergence": "alpha", "f_alpha": 1.5}, "f_alpha = 1.5 must be between"),
    ({"likelihood": -1.0}, "likelihood = -1.0"),
    ({"beta": 0.0}, "beta = 0.0"),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(change, told, start, tmp_path):
    with pytest.raises(ConfigError, match=told):
        replace(BASE, **change)(start, PAIRS, tmp_path, seed=0)


def test_names_of_the_literature_lead_to_the_settings():
    for name, spec in Dpo.known_as.items():
        with pytest.raises(ConfigError, match=spec):
            build_trainer(name)
        build_trainer(spec)._check_settings()


def line(chosen, rejected):
    return {"change_chosen": chosen, "change_rejected": rejected}


def test_it_is_told_when_both_responses_fell(capsys):
    assert both_fell([line(5.0, 5.0)] * 9 + [line(-1.0, -3.0)]) == {
        "change": {"chosen": -1.0, "rejected": -3.0, "both_fell": True}
    }
    assert "chosen responses have become less likely (-1 nats), the rejected ones too (-3)" in capsys.readouterr().err
    both_fell([line(-1.0, -3.0)], mend="do that")
    assert "lower lr, raise beta, do that, or fine-tune on the chosen responses first" in " ".join(
        capsys.readouterr().err.split()
    )
    assert both_fell([line(-5.0, -5.0)] * 9 + [line(0.5, -3.0)])["change"]["both_fell"] is False
    assert capsys.readouterr().err == ""
    assert both_fell([{"loss": 1.0}]) == {}


def test_a_mend_is_named_where_it_can_be_had(start, tmp_path, monkeypatch):
    named = []
    monkeypatch.setattr("posttrain.preference.dpo.both_fell", lambda lines, *, mend: named.append(mend) or {})
    soft = [row | {"preference": 0.7} for row in PAIRS]
    for name, method, rows in (("plain", BASE, PAIRS), ("rpo", replace(BASE, likelihood=1.0), PAIRS), ("soft", BASE, soft)):
        method(start, rows, tmp_path / name, seed=3)
    assert ["likelihood=1" in mend for mend in named] == [True, False, True]
    replace(BASE, likelihood=1.0)(start, soft, tmp_path / "both", seed=3)  # what was named can be done
    weighed, plain = (metrics(tmp_path / name)[0]["cross_entropy"] for name in ("both", "rpo"))
    assert weighed != plain


def test_the_checkpoint_tells_what_became_of_the_responses_and_of_the_replies_length(start, tmp_path):
    method = replace(BASE, eval_share=0.2, sample_every=2, sample_tokens=5, sample_count=2)
    made = method(start, PAIRS, tmp_path, seed=3)
    facts = json.loads((made.path / "posttrain.json").read_text())
    assert facts["change"]["chosen"] == pytest.approx(metrics(tmp_path)[-1]["change_chosen"])
    samples = [json.loads(text) for text in (tmp_path / "samples.jsonl").read_text().splitlines()]
    last = [sample["tokens"] for sample in samples if sample["step"] == samples[-1]["step"]]
    assert facts["reply_tokens"]["last"] == sum(last) / len(last) <= 5
    assert facts["reply_tokens"]["first"] > 0
