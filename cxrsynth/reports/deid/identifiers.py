"""Patterns of identifiers of people, places and times, and of marks left by an earlier de-identification."""

import re

from cxrsynth.reports.deid.rules import HOLES, Rule, make_rule

# A letter that is not lower case: a capital, or a letter of a script without case.
_CAPITAL = r"[^\W\d_a-zß-öø-ÿ]"
_STOP = (
    r"(?i:at|on|in|by|with|the|was|were|is|are|from|and|or|for|to|of|who|will|has|have|had|about|regarding|via|this"
    r"|that|no|there|if|as|per|over|after|before|findings?|heart|lungs?|chest|pleural|mild|moderate|left|right"
    r"|not|time|phone|telephone|pager|drs?|mrs?|ms|mx|miss|prof|professor|doctors?)(?![\w'\u2019-])"
)
_WORD = rf"(?:(?:{_CAPITAL}\.\s?){{1,3}}|(?!{_STOP}){_CAPITAL}[\w'\u2019-]{{0,60}})"
_PARTICLES = r"(?:(?i:van|von|der|den|de|da|dos|del|di|la|le|el|al|bin|ibn|ter|ten)\s+){0,3}"
_NAME = rf"{_PARTICLES}{_WORD}(?:\s*+{_PARTICLES}{_WORD}){{0,3}}(?:,?\s(?:Jr|Sr|II|III)\b\.?)?"
# In text without capitals any word may be the name.
_SMALL_NAME = rf"(?!{_STOP})[^\W\d_][\w'\u2019-]{{0,60}}(?:\s(?!{_STOP})[^\W\d_][\w'\u2019-]{{0,60}}){{0,2}}"
# DR, MR and MS are also digital radiography, magnetic resonance and multiple sclerosis.
_NO_PERSON = r"(?!(?i:imag|exam|scan|stud|angio|brain|spine|cardiac|chest|abd|radiog|system|detect|plate|view|portab))"
_TITLE = (
    r"(?<![\w'\u2019-])(?:"
    r"(?i:drs?|mrs?|ms|mx|prof)\.\s*|(?:Drs?|Mrs?|Ms|Mx|Miss|Prof)\s|(?:(?i:professor|doctors?)|dr|DR|MRS)\s"
    rf"|(?:MR|MS|mr|ms)\s(?={_CAPITAL})"
    rf")(?:(?i:med|dent|vet|phil|jur|habil|univ)\.\s*){{0,4}}{_NO_PERSON}"
)
_ROLE = (
    r"(?i:resident|attending|radiologist|physician|technologist|technician|surgeon|nurse|practitioner|fellow"
    r"|provider)s?"
)
_DEGREE = r"(?:M\.\s?D\b\.?|D\.\s?O\b\.?|R\.\s?N\b\.?|Ph\.?\s?D\b\.?|(?:MD|DO|RN|NP|PA-C|MBBS|FRCR|FACR|CRNA|DNP)\b)"
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)\b\.?"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_YEAR = r"(?:19|20)\d\d"
_UNIT = r"(?:mm|cm|ml|cc|mg|hu|kvp?|mas?|gy|degrees?|percent)\b|%"


def _fraction_or_date(match: re.Match[str]) -> bool:
    """Whether a match is a date: true for 3/4, false for `lower 1/3`, `ribs 5/6`, `grade 2/6`."""
    before = match.string[max(0, match.start() - 16) : match.start()].lower()
    return not re.search(
        r"(?:lower|upper|middle|mid|distal|proximal|grade|ratio|ribs?|levels?|approximately)\s$", before
    )


