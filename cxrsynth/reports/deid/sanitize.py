"""Identifiers, de-identification marks and comparisons with earlier studies, out of a report's text.

The text is for a prompt and perhaps for sharing, so what looks like an identifier goes even where it might be
none. Rules only, no model: a bare name without title, label, degree or signature ("John Smith has a
cough.") is not seen. What is left of a sentence is mended just enough to be read.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from cxrsynth.reports.deid.comparisons import (
    COMPARISON,
    COMPARISON_NEEDS,
    COMPARISON_WORD,
    COMPARISON_WORD_NEEDS,
    without_comparison_sections,
)
from cxrsynth.reports.deid.contacts import CONTACT, CONTACT_NEEDS, before_contact
from cxrsynth.reports.deid.identifiers import RULES
from cxrsynth.reports.deid.rules import HOLE, take_out
from cxrsynth.reports.deid.sentences import mend, own_header, sentences

# What ends a line or parts words, though it looks like nothing.
_BREAK = re.compile("\r\n?|[\u000b\u000c\u001c-\u001f\u0085\u2028\u2029]")
_UNSEEN = re.compile(
    "[\u0000-\u0008\u000e-\u001b\u007f-\u0084\u0086-\u009f\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb\ue000\ue001\U000e0000-\U000e01ef]"
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]{2,8}\d{0,2});")
# Hyphens, and dashes that stand for one.
_HYPHEN = re.compile("[\u2010\u2011\u2212\ufe63]|(?<=\\w)[\u2012\u2013](?=\\w)|(?<=\\d)[\u2014\u2015](?=\\d)")
_FULLWIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # of the ASCII signs
_UNEVEN = re.compile(r"[^\S\n]{2,}|[^\S \n]")
_SENTENCE_NEEDS = (*COMPARISON_NEEDS, *COMPARISON_WORD_NEEDS, *CONTACT_NEEDS)

KINDS = (
    "mark",  # traces of an earlier de-identification: ___, XXXX, [**...**], <NAME>
    "email",
    "url",
    "age",  # above 89
    "date",
    "time",
    "phone",
    "number",  # record, accession, social security and other long numbers
    "name",
    "place",  # hospital, street
    "contact",  # who signed, dictated, was informed: to the end of the sentence
    "comparison",  # a sentence, or a COMPARISON section, about an earlier study
    "comparison_word",  # "stable", "interval": the word, not the finding
)


@dataclass(frozen=True, slots=True)
class Sanitized:
    """What is left of a text, and how many things of each kind went (see `KINDS`)."""

    text: str = field(repr=False)
    removed: Mapping[str, int]


def sanitize(text: str) -> Sanitized:
    """Take out what identifies people, places and times, and what compares with earlier studies.

    Sentences that compare with an earlier study go whole; words as "stable" or "interval" go alone, so that
    the finding they qualify stays. Text with nothing to take out comes back as it was, but for white space and the
    spelling of characters: rules see composed letters, plain hyphens, ASCII for fullwidth signs, no HTML entities.
    Time grows linearly with the text.
    """
    removed: Counter[str] = Counter()
    text = take_out(_plain(text), RULES, removed=removed)
    text = without_comparison_sections(text, removed)
    lower = text.lower()
    if any(need in lower for need in _SENTENCE_NEEDS):
        text = "".join(_sentence(sentence, removed) for sentence in sentences(text))
    return Sanitized(_tidy(text), dict(removed))


def _plain(text: str) -> str:
    """One spelling of each character, and white space made even: single spaces, at most one blank line."""
    if not text.isascii() or "&" in text:
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text).translate(_FULLWIDTH)
        text = _HYPHEN.sub("-", unicodedata.normalize("NFC", text))
    return _tidy(_UNSEEN.sub("", _BREAK.sub("\n", text)))


def _tidy(text: str) -> str:
    if " ".join(text.split()) == text:
        return text
    text = _UNEVEN.sub(" ", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", text)).strip()


def _sentence(sentence: str, removed: Counter[str]) -> str:
    lower = sentence.lower()
    if any(need in lower for need in COMPARISON_NEEDS) and COMPARISON.search(lower):
        removed["comparison"] += 1
        return own_header(sentence)
    changed = HOLE.search(sentence) is not None
    if any(need in lower for need in CONTACT_NEEDS):
        contact = CONTACT.search(sentence)
        if contact:
            removed["contact"] += 1
            sentence, changed = before_contact(sentence[: contact.start()]), True
    if any(need in lower for need in COMPARISON_WORD_NEEDS):
        sentence, count = COMPARISON_WORD.subn(" ", sentence)
        if count:
            removed["comparison_word"] += count
            changed = True
    return mend(sentence) if changed else sentence
