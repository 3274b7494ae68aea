"""Characters in other spellings: entities, invisible characters, digits and slashes of other kinds."""

import html

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrsynth.reports.deid.sanitize import STRENGTHS, sanitize
from cxrsynth.reports.deid.spelling import in_plain_spelling

# What entities, invisible characters, accents and separators are made of, and words that rules react to.
PIECES = [
    *("&", "amp;", "lt;", "nbsp;", "#8", "1;", "#x51;", "#38;", "&amp;", "\uff06", "\uff1b", "\uff23"),
    *("\u200b", "\ufeff", "\u00ad", "\u0301", "\u0338", "\ue000", "\r", "\n", " ", "\u2028", "\u00a0"),
    *("\u2460", "\u2469", "\u00b2", "\u0663", "\u30fb", "\u2044", "\u2010", "\u2013", "\\", "|", ",", "_", "/", "."),
    *("e", "Lung", "clear", "Dr. ", "Quillfeather", "MRN 12345", "03", "14", "2019", "5", "cm", " stable ", "No "),
]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("5 &amp;lt; 6 cm.", "5 < 6 cm."),
        ("5 &amp;amp;amp;amp;amp;amp;amp;amp;amp;lt; 6 cm.", "5 < 6 cm."),
        ("&am\u200bp;lt; clear", "< clear"),
        ("\uff06amp; clear", "& clear"),
        ("e\u200b\u0301coute", "\u00e9coute"),
        ("Lung&amp;nbsp;clear", "Lung clear"),
        ("Dr. &amp;#81;uillfeather agrees.", "Agrees."),
        ("Dr. &#000000000081;uillfeather agrees.", "Agrees."),
        ("Dr. &#x51uillfeather agrees.", "Agrees."),
        ("Dr.&am&#112;;nbsp;Quillfeather agrees.", "Agrees."),
        ("R&D is clear.", "R&D is clear."),
    ],
)
def test_entities_and_invisible_characters(text: str, left: str) -> None:
    assert sanitize(text).text == left


@pytest.mark.parametrize(
    "date",
    [
        *("03\u204414\u20442019", "3\u221514\u22152019", "03\u29f814\u29f82019", "03\u257114\u25712019"),
        *("03\u30fb14\u30fb2019", "2019\u30fb3\u30fb14", "03\uff6514\uff652019", "03\u00b714\u00b72019"),
        *("03\\14\\2019", "03|14|2019", "03_14_2019", "03,14,2019", "03\u202214\u202219"),
        *("\u2462/\u246d/\u2461\u24ea\u2460\u2468", "\u2461\u24ea\u2460\u2468\u5e74\u2462\u6708\u246d\u65e5"),
        *("\u00b3/\u00b9\u2074/\u00b2\u2070\u00b9\u2079", "\u0660\u0663/\u0661\u0664/\u0662\u0660\u0661\u0669"),
    ],
)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_date_goes_whole_in_any_spelling(date: str, strength: str) -> None:
    assert sanitize(f"The line was placed on {date}. No effusion.", strength=strength).text == (  # type: ignore[arg-type]
        "The line was placed. No effusion."
    )


@pytest.mark.parametrize(
    "text",
    [
        "Ribs 3,4,5 and 7,8,9 are broken.",
        "Area of 3 cm\u00b2.",
        "\u2460 Clear. \u2461 Ribs \u2462\u2463.",
        "2|3|4 of 5.",
    ],
)
def test_what_is_no_date_keeps_its_spelling(text: str) -> None:
    assert sanitize(text).text == text


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=24).map("".join))
def test_a_second_time_changes_nothing(text: str) -> None:
    plain = in_plain_spelling(text)
    assert in_plain_spelling(plain) == plain
    for strength in STRENGTHS:
        left = sanitize(text, strength=strength).text  # type: ignore[arg-type]
        assert sanitize(left, strength=strength).text == left  # type: ignore[arg-type]


@given(st.text(max_size=20), st.integers(0, 30))
def test_what_is_escaped_again_and_again_reads_as_once(text: str, times: int) -> None:
    escaped = html.escape(f"a{text}")
    for _ in range(times):
        escaped = html.escape(escaped)
    assert in_plain_spelling(escaped) == in_plain_spelling(f"a{text}")


def test_entities_in_entities_end() -> None:
    nested = "&am" * 40 + "p;" * 40
    left = in_plain_spelling(f"{nested}lt; clear")
    assert in_plain_spelling(left) == left
    assert left.endswith("clear")
