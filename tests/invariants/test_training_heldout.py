"""Held-out rows: whole questions, the right loss, the best weights, early stopping; through kills and processes too."""

import json
import math
from dataclasses import replace

import pytest
import torch
from tiny_models import demonstrations, folder, preferences
from training_runs import killed_after, metrics, same, spread, two_processes, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.core.errors import ConfigError, DataError, TrainingError
from posttrain.core.types import Checkpoint, Message
from posttrain.data.masks import encode_completion
from posttrain.finetuning.sft import Sft
from posttrain.preference.dpo import Dpo
from posttrain.stats.flops import forward_flops
from posttrain.training.heldout import HeldOut, question_of, split_by_question
from posttrain.training.step import Learner

torch.set_num_threads(1)

# A rate so high that the held-out loss gets worse after a while: the best step is neither the first nor the last.
SFT = Sft(lr=6e-2, epochs=4, batch_size=4, save_every=3, dtype="float32", eval_share=0.3, eval_every=2, schedule="constant")
DPO = Dpo(lr=3e-2, epochs=4, batch_size=4, save_every=3, dtype="float32", eval_share=0.3, eval_every=2, schedule="constant")
METHODS = {"sft": (SFT, demonstrations(20)), "dpo": (DPO, preferences(20))}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Checkpoint(path=folder(tmp_path_factory.mktemp("start") / "model"))


def facts(checkpoint: Checkpoint) -> dict:
    return json.loads((checkpoint.path / "posttrain.json").read_text())


