"""Comparisons with earlier studies: the sentences, words and sections that contain them."""

import re
from collections import Counter

from cxrsynth.reports.deid.rules import HOLES, MARK, NOUN
from cxrsynth.reports.deid.sentences import BOUNDARY

_EARLIER = r"(?:prior|previous|earlier|preceding|comparison|most recent|more recent)"
# "Prior sternotomy seen on the lateral view" is not a comparison.
_NOT_BETWEEN = r"(?:seen|noted|on|in|with|of|is|are|was|were|the|at|by|for|to|from|as)\s"
_STUDY = (
    r"(?:exam\w*|stud(?:y|ies)|films?|radiograph\w*|x-?rays?|x\b|ct\b|cts\b|cta\b|mri?\b|pet\b|cxrs?|scans?|images?"
    r"|imaging|reports?|views?|tomogra\w*|series|date|visit|time)"
)
_THEN_A_STUDY = rf"(?:\s[\w/-]{{1,20}}){{0,5}}?(?:\s{_STUDY}|\s{{0,2}}{HOLES})"
# "Compared to the left", "compared size of both lungs", "comparable volumes": of one part of the image with another.
_WITHIN_IMAGE = (
    r"(?:(?:ed|ison|able)\s(?:to|with)\s(?:(?:the|its)\s)?(?:left|right|contralateral|opposite|other)\b"
    r"|ed\s(?:size|volumes?|width|height|density|aeration|lucency|transparency)\b|abl[ey]\b(?!\s(?:to|with))|ative)"
)
# A sentence with a match is removed. Matched against lower-case text, which is faster than ignoring case.
COMPARISON: re.Pattern[str] = re.compile(
    rf"\bcompar(?!t)(?!{_WITHIN_IMAGE}(?!{_THEN_A_STUDY}))\w*"
    rf"|\b{_EARLIER}\s(?:(?!{_NOT_BETWEEN})[\w/-]{{1,20}}\s){{0,4}}?{_STUDY}"
    rf"|\b(?:last|old)\s(?:chest\s|outside\s)?{_STUDY}"
    rf"|\b{_EARLIER}\s(?:[\w/-]{{1,20}}\s){{0,2}}?{HOLES}"
    r"|\b(?:from|to|than|since|with|versus|vs\.?|on|the|as)\s(?:the\s|a\s|any\s)?(?:priors?|previous|earlier|before)"
    rf"\s?(?:[.,;:)]|$|{HOLES}|\b(?:of|dated|on|from|at)\b)"
    r"|\bpriors\b|\bpreviously\b|\bno longer\b|\byesterday\b|\bearlier (?:today|that|the|this|same)\b"
    r"|\bday before\b"
    r"|\b(?:\d{1,3}|one|two|three|four|five|six|several|few) (?:hours?|days?|weeks?|months?|years?)"
    r" (?:ago|earlier|prior|before)\b"
    r"|\bsince\s(?:the\s|an?\s|his\s|her\s)?"
    rf"(?:(?:prior|previous|last|earlier|most|exam|study|radiograph|film|that|at)\b|{HOLES})"
    r"|\b(?:unchanged|stable|similar|changed?|increased?|decreased?|improved|progress\w*|larger|smaller"
    r"|new|worse\w*|resolved"
    rf"|different)\s(?:in\s\w{{1,20}}\s)?(?:from|since|to|than)\s(?:the\s|that\s)?(?:(?:of|on|in"
    rf"|dated)\s)?(?:the\s)?{HOLES}"
    r"|\b(?:new|unchanged|stable|changed?|increased?|decreased?|improved|worse\w*"
    r"|progress\w*)\s(?:\w{1,20}\s){0,2}?since\b",
)
# Checked first, in lower case: a sentence without any of these is not searched for COMPARISON.
COMPARISON_NEEDS: tuple[str, ...] = (
    *("compar", "prior", "previous", "earlier", "preceding", "recent", "last", "old", "before", "no longer"),
    *("yesterday", "ago", "since", NOUN, MARK),
)
_STILL = (
    r"(?:(?:grossly|essentially|largely|relatively|overall|generally|otherwise|fairly)\s)?(?:unchanged|stabl[ey]"
    r"|persistent(?:ly)?)(?:\s(?:in|of)\s(?:appearance|position|size|configuration))?\b"
)
# "stable", "interval": the word is removed, the finding stays.
COMPARISON_WORD: re.Pattern[str] = re.compile(
    r"\b(?:there\s(?:is|are|has\sbeen|have\sbeen)\s)?no\s(?:\w{2,12}ly\s)?(?:(?:significant|interval"
    r"|definite|appreciable"
    r"|substantial|major|marked|short-term|further|convincing|large|gross|real)\s){0,3}changes?\s(?:in|of)(?:\sthe)?\b"
    rf"|\b(?:once\s)?again\b|\bin the interval\b|\b{_STILL}"
    r"|\binterval(?:ly)?\b|\bnew(?:ly)?\b(?!\sYork)"
    r"|\b(?:worsening|worsened|improving|improved)\s(?=[a-z])|\bre-?(?=demonstrat)",
    re.IGNORECASE,
)
# "No pneumothorax and unchanged effusion": the word that is removed is what ends the denial. Unless a list of what is
# denied goes on after it, a semicolon takes its place.
_ENDS_DENIAL = re.compile(
    r"(?P<denied>\b(?:no|without|negative for|absence of)\b[^.;:]{1,200}?)"
    rf"(?:, (?:with )?| with |,? and (?=(?:once )?again\b|no\b|{_STILL}))"
    rf"(?=(?:{COMPARISON_WORD.pattern})(?![^.;:]{{0,200}}\b(?:or|nor)\b))",
    re.IGNORECASE,
)
# As COMPARISON_NEEDS, for COMPARISON_WORD.
COMPARISON_WORD_NEEDS = ("change", "again", "interval", "stabl", "persistent", "new", "wors", "improv", "demonstrat")

