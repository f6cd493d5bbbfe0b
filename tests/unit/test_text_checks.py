"""Words, near-duplicates, contamination, languages, diversity and labels, against brute force and hand-counted values."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.contamination import Question, overlap
from posttrain.data.diversity import distinct, segmental_type_token_ratio
from posttrain.data.duplicates import near_duplicates, self_similarity, sketch
from posttrain.data.labels import label_balance
from posttrain.data.language import script_and_guess
from posttrain.data.words import Hasher, ngrams, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, WORLD! don't stop_it", "hello world don t stop it"),
        ("3 + 4 - 12/6=1.5", "3 + 4 - 12 / 6 = 1 5"),
        ("well-known a/b", "well known a b"),
        ("東京は2020年 ok", "東 京 は 2020 年 ok"),
        ("Straße ﬁne １２", "strasse fine 12"),
        ("... !", ""),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert words(text) == expected.split()


def test_equal_ngrams_have_equal_numbers_and_others_do_not() -> None:
    found = ["a", "b", "c", "a", "b", "c", "b", "a"]
    hashes = ngrams(Hasher()(found), 3).tolist()
    grams = [tuple(found[i : i + 3]) for i in range(6)]
    for (i, one), (j, other) in itertools.combinations(enumerate(grams), 2):
        assert (hashes[i] == hashes[j]) == (one == other)
    assert len(ngrams(Hasher()(found), 9)) == 0
    assert ngrams(Hasher()(["x", *found]), 3).tolist()[1:] == hashes  # the same in any process and at any place


def shingles(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    n = min(3, len(found))
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def jaccard(a: str, b: str) -> float:
    one, other = shingles(a), shingles(b)
    return len(one & other) / len(one | other)


def corpus(seed: int, count: int) -> list[str]:
    """Texts of which some are earlier ones with a few words changed."""
    draw = random.Random(seed)
    texts: list[str] = []
    for i in range(count):
        if i % 3 == 2:
            found = draw.choice(texts).split()
            for _ in range(draw.randrange(4)):
                found[draw.randrange(len(found))] = f"w{draw.randrange(300)}"
            texts.append(" ".join(found))
        else:
            texts.append(" ".join(f"w{draw.randrange(300)}" for _ in range(draw.randrange(10, 80))))
    return texts


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9])
def test_near_duplicates_are_those_of_comparing_all_pairs(threshold: float) -> None:
    texts = corpus(0, 300)
    group = list(range(len(texts)))
    for i, j in itertools.combinations(range(len(texts)), 2):
        if jaccard(texts[i], texts[j]) >= threshold and group[i] != group[j]:
            old, new = max(group[i], group[j]), min(group[i], group[j])
            group = [new if at == old else at for at in group]
    together: dict[int, list[int]] = {}
    for i, at in enumerate(group):
        together.setdefault(at, []).append(i)
    expected = [tuple(members) for members in together.values() if len(members) > 1]
    assert expected
    assert near_duplicates(sketch(texts), threshold=threshold) == expected


def test_signatures_estimate_the_similarity() -> None:
    texts = corpus(1, 60)
    signatures = sketch(texts).signatures_NK
    pairs = [(i, j, jaccard(texts[i], texts[j])) for i, j in itertools.combinations(range(60), 2)]
    errors = [float((signatures[i] == signatures[j]).mean()) - exact for i, j, exact in pairs]
    similar = [error for error, (_, _, exact) in zip(errors, pairs, strict=True) if exact > 0.2]
    assert abs(np.mean(errors)) < 0.002
    assert len(similar) > 10
    assert abs(np.mean(similar)) < 0.03  # no bias
    assert max(map(abs, similar)) < 4.5 * math.sqrt(0.25 / 120)


def test_a_crowd_of_near_duplicates_is_one_group() -> None:
    base = [f"w{i}" for i in range(60)]
    texts = [" ".join([*base, f"x{i}"]) for i in range(40)] + ["something else that is not like them at all"]
    assert near_duplicates(sketch(texts)) == [tuple(range(40))]


def test_texts_without_words_or_with_few() -> None:
    assert near_duplicates(sketch(["...", "!!!", "a", "a b", "A", "…"])) == [(2, 4)]
    assert near_duplicates(sketch([])) == []
    assert self_similarity(sketch(["a"])) is None


def test_self_similarity() -> None:
    assert self_similarity(sketch(["one and the same text"] * 10)) == 1.0
    different = [" ".join(f"w{i}x{j}" for j in range(20)) for i in range(50)]
    assert self_similarity(sketch(different)) == pytest.approx(0.0, abs=1e-3)


TALE = "Natalia sold clips to 48 of her friends in April and then she sold half as many in May"


def test_a_shared_ngram_is_found_with_its_words() -> None:
    question = Question(id="q1", text=TALE + ". How many clips did she sell?")
    rows = [["nothing of it"], ["Here: " + TALE.upper() + "!", "72"], ["Natalia sold clips to 48 of her friends"]]
    found = overlap(rows, [question])
    assert [(hit.row, hit.example) for hit in found.hits] == [(1, "q1")]
    assert found.hits[0].shared == "natalia sold clips to 48 of her friends in april and then she"
    assert (found.rows, found.examples, found.questions, found.wording) == (1, 1, 1, 0)
    assert overlap(rows, [question], n=8).rows == 2


def test_ngrams_do_not_reach_across_turns() -> None:
    halves = TALE.split()
    rows = [[" ".join(halves[:9]), " ".join(halves[9:])]]
    assert overlap(rows, [Question(id="q", text=TALE)]).hits == ()


def test_short_questions_count_as_wholes() -> None:
    medium = Question(id="medium", text="Calculate the sum of these numbers 14 + 25")
    short = Question(id="short", text="What is 3 + 4?")
    rows = [
        ["please calculate the sum of these numbers 14 + 25 now"],
        ["calculate the sum of these numbers 14 - 25"],
        ["What is 3 + 4"],
        ["I ask: what is 3 + 4?"],
        ["What is 3 - 4?"],
    ]
    found = overlap(rows, [medium, short])
    assert [(hit.row, hit.example) for hit in found.hits] == [(0, "medium"), (2, "short")]


def test_the_wording_that_all_questions_share_is_left_out() -> None:
    frame = "State the final answer to the following arithmetic problem and nothing else at all please:"
    questions = [Question(id=str(i), text=f"{frame} {i} plus {i + 1} plus {i + 2}") for i in range(50)]
    rows = [[f"{frame} 777 plus 888"], [f"{frame} 7 plus 8 plus 9"]]
    found = overlap(rows, questions)
    assert found.wording == 15 - 13 + 1  # of the 15 words of the frame
    assert {hit.row for hit in found.hits if hit.example == "7"} == {1}
    assert 0 not in {hit.row for hit in found.hits}


@given(
    row=st.lists(st.sampled_from("abcd"), max_size=40),
    asked=st.lists(st.sampled_from("abcd"), min_size=8, max_size=20),
    n=st.integers(8, 10),
)
def test_overlap_is_that_of_comparing_all_ngrams(row: list[str], asked: list[str], n: int) -> None:
    length = min(n, len(asked))
    grams = {tuple(asked[i : i + length]) for i in range(len(asked) - length + 1)}
    expected = any(tuple(row[i : i + length]) in grams for i in range(len(row) - length + 1))
    found = overlap([[" ".join(row)]], [Question(id="q", text=" ".join(asked))], n=n)
    assert bool(found.hits) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is the capital of France, and how do you know that?", "latin: en?"),
        ("Wie geht es dir, und was ist das für eine Stadt?", "latin: de?"),
        ("Quelle est la capitale de la France et qui le sait ?", "latin: fr?"),
        ("¿Cuál es la capital de España y por qué lo es?", "latin: es?"),
        ("Il gatto è sul tavolo, ma non sono sicuro di quello che fa per te", "latin: it?"),
        ("Qual é a capital de Portugal e por que não é uma cidade do norte?", "latin: pt?"),
        ("Wat is de hoofdstad van het land en hoe weet je dat?", "latin: nl?"),
        ("foo bar baz", "latin"),
        ("Столица России", "cyrillic"),
        ("東京", "han"),
        ("東京は日本の首都です", "kana"),
        ("서울은 어디입니까", "hangul"),
        ("3 + 4 = 7", "no letters"),
    ],
)
def test_scripts_are_told_and_languages_guessed(text: str, expected: str) -> None:
    assert script_and_guess(text) == expected


def test_distinct_ngrams_by_hand() -> None:
    texts = ["a b a b", "a b c"]
    assert distinct(texts, 1) == 3 / 7
    assert distinct(texts, 2) == 3 / 5  # ab ba ab, ab bc
    assert distinct(texts, 3) == 3 / 3
    assert distinct(["a"], 2) is None
    many = [f"w{i} x" for i in range(5000)]
    assert distinct(many, 1) == 1001 / 2000  # of a thousand texts, however many there are


def test_type_token_ratio_does_not_fall_with_the_amount() -> None:
    text = " ".join(f"w{i % 40}" for i in range(100))
    assert segmental_type_token_ratio([text]) == 0.4
    assert segmental_type_token_ratio([text] * 50) == 0.4
    assert segmental_type_token_ratio(["too short"]) is None


def test_labels_are_found_and_balanced() -> None:
    found = label_balance(["It is late.\nAnswer: yes"] * 30 + ["no"] * 10)
    assert found is not None
    assert (found["labels"], found["largest"], found["shares"]) == (2, 0.75, {"yes": 0.75, "no": 0.25})
    assert found["evenness"] == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)), abs=1e-4)
    assert label_balance([f"Answer: {i}" for i in range(100)]) is None  # answers, not labels
    assert label_balance(["a long answer in many words, more than any label has"] * 40) is None
    assert label_balance([f"Answer: {i % 30}" for i in range(1000)]) is None  # too many kinds to be labels
    rest = label_balance(["yes"] * 80 + [f"other {i}" for i in range(20)])
    assert rest is not None
    assert (rest["labels"], rest["largest"]) == (21, 0.8)
    assert label_balance(["yes"] * 5) is None
    assert label_balance([*["yes"] * 30, *[None] * 30]) is None
    only = label_balance(["yes"] * 20)
    assert only is not None
    assert (only["largest"], only["evenness"]) == (1.0, 0.0)