def evaluations(out) -> dict[int, float]:
    return {row["step"]: row["eval_loss"] for row in metrics(out) if "eval_loss" in row}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def token_mean_loss(path, rows) -> float:
    """By transformers' own logits, row by row, in float64."""
    net, tokenizer = AutoModelForCausalLM.from_pretrained(path).double(), AutoTokenizer.from_pretrained(path)
    total, count = 0.0, 0
    for row in rows:
        encoded = encode_completion(tokenizer, [Message(role="user", content=row["prompt"])], row["completion"])
        with torch.no_grad():
            table = net(torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
        picked = [-float(table[i - 1, encoded.ids[i]]) for i in range(len(encoded.ids)) if encoded.mask[i]]
        total, count = total + sum(picked), count + len(picked)
    return total / count


def test_a_share_keeps_questions_together_and_is_a_function_of_text_and_seed():
    rows = [{"prompt": f"q{i % 40}", "completion": f"a{i}"} for i in range(200)]  # every question five times
    held = split_by_question(rows, 0.25, seed=1)
    assert len(held) == 50
    assert not {rows[i]["prompt"] for i in held} & {rows[i]["prompt"] for i in range(200) if i not in held}
    backwards = split_by_question(rows[::-1], 0.25, seed=1)
    assert {199 - i for i in backwards} == held
    assert split_by_question(rows, 0.25, seed=2) != held
    one_big = [{"prompt": "same", "completion": str(i)} for i in range(18)] + rows[:2]
    assert len(split_by_question(one_big, 0.1, seed=1)) == 2  # the large question would miss the share by far
    assert 0 < len(split_by_question(rows[:2], 0.99, seed=1)) < 2  # something is left on both sides
    assert 0 < len(split_by_question(rows[:2], 0.01, seed=1)) < 2
    with pytest.raises(DataError, match="all 18 rows ask the same"):
        split_by_question(one_big[:18], 0.5, seed=1)


def test_what_a_row_asks_does_not_depend_on_how_it_is_written():
    user = {"role": "user", "content": "1 + 1?"}
    said = [user, {"role": "assistant", "content": "2"}, {"role": "user", "content": "sure?"}]
    forms = [
        {"prompt": "1 +  1?", "completion": "2"},
        {"prompt": [user], "completion": "3"},
        {"prompt": (Message(role="user", content="1 + 1?"),), "chosen": "2", "rejected": "3"},
        {"messages": said},
        {"chosen": said, "rejected": said[:2]},
        {"question": "1 + 1?", "steps": ["2"], "mistake_index": None},
        {"question": "1 + 1?", "answer": "2"},
        {"instruction": "1 + 1?", "input": "", "output": "2"},
        {"instruction": "the same beside every conversation", "messages": said},
    ]
    assert len({question_of(row) for row in forms}) == 1
    system = {"messages": [{"role": "system", "content": "Be brief."}, *said]}
    assert question_of(system) != question_of(forms[0])
    translate = {"instruction": "Translate.", "output": "Baum"}
    assert question_of({**translate, "input": "tree"}) != question_of({**translate, "input": "house"})


def test_the_held_out_loss_is_the_token_mean_of_the_weights_of_that_step_and_the_best_are_exported(start, tmp_path):
    data = demonstrations(20)
    made = SFT(start, data, tmp_path / "run", seed=3)
    found, told = evaluations(tmp_path / "run"), facts(made)["evaluation"]
    held = [data[i] for i in sorted(split_by_question(data, 0.3, 3))]
    assert len(held) == told["rows"] == 6
    assert list(found) == [*range(2, 17, 2)]  # 4 epochs of ⌈14 / 4⌉ steps
    best = min(found, key=found.get)
    assert 2 < best < 16
    assert (told["best_step"], told["best_loss"]) == (best, found[best])
    assert (told["last_step"], told["steps_planned"], told["stopped_early"]) == (16, 16, False)
    assert token_mean_loss(made.path, held) == pytest.approx(found[best], rel=1e-5)
    assert not (tmp_path / "run" / "best").exists()
    # the same trajectory without evaluation: same losses, other weights at its end
    others = [row for row in data if row not in held]
    plain = replace(SFT, eval_share=0.0, eval_every=0)(start, others, tmp_path / "plain", seed=3)
    losses = [row["loss"] for row in metrics(tmp_path / "plain")]
    assert losses == [row["loss"] for row in metrics(tmp_path / "run")]
    assert token_mean_loss(plain.path, held) == pytest.approx(found[16], rel=1e-5)


def test_dpo_is_evaluated_on_held_out_pairs_against_the_start(start, tmp_path):
    method, data = METHODS["dpo"]
    made = replace(method, lr=1e-3, beta=0.5)(start, data, tmp_path, seed=3)
    tokenizer = AutoTokenizer.from_pretrained(start.path)
    held = [data[i] for i in sorted(split_by_question(data, 0.3, 3))]
    nets = [AutoModelForCausalLM.from_pretrained(path).double() for path in (made.path, start.path)]

    def logp(net, row, side) -> float:
        encoded = encode_completion(tokenizer, [Message(role="user", content=row["prompt"])], row[side])
        with torch.no_grad():
            table = net(torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
        return sum(float(table[i - 1, encoded.ids[i]]) for i in range(len(encoded.ids)) if encoded.mask[i])

    margins = []
    for row in held:
        chosen, rejected = (logp(nets[0], row, side) - logp(nets[1], row, side) for side in ("chosen", "rejected"))
        margins.append(0.5 * (chosen - rejected))
    loss = sum(math.log1p(math.exp(-m)) for m in margins) / len(margins)
    told = facts(made)["evaluation"]
    assert told["best_loss"] == pytest.approx(loss, rel=1e-4)
    line = next(row for row in metrics(tmp_path) if row["step"] == told["best_step"])
    assert line["eval_margin"] == pytest.approx(sum(margins) / len(margins), rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_do_not_change_the_held_out_loss(name, start, tmp_path):
    method, data = METHODS[name]
    method = replace(method, lr=1e-4, epochs=1)
    for tokens in (1, 100_000):
        replace(method, tokens_per_microbatch=tokens)(start, data, tmp_path / str(tokens), seed=3)
    assert evaluations(tmp_path / "1") == pytest.approx(evaluations(tmp_path / "100000"), rel=1e-4)


def test_rows_of_a_file_are_held_out_and_named(start, tmp_path):
    held = demonstrations(30)[20:]
    given = write(tmp_path / "held.jsonl", held)
    method = replace(SFT, eval_share=0.0, eval_data=given)
    made = method(start, demonstrations(20), tmp_path / "run", seed=3)
    assert facts(made)["data"]["rows"] == 20
    assert facts(made)["evaluation"]["rows"] == 10
    assert token_mean_loss(made.path, held) == pytest.approx(min(evaluations(tmp_path / "run").values()), rel=1e-5)
    moved = write(tmp_path / "moved.jsonl", held)  # the content counts, not the name
    assert replace(method, eval_data=moved)(start, demonstrations(20), tmp_path / "run", seed=3) == made
    write(tmp_path / "moved.jsonl", held[:-1])
    with pytest.raises(ConfigError, match="finished run with another"):
        replace(method, eval_data=moved)(start, demonstrations(20), tmp_path / "run", seed=3)
    long = write(tmp_path / "long.jsonl", [*held, {"prompt": "x", "completion": "y" * 400}])
    with pytest.raises(DataError, match=r"long.jsonl: row 10 has \d+ tokens"):
        replace(method, eval_data=long)(start, demonstrations(20), tmp_path / "long", seed=3)


def test_questions_that_are_trained_and_held_out_are_told(start, tmp_path, capsys):
    given = write(tmp_path / "held.jsonl", demonstrations(24)[17:])
    made = replace(SFT, epochs=1, eval_share=0.0, eval_data=given)(start, demonstrations(20), tmp_path / "run", seed=3)
    assert facts(made)["evaluation"]["also_trained"] == 3
    assert "3 of the 7 held-out rows ask what training rows ask too" in capsys.readouterr().err


def test_early_stopping_waits_for_patience_and_exports_the_best(start, tmp_path, capsys):
    data = demonstrations(20)
    SFT(start, data, tmp_path / "whole", seed=3)
    found = evaluations(tmp_path / "whole")
    made = replace(SFT, patience=2)(start, demonstrations(20), tmp_path / "early", seed=3)
    seen = evaluations(tmp_path / "early")
    steps, waited, least = list(found), 0, float("inf")
    for last in steps:  # what patience means, worked out on the whole run's evaluations
        waited, least = (0, found[last]) if found[last] < least else (waited + 1, least)
        if waited == 2:
            break
    assert list(seen) == steps[: steps.index(last) + 1]
    assert seen == {step: found[step] for step in seen}
    told = facts(made)["evaluation"]
    assert told["stopped_early"] is (last < 16)
    assert last < 16
    assert told["last_step"] == last
    assert f"stopped after step {last}" in capsys.readouterr().err
    # the rate is constant, so a run that ends at the best step by itself has the same weights
    assert told["best_step"] == 4
    others = [row for i, row in enumerate(data) if i not in split_by_question(data, 0.3, 3)]
    short = replace(SFT, epochs=1, eval_share=0.0, eval_every=0)(start, others, tmp_path / "short", seed=3)
    same(weights(made), weights(short), rtol=0, atol=0)


@pytest.mark.parametrize(("save_every", "name"), spread([1, 2, 3], METHODS))
def test_killed_and_resumed_equals_uninterrupted(name, save_every, start, tmp_path):
    method, data = METHODS[name]
    method = replace(method, save_every=save_every, patience=3, keep=2)
    expected = method(start, data, tmp_path / "whole", seed=3)
    last = max(evaluations(tmp_path / "whole"))
    out = tmp_path / "killed"
    for at in (2, 5, last):  # behind an evaluation and before a saved state; in between; when patience is at its end
        killed_after(lambda: method(start, data, out, seed=3), at)
    resumed = method(start, data, out, seed=3)
    same(weights(resumed), weights(expected), rtol=0, atol=0)
    assert metrics(out) == metrics(tmp_path / "whole")
    assert facts(resumed)["evaluation"] == facts(expected)["evaluation"]
    assert resumed.cost.usage == expected.cost.usage
    assert not (out / "best").exists()


def test_weights_that_a_saved_state_refers_to_are_not_tidied_away(start, tmp_path):
    method = replace(SFT, save_every=3)
    out = tmp_path / "run"
    killed_after(lambda: method(start, demonstrations(20), out, seed=3), 4)
    state = json.loads((out / "state" / "step-00000003" / "facts.json").read_text())
    assert state["held_out"]["best_step"] == 2
    kept = {int(path.name.removeprefix("step-")) for path in (out / "best").iterdir()}
    assert kept == {2, 4}  # 4 is better already, but the state that a restart begins from knows 2


def test_a_state_saved_before_there_were_other_criteria_is_read(tmp_path):
    held = HeldOut(items=[], every=1, patience=0, folder=tmp_path, key="k")
    held.load({"best_step": 4, "best_loss": 0.5, "waited": 1, "losses": {"2": 0.75, "4": 0.5, "6": 0.625}})
    assert held.state() == {"best_step": 4, "best": 0.5, "waited": 1, "values": {"2": 0.75, "4": 0.5, "6": 0.625}}
    assert held.facts(6) == {
        "rows": 0, "also_trained": 0, "criterion": "loss", "best_step": 4, "best_loss": 0.5, "last_step": 6,
        "last_loss": 0.625, "steps_planned": 6, "stopped_early": False,
    }  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_evaluate_as_one(name, start, tmp_path):
    method, data = METHODS[name]
    method = replace(
        method, lr=1e-3, epochs=2, patience=2, tokens_per_microbatch=80, sample_every=3, sample_tokens=4, keep=2
    )
    expected = method(start, data, tmp_path / "one", seed=3)
    assert two_processes(lambda: method(start, data, tmp_path / "two", seed=3), tmp_path / "meet") == [0, 0]
    a, b = evaluations(tmp_path / "one"), evaluations(tmp_path / "two")
    assert a == pytest.approx(b, rel=2e-3)
    two = Checkpoint(path=tmp_path / "two" / "checkpoint")
    assert facts(two)["evaluation"]["best_step"] == facts(expected)["evaluation"]["best_step"]
    same(weights(two), weights(expected), rtol=1e-2, atol=1e-3)
    written = [json.loads(line) for line in (tmp_path / "two" / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in written[::4]] == [0, 3, 6, 8]  # once, not once a process


def test_a_failure_of_the_first_process_ends_all(start, tmp_path):
    method = replace(SFT, save_every=1)

    def work():
        if torch.distributed.get_rank() == 0:
            import posttrain.training.heldout as heldout

            def refuse(*_):
                raise DataError("no such luck")

            heldout.save_state = refuse
        method(start, demonstrations(20), tmp_path / "two", seed=3)

    assert two_processes(work, tmp_path / "meet") == [1, 1]


def test_evaluations_are_charged_their_forward_passes(start, tmp_path):
    data = demonstrations(20)
    plain_rows = [row for i, row in enumerate(data) if i not in split_by_question(data, 0.3, 3)]
    plain = replace(SFT, epochs=1, eval_share=0.0, eval_every=0)(start, plain_rows, tmp_path / "plain", seed=3)
    made = replace(SFT, epochs=1)(start, data, tmp_path / "run", seed=3)
    from posttrain.models.load import load

    loaded = load(start.path)
    held = [data[i] for i in split_by_question(data, 0.3, 3)]
    encoded = [
        encode_completion(loaded.tokenizer, [Message(role="user", content=row["prompt"])], row["completion"]) for row in held
    ]
    once = sum(forward_flops(loaded.shape, start=0, tokens=len(e.ids), logits=e.trained) for e in encoded)
    assert made.cost.flops - plain.cost.flops == pytest.approx(2 * once)  # after steps 2 and 4
    assert made.cost.usage.scored - plain.cost.usage.scored == 2 * sum(len(e.ids) for e in encoded)


def test_a_held_out_loss_that_is_not_finite_stops(start, tmp_path, monkeypatch):
    evaluate = Learner.evaluate
    monkeypatch.setattr(Learner, "evaluate", lambda self, items: evaluate(self, items) | {"loss": float("nan")})
    with pytest.raises(TrainingError, match="step 2: the loss on the held-out rows is not finite"):
        SFT(start, demonstrations(20), tmp_path / "run", seed=3)
    with pytest.raises(TrainingError, match="step 0: the loss on the held-out rows is not finite: look at them, and"):
        replace(SFT, eval_start=True)(start, demonstrations(20), tmp_path / "start", seed=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_share": 0.0}, "eval_every needs held-out rows"),
        ({"eval_share": 0.0, "eval_every": 0, "patience": 2}, "patience needs held-out rows"),
        ({"eval_data": "x.jsonl"}, "both name held-out rows"),
        ({"eval_share": 1.0}, "eval_share = 1.0 is out of range"),
        ({"eval_share": 0.0, "eval_every": 0, "eval_data": "absent.jsonl"}, "no such data file: absent.jsonl"),
        ({"keep": 0}, "keep = 0 is out of range"),
        ({"explode": 0.5}, "explode = 0.5 is out of range"),
        ({"eval_share": 0.0, "eval_every": 0, "sample_every": 2}, "sample_every needs prompts"),
    ],
)
def test_settings_that_cannot_be(changes, message, start, tmp_path):
    with pytest.raises((ConfigError, DataError), match=message):
        replace(SFT, **changes)(start, demonstrations(4), tmp_path, seed=1)


def test_a_run_that_fails_at_its_export_after_stopping_early_trains_no_further(start, tmp_path, monkeypatch):
    method = replace(SFT, patience=2, save_every=1)
    expected = method(start, demonstrations(20), tmp_path / "whole", seed=3)
    with monkeypatch.context() as patch:
        patch.setattr("posttrain.training.session.export", lambda *_, **__: pytest.fail("killed here"))
        with pytest.raises(pytest.fail.Exception, match="killed here"):
            method(start, demonstrations(20), tmp_path / "run", seed=3)
    monkeypatch.setattr(Learner, "update", lambda *_, **__: pytest.fail("trained again"))
    made = method(start, demonstrations(20), tmp_path / "run", seed=3)
    same(weights(made), weights(expected), rtol=0, atol=0)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_the_start_is_evaluated_and_changes_nothing(start, tmp_path):
    data = demonstrations(20)
    plain = SFT(start, data, tmp_path / "plain", seed=3)
    made = replace(SFT, eval_start=True)(start, data, tmp_path / "start", seed=3)
    same(weights(plain), weights(made), rtol=0, atol=0)
    assert metrics(tmp_path / "plain") == metrics(tmp_path / "start")
    without, told = facts(plain)["evaluation"], facts(made)["evaluation"]
    held = [data[i] for i in sorted(split_by_question(data, 0.3, 3))]
    assert told["start"]["loss"] == told.pop("start_loss") == pytest.approx(token_mean_loss(start.path, held), rel=1e-5)
    assert told.pop("start").keys() == {"loss", "trained_tokens"}
    assert told == without
    assert made.cost.flops > plain.cost.flops
    with pytest.raises(ConfigError, match="eval_start needs held-out rows"):
        Sft(eval_start=True)(start, data, tmp_path / "none", seed=3)
