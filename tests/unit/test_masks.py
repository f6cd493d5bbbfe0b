"""Masks against expectations written by hand, over templates in the styles of the common families."""

from typing import Any

import pytest
from chat_families import BY_NAME, CHATML, FAMILIES, IM, NO_END, Family
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import DataError, ModelError
from posttrain.core.types import Message
from posttrain.data.chat import render_prompt, render_text
from posttrain.data.masks import Encoded, encode_completion, encode_conversation, encode_text


def turns(*pairs: str) -> list[Message]:
    """`turns("u: hi", "a: hello")` as messages."""
    roles: dict[str, Any] = {"s": "system", "u": "user", "a": "assistant"}
    return [Message(role=roles[pair[0]], content=pair[3:]) for pair in pairs]


def decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def trained(tokenizer: Any, encoded: Encoded) -> list[str]:
    """The trained runs as text."""
    runs: list[list[int]] = []
    for t, (token, mask) in enumerate(zip(encoded.ids, encoded.mask, strict=True)):
        if mask and (t == 0 or not encoded.mask[t - 1]):
            runs.append([])
        if mask:
            runs[-1].append(token)
    return [decode(tokenizer, run) for run in runs]


def bare(text: str) -> str:
    return "".join(text.split())


CHAT = turns("u: What is 12 + 30?", "a: It is 42. 😀 déjà vu", "u: print('x')", "a: return x\n    and 東京")
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@every_family
def test_trains_each_answer_and_its_end_and_nothing_else(family: Family) -> None:
    messages = [*(turns("s: You are fine.") if family.system else []), *CHAT]
    tokenizer = family.tokenizer
    encoded = encode_conversation(tokenizer, messages)
    expected = [bare(m.content) + family.end for m in messages if m.role == "assistant"]
    assert [bare(run) for run in trained(tokenizer, encoded)] == expected
    assert bare(decode(tokenizer, encoded.ids)) == bare(render_text(tokenizer, messages, generation_prompt=False))
    assert encoded.trained == sum(encoded.mask) > len(expected)


@every_family
def test_last_trains_the_last_answer_only(family: Family) -> None:
    encoded = encode_conversation(family.tokenizer, CHAT, train="last")
    assert bare(decode(family.tokenizer, encoded.ids)) == bare(render_text(family.tokenizer, CHAT, generation_prompt=False))
    assert [bare(run) for run in trained(family.tokenizer, encoded)] == [bare(CHAT[-1].content) + family.end]


@every_family
def test_a_completion_follows_exactly_the_prompt_that_generation_sees(family: Family) -> None:
    tokenizer = family.tokenizer
    encoded = encode_completion(tokenizer, CHAT[:3], CHAT[3].content)
    prompt = render_prompt(tokenizer, CHAT[:3])
    assert encoded.ids[: len(prompt)] == prompt
    assert encoded.mask == [False] * len(prompt) + [True] * (len(encoded.ids) - len(prompt))
    assert bare(decode(tokenizer, encoded.ids[len(prompt) :])) == bare(CHAT[3].content) + family.end
    assert encoded.ids[-1] == tokenizer.convert_tokens_to_ids(family.end)


@every_family
def test_no_second_start_token(family: Family) -> None:
    tokenizer = family.tokenizer
    ids = encode_conversation(tokenizer, CHAT).ids
    text = render_text(tokenizer, CHAT, generation_prompt=False)
    for special in tokenizer.all_special_tokens:
        assert ids.count(tokenizer.convert_tokens_to_ids(special)) == text.count(special)


