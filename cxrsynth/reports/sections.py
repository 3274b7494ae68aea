"""Sections of a radiology report: which parts say what the image shows.

Headings are known by name, in any case, with a colon or dash, alone on a line, or in capitals before a sentence. They
come from the layouts of MIMIC-CXR, Open-i, CheXpert Plus and British reports. The time is linear in the text's length.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a section is about."""

    FINDINGS = "findings"
    IMPRESSION = "impression"
    BOTH = "findings and impression"
    TEXT = "text"  # of the report, under no heading of these
    ADDENDUM = "addendum"
    WET_READ = "wet read"  # preliminary, until the report itself is there
    ASIDE = "aside"  # what was asked, done, compared with or recommended
    SHORT_ASIDE = "short aside"  # of one sentence, unless something ends it


@dataclass(frozen=True, slots=True)
class Section:
    """One section, without its heading."""

    kind: Kind
    text: str


_SHOWS = frozenset({Kind.FINDINGS, Kind.IMPRESSION, Kind.BOTH, Kind.TEXT})
_ASIDES = frozenset({Kind.ASIDE, Kind.SHORT_ASIDE})
_LONGEST = 80  # characters of a heading

# Headings as they stand alone, in lower case, without digits and signs.
_NAMES = {
    Kind.ADDENDUM: r"addend(?:um|a)|(?:amended|corrected|revised) (?:report|findings?|impression)|corrections?",
    Kind.WET_READ: (
        r"(?:wet|preliminary|prelim|overnight|initial|resident|ed|er) (?:read(?:ing)?|interpretation|report)s?"
    ),
    Kind.BOTH: r"findings? (?:and |or )?(?:impressions?|conclusions?|opinion)|impressions? (?:and )?findings?",
    Kind.FINDINGS: (
        r"(?:(?:chest|lung|imaging|radiolog\w+|radiograph\w*|x ?ray|significant|positive|key|main|other|additional"
        r"|pertinent|report) ){0,2}findings?|description|observations?"
    ),
    Kind.IMPRESSION: (
        r"(?:(?:final|overall|radiolog\w+|chest|x ?ray|imaging|provisional|diagnostic|report) ){0,2}"
        r"(?:impressions?|conclusions?|opinions?|interpretations?|summary|assessment)"
        r"|(?:radiolog\w+|radiograph\w+|imaging|final) diagnos[ie]s"
    ),
    Kind.TEXT: (
        r"(?:(?:final|radiology|imaging|radiologist s|full|x ?ray) )?(?:report|results?)|narrative"
        r"|(?:attending|staff|consultant) (?:over ?)?(?:read(?:ing)?|interpretation|report)s?"
        r"|body(?: of report)?|text|comments?|answers?"
        r"|(?:x ?r|c ?x ?r|x ?ray|cr)(?: chest)?|(?:(?:portable|mobile|ap|pa|frontal|erect|supine|and"
        r"|lateral) ){0,4}chest"
        r"(?: (?:x ?rays?|radiographs?|films?|ap|pa|portable|and|lateral|views?|two|single|frontal)){0,4}"
    ),
    Kind.SHORT_ASIDE: (
        r"comparisons?(?: (?:stud(?:y|ies)|exams?|films?|dates?|radiographs?|imaging|made|to|with))*|priors?"
        r"|techniques?"
        r"|(?:prior|previous|relevant) (?:stud(?:y|ies)|exams?|examinations?|imaging|images|reports?|films?"
        r"|radiographs?)"
        r"|(?:(?:type|name|date) of )?(?:exams?|examinations?|procedures?|study|tests?)"
        r"(?: (?:name|type|description|performed|date|comments?|code|title))?|views?|projections?|protocol|modality"
    ),
    Kind.ASIDE: (
        r"indications?|(?:(?:clinical|medical|patient|past|brief|relevant|pertinent|surgical|social"
        r"|presenting|present) ){0,2}"
        r"(?:history|hx)|clinical (?:details?|information|info|data|question|notes?|background|indications?"
        r"|statement|context|history"
        r"|concern|problem|diagnos[ie]s|summary|findings?|picture)|reasons?|orders?|icd|dx|diagnos[ie]s|pmhx?"
        r"|hpi|h o|hx|(?:admitting|provisional|working|ordering|referral|presumptive) diagnos[ie]s"
        r"|(?:chief |presenting )?complaints?|symptoms?|signs and symptoms|questions?|recommendations?|plan"
        r"|follow ?up|advice"
        r"|notifications?|communications?|end of (?:impression|report|findings)|technologists? (?:notes?"
        r"|comments?)|icd codes?|cpt"
        r"|(?:indications?|history|hx) (?:and )?(?:indications?|history|reasons?|comments?)"
    ),
}
# Beginnings of headings that go on in free words before their colon: "Reason for exam", "Ordering physician".
_LONG_NAMES = {
    Kind.ADDENDUM: r"addend(?:um|a)\b",
    Kind.WET_READ: r"(?:wet|preliminary|prelim) (?:read|report|interpretation)\b|prelim(?:inary)?$",
    Kind.TEXT: r"final(?: read(?:ing)?)?$",
    Kind.SHORT_ASIDE: r"comparisons? (?:is|are|was)\b|(?:radiograph\w*|x ?ray) examinations? of\b",
    Kind.ASIDE: (
        r"clinical \w+|reasons? for\b|(?:medical |patient |clinical )?history of (?:present|presenting)\b"
        r"|indications? for\b|icd\b|cpt\b"
        r"|(?:diagnosis|procedure|billing) codes?\b|(?:admitting|clinical|provisional|working|ordering"
        r"|referral|pre ?op\w*) diagnos\w+$"
        r"|(?:order(?:ed|ing)?|request(?:ed|ing)?|referr(?:ed|ing)|dictated|signed|read|verified|transcribed|approved"
        r"|electronically|accession|critical|radiation|follow ?up|recommend\w*|questions?|technologists?|physicians?"
        r"|consultants?|patient (?:name|id|age|sex))\b"
    ),
}
# Parts of the chest, and observations, in a template ("Lungs: clear"): they end an aside, and are part of the text.
_PARTS = (
    r"(?:lungs?|pleura\w*|heart|cardi\w+|mediastin\w+|hil\w+|bones?|bony|osseous|skelet\w+|lines?|tubes?|devices?|support|hardware"
    r"|soft tissues?|diaphragms?|airways?|trachea|pneumothora\w+|effusions?|consolidations?|fractures?"
    r"|o?edema|atelectas\w+)\b"
)
_EXACT = tuple((kind, re.compile(names)) for kind, names in _NAMES.items())
_LONG = tuple((kind, re.compile(names)) for kind, names in _LONG_NAMES.items())
_PART = re.compile(_PARTS)

