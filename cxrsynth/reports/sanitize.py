"""Identifiers, de-identification marks and comparisons with earlier studies, out of a report's text.

The text is for a prompt and perhaps for sharing, so what looks like an identifier goes even where it might be
none. Rules only, no model: a bare name without title, label, degree or signature ("John Smith has a
cough.") is not seen. What is left of a sentence is mended just enough to be read.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

# Stand-ins for what was taken out, from Unicode's private area; the input is cleared of them first. A noun
# (date, name, number) takes the preposition before it along; a mark can stand for any word, so does not.
_NOUN, _MARK = "\ue000", "\ue001"
_HOLES = f"[{_NOUN}{_MARK}]"

_UNSEEN = re.compile("[\u0000-\u0008\u000b-\u001f\u007f\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff\ue000\ue001]")
_UNEVEN = re.compile(r"[^\S\n]{2,}|[^\S \n]")
_NUMBER = re.compile(r"\d(?:[:/.-]?\d)*+")
_JOINTS = frozenset(":/.-")

# A letter that is not lower case: capitals, and letters of scripts without case.
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
    rf"){_NO_PERSON}"
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


@dataclass(frozen=True, slots=True)
class Sanitized:
    """What is left of a text, and how many things of each kind went (see `KINDS`)."""

    text: str = field(repr=False)
    removed: Mapping[str, int]


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
    "contact",  # who signed, dictated, was told: to the end of the sentence
    "comparison",  # a sentence, or a COMPARISON section, about an earlier study
    "comparison_word",  # "stable", "interval": the word, not the finding
)


def _fraction_or_date(match: re.Match[str]) -> bool:
    """True for 3/4 as a date; false for `lower 1/3`, `ribs 5/6`, `grade 2/6`."""
    before = match.string[max(0, match.start() - 16) : match.start()].lower()
    return not re.search(
        r"(?:lower|upper|middle|mid|distal|proximal|grade|ratio|ribs?|levels?|approximately)\s$", before
    )


@dataclass(frozen=True, slots=True)
class _Rule:
    kind: str
    pattern: re.Pattern[str]
    # The rule is tried only where one of these is in the lower-case text: most reports hold none.
    needs: tuple[str, ...] = ()
    needs_exact: tuple[str, ...] = ()
    # Digits the text must hold, and the characters of which one must stand between digits.
    digits: int = 0
    between: str = ""
    if_true: Callable[[re.Match[str]], bool] | None = None


@dataclass(frozen=True, slots=True)
class _Numbers:
    """How many digits a text holds, and what joins them."""

    digits: int
    joints: frozenset[str]


def _numbers(text: str) -> _Numbers:
    found = "".join(_NUMBER.findall(text))
    joints = frozenset(found) & _JOINTS
    return _Numbers(sum(map(str.isdecimal, found)), joints)


def _rule(
    kind: str,
    pattern: str,
    *,
    needs: str = "",
    needs_exact: str = "",
    digits: int = 0,
    between: str = "",
    flags: int = re.IGNORECASE,
    if_true: Callable[[re.Match[str]], bool] | None = None,
) -> _Rule:
    words, exact = tuple(needs.split(",")) if needs else (), tuple(needs_exact.split(",")) if needs_exact else ()
    return _Rule(kind, re.compile(pattern, flags), words, exact, digits, between, if_true)


_LABELLED = (
    r"\b(?:mrn|mr\s?#|ssn|nhs|accession|acc(?:ession)?\s?#|medical\srecord|social\ssecurity|(?:patient|pat|pt|study|exam"
    r"|order|case|visit|encounter|account|acct|record|requisition|insurance|policy|chart|hospital|licen[cs]e|serial)"
    r"\s?(?:number|num\b|no\b\.?|#|id\b)"
    r"|(?:patient|pt|account|acct|record|encounter)\s?:|(?<![\w-])id\s?(?:number|no\b\.?|[#:]))"
    r"\s?(?:number|num\b|no\b\.?|#|id\b)?\s?[:#=.]?\s?(?:is\s|was\s)?#?(?:[a-z]{1,6}[- ]?)?\d[\w-]{0,60}"
)
_EXACT = 0
# In order: a rule sees what the ones above it left.
_RULES = (
    _rule("mark", r"\[\*\*[^\]]{0,300}\]", needs="[**"),
    _rule("mark", r"_{2,}+(?:[ -]?(?:years?|yrs?|y)[ -]?(?:old|/?o)\b)?", needs="__"),
    _rule("mark", r"(?:(?<!\w)\w{1,4}-|(?<![\w])\d{0,3})X{3,}+(?:-[a-zA-Z]{1,20}){0,3}", needs="xxx", flags=_EXACT),
    _rule(
        "mark", r"<{1,2}/?[A-Z][A-Z0-9_ -]{1,40}>{1,2}|\{{1,2}[A-Z][A-Z0-9_ -]{1,40}\}{1,2}", needs="<,{", flags=_EXACT
    ),
    _rule("mark", r"\[[A-Z][A-Z0-9_ -]{2,40}\]", needs="[", flags=_EXACT),
    _rule(
        "mark",
        r"[\[<{]\s?(?:removed|deleted|name|date|time|location|hospital|phone|age|id|patient)(?:\s\w{1,20})?\s?[\]>}]"
        r"|[\[(<{]\s?(?:redacted|de-?identified|anonymi[sz]ed|withheld)\s?[\])>}]|\*{3,}+|#{3,}+|\bredacted\b",
        needs="[,(,<,{,***,###,redacted",
    ),
    _rule("email", r"[^\s@<>(),;:]{0,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){0,6}", needs="@"),
    _rule("url", r"(?:\b(?:https?|ftp|file)://|\bwww\.)\S{0,2000}(?<![.,;:)!?])", needs="://,www."),
    _rule(
        "url",
        r"(?<![\w.-])(?:[\w-]{1,63}\.){1,6}(?:com|org|edu|net|gov|info|io)\b(?:/\S{0,500}(?<![.,;:)]))?",
        needs=".com,.org,.edu,.net,.gov,.info,.io",
    ),
    _rule(
        "age",
        r"(?<![\w.])(?:9\d|1[0-4]\d)[\s-]{0,2}(?:y\.?\s?/?o\b(?:\.(?=\s[a-z]))?"
        r"|(?:years?|yrs?|y)\b[\s-]?(?:old|of\sage|o\b)?"
        r"|y/?(?=[mf]\b))",
        digits=2,
        needs="y",
    ),
    _rule("age", r"(?<![\w.])(?:9\d|1[0-4]\d)\s?[MF]\b", digits=2, flags=_EXACT),
    _rule(
        "age",
        r"\b(?:aged?|years of age)\b(?:\sof|\sis)?[:\s]\s?0?(?:9\d|1[0-4]\d)(?!\d|\.\d)y?(?:\syears\b)?",
        digits=2,
        needs="age",
    ),
    _rule("age", r"\b(?:ninety|(?:one )?hundred)(?:[ -]\w{3,6})?[ -]years?(?:[ -]old)?\b", needs="ninety,hundred"),
    _rule("age", r"\b(?:nona|cente)(?:genarian|narian)\b", needs="narian,genarian"),
    _rule("number", _LABELLED, digits=1, needs="mrn,ssn,nhs,acc,record,secur,num,#,id:,id ,patient:,pt:,encounter"),
    # "No" is in every report: looked at only where there are digits enough for a number.
    _rule("number", _LABELLED, digits=3, needs="no ,no."),
    _rule(
        "date",
        rf"(?<![\d.]){_YEAR}[-/.](?:0?[1-9]|1[0-2])[-/.]{_DAY}(?:[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?Z?)?(?!\d)",
        digits=6,
        between="-/.",
    ),
    _rule(
        "date",
        rf"(?<![\d.])\d{{1,3}}([-/.])\d{{1,3}}\1(?:{_YEAR}|\d\d)(?![\d/]|-\d|\s?(?:{_UNIT}))",
        digits=4,
        between="-/.",
    ),
    _rule("date", rf"(?<![\w/.-])\d{{1,2}}/(?:{_YEAR})\b", digits=5, between="/"),
    _rule("date", rf"(?<![\d.]){_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{{4,6}})?(?!\d)", digits=8),
    _rule(
        "date",
        rf"\b{_MONTH}[\s-]?{_DAY}(?:st|nd|rd|th)?(?:(?:,\s?|\s|-)(?:{_YEAR}|['\u2019]\d\d))?(?![\d/.]\d|\w|\s?(?:{_UNIT}))",
        digits=1,
        needs="jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec",
    ),
    _rule(
        "date",
        rf"(?<![\w.]){_DAY}(?:st|nd|rd|th)?(?:[\s-]?|\sof\s){_MONTH}(?:[,\s-]{{0,2}}(?:{_YEAR}|['\u2019]?\d\d))(?!\d)",
        digits=3,
        needs="jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec",
    ),
    _rule(
        "date",
        rf"(?<![\w.]){_DAY}(?:st|nd|rd|th)?(?:[\s-]|\sof\s)(?!may\b){_MONTH}(?!\w)",
        digits=1,
        needs="jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec",
    ),
    _rule(
        "date", rf"(?<![\w.]){_DAY}(?:st|nd|rd|th)?(?:[\s-]|\sof\s)(?:May|MAY)\b", digits=1, needs="may", flags=_EXACT
    ),
    _rule(
        "date",
        rf"\b{_MONTH}[,\s-]{{0,2}}(?:of\s)?(?:{_YEAR}|['\u2019]\d\d)(?!\d)",
        digits=2,
        needs="jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec",
    ),
    _rule(
        "date",
        rf"(?<![\w/.-])(?:0?[1-9]|1[0-2])/{_DAY}(?![\d/]|\.\d|\w|-\d|\s?(?:{_UNIT}|of\b|ribs?\b|the\b|interspace))",
        digits=2,
        between="/",
        if_true=_fraction_or_date,
    ),
    _rule("date", rf"(?<![\w./-]){_YEAR}(?![\w/]|\.\d|-\d|\s?(?:{_UNIT}))", digits=4),
    _rule(
        "date",
        r"\b(?<=in |of )(?:early |late |mid[ -])?(?:January|February|March|April|May|June|July|August|September|October"
        r"|November|December)\b|\b(?:January|February|April|August|September|October|November|December)\b"
        r"|\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b",
        needs="january,february,march,april,may,june,july,august,september,october,november,december,day",
        flags=_EXACT,
    ),
    _rule(
        "time",
        r"(?<![\d:.])(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d)?(?:\s?[ap]\.m\.(?=\s[a-z,;])|\s?[ap]\.?m\b|\s?(?:hours|hrs?|h)\b)?"
        r"(?:\s(?:[ECMP][SD]T|UTC|GMT)\b)?(?!\d)",
        digits=3,
        between=":",
    ),
    _rule("time", r"(?<![\w.])(?:0?[1-9]|1[0-2])(?:[:.][0-5]\d)?\s?[ap](?:\.m\.(?=\s[a-z,;])|\.?m\b)", digits=1),
    _rule("time", r"(?<![\w.])(?:[01]\d|2[0-3]):?[0-5]\d\s?(?:hours|hrs?|h)\b", digits=4, needs="h"),
    _rule("time", rf"(?<=\bat )(?:[01]\d|2[0-3])[0-5]\d(?!\w|[.-]\d|\s?(?:{_UNIT}))", digits=4),
    _rule(
        "phone",
        r"\b(?:tele)?(?:phone|fax|pager|beeper|cell|mobile|tel|ext(?:ension)?|page|call(?:back)?)\b[.#:]?\s?"
        r"(?:number|no\b\.?|#)?[:\s]{0,2}(?:is\s|at\s)?(?=[\d(+x])[\d(+x][\d().x -]{1,24}(?<=\d)(?!\s?(?:am|pm|"
        + _UNIT
        + "))",
        digits=3,
        needs="phone,fax,pag,beep,cell,mobile,tel,ext,call",
    ),
    _rule(
        "phone",
        r"(?<![\w.+])(?:\+?\d{1,3}[\s.-]?)?(?:\(\d{3}\)|\d{3})[\s.-]?\d{3}[\s.-]\d{4}(?!\d)(?:,?\s?(?:x|ext\.?|extension)\s?\d{1,6})?",
        digits=7,
    ),
    _rule(
        "phone",
        r"(?<![\w.+-])\+\d[\d\s().-]{6,20}\d|(?<![\w.-])\d{3}[-.]\d{4}(?!\d)|\bx\s?\d{1,2}-?\d{4}\b",
        digits=5,
    ),
    _rule(
        "number",
        r"(?<![\w.])\d{3}-\d{2}-\d{4}(?!\d)|(?<![\w.])\d{1,3}(?:\.\d{1,39}){3,30}(?!\d)",
        digits=4,
        between="-.",
    ),
    # A token of letters and four digits on end, or five digits in all, that is no size and no run of vertebrae.
    _rule(
        "number",
        r"(?<![\w.-])(?!(?:[tcls]\d{1,2}[-/]?)++(?![\w-]))(?!\d++-?(?:mm|cm|ml|cc|mg|kvp?|mas?|hu)\b)(?![\w-]{0,40}\d(?:mm|cm)(?![a-z]))"
        r"(?=[\w-]*+(?<=[\w-]))(?=[\d_-]*+[^\W\d_])(?=(?:[^\W\d]|-)*+\d(?:[\w-]*?\d{4}|\d{3}|(?:(?:[^\W\d]|-)*+\d){4}))[\w-]++",
        digits=4,
    ),
    _rule("number", r"(?<![\d.])\d{6,}+(?:[-/]\d++)*+|(?<![\w.-])\d{2,}+(?:-\d{2,}+){2,}+", digits=6),
    _rule(
        "name",
        rf"{_TITLE}(?:{_HOLES}|{_NAME}(?:(?:,?\s(?i:and|&)\s|,\s){_NAME}){{0,4}}(?:['\u2019]s\b)?|{_SMALL_NAME})",
        needs="dr,mr,ms,mx,prof,miss,doctor",
        flags=_EXACT,
    ),
    _rule(
        "name",
        r"\b(?i:(?:patient|pt|physician|provider|radiologist|doctor|attending|resident|referrer|referring|ordering|mother"
        r"|father|spouse|guardian|relative)(?:['\u2019]s)?\s)?(?i:name)(?:\s(?i:is)\s|\s?[:=]\s?)"
        rf"(?:{_PARTICLES}{_WORD}(?:,?\s{{0,2}}{_PARTICLES}{_WORD}){{0,4}}|{_SMALL_NAME})",
        needs="name",
        flags=_EXACT,
    ),
    _rule("name", rf"\b(?i:patient|pt)(?:\s?:\s?|,\s){_NAME}(?:,\s{_NAME})?", needs="patient,pt", flags=_EXACT),
    _rule(
        "name",
        rf"\b(?:(?i:referring|ordering|attending|requesting)\s)?{_ROLE}\s?[:,]?\s{_NAME}(?:,\s{_NAME})?",
        needs="resident,attending,radiologist,physician,techn,surgeon,nurse,practitioner,fellow,provider",
        flags=_EXACT,
    ),
    _rule(
        "name",
        rf"(?<![\w'\u2019-]){_WORD}(?:(?:,\s|\s)?{_PARTICLES}{_WORD}){{0,3}},?\s(?:\(?{_DEGREE}\)?,?\s?){{1,3}}",
        needs_exact="MD,M.D,M. D,DO,D.O,D. O,RN,R.N,R. N,Ph,NP,PA-C,MBBS,FRCR,FACR,CRNA",
        flags=_EXACT,
    ),
    _rule(
        "name",
        rf"\b(?i:named|a\.k\.a\.|initials)\s{_NAME}",
        needs="named,a.k.a,initials",
        flags=_EXACT,
    ),
    _rule(
        "place",
        rf"(?<![\w'\u2019-])(?:(?!{_STOP}){_CAPITAL}[\w'\u2019.-]{{0,40}}\s){{1,4}}(?:of\s(?:{_CAPITAL}[\w'\u2019-]{{0,40}}\s){{1,2}})?"
        r"(?:Hospital|HOSPITAL|Medical Cent(?:er|re)|MEDICAL CENTER|Clinic\b|Infirmary|Health System|University)\w{0,4}"
        rf"(?:\sof\s{_CAPITAL}[\w'\u2019-]{{0,40}}(?:\s{_CAPITAL}[\w'\u2019-]{{0,40}}){{0,2}})?",
        needs="hospital,medical,clinic,infirmary,health,university",
        flags=_EXACT,
    ),
    _rule(
        "place",
        r"(?<![\w.])\d{1,6}\s(?:[A-Z][\w'\u2019.-]{0,40}\s){1,3}(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Drive)\b\.?",
        needs="st,ave,road,rd,lvd,boulevard,lane,drive",
        digits=1,
        flags=_EXACT,
    ),
)

_CONTACT = re.compile(
    r"\b(?:(?:electronically\s)?(?:dictated|signed|read|reviewed|interpreted|transcribed|verified|approved|authenticated"
    r"|finalized|reported|performed|attested|entered|edited|typed|authored|prepared|requested|referred|ordered)"
    r"(?:\sand\s\w{1,20})?(?:\s(?:electronically|in conjunction))?\s(?:by|with)\b"
    r"|(?:electronically\s)?signed\s?:|dictated\s?:|(?:discussed|discussion)\b(?!\s(?:above|below))|d/w\b|communicated\b"
    r"|conveyed\b|relayed\b|telephoned\b|phoned\b|paged\b|notified\b|notification\b|informed\b|spoken?\b|emailed\b"
    r"|texted\b"
    r"|(?:called|faxed|reported|told|given)\s(?:\S{1,40}\s){0,4}?to\b|made\saware\b|(?:by|via)\s(?:tele)?phone\b"
    r"|(?:telephone|phone)\s(?:call|conversation))",
    re.IGNORECASE,
)
_CONTACT_NEEDS = (
    *(
        "dictat",
        "signed",
        "read ",
        "review",
        "interpret",
        "transcri",
        "verif",
        "approv",
        "authent",
        "finaliz",
        "report",
    ),
    *("perform", "attest", "entered", "edited", "typed", "author", "prepar", "request", "referr", "ordered", "discuss"),
    *("d/w", "communicat", "convey", "relay", "phone", "paged", "notif", "informed", "spoke", "mailed", "texted"),
    *("called", "faxed", "told", "given", "aware"),
)
# Words before "discussed with ...": subject and auxiliaries go with it, a finding stays.
_CONTACT_LEAD = frozenset(
    (
        *("these", "this", "the", "all", "above", "critical", "preliminary", "urgent", "important", "significant"),
        *("abnormal", "unexpected", "positive", "finding", "findings", "result", "results", "impression", "report"),
        *(
            "study",
            "case",
            "it",
            "they",
            "wet",
            "and",
            "images",
            "were",
            "was",
            "is",
            "are",
            "has",
            "have",
            "been",
            "be",
        ),
        *("verbally", "directly", "personally", "immediately", "then", "also", "i", "we", "team", "clinician", "nurse"),
        *("physician", "provider", "referring", "ordering", "which", "as", "electronically", "recommendation", ""),
        *("recommendations", _NOUN, _MARK),
    )
)
# A sentence left with nothing but these has lost what it said.
_SAYS_NOTHING = _CONTACT_LEAD | frozenset(
    (
        *("called", "call", "seen", "send", "sent", "to", "at", "in", "by", "on", "of", "please", "a", "an"),
        "department",
        "",
    )
)

_EARLIER = r"(?:prior|previous|earlier|preceding|comparison|most recent|more recent)"
# "Prior sternotomy seen on the lateral view" compares nothing.
_NOT_BETWEEN = r"(?:seen|noted|on|in|with|of|is|are|was|were|the|at|by|for|to|from|as)\s"
_STUDY = (
    r"(?:exam\w*|stud(?:y|ies)|films?|radiograph\w*|x-?rays?|x\b|ct\b|cts\b|cta\b|mri?\b|pet\b|cxrs?|scans?|images?"
    r"|imaging|reports?|views?|tomogra\w*|series|date|visit|time)"
)
# Matched against lower-case text: quicker than ignoring case.
_COMPARISON = re.compile(
    r"\bcompar(?!t)\w*"
    rf"|\b{_EARLIER}\s(?:(?!{_NOT_BETWEEN})[\w/-]{{1,20}}\s){{0,4}}?{_STUDY}"
    rf"|\b(?:last|old)\s(?:chest\s|outside\s)?{_STUDY}"
    rf"|\b{_EARLIER}\s(?:[\w/-]{{1,20}}\s){{0,2}}?{_HOLES}"
    r"|\b(?:from|to|than|since|with|versus|vs\.?|on|the|as)\s(?:the\s|a\s|any\s)?(?:priors?|previous|earlier|before)"
    rf"\s?(?:[.,;:)]|$|{_HOLES}|\b(?:of|dated|on|from|at)\b)"
    r"|\bpriors\b|\bpreviously\b|\bno longer\b|\byesterday\b|\bearlier (?:today|that|the|this|same)\b"
    r"|\bday before\b"
    r"|\b(?:\d{1,3}|one|two|three|four|five|six|several|few) (?:hours?|days?|weeks?|months?|years?)"
    r" (?:ago|earlier|prior|before)\b"
    r"|\bsince\s(?:the\s|an?\s|his\s|her\s)?"
    rf"(?:(?:prior|previous|last|earlier|most|exam|study|radiograph|film|that|at)\b|{_HOLES})"
    r"|\b(?:unchanged|stable|similar|changed?|increased?|decreased?|improved|progress\w*|larger|smaller|new|worse\w*|resolved"
    rf"|different)\s(?:in\s\w{{1,20}}\s)?(?:from|since|to|than)\s(?:the\s|that\s)?(?:(?:of|on|in|dated)\s)?(?:the\s)?{_HOLES}"
    r"|\b(?:new|unchanged|stable|changed?|increased?|decreased?|improved|worse\w*|progress\w*)\s(?:\w{1,20}\s){0,2}?since\b",
)
_COMPARISON_NEEDS = (
    *("compar", "prior", "previous", "earlier", "preceding", "recent", "last", "old", "before", "no longer"),
    *("yesterday", "ago", "since", _NOUN, _MARK),
)
_STILL = (
    r"(?:(?:grossly|essentially|largely|relatively|overall|generally|otherwise|fairly)\s)?(?:unchanged|stabl[ey]"
    r"|persistent(?:ly)?)(?:\s(?:in|of)\s(?:appearance|position|size|configuration))?\b"
)
_COMPARISON_WORD = re.compile(
    r"\b(?:there\s(?:is|are|has\sbeen|have\sbeen)\s)?no\s(?:\w{2,12}ly\s)?(?:(?:significant|interval|definite|appreciable"
    r"|substantial|major|marked|short-term|further|convincing|large|gross|real)\s){0,3}changes?\s(?:in|of)(?:\sthe)?\b"
    rf"|\b(?:once\s)?again\b|\bin the interval\b|\b{_STILL}"
    r"|\binterval(?:ly)?\b|\bnew(?:ly)?\b(?!\sYork)"
    r"|\b(?:worsening|worsened|improving|improved)\s(?=[a-z])|\bre-?(?=demonstrat)",
    re.IGNORECASE,
)
_COMPARISON_WORD_NEEDS = ("change", "again", "interval", "stabl", "persistent", "new", "wors", "improv", "demonstrat")

_SENTENCE_NEEDS = (*_COMPARISON_NEEDS, *_COMPARISON_WORD_NEEDS, *_CONTACT_NEEDS)

_SECTION = re.compile(r"(?:^|(?<=[.;\n ]))comparisons?(?: (?:study|studies|exams?|films?|dates?))?\s?:", re.IGNORECASE)
_HEADER = re.compile(
    r"\b(?i:findings?|impression|technique|indication|history|clinical [a-z ]{2,30}|exam(?:ination)?|procedure"
    r"|reason for [a-z ]{2,30}|recommendations?|conclusion|notification|report|wet read|views?)\s?:"
    r"|^ ?[A-Z][A-Za-z ]{2,30}:|\n\n",
    re.MULTILINE,
)
_OWN_HEADER = re.compile(r"\s*(?:[A-Z][A-Za-z/ ]{2,30}:\s*|\(?\d{1,2}[.)]\s+)?")
_BOUNDARY = re.compile(
    r"[.?!]+[\"')\]]*(?=\s|$)|(?<=[a-z])\.(?=[A-Z][a-z])|\n\n|\n(?= ?(?:[A-Z][A-Za-z ]{2,30}:|\d{1,2}[.)] |[-*•] ))"
)
# A full stop that ends no sentence: an abbreviation, an initial, the number of a list.
_NO_END = re.compile(
    r"(?:\b(?:vs|approx|e\.g|i\.e|etc|cf|fig|no|st|dr|mr|mrs|ms|prof|a\.m|p\.m)|(?<![\w.])[A-Z])$", re.IGNORECASE
)
_LIST_NUMBER = re.compile(r"\s*\(?\d{1,2}$")

_GOVERNOR = re.compile(
    r"\b(?:(?:by|on|at|dated|dating|from|of|to|with|per|since|via|in|for|as|until|between|during|date|time|number|the"
    rf"|signed|performed|obtained|born|dob|aged?|is|a|an)\b[:,]?\s{{0,2}}){{1,4}}{_NOUN}",
    re.IGNORECASE,
)
_NOUN_RUN = re.compile(rf"{_NOUN}(?:\s{{0,2}}(?:,|;|/|-|\band\b|\bor\b|&)?\s{{0,2}}{_HOLES}){{1,50}}")
_MARK_AT_END = re.compile(
    rf"\b(?:(?:by|on|at|dated|from|of|to|with|per|since|via|in|the|a|an|and|or)\s){{1,3}}{_MARK}(?=\s?(?:[.,;:)]|$))",
    re.I,
)
_EMPTY_PAIR = re.compile(r"\(\s?[,;:.]?\s?\)|\[\s?\]|\"\s?\"")
_HOLE = re.compile(_HOLES)
# Words that cannot end a sentence, left there when what they led to went.
_DANGLING = frozenset(
    (
        *("is", "are", "was", "were", "has", "have", "been", "appear", "appears", "remain", "remains", "seem", "seems"),
        *("and", "but", "or", "grossly", "essentially", "largely", "relatively", "overall", "otherwise", "the", "a"),
        *("an", "by", "on", "at", "from", "of", "to", "with", "in", ""),
    )
)
_VERB_AND = re.compile(
    r"\b(is|are|was|were|remains?|appears?)(?:\s?,\s?(?:and\s|but\s)?|\s(?:and|but)\s)", re.IGNORECASE
)


def sanitize(text: str) -> Sanitized:
    """Take out what identifies people, places and times, and what compares with earlier studies.

    Sentences that compare with an earlier study go whole; words as "stable" or "interval" go alone, so that
    the finding they qualify stays. Text with nothing to take out comes back as it was, but for white space.
    Time grows linearly with the text.
    """
    removed: Counter[str] = Counter()
    text = _take_out(_plain(text), removed)
    text = _without_comparison_sections(text, removed)
    lower = text.lower()
    if any(need in lower for need in _SENTENCE_NEEDS):
        text = "".join(_sentence(sentence, removed) for sentence in _sentences(text))
    return Sanitized(_tidy(text), dict(removed))


def _plain(text: str) -> str:
    """White space made even: single spaces, at most one blank line."""
    text = _UNSEEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _tidy(text)


def _tidy(text: str) -> str:
    if " ".join(text.split()) == text:
        return text
    text = _UNEVEN.sub(" ", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", text)).strip()


def _take_out(text: str, removed: Counter[str]) -> str:
    lower, numbers = text.lower(), _numbers(text)
    for rule in _RULES:
        if not _may_match(rule, text, lower, numbers):
            continue
        text, count = _replace(rule, text)
        if count:
            removed[rule.kind] += count
            lower, numbers = text.lower(), _numbers(text)
    return text


def _may_match(rule: _Rule, text: str, lower: str, numbers: _Numbers) -> bool:
    """Cheap tests that spare most reports most patterns."""
    if numbers.digits < rule.digits or (rule.between and numbers.joints.isdisjoint(rule.between)):
        return False
    if rule.needs and not any(need in lower for need in rule.needs):
        return False
    return not rule.needs_exact or any(need in text for need in rule.needs_exact)


def _replace(rule: _Rule, text: str) -> tuple[str, int]:
    hole = _MARK if rule.kind == "mark" else _NOUN
    if rule.if_true is None:
        return rule.pattern.subn(f" {hole} ", text)
    holds = rule.if_true
    count = 0

    def swap(match: re.Match[str]) -> str:
        nonlocal count
        if not holds(match):
            return match[0]
        count += 1
        return f" {hole} "

    return rule.pattern.sub(swap, text), count


def _without_comparison_sections(text: str, removed: Counter[str]) -> str:
    """Up to the next header or blank line; where none follows, one sentence."""
    if "comparison" not in text.lower():
        return text
    kept, position = [], 0
    for match in _SECTION.finditer(text):
        if match.start() < position:
            continue
        end = _HEADER.search(text, match.end()) or _BOUNDARY.search(text, match.end())
        kept.append(text[position : match.start()])
        position = len(text) if end is None else end.start() if end[0][-1:] in ":\n" else end.end()
        removed["comparison"] += 1
    return "".join(kept) + text[position:]


def _sentences(text: str) -> Iterator[str]:
    """Sentences with the white space before them; a single line break does not end one."""
    position = 0
    for match in _BOUNDARY.finditer(text):
        before = text[max(position, match.start() - 8) : match.start()]
        if match[0] == "." and (_NO_END.search(before) or _LIST_NUMBER.fullmatch(before)):
            continue
        yield text[position : match.end()]
        position = match.end()
    yield text[position:]


def _sentence(sentence: str, removed: Counter[str]) -> str:
    lower = sentence.lower()
    if any(need in lower for need in _COMPARISON_NEEDS) and _COMPARISON.search(lower):
        removed["comparison"] += 1
        return _own_header(sentence)
    changed = _HOLE.search(sentence) is not None
    if any(need in lower for need in _CONTACT_NEEDS):
        contact = _CONTACT.search(sentence)
        if contact:
            removed["contact"] += 1
            sentence, changed = _before_contact(sentence[: contact.start()]), True
    if any(need in lower for need in _COMPARISON_WORD_NEEDS):
        sentence, count = _COMPARISON_WORD.subn(" ", sentence)
        if count:
            removed["comparison_word"] += count
            changed = True
    return _mend(sentence) if changed else sentence


def _own_header(sentence: str) -> str:
    """`FINDINGS: ` or `2. ` in front of a sentence that goes; list numbers go too."""
    match = _OWN_HEADER.match(sentence)
    head = match[0] if match else ""
    return head if ":" in head else head[: len(head) - len(head.lstrip())]


def _before_contact(head: str) -> str:
    words = head.rstrip(" ,;:-\n").split(" ")
    while words and words[-1].strip(" ,;:-\n").lower() in _CONTACT_LEAD:
        words.pop()
    head = " ".join(words)
    return f"{head}." if head.strip() else ""


def _mend(sentence: str) -> str:
    """Close the gaps: no preposition without its noun, no space before a comma, no empty brackets."""
    space = sentence[: len(sentence) - len(sentence.lstrip())]
    body = _NOUN_RUN.sub(_NOUN, re.sub(r"[^\S\n]+", " ", sentence[len(space) :]))
    body = _NOUN_RUN.sub(_NOUN, _GOVERNOR.sub(_NOUN, body))
    body = _HOLE.sub("", _MARK_AT_END.sub("", body))
    body = _EMPTY_PAIR.sub("", re.sub(r"\s{2,}", " ", body))
    body = re.sub(r" ([.,;:?!)])", r"\1", re.sub(r"\s{2,}", " ", body))
    body = re.sub(r"[,;:]+(?=[,;:.?!])", "", body)
    body = _without_dangling(_VERB_AND.sub(r"\1 ", body)).lstrip(" ,;:-.?!)")
    rest = body[len(head[0]) :] if (head := _OWN_HEADER.match(body)) else body
    if {word.strip(".,;:?!()/-").lower() for word in rest.split()} <= _SAYS_NOTHING:
        return space + (body if ":" in body and not rest.strip(" .?!") else "")
    first = len(body) - len(rest)
    return space + body[:first] + rest[0].upper() + rest[1:]


def _without_dangling(body: str) -> str:
    words = body.rstrip(" .?!").split(" ")
    end = body[len(" ".join(words)) :].strip()
    while words and words[-1].strip(",;:-").lower() in _DANGLING:
        words.pop()
    return " ".join(words).rstrip(" ,;:-" if end else " ") + end
