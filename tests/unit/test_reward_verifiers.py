"""Reward models of replies and of steps, against transformers' own forward on tiny random models saved here."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from torch import nn

from posttrain.core.errors import CapabilityError, ConfigError, ContextOverflowError, ModelError
from posttrain.core.types import Completion, Example, Message, Prompt, Sampling, Score, Usage
from posttrain.data.chat import render_text
from posttrain.engines.meter import Account, Metered
from posttrain.engines.rewards import GROUP
from posttrain.engines.scripted import ScriptedEngine
from posttrain.models.scorers import load_classifier
from posttrain.models.scoring import ScoreForward
from posttrain.stats.flops import forward_flops
from posttrain.stats.steps import aggregate
from posttrain.verifiers import build_verifier
from posttrain.verifiers.process_reward import split_steps

TASK: Any = SimpleNamespace(name="t", instruction="", extract=lambda text: text or None, max_tokens=16)
ASKED = Example(id="1", question="How many?")
TEXTS = ["four", "It is surely twenty-two, I think.", "", "four<|im_end|>", "no\n\nyes"]
SIZES = {"vocab_size": 258, "pad_token_id": 257, "eos_token_id": 257, "bos_token_id": None}


def make(
    folder: Path, kind: str, architecture: str = "llama", labels: int = 1, template: bool = True, seed: int = 0
) -> Path:
    """Write a small random model of a kind ("SequenceClassification", …) with a byte-level ChatML tokenizer, pad == eos."""
    config = tiny_models.llama()
    if architecture == "gpt2":
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **SIZES)
    if architecture == "bert":
        config = transformers.BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, type_vocab_size=2, **SIZES
        )
    config.num_labels = labels
    torch.manual_seed(seed)
    model = getattr(transformers, f"AutoModelFor{kind}").from_config(config)
    loud(model).save_pretrained(folder)
    tokenizer = tiny_models.tokenizer()
    if not template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


def loud(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.2)
    return model.eval()


def score(spec: str | dict[str, Any], texts: Sequence[str] = TEXTS, example: Example = ASKED, **more: Any) -> list[Score]:
    return asyncio.run(build_verifier(spec, task=TASK, **more)(example, texts))


def values(spec: str | dict[str, Any], texts: Sequence[str] = TEXTS) -> list[float]:
    return [s.value for s in score(spec, texts)]


def rendered(text: str) -> torch.Tensor:
    turns = [Message(role="user", content=ASKED.question), Message(role="assistant", content=text)]
    return torch.tensor(
        [tiny_models.tokenizer()(render_text(tiny_models.tokenizer(), turns, generation_prompt=False)).input_ids]
    )


def own_logits(folder: Path, kind: str, ids: torch.Tensor) -> torch.Tensor:
    """Transformers' own forward of one text alone: no batch, no padding, and no padding token to mistake anything for."""
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder, dtype=torch.float32).eval()
    model.config.pad_token_id = None
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits[0]
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_scalar_reward_is_transformers_own_logit_at_the_last_token(tmp_path: Path, architecture: str) -> None:
    folder = make(tmp_path / "rm", "SequenceClassification", architecture)
    expected = [float(own_logits(folder, "SequenceClassification", rendered(text))) for text in TEXTS]
    assert len({round(value, 3) for value in expected}) == len(TEXTS)
    spec = f"reward_model:model={folder},dtype=float32"
    assert values(spec) == pytest.approx(expected, abs=1e-5)
    assert values(spec + ",batch_tokens=1") == pytest.approx(expected, abs=1e-5)  # each alone: no padding
    assert values(spec + ",batch_tokens=100") == pytest.approx(expected, abs=1e-5)
    probable = values(spec + ",output=probability")
    assert probable == pytest.approx([1 / (1 + math.exp(-value)) for value in expected], abs=1e-6)


def test_padding_that_is_the_end_token_is_no_place_to_read(tmp_path: Path) -> None:
    """A conversation that ends with the end token, which is the padding token too: transformers reads one token early."""
    folder = make(tmp_path / "rm", "SequenceClassification")
    template = tmp_path / "bare.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    tokenizer = tiny_models.tokenizer()
    ids = torch.tensor([tokenizer(f"{ASKED.question}<|im_end|>four<|im_end|>").input_ids])
    assert int(ids[0, -1]) == tokenizer.pad_token_id
    right = float(own_logits(folder, "SequenceClassification", ids))
    early = float(own_logits(folder, "SequenceClassification", ids[:, :-1]))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        assert float(model(input_ids=ids).logits) == pytest.approx(early, abs=1e-5)
    found = values(f"reward_model:model={folder},dtype=float32,chat_template={template}", ["four", "four, or five, or six"])
    assert found[0] == pytest.approx(right, abs=1e-5)
    assert abs(right - early) > 1e-2


