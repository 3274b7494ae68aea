"""Patterns of ages above 89, dates and times."""

import re

from cxrsynth.reports.deid.pieces import DAY, EXACT, MONTH, UNIT, YEAR
from cxrsynth.reports.deid.rules import CAPITALS, DIGITS, Rule, make_rule

_MONTH_NEEDS = "jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec"
_MONTH_WORDS = (
    "january february march april may june july august september october november december jan feb mar "
    "apr jun jul aug sep sept oct nov dec"
)
_OLD = r"(?:9\d|1[0-4]\d)"
OLD_AGES: frozenset[str] = frozenset(f"{zero}{age}" for age in range(90, 150) for zero in ("", "0"))  # what it matches
_UNITS_OF_TEN = r"(?:[ -](?:one|two|three|four|five|six|seven|eight|nine))?"
_YEAR_WORDS = (
    r"(?:two[ -]thousand(?:[ -]and)?|twenty)[ -](?:oh[ -]\w{3,5}|one|two|three|four|five|six|seven|eight"
    r"|nine|ten|eleven"
    rf"|twelve|\w{{3,5}}teen|twenty{_UNITS_OF_TEN})"
)
_ORDINAL = (
    r"(?:(?:twenty|thirty)[ -])?(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth"
    r"|\w{3,5}teenth|twentieth|thirtieth)"
)


# One lookbehind for each word: they have a fixed length in Python.
_SOMEONE = r"(?:(?<=\bhe\s)|(?<=\bpt\s)|(?<=\bshe\s)|(?<=\bpatient\s))"
_NO_AGE = rf"(?![\w%/-]|\.\d|\s?(?:{UNIT}|kg|kilo|lbs?\b|pounds?|percent|degrees|beats|bpm|hours|days|weeks|months|cm))"


def _fraction_or_date(match: re.Match[str]) -> bool:
    """Whether a match is a date: true for 3/4, false for `lower 1/3`, `ribs 5/6`, `grade 2/6`."""
    before = match.string[max(0, match.start() - 16) : match.start()].lower()
    return not re.search(
        r"(?:lower|upper|middle|mid|distal|proximal|grade|ratio|ribs?|levels?|approximately|images?"
        r"|views?|films?|pages?"
        r"|parts?|slices?|series|score|strength|about|disc|discs)\s$",
        before,
    )


def _has_a_year(match: re.Match[str]) -> bool:
    """Whether numbers are a date: one has four digits or a zero in front. False for the ribs `3,4,5`."""
    return any(re.fullmatch(rf"{YEAR}|0[1-9]", part) for part in match.group(1, 3, 4))


def _no_count(match: re.Match[str]) -> bool:
    """Whether number words are a year: true for `two thousand nineteen`, false for `two thousand four ml`."""
    return not re.match(
        rf"\s?(?:{UNIT}|mills?|liters?|litres?|units?)", match.string[match.end() : match.end() + 12], re.I
    )


