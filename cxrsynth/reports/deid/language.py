"""The language of a report: whether it is one that the rules cover."""

import re
from functools import cache

from cxrsynth.reports.deid.lexicon import LATIN, fold, foreign_words, names, vocabulary

# Scripts of languages that are covered, and letters that belong to none of them.
_HAN_KANA_HANGUL = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
_OTHER_SCRIPT = re.compile(r"[\u0370-\u1cff\u2c00-\u2dff\ua640-\uabff\ufb1d-\ufdff\ufe70-\ufefc]")
_WORD = re.compile(r"[^\W\d_]+")
_POSSESSIVE = re.compile(r"(?<=[a-z])['\u2019]s\b")  # "s" is a word in Czech and Croatian
_OTHERS = ("nl", "pl", "sv", "da", "no", "fi", "tr", "cs", "hu", "ro", "id", "hr", "ms")
# Words for `no` and `without`, of which some are names elsewhere.
_DENYING = frozenset(
    (
        *("geen", "niet", "zonder", "brak", "bez", "yok", "ingen", "inga", "inget", "utan", "ikke", "uden", "uten"),
        *("zadny", "zadna", "nincs", "fara", "tidak"),
    )
)
_MOST_WORDS = 400  # of a text that are looked at
_FEW_WORDS = 6  # too few to tell the language of, unless one is a word of no other
_ENGLISH_SHARE = 0.3  # Dutch has `is`, `in`, `of` and `as`, too


@cache
def _words(language: str) -> frozenset[str]:
    return foreign_words(language)


@cache
def _only_of_others() -> frozenset[str]:
    """Words that are common in a language without rules, and neither clinical nor common in one that has them."""
    others = frozenset().union(*(_words(language) for language in _OTHERS))
    shared = frozenset().union(*(_words(language) for language in ("en", *LATIN)))
    return frozenset(word for word in others - shared - vocabulary() - names() if len(word) > 2) | _DENYING


def language_of(text: str) -> str | None:
    """`en`, `de`, `fr`, `es`, `it`, `pt`, `vi`, or `cjk` for Chinese, Japanese and Korean; None for any other.

    A text of a few words in Latin script is taken as English, unless they are of one other language only: `Geen
    infiltraat`, `Brak zmian`. Removed as names, words that deny would turn a finding into its opposite.
    """
    if not text.isascii():
        letters = sum(map(str.isalpha, text))
        if len(_OTHER_SCRIPT.findall(text)) * 5 > letters:
            return None
        if len(_HAN_KANA_HANGUL.findall(text)) * 4 > letters:
            return "cjk"
    words = _WORD.findall(_POSSESSIVE.sub("", text[: _MOST_WORDS * 8]))[:_MOST_WORDS]
    words = [word.lower() for word in words] if text.isascii() else [fold(word) for word in words]
    is_short = len(words) < _FEW_WORDS
    english = sum(word in _words("en") for word in words)
    strange = sum(word in _only_of_others() for word in words) if is_short else 0
    if not strange and english >= len(words) * _ENGLISH_SHARE and text.isascii():
        return "en"
    known = {language: sum(word in _words(language) for word in words) for language in LATIN} | {"en": english}
    best = max(known, key=lambda language: known[language])
    if is_short:
        if strange and strange >= known[best]:
            return None
        return best if known[best] > english else "en"
    other = max(sum(word in _words(language) for word in words) for language in _OTHERS)
    if other > known[best] and not all(len(word) == 1 or word in vocabulary() for word in words):
        return None
    in_english = sum(word in vocabulary() for word in words)
    if known[best] * 6 < len(words) and in_english * 2 < len(words):
        return None
    return best if known[best] > english or in_english * 2 < len(words) else "en"
