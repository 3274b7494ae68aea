"""The strict strength: sentences with a word or number that is not known to be clinical are dropped."""

import re

from cxrsynth.reports.deid.dictionary import (
    TOKEN,
    Kind,
    Sentence,
    kind_of,
    names_an_illness,
)
from cxrsynth.reports.deid.lexicon import clinical, fold, foreign_words, vocabulary

_NUMBER = re.compile(r"(?<![\w.,/+-])[\w.,/+-]++(?<=[\w.,/+-])")
_UNITS = (
    r"(?:mm|cm|m|ml|cc|l|dl|mg|g|kg|mcg|ug|hu|kvp?|mas|mgy|gy|msv|fr|french|f|c|bpm|mmhg|cmh2o|kpa|pg|ng"
    r"|u|iu|mmol|meq|lbs?|in|inch(?:es)?|degrees?|%|\u00b0|x|hours?|hrs?|h"
    r"|days?|d|weeks?|wks?|months?|mos?|years?|yrs?|y|yo|y/o|min(?:utes)?|sec(?:onds)?|s|pack|packs|view"
    r"|views|images?|liters?|litres?|gauge|ga|mhz)"
)
_ALLOWED_NUMBER = re.compile(
    rf"(?:\d{{1,3}}(?:[.,]\d{{1,3}})?(?:{_UNITS})?|\d{{1,2}}(?:st|nd|rd|th)"
    rf"|(?:[ctls]-?\d{{1,2}})(?:[-/](?:[ctls]?\d{{1,2}}))*|x\d{{1,2}}|\d{{1,2}}x|#\d"
    rf"|\d{{1,2}}[-/+]\d{{1,2}}(?:[-/]\d{{1,2}})?|\d{{1,2}}\.\d/\d{{1,2}}\.\d"
    rf"|\d{{1,3}}(?:\.\d{{1,2}})?-\d{{1,3}}(?:\.\d{{1,2}})?(?:{_UNITS})?"
    rf"|\d{{1,3}}(?:x\d{{1,3}}){{1,2}}(?:{_UNITS})?|o2|co2|[23]d|fio2|spo2|pao2|sao2|paco2|h1n1"
    rf"|t[1-4][a-c]?(?:n[0-3](?:m[01])?)?"
    r"|fev1|fvc|pco2|po2|hco3|\d{1,2}[rl]|covid-19|sars-cov-2|[1-4][a-d]|\d{1,3}-(?:year|yr|month|mo|week|day|hour)s?(?:-olds?)?|[iv]{1,4}[a-c]?"
    r"|(?:[6-9]\d|[12]\d\d)/(?:[3-9]\d|1[0-4]\d)"  # of blood pressure, and no date
    r"|g\d{1,2}|p\d|[abp]\d{1,2}|s[1-5]|l[1-5]|t\d{1,2}|c[1-7]|ica\d|v\d|q\d|(?:\d-)?lead)",
    re.IGNORECASE,
)
_UNIT_NEXT = re.compile(rf"\s?-?(?:{_UNITS})(?![\w])", re.IGNORECASE)
_MEASURED = re.compile(
    r"\b(?:bnp|platelets?|wbc|ferritin|d-?dimer|ldh|troponin|dose|flow|rate|pressure|volume|weight"
    r"|height|count|score|units?|hounsfield|kvp|mas|dlp|creatinine|glucose|lactate|procalcitonin|ck|psa"
    r"|cea"
    r"|sodium|potassium|hematocrit|hemoglobin)\b",
    re.IGNORECASE,
)
_LONG_NUMBER = re.compile(r"\d{4,}|\d{1,3}(?:,\d{3})+")
_HAN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
_LONG_SHOUT = 4
_LIST_NUMBER = re.compile(r"\s*\d{1,2}[.)](?=[A-Z][a-z])")  # without the usual blank: "2.No effusion."


def is_clinical(sentence: str, language: str) -> bool:
    """Whether every word and number of a sentence is of the clinical vocabulary, or in a form that is allowed.

    False for any sentence in Chinese, Japanese or Korean, for which there is no vocabulary.
    """
    if _HAN.search(sentence):
        return False
    if number := _LIST_NUMBER.match(sentence):
        sentence = sentence[number.end() :]
    tokens = list(TOKEN.finditer(sentence))
    parsed = Sentence(sentence, tokens, [kind_of(token[0]) for token in tokens], language)
    if not all(_is_known(parsed, index, language) for index in range(len(tokens))):
        return False
    numbers = [number for number in _NUMBER.finditer(sentence) if any(map(str.isdigit, number[0]))]
    measured = _MEASURED.search(sentence) if numbers else None
    return all(_is_measure(number, measured) for number in numbers)


def _is_known(sentence: Sentence, index: int, language: str) -> bool:
    token, kind = sentence.tokens[index], sentence.kinds[index]
    word, folded = token[0], fold(token[0])
    if len(word) == 1 or folded in clinical("core") or _beside_a_digit(token, sentence.text):
        return True
    if language != "en" and folded in foreign_words(language):
        return True
    if folded in clinical("abbreviations"):
        return True
    if kind is not Kind.WORD and names_an_illness(sentence.tokens, index, sentence.text):
        return True
    if kind in (Kind.NAME, Kind.UNKNOWN) or (kind is Kind.EPONYM and folded not in vocabulary()):
        return False
    # `T-spine` has the capital of its letter.
    if kind is Kind.BRAND or word[0].islower() or (word[1] == "-" and word[2:].islower()):
        return True
    opens = sentence.opens(index) or sentence.text[max(0, token.start() - 1) : token.start()] in ("(", "[")
    if word.isupper() and len(word) < _LONG_SHOUT and not sentence.shouted:
        return opens and folded in vocabulary()
    if kind in (Kind.BOTH, Kind.EPONYM):
        return opens or sentence.shouted or sentence.is_headline
    if opens or word.isupper() or folded in clinical("heads") or folded in clinical("words"):
        return True
    return sentence.is_headline


def _beside_a_digit(token: re.Match[str], sentence: str) -> bool:
    """A part of `26mm` or `SARS-CoV-2`, which is judged as a number."""
    start, end = token.span()
    return sentence[max(0, start - 1) : start].isdigit() or sentence[end : end + 1].isdigit()


def _is_measure(number: re.Match[str], measured: re.Match[str] | None) -> bool:
    """Whether a number is short, has a unit, or stands after the first name of a measure in the sentence."""
    written = number[0].strip(".,/-")
    if _ALLOWED_NUMBER.fullmatch(written):
        return True
    is_after = measured is not None and measured.end() <= number.start()
    if _LONG_NUMBER.fullmatch(written):
        return is_after or _UNIT_NEXT.match(number.string, number.end()) is not None
    return is_after and written.replace(".", "").isdigit()
