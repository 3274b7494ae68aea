"""Words around a finding, as NegEx termsets: they deny, hedge or dismiss it, or call it normal or enlarged."""

from collections.abc import Mapping

from negspacy.termsets import LANGUAGES

# A termset as negspacy takes it: preceding, following and pseudo cues, and what ends their scope; lower-case phrases.
Cues = Mapping[str, list[str]]

_CLAUSES = (
    "but|however|although|though|except|except for|apart from|aside from|yet|nevertheless|;|otherwise|while|whereas"
    "|other than"
)
# A denial seldom extends over these ("no effusion, stable cardiomegaly"); a hedge does ("could be mild edema").
_NEGATED_BREAKS = (
    "there is|there are|which|stable|unchanged|chronic|mild|mildly|minimal|minimally|persistent|secondary to|again"
    "|status post|old|remote|healed|positive for|accompanied by"
)
_NEGATED_DROP = {"versus", "rule out", "r/o", "ro", "evaluate for", "rules out", "doubt", "declined", "cause of"}
_NEGATED_BEFORE = (
    "nil|negative for|absence of|devoid of|clear of|resolution of|removal of|resolved|rather than|nor|neither|free from"
    "|lack of"
    # A sentence of another language in an English report.
    "|kein|keine|keinen|ohne|sans|aucun|aucune|pas de|sin|sem|senza|nessun|nessuna"
)
_NEGATED_AFTER = (
    "is not seen|not be demonstrated|not be seen|not well seen|are not seen|not seen|not identified|not visualized"
    "|not evident|not present|not appreciated|no longer|absent|is absent|has resolved|have resolved|resolved"
    "|has cleared|have cleared|cleared|has been removed|have been removed|removed|excluded|ruled out|is unlikely"
    "|not demonstrated|not apparent|not detected|not enlarged|not significantly enlarged|not widened|not suspected"
    "|not grossly enlarged|gone|is gone|are gone|disappeared|not visible|not noted|none seen"
    "|has been pulled|have been pulled|was pulled|were pulled"
)
_NEGATED_PSEUDO = (
    "cannot exclude|cannot be excluded|cannot rule out|cannot be ruled out|not excluded|not be excluded|not exclude"
    "|not entirely excluded|not completely excluded|not changed|not significantly changed"
    "|no interval change|no significant interval change|no interval improvement|no interval worsening"
    "|no interval resolution"
    "|no interval increase|no interval decrease|no improvement|no resolution|no significant interval"
    "|without significant change|without change|without interval change|can not be excluded"
    "|can not exclude|no substantial change|not as|not completely|not fully|not optimally|not definitely"
    "|difficult to exclude|not entirely|partially resolved|nearly resolved|incompletely resolved|not resolved"
    "|not possible to exclude|impossible to exclude|unable to exclude|hard to exclude|not able to exclude"
    "|has been pulled back|have been pulled back|was pulled back|were pulled back"
    "|wrong to say that there is no|wrong to say there is no|incorrect to say that there is no|not true there is no"
    "|not true that there is no"
    "|not cleared|almost resolved|cannot be assessed|cannot be evaluated|cannot be determined|cannot be measured"
    "|cannot be quantified|not assessed|not included|not imaged|not well assessed|not well evaluated"
    # A list of what is denied goes on: "no edema or persistent effusion".
    "|or persistent|or chronic|or stable|or mild|or minimal|or old|or remote|or healed"
)
_HEDGED_BEFORE = (
    "possible|possibly|probable|probably|likely|may|might|could|suggest|suggests|suggesting|suggestive|suspicious"
    "|suspected|suspicion|suspect|concerning|concern|questionable|question|questioned|equivocal|cannot exclude"
    "|cannot rule out|versus|vs|perhaps|presumably|presumed|potentially|worrisome|borderline|differential|not exclude"
    "|can not exclude|apparent|difficult to exclude|cannot be excluded|favor|favors|favoring|favored|consider"
    "|not possible to exclude|impossible to exclude|unable to exclude|hard to exclude|not able to exclude"
    "|suggestion|possibility of|alternatively|indicate|clinical setting|correlate|query|queried"
    "|doubt|doubtful|doubted|dubious"
)
_HEDGED_AFTER = (
    "cannot be excluded|not excluded|not be excluded|is possible|are possible|possible|is suspected|suspected"
    "|questionable|not entirely excluded|not completely excluded|can not be excluded|versus|vs|is questioned"
    "|cannot be ruled out|borderline|consideration|a possibility|difficult to exclude|in doubt|doubtful|doubted|dubious"
    "|less likely"
    "|is favored|are favored|favored|is considered|are considered|cannot be confirmed"
)
_NORMAL = (
    "normal|healthy|unremarkable|clear|intact|within limits|within normal limits|within limits of normal|sharp|negative"
    "|nonenlarged|not enlarged|not significantly enlarged|not widened|no acute|not grossly enlarged"
    "|not markedly enlarged"
)
_NORMAL_PSEUDO = "not normal|not clear|abnormal|above normal|not within normal limits"
_ENLARGED = "enlarged|widened|prominent|enlargement|is large|is increased|borderline"
_ENLARGED_PSEUDO = (
    "not enlarged|not significantly enlarged|not widened|no enlargement|not prominent|not grossly enlarged"
    "|not markedly enlarged|not overtly enlarged|not definitely enlarged|nonenlarged|not appear enlarged|not large"
)
# A question, something long gone, or an exam elsewhere: such a mention says nothing about this image.
_UNSAID = (
    "history of|h o|evaluate for|evaluation for|assess for|evaluation of|rule out|r o|exclude|sensitive|detecting"
    "|detection of|to identify|obscure|to assess"
)
_UNSAID_PSEUDO = (
    "cannot exclude|can not exclude|not exclude|difficult to exclude|cannot rule out|not possible to exclude"
    "|impossible to exclude|unable to exclude|hard to exclude|not able to exclude"
)


def _cues(before: str, after: str, *, pseudo: str, breaks: str) -> Cues:
    """A termset for negspacy from bar-separated phrases."""
    names = ("preceding_negations", "following_negations", "pseudo_negations", "termination")
    return {
        name: sorted(filter(None, text.split("|")))
        for name, text in zip(names, (before, after, pseudo, breaks), strict=True)
    }


def _negation_cues() -> Cues:
    """The clinical termset of negspacy, plus phrases of radiology, minus phrases with another meaning there."""
    kept = LANGUAGES["en_clinical"]
    ours = _cues(_NEGATED_BEFORE, _NEGATED_AFTER, pseudo=_NEGATED_PSEUDO, breaks=f"{_CLAUSES}|{_NEGATED_BREAKS}")
    return {name: sorted({*kept[name], *ours[name]} - _NEGATED_DROP) for name in ours}


NEGATED_CUES: Cues = _negation_cues()
HEDGED_CUES: Cues = _cues(_HEDGED_BEFORE, _HEDGED_AFTER, pseudo="", breaks=f"{_CLAUSES}|accompanied by")
UNSAID_CUES: Cues = _cues(_UNSAID, "", pseudo=_UNSAID_PSEUDO, breaks=_CLAUSES)
# Each ends the scope of the other: in "heart normal, mediastinum widened" neither word extends over the other.
NORMAL_CUES: Cues = _cues(_NORMAL, _NORMAL, pseudo=_NORMAL_PSEUDO, breaks=f"{_CLAUSES}|{_ENLARGED}")
ENLARGED_CUES: Cues = _cues("borderline", _ENLARGED, pseudo=_ENLARGED_PSEUDO, breaks=f"{_CLAUSES}|{_NORMAL}")
