"""The packaged model: the right weights, tokenizer, template and settings."""

import pytest
import torch

from posttrain.core.types import Message, ModelShape
from posttrain.data.chat import render_prompt
from posttrain.data.masks import encode_completion, encode_conversation
from posttrain.models.load import LoadedModel, load

pytestmark = pytest.mark.model

# As the original repository's tokenizer encodes the default system turn.
SYSTEM = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198]
REFERENCE = {  # the original tokenizer's ids, as others have published them
    "The year 2024 had 365 days; 12 months.": [
        *(504, 713, 216, 34, 32, 34, 36, 761, 216, 35, 38, 37, 2009, 43, 216, 33, 34, 2704, 30),
    ],
    "  leading and   multiple   spaces  ": [216, 2899, 284, 256, 2701, 256, 5600, 256],
    "'s 't 're 've 'm 'll 'd": [506, 637, 100, 637, 257, 637, 307, 637, 93, 637, 764, 637, 84],
    "Hello, 世界!": [19556, 28, 216, 7906, 240, 178, 239, 230, 17],
    "Grüße, café!": [27302, 7170, 34878, 85, 28, 37366, 17],
}
USER, ASSISTANT = [1, 4093, 198], [1, 520, 9531, 198]


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    return load("smollm2-135m", device="cpu")


def test_shape_and_settings(smollm2: LoadedModel) -> None:
    # 30 layers of width 576: q, o 576², k, v 576·192, three of 576·1536; embedding 49152·576, tied; 61 norms
    matmul = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    assert smollm2.shape == ModelShape(
        parameters=matmul + 49_152 * 576 + 61 * 576,
        matmul_params=matmul,
        head_params=49_152 * 576,
        layers=30,
        attention_width=30 * 576,
    )
    config, generation = smollm2.model.config, smollm2.model.generation_config
    assert (config.max_position_embeddings, config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (8192, 1e-5, 1e5)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)
    assert not generation.do_sample
    assert smollm2.tokenizer.model_max_length == 8192


def test_the_tokenizer(smollm2: LoadedModel) -> None:
    tokenizer = smollm2.tokenizer
    assert len(tokenizer) == 49_152
    for text in (
        "12345 and  678\n 9",
        "def f(x):\n\treturn x**2  # 東京 😀 naïve é",
        " leading",
        "a\n\n\nb",
        "<|im_start|>x<|im_end|>",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("x = 12345.6") == ["x", "Ġ=", "Ġ", "1", "2", "3", "4", "5", ".", "6"]
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert {text: tokenizer(text)["input_ids"] for text in REFERENCE} == REFERENCE
    specials = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert {text: tokenizer(text)["input_ids"] for text in specials} == {text: [i] for text, i in specials.items()}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (1, 2, 2, 0)


def test_a_chat_renders_to_the_expected_ids(smollm2: LoadedModel) -> None:
    hi = smollm2.tokenizer("hi")["input_ids"]
    prompt = [Message(role="user", content="hi")]
    assert render_prompt(smollm2.tokenizer, prompt) == [*SYSTEM, *USER, *hi, 2, 198, *ASSISTANT]
    answer = smollm2.tokenizer("Hello there!")["input_ids"]
    encoded = encode_completion(smollm2.tokenizer, prompt, "Hello there!")
    assert encoded.ids == [*SYSTEM, *USER, *hi, 2, 198, *ASSISTANT, *answer, 2]
    assert encoded.mask == [False] * (len(encoded.ids) - len(answer) - 1) + [True] * (len(answer) + 1)
    whole = encode_conversation(smollm2.tokenizer, [*prompt, Message(role="assistant", content="Hello there!")])
    assert (whole.ids, whole.mask) == ([*encoded.ids, 198], [*encoded.mask, False])


def test_it_knows_what_it_should(smollm2: LoadedModel) -> None:
    ids = render_prompt(smollm2.tokenizer, [Message(role="user", content="What is the capital of France?")])
    said = smollm2.model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :].tolist()
    assert "Paris" in smollm2.tokenizer.decode(said)
    assert 2 in said  # and it ends its turn
    # Likely text is likely: the weights are in the right order (guessing costs ln 49152 = 10.8 nats).
    text = torch.tensor([smollm2.tokenizer("The quick brown fox jumps over the lazy dog.")["input_ids"]])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(smollm2.model(text).logits[0, :-1].float(), text[0, 1:])
    assert loss < 5
