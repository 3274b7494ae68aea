"""Reads the 14 CheXpert observations, with certainty and side, out of a radiology report.

Scope is NegEx (Chapman et al. 2001, doi:10.1006/jbin.2001.1029) as kept in negspacy: one pass finds what is
denied, one what is hedged, and two more tell whether a named structure is called normal or enlarged. What counts as a
mention follows the CheXpert labeler (arXiv:1901.07031, section 2); docs/findings.md gives its measured errors.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import spacy
from negspacy.negation import Negex
from negspacy.termsets import LANGUAGES
from spacy.tokens import Doc, Span

from cxrsynth.reports.labels import OBSERVATIONS, FindingLabel, Side, Status

# Structures: no observation by themselves, but "normal" or "enlarged" said of one settles the observations listed.
_WHEN_NORMAL = {
    "HEART": ("Cardiomegaly",),
    "MEDIASTINUM": ("Enlarged Cardiomediastinum",),
    "HEART AND MEDIASTINUM": ("Cardiomegaly", "Enlarged Cardiomediastinum"),
    "LUNGS": ("Lung Opacity", "Consolidation"),
    "PLEURA": ("Pleural Effusion",),
    "VESSELS": ("Edema",),
    "BONES": ("Fracture",),
    "CHEST": (),
}
_WHEN_ENLARGED = {
    "HEART": "Cardiomegaly",
    "MEDIASTINUM": "Enlarged Cardiomediastinum",
    "HEART AND MEDIASTINUM": "Enlarged Cardiomediastinum",
}
# Abnormal but outside the 14: CheXpert's labeler lets such a mention speak against "No Finding", and so do we.
_OTHER = "OTHER"
# "No acute ...", "no active ...": denies nothing in particular, yet is the report's own word for "No Finding".
_GENERAL = "GENERAL"
# Swallows a longer phrase whose head would otherwise be read as a finding, as in "pericardial effusion".
_SKIP = "SKIP"


def _each(first: str, second: str) -> str:
    """Every pairing of two bar-separated lists of words."""
    return "|".join(f"{one} {other}" for one in first.split("|") for other in second.split("|"))


_GRADES = "enlarged|widened|prominent|large|enlargement of the|enlargement of|widening of the|prominence of the"
# Phrases after which CheXpert's labeler looks too, widened by what the Open-i development half says otherwise. Each is
# also matched with a final s; the longest match wins.
_TERMS = {
    "Enlarged Cardiomediastinum": _each(
        _GRADES,
        "mediastinum|superior mediastinum|upper mediastinum|mediastinal silhouette|mediastinal contour"
        "|cardiomediastinal silhouette|cardiomediastinal contour",
    )
    + "|mediastinal widening|mediastinal enlargement|mediastinal prominence|mediastinal mass|paratracheal prominence"
    "|paratracheal soft tissue prominence",
    "Cardiomegaly": _each(
        _GRADES, "heart|heart size|heart silhouette|cardiac silhouette|cardiac shadow|cardiac contour"
    )
    + "|cardiomegaly|cardiac enlargement|heart enlargement|cardiac silhouette enlargement",
    "Lung Opacity": (
        "opacity|opacities|opacification|opacified|infiltrate|infiltration|airspace disease|air space disease"
        "|airspace process|air space process|airspace density|airspace densities|lung density|pulmonary density"
        "|increased density|interstitial markings|interstitial prominence|interstitial changes|interstitial pattern"
        "|interstitial thickening|reticular markings|interstitial disease|interstitial lung disease"
        "|reticulonodular pattern|reticular pattern|retrocardiac density|basilar density|streaky density"
        "|streaky densities|patchy density|patchy densities|lower lobe density|basilar densities|alveolar disease"
        "|interstitial process|ill defined density|parenchymal density|parenchymal densities"
    ),
    "Lung Lesion": (
        "nodule|nodularity|mass|masses|nodular opacity|nodular opacities|nodular density|nodular densities|tumor"
        "|neoplasm|carcinoma|cavitary lesion|lung lesion|pulmonary lesion|nodular opacification|lump|lung cancer"
        "|metastases|metastasis|metastatic disease|malignancy"
    ),
    "Edema": _each(
        "prominent|increased|engorged|indistinct|prominence of the|engorgement of the",
        "vasculature|vascularity|pulmonary vasculature|pulmonary vascularity|central pulmonary vasculature",
    )
    + "|edema|heart failure|chf|congestion|venous hypertension|vascular engorgement|fluid overload|volume overload"
    "|vascular redistribution|congestive failure|vascular prominence|indistinct vascular|prominent pulmonary vascular"
    "|increased pulmonary vascular|increased lung vascularity",
    "Consolidation": "consolidation|consolidative|consolidated",
    "Pneumonia": "pneumonia|bronchopneumonia|pneumonitis|infection|infectious",
    "Atelectasis": "atelectasis|atelectases|atelectatic|collapse|collapsed lung|atelectasia",
    "Pneumothorax": "pneumothorax|pneumothoraces|pneumothoraxes|hydropneumothorax",
    "Pleural Effusion": "effusion|pleural fluid|hemothorax|hydrothorax|fluid in the fissure",
    "Pleural Other": (
        "pleural thickening|fibrothorax|pleural scarring|pleural scar|pleural parenchymal scarring"
        "|pleural parenchymal scar|pleural plaque|pleural calcification|thickening of the pleura"
        "|pleural and parenchymal scarring|calcified pleural plaques|pleural based thickening|apical capping"
        "|pleural cap|apical cap|apical thickening|pleuroparenchymal scarring"
    ),
    "Fracture": "fracture|fractured",
    "Support Devices": (
        "pacemaker|pacer|aicd|icd|defibrillator|generator|picc|catheter|central line|central venous line|chest tube"
        "|tracheostomy|portacath|mediport|chest port|port|stent|prosthesis|prostheses|prosthetic|valve replacement"
        "|hardware|stimulator|arthroplasty|intubated|balloon pump|loop recorder|rods|venous access device"
        "|subclavian line|jugular line|nasogastric|artificial valve|pigtail|drain|ett|dobhoff|swan ganz|screws"
        "|orthopedic plate|tube|portacatheter|pacing device|cardiac device|cardiac monitor|shunt|fixation|fusion"
        "|bone anchor|anchors|occluder|closure device|vascular filter|ivc filter|tubing|svc|superior vena cava"
        "|cavoatrial junction|caval atrial junction|support lines|electrodes|lead"
    ),
    "HEART": "heart|cardiac",
    "MEDIASTINUM": "mediastinum|mediastinal",
    "HEART AND MEDIASTINUM": (
        "cardiomediastinal|cardio mediastinal silhouette|cardiac mediastinal silhouette|cardiomediastinum"
    ),
    "LUNGS": "lung",
    "PLEURA": "costophrenic angle|cp angles|costophrenic sulci|pleural space|costophrenic recesses",
    "VESSELS": "vascularity|vasculature|pulmonary vascular",
    "BONES": "bony structures|osseous structures|skeletal structures|bones|bony thorax|thoracic spine|ribs",
    "CHEST": "chest|examination|exam|study|radiograph",
    _OTHER: (
        "tortuous|tortuosity|ectatic|ectasia|unfolded|uncoiled|scoliosis|kyphosis|degenerative|degeneration"
        "|spondylosis|osteophyte|arthritic|arthritis|atherosclerosis|atherosclerotic|calcified|calcification|granuloma"
        "|granulomatous|granulomata|emphysema|emphysematous|copd|chronic obstructive pulmonary disease|hyperinflation"
        "|hyperinflated|hyperexpanded|hyperexpansion|hyperlucent|hyperaerated|hypoinflation|hypoinflated"
        "|hypoventilation|low lung volumes|lung volumes are low|low volumes|hypoaeration|scar|scarring|fibrosis"
        "|fibrotic|hernia|eventration|elevated|elevation|deformity|deformities|wedging|osteopenia|osteoporosis"
        "|demineralization|blunting|blunted|flattened|flattening|crowding|clip|sternotomy|wires|cabg|bypass"
        "|bronchiectasis|bullous|bullae|bleb|tuberculosis|aneurysm|pectus|obscured|density|densities|lucency|lucencies"
        "|air trapping|volume loss|adenopathy|lymphadenopathy|pericardial effusion|pneumoperitoneum|bronchitic"
        "|foreign body|bullet|sutures|staples|surgical changes|mastectomy|compression|height loss|loss of height"
        "|sclerotic|sclerosis|thickening|peribronchial cuffing|spurring|dextroscoliosis|levoscoliosis|dish"
        "|pulmonary hypertension|prominent|prominence|interstitial|fat pad|epicardial fat|cholecystectomy"
        "|post surgical|postsurgical|postoperative|subsegmental|hyperostosis|obscuration|lordosis|dislocation"
        "|pneumomediastinum|free air|free intraperitoneal air|sequela|sequelae|limited|suboptimal|bronchitis|calcific"
        "|nipple|metallic|mitral annulus|curvature|granulomatous infection|breast implants|breast prostheses|piercing"
        "|dilated|endplate"
    ),
    _GENERAL: "acute|active|cardiopulmonary|abnormality|abnormalities|disease|findings",
    _SKIP: (
        "mass effect|heart border|cardiac border|lung volumes|body mass|disc disease|joint effusion|breast prosthesis"
        "|carcinoma in situ|soft tissue mass|breast mass|line of sight|thymic tissue|cardiac apex|chest pain"
        "|chest wall|port of entry|mediastinal shift|cardiac valve|lung apex|lung apices|mediastinal clips"
        "|coronary artery disease|nodular contour|left heart|right heart|mediastinal lymph nodes"
        "|mediastinal adenopathy|mediastinal calcifications|lung disease|portable|stent graft site"
        "|degenerative disease|cardiac and pulmonary"
    ),
}
# A term that says a second thing besides its own.
_ALSO = {"hydropneumo": "Pleural Effusion", "nodular opac": "Lung Opacity", "nodular dens": "Lung Opacity"}

_CLAUSES = (
    "but|however|although|though|except|except for|apart from|aside from|yet|nevertheless|;|otherwise|while|whereas"
    "|other than"
)
# A denial seldom reaches over these ("no effusion, stable cardiomegaly"); a hedge does ("could be mild edema").
_NEGATED_BREAKS = (
    "there is|there are|which|stable|unchanged|chronic|mild|mildly|minimal|minimally|persistent|secondary to|again"
    "|status post|old|remote|healed"
)
_NEGATED_DROP = {"versus", "rule out", "r/o", "ro", "evaluate for", "rules out", "doubt", "declined", "cause of"}
_NEGATED_BEFORE = (
    "negative for|absence of|clear of|resolution of|removal of|resolved|rather than|nor|neither|free from|lack of"
)
_NEGATED_AFTER = (
    "is not seen|not be demonstrated|not be seen|not well seen|are not seen|not seen|not identified|not visualized"
    "|not evident|not present|not appreciated|no longer|absent|is absent|has resolved|have resolved|resolved"
    "|has cleared|have cleared|cleared|has been removed|have been removed|removed|excluded|ruled out|is unlikely"
    "|not demonstrated|not apparent|not detected|not enlarged|not significantly enlarged|not widened|not suspected"
    "|not grossly enlarged"
)
_NEGATED_PSEUDO = (
    "cannot exclude|cannot be excluded|cannot rule out|cannot be ruled out|not excluded|not be excluded|not exclude"
    "|not entirely excluded|not completely excluded|not changed|not significantly changed|no interval"
    "|no significant interval|without significant change|without change|without interval change|can not be excluded"
    "|can not exclude|no substantial change|not as|not completely|not fully|not optimally|not definitely"
    "|difficult to exclude|not entirely|partially resolved|nearly resolved|incompletely resolved|not resolved"
    "|not cleared|almost resolved"
)
_HEDGED_BEFORE = (
    "possible|possibly|probable|probably|likely|may|might|could|suggest|suggests|suggesting|suggestive|suspicious"
    "|suspected|suspicion|suspect|concerning|concern|questionable|question|questioned|equivocal|cannot exclude"
    "|cannot rule out|versus|vs|perhaps|presumably|presumed|potentially|worrisome|borderline|differential|not exclude"
    "|can not exclude|apparent|difficult to exclude|cannot be excluded|favor|favors|favoring|favored|consider"
    "|suggestion|possibility of|alternatively|indicate|clinical setting|correlate|?"
)
_HEDGED_AFTER = (
    "cannot be excluded|not excluded|not be excluded|is possible|are possible|possible|is suspected|suspected"
    "|questionable|not entirely excluded|not completely excluded|can not be excluded|versus|vs|is questioned"
    "|cannot be ruled out|borderline|consideration|a possibility|difficult to exclude|?"
)
_NORMAL = (
    "normal|unremarkable|clear|intact|within limits|within normal limits|within limits of normal|sharp|negative"
    "|nonenlarged|not enlarged|not significantly enlarged|not widened|no acute|not grossly enlarged"
    "|not markedly enlarged"
)
_NORMAL_PSEUDO = "not normal|not clear|abnormal|above normal|not within normal limits"
_ENLARGED = "enlarged|widened|prominent|enlargement|is large|is increased|borderline"
_ENLARGED_PSEUDO = (
    "not enlarged|not significantly enlarged|not widened|no enlargement|not prominent|not grossly enlarged"
    "|not markedly enlarged|not overtly enlarged|not definitely enlarged|nonenlarged|not appear enlarged|not large"
)
# Asked about, long gone or looked for elsewhere: such a mention says nothing of this image.
_UNSAID = (
    "history of|h o|evaluate for|evaluation for|assess for|evaluation of|rule out|r o|exclude|sensitive|detecting"
    "|detection of|to identify|obscure|to assess"
)
_UNSAID_PSEUDO = "cannot exclude|can not exclude|not exclude|difficult to exclude|cannot rule out"

# Sections that tell what was asked or done, not what was seen; such a section ends at a blank line too.
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

_LEFT, _RIGHT, _BOTH_SIDES = frozenset({Side.LEFT}), frozenset({Side.RIGHT}), frozenset({Side.LEFT, Side.RIGHT})
_SIDES = dict.fromkeys(("left", "lt", "leftward", "lingula", "lingular"), _LEFT)
_SIDES |= dict.fromkeys(("right", "rt"), _RIGHT)
_SIDES |= dict.fromkeys(
    ("bilateral", "bilaterally", "both", "bibasilar", "bibasal", "biapical", "bilat", "biapically"), _BOTH_SIDES
)
# "left ventricular" and the like name a chamber, not the side of the finding.
_NOT_A_SIDE = frozenset({"ventricle", "ventricular", "atrium", "atrial", "heart"})
_CLAUSE_ENDS = frozenset({",", ";", "but", "with", "however", "while", "without", "no", "although"})
# Words that may stand between two terms which share a side: "left opacity, likely atelectasis", "... and effusion". The
# side carries on over any of them, but back ("atelectasis and effusion on the left") only over the first few.
_JOINS_BACK = re.compile(r"(?:(?:and|or|&|versus|vs) ?)*")
_JOINS = re.compile(
    r"(?:(?:,|and|or|&|versus|vs|associated|adjacent|small|mild|minimal|with|consistent|compatible|may|represent(?:s|ing)?"
    r"|reflect(?:s|ing)?|likely|probabl[ey]|possibl[ey]|most|suggest(?:s|ing|ive)|concerning|for|of|which|could|be|due|to"
    r"|pleural|a|the|either|focal|underlying|xxxx) ?)*"
)
# Named alone, the paired parts mean both sides.
_PAIRED = frozenset({"bases", "apices"})
_UNSIDED = frozenset({"Cardiomegaly", "Enlarged Cardiomediastinum"})
_RANK = {Status.PRESENT: 2, Status.UNCERTAIN: 1, Status.ABSENT: 0}


@dataclass(frozen=True, slots=True)
class _Mention:
    """One thing one sentence says; `name` is an observation, or _OTHER or _GENERAL."""

    name: str
    status: Status
    sides: frozenset[Side] = frozenset()


def _cues(before: str, after: str, *, pseudo: str, breaks: str) -> dict[str, list[str]]:
    """A termset in negspacy's shape from bar-separated phrases."""
    names = ("preceding_negations", "following_negations", "pseudo_negations", "termination")
    return {
        name: sorted(filter(None, text.split("|")))
        for name, text in zip(names, (before, after, pseudo, breaks), strict=True)
    }