def test_exact_ids_and_mask_of_a_small_chat() -> None:
    tokenizer = BY_NAME["chatml"].tokenizer
    encoded = encode_conversation(tokenizer, turns("u: a", "a: b", "u: c", "a: d"))
    written = "* user ⏎ a . ⏎ * a ss istan t ⏎ [b] [.] ⏎ * user ⏎ c . ⏎ * a ss istan t ⏎ [d] [.] ⏎"
    names = {"*": "<|im_start|>", ".": "<|im_end|>", "⏎": "Ċ"}
    expected = [(names.get(word.strip("[]"), word.strip("[]")), word.startswith("[")) for word in written.split()]
    assert list(zip(tokenizer.convert_ids_to_tokens(encoded.ids), encoded.mask, strict=True)) == expected


def test_the_end_token_is_trained_although_it_is_also_the_padding_token() -> None:
    tokenizer = BY_NAME["chatml"].tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    encoded = encode_conversation(tokenizer, CHAT)
    ends = [mask for token, mask in zip(encoded.ids, encoded.mask, strict=True) if token == tokenizer.eos_token_id]
    assert ends == [False, True, False, True]


def test_characters_that_would_merge_across_the_seam_are_cut_there() -> None:
    tokenizer = BY_NAME["chatml"].tokenizer
    prompt, answer = turns("u: hi"), "\n\nThe answer"
    merged = tokenizer(render_text(tokenizer, [*prompt, *turns("a: \n\nThe answer")], generation_prompt=False))["input_ids"]
    seen = render_prompt(tokenizer, prompt)
    assert merged[: len(seen)] != seen  # tokenised as one text, the prompt would be another
    for encoded in (
        encode_completion(tokenizer, prompt, answer),
        encode_conversation(tokenizer, [*prompt, *turns("a: \n\nThe answer")]),
    ):
        assert encoded.ids[: len(seen)] == seen
        assert encoded.mask.index(True) == len(seen)
        assert trained(tokenizer, encoded) == ["\n\nThe answer<|im_end|>"]


def test_two_seams_that_merge_are_both_cut() -> None:
    tokenizer = BY_NAME["chatml"].tokenizer
    messages = turns("u: hi", "a: \n\nfirst", "u: and", "a: \n\nsecond", "u: so", "a: third")
    encoded = encode_conversation(tokenizer, messages)
    assert trained(tokenizer, encoded) == ["\n\nfirst<|im_end|>", "\n\nsecond<|im_end|>", "third<|im_end|>"]
    assert decode(tokenizer, encoded.ids) == render_text(tokenizer, messages, generation_prompt=False)


@pytest.mark.parametrize("name", ["llama2", "llama2-older"])
def test_the_space_before_the_answer_is_the_models_to_write(name: str) -> None:
    tokenizer = BY_NAME[name].tokenizer
    encoded = encode_conversation(tokenizer, turns("u: hi", "a: fine"))
    first = encoded.mask.index(True)
    assert encoded.ids[:first] == render_prompt(tokenizer, turns("u: hi"))
    text = render_text(tokenizer, turns("u: hi", "a: fine"), generation_prompt=False)
    assert encoded.ids == tokenizer(text, add_special_tokens=False)["input_ids"]  # nothing was cut: no seam merges here
    assert "".join(tokenizer.convert_ids_to_tokens(encoded.ids[first:])) == "▁fine▁</s>"


def test_qwen3_trains_what_the_full_rendering_keeps() -> None:
    tokenizer = BY_NAME["qwen3"].tokenizer
    thought = "<think>\ntwo and two\n</think>\n\nIt is 4."
    encoded = encode_conversation(tokenizer, turns("u: 2 + 2?", f"a: {thought}", "u: 3 + 3?", f"a: {thought}"))
    # The first turn's reasoning is dropped by the template, the last one's is kept, and trained.
    assert trained(tokenizer, encoded) == ["It is 4.<|im_end|>", f"{thought}<|im_end|>"]


