"""The fast way to search a pattern finds what the pattern finds."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from cxrsynth.reports.deid.identifiers import RULES
from cxrsynth.reports.deid.rules import Rule, take_out
from cxrsynth.reports.deid.sanitize import sanitize
from tests.reports.deid.test_sanitize import CLEAN, PLANTED

_LOWERED = [rule for rule in RULES if rule.lower is not None]
_TEXTS = [text for _, planted, _ in PLANTED for text in (planted, planted.upper(), planted.title()) if text.isascii()]


@pytest.mark.parametrize("rule", _LOWERED, ids=range(len(_LOWERED)))
def test_in_lower_case_a_pattern_matches_at_the_same_places(rule: Rule) -> None:
    assert rule.lower is not None
    for text in (*_TEXTS, *CLEAN, " ".join([*_TEXTS, *CLEAN])):
        places = [match.span() for match in rule.pattern.finditer(text)]
        assert [match.span() for match in rule.lower.finditer(text.lower())] == places


def test_most_of_these_patterns_find_something() -> None:
    text = " ".join(_TEXTS)
    assert sum(rule.pattern.search(text) is not None for rule in _LOWERED) > len(_LOWERED) / 3


# Beside what the other tests plant: matches that begin inside of words and numbers, and beyond ASCII.
_ODD = [
    "x90 y/o",
    "12/3/2019/4",
    "a 1903-04-05b",
    "ÉCOLE St. Ames",
    "no.5-1234 5-1234",
    "(95 M)",
    "Ü. Nkosi, 9\u00b05'N",
]
_NARROWED = [rule for rule in RULES if rule.starts or rule.numbers or rule.hint]


@pytest.mark.parametrize("rule", _NARROWED, ids=range(len(_NARROWED)))
def test_a_rule_misses_nothing_where_it_is_not_tried(rule: Rule) -> None:
    """With and without the marks of where a match begins, and of what it has to have."""
    everywhere = replace(rule, starts=None, numbers=frozenset(), hint=None)
    texts = [*_TEXTS, *_ODD, *(f"{text} {odd}" for text, odd in zip(_TEXTS, _ODD * len(_TEXTS), strict=False))]
    for text in (*texts, re.sub(" ", "\u00a0", " ".join(texts)), " ".join(texts)):
        left, right = Counter[str](), Counter[str]()
        assert take_out(text, [rule], removed=left, people=[]) == take_out(text, [everywhere], removed=right, people=[])
        assert left == right


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        ("No effusion.\njames wilson, md", "james wilson"),
        ("Referring physician: raj patel", "raj patel"),
        ("pt: bob jones. Small effusion.", "bob jones"),
        ("45yo male named michael brown.", "michael brown"),
        ("attn: amy wu", "amy wu"),
        ("tech: bob", "bob"),
        ("Images obtained by tech amy.", "amy"),
        ("dad (bob) called", "bob"),
        ("Seen at 123 n. main st", "123 main"),
        ("Lives at 12 elm st., boston ma. Small effusion.", "12 elm boston"),
        ("Transferred from UCSF with cough.", "UCSF"),
        ("Outside image from MGH shows effusion.", "MGH"),
        ("FIN: 00456 small effusion.", "00456"),
        ("Slip no 00456", "00456"),
    ],
)
def test_names_and_places_in_lower_case_and_short_numbers(text: str, secrets: str) -> None:
    found = sanitize(text).text.lower()
    assert not [secret for secret in secrets.lower().split() if re.search(rf"\b{secret}\b", found)], found


@pytest.mark.parametrize(
    "text",
    [
        "Tech: portable technique.",
        "Patient: intubated.",
        "Contact: none.",
        "Changes of wilson disease.",
        "Fin: small effusion.",
        "Image taken by tech at bedside.",
        "2 of 3 chest tubes in place.",
        "Small left effusion (seen before).",
    ],
)
def test_what_only_looks_like_a_name_stays(text: str) -> None:
    assert sanitize(text).text == text
