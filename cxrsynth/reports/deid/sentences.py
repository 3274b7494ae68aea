"""Sentences: where they end, the header before them, and the repair of one that lost a part."""

import re
from collections.abc import Iterator

from cxrsynth.reports.deid.contacts import CONTACT_LEAD
from cxrsynth.reports.deid.lexicon import is_word
from cxrsynth.reports.deid.rules import DENIALS, HOLE, HOLES, MARK, NOUN

_OWN_HEADER = re.compile(r"\s*(?:[A-Z][A-Za-z/ ]{2,30}:\s*|\(?\d{1,2}[.)](?:\s+|(?=[A-Z.])))?")
# What ends a sentence, depending on the text before it.
BOUNDARY: re.Pattern[str] = re.compile(
    r"[.?!]+[\"')\]]*(?=\s|$)|[\u3002\uff01\uff1f]+|(?<=[a-z])\.(?=[A-Z][a-z])|(?<=[a-z ])\.(?=\d{1,2}[.)][A-Z])"
    r"|\n\n|\n(?= ?(?:[A-Z][A-Za-z ]{2,30}:|\d{1,2}[.)] |[-*•] ))"
)
# A full stop that does not end a sentence: an abbreviation, an initial, a number in a list.
_NO_END = re.compile(
    r"(?:\b(?:vs|approx|e\.g|i\.e|etc|cf|fig|no|geb|st|dr|mr|mrs|ms|prof|a\.m|p\.m)|(?<![\w.])[A-Z])$", re.IGNORECASE
)
# An initial ends a sentence if the next word is one that opens sentences.
_INITIAL = re.compile(r"(?<![\w.])[A-Z]$")
_OPENER = re.compile(
    r"\s+(?:The|There|No|A|An|This|These|It|Lungs?|Heart|Cardiac|Mediastin\w+|Pleural|Right|Left|Bilateral|Findings?)\b"
)
_LIST_NUMBER = re.compile(r"\s*\(?\d{1,2}$")
# A line that may begin a sentence: its first word, with a capital.
_LINE = re.compile(r"\n(?=[ \t]{0,8}(?P<word>[A-Z][A-Za-z]{1,30}\b(?!['\u2019])|A(?=\s[a-z])))")
_BOUNDARY_OR_LINE = re.compile(rf"{BOUNDARY.pattern}|{_LINE.pattern}")
_OPENS_LINE = frozenset(("the", "there", "no", "a", "an", "this", "these", "it"))
# A line that goes on after its break: it ends in a comma, a hyphen or one of these words, or in a colon, after which
# only a word that opens sentences begins one.
_GOES_ON = re.compile(
    r"(?:[,/&(\[-]|\b(?:by|with|on|at|from|of|to|in|into|and|or|but|the|an?|is|are|was|were|be|been|has|have|for|as|per|via"
    r"|than|that|which|this|these|dr|mr|mrs|ms|prof|st|vs)\.?)\s*$",
    re.IGNORECASE,
)
_DENIAL = re.compile(rf"\b(?:{'|'.join(sorted(DENIALS))})\b", re.IGNORECASE)
_LOOK_BACK = 300  # characters before a line: the time per line must not depend on their number

_GOVERNOR = re.compile(
    r"\b(?:(?:by|on|at|dated|dating|from|of|to|with|per|since|via|in|for|as|until|between|during|date|time|number|the"
    r"|signed|performed|obtained|born|dob|aged?|is|a|an"
    r"|am|vom|bis|zum|seit|ab|um|von|bei|le|du|au|depuis|el|del|al|desde|il|dal|em|desde)\b[:,]?\s{0,2}"
    r"|\b(?:geb(?:oren)?|geburtsdatum|n[e\u00e9]e?|nat[oa]|nacid[oa]|nascid[oa])\b[.:]{0,2}\s{0,2}"
    rf"|\((?:St|Ste|Mt|Ft)\.\s{{1,2}}){{1,4}}{NOUN}",
    re.IGNORECASE,
)
_NOUN_RUN = re.compile(rf"{NOUN}(?:\s{{0,2}}(?:,|;|/|-|\band\b|\bor\b|&)?\s{{0,2}}{HOLES}){{1,50}}")
_MARK_AT_END = re.compile(
    rf"\b(?:(?:by|on|at|dated|from|of|to|with|per|since|via|in|the|a|an|and|or)\s){{1,3}}{MARK}(?=\s?(?:[.,;:)]|$))",
    re.I,
)
_EMPTY_PAIR = re.compile(r"\(\s?[,;:.]?\s?\)|\[\s?\]|\"\s?\"|\s?[(\[]\s?(?=[.?!]?\s*$)")
# Words that cannot end a sentence, left over when the words after them were removed.
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
# A sentence with only these words left has lost its meaning.
_SAYS_NOTHING = CONTACT_LEAD | frozenset(
    (
        *("called", "call", "seen", "send", "sent", "to", "at", "in", "by", "on", "of", "please", "a", "an"),
        "department",
        "",
    )
)


def sentences(text: str) -> Iterator[str]:
    """Sentences with the white space before them. A single line break ends one only if another begins after it."""
    position = 0
    for match in _BOUNDARY_OR_LINE.finditer(text):
        if match[0] == "\n":
            before = text[max(position, match.start() - _LOOK_BACK) : match.start()]
            if match["word"] is None or _begins_line(before, match["word"]):
                yield text[position : match.start()]
                position = match.start()
            continue
        before = text[max(position, match.start() - 8) : match.start()]
        after_initial = _INITIAL.search(before) is not None and _OPENER.match(text, match.end()) is not None
        if match[0] == "." and ((_NO_END.search(before) and not after_initial) or _LIST_NUMBER.fullmatch(before)):
            continue
        yield text[position : match.end()]
        position = match.end()
    yield text[position:]


def _begins_line(before: str, word: str) -> bool:
    """Whether a line after `before` is a sentence of its own: a signature without a full stop ends with its line.

    A negation must not lose what it denies: after one, only words that no noun phrase goes on with begin a sentence.
    """
    if not before.strip() or _GOES_ON.search(before):
        return False
    if word.lower() in _OPENS_LINE:
        return True
    plain = not word.isupper() and is_word(word)
    return plain and not before.rstrip().endswith(":") and not _DENIAL.search(before)


def own_header(sentence: str) -> str:
    """`FINDINGS: ` before a sentence that is removed; list numbers such as `2. ` are removed with it."""
    match = _OWN_HEADER.match(sentence)
    head = match[0] if match else ""
    return head if ":" in head else head[: len(head) - len(head.lstrip())]


def repair(sentence: str) -> str:
    """Close the gaps: remove prepositions without their noun, spaces before a comma and empty brackets."""
    space = sentence[: len(sentence) - len(sentence.lstrip())]
    body = _NOUN_RUN.sub(NOUN, re.sub(r"[^\S\n]+", " ", sentence[len(space) :]))
    body = _NOUN_RUN.sub(NOUN, _GOVERNOR.sub(NOUN, body))
    body = HOLE.sub("", _MARK_AT_END.sub("", body))
    body = _EMPTY_PAIR.sub("", re.sub(r"\s{2,}", " ", body))
    body = re.sub(r" ([.,;:?!)\u3001\u3002])", r"\1", re.sub(r"\s{2,}", " ", body))
    body = re.sub(r"[,;:\u3001]+(?=[,;:.?!\u3001\u3002])", "", body)
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