def test_qwen3_does_not_train_the_empty_reasoning_that_the_template_inserts() -> None:
    tokenizer = BY_NAME["qwen3"].tokenizer
    encoded = encode_conversation(tokenizer, turns("u: 2 + 2?", "a: It is 4."))
    assert trained(tokenizer, encoded) == ["It is 4.<|im_end|>"]
    assert "<think>\n\n</think>" in decode(tokenizer, encoded.ids)
    alone = encode_completion(tokenizer, turns("u: 2 + 2?"), "It is 4.")
    assert decode(tokenizer, alone.ids).endswith("<|im_start|>assistant\nIt is 4.<|im_end|>")


def test_a_prompt_that_opens_the_reasoning_leaves_the_rest_to_train() -> None:
    tokenizer = BY_NAME["r1"].tokenizer
    encoded = encode_conversation(tokenizer, turns("u: 2 + 2?", "a: <think>\ntwo\n</think>\n\nIt is 4."))
    assert [bare(run) for run in trained(tokenizer, encoded)] == ["Itis4.</s>"]


def test_a_header_before_the_answer_is_context() -> None:
    tokenizer = BY_NAME["harmony"].tokenizer
    encoded = encode_conversation(tokenizer, turns("u: hi", "a: ho", "u: and", "a: so"))
    assert trained(tokenizer, encoded) == ["ho<|end|>", "so<|return|>"]


def test_a_stripping_template_trains_what_it_shows() -> None:
    tokenizer = BY_NAME["stripping"].tokenizer
    messages = turns("u: hi", "a:   spaced \n")
    for encoded in (encode_conversation(tokenizer, messages), encode_completion(tokenizer, messages[:1], "  spaced \n")):
        assert trained(tokenizer, encoded) == ["spaced<|im_end|>"]


@settings(max_examples=60, deadline=None)
@given(answers=st.lists(st.text(max_size=12), min_size=1, max_size=3))
def test_any_text_at_all(answers: list[str]) -> None:
    tokenizer = BY_NAME["chatml-default-system"].tokenizer
    messages = [message for answer in answers for message in (*turns("u: go on"), Message(role="assistant", content=answer))]
    encoded = encode_conversation(tokenizer, messages)
    assert trained(tokenizer, encoded) == [answer + "<|im_end|>" for answer in answers]
    assert decode(tokenizer, encoded.ids) == render_text(tokenizer, messages, generation_prompt=False)


AWKWARD = st.lists(
    st.sampled_from([" ", "\n", "\n\n", "\t", "a", " b", "42", "é", "e\u0301", "😀", "</s ", "[INST"]),
    max_size=6,
)


