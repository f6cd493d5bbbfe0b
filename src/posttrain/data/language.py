"""Which script a text is in, and for the Latin one a guess of the language by its function words.

No model and no download: the script is certain, the language is a guess (marked with a question mark), good for seeing that
a third of the rows are in another language, not for sorting them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import chain

from .words import words

__all__ = ["FUNCTION_WORDS", "LANGUAGES", "language_of", "script_and_guess", "share_in"]

_LISTED = {
    "en": "the of and to in is that it for was with as are this be on not have you what which how a an he she they his her "
    "at by from if has had will can does many much each",
    "de": "der die das und ist nicht ein eine zu den mit von auf für sich auch wie wird sind ich er sie es im am wenn hat "
    "haben einen einem jede jeden viele aus",
    "fr": "le la les des et est une du que qui dans pour pas sur au avec ce il sont vous un à l d elle a combien par chaque "
    "plus si en son sa ses ont de",
    "es": "el la los las y es una que en por con para no se del un lo como su más de al cada si hay cuántos tiene cuando",
    "it": "il la di che è per un una non sono con del della gli le si nel come più anche ogni se ha quanti al i",
    "pt": "o os é um uma que não com para do da em se por mais como dos das de cada ele ela tem quantos ao",
    "nl": "de het een en van is niet dat op te zijn met voor er aan ook die wordt bij naar hij ze heeft hoeveel elke als",
}
FUNCTION_WORDS = {language: frozenset(listed.split()) for language, listed in _LISTED.items()}
LANGUAGES = {  # code -> script; all but those with function words are told by their script alone
    **dict.fromkeys(FUNCTION_WORDS, "latin"),
    "zh": "han",
    "ja": "kana",
    "ko": "hangul",
    "ru": "cyrillic",
    "el": "greek",
    "ar": "arabic",
    "he": "hebrew",
    "hi": "devanagari",
    "bn": "bengali",
    "ta": "tamil",
    "th": "thai",
}
_NAMES = {"cjk": "han", "ideographic": "han", "hiragana": "kana", "katakana": "kana"}
# Code, formulas (no blank before a closing dollar and no digit behind it: "$5 or $6" is prose), commands, tags, addresses.
_NO_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$(?=\S)[^$\n]*(?<=\S)\$(?!\d)|\\\[.*?\\\]|\\\(.*?\\\)|\\[A-Za-z]+"
    r"|</?[A-Za-z][\w-]*/?>|https?://\S+",
    re.DOTALL,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


def script_and_guess(text: str) -> str:
    """Return the script of most letters (`cyrillic`, `han`, `kana`, …); of Latin text `latin: de?`, `latin` if unguessed."""
    scripts: Counter[str] = Counter()
    for char, count in Counter(text).items():
        if (script := _script(char)) is not None:
            scripts[script] += count
    if not scripts:
        return "no letters"
    if 20 * scripts["kana"] >= scripts.total():  # written together with Han
        return "kana"
    script = max(sorted(scripts), key=lambda name: scripts[name])
    guess = _guess(words(text)) if script == "latin" else None
    return script if guess is None else f"{script}: {guess}?"


def language_of(text: str) -> str | None:
    """Return what can be said of a text's language: a guessed code of Latin script, else the script; None: no letters."""
    script, _, guess = script_and_guess(text).partition(": ")
    return None if script == "no letters" else guess.rstrip("?") or script


def share_in(text: str, target: str) -> float | None:
    """Return the share of a text's words that are in the target, a code of `LANGUAGES` or a script; None: no words.

    A word counts by its script. Where the target is guessed by function words (English, German, …) a Latin word also has to
    stand in a sentence that is not guessed to be in another of those languages; a sentence without a guess goes with the
    text as a whole, and a text without one with the target. Han counts as Japanese in sentences that have kana, and as
    Chinese in those that have none. Not counted at all: code, formulas between dollar signs or brackets, commands, tags,
    addresses, words with digits in them, and single letters of the Latin and Greek alphabets (variables).
    """
    sentences = [words(_without_marks(sentence)) for sentence in _SENTENCE.split(_NO_PROSE.sub(" ", text))]
    script = LANGUAGES.get(target, target)
    whole = _guess_of_prose(chain.from_iterable(sentences))
    matching = total = 0
    for sentence in sentences:
        counts = Counter(map(_script_of_word, sentence))
        del counts[None]
        total += counts.total()
        japanese = 20 * counts["kana"] >= counts.total()
        if script == "latin":
            guess = _guess_of_prose(sentence) or whole or target
            matching += counts["latin"] if target in (guess, "latin") else 0
        elif script == "kana":
            matching += counts["kana"] + (counts["han"] if japanese else 0)
        elif script == "han":
            matching += 0 if japanese else counts["han"]
        else:
            matching += counts[script]
    return matching / total if total else None


def _guess_of_prose(found: Iterable[str]) -> str | None:
    """Guess as ever, but not by single letters: where one reasons with variables "a" and "d" are no French."""
    return _guess([word for word in found if len(word) > 1])


def _without_marks(text: str) -> str:
    """Return a text without the marks that do not make one letter with what they stand on: they would cut words in two."""
    return "".join(char for char in unicodedata.normalize("NFKC", text) if unicodedata.category(char)[0] != "M")


def _script_of_word(word: str) -> str | None:
    """Return the script of a word of letters alone; None for one that does not count."""
    script = _script(word[0]) if word.isalpha() else None
    return None if len(word) == 1 and script in ("latin", "greek") else script


@cache
def _script(char: str) -> str | None:
    if not char.isalpha():
        return None
    first = unicodedata.name(char, "unknown").split()[0].lower()
    return _NAMES.get(first.partition("-")[0], first.partition("-")[0])


def _guess(found: list[str]) -> str | None:
    """Return the language whose function words are most frequent: at least two of them, and more than of any other."""
    counts = Counter(found)
    hits = sorted(
        ((sum(counts[word] for word in listed), language) for language, listed in FUNCTION_WORDS.items()), reverse=True
    )
    (most, language), (second, _) = hits[:2]
    return language if most >= 2 and most > second else None
