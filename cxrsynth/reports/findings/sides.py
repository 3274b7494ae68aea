"""The side of each finding in a sentence: left, right or both."""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from cxrsynth.reports.findings.scope import Term
from cxrsynth.reports.findings.terms import WHEN_NORMAL
from cxrsynth.reports.labels import Side

_LEFT, _RIGHT = frozenset({Side.LEFT}), frozenset({Side.RIGHT})
BOTH_SIDES: frozenset[Side] = frozenset({Side.LEFT, Side.RIGHT})
_SIDES = dict.fromkeys(("left", "lt", "leftward", "lingula", "lingular"), _LEFT)
_SIDES |= dict.fromkeys(("right", "rt"), _RIGHT)
_SIDES |= dict.fromkeys(
    ("bilateral", "bilaterally", "both", "bibasilar", "bibasal", "biapical", "bilat", "biapically"), BOTH_SIDES
)
# "left ventricular" and the like are a chamber, not the side of the finding.
_NOT_A_SIDE = frozenset({"ventricle", "ventricular", "atrium", "atrial", "heart"})
_CLAUSE_ENDS = frozenset({",", ";", "but", "with", "however", "while", "without", "no", "although", "accompanied"})
_PLACES = frozenset({"in", "on", "at", "within", "overlying"})
# Words between two terms that share a side: "left opacity, likely atelectasis", "... and effusion". A side carries over
# forward across all of them, and backward ("atelectasis and effusion on the left") only across the first few.
_JOINS_BACK = re.compile(r"(?:(?:and|or|&|versus|vs|representing) ?)*")
_JOINS = re.compile(
    r"(?:(?:,|and|or|&|versus|vs|accompanied|by|associated|adjacent|small|mild|minimal|with|consistent|compatible|may|represent(?:s|ing)?"
    r"|reflect(?:s|ing)?|likely|probabl[ey]|possibl[ey]|most|suggest(?:s|ing|ive)|concerning|for|of|which|could|be|due|to"
    r"|pleural|a|the|either|focal|underlying|overlying|parapneumonic|compressive|trace"
    r"|tiny|left|right|costophrenic|cp|angle|xxxx) ?)*"
)
# Paired parts without a side mean both sides.
_PAIRED = frozenset({"bases", "apices"})


def sides_of(words: Sequence[str], terms: Sequence[Term]) -> list[frozenset[Side]]:
    """The side of each term: its own, that of its clause, or that of a term joined to it by "and" or "or".

    The result has one set for each term, in order, empty if no side is named.
    """
    findings = [term for term in terms if term.name not in WHEN_NORMAL]
    ends = [*(term.start for term in findings[2:]), len(words)]
    parted = [_parted(words, left, right, end) for (left, right), end in zip(pairwise(findings), ends, strict=False)]
    sides: dict[int, frozenset[Side]] = {}
    for index, term in enumerate(findings):
        first = (parted[index - 1] or findings[index - 1].end) if index else 0
        last = (parted[index] or findings[index + 1].start) if index + 1 < len(findings) else len(words)
        places = (range(term.start, term.end), range(term.start - 1, first - 1, -1), range(term.end, last))
        sides[term.start] = next(filter(None, (_side_words(words, place) for place in places)), frozenset())
    pairs = list(pairwise(findings))
    for joins, ordered in ((_JOINS, pairs), (_JOINS_BACK, [(right, left) for left, right in reversed(pairs)])):
        for known, open_ in ordered:
            if not sides[open_.start] and sides[known.start]:
                between = words[min(known.end, open_.end) : max(known.start, open_.start)]
                if joins.fullmatch(" ".join(between)):
                    sides[open_.start] = sides[known.start]
    return [sides.get(term.start, frozenset()) for term in terms]


def _parted(words: Sequence[str], left: Term, right: Term, end: int) -> int | None:
    """The "and" of "atelectasis at the right base and effusion on the left": each has its own side."""
    between = words[left.end : right.start]
    if not between or between[0] not in _PLACES or "and" not in between:
        return None
    last = max(place for place, word in enumerate(between) if word == "and")
    own = (between[:last], words[left.end + last : end])
    return None if any(map((_SIDES.keys() | _PAIRED).isdisjoint, own)) else left.end + last


def _side_words(words: Sequence[str], positions: Iterable[int]) -> frozenset[Side]:
    """Sides named between a term and the end of its clause, in the order of `positions`."""
    found: frozenset[Side] = frozenset()
    paired = False
    for position in positions:
        word = words[position]
        if word in _CLAUSE_ENDS:
            break
        if word in _SIDES and (position + 1 >= len(words) or words[position + 1] not in _NOT_A_SIDE):
            found |= _SIDES[word]
        paired |= word in _PAIRED
    return found or (BOTH_SIDES if paired else found)