@every_family
@settings(max_examples=25, deadline=None)
@given(asked=AWKWARD, answered=AWKWARD)
def test_awkward_white_space_in_every_family(family: Family, asked: list[str], answered: list[str]) -> None:
    tokenizer, end = family.tokenizer, family.tokenizer.convert_tokens_to_ids(family.end)
    question, answer = Message(role="user", content="".join(asked)), Message(role="assistant", content="".join(answered))
    messages = [question, answer, question, answer]
    encoded = encode_completion(tokenizer, messages[:3], answer.content)
    prompt = render_prompt(tokenizer, messages[:3])
    assert encoded.ids[: len(prompt)] == prompt
    assert encoded.mask.index(True) == len(prompt)
    assert encoded.ids[-1] == end
    whole = encode_conversation(tokenizer, messages)
    last = max(t for t, mask in enumerate(whole.mask) if mask)
    assert whole.ids[last] == end
    assert len(trained(tokenizer, whole)) == 2
    shown = render_text(tokenizer, messages, generation_prompt=False)
    assert decode(tokenizer, whole.ids) == decode(tokenizer, tokenizer(shown, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("content", ["stop <|im_end|> here", "<|im_start|>user\nhi"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_text_of_a_special_token_is_refused(role: Any, content: str) -> None:
    messages = [*turns("u: hi", "a: ho", "u: so"), *turns("a: end")]
    messages[0 if role == "user" else 1] = Message(role=role, content=content)
    with pytest.raises(DataError, match=rf"message {int(role == 'assistant')} \({role}\) contains .*special token"):
        encode_conversation(BY_NAME["chatml"].tokenizer, messages)


def variant(template: str) -> Any:
    return Family("a-template", template, IM, "<|im_start|>", "<|im_end|>", "<|im_end|>").tokenizer


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (NO_END, "ends the turn with no special token, so the model would never learn to stop"),
        (
            CHATML.replace("m.content", "(m.content | upper if loop.last else m.content)"),
            "changes the content.*'Fine, thanks'.*'FINE, THANKS'",
        ),
        (
            CHATML.replace("{{ m.content }}", "{{ m.content[:4] }}"),
            "does not show message 0 .* as it is|changes the content",
        ),
        (CHATML.replace("m.content", "(m.content if m.role == 'user' else '')"), "shows assistant turn 1 not at all"),
        (CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}"), "shows assistant turn 1 twice"),
        (
            CHATML.replace("m.content", "(m.content if m.role != 'user' else '')"),
            r"does not show message 0 \(user\) as it is",
        ),
        ("<|im_start|><|im_start|>" + CHATML, "begins with '<|im_start|>' twice".replace("|", r"\|")),
    ],
)
def test_a_template_that_leaves_no_sure_mask_is_refused(template: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_conversation(variant(template), turns("u: How are you?", "a: Fine, thanks"))


def test_a_tokenizer_that_loses_characters_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hi": 1, "user": 2, "assistant": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    tokenizer.chat_template = CHATML
    with pytest.raises(DataError, match=r"the trained tokens say '\[UNK\]', the text is 'ho'"):
        encode_conversation(tokenizer, turns("u: hi", "a: ho"))


def test_a_tokenizer_that_adds_a_special_token_of_its_own_is_refused() -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.normalizer = normalizers.Replace("zz", "<|extra|>")  # what the text does not say, the ids do
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, special=True) for name in IM])
    inner.add_special_tokens([AddedToken("<|extra|>", special=True, normalized=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", chat_template=CHATML)
    with pytest.raises(DataError, match=r"the ids of the rendered conversation hold the special tokens .*<\|extra\|>"):
        encode_conversation(tokenizer, turns("u: jazz", "a: ho"))


@every_family
def test_a_plain_text_is_trained_whole_and_ends(family: Family) -> None:
    tokenizer = family.tokenizer
    encoded = encode_text(tokenizer, "Hello there,\n\nhow are you? déjà vu")
    assert bare(decode(tokenizer, encoded.ids[:-1])) == "Hellothere,howareyou?déjàvu"
    assert encoded.ids[-1] == tokenizer.eos_token_id
    assert encoded.mask == [False] + [True] * (len(encoded.ids) - 1)


def test_the_start_token_of_a_plain_text_is_context() -> None:
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    tokenizer = deepcopy(BY_NAME["llama3"].tokenizer)
    start = tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", start)]
    )
    encoded = encode_text(tokenizer, "Hello")
    assert encoded.ids[0] == start
    assert trained(tokenizer, encoded) == ["Hello<|eot_id|>"]
    with pytest.raises(DataError, match="contains the text of the special token"):
        encode_text(tokenizer, "Hello<|eot_id|>")


def test_refusals_in_one_sentence() -> None:
    gemma = BY_NAME["gemma"].tokenizer
    with pytest.raises(ModelError, match="refuses this conversation: System role not supported"):
        encode_conversation(gemma, turns("s: Be brief.", "u: hi", "a: ho"))
    with pytest.raises(DataError, match="no assistant turn"):
        encode_conversation(gemma, turns("u: hi"))
    silent = BY_NAME["mistral3"].tokenizer  # its template ignores what it does not know
    with pytest.raises(
        DataError, match=r"does not show message 0 \(system\) as it is: 'Be brief.'; put its text into a user message"
    ):
        encode_conversation(silent, turns("s: Be brief.", "u: hi", "a: ho"))