def test_several_labels(tmp_path: Path) -> None:
    folder = make(tmp_path / "two", "SequenceClassification", labels=2)
    z = [own_logits(folder, "SequenceClassification", rendered(text)) for text in TEXTS]
    spec = f"reward_model:model={folder},dtype=float32"
    assert values(spec) == pytest.approx([float(torch.softmax(v, -1)[1]) for v in z], abs=1e-5)
    assert values(spec + ",label=LABEL_0") == pytest.approx([float(torch.softmax(v, -1)[0]) for v in z], abs=1e-5)
    assert values(spec + ",output=logit") == pytest.approx([float(v[1] - v[0]) for v in z], abs=1e-5)
    three = make(tmp_path / "three", "SequenceClassification", labels=3)
    z = [own_logits(three, "SequenceClassification", rendered(text)) for text in TEXTS]
    found = values(f"reward_model:model={three},label=2,dtype=float32")
    assert found == pytest.approx([float(torch.softmax(v, -1)[2]) for v in z], abs=1e-5)
    with pytest.raises(ConfigError, match="has 3 labels: say with label=… which is the positive one: LABEL_0"):
        score(f"reward_model:model={three}")
    with pytest.raises(ConfigError, match=r"has no label 'LABEL_7'; did you mean 'LABEL_"):
        score(f"reward_model:model={three},label=LABEL_7")


def test_an_encoder_takes_question_and_reply_as_two_segments(tmp_path: Path) -> None:
    folder = make(tmp_path / "bert", "SequenceClassification", "bert", template=False)
    tokenizer = tiny_models.tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for text in TEXTS[:4]:
        pair = transformers.AutoTokenizer.from_pretrained(folder)(ASKED.question, text, return_tensors="pt")
        with torch.no_grad():
            expected.append(float(model(**pair).logits))
    found = values(f"reward_model:model={folder},pair=true,dtype=float32", TEXTS[:4])
    assert found == pytest.approx(expected, abs=1e-5)
    scorer = load_classifier(folder, "sequence", device="cpu")
    assert scorer.shape.attention_width == 2 * 32 * 2  # layers x width, and twice: attention goes both ways


def test_bfloat16_is_near(tmp_path: Path) -> None:
    folder = make(tmp_path / "rm", "SequenceClassification")
    exact, near = (values(f"reward_model:model={folder},dtype={kind}") for kind in ("float32", "bfloat16"))
    assert near == pytest.approx(exact, abs=0.1)
    assert near != exact


def test_the_conversation_of_an_example_is_read_whole(tmp_path: Path) -> None:
    folder = make(tmp_path / "rm", "SequenceClassification")
    turns = (Message(role="system", content="Be brief."), Message(role="user", content="Hi"))
    ids = tiny_models.tokenizer()(
        render_text(tiny_models.tokenizer(), [*turns, Message(role="assistant", content="yo")], generation_prompt=False)
    ).input_ids
    example = Example(id="1", messages=turns)
    (found,) = score(f"reward_model:model={folder},dtype=float32", ["yo"], example)
    assert found.value == pytest.approx(float(own_logits(folder, "SequenceClassification", torch.tensor([ids]))), abs=1e-5)
    (ended,) = score(f"reward_model:model={folder},dtype=float32,end=true", ["yo"], example)
    assert ended.value == pytest.approx(
        float(own_logits(folder, "SequenceClassification", torch.tensor([[*ids, 257]]))), abs=1e-5
    )  # the template goes on after the end token with a line break


def test_every_token_is_metered_once_under_the_verifier(tmp_path: Path) -> None:
    folder = make(tmp_path / "rm", "SequenceClassification")
    account = Account()
    score(f"reward_model:model={folder}", meter=lambda engine, role: Metered(engine, account, role))
    lengths = [rendered(text).shape[1] for text in TEXTS]
    cost = account.by_role()["verifier"]
    assert set(account.by_role()) == {"verifier"}
    assert cost.usage == Usage(calls=len(TEXTS), scored=sum(lengths))
    shape = load_classifier(folder, "sequence", device="cpu").shape
    assert shape.head_params == 32
    assert shape.parameters == sum(
        p.numel() for p in transformers.AutoModelForSequenceClassification.from_pretrained(folder).parameters()
    )
    assert cost.flops == pytest.approx(sum(forward_flops(shape, start=0, tokens=n, logits=n) for n in lengths))


