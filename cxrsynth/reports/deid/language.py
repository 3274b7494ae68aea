"""The language of a report: whether it is one that the rules cover."""

import re
from functools import cache

from cxrsynth.reports.deid.lexicon import LATIN, fold, foreign_words, vocabulary

# Scripts of languages that are covered, and letters that belong to none of them.
_HAN_KANA_HANGUL = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
_OTHER_SCRIPT = re.compile(r"[\u0370-\u1cff\u2c00-\u2dff\ua640-\uabff\ufb1d-\ufdff\ufe70-\ufefc]")
_WORD = re.compile(r"[^\W\d_]+")
_OTHERS = ("nl", "pl", "sv", "da", "no", "fi", "tr", "cs", "hu", "ro", "id", "hr", "ms")
_MOST_WORDS = 400  # of a text that are looked at
_FEW_WORDS = 6  # too few to tell the language of
_ENGLISH_SHARE = 0.15


@cache
def _words(language: str) -> frozenset[str]:
    return foreign_words(language)


def language_of(text: str) -> str | None:
    """`en`, `de`, `fr`, `es`, `it`, `pt`, `vi`, or `cjk` for Chinese, Japanese and Korean; None for any other.

    A text of a few words in Latin script is taken as English.
    """
    if not text.isascii():
        letters = sum(map(str.isalpha, text))
        if len(_OTHER_SCRIPT.findall(text)) * 5 > letters:
            return None
        if len(_HAN_KANA_HANGUL.findall(text)) * 4 > letters:
            return "cjk"
    words = _WORD.findall(text[: _MOST_WORDS * 8])[:_MOST_WORDS]
    words = [word.lower() for word in words] if text.isascii() else [fold(word) for word in words]
    english = sum(word in _words("en") for word in words)
    if english >= len(words) * _ENGLISH_SHARE and text.isascii():
        return "en"
    known = {language: sum(word in _words(language) for word in words) for language in LATIN} | {"en": english}
    best = max(known, key=lambda language: known[language])
    if len(words) < _FEW_WORDS:
        return best if known[best] > english else "en"
    other = max(sum(word in _words(language) for word in words) for language in _OTHERS)
    if other > known[best] and not all(len(word) == 1 or word in vocabulary() for word in words):
        return None
    in_english = sum(word in vocabulary() for word in words)
    if known[best] * 6 < len(words) and in_english * 2 < len(words):
        return None
    return best if known[best] > english or in_english * 2 < len(words) else "en"
