"""Where the steps of a reply begin, as token indices: by hand, on tokenizers that cut texts in different places."""

import pytest
import tiny_models
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.data.steps import step_starts

END = "<|im_end|>"


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("ab", [0]),
        ("ab\ncd", [0, 2]),
        ("ab\n", [0, 2]),
        ("ab\n\ncd\n \nef", [0, 2, 6]),
        ("\nab\ncd", [0, 3]),
        ("ä\nb", [0, 2]),  # two bytes, two tokens
        ("\n\n", [0]),
        ("", []),
    ],
)
def test_by_hand(text, starts):
    words = tiny_models.tokenizer()
    ids = words(text).input_ids
    assert list(step_starts(words, ids, separator="\n", closed=False)) == (starts or [0])
    closed = list(step_starts(words, [*ids, 257], separator="\n", closed=True))
    spoken = bool(text.rpartition("\n")[2].strip())
    assert closed == (starts or [0]) + [len(ids)] * spoken


def test_other_separators_and_tokens_that_hold_them():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    merges = [(".", "Ċ"), ("Ġ", "b")]
    vocabulary |= {a + b: len(alphabet) + i for i, (a, b) in enumerate(merges)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    words = PreTrainedTokenizerFast(tokenizer_object=inner)
    ids = words("a.\nb").input_ids
    assert words.convert_ids_to_tokens(ids) == ["a", ".Ċ", "b"]
    assert step_starts(words, ids, separator="\n", closed=False) == (0, 1)  # in front of the token that holds it
    ids = words("a. b. c").input_ids
    assert words.convert_ids_to_tokens(ids) == ["a", ".", "Ġb", ".", "Ġ", "c"]
    assert step_starts(words, ids, separator=". ", closed=False) == (0, 1, 3)