AGES: tuple[Rule, ...] = (
    make_rule(
        "age",
        r"(?<![\w.])(?:9\d|1[0-4]\d)[\s-]{0,2}(?:y\.?\s?/?o\b(?:\.(?=\s[a-z]))?"
        r"|(?:years?|yrs?|y)\b[\s-]?(?:old|of\sage|o\b)?"
        r"|y/?(?=[mf]\b))",
        digits=2,
        numbers=OLD_AGES,
        needs="y",
        starts=DIGITS,
    ),
    make_rule("age", r"(?<![\w.])(?:9\d|1[0-4]\d)\s?[MF]\b", digits=2, numbers=OLD_AGES, flags=EXACT, starts=DIGITS),
    make_rule(
        "age",
        r"\b(?:aged?|years of age)\b(?:\sof|\sis)?[:\s]\s?0?(?:9\d|1[0-4]\d)(?!\d|\.\d)y?(?:\syears\b)?",
        digits=2,
        numbers=OLD_AGES,
        needs="age",
    ),
    make_rule("age", r"\b(?:ninety|(?:one )?hundred)(?:[ -]\w{3,6})?[ -]years?(?:[ -]old)?\b", needs="ninety,hundred"),
    make_rule("age", r"\b(?:nona|(?:super)?cente)(?:genarian|narian)s?\b", needs="narian,genarian"),
    make_rule(
        "age",
        rf"(?<![\w.-]){_OLD}(?:\.\d{{1,2}})?[\s/-]{{1,3}}(?:years?|yrs?|(?:year[\s-]old\s)?(?:wo)?man\b"
        rf"|(?:fe)?male\b|lady\b|gentleman\b)",
        digits=2,
        numbers=OLD_AGES,
        needs="y,male,man,lady",
        starts=DIGITS,
    ),
    make_rule("age", rf"(?<![\w.-]){_OLD}\s?/\s?[MF]\b", digits=2, numbers=OLD_AGES, flags=EXACT, starts=DIGITS),
    make_rule(
        "age",
        rf"(?<![\w.-]){_OLD}(?:st|nd|rd|th)\s(?:birthday|year of life)",
        digits=2,
        numbers=OLD_AGES,
        needs="birthday,life",
        starts=DIGITS,
    ),
    make_rule(
        "age", r"\b(?:early |mid[ -]?|late )?(?:(?:9|10)0['\u2019]?s|nineties)\b", needs="0s,0's,0\u2019s,nineties"
    ),
    make_rule(
        "age",
        rf"\b(?:aged?|age of|age:|age is)\s{{0,2}}(?:ninety|(?:one |a )?hundred(?: "
        rf"and)?){_UNITS_OF_TEN}(?:[ -]\w{{3,7}})?(?=\W|$)",
        needs="ninety,hundred",
    ),
    make_rule("age", rf"\bninety{_UNITS_OF_TEN}[ -](?:year|yr|y)", needs="ninety"),
    make_rule(
        "age",
        rf"{_SOMEONE}(?:is|was|turned|turns)\s(?:now\s|almost\s|nearly\s|over\s|about\s)?"
        rf"(?:ninety{_UNITS_OF_TEN}+|(?:one\s|a\s)?hundred(?:[ -](?:and[ -])?(?:one|two|three|four|five|six|seven|eight"
        rf"|nine|ten|eleven|twelve))?+){_NO_AGE}",
        needs="ninety,hundred",
    ),
    make_rule(
        "age",
        rf"{_SOMEONE}(?:is|was|turned|turns)\s{_OLD}{_NO_AGE}",
        digits=2,
        numbers=OLD_AGES,
        needs="he ,patient,pt ",
    ),
)
DATES: tuple[Rule, ...] = (
    # German, without a year: "on 01.12.", "vom 3.5.". Two digits each, or a full stop after it, and no measure.
    make_rule(
        "date",
        rf"(?<![\w-])(?:(?i:on|at|since|from|until|till|before|after|dated|am|vom|seit|bis|zum|ab|den)\s(?:the\s)?"
        rf"(?:0[1-9]|[12]\d|3[01])\.(?:0[1-9]|1[0-2])|(?i:am|vom|seit|zum)\s{DAY}\.(?:0?[1-9]|1[0-2])(?=\.(?!\d)))"
        rf"(?![\w%]|[.,]\d|\s?(?i:{UNIT}|k?pa\b|l\b|liters?\b|kg\b|m\b|sec|min|x\b|\u00d7|to\b|bis\b|-)|-\d)"
        r"(?:\.(?=\s[a-z\u00e4-\u00fc]))?",
        digits=2,
        between=".",
        words="on at since from until till before after dated am vom seit bis zum ab den",
        flags=EXACT,
    ),
    make_rule(
        "date",
        rf"(?<![\d.]){YEAR}[-/.](?:0?[1-9]|1[0-2])[-/.]{DAY}(?:[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?Z?)?(?!\d)",
        digits=6,
        between="-/.",
        starts=DIGITS,
    ),
    make_rule(
        "date",
        rf"(?<![\d.])\d{{1,3}}([-/.])\d{{1,3}}\1(?:{YEAR}|\d\d)(?![\d/]|-\d|\s?(?:{UNIT}))",
        digits=4,
        between="-/.",
        starts=DIGITS,
    ),
    make_rule(
        "date",
        rf"(?<![\d.])(?:\d{{1,2}}(?:\s?/\s?\d{{1,2}}\s?/\s?|\s?-\s?\d{{1,2}}\s?-\s?)(?:{YEAR})"
        rf"|\d{{1,2}}\s/\s\d{{1,2}}\s/\s\d\d"
        rf"|{YEAR}\s?([-/])\s?(?:0?[1-9]|1[0-2])\s?\1\s?{DAY})(?!\d)",
        digits=4,
        needs=" /,/ ,- , -",
        starts=DIGITS,
    ),
    # In dots, strokes or other signs that the rules above do not look for.
    make_rule(
        "date",
        "(?<![\\d.])(\\d{1,4})([\u00b7\u2022\u2027\u2219\u30fb\uff65\\\\|_,])(\\d{1,2})\\2(\\d{1,4})(?!\\d)",
        digits=5,
        if_true=_has_a_year,
        starts=DIGITS,
    ),
    make_rule("date", rf"(?<![\w.,/-]){DAY}\s(?:0[1-9]|[12]\d|3[01])\s{YEAR}(?![\w]|[.,]\d)", digits=6, starts=DIGITS),
    make_rule("date", rf"(?<![\w/.-])\d{{1,2}}/(?:{YEAR})\b", digits=5, between="/", starts=DIGITS),
    make_rule(
        "date",
        rf"(?<![\w.-]){YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{{4,6}}|[_T-]\d{{2,12}})?(?!\d)",
        digits=8,
        starts=DIGITS,
    ),
    # Before the month with a day after it, of which `14 MAR 19` would leave the 14.
    make_rule(
        "date",
        rf"(?<![\w.]){DAY}(?:st|nd|rd|th)?(?:[\s-]?|\sof\s){MONTH}(?:[,\s-]{{0,2}}(?:{YEAR}|['\u2019]?\d\d))(?!\d)",
        digits=3,
        needs=_MONTH_NEEDS,
        starts=DIGITS,
    ),
    make_rule(
        "date",
        rf"\b{MONTH}[\s-]?{DAY}(?:st|nd|rd|th)?"
        rf"(?:(?:,\s?|\s|-)(?:{YEAR}|['\u2019]\d\d)(?!\d)|(?![\d/.]\d|\w|\s?(?:{UNIT})))",
        digits=1,
        needs=_MONTH_NEEDS,
    ),
    make_rule(
        "date",
        rf"(?<![\w.]){DAY}(?:st|nd|rd|th)?(?:[\s-]|\sof\s)(?!may\b){MONTH}(?!\w)",
        digits=1,
        needs=_MONTH_NEEDS,
        starts=DIGITS,
    ),
    make_rule(
        "date",
        rf"(?<![\w.]){DAY}(?:st|nd|rd|th)?(?:[\s-]|\sof\s)(?:May|MAY)\b",
        digits=1,
        needs="may",
        flags=EXACT,
        starts=DIGITS,
    ),
    make_rule(
        "date",
        rf"\b{MONTH}[,\s-]{{0,2}}(?:of\s)?(?:{YEAR}|['\u2019]\d\d)(?!\d)",
        digits=2,
        needs=_MONTH_NEEDS,
    ),
    make_rule(
        "date",
        rf"(?<![\w/.-])(?:0?[1-9]|1[0-2])/{DAY}(?![\d/]|\.\d|\w|-\d|\s?(?:{UNIT}|of\b|ribs?\b|the\b|interspace))",
        digits=2,
        between="/",
        if_true=_fraction_or_date,
        starts=DIGITS,
    ),
    make_rule(
        "date",
        rf"\b(?:on|dated|since|until|before|after)\s(?:the\s)?(?:0?[1-9]|1[0-2])-{DAY}"
        rf"(?![\w/-]|\.\d|\s?(?:{UNIT}|of\b|ribs?\b|views?\b|liters?\b|days?|weeks?|months?|years?|hours?))",
        digits=2,
        between="-",
        needs="on ,dated,since,until,before,after",
    ),
    make_rule("date", rf"(?<![\w./-]){YEAR}(?![\w/]|\.\d|-\d|\s?(?:{UNIT}))", digits=4, starts=DIGITS),
    make_rule(
        "date",
        r"\b(?<=in |of )(?:early |late |mid[ -])?(?:January|February|March|April|May|June|July|August|September|October"
        r"|November|December)\b|\b(?:January|February|April|August|September|October|November|December)\b"
        r"|\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b",
        needs="january,february,march,april,may,june,july,august,september,october,november,december,day",
        flags=EXACT,
    ),
    make_rule(
        "date",
        rf"\b(?:{_YEAR_WORDS}|nineteen[ -](?:hundred(?: and)?[ -]\w{{3,9}}|\w{{3,6}}ty{_UNITS_OF_TEN}))(?![\w-])",
        needs="thousand,twenty,nineteen",
        if_true=_no_count,
    ),
    make_rule(
        "date",
        r"\b(?:on|since|until|till|by|from|before|after)\s(?:the\s)?\d{1,2}(?:st|nd|rd"
        r"|th)\b(?=\s?(?:[.,;)]|$|and\b|at\b|with\b|she\b|he\b))"
        r"|\b\d{1,2}(?:st|nd|rd|th)\sof\s(?:this|last|the|next)\s(?:\w{1,10}\s)?month",
        digits=1,
        needs="st,nd,rd,th",
    ),
    make_rule(
        "date",
        rf"\b(?:the\s)?{_ORDINAL}\s(?:of\s)?{MONTH}(?!\w)|\b{MONTH}\s(?:the\s)?(?:{_ORDINAL}|{DAY}(?:st"
        rf"|nd|rd|th))(?!\w)",
        words=_MONTH_WORDS,
    ),
    make_rule("date", rf"(?<![\w.-])(?:0?[1-9]|1[0-2])[-.]{YEAR}(?![\d-])", digits=5, between="-.", starts=DIGITS),
    make_rule(
        "date",
        rf"\b{MONTH}[.\s-]{{0,2}}{DAY}[.,\s-]{{1,2}}(?:{YEAR}|['\u2019]?\d\d)(?!\d)",
        digits=3,
        needs=_MONTH_NEEDS,
    ),
    make_rule(
        "date",
        rf"(?<![\w.]){DAY}[./ -](?:I{{1,3}}|I?V|VI{{1,3}}|IX|XI{{0,2}})[./ -](?:{YEAR}|\d\d)(?!\d)",
        digits=3,
        flags=EXACT,
        starts=DIGITS,
    ),
    make_rule(
        "date",
        rf"(?<![\w.])(?:I{{1,3}}|I?V|VI{{1,3}}|IX|XI{{0,2}})([./-]){DAY}\1{YEAR}(?!\d)",
        digits=5,
        flags=EXACT,
        starts=CAPITALS,
    ),
    make_rule("date", rf"\b{YEAR}-?W\d\d(?:-\d)?\b", digits=6, needs="w", starts=DIGITS),
    make_rule(
        "date",
        r"\b(?:last|this|past|next|since)\s(?:spring|summer|fall|autumn|winter)\b(?!\s(?:down|from))"
        r"|\b(?:christmas|thanksgiving|easter|halloween|new year'?s|labor day|memorial day|independence day|boxing day"
        r"|ramadan|passover|diwali|lunar new year)(?:\s(?:day|eve))?\b",
        needs=(
            "spring,summer,fall,autumn,winter,christmas,thanksgiving,easter,halloween,day,year,ramadan,passover,diwali"
        ),
    ),
    make_rule(
        "date",
        r"\b(?:january|february|september|october|november|december|(?:mon|tues|wednes|thurs|fri|satur|sun)days?)\b",
        needs="ember,october,uary,day",
    ),
    make_rule(
        "date",
        r"\b(?:in|since|until|last|of|early|late|mid|this|from)\s(?:march|april|june|july|august)\b(?!\s(?:of\sthe))",
        needs="march,april,june,july,august",
    ),
    make_rule(
        "date",
        r"\b(?:(?<=on )|(?<=last )|(?<=this )|(?<=since ))(?:Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun)\b\.?"
        r"|\b(?:Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun)\b\.?(?=,?\s(?:\d|\ue000|\ue001))",
        needs_exact="Mon,Tue,Wed,Thu,Fri,Sat,Sun",
        flags=EXACT,
        starts=CAPITALS,
    ),
    make_rule("date", r"\b(?:in|since|of|from|circa)\s['\u2019]\d\d\b", digits=2, needs="',\u2019"),
)
TIMES: tuple[Rule, ...] = (
    make_rule(
        "time",
        r"(?<![\d:.])(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d)?(?:\s?[ap]\.m\.(?=\s[a-z,;])|\s?[ap]\.?m\b"
        r"|\s?(?:hours|hrs?|h)\b)?"
        r"(?:\s(?:[ECMP][SD]T|UTC|GMT)\b)?(?!\d)",
        digits=3,
        between=":",
        starts=DIGITS,
    ),
    make_rule(
        "time",
        r"(?<![\w.])(?:0?[1-9]|1[0-2])(?:[:.][0-5]\d)?\s?[ap](?:\.m\.(?=\s[a-z,;])|\.?m\b)",
        digits=1,
        starts=DIGITS,
    ),
    make_rule("time", r"(?<![\w.])(?:[01]\d|2[0-3]):?[0-5]\d\s?(?:hours|hrs?|h)\b", digits=4, needs="h", starts=DIGITS),
    make_rule("time", rf"(?<=\bat )(?:[01]\d|2[0-3])[0-5]\d(?!\w|[.-]\d|\s?(?:{UNIT}))", digits=4, starts=DIGITS),
    make_rule(
        "time",
        r"(?<![\w.])(?:[01]?\d|2[0-4])\s?h\s?[0-5]\d(?:\s?(?:min|m)\b)?(?!\w)",
        digits=3,
        needs="h",
        starts=DIGITS,
    ),
    make_rule("time", r"(?<![\w.])(?:[01]?\d|2[0-4])[.:][0-5]\d[ap]\b", digits=3, starts=DIGITS),
    make_rule("time", r"(?<![\w.])(?:[01]\d|2[0-3])[0-5]\dZ\b", digits=4, flags=EXACT, starts=DIGITS),
    make_rule(
        "time",
        r"\b(?:half past|quarter (?:past|to|after)) (?:\w{3,6}|\d{1,2})\b"
        r"|\b(?:\d{1,2}|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve) "
        r"o['\u2019]?clock\b(?! (?:position|axis))",
        needs="half past,quarter,clock",
    ),
    make_rule(
        "time",
        r"\b(?:exam |study |arrival )?time\s?(?:of \w{1,12})?[:\s]\s?(?:[01]?\d|2[0-4])[0-5]\d(?![\w.]\d"
        r"|\w|\s?(?:ms|msec|sec))",
        digits=3,
        needs="time",
    ),
)
