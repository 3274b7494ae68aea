"""Patterns of marks left by an earlier de-identification, and all patterns in their order."""

from itertools import chain

from cxrsynth.reports.deid.dates import AGES, DATES, TIMES
from cxrsynth.reports.deid.foreign import DAYS_OF_MONTHS, FOREIGN
from cxrsynth.reports.deid.numbers import ACCOUNTS, FORMS, LABELLED, NET, NUMBERS, PHONES, POSITIONS, ROOMS
from cxrsynth.reports.deid.people import HEADERS, NAMES, PLACES
from cxrsynth.reports.deid.pieces import EXACT
from cxrsynth.reports.deid.rules import Rule, make_rule

MARKS: tuple[Rule, ...] = (
    make_rule("mark", r"\[\*\*[^\]]{0,300}\]", needs="[**"),
    make_rule("mark", r"_{2,}+(?:[ -]?(?:years?|yrs?|y)[ -]?(?:old|/?o)\b)?", needs="__"),
    make_rule("mark", r"(?:(?<!\w)\w{1,4}-|(?<![\w])\d{0,3})X{3,}+(?:-[a-zA-Z]{1,20}){0,3}", needs="xxx", flags=EXACT),
    make_rule(
        "mark", r"<{1,2}/?[A-Z][A-Z0-9_ -]{1,40}>{1,2}|\{{1,2}[A-Z][A-Z0-9_ -]{1,40}\}{1,2}", needs="<,{", flags=EXACT
    ),
    make_rule("mark", r"\[[A-Z][A-Z0-9_ -]{2,40}\]", needs="[", flags=EXACT),
    make_rule(
        "mark",
        r"[\[<{]\s?(?:removed|deleted|name|date|time|location|hospital|phone|age|id|patient)(?:\s\w{1,20})?\s?[\]>}]"
        r"|[\[(<{]\s?(?:redacted|de-?identified|anonymi[sz]ed|withheld)\s?[\])>}]|\*{3,}+|#{3,}+|\bredacted\b",
        needs="[,(,<,{,***,###,redacted",
    ),
)
# In order: each rule sees what the rules above it have left.
RULES: tuple[Rule, ...] = tuple(
    chain(
        (*MARKS, *NET, *HEADERS, *AGES, *ACCOUNTS, *POSITIONS, *FORMS, *LABELLED),
        (*DAYS_OF_MONTHS, *DATES, *TIMES, *PLACES),
        (*FOREIGN, *ROOMS, *PHONES, *NUMBERS, *NAMES),
    )
)