_PLAIN = re.compile(r"[^a-z]+")
_BLANKS = re.compile(r"[^\S\n]+")
_TAB = re.compile(r"(?<=\w)\t+(?=\w)")  # between the columns of a table
_RULE = re.compile(r"(?m)^ ?[_=*#-]{3,} ?$")
# Where a heading can stand: before a colon; before a dash; alone on a line; in capitals before other words.
_BEFORE_COLON = re.compile(rf"(?:^|(?<=[\n.;:?!\])]))([^\n.;:?!]{{1,{_LONGEST}}}):")
_BEFORE_DASH = re.compile(
    r"(?:^|(?<=\n)|(?<=[.;?!] )) ?([A-Za-z][A-Za-z /&]{1,40}?) ?(?: -{1,2}| ?[\u2013\u2014]) (?=\S)"
)
_ALONE = re.compile(r"(?m)^ ?([A-Za-z][A-Za-z /&-]{1,50}) ?$")
_CAPITALS = re.compile(r"(?:^|(?<=\n)|(?<=[.;?!] )) ?(?!ICD )([A-Z][A-Z /&]{2,40}?) (?=[A-Z]?[a-z]|A |\d)")
_FIRST_WORDS = re.compile(
    r"(?m)^ ?(?:((?i:findings|impressions?|conclusions?|opinion))(?= (?:[A-Z][a-z]|A ))"
    r"|((?i:indications?|techniques?|comparisons?"
    r"|clinical (?:details|history|information|indications?)|reasons? for (?:exam\w*|study)))"
    r" (?!(?:is|are|was|were|with|to|of|for|and|made|on|in|by|has|have|limit\w*)\b)(?=\w))"
)
# In a line that begins with such a heading, others follow without a colon: "Indication Cough Findings Clear lungs."
_INLINE = re.compile(
    r"(?<= )((?:Clinical )?(?:Findings?|Impressions?|Conclusions?|Opinion|Comparisons?|Techniques?|History"
    r"|Indications?))"
    r" (?=[A-Z])"
    r"|(?<= )(?<!\bNO )(?<!\bTHE )(?<!\bOTHER )(?<!ABNORMAL )(?<!SIGNIFICANT )(?<!INCIDENTAL )(?<!CLINICAL )"
    r"(?<!ACUTE )(?<!PRIOR )(?<!IN )(?<!FOR )"
    r"(FINDINGS|IMPRESSION|CONCLUSION|OPINION|COMPARISON|TECHNIQUE)"
    r" (?!(?:OF|ON|IN|AT|FROM|FOR|TO|WITH|AND|OR|IS|ARE|WAS|WERE|SUGGEST\w*|CONSISTENT"
    r"|CONCERNING|COMPATIBLE)\b)(?=[A-Z])"
)
_CODE_LINE = re.compile(r"(?m)^ ?[A-TV-Z]\d{2}\.[\dA-Z]{1,4}\b[^\n]*$")
# A blank line, or MIMIC's "Portable AP radiograph of the chest was reviewed", ends an aside.
_BLANK_LINE = re.compile(
    r"\n ?(?:\n|(?=[^\n]{0,60}\b(?:radiographs?|films?|views?|x-?rays?|images?) (?:of the chest )?(?:was|were|is|are)"
    r" (?:reviewed|obtained|compared|submitted|presented|provided)\b))"
)
# The first line of an aside, where the next one begins a sentence: it has a full stop, or is short and does not go on.
_LINE_END = re.compile(
    r"(?:[^\n]{0,1000}[.?!]|[^\n]{1,60}(?<![,;/-])(?<! and)(?<! of)(?<! with)(?<! or)(?<! for)(?<! to)) ?\n(?= ?[A-Z])"
)
_TITLE = re.compile(r"[^\n.]{1,60}")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n")