_SECTION = re.compile(r"(?:^|(?<=[.;\n ]))comparisons?(?: (?:study|studies|exams?|films?|dates?))?\s?:", re.IGNORECASE)
_HEADER = re.compile(
    r"\b(?i:findings?|impression|technique|indication|history|clinical [a-z ]{2,30}|exam(?:ination)?|procedure"
    r"|reason for [a-z ]{2,30}|recommendations?|conclusion|notification|report|wet read|views?)\s?:"
    r"|^ ?[A-Z][A-Za-z ]{2,30}:|\n\n",
    re.MULTILINE,
)
# A line that ends without a full stop and far from the margin: the next one, with a capital, is another sentence.
_SHORT_LINE = re.compile(r"[^\n.?!]{0,50}\n(?= ?[A-Z])")


def without_comparison_words(sentence: str) -> tuple[str, int]:
    """A sentence without the words of COMPARISON_WORD, and how many it had; what they keep apart stays apart."""
    if COMPARISON_WORD.search(sentence) is None:
        return sentence, 0
    return COMPARISON_WORD.subn(" ", _ENDS_DENIAL.sub(r"\g<denied>; ", sentence))


def without_comparison_sections(text: str, removed: Counter[str]) -> str:
    """Remove COMPARISON sections, and add their number to `removed`.

    A section ends at the next header or blank line; if none follows, after one sentence or one short line.
    """
    if "comparison" not in text.lower():
        return text
    kept, position = [], 0
    for match in _SECTION.finditer(text):
        if match.start() < position:
            continue
        header = _HEADER.search(text, match.end())
        if header is not None:
            end: int | None = header.start()
        else:
            last = _SHORT_LINE.match(text, match.end()) or BOUNDARY.search(text, match.end())
            end = None if last is None else last.end()
        kept.append(text[position : match.start()])
        position = len(text) if end is None else end
        removed["comparison"] += 1
    return "".join(kept) + text[position:]
