"""Which script a text is in, and for the Latin one a guess of the language by its function words.

No model and no download: the script is certain, the language is a guess (marked with a question mark), good for seeing that
a third of the rows are in another language, not for sorting them.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache

from .words import words

__all__ = ["FUNCTION_WORDS", "script_and_guess"]

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
_NAMES = {"cjk": "han", "hiragana": "kana", "katakana": "kana"}


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
    guess = _guess(text) if script == "latin" else None
    return script if guess is None else f"{script}: {guess}?"


@cache
def _script(char: str) -> str | None:
    if not char.isalpha():
        return None
    first = unicodedata.name(char, "unknown").split()[0].lower()
    return _NAMES.get(first.partition("-")[0], first.partition("-")[0])


def _guess(text: str) -> str | None:
    """Return the language whose function words are most frequent: at least two of them, and more than of any other."""
    counts = Counter(words(text))
    hits = sorted(
        ((sum(counts[word] for word in listed), language) for language, listed in FUNCTION_WORDS.items()), reverse=True
    )
    (most, language), (second, _) = hits[:2]
    return language if most >= 2 and most > second else None