def _negation_cues() -> dict[str, list[str]]:
    """negspacy's clinical termset, with radiology's phrases and without what radiology means otherwise."""
    kept = LANGUAGES["en_clinical"]
    ours = _cues(_NEGATED_BEFORE, _NEGATED_AFTER, pseudo=_NEGATED_PSEUDO, breaks=f"{_CLAUSES}|{_NEGATED_BREAKS}")
    return {name: sorted({*kept[name], *ours[name]} - _NEGATED_DROP) for name in ours}


class FindingsReader:
    """Reads findings from reports. Build one and keep it: building costs tenths of a second, reading well under 1 ms.

    Sentences are remembered, as reports repeat them; the memory holds report text and dies with the reader.
    """

    def __init__(self) -> None:
        nlp = spacy.blank("en")
        self._words = nlp.tokenizer
        ruler = nlp.add_pipe("entity_ruler", config={"phrase_matcher_attr": "LOWER"})
        terms = [(name, term + s) for name, text in _TERMS.items() for term in text.split("|") for s in ("", "s")]
        ruler.add_patterns([{"label": name, "pattern": term} for name, term in terms])  # type: ignore[attr-defined]
        self._mark_terms = ruler
        self._mark_sentences = nlp.add_pipe("sentencizer")
        # A sentence with no last word of any term has no term, and most of the reading cost is saved.
        self._last_words = frozenset(_WORD.findall(term)[-1] for _, term in terms)

        def scope(extension: str, cues: dict[str, list[str]], types: Iterable[str] = ()) -> Negex:
            return Negex(nlp, extension, cues, ent_types=list(types), extension_name=extension)

        self._negated = scope("cxr_negated", _negation_cues())
        self._hedged = scope("cxr_hedged", _cues(_HEDGED_BEFORE, _HEDGED_AFTER, pseudo="", breaks=_CLAUSES))
        unsaid = _cues(_UNSAID, "", pseudo=_UNSAID_PSEUDO, breaks=_CLAUSES)
        self._unsaid = scope("cxr_unsaid", unsaid)
        # Without the first word of any cue a scope marks nothing, so it need not run.
        self._hedging = frozenset(_WORD.findall(cue)[0] for cue in f"{_HEDGED_BEFORE}|{_HEDGED_AFTER}".split("|"))
        self._unsaying = frozenset(_WORD.findall(cue)[0] for cue in _UNSAID.split("|"))
        # Each ends the other's reach: in "heart normal, mediastinum widened" neither word crosses the other.
        normal = _cues(_NORMAL, _NORMAL, pseudo=_NORMAL_PSEUDO, breaks=f"{_CLAUSES}|{_ENLARGED}")
        self._normal = scope("cxr_normal", normal, _WHEN_NORMAL)
        enlarged = _cues("borderline", _ENLARGED, pseudo=_ENLARGED_PSEUDO, breaks=f"{_CLAUSES}|{_NORMAL}")
        self._enlarged = scope("cxr_enlarged", enlarged, _WHEN_ENLARGED)
        self._read_sentence = lru_cache(maxsize=1 << 16)(self._parse)

    def read(self, text: str) -> dict[str, FindingLabel]:
        """What the report says of each observation; one it does not mention has no key.

        Indication, history, comparison and technique sections are not read. Where mentions differ, present beats
        uncertain beats absent, and the side is that of the mentions that won. "No Finding" is present when nothing else
        but Support Devices is present or uncertain, nothing else abnormal is named, and at least one denial was said.
        """
        mentions = [mention for sentence in _sentences(text) for mention in self._read_sentence(sentence)]
        labels = {}
        for name in OBSERVATIONS:
            if own := [mention for mention in mentions if mention.name == name]:
                labels[name] = _settle(own)
        found = any(m.status is not Status.ABSENT and m.name not in ("Support Devices", _GENERAL) for m in mentions)
        if found:
            labels["No Finding"] = FindingLabel(Status.ABSENT)
        elif any(m.status is Status.ABSENT for m in mentions):
            labels["No Finding"] = FindingLabel(Status.PRESENT)
        return labels

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
        if any(ent.label_ in _WHEN_NORMAL for ent in doc.ents):
            self._enlarged(self._normal(doc))
        sides = _sides(doc)
        return tuple(mention for ent, side in zip(doc.ents, sides, strict=True) for mention in _mentions(ent, side))


