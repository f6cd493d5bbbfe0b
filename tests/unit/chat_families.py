"""Chat templates in the styles of the families people use, with small tokenizers made here: no downloads."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "user assistant system\nYou are a helpful assistant. Hello there, how are you? I am fine.\n\n",
    "<think>\nfirst I add two and two\n</think>\n\nThe answer is 4. [INST] [/INST] <<SYS>> model turn ",
    "What is 12 + 30? It is 42. déjà vu naïve 東京 😀 print('x')\n    return x\n\n\n",
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A default system turn, as SmolLM2 and Qwen2 have.
CHATML_DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}" + CHATML
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set sys = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set sys = '' %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (sys if loop.first else '') + m.content.strip() }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content.strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
MISTRAL3 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Reasoning of turns before the last question is dropped; the last turn always shows a reasoning block.
QWEN3 = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}{% if m.role != 'assistant' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% else %}{% set content = m.content %}{% set reasoning = '' %}{% if '</think>' in content %}"
    "{% set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and (loop.last or reasoning) %}<think>\n{{ reasoning.strip('\n') }}\n</think>\n\n"
    "{{ content.lstrip('\n') }}{% else %}{{ content }}{% endif %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Drops all reasoning, and opens the reasoning block in the generation prompt, as DeepSeek-R1 does.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
# A header between the generation prompt and the answer, and another end for the last turn, as gpt-oss has.
HARMONY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# Roles as plain words: only the end token is special.
VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n\n"
    "{% elif m.role == 'user' %}USER: {{ m.content }}\n{% else %}ASSISTANT: {{ m.content }}{{ eos_token }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
COMMAND = (
    "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|>"
    "{{ {'system': '<|SYSTEM_TOKEN|>', 'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>'}[m.role] }}"
    "{{ m.content.strip() }}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
STRIPPING = CHATML.replace("m.content", "m.content.strip()")
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A template with the tokenizer it needs; `kind` is how the tokenizer treats spaces."""

    name: str
    template: str
    specials: tuple[str, ...]
    bos: str | None
    eos: str
    end: str  # what ends the assistant's turn
    system: bool = True
    kind: str = "bytes"
    rstrip: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> Any:
        return _tokenizer(self)


@cache
def _tokenizer(family: Family) -> Any:
    after: dict[str, Any] = {}
    if family.kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:  # a space before the first word: once ("first"), or after every special token too ("prepend", the older way)
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        if family.kind == "first":
            after = {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first", split=False)}
        else:
            after = {"normalizer": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])}
        # Trained with words apart, so that no token holds the end of one and the beginning of the next.
        tokenizer.pre_tokenizer = None if family.name.endswith("merging") else pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = sorted(set("".join(CORPUS)) | {"▁"})
    byte_tokens = [] if family.kind == "bytes" else ["<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, special_tokens=byte_tokens, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    if family.kind != "bytes":
        tokenizer.pre_tokenizer = None
    for part, value in after.items():
        setattr(tokenizer, part, value)
    names = dict.fromkeys([*family.specials, family.eos, *([family.bos] if family.bos else [])])
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True, rstrip=name in family.rstrip) for name in names]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.eos,  # as so many models have it
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = family.template
    fast.name_or_path = family.name
    return fast


IM = ("<|im_start|>", "<|im_end|>")
COMMAND_PARTS = ("<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")
FAMILIES = [
    Family("chatml", CHATML, IM, None, "<|im_end|>", "<|im_end|>"),
    Family("chatml-default-system", CHATML_DEFAULT, IM, "<|im_start|>", "<|im_end|>", "<|im_end|>"),
    Family("llama2", LLAMA2, (), "<s>", "</s>", "</s>", kind="first"),
    Family("llama2-older", LLAMA2, (), "<s>", "</s>", "</s>", kind="prepend"),
    Family("llama2-merging", LLAMA2, (), "<s>", "</s>", "</s>", kind="first"),
    Family("llama2-older-merging", LLAMA2, (), "<s>", "</s>", "</s>", kind="prepend"),
    Family(
        "llama3",
        LLAMA3,
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|eot_id|>",
    ),
    Family(
        "gemma", GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>", "<end_of_turn>", system=False, kind="first"
    ),
    Family(
        "phi3",
        PHI3,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        None,
        "<|endoftext|>",
        "<|end|>",
        rstrip=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    Family("mistral3", MISTRAL3, ("[INST]", "[/INST]"), "<s>", "</s>", "</s>", system=False, kind="first"),
    Family("zephyr", ZEPHYR, (), "<s>", "</s>", "</s>", kind="first"),
    Family("qwen3", QWEN3, IM, None, "<|im_end|>", "<|im_end|>"),
    Family("r1", R1, ("<|User|>", "<|Assistant|>"), "<s>", "</s>", "</s>", system=False),
    Family("vicuna", VICUNA, (), "<s>", "</s>", "</s>", kind="first"),
    Family("command", COMMAND, COMMAND_PARTS, "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    Family("stripping", STRIPPING, IM, None, "<|im_end|>", "<|im_end|>"),
]
HARMONY_PARTS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
BY_NAME = {
    **{family.name: family for family in FAMILIES},
    "harmony": Family("harmony", HARMONY, HARMONY_PARTS, None, "<|return|>", "<|return|>"),
}
