"""The terms of a statement, and what each cue extends over: NegEx, for several kinds of cues at once.

NegEx (Chapman et al. 2001, doi:10.1006/jbin.2001.1029): a cue extends over the terms after it, or, for other cues,
before it, up to a word that ends its scope; pseudo cues cancel those that begin inside them. Terms and all kinds of
cues are found in one pass over the statement, in time linear in its length: negspacy, whose cues for clinical text are
used here, takes a pass for each kind, and its time grows with the square of the length.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from spacy.language import Language
from spacy.matcher import PhraseMatcher

from cxrsynth.reports.findings.cues import Cues

_Places = Mapping[str, list[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Term:
    """A phrase that names an observation, a structure or neither, at words `start` up to, but not including, `end`."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Scope:
    """Terms that cues of one kind extend over, by number: from a cue before them, and from one after them.

    `after` maps a term to the word where the last such cue begins.
    """

    before: frozenset[int] = frozenset()
    after: Mapping[int, int] = field(default_factory=dict)

    def __contains__(self, term: object) -> bool:
        return term in self.before or term in self.after


@dataclass(frozen=True, slots=True)
class Statement:
    """The words of a statement, its terms in order, and the scope of each kind of cues."""

    words: list[str]
    terms: list[Term]
    scopes: Mapping[str, Scope]


class Marker:
    """Marks terms and scopes in statements.

    Args:
        nlp: its tokenizer and vocabulary.
        terms: name and phrase of each term, in lower case.
        cues: kind -> its cues.
    """

    def __init__(self, nlp: Language, terms: Iterable[tuple[str, str]], cues: Mapping[str, Cues]) -> None:
        self._tokenizer = nlp.tokenizer
        self._matcher = PhraseMatcher(nlp.vocab, attr="ORTH")
        self._roles: dict[int, tuple[str, str]] = {}
        phrases: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name, phrase in terms:
            phrases["term", name].append(phrase)
        for kind, termset in cues.items():
            for role, own in termset.items():
                phrases[kind, role] += own
        for (kind, role), own in phrases.items():
            key = f"{kind}: {role}"
            self._matcher.add(key, list(self._tokenizer.pipe(own)))
            self._roles[nlp.vocab.strings[key]] = (kind, role)
        self._kinds = tuple(cues)

    def mark(self, text: str) -> Statement:
        """Terms and scopes of a statement in lower case; without terms, scopes are not looked for."""
        doc = self._tokenizer(text)
        found: dict[str, dict[str, list[tuple[int, int]]]] = {}
        for key, start, end in self._matcher(doc):
            kind, role = self._roles[key]
            found.setdefault(kind, {}).setdefault(role, []).append((start, end))
        terms = _longest(found.pop("term", {}))
        empty = Scope()
        scopes = {kind: _scope(terms, found[kind]) if terms and kind in found else empty for kind in self._kinds}
        return Statement([token.text for token in doc], terms, scopes)


def _longest(found: _Places) -> list[Term]:
    """Of terms that overlap the longest, of equally long ones the first."""
    terms = [Term(name, start, end) for name, places in found.items() for start, end in places]
    taken: set[int] = set()
    kept = []
    for term in sorted(terms, key=lambda term: (term.start - term.end, term.start)):
        if term.start not in taken and term.end - 1 not in taken:
            kept.append(term)
            taken.update(range(term.start, term.end))
    return sorted(kept, key=lambda term: term.start)


def _scope(terms: Sequence[Term], found: _Places) -> Scope:
    cancelled = {word for start, end in found.get("pseudo_negations", ()) for word in range(start, end)}
    ends = sorted({start for start, _ in found.get("termination", ()) if start not in cancelled})
    first: dict[int, int] = {}  # clause -> where its first cue for what follows begins
    last: dict[int, tuple[int, int]] = {}  # clause -> where its last cue for what precedes ends, and begins
    for start, _ in found.get("preceding_negations", ()):
        if start not in cancelled:
            clause = bisect_right(ends, start)
            first[clause] = min(start, first.get(clause, start))
    for start, end in found.get("following_negations", ()):
        if start not in cancelled:
            clause = bisect_right(ends, start)
            last[clause] = max((end, start), last.get(clause, (end, start)))
    before, after = set(), {}
    for number, term in enumerate(terms):
        clause = bisect_right(ends, term.start)
        if clause != bisect_right(ends, term.end - 1):
            continue
        if first.get(clause, term.start) < term.start:
            before.add(number)
        if last.get(clause, (0, 0))[0] > term.end:
            after[number] = last[clause][1]
    return Scope(frozenset(before), after)
