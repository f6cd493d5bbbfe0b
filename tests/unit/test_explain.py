from chat_families import BY_NAME

from posttrain.data.explain import counts, encode_row, explain, render_rich

CHATML = BY_NAME["chatml"].tokenizer
OPENING = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_shows_what_is_trained() -> None:
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho 😀"}]}
    assert explain(CHATML, row) == [(OPENING, False), ("ho 😀<|im_end|>", True), ("\n", False)]


def test_a_preference_shows_both_answers() -> None:
    row = {"prompt": "hi", "chosen": "ho", "rejected": "no"}
    assert explain(CHATML, row) == [(OPENING, False), ("ho<|im_end|>", True), (OPENING, False), ("no<|im_end|>", True)]


def test_a_plain_text_shows_what_is_trained() -> None:
    assert explain(CHATML, {"text": "so it is"}) == [("s", False), ("o it is<|im_end|>", True)]


def test_last_only() -> None:
    row = {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b")) * 2]}
    assert [text for text, trained in explain(CHATML, row) if trained] == ["b<|im_end|>", "b<|im_end|>"]
    assert [text for text, trained in explain(CHATML, row, train="last") if trained] == ["b<|im_end|>"]


def test_counts_add_up() -> None:
    encoded = [e for c in ("x", "yz") for e in encode_row(CHATML, {"prompt": "hi", "completion": c})]
    prompt = len(CHATML(OPENING, add_special_tokens=False)["input_ids"])
    assert counts(encoded) == {
        "sequences": 2,
        "tokens": 2 * prompt + 5,  # x, y and z, and two end tokens
        "trained": 5,
        "longest": prompt + 3,
    }


def test_rich_marks_the_trained_part() -> None:
    shown = render_rich([("before", False), ("answer", True)])
    assert shown.plain == "before⟦answer⟧"
    assert [(span.start, span.end, str(span.style)) for span in shown.spans] == [(0, 6, "dim"), (6, 14, "bold green")]
