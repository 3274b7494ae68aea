"""Comparisons with an earlier study: what was seen then, apart from what is seen now."""

import re
from dataclasses import dataclass
from enum import Enum

_EARLIER = r"(?:prior|previous|earlier|preceding|old|outside|comparison|last|recent)"
_STUDY = r"(?:exam\w*|stud(?:y|ies)|films?|radiographs?|x[ -]?rays?|images?|imaging|ct|scans?|reports?)"
_SHOWED = (
    r"(?:which |that )?(?:had )?(?:show(?:ed|ing|s|n)?|demonstrat\w+|reveal(?:ed|ing|s)|describ(?:ed|ing)"
    r"|report(?:ed|ing)|had|(?:when|where) there (?:was|were))"
)
_CHANGE = (
    r"(?:no|now|new|interval|current|today|persist\w*|unchanged|again|still|remain\w*|similar|stable|wors\w+|increas\w+"
    r"|decreas\w+|improv\w+|progress\w*|larger|smaller|change[sd]?|resol\w+|clear\w*|develop\w+)"
)
# "compared to the prior study, which showed edema": up to the end of the clause.
_THEN = re.compile(
    rf"\b(?:{_EARLIER} (?:[a-z]+ ){{0,3}}?{_STUDY}|compar\w+ (?:[a-z]+ ){{0,6}}?{_STUDY})(?: (?:of|from|on"
    rf"|dated) [\w/]+)?,? {_SHOWED}"
    r" (?P<then>[^,;]*)"
)
# "an effusion was seen on the prior study": the whole clause.
# "Compared with the prior film with effusion": nothing stands before it of which the effusion could be said, and no
# change is told.
_WITH = re.compile(
    rf"^(?:(?:in|as) )?compar\w+ (?:[a-z]+ ){{0,6}}?{_STUDY}(?: (?:of|from|on|dated) [\w/]+)? (?:with|accompanied by)"
    rf" (?P<then>(?![^,;]*\b{_CHANGE}\b)[^,;]*)"
)
_WAS = re.compile(rf"(?:^|[,;])(?P<then>[^,;]*\b(?:was|were)\b[^,;]*\b(?:on|in|at) (?:the |a |an )?{_EARLIER}\b[^,;]*)")
_GONE = re.compile(
    r"\b(?:now none|none (?:now|today|is|are|seen|remains?)|no longer|resolved|cleared|gone|disappeared"
    r"|not (?:now |currently )?(?:seen|present|visible|evident|identified|visualized|apparent))\b"
)
_STILL = re.compile(
    r"\b(?:persist\w*|unchanged|again|still|remain(?:s|ing)?|similar|stable|wors\w+|increased|decreased|improv\w+|progress\w*|larger"
    r"|smaller|no (?:significant |interval |definite ){0,2}change)\b"
)


class Since(Enum):
    """What has become of the findings of the earlier study."""

    GONE = "gone"
    STILL = "still there"
    UNSAID = "unsaid"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A sentence in two: what it says of this study, and what of an earlier one."""

    now: str
    then: str
    since: Since


def without_earlier(sentence: str) -> Comparison | None:
    """Separate what a sentence says of an earlier study; None if it says nothing of one.

    `sentence` is lower-case. "Compared to the prior exam, which showed edema, there is now none." says that edema was
    there then, and is gone.
    """
    if not any(
        word in sentence for word in ("prior", "previous", "earlier", "preceding", "compar", "old", "last", "recent")
    ):
        return None
    match = _THEN.search(sentence) or _WITH.search(sentence) or _WAS.search(sentence)
    if match is None or not match["then"].strip():
        return None
    now = f"{sentence[: match.start('then')]} {sentence[match.end('then') :]}"
    since = Since.GONE if _GONE.search(now) else Since.STILL if _STILL.search(now) else Since.UNSAID
    return Comparison(now, match["then"], since)
