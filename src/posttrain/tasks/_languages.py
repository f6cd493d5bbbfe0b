"""Whether a text is in a given language, without a model: by its script, and by function words where several share one."""

from __future__ import annotations

import re
from collections import Counter

from ..core.errors import DataError
from ..data.language import FUNCTION_WORDS, script_and_guess

__all__ = ["in_language"]

_BETWEEN = re.compile(r"[^\w\u0300-\u036f\u0900-\u0dff]+")  # vowel signs of Indic scripts are parts of words

_WRITTEN = {  # languages not listed are written in Latin letters
    "arabic": "ar fa ur",
    "devanagari": "hi mr ne",
    "cyrillic": "bg ru uk",
    "bengali": "bn",
    "greek": "el",
    "gujarati": "gu",
    "gurmukhi": "pa",
    "han": "zh",
    "hangul": "ko",
    "hebrew": "he",
    "kana": "ja",
    "kannada": "kn",
    "malayalam": "ml",
    "tamil": "ta",
    "telugu": "te",
    "thai": "th",
}
_SCRIPT = {language: script for script, languages in _WRITTEN.items() for language in languages.split()}
_LISTED = {  # frequent words
    "fi": "ja on ei se että hän oli ovat mutta myös kun joka tai niin kuin olla voi ole tämä sen mitä minä sinä",
    "sw": "na ya wa kwa ni katika za la kuwa cha hii hiyo kama lakini pia watu yake yao sana au huo",
    "vi": "và của là các có một cho được trong người không với những này tôi để đã khi bạn",
    "pl": "i w na nie z się jest to do że jak o po co tak za od ale przez są był dla",
    "hi": "है हैं के में की और का से को नहीं यह पर भी था थे",
    "mr": "आहे आहेत आणि च्या मध्ये नाही हे ते होते या ची चा साठी",
    "ne": "छ छन् र को मा हो लाई पनि यो थियो गर्न भने हुन्छ",
    "ar": "في من على إلى أن هذا هذه التي الذي مع كان لا ما هو هي",
    "fa": "است از که این را با در به آن های می برای شما هم",
    "ur": "ہے ہیں کے میں کی اور سے کو نہیں یہ پر ایک اس کا",
    "ru": "и в не на что с он как это по но они мы все был из ы",
    "bg": "и в не на че с той като това по но те ние е са от за да се",
    "uk": "і в не на що з він як це по але вони ми є та до її й",
}
_WORDS = FUNCTION_WORDS | {language: frozenset(listed.split()) for language, listed in _LISTED.items()}
_LETTERS = {  # that a language has alone among those of its script
    "ru": "ыэё",
    "uk": "іїєґ",
    "fa": "پچژگ",
    "ur": "ٹڈڑںے",
    "ar": "ةىأإ",
    "mr": "ळ",
}


def in_language(text: str, language: str) -> bool:
    """Return whether a text is in a language; a text without letters cannot be told and counts as being in it.

    The script of most letters must be the language's; of the languages that share it, none may score higher in frequent
    words and letters of its own. Raises `DataError` for a language that is not known.
    """
    if language not in _WORDS and language not in _SCRIPT:
        raise DataError(f"ifeval: language '{language}' is not known; known are {', '.join(sorted({*_WORDS, *_SCRIPT}))}")
    script = script_and_guess(text).partition(":")[0]
    if script == "no letters":
        return True
    if script != _SCRIPT.get(language, "latin"):
        return False
    rivals = [other for other in _WORDS if _SCRIPT.get(other, "latin") == script]
    if language not in rivals:
        return True
    counts, letters = Counter(_BETWEEN.split(text.casefold())), Counter(text)
    scores = {
        other: sum(counts[word] for word in _WORDS[other]) + sum(letters[letter] for letter in _LETTERS.get(other, ""))
        for other in rivals
    }
    told = scores[language] > 0 or script != "latin" or language == "en"  # a list of names is no proof of Vietnamese
    return told and scores[language] == max(scores.values())
