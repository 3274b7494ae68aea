"""The fast way to search a pattern finds what the pattern finds."""

import pytest

from cxrsynth.reports.deid.identifiers import RULES
from cxrsynth.reports.deid.rules import Rule
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
