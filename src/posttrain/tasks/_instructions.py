"""What an instruction of IFEval asks of a text, as one function each: True when the text follows it.

The 25 kinds and their arguments: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models"
(arXiv 2311.07911), table 1; where the text leaves a choice, as its published checkers decide. Two need a model of language
there and are rules here: sentences end where `sentences` says, languages are told by `_languages.in_language`.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..core.errors import DataError, did_you_mean
from ._languages import in_language

__all__ = ["CHECKS", "checked", "follows", "follows_loosely", "sentences"]

Check = Callable[..., bool]
_ABBREVIATED = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|sr|jr|st|vs|etc|e\.g|i\.e|no|fig|inc|ltd|co)|(?:^|\W)[A-Za-z])\.$", re.I
)
_BULLET = re.compile(r"^\s*(?:\*[^*\n].*|-.*)$", re.MULTILINE)
_WORD_WITH_MARKS = re.compile(r"[^\W_]+(?:[-.'’&][^\W_]+)*")


def sentences(text: str) -> int:
    """Count sentences: a stop, its closing marks, white space and a capital, digit or opening mark; not abbreviations."""
    ends = re.finditer(r"[.!?…]+[\"'”’)\]*]*(?=\s+[\"'“‘(\[*#\s-]*[^\W_a-z])", text)
    inner = [m for m in ends if not _ABBREVIATED.search(text[: m.end()])]
    return len(inner) + 1 if text.strip() else 0


def _compared(count: int, relation: str, threshold: int) -> bool:
    if relation not in ("at least", "less than"):
        raise DataError(f"ifeval: the relation is {relation!r}; 'at least' and 'less than' are known")
    return count >= threshold if relation == "at least" else count < threshold


def _found(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text, re.IGNORECASE))


def keywords(text: str, *, keywords: list[str]) -> bool:
    """Every keyword stands in the text, also as a part of a word."""
    return all(_found(re.escape(word), text) for word in keywords)


def keyword_frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """A keyword stands there so often."""
    return _compared(_found(re.escape(keyword.strip()), text), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: list[str]) -> bool:
    """None of the words stands there as a word."""
    return not any(_found(rf"\b{re.escape(word)}\b", text) for word in forbidden_words)


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """A letter stands there so often, in either case."""
    return _compared(text.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(text: str, *, language: str) -> bool:
    """The text is in the language (ISO 639-1)."""
    return in_language(text, language)


def number_words(text: str, *, num_words: int, relation: str) -> bool:
    """It has so many words."""
    return _compared(len(re.findall(r"\w+", text)), relation, num_words)


def number_sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    """It has so many sentences."""
    return _compared(sentences(text), relation, num_sentences)


def _divided(text: str, pattern: str) -> list[str] | None:
    """Return the parts between dividers; None when one between two of them is empty."""
    parts = [part.strip() for part in re.split(pattern, text)]
    if not all(parts[1:-1]):
        return None
    return [part for part in parts if part]


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """So many paragraphs, divided by ***."""
    parts = _divided(text, r"\s?\*\*\*\s?")
    return parts is not None and len(parts) == num_paragraphs


def nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """So many paragraphs, divided by an empty line, of which the n-th begins with a word."""
    parts = text.split("\n\n")
    if sum(bool(part.strip()) for part in parts) != num_paragraphs or nth_paragraph > len(parts):
        return False
    words = parts[nth_paragraph - 1].split()
    begins = re.match(r"[^.,?!'\"]*", words[0].lstrip("'\"")) if words else None
    return begins is not None and begins[0].lower() == first_word.lower()


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least so many placeholders such as [address]."""
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def postscript(text: str, *, postscript_marker: str) -> bool:
    """A postscript begins with the marker; P.S. and P.P.S may be written with spaces."""
    marker = postscript_marker.strip()
    spaced = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker)
    return bool(re.search(spaced or re.escape(marker), text, re.IGNORECASE))


def number_bullets(text: str, *, num_bullets: int) -> bool:
    """Exactly so many lines that begin with * or -."""
    return len(_BULLET.findall(text)) == num_bullets


def constrained_response(text: str) -> bool:
    """One of the three sentences stands there."""
    return any(f"My answer is {word}." in text for word in ("yes", "no", "maybe"))


def number_highlights(text: str, *, num_highlights: int) -> bool:
    """At least so many parts between asterisks, single or double."""
    marked = [*re.findall(r"\*[^\n*]*\*", text), *re.findall(r"\*\*[^\n*]*\*\*", text)]
    return sum(bool(part.strip("*").strip()) for part in marked) >= num_highlights


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections, each headed by the word and a number."""
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    """The whole is JSON, also inside a code fence."""
    bare = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        json.loads(bare.strip())
    except ValueError:
        return False
    return True


def title(text: str) -> bool:
    """A title in double angle brackets stands there."""
    return any(found.strip("<>").strip() for found in re.findall(r"<<[^\n]+>>", text))


def two_responses(text: str) -> bool:
    """Two different replies, divided by six asterisks."""
    parts = _divided(text, r"\*{6}")
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """It begins with the request, word for word."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_phrase(text: str, *, end_phrase: str) -> bool:
    """It ends with the phrase."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def capital_words(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    """So many words in capitals."""
    return _compared(sum(word.isupper() for word in _WORD_WITH_MARKS.findall(text)), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    """English, in capitals only."""
    return text.isupper() and in_language(text, "en")


def english_lowercase(text: str) -> bool:
    """English, without capitals."""
    return text.islower() and in_language(text, "en")


def no_comma(text: str) -> bool:
    """No comma."""
    return "," not in text


def quotation(text: str) -> bool:
    """The whole stands in double quotation marks."""
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


CHECKS: Mapping[str, Check] = {
    "keywords:existence": keywords,
    "keywords:frequency": keyword_frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_words": number_words,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullets,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlights,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_phrase,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_words,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}


def checked(kind: str, arguments: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Return an instruction with the arguments given; raises `DataError` for an unknown one or a missing argument."""
    if kind not in CHECKS:
        raise DataError(f"{where}: unknown instruction '{kind}'{did_you_mean(kind, CHECKS)}")
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        inspect.signature(CHECKS[kind]).bind("", **given)
    except TypeError as error:
        raise DataError(f"{where}: the arguments of '{kind}' do not fit: {error}") from None
    return kind, given


def follows(text: str, kind: str, arguments: Mapping[str, Any]) -> bool:
    """Return whether a text follows an instruction; an empty one follows none."""
    return bool(text.strip()) and CHECKS[kind](text, **arguments)


def follows_loosely(text: str, kind: str, arguments: Mapping[str, Any]) -> bool:
    """Return whether the text, or what is left of it, follows: without its first line, its last, asterisks, or all of these.

    Source: Zhou et al. 2023, section 3.1: an opening such as "Sure, here it is:" should not decide.
    """
    lines = text.split("\n")
    kept = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return any(follows(variant, kind, arguments) for part in (text, *kept) for variant in (part, part.replace("*", "")))