def split_sections(text: str) -> tuple[Section, ...]:
    """The sections of a report in their order; what stands under no heading is `Kind.TEXT`.

    A blank line ends an aside that has begun. If nothing else in the report could be read, an aside on technique or
    comparison that nothing ends is one sentence, and any other ends with its first line.
    """
    text = _CODE_LINE.sub("", _RULE.sub("\n", _BLANKS.sub(" ", _TAB.sub(": ", text))))
    kind, start = Kind.TEXT, 0
    sections: list[Section] = []
    for heading in sorted(set(_headings(text))):
        if heading.start < start:
            continue
        sections += _ended(kind, text[start : heading.start])
        kind, start = _KINDS[heading.kind], heading.end
    last = list(_ended(kind, text[start:]))
    if len(last) == 1 and kind in _ASIDES and not any(_can_be_read(s) and not _is_title(s) for s in sections):
        last = list(_after_first(last[0]))
    return tuple(section for section in [*sections, *last] if section.text.strip())


def shown_sections(text: str) -> tuple[Section, ...]:
    """The sections that say what the image shows: those of the report and its addenda.

    A wet read is one only where the rest of the report shows nothing.
    """
    sections = split_sections(text)
    kinds = {*_SHOWS, Kind.ADDENDUM}
    if not any(_can_be_read(section) for section in sections):
        kinds.add(Kind.WET_READ)
    return tuple(section for section in sections if section.kind in kinds)


def section_text(text: str, kind: Kind) -> str:
    """The text of the sections of one kind in a whole report, `FINDINGS` or `IMPRESSION`; empty if it has none."""
    wanted = {kind, Kind.BOTH}
    return "\n\n".join(section.text.strip() for section in split_sections(text) if section.kind in wanted)


_SAYS_NOTHING = re.compile(
    r"(?:chest|same|stable|worsening|improvement|improved|unchanged"
    r"|no (?:significant |acute |major )?(?:interval )?changes?|(?:no )?(?:significant )?(?:interval )?changes?"
    r"|(?:please )?see (?:above|below|(?:the )?(?:findings|report|comment)s?|body of (?:the )?report)"
    r"|as (?:above|below|described|noted|discussed)(?: above| below)?)",
    re.IGNORECASE,
)