def _mentions(ent: Span, sides: frozenset[Side]) -> Iterator[_Mention]:
    """What one marked term says, once its scopes are known."""
    name = ent.label_
    if name == _SKIP or (ent._.cxr_unsaid and name != "Support Devices"):
        return
    if name in _WHEN_NORMAL:
        if ent._.cxr_enlarged and name in _WHEN_ENLARGED and not ent._.cxr_negated:
            yield _Mention(_WHEN_ENLARGED[name], Status.UNCERTAIN if ent._.cxr_hedged else Status.PRESENT)
        elif ent._.cxr_normal and not ent._.cxr_enlarged:
            yield from (_Mention(denied, Status.ABSENT) for denied in _WHEN_NORMAL[name] or (_GENERAL,))
        return
    status = Status.ABSENT if ent._.cxr_negated else Status.UNCERTAIN if ent._.cxr_hedged else Status.PRESENT
    yield _Mention(name, status, sides)
    yield from (_Mention(also, status, sides) for words, also in _ALSO.items() if words in ent.text)


def _sides(doc: Doc) -> list[frozenset[Side]]:
    """The side said of each term: its own clause's, or that of a term it is joined to by "and" or "or"."""
    findings = [ent for ent in doc.ents if ent.label_ not in _WHEN_NORMAL]
    said: dict[int, frozenset[Side]] = {}
    for index, ent in enumerate(findings):
        first = findings[index - 1].end if index else 0
        last = findings[index + 1].start if index + 1 < len(findings) else len(doc)
        said[ent.start] = _side_words(doc, range(ent.start - 1, first - 1, -1)) or _side_words(
            doc, range(ent.end, last)
        )
    pairs = list(pairwise(findings))
    for joins, ordered in ((_JOINS, pairs), (_JOINS_BACK, [(right, left) for left, right in reversed(pairs)])):
        for known, open_ in ordered:
            between = doc[min(known.end, open_.end) : max(known.start, open_.start)]
            if not said[open_.start] and joins.fullmatch(between.text):
                said[open_.start] = said[known.start]
    return [said.get(ent.start, frozenset()) for ent in doc.ents]


def _side_words(doc: Doc, positions: Iterable[int]) -> frozenset[Side]:
    """Sides named walking outward from a term, up to the end of its clause."""
    found: frozenset[Side] = frozenset()
    paired = False
    for position in positions:
        word = doc[position].lower_
        if word in _CLAUSE_ENDS:
            break
        follower = doc[position + 1].lower_ if position + 1 < len(doc) else ""
        if word in _SIDES and follower not in _NOT_A_SIDE:
            found |= _SIDES[word]
        paired |= word in _PAIRED
    return found or (_BOTH_SIDES if paired else found)


def _settle(mentions: list[_Mention]) -> FindingLabel:
    """One label out of all mentions of one observation."""
    status = max((m.status for m in mentions), key=_RANK.__getitem__)
    sides: frozenset[Side] = frozenset().union(*(m.sides for m in mentions if m.status is status))
    if status is Status.ABSENT or not sides or mentions[0].name in _UNSIDED:
        return FindingLabel(status)
    return FindingLabel(status, Side.BILATERAL if sides == _BOTH_SIDES else next(iter(sides)))


def _sentences(text: str) -> Iterator[str]:
    """Sentences of the sections that are read, in lower case with hyphens and slashes opened."""
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
