"""Reads the 14 CheXpert observations, with certainty and side, from a radiology report.

Scope follows NegEx (Chapman et al. 2001, doi:10.1006/jbin.2001.1029): what is denied, what is hedged, and whether a
named structure is called normal or enlarged. What counts as a mention follows the CheXpert labeler (arXiv:1901.07031,
section 2); docs/findings.md gives its measured errors.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from threading import Lock

import spacy

from cxrsynth.reports.findings.compared import Since, without_earlier
from cxrsynth.reports.findings.cues import ENLARGED_CUES, HEDGED_CUES, NEGATED_CUES, NORMAL_CUES, UNSAID_CUES
from cxrsynth.reports.findings.scope import Marker, Scope, Statement
from cxrsynth.reports.findings.sides import BOTH_SIDES, sides_of
from cxrsynth.reports.findings.terms import ALSO, GENERAL, SKIP, TERMS, WHEN_ENLARGED, WHEN_NORMAL
from cxrsynth.reports.findings.wording import reworded
from cxrsynth.reports.labels import NO_FINDING, OBSERVATIONS, FindingLabel, Side, Status
from cxrsynth.reports.language import is_english
from cxrsynth.reports.sections import Kind, shown_sections
from cxrsynth.reports.text import check_text

_ABBREVIATED = re.compile(
    r"\b(vs|approx|dr|mr|mrs|ms|st|no(?= ?\.\s?\d)|fig|e\.g|i\.e)\.(?= ?[a-z\d])"
    r"|\b(bilat|lt|rt|mod|pl|pulm|poss|prob|susp|sig)\.(?= ?(?!no\b|nil\b|the\b|there\b|heart\b|lungs?\b|cardi)[a-z])"
    # No sentence begins with "or"; after these nouns none begins with "and", either: "no consolid. or eff."
    r"|\b([a-z]{2,})\.(?= ?(?:,|(?:or|nor)\b))"
    r"|\b(consolid|consol|effus|effs?|atel|atelect|opac|infilt|pneumo|ptx)\.(?= ?(?:and|in|on|at|of)\b)"
)
# "Effusion? Y": a question that its own line answers.
_ANSWERED = re.compile(
    r"(?<=[a-z)]) ?\?+ ?(?=(?:y|n|yes|no|none|neg(?:ative)?|pos(?:itive)?|present|absent"
    r"|small|tiny|trace|mild|moderate|large|minimal|left|right|bilateral)\b ?(?:[.,;\n]|$))"
)
# Boxes of a form: "[x] effusion [ ] edema", "effusion: [ ] yes [x] no". What has an empty one is not said.
_UNTICKED = re.compile(r"(?:\[ ?\]|\u2610)[^\[\n\u2610-\u2612]*")
_TICKED = re.compile(r"(:?) ?(?:\[ ?[x\u00d7\u2713\u2714] ?\]|[\u2611\u2612])")
# Both answers with a box each, before or after: "pneumothorax [ ] yes [x] no", "pneumothorax yes [ ] no [x]".
_ANSWER = r"\b(?:yes|no|y|n|present|absent|pos(?:itive)?|neg(?:ative)?)"
_BOX = r"(?:[\[(] ?[x\u00d7\u2713\u2714]? ?[\])]|[\u2610-\u2612])"
_BOXES = re.compile(
    rf"(?<=[a-z)?:]) ?:? ?((?:{_ANSWER} ?{_BOX}[ ,/]{{0,2}}){{2}}|(?:{_BOX} ?{_ANSWER}\b[ ,/]{{0,2}}){{2}})(?!{_BOX})"
)
_BOX_OR_ANSWER = re.compile(rf"({_BOX})|({_ANSWER})\b")
# With a blank before it and words behind it, as in "right base ? consolidation", it asks what follows.
_ASKED = re.compile(r"(?<=\w)(?:\?+(?=\s|$)| \?+(?=\s*(?:\n|$)))")
_SPLIT = re.compile(
    r"[.!]+(?=\s|$)|\n\s?(?=\n|[-*\u2022|]|\d+[.)]|[a-z][a-z /&]{1,40}(?: ?\([^()\n]{0,20}\))? ?[:=|])"
    r"|(?<=[.;:]) ?\(?\d{1,2}[.)] (?=[a-z])|(?<=[a-z]) \d{1,2}\) (?=[a-z])|(?<=[a-z]{3})[.](?=[a-z]{3})"
    # Without a blank: "1.No effusion.2.Left nodule", "Lungs clear.No effusion"; and bullets on one line.
    r"|(?:^|(?<=[\s.;:,]))\(?\d{1,2}[.)](?=[a-z])|(?<=[a-z]{2})[.](?=(?:no|l|r|et|ng|dr)\b)|(?:^|(?<=\s))[.](?=[a-z])"
    r"|\s?[\u2022\u25cf\u25aa] ?"
)
_GLUED = re.compile(r"(?<=[a-z])[,;](?=[a-z])")
# A finding a line, without full stops: a short line, after which one begins with a capital. Lines of running text are
# longer, and are broken where a phrase goes on.
_LINE = re.compile(r"(?:^|(?<=\n))[^\n]{1,54}\n(?=[^\S\n]*[A-Z])")
# The same in a text without capitals and full stops.
_LOWER_LINE = re.compile(
    r"(?:^|(?<=\n))[^\n]{1,54}\n(?=[^\S\n]*[a-z])(?![^\S\n]*(?:and|or|nor|but|with|without|in|on|at|of|to|for|by|is|are"
    r"|was|were|has|have|seen|noted|identified|present)\b)"
)
_GOES_ON = re.compile(
    r"(?:[,:;(/-]|\b(?:of|or|and|nor|the|an?|no|not|without|with|in|on|at|to|from|for|by|is|are|was|were|than|versus|vs"
    r"|acute|new|any|focal|left|right|bilateral|upper|lower|middle|mild|moderate|severe|small|large|trace|possible"
    r"|probable|likely|pleural|pulmonary|airspace|displaced|rib|significant|definite|may|represent|suggest(?:s|ing|ive)?|consistent|evidence|suspicious|concerning|denies|deny))\s*$",
    re.IGNORECASE,
)
# What stands in a line above what is said of it.
_PLACE = re.compile(
    r"(?:the )?(?:heart|cardiac silhouette|lungs?|lung fields|airways?|pleura|pleural spaces?|mediastinum|hila|bones?"
    r"|diaphragm|soft tissues|lines(?: and tubes)?|tubes|devices|chest)(?: size)?",
    re.IGNORECASE,
)
_SOFTEN = re.compile(r"[-/_:()\[\]\"'|=*\u2013\u2014]+|\s+")
_WORD = re.compile(r"[a-z]+|\?")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may hold one; spaCy takes none
_LONGEST = 1000  # characters that are read as one sentence; no report has such a sentence, but other text may

_UNSIDED = frozenset({"Cardiomegaly", "Enlarged Cardiomediastinum"})
_RANK = {Status.PRESENT: 2, Status.UNCERTAIN: 1, Status.ABSENT: 0}
_JOINED = frozenset({"or", "and", "versus", "&", "nor"})
_DOUBTS = frozenset(
    {"may", "might", "could", "possibly", "probably", "likely", "perhaps", "questionably", "potentially"}
)
# "No pneumothorax after placement of a chest tube", "No pneumothorax, PICC line in SVC": the device is there.
_ACCOMPANIED = frozenset({"after", "following", "post", "with", "since"})
_PLACED = frozenset(
    {"in", "at", "tip", "tips", "remain", "remains", "terminates", "terminating", "projects", "overlies"}
)
_DENYING = frozenset({"no", "or", "nor", "without", "any"})
_TAKEN_OUT = frozenset({"removal", "removed", "pulled"})
_SHADOW_LIKE = frozenset({"Lung Lesion", "Lung Opacity"})  # what the shadow of a nipple looks like
_CUES = {
    "negated": NEGATED_CUES,
    "hedged": HEDGED_CUES,
    "unsaid": UNSAID_CUES,
    "normal": NORMAL_CUES,
    "enlarged": ENLARGED_CUES,
}
_LOCK = Lock()  # a reader is not thread-safe


@dataclass(frozen=True, slots=True)
class _Mention:
    """One mention in one sentence; `name` is an observation, or OTHER or GENERAL."""

    name: str
    status: Status
    sides: frozenset[Side] = frozenset()


def read_findings(text: str) -> dict[str, FindingLabel]:
    """The CheXpert observations that a report states, each with its status and, where it is said, its side.

    Sections on what was asked, done or compared are not read, a wet read only without a report, and an addendum
    overrides the report that it corrects.

    Args:
        text: of a report, whole or in part. A report that is not in English is not read, which a warning says.

    Returns:
        Observation (a name of `cxrsynth.OBSERVATIONS`) -> label, in the order of that list; one that the report does
        not mention has no key.

    Raises:
        ReportsError: if the text is no `str`.
    """
    check_text(text, function="read_findings")
    if not is_english(text):
        warnings.warn("the report is not in English: no findings were read", stacklevel=2)
        return {}
    with _LOCK:
        return _shared_reader().read(text)


class FindingsReader:
    """Reads findings from reports. Create one and keep it: the first takes seconds, reading well under 1 ms.

    Sentences are cached, since reports repeat them; the cache holds report text and is freed with the reader.
    """

    def __init__(self) -> None:
        terms = [(name, term + s) for name, text in TERMS.items() for term in text.split("|") for s in ("", "s")]
        # A sentence without the last word of any term has no term; skipping it saves most of the time.
        self._last_words = frozenset(_WORD.findall(term)[-1] for _, term in terms)
        self._marker = Marker(spacy.blank("en"), terms, _CUES)
        self._read_sentence = lru_cache(maxsize=1 << 16)(self._parse)

    def read(self, text: str) -> dict[str, FindingLabel]:
        """The label of each observation; one that the report does not mention has no key.

        Only sections that say what the image shows are read. If mentions differ, present overrides uncertain, uncertain
        overrides absent, and the side comes from the mentions that prevail; a label in an addendum overrides that of
        the report. "No Finding" is present when nothing else but Support Devices is present or uncertain, nothing else
        abnormal is named, and something is denied. A report that is not in English has no labels.
        """
        if not is_english(text):
            return {}
        report: list[_Mention] = []
        addenda: list[_Mention] = []
        for section in shown_sections(_LONE_SURROGATE.sub(" ", text)):
            mentions = addenda if section.kind is Kind.ADDENDUM else report
            for sentence in _sentences(section.text):
                mentions += self._read_sentence(sentence)
        corrected = {mention.name for mention in addenda}
        return _labels([*addenda, *(mention for mention in report if mention.name not in corrected)])

    def read_many(self, texts: Iterable[str]) -> Iterator[dict[str, FindingLabel]]:
        """`read` for each text in turn, lazily."""
        return map(self.read, texts)

    def _parse(self, sentence: str) -> tuple[_Mention, ...]:
        return tuple(mention for statement in reworded(sentence) for mention in self._compared(statement))

    def _compared(self, statement: str) -> Iterator[_Mention]:
        """Mentions of this study; those of an earlier one as far as the statement says what became of them."""
        comparison = without_earlier(statement)
        if comparison is None:
            yield from self._mentions(statement)
            return
        yield from self._mentions(comparison.now)
        if comparison.since is not Since.UNSAID:
            for mention in self._mentions(comparison.then):
                gone = comparison.since is Since.GONE
                yield _Mention(mention.name, Status.ABSENT) if gone else mention

    def _mentions(self, text: str) -> list[_Mention]:
        text = " ".join(_SOFTEN.sub(" ", text).split())
        words = frozenset(_WORD.findall(text))
        if words.isdisjoint(self._last_words):
            return []
        marked = self._marker.mark(text)
        if not marked.terms:
            return []
        hedged = _of_own_list(marked)
        sides = sides_of(marked.words, marked.terms)
        mentions = [m for i, own in enumerate(sides) for m in _mentions(marked, i, hedged, own)]
        return list(_without_nipples(mentions)) if "nipple" in words or "nipples" in words else mentions


@cache
def _shared_reader() -> FindingsReader:
    return FindingsReader()


def _mentions(marked: Statement, number: int, hedges: Scope, sides: frozenset[Side]) -> Iterator[_Mention]:
    """The mention that one term makes, given its scopes."""
    term, scopes = marked.terms[number], marked.scopes
    name = term.name
    negated, hedged = number in scopes["negated"], number in hedges
    if name == SKIP or (number in scopes["unsaid"] and name != "Support Devices"):
        return
    if name in WHEN_NORMAL:
        enlarged = name in WHEN_ENLARGED and number in scopes["enlarged"]
        if enlarged and not negated:
            # "May be enlarged" stands after the structure, where hedges do not extend over what precedes them.
            hedged = hedged or not _DOUBTS.isdisjoint(marked.words[term.end : scopes["enlarged"].after.get(number, 0)])
            yield _Mention(WHEN_ENLARGED[name], Status.UNCERTAIN if hedged else Status.PRESENT)
        elif number in scopes["normal"] and not enlarged:
            yield from (_Mention(denied, Status.ABSENT) for denied in WHEN_NORMAL[name] or (GENERAL,))
        return
    if name == "Support Devices" and negated and _is_beside_denied(marked, number):
        negated = False
    status = Status.ABSENT if negated else Status.UNCERTAIN if hedged else Status.PRESENT
    yield _Mention(name, status, sides)
    text = " ".join(marked.words[term.start : term.end])
    yield from (_Mention(also, status, sides) for words, also in ALSO.items() if words in text)


def _is_beside_denied(marked: Statement, number: int) -> bool:
    """Whether a device only stands beside a finding that is denied, and is not denied itself."""
    negated = marked.scopes["negated"]
    if number in negated.after or not _TAKEN_OUT.isdisjoint(marked.words):
        return False
    device, before = marked.terms[number], marked.terms[number - 1] if number else None
    if before is not None and (number - 1 not in negated or before.name in ("Support Devices", SKIP)):
        return False
    between = marked.words[before.end if before else 0 : device.start]
    last = max((place for place, word in enumerate(between, 1) if word in _ACCOMPANIED), default=0)
    if not _DENYING.isdisjoint(between[last:]):
        return False
    is_placed = before is not None and not _PLACED.isdisjoint(marked.words[device.end : device.end + 3])
    return last > 0 or is_placed


def _of_own_list(marked: Statement) -> Scope:
    """Hedges; one after several terms is about the last of them, and those in one list with it.

    In "opacity, atelectasis versus pneumonia" the opacity is there; in "atelectasis or pneumonia is possible" neither
    is certain.
    """
    hedged = marked.scopes["hedged"]
    if len(hedged.after) < 2:
        return hedged
    after = dict(hedged.after)
    joined, follower = False, None
    for number, term in reversed(list(enumerate(marked.terms))):
        if number not in after:
            follower = None
        elif term.name not in WHEN_NORMAL and term.name not in (GENERAL, SKIP):
            if follower is None or follower.start > after[number]:
                joined = False
            else:
                between = marked.words[term.end : follower.start]
                joined = (joined and between == [","]) or not _JOINED.isdisjoint(between)
                if not joined:
                    del after[number]
            follower = term
    return replace(hedged, after=after)


def _without_nipples(mentions: Iterable[_Mention]) -> Iterator[_Mention]:
    """A nodule or an opacity in a sentence on nipples is the shadow of one, if at most hedged."""
    for mention in mentions:
        if mention.name not in _SHADOW_LIKE or mention.status is not Status.PRESENT:
            yield mention


def _labels(mentions: Sequence[_Mention]) -> dict[str, FindingLabel]:
    """One label for each observation mentioned, and No Finding."""
    labels = {}
    for name in OBSERVATIONS:
        if own := [mention for mention in mentions if mention.name == name]:
            labels[name] = _settle(own)
    found = any(m.status is not Status.ABSENT and m.name not in ("Support Devices", GENERAL) for m in mentions)
    if found or any(mention.status is Status.ABSENT for mention in mentions):
        labels[NO_FINDING] = FindingLabel(Status.ABSENT if found else Status.PRESENT)
    return {name: labels[name] for name in OBSERVATIONS if name in labels}


def _settle(mentions: list[_Mention]) -> FindingLabel:
    """One label from all mentions of one observation."""
    status = max((m.status for m in mentions), key=_RANK.__getitem__)
    sides: frozenset[Side] = frozenset().union(*(m.sides for m in mentions if m.status is status))
    if status is Status.ABSENT or not sides or mentions[0].name in _UNSIDED:
        return FindingLabel(status)
    return FindingLabel(status, Side.BILATERAL if sides == BOTH_SIDES else next(iter(sides)))


def _of_boxes(match: re.Match[str]) -> str:
    """The answer that is ticked, as the value of a field; neither says nothing, both say that it is not certain."""
    parts = [part[0] for part in _BOX_OR_ANSWER.finditer(match[1])]
    pairs = list(zip(parts[::2], parts[1::2], strict=True))
    if pairs[0][0][0].isalpha():
        pairs = [(box, answer) for answer, box in pairs]
    ticked = [answer for box, answer in pairs if box.strip("[]() \u2610")]
    return f": {ticked[0] if len(ticked) == 1 else 'uncertain' if ticked else 'n/a'}; "


def _line_end(line: re.Match[str]) -> str:
    """The line with a blank one after it, where it is a statement of its own."""
    plain = line[0].rstrip()
    return line[0] if _GOES_ON.search(plain) or _PLACE.fullmatch(plain.strip()) else f"{line[0]}\n"


def _sentences(text: str) -> Iterator[str]:
    """Sentences in lower case, with single blanks."""
    if "\n" in text:
        is_lower = text.islower() and "." not in text
        text = (_LOWER_LINE if is_lower else _LINE).sub(_line_end, text)
    text = _GLUED.sub(r"\g<0> ", text.lower())
    if "[" in text or "(" in text or not text.isascii():
        text = _BOXES.sub(_of_boxes, text)
        text = _TICKED.sub(lambda box: ":" if box[1] else "\n-", _UNTICKED.sub("", text))
    if "?" in text:
        text = _ASKED.sub(" is in doubt.", _ANSWERED.sub(": ", text))
    for sentence in _SPLIT.split(_ABBREVIATED.sub(r"\1\2\3\4", text)):
        plain = " ".join(sentence.split())
        while len(plain) > _LONGEST:
            cut = plain.rfind(" ", 0, _LONGEST)
            end = cut if cut > 0 else _LONGEST
            yield plain[:end]
            plain = plain[end:].lstrip()
        if plain:
            yield plain