_LABELLED = (
    r"\b(?:mrn|mr\s?#|ssn|nhs|accession|acc(?:ession)?\s?#|medical\srecord|social\ssecurity|(?:patient|pat|pt|study|exam"
    r"|order|case|visit|encounter|account|acct|record|requisition|insurance|policy|chart|hospital|licen[cs]e|serial)"
    r"\s?(?:number|num\b|no\b\.?|#|id\b)"
    r"|(?:patient|pt|account|acct|record|encounter)\s?:|(?<![\w-])id\s?(?:number|no\b\.?|[#:]))"
    r"\s?(?:number|num\b|no\b\.?|#|id\b)?\s?[:#=.]?\s?(?:is\s|was\s)?#?(?:[a-z]{1,6}[- ]?)?\d[\w-]{0,60}"
    rf"(?:\s\d{{2,4}}(?![\w/-]|\.\d|\s?(?:{_UNIT}))){{0,4}}"  # written in groups: 943 476 5919
)
_EXACT = 0
# In order: each rule sees what the rules above it have left.
RULES: tuple[Rule, ...] = (
    make_rule("mark", r"\[\*\*[^\]]{0,300}\]", needs="[**"),
    make_rule("mark", r"_{2,}+(?:[ -]?(?:years?|yrs?|y)[ -]?(?:old|/?o)\b)?", needs="__"),
    make_rule("mark", r"(?:(?<!\w)\w{1,4}-|(?<![\w])\d{0,3})X{3,}+(?:-[a-zA-Z]{1,20}){0,3}", needs="xxx", flags=_EXACT),
    make_rule(
        "mark", r"<{1,2}/?[A-Z][A-Z0-9_ -]{1,40}>{1,2}|\{{1,2}[A-Z][A-Z0-9_ -]{1,40}\}{1,2}", needs="<,{", flags=_EXACT
    ),
    make_rule("mark", r"\[[A-Z][A-Z0-9_ -]{2,40}\]", needs="[", flags=_EXACT),
    make_rule(
        "mark",
        r"[\[<{]\s?(?:removed|deleted|name|date|time|location|hospital|phone|age|id|patient)(?:\s\w{1,20})?\s?[\]>}]"
        r"|[\[(<{]\s?(?:redacted|de-?identified|anonymi[sz]ed|withheld)\s?[\])>}]|\*{3,}+|#{3,}+|\bredacted\b",
        needs="[,(,<,{,***,###,redacted",
    ),
    make_rule("email", r"[^\s@<>(),;:]{0,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){0,6}", needs="@"),
    make_rule("url", r"(?:\b(?:https?|ftp|file)://|\bwww\.)\S{0,2000}(?<![.,;:)!?])", needs="://,www."),
    make_rule(
        "url",
        r"(?<![\w.-])(?:[\w-]{1,63}\.){1,6}(?:com|org|edu|net|gov|info|io)\b(?:/\S{0,500}(?<![.,;:)]))?",
        needs=".com,.org,.edu,.net,.gov,.info,.io",
    ),
    make_rule(
        "age",
        r"(?<![\w.])(?:9\d|1[0-4]\d)[\s-]{0,2}(?:y\.?\s?/?o\b(?:\.(?=\s[a-z]))?"
        r"|(?:years?|yrs?|y)\b[\s-]?(?:old|of\sage|o\b)?"
        r"|y/?(?=[mf]\b))",
        digits=2,
        needs="y",
    ),
    make_rule("age", r"(?<![\w.])(?:9\d|1[0-4]\d)\s?[MF]\b", digits=2, flags=_EXACT),
    make_rule(
        "age",
        r"\b(?:aged?|years of age)\b(?:\sof|\sis)?[:\s]\s?0?(?:9\d|1[0-4]\d)(?!\d|\.\d)y?(?:\syears\b)?",
        digits=2,
        needs="age",
    ),
    make_rule("age", r"\b(?:ninety|(?:one )?hundred)(?:[ -]\w{3,6})?[ -]years?(?:[ -]old)?\b", needs="ninety,hundred"),
    make_rule("age", r"\b(?:nona|cente)(?:genarian|narian)\b", needs="narian,genarian"),
    make_rule("number", _LABELLED, digits=1, needs="mrn,ssn,nhs,acc,record,secur,num,#,id:,id ,patient:,pt:,encounter"),
    # "No" is in every report: tried only on text with enough digits for a number.
    make_rule("number", _LABELLED, digits=3, needs="no ,no."),
    make_rule(
        "date",
        rf"(?<![\d.]){_YEAR}[-/.](?:0?[1-9]|1[0-2])[-/.]{_DAY}(?:[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?Z?)?(?!\d)",
        digits=6,
        between="-/.",
    ),
    make_rule(
        "date",
        rf"(?<![\d.])\d{{1,3}}([-/.])\d{{1,3}}\1(?:{_YEAR}|\d\d)(?![\d/]|-\d|\s?(?:{_UNIT}))",
        digits=4,
        between="-/.",
    ),
    make_rule(
        "date",
        rf"(?<![\d.])(?:\d{{1,2}}(?:\s?/\s?\d{{1,2}}\s?/\s?|\s?-\s?\d{{1,2}}\s?-\s?)(?:{_YEAR})|\d{{1,2}}\s/\s\d{{1,2}}\s/\s\d\d"
        rf"|{_YEAR}\s?([-/])\s?(?:0?[1-9]|1[0-2])\s?\1\s?{_DAY})(?!\d)",
        digits=4,
        needs=" /,/ ,- , -",
    ),
    make_rule("date", rf"(?<![\w/.-])\d{{1,2}}/(?:{_YEAR})\b", digits=5, between="/"),
    make_rule("date", rf"(?<![\d.]){_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{{4,6}})?(?!\d)", digits=8),
    make_rule(
        "date",
        rf"\b{_MONTH}[\s-]?{_DAY}(?:st|nd|rd|th)?"
        rf"(?:(?:,\s?|\s|-)(?:{_YEAR}|['\u2019]\d\d)(?!\d)|(?![\d/.]\d|\w|\s?(?:{_UNIT})))",
        digits=1,
        needs="jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec",
    ),
    make_rule(
        "date",
        rf"(?<![\w.]){_DAY}(?:st|nd|rd|th)?(?:[\s-]?|\sof\s){_MONTH}(?:[,\s-]{{0,2}}(?:{_YEAR}|['\u2019]?\d\d))(?!\d)",
        digits=3,
        needs="jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec",
    ),
    make_rule(
        "date",
        rf"(?<![\w.]){_DAY}(?:st|nd|rd|th)?(?:[\s-]|\sof\s)(?!may\b){_MONTH}(?!\w)",
        digits=1,
        needs="jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec",
    ),
    make_rule(
        "date", rf"(?<![\w.]){_DAY}(?:st|nd|rd|th)?(?:[\s-]|\sof\s)(?:May|MAY)\b", digits=1, needs="may", flags=_EXACT
    ),
    make_rule(
        "date",
        rf"\b{_MONTH}[,\s-]{{0,2}}(?:of\s)?(?:{_YEAR}|['\u2019]\d\d)(?!\d)",
        digits=2,
        needs="jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec",
    ),
    make_rule(
        "date",
        rf"(?<![\w/.-])(?:0?[1-9]|1[0-2])/{_DAY}(?![\d/]|\.\d|\w|-\d|\s?(?:{_UNIT}|of\b|ribs?\b|the\b|interspace))",
        digits=2,
        between="/",
        if_true=_fraction_or_date,
    ),
    make_rule("date", rf"(?<![\w./-]){_YEAR}(?![\w/]|\.\d|-\d|\s?(?:{_UNIT}))", digits=4),
    make_rule(
        "date",
        r"\b(?<=in |of )(?:early |late |mid[ -])?(?:January|February|March|April|May|June|July|August|September|October"
        r"|November|December)\b|\b(?:January|February|April|August|September|October|November|December)\b"
        r"|\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b",
        needs="january,february,march,april,may,june,july,august,september,october,november,december,day",
        flags=_EXACT,
    ),
    make_rule(
        "time",
        r"(?<![\d:.])(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d)?(?:\s?[ap]\.m\.(?=\s[a-z,;])|\s?[ap]\.?m\b|\s?(?:hours|hrs?|h)\b)?"
        r"(?:\s(?:[ECMP][SD]T|UTC|GMT)\b)?(?!\d)",
        digits=3,
        between=":",
    ),
    make_rule("time", r"(?<![\w.])(?:0?[1-9]|1[0-2])(?:[:.][0-5]\d)?\s?[ap](?:\.m\.(?=\s[a-z,;])|\.?m\b)", digits=1),
    make_rule("time", r"(?<![\w.])(?:[01]\d|2[0-3]):?[0-5]\d\s?(?:hours|hrs?|h)\b", digits=4, needs="h"),
    make_rule("time", rf"(?<=\bat )(?:[01]\d|2[0-3])[0-5]\d(?!\w|[.-]\d|\s?(?:{_UNIT}))", digits=4),
    make_rule(
        "phone",
        r"\b(?:tele)?(?:phone|fax|pager|beeper|cell|mobile|tel|ext(?:ension)?|page|call(?:back)?)\b[.#:]?\s?"
        r"(?:number|no\b\.?|#)?[:\s]{0,2}(?:is\s|at\s)?(?=[\d(+x])[\d(+x][\d().x -]{1,24}(?<=\d)(?!\s?(?:am|pm|"
        + _UNIT
        + "))",
        digits=3,
        needs="phone,fax,pag,beep,cell,mobile,tel,ext,call",
    ),
    make_rule(
        "phone",
        r"(?<![\w.+])(?:\+?\d{1,3}[\s.-]?)?(?:\(\d{3}\)|\d{3})[\s.-]?\d{3}[\s.-]\d{4}(?!\d)(?:,?\s?(?:x|ext\.?|extension)\s?\d{1,6})?",
        digits=7,
    ),
    make_rule(
        "phone",
        r"(?<![\w.+-])\+\d[\d\s().-]{6,20}\d|(?<![\w.-])\d{3}[-.]\d{4}(?!\d)|\bx\s?\d{1,2}-?\d{4}\b",
        digits=5,
    ),
    make_rule(
        "number",
        r"(?<![\w.])\d{3}-\d{2}-\d{4}(?!\d)|(?<![\w.])\d{1,3}(?:\.\d{1,39}){3,30}(?!\d)",
        digits=4,
        between="-.",
    ),
    # A token of letters with four digits in a row, or five in all, that is neither a size nor a range of vertebrae.
    make_rule(
        "number",
        r"(?<![\w.-])(?!(?:[tcls]\d{1,2}[-/]?)++(?![\w-]))(?!\d++-?(?:mm|cm|ml|cc|mg|kvp?|mas?|hu)\b)(?![\w-]{0,40}\d(?:mm|cm)(?![a-z]))"
        r"(?=[\w-]*+(?<=[\w-]))(?=[\d_-]*+[^\W\d_])(?=(?:[^\W\d]|-)*+\d(?:[\w-]*?\d{4}|\d{3}|(?:(?:[^\W\d]|-)*+\d){4}))[\w-]++",
        digits=4,
    ),
    make_rule("number", r"(?<![\d.])\d{6,}+(?:[-/]\d++)*+|(?<![\w.-])\d{2,}+(?:-\d{2,}+){2,}+", digits=6),
    make_rule(
        "name",
        rf"{_TITLE}(?:{HOLES}|{_NAME}(?:(?:,?\s(?i:and|&)\s|,\s){_NAME}){{0,4}}(?:['\u2019]s\b)?|{_SMALL_NAME})",
        needs="dr,mr,ms,mx,prof,miss,doctor",
        flags=_EXACT,
    ),
    make_rule(
        "name",
        r"\b(?i:(?:patient|pt|physician|provider|radiologist|doctor|attending|resident|referrer|referring|ordering|mother"
        r"|father|spouse|guardian|relative)(?:['\u2019]s)?\s)?(?i:name)(?:\s(?i:is)\s|\s?[:=]\s?)"
        rf"(?:{_PARTICLES}{_WORD}(?:,?\s{{0,2}}{_PARTICLES}{_WORD}){{0,4}}|{_SMALL_NAME})",
        needs="name",
        flags=_EXACT,
    ),
    make_rule("name", rf"\b(?i:patient|pt)(?:\s?:\s?|,\s){_NAME}(?:,\s{_NAME})?", needs="patient,pt", flags=_EXACT),
    make_rule(
        "name",
        rf"\b(?:(?i:referring|ordering|attending|requesting)\s)?{_ROLE}\s?[:,]?\s{_NAME}(?:,\s{_NAME})?",
        needs="resident,attending,radiologist,physician,techn,surgeon,nurse,practitioner,fellow,provider",
        flags=_EXACT,
    ),
    make_rule(
        "name",
        rf"(?<![\w'\u2019-]){_WORD}(?:(?:,\s|\s)?{_PARTICLES}{_WORD}){{0,3}},?\s(?:\(?{_DEGREE}\)?,?\s?){{1,3}}",
        needs_exact="MD,M.D,M. D,DO,D.O,D. O,RN,R.N,R. N,Ph,NP,PA-C,MBBS,FRCR,FACR,CRNA",
        flags=_EXACT,
    ),
    make_rule(
        "name",
        rf"\b(?i:named|a\.k\.a\.|initials)\s{_NAME}",
        needs="named,a.k.a,initials",
        flags=_EXACT,
    ),
    make_rule(
        "place",
        rf"(?<![\w'\u2019-])(?:(?!{_STOP}){_CAPITAL}[\w'\u2019.-]{{0,40}}\s){{1,4}}(?:of\s(?:{_CAPITAL}[\w'\u2019-]{{0,40}}\s){{1,2}})?"
        r"(?:Hospital|HOSPITAL|Medical Cent(?:er|re)|MEDICAL CENTER|Clinic\b|Infirmary|Health System|University)\w{0,4}"
        rf"(?:\sof\s{_CAPITAL}[\w'\u2019-]{{0,40}}(?:\s{_CAPITAL}[\w'\u2019-]{{0,40}}){{0,2}})?",
        needs="hospital,medical,clinic,infirmary,health,university",
        flags=_EXACT,
    ),
    make_rule(
        "place",
        r"(?<![\w.])\d{1,6}\s(?:[A-Z][\w'\u2019.-]{0,40}\s){1,3}(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Drive)\b\.?",
        needs="st,ave,road,rd,lvd,boulevard,lane,drive",
        digits=1,
        flags=_EXACT,
    ),
)