def with_content(text: str) -> str:
    """A section, or nothing where it says nothing of an image: "No significant change.", "See above."."""
    return "" if _SAYS_NOTHING.fullmatch(text.strip(" .\n\t")) else text


def shown_text(text: str) -> str:
    """All text of a report that says what the image shows, without headings."""
    return "\n\n".join(section.text.strip() for section in shown_sections(text))


@dataclass(frozen=True, slots=True, order=True)
class _Heading:
    """Where a heading stands, and the number of its kind in `_KINDS`."""

    start: int
    end: int
    kind: int


_KINDS = tuple(Kind)


def _can_be_read(section: Section) -> bool:
    return section.kind in _SHOWS and any(map(str.isalpha, section.text))


def _is_title(section: Section) -> bool:
    """Whether a section may be the name of the study: "XR CHEST PA AND LATERAL"."""
    return section.kind is Kind.TEXT and _TITLE.fullmatch(section.text.strip()) is not None


def _headings(text: str) -> Iterator[_Heading]:
    for match in _BEFORE_COLON.finditer(text):
        kind, start, end = _kind(match[1], long=True), match.start(1), match.end()
        if kind is None and _PART.match(_plain(match[1])) and text[start - 1 : start] in ("", "\n"):
            kind, end = Kind.TEXT, start
        if kind is None:
            kind, length = _last_words(match[1])
            start = match.end(1) - length
        if kind is not None:
            yield _Heading(start, end, _KINDS.index(kind))
    for pattern in (_BEFORE_DASH, _ALONE, _CAPITALS):
        for match in pattern.finditer(text):
            if (kind := _kind(match[1])) is not None:
                yield _Heading(match.start(1), match.end(), _KINDS.index(kind))
    for match in _FIRST_WORDS.finditer(text):
        if (kind := _kind(match[1] or match[2], long=True)) is not None:
            yield _Heading(match.start(), match.end(), _KINDS.index(kind))
        line_end = text.find("\n", match.end())
        for inline in _INLINE.finditer(text, match.end(), len(text) if line_end < 0 else line_end):
            if (kind := _kind(inline[1] or inline[2])) is not None:
                yield _Heading(inline.start(), inline.end(), _KINDS.index(kind))


def _last_words(line: str) -> tuple[Kind | None, int]:
    """The kind of a heading at the end of a line, as in "CHEST TWO VIEWS INDICATION:", and its length."""
    words = line.split(" ")
    for count in range(min(4, len(words) - 1), 0, -1):
        name = " ".join(words[-count:])
        if name[:1].isupper() and (kind := _kind(name)) is not None:
            return kind, len(name)
    return None, 0


def _plain(name: str) -> str:
    return _PLAIN.sub(" ", name.lower()).strip()


def _kind(name: str, *, long: bool = False) -> Kind | None:
    plain = _plain(name)
    exact = (kind for kind, names in _EXACT if names.fullmatch(plain))
    begun = (kind for kind, names in _LONG if long and names.match(plain))
    return next(exact, None) or next(begun, None)


def _ended(kind: Kind, text: str) -> Iterator[Section]:
    """A section, and what follows the blank line that ends it."""
    begun = len(text) - len(text.lstrip())
    blank = _BLANK_LINE.search(text, begun) if kind in _ASIDES else None
    if blank is None:
        yield Section(kind, text)
    else:
        yield Section(kind, text[: blank.start()])
        yield Section(Kind.TEXT, text[blank.end() :])


def _after_first(section: Section) -> Iterator[Section]:
    """An aside of one sentence, or one line, and what follows it."""
    begun = len(section.text) - len(section.text.lstrip())
    is_short = section.kind is Kind.SHORT_ASIDE
    end = _SENTENCE_END.search(section.text, begun) if is_short else _LINE_END.match(section.text, begun)
    yield section if end is None else Section(section.kind, section.text[: end.end()])
    if end is not None:
        yield Section(Kind.TEXT, section.text[end.end() :])