def test_a_model_is_loaded_once_and_anew_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.models import scorers

    loads: list[Any] = []
    real = scorers.load_classifier
    monkeypatch.setattr(scorers, "load_classifier", lambda *a, **k: loads.append(a) or real(*a, **k))
    folder = make(tmp_path / "rm", "SequenceClassification")
    first = values(f"reward_model:model={folder}")
    assert values(f"reward_model:model={folder}") == first
    score(f"reward_model:model={folder},output=probability")  # read otherwise, but the same weights
    assert len(loads) == 1
    make(folder, "SequenceClassification", seed=1)
    assert values(f"reward_model:model={folder}") != first
    assert len(loads) == 2


def batches(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """Watch what is computed together."""
    seen: list[list[Any]] = []
    read = engine._read
    monkeypatch.setattr(engine, "_read", lambda batch: seen.append([laid for laid, _ in batch]) or read(batch))
    return seen


@pytest.mark.parametrize("packs", [True, False])
def test_batches_are_bounded(packs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "rm", "SequenceClassification")
    if not packs:
        monkeypatch.setattr(ScoreForward, "_packing_is_exact", lambda self: False)
    verifier = build_verifier(f"reward_model:model={folder},batch_tokens=200", task=TASK)
    engine: Any = verifier.open()
    assert engine._scorer.packs == packs
    seen = batches(engine, monkeypatch)
    texts = ["x" * n for n in (1, 60, 2, 55, 3, 50, 4, 45, 120)]
    asyncio.run(verifier(ASKED, texts))
    lengths = [[len(laid.ids) for laid in batch] for batch in seen]
    assert sorted(n for batch in lengths for n in batch) == sorted(rendered(text).shape[1] for text in texts)
    assert len(seen) < len(texts)
    if packs:
        assert all(sum(batch) <= 200 or len(batch) == 1 for batch in lengths)
    else:
        assert all(len(batch) * max(batch) <= 200 or len(batch) == 1 for batch in lengths)
        in_order = [n for batch in lengths for n in batch]
        assert in_order == sorted(in_order, reverse=True)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_texts_of_a_question_share_it_and_score_as_each_alone(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions come mixed; a text that another goes on from, one twice, and more texts than a group holds."""
    folder = make(tmp_path / "rm", "SequenceClassification", architecture)
    engine: Any = build_verifier(f"reward_model:model={folder},dtype=float32", task=TASK).open()
    seen = batches(engine, monkeypatch)
    read: list[list[list[Any]]] = []
    logits = engine._scorer.logits
    scorer = replace(engine._scorer, logits=lambda groups: read.append(list(groups)) or logits(groups))
    monkeypatch.setattr(engine, "_scorer", scorer)
    prompts = [Prompt(messages=(Message(role="user", content=text),)) for text in ("How many?", "How much?", "When?")]
    texts = ["one", "one two", "one", "", *(f"{'ab' * (i % 3)} {i}" for i in range(20))]

    async def scored() -> list[Completion]:
        return await asyncio.gather(*(engine.score(prompt, text) for text in texts for prompt in prompts))

    found = asyncio.run(scored())
    groups = [group for batch in read for group in batch]
    assert max(len(group) for group in groups) == GROUP
    assert {len({laid.ids[:20] for laid in group}) for group in groups} == {1}  # no group has two questions
    assert sum(len(batch) for batch in seen) == 3 * (len(texts) - 1)
    for at, completion in enumerate(found):
        turns = [*prompts[at % 3].messages, Message(role="assistant", content=texts[at // 3])]
        ids = tiny_models.tokenizer()(render_text(tiny_models.tokenizer(), turns, generation_prompt=False)).input_ids
        expected = own_logits(folder, "SequenceClassification", torch.tensor([ids]))
        assert completion.rewards is not None
        assert completion.rewards[0] == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


def test_equal_texts_are_computed_once_and_charged_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "rm", "SequenceClassification")
    engine: Any = build_verifier(f"reward_model:model={folder},batch_tokens=200", task=TASK).open()
    computed = batches(engine, monkeypatch)
    prompt = Prompt(messages=(Message(role="user", content="How many?"),))
    texts = ["Five.", "Six.", "Five.", "Seven of them.", "Six.", "Five."]

    async def scored() -> list[Completion]:
        return await asyncio.gather(*(engine.score(prompt, text) for text in texts))

    found = asyncio.run(scored())
    seen = [laid for batch in computed for laid in batch]
    assert len(seen) == len(set(seen)) == 3
    assert [c.rewards for c in found] == [found[texts.index(text)].rewards for text in texts]
    assert len({c.rewards for c in found}) == 3
    assert all(c.usage.scored == engine.count_scored(prompt, c.text) > 0 for c in found)


def test_a_cancelled_request_is_dropped_and_the_next_is_served(tmp_path: Path) -> None:
    folder = make(tmp_path / "rm", "SequenceClassification")
    verifier = build_verifier(f"reward_model:model={folder},dtype=float32", task=TASK)
    expected = values(f"reward_model:model={folder},dtype=float32", ["four"])

    async def go() -> list[Score]:
        gone = asyncio.create_task(verifier(ASKED, ["gone"]))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        return await verifier(ASKED, ["four"])

    assert [s.value for s in asyncio.run(go())] == pytest.approx(expected)


def test_what_a_reward_model_cannot_do(tmp_path: Path) -> None:
    folder = make(tmp_path / "rm", "SequenceClassification")
    engine: Any = build_verifier(f"reward_model:model={folder}", task=TASK).open()
    prompt = Prompt(messages=(Message(role="user", content="x"),))
    with pytest.raises(CapabilityError, match="scores texts and cannot generate"):
        asyncio.run(engine.generate(prompt, Sampling(), seed=0))
    with pytest.raises(ContextOverflowError, match=r"a text of 3.. tokens .*context of 256"):
        score(f"reward_model:model={folder}", ["x" * 300])
    assert values(f"reward_model:model={folder}", ["four"])  # and it goes on serving
    with pytest.raises(CapabilityError, match="verifier 'likelihood' needs an engine that can do: score"):
        build_verifier("likelihood", task=TASK, engine=engine)


def test_folders_that_are_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no chat template: name the one it was trained with"):
        score(f"reward_model:model={make(tmp_path / 'bare', 'SequenceClassification', template=False)}")
    causal = make(tmp_path / "lm", "CausalLM")
    with pytest.raises(ModelError, match="a sequence-classification model is needed, but this is LlamaForCausalLM, a lang"):
        score(f"reward_model:model={causal}")
    with pytest.raises(ModelError, match=r"a token-classification model is needed.*use reward_model"):
        score(f"process_reward:model={make(tmp_path / 'rm', 'SequenceClassification')},style=token")
    config = json.loads((causal / "config.json").read_text())
    del config["architectures"]
    (causal / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"1 weights are missing .*score\.weight"):  # not made up at random
        score(f"reward_model:model={causal}")
    pickled = make(tmp_path / "pickled", "SequenceClassification")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds only pytorch_model\.bin, a pickle"):
        score(f"reward_model:model={pickled}")
    with pytest.raises(ModelError, match=r"unknown model .\./nowhere"):
        score("reward_model:model=./nowhere")
    with pytest.raises(ConfigError, match="verifier 'reward_model': its setting 'model' must be given"):
        score("reward_model")


# ---------------------------------------------------------------------------------------------- process reward models

STEPPED = ["2 + 2 is 4.\n\nSo four.", "One step only", "a\n\nb\n\nc, which is longer", "\n\n \n\n"]


def softmax_good(z: torch.Tensor) -> float:
    return float(torch.softmax(z.float(), -1)[0])


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_step_tags_against_one_forward_a_step(tmp_path: Path, architecture: str, chat: bool) -> None:
    folder = make(tmp_path / "prm", "CausalLM", architecture)
    tokenizer = tiny_models.tokenizer()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    verdicts = [tokenizer("+").input_ids[0], tokenizer("-").input_ids[0]]
    user = [Message(role="user", content=ASKED.question)]
    head = render_text(tokenizer, user, generation_prompt=True) if chat else ASKED.question + " "
    expected = []
    for text in STEPPED:
        steps, so_far = [], head
        for k, step in enumerate([step for step in text.split("\n\n") if step.strip()]):
            so_far += ("\n" if k else "") + f"{step} ки"
            with torch.no_grad():
                z = model(input_ids=torch.tensor([tokenizer(so_far).input_ids])).logits[0, -1]
            steps.append(softmax_good(z[verdicts]))
        expected.append(tuple(steps))
    found = score(
        {"name": "process_reward", "model": str(folder), "style": "tag", "chat": chat, "dtype": "float32"}, STEPPED
    )
    assert [len(s.steps or ()) for s in found] == [2, 1, 3, 0]
    for scored, steps in zip(found, expected, strict=True):
        assert scored.steps == pytest.approx(steps, abs=1e-5)
        assert scored.value == pytest.approx(steps[-1] if steps else 0.0, abs=1e-5)


def test_turns_against_one_forward_a_step(tmp_path: Path) -> None:
    folder = make(tmp_path / "prm", "CausalLM")
    tokenizer = tiny_models.tokenizer()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    verdicts = [tokenizer("+").input_ids[0], tokenizer("-").input_ids[0]]
    for text, scored in zip(
        STEPPED, score(f"process_reward:model={folder},style=turns,dtype=float32", STEPPED), strict=True
    ):
        turns: list[Message] = []
        steps = []
        for step in [step for step in text.split("\n\n") if step.strip()]:
            turns.append(Message(role="user", content=step if turns else f"{ASKED.question} {step}"))
            ids = tokenizer(render_text(tokenizer, turns, generation_prompt=True)).input_ids
            with torch.no_grad():
                steps.append(softmax_good(model(input_ids=torch.tensor([ids])).logits[0, -1][verdicts]))
            turns.append(Message(role="assistant", content="+"))
        assert scored.steps == pytest.approx(tuple(steps), abs=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("tag", ["\n", "<extra>"])
def test_token_classification_against_one_forward_a_step(tmp_path: Path, architecture: str, tag: str) -> None:
    folder = make(tmp_path / "prm", "TokenClassification", architecture, labels=2)
    tokenizer = tiny_models.tokenizer()
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
    spec = {"name": "process_reward", "model": str(folder), "style": "token", "tag": tag, "chat": False, "dtype": "float32"}
    for text, scored in zip(STEPPED, score(spec, STEPPED), strict=True):
        ids, steps = tokenizer(ASKED.question).input_ids, []
        for step in [step for step in text.split("\n\n") if step.strip()]:
            ids = ids + tokenizer(step).input_ids + tokenizer(tag).input_ids
            with torch.no_grad():
                z = model(input_ids=torch.tensor([ids])).logits[0, -1]
            steps.append(float(torch.softmax(z, -1)[1]))
        assert scored.steps == pytest.approx(tuple(steps), abs=1e-5)
    zero = [s.steps for s in score({**spec, "label": "LABEL_0"}, STEPPED)]
    one = [s.steps for s in score(spec, STEPPED)]
    assert zero[2] == pytest.approx([1 - p for p in one[2] or ()], abs=1e-6)


@pytest.mark.parametrize("style", ["tag", "turns", "token"])
def test_a_separator_at_the_end_is_no_step(tmp_path: Path, style: str) -> None:
    kind = "TokenClassification" if style == "token" else "CausalLM"
    folder = make(tmp_path / "prm", kind, labels=2)
    spec = f"process_reward:model={folder},style={style},dtype=float32"
    plain, ended, spaced = score(spec, ["a\n\nb", "a\n\nb\n\n", "\n\n a \n\n\n\nb \n\n \n\n"])
    assert plain == ended == spaced
    assert len(plain.steps or ()) == 2


def test_aggregations_are_named_and_differ(tmp_path: Path) -> None:
    folder = make(tmp_path / "prm", "CausalLM")
    (base,) = score(f"process_reward:model={folder},style=tag", [STEPPED[2]])
    steps = base.steps or ()
    for how, expected in [("last", steps[-1]), ("min", min(steps)), ("product", math.prod(steps)), ("mean", sum(steps) / 3)]:
        (found,) = score(f"process_reward:model={folder},style=tag,aggregate={how}", [STEPPED[2]])
        assert found == Score(value=pytest.approx(expected), steps=steps)
    with pytest.raises(ConfigError, match="aggregate: "):
        score(f"process_reward:model={folder},style=tag,aggregate=max")


@pytest.mark.parametrize(("how", "expected"), [("last", 0.9), ("min", 0.2), ("product", 0.8 * 0.2 * 0.9), ("mean", 1.9 / 3)])
def test_aggregate(how: Any, expected: float) -> None:
    assert aggregate([0.8, 0.2, 0.9], how) == pytest.approx(expected)
    assert aggregate([], how) == 0.0


def test_one_forward_a_text_and_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "prm", "CausalLM")
    account = Account()
    verifier = build_verifier(
        f"process_reward:model={folder},style=tag", task=TASK, meter=lambda engine, role: Metered(engine, account, role)
    )
    engine: Any = verifier.open()
    forwards: list[tuple[int, ...]] = []
    model = engine._scorer.model
    model.model.register_forward_hook(lambda *_args, **_kwargs: forwards.append(()))
    asyncio.run(verifier(ASKED, [STEPPED[2]]))
    assert len(forwards) == 1  # three steps
    user = render_text(tiny_models.tokenizer(), [Message(role="user", content=ASKED.question)], generation_prompt=True)
    tokens = len(tiny_models.tokenizer()(user + "a ки\nb ки\nc, which is longer ки").input_ids)
    assert account.by_role()["verifier"].usage == Usage(calls=1, scored=tokens)
    asyncio.run(verifier(ASKED, [" \n\n "]))  # nothing to score costs nothing
    assert account.by_role()["verifier"].usage.scored == tokens
    assert len(forwards) == 1


def test_a_separator_written_on_a_command_line() -> None:
    assert split_steps("a\nb\n\nc\n", "\\n") == ["a", "b", "c"]
    assert split_steps("Step 1: x Step 2: y", "Step") == ["1: x", "2: y"]


def test_the_tag_in_a_reply_is_no_step(tmp_path: Path) -> None:
    """What the policy writes cannot make itself a place that is read."""
    folder = make(tmp_path / "prm", "CausalLM")
    (found,) = score(f"process_reward:model={folder},style=tag", ["all is well ки ki ки and more"])
    assert len(found.steps or ()) == 1


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    folder = make(tmp_path / "prm", "CausalLM")
    for extra, message in [
        ("style=turns,tag=x", "style=turns is a conversation without tags: leave tag and chat out"),
        ("style=tag,label=1", "style=tag reads good and bad: leave label out"),
        ("style=tag,good=yes", "'yes' is 3 tokens of its tokenizer|is 3 of its tokens"),
        ("style=tag,sep=1", "unknown key 'sep'; did you mean"),
    ]:
        with pytest.raises((ConfigError, ModelError), match=message):
            score(f"process_reward:model={folder},{extra}")
    with pytest.raises(ConfigError, match="its setting 'style' must be given"):
        score(f"process_reward:model={folder}")
    bare = make(tmp_path / "bare", "CausalLM", template=False)
    with pytest.raises(ModelError, match="has no chat template"):
        score(f"process_reward:model={bare},style=tag")
    assert score(f"process_reward:model={bare},style=tag,chat=false", ["a"])[0].steps


def test_qwen_reward_models_load_without_their_code(tmp_path: Path) -> None:
    """Qwen2.5-Math's process reward model is a Qwen2 with a head of two layers, named after a class of its own."""
    config = transformers.Qwen2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **SIZES
    )
    torch.manual_seed(0)
    backbone = loud(transformers.Qwen2Model(config))
    head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    from safetensors.torch import save_file

    folder = tmp_path / "qwen"
    config.save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    auto = {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"}
    (folder / "config.json").write_text(
        json.dumps(raw | {"architectures": ["Qwen2ForProcessRewardModel"], "auto_map": auto})
    )
    tensors = {f"model.{name}": t for name, t in backbone.state_dict().items()}
    tensors |= {f"score.{name}": t for name, t in head.state_dict().items()}
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    user = render_text(tiny_models.tokenizer(), [Message(role="user", content=ASKED.question)], generation_prompt=True)
    ids = torch.tensor([tiny_models.tokenizer()(user + "a#b#").input_ids])
    with torch.no_grad():
        z = head(backbone(input_ids=ids).last_hidden_state)[0]
    (found,) = score(
        {"name": "process_reward", "model": str(folder), "style": "token", "tag": "#", "dtype": "float32"}, ["a\n\nb"]
    )
    assert found.steps == pytest.approx([float(torch.softmax(z[at], -1)[1]) for at in (-3, -1)], abs=1e-5)


def test_a_scripted_engine_is_no_reward_model() -> None:
    assert "reward" not in ScriptedEngine({}).can
