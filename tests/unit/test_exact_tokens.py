"""Which ids a server drew: told, named by its log-probabilities, or read out of the text, and what cannot be told."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.core.errors import ServerError
from posttrain.core.types import Completion, Message, Prompt, Sampling, Usage
from posttrain.data.chat import turn_end
from posttrain.engines.openai.exact import Reader

HOT = Sampling(temperature=1.0, max_tokens=8)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<end>{% endfor %}{% if add_generation_prompt %}me:{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes, and the merges ab, abc: a text of these letters can be written in several ways."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "ab", "abc", "bc"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("ab", "c")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<end>", special=True), AddedToken("<stop>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<stop>", pad_token="<stop>", chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def reader(tokenizer):
    ends = frozenset(tokenizer.convert_tokens_to_ids(["<end>", "<stop>"]))
    return Reader(tokenizer=tokenizer, ends=ends, end=turn_end(tokenizer, ends))


def ids_of(tokenizer, *tokens):
    return tuple(tokenizer.convert_tokens_to_ids(list(tokens)))


def entries(*tokens):
    return {"logprobs": {"content": [{"token": token, "logprob": -float(i)} for i, token in enumerate(tokens, 1)]}}


def said(text, finish="stop"):
    return Completion(text=text, finish=finish, tokens=(1, 2, 3), logprobs=(0.0,), sample=4)


def test_the_end_is_the_templates(tokenizer, reader):
    assert reader.end == ids_of(tokenizer, "<end>")[0]
    assert turn_end(tokenizer, frozenset([5])) == 5
    assert turn_end(tokenizer, frozenset()) is None


def test_ids_that_are_told_are_taken_whatever_the_text_would_be_read_as(tokenizer, reader):
    drawn = ids_of(tokenizer, "a", "bc", "<stop>")
    found = reader.read(said("abc"), {"token_ids": list(drawn), **entries("a", "bc", "")}, HOT, 3)
    assert (found.tokens, found.end_token, found.guessed) == (drawn[:2], drawn[2], False)
    assert (found.logprobs, found.raw_logprobs, found.end_logprob) == ((-1.0, -2.0), (-1.0, -2.0), -3.0)
    assert (found.text, found.sample) == ("abc", 4)
    warm = reader.read(said("abc"), {"token_ids": list(drawn), **entries("a", "bc", "")}, Sampling(temperature=0.5), 3)
    assert (warm.logprobs, warm.raw_logprobs) == (None, (-1.0, -2.0))
    cut = reader.read(said("abc", "length"), {"token_ids": list(drawn[:2])}, HOT, 2)
    assert (cut.tokens, cut.end_token, cut.logprobs, cut.guessed) == (drawn[:2], None, None, False)


def test_ids_in_the_entries_are_taken_too(tokenizer, reader):
    drawn = ids_of(tokenizer, "a", "bc")
    content = [{"token": "?", "logprob": -1.0, "id": i} for i in drawn]
    found = reader.read(said("abc", "length"), {"logprobs": {"content": content}}, HOT, 2)
    assert (found.tokens, found.logprobs, found.guessed) == (drawn, (-1.0, -1.0), False)


def test_named_tokens_must_be_those_that_the_text_is_read_as(tokenizer, reader):
    read = ids_of(tokenizer, "abc", "x")
    for last in ("<end>", "<stop>", ""):
        found = reader.read(said("abcx"), entries("abc", "x", last), HOT, 3)
        assert (found.tokens, found.guessed, found.end_logprob) == (read, False, -3.0)
        assert tokenizer.decode([found.end_token]) == (last or "<end>")  # a nameless one is the template's
    without = reader.read(said("abcx"), entries("abc", "x"), HOT, 3)  # of the end nothing is said
    assert (without.tokens, without.logprobs, without.end_logprob, without.guessed) == (read, (-1.0, -2.0), None, False)
    assert reader.read(said("abcx"), entries("ab", "cx"), HOT, 3).guessed  # as many, but others
    assert reader.read(said("abcx"), entries("a", "bc", "x"), HOT, 4).guessed
    assert reader.read(said("abcx"), entries("abc", "x", "y"), HOT, 3).guessed  # no end


def test_without_log_probabilities_the_count_decides(tokenizer, reader):
    found = reader.read(said("abcx"), {}, HOT, 3)
    assert (found.tokens, found.end_token) == (ids_of(tokenizer, "abc", "x"), reader.end)
    assert (found.logprobs, found.raw_logprobs, found.guessed) == (None, None, False)
    cut = reader.read(said("abcx", "length"), {}, HOT, 2)
    assert (cut.tokens, cut.end_token, cut.guessed) == (ids_of(tokenizer, "abc", "x"), None, False)


@pytest.mark.parametrize(
    ("text", "finish", "generated"),
    [
        ("abcx", "stop", 4),  # written in other tokens
        ("abcx", "stop", 2),  # ended by something else
        ("abcx", "length", 3),  # a special token that no text shows
        ("a\ufffd", "length", 4),  # half a character: three bytes, which may have been anything
        ("", "length", 2),
    ],
)
def test_what_no_text_tells_is_guessed(text, finish, generated, reader):
    found = reader.read(said(text, finish), {}, HOT, generated)
    assert found.guessed
    assert found.tokens  # something to count
    assert (found.end_token, found.logprobs) == (None, None)


def test_half_a_character_is_no_name_of_a_token(tokenizer, reader):
    assert reader.read(said("\ufffd", "length"), entries("\ufffd"), HOT, 1).guessed


def test_a_prompt_must_be_read_alike(tokenizer, reader):
    asked = Prompt(messages=(Message(role="user", content="abc"),))
    ids = tokenizer("user:abc<end>me:", add_special_tokens=False)["input_ids"]
    reader.check_prompt(asked, {}, Usage(prompt=len(ids)), "http://h/v1")
    reader.check_prompt(asked, {"prompt_token_ids": ids}, Usage(prompt=len(ids)), "http://h/v1")
    for answer, count in (({}, len(ids) + 1), ({"prompt_token_ids": ids[::-1]}, len(ids))):
        with pytest.raises(ServerError, match=r"http://h/v1 reads a prompt as \d+ tokens"):
            reader.check_prompt(asked, answer, Usage(prompt=count), "http://h/v1")
