"""Reads the 14 CheXpert observations, with certainty and side, from a radiology report.

Scope follows NegEx (Chapman et al. 2001, doi:10.1006/jbin.2001.1029) as implemented in negspacy: one pass finds what is
denied, one what is hedged, and two more whether a named structure is called normal or enlarged. What counts as a
mention follows the CheXpert labeler (arXiv:1901.07031, section 2); docs/findings.md gives its measured errors.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from threading import Lock

import spacy
from negspacy.negation import Negex
from spacy.tokens import Span

from cxrsynth.reports.findings.cues import ENLARGED_CUES, HEDGED_CUES, NEGATED_CUES, NORMAL_CUES, UNSAID_CUES, Cues
from cxrsynth.reports.findings.sides import BOTH_SIDES, sides_of
from cxrsynth.reports.findings.terms import ALSO, GENERAL, SKIP, TERMS, WHEN_ENLARGED, WHEN_NORMAL
from cxrsynth.reports.labels import OBSERVATIONS, FindingLabel, Side, Status

# Sections on what was requested or done, not on what was seen; a blank line ends them too.
_UNREAD = (
    "indications?|(?:clinical |medical |patient )?history|clinical [a-z]+|comparisons?|technique"
    "|reason for [a-z ]{2,30}|exam|examination|type of exam|procedure|views?|notification"
)
_READ = "findings|impressions?|conclusions?|opinion|interpretation|summary|report|findings and impression"
_SECTION = re.compile(rf"(?:^|(?<=[\s.]))(?:(?P<unread>{_UNREAD})|{_READ}) ?:|(?P<blank>\n\s*\n)", re.I)
_SPLIT = re.compile(r"[.!]+(?=\s|$)|\n\s*(?=\n|[-*•]|\d+[.)])|(?<=[a-z]{3})[.](?=[A-Z])")
_SOFTEN = re.compile(r"[-/_:()\[\]\"']+|\s+")
_COMPARED = r"[<>]|(?:is )?(?:greater|larger|more|worse|less|smaller) than"
_BOTH = re.compile(rf",?\s*\b(?:left|right|l|r)\s*(?:{_COMPARED})\s*(?:left|right|l|r)\b", re.I)
_WORD = re.compile(r"[a-z]+|\?")

_UNSIDED = frozenset({"Cardiomegaly", "Enlarged Cardiomediastinum"})
_RANK = {Status.PRESENT: 2, Status.UNCERTAIN: 1, Status.ABSENT: 0}


_LOCK = Lock()  # a reader is not thread-safe


@dataclass(frozen=True, slots=True)
class _Mention:
    """One mention in one sentence; `name` is an observation, or OTHER or GENERAL."""

    name: str
    status: Status
    sides: frozenset[Side] = frozenset()


def read_findings(text: str) -> dict[str, FindingLabel]:
    """The CheXpert observations that a report states, each with its status and, where it is said, its side.

    Args:
        text: of a report, whole or in part.

    Returns:
        Observation (a name of `cxrsynth.OBSERVATIONS`) -> label, in the order of that list; one that the report does
        not mention has no key.
    """
    with _LOCK:
        return _shared_reader().read(text)


class FindingsReader:
    """Reads findings from reports. Create one and keep it: that takes tenths of a second, reading well under 1 ms.

    Sentences are cached, since reports repeat them; the cache holds report text and is freed with the reader.
    """

    def __init__(self) -> None:
        nlp = spacy.blank("en")
        self._words = nlp.tokenizer
        ruler = nlp.add_pipe("entity_ruler", config={"phrase_matcher_attr": "LOWER"})
        terms = [(name, term + s) for name, text in TERMS.items() for term in text.split("|") for s in ("", "s")]
        ruler.add_patterns([{"label": name, "pattern": term} for name, term in terms])  # type: ignore[attr-defined]
        self._mark_terms = ruler
        self._mark_sentences = nlp.add_pipe("sentencizer")
        # A sentence without the last word of any term has no term; skipping it saves most of the time.
        self._last_words = frozenset(_WORD.findall(term)[-1] for _, term in terms)

        def scope(extension: str, cues: Cues, types: Iterable[str] = ()) -> Negex:
            return Negex(nlp, extension, cues, ent_types=list(types), extension_name=extension, chunk_prefix=[])

        self._negated = scope("cxr_negated", NEGATED_CUES)
        self._hedged = scope("cxr_hedged", HEDGED_CUES)
        self._unsaid = scope("cxr_unsaid", UNSAID_CUES)
        # Without the first word of any cue there is nothing for a pass to mark.
        self._hedging = _first_words(HEDGED_CUES)
        self._unsaying = _first_words(UNSAID_CUES)
        self._normal = scope("cxr_normal", NORMAL_CUES, WHEN_NORMAL)
        self._enlarged = scope("cxr_enlarged", ENLARGED_CUES, WHEN_ENLARGED)
        self._read_sentence = lru_cache(maxsize=1 << 16)(self._parse)

    def read(self, text: str) -> dict[str, FindingLabel]:
        """The label of each observation; one that the report does not mention has no key.

        Indication, history, comparison and technique sections are not read. If mentions differ, present overrides
        uncertain, uncertain overrides absent, and the side comes from the mentions that prevail. "No Finding" is
        present when nothing else but Support Devices is present or uncertain, nothing else abnormal is named, and
        something is denied.
        """
        mentions = [mention for sentence in _sentences(text) for mention in self._read_sentence(sentence)]
        labels = {}
        for name in OBSERVATIONS:
            if own := [mention for mention in mentions if mention.name == name]:
                labels[name] = _settle(own)
        found = any(m.status is not Status.ABSENT and m.name not in ("Support Devices", GENERAL) for m in mentions)
        if found:
            labels["No Finding"] = FindingLabel(Status.ABSENT)
        elif any(m.status is Status.ABSENT for m in mentions):
            labels["No Finding"] = FindingLabel(Status.PRESENT)
        return {name: labels[name] for name in OBSERVATIONS if name in labels}

    def read_many(self, texts: Iterable[str]) -> Iterator[dict[str, FindingLabel]]:
        """`read` for each text in turn, lazily."""
        return map(self.read, texts)

    def _parse(self, sentence: str) -> tuple[_Mention, ...]:
        words = frozenset(_WORD.findall(sentence))
        if words.isdisjoint(self._last_words):
            return ()
        doc = self._mark_sentences(self._mark_terms(self._words(sentence)))
        if not doc.ents:
            return ()
        self._negated(doc)
        if words & self._hedging:
            self._hedged(doc)
        if words & self._unsaying:
            self._unsaid(doc)
        if any(ent.label_ in WHEN_NORMAL for ent in doc.ents):
            self._enlarged(self._normal(doc))
        sides = sides_of(doc)
        return tuple(mention for ent, side in zip(doc.ents, sides, strict=True) for mention in _mentions(ent, side))


@cache
def _shared_reader() -> FindingsReader:
    return FindingsReader()


def _first_words(cues: Cues) -> frozenset[str]:
    """The first word of every cue before or after a term."""
    return frozenset(_WORD.findall(cue)[0] for cue in (*cues["preceding_negations"], *cues["following_negations"]))


def _mentions(ent: Span, sides: frozenset[Side]) -> Iterator[_Mention]:
    """The mention that one marked term makes, given its scopes."""
    name = ent.label_
    if name == SKIP or (ent._.cxr_unsaid and name != "Support Devices"):
        return
    if name in WHEN_NORMAL:
        if ent._.cxr_enlarged and name in WHEN_ENLARGED and not ent._.cxr_negated:
            yield _Mention(WHEN_ENLARGED[name], Status.UNCERTAIN if ent._.cxr_hedged else Status.PRESENT)
        elif ent._.cxr_normal and not ent._.cxr_enlarged:
            yield from (_Mention(denied, Status.ABSENT) for denied in WHEN_NORMAL[name] or (GENERAL,))
        return
    status = Status.ABSENT if ent._.cxr_negated else Status.UNCERTAIN if ent._.cxr_hedged else Status.PRESENT
    yield _Mention(name, status, sides)
    yield from (_Mention(also, status, sides) for words, also in ALSO.items() if words in ent.text)


def _settle(mentions: list[_Mention]) -> FindingLabel:
    """One label from all mentions of one observation."""
    status = max((m.status for m in mentions), key=_RANK.__getitem__)
    sides: frozenset[Side] = frozenset().union(*(m.sides for m in mentions if m.status is status))
    if status is Status.ABSENT or not sides or mentions[0].name in _UNSIDED:
        return FindingLabel(status)
    return FindingLabel(status, Side.BILATERAL if sides == BOTH_SIDES else next(iter(sides)))


def _sentences(text: str) -> Iterator[str]:
    """Sentences of the sections that are read, in lower case, with hyphens and slashes separated from words."""
    start, reading = 0, True
    pieces = []
    for heading in _SECTION.finditer(text):
        pieces.append((reading, text[start : heading.start()]))
        start, reading = heading.end(), heading["unread"] is None
    pieces.append((reading, text[start:]))
    for wanted, piece in pieces:
        if wanted:
            for sentence in _SPLIT.split(_BOTH.sub(" bilateral", piece)):
                softened = _SOFTEN.sub(" ", sentence).strip().lower()
                if softened:
                    yield softened
