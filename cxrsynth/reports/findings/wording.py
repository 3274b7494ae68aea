"""Wording: abbreviations, British spelling and turns of phrase as the words that terms and cues are written in."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_ABBREVIATIONS = {
    **dict.fromkeys(("ptx", "pneumo"), "pneumothorax"),
    "pna": "pneumonia",
    **dict.fromkeys(("atx", "atel", "atelect"), "atelectasis"),
    "ctr": "cardiothoracic ratio",
    **dict.fromkeys(("cxr", "cxrs"), "chest radiograph"),
    **dict.fromkeys(("fx", "fxs", "frx"), "fracture"),
    "mets": "metastases",
    "nad": "no abnormality",
    "gg": "ground glass",
    "ggo": "ground glass opacity",
    **dict.fromkeys(("ccf", "lvf"), "heart failure"),
    "lul": "left upper lobe",
    "lll": "left lower lobe",
    "rul": "right upper lobe",
    "rml": "right middle lobe",
    "rll": "right lower lobe",
    **dict.fromkeys(("luz", "lmz", "llz"), "left zone"),
    **dict.fromkeys(("ruz", "rmz", "rlz"), "right zone"),
    **dict.fromkeys(("lt",), "left"),
    **dict.fromkeys(("rt",), "right"),
    **dict.fromkeys(("bilat", "bilat."), "bilateral"),
    "neg": "negative",
    "spn": "nodule",
    **dict.fromkeys(("sol", "sols"), "space occupying lesion"),
    **dict.fromkeys(("effs", "eff", "effus"), "effusion"),
    **dict.fromkeys(("consolid", "consol", "consols"), "consolidation"),
    "poss": "possible",
    "prob": "probable",
    "vs": "versus",
    "oedema": "edema",
    "oedematous": "edematous",
    "haemothorax": "hemothorax",
    "haemothoraces": "hemothorax",
    "haemopneumothorax": "hemopneumothorax",
    "pneumothoraces": "pneumothorax",
    **dict.fromkeys(("tumour", "tumours"), "tumor"),
    **dict.fromkeys(("favour", "favours", "favouring"), "favor"),
    "favoured": "favored",
    "visualised": "visualized",
    "cephalisation": "cephalization",
    "mediastinal-widening": "mediastinal widening",
    "pacemaker's": "pacemaker",
}
_ABBREVIATED = re.compile(rf"\b(?:{'|'.join(map(re.escape, _ABBREVIATIONS))})\b")
_WORDS_OF = frozenset(_ABBREVIATIONS)
_WORD = re.compile(r"[a-z]+|\?")


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn of phrase. It is looked for only in sentences that have one of the words `needs`."""

    needs: frozenset[str]
    pattern: re.Pattern[str]
    instead: str | Callable[[re.Match[str]], str]


def _turn(needs: str, pattern: str, instead: str | Callable[[re.Match[str]], str]) -> _Turn:
    return _Turn(frozenset(needs.split()), re.compile(pattern), instead)


def _ratio(match: re.Match[str]) -> str:
    """A cardiothoracic ratio in a radiograph: enlarged above one half."""
    number = float(match["number"])
    return "heart is enlarged" if (number if number > 1 else number * 100) > 50 else "heart is normal"


_SIDE = r"(?:left|right|l|r)"
_COMPARED = (
    r"(?:[<>]|(?:is )?(?:greater|larger|bigger|more|worse|less|smaller)(?: \w{1,12})? than(?: (?:on|in|at))?(?: the)?)"
)
_GROWN = r"(?:enlarged|increased|changed|worsened|progressed|grown|expanded)"
_ANEW = (
    "small|tiny|trace|moderate|large|mild|left|right|bilateral|bibasilar|patchy|increased|new|stable|minimal|minor"
    "|persistent"
)
_FINDING = (
    r"(?:pneumothora\w+|effusions?|edema|consolidations?|atelectas[ie]s|fractures?|cardiomegaly|nodules?|mass(?:es)?"
    r"|opacit(?:y|ies)|pneumonia|infiltrates?|lesions?|congestion|collapse)"
)
_STRUCTURE = r"(?:heart|cardiac|mediastin\w+|cardio ?mediastin\w+)"
_WIDE = r"(?:enlarged|widened|prominent|increased|large)"
_NOT_SEEN = (
    r"(?:seen|present|visible|evident|identified|visuali[sz]ed|apparent|appreciated|demonstrated|detected|found|noted)"
)
_OF_OTHER_SIDE = r"(?! (?:(?:on|in|at) (?:the )?(?:left|right|other|opposite|contralateral)|elsewhere)\b)"
_ABOUT_THIS = (
    r"(?:there (?:is|are|was|were)|(?:this|that|it|these|those|they) (?:is|are|was|were|represents?|reflects?"
    r"|indicates?|shows?|suggests?))"
)
_LESS = re.compile(r"\b(?:smaller|decreas\w+|improv\w+|less|tips?|possible [^,;]*but)\b")
# In the order in which they are applied. Text is lower-case, on one line, with single blanks.
_TURNS = (
    _turn("r", r"\br/o'?e?d\b", "ruled out"),
    _turn("r o", r"\br/o\b", "rule out"),
    _turn("w", r"\bw/o\b", "without"),
    _turn("w", r"\bw/(?=\s?\w)", "with "),
    _turn("c", r"\bc/w\b", "representing"),
    _turn("b", r"\bb/l\b", "bilateral"),
    _turn("s", r"\bs/p\b", "status post"),
    # Both sides, in a comparison of the two.
    _turn(
        "left right l r",
        rf",?\s?\b(?:on the |in the |at the )?({_SIDE})\b((?: [a-z]{{3,14}}){{0,3}}) ?{_COMPARED} ?(?!\1\b){_SIDE}\b",
        r" bilateral\2",
    ),
    _turn("l", r"(?<![\w/])(?<!\d )\bl(?=[ ,-])(?!-?\s?(?:\d|spine|spinal))", "left"),
    _turn("r", r"(?<![\w/])(?<!\d )\br(?=[ ,-])(?!-?\s?\d)", "right"),
    _turn("l r", r"\((l|r)\)", lambda match: "left" if match[1] == "l" else "right"),
    _turn("air", r"\bair[ -]space\b", "airspace"),
    _turn("?", r"\s?\?+\s?", " query "),
    _turn(
        "ratio",
        r"\bcardio[- ]?thoracic ratio(?: \(ctr\))? ?(?:is|of|measures|=|:|was)? ?(?:about "
        r"|approximately )?(?P<number>\d{2}(?:\.\d)?|0\.\d\d?)\s?%?",
        _ratio,
    ),
    _turn(
        "ratio heart cardiac",
        r"\b(?:cardio[- ]?thoracic ratio|heart size|cardiac size|heart) (?:is |appears |remains "
        r"|(?P<hedge>may|might|could) be )?(?P<how>\w{4,10}ly )?"
        r"(?:increased|raised|elevated|above normal|greater than normal)\b",
        lambda match: f"heart {match['hedge'] or 'is'} {match['how'] or ''}enlarged",
    ),
    # "Heart size is difficult to assess, but may be enlarged."
    _turn(
        "but",
        rf"\b(?P<name>{_STRUCTURE})\b(?P<said>[^,;]{{1,80}}?),? but (?:it |they )?(?=(?:(?:is|are|may"
        rf"|might|could|appears?|looks?|seems?|remains?|still|be|to|likely|[a-z]+ly) ){{0,5}}{_WIDE}"
        r"(?: ?$|[,;]| (?:and|compared|from|since|in)\b))",
        r"\g<name>\g<said> ; \g<name> ",
    ),
    _turn("ratio", r"\b(?:raised|increased|elevated|high) cardio[- ]?thoracic ratio\b", "heart is enlarged"),
    # "Healed rib #s", "# left clavicle": as British radiologists write a fracture.
    _turn(
        "rib ribs clavicle clavicular humerus humeral scapula scapular vertebral sternum sternal neck shaft"
        " healed healing",
        r"(?<![\w#])#s?(?![\w#])",
        "fracture",
    ),
    _turn(
        "ratio",
        r"\bcardio[- ]?thoracic ratio (?:is |appears |remains )?(?:not (?:increased|raised|elevated)|(?:within )?normal"
        r"(?: limits)?)",
        "heart is normal",
    ),
    _turn("free", r"\b(?:is|are) free(?= ?$|[,;]| and\b)", "is clear"),
    _turn(
        "removal",
        r"\b((?:(?:left|right|bilateral|chest|pleural|pigtail|endotracheal|nasogastric|enteric|central|venous"
        r"|thoracostomy|picc|the) ){0,3}(?:tube|line|catheter|picc|drain|pacemaker|pigtail|port|device)s?) removal\b",
        r"removal of \1 ;",
    ),
    # "Lobar consolidation, right upper lobe": a side that follows as an afterthought.
    _turn(
        "left right bilateral bilaterally",
        r"(?<=[a-z]), (?=(?:(?:small|tiny|trace|mild|moderate|large) )?(?:(?:on|in|at) the )?"
        r"(?:left|right|bilateral(?:ly)?)(?: (?:upper|middle|lower|mid))?"
        r"(?: (?:lobe|zone|base|apex|lung|side|hemithorax))? ?$)",
        " ",
    ),
    _turn("might could", r"\b(?:might|could|may) have this appearance\b", "is possible"),
    _turn(
        "may might could",
        r"\b(?:may|might|could) (?:also |still |now )?(?:be (?:present|seen)|persist|have (?:in|de)creased)\b",
        "is possible",
    ),
    # The heart border is not seen because of the effusion, which is there.
    _turn(
        "due because owing",
        rf"\bnot (?:well |[a-z]+ly )?{_NOT_SEEN},? (possibly |probably |likely )?(?:due to|because of|owing to)\b",
        r"obscured \1due to",
    ),
    # Not seen, unless there is less of it than before, or the tip of a device is meant.
    _turn(
        "definitely definitively clearly convincingly confidently readily conclusively",
        r"\bnot (?:definite|definitive|clear|convincing|confident|readi|conclusive)ly (?=(?:seen|present|visible"
        r"|evident|identified|visuali[sz]ed|apparent|appreciated|demonstrated|detected|noted)\b)",
        lambda match: match[0] if _LESS.search(match.string) else "not ",
    ),
    _turn("instead opposed", r"\b(?:instead of|as opposed to)\b", "rather than"),
    _turn("should", r"\bshould be considered\b", "is considered"),
    # Little of a finding is left, which is not the side.
    _turn("left remains", r"\bnot much (.{1,40}?) (?:is left|remains|is seen|is present)\b", r"minimal \1"),
    # Two negations.
    _turn(
        "absence",
        r"\babsence of (.{1,80}?) (?:cannot|can not|could not|can't) be (?:\w+ly )?(?:confirmed|established"
        r"|proven|ensured|assured)\b",
        r"possible \1",
    ),
    _turn(
        "excluded ruled",
        r"\b(?:can ?not|could not|can't|not)(?: (?!be\b)\w+ly)?(?: be| been)?(?: \w+ly)? (?:excluded|ruled out)\b",
        "cannot be excluded",
    ),
    _turn(
        "exclude rule",
        r"\b(?:can ?not|could not|can't|does not|do not|not)(?: \w+ly)? (?:exclude|rule out)\b"
        r"|\bdifficult to (?:\w+ly )?(?:rule out|exclude)\b"
        r"(?= \w)",
        "cannot exclude",
    ),
    _turn("free without negative", r"\bnot (?:\w+ly )?(?:free (?:of|from)|without|negative for|clear of)\b", "with"),
    _turn("absent", r"\bnot absent\b", "present"),
    _turn("absent", rf"(?:^|(?<=; )|\bwith )absent (?=(?:(?!with\b|and\b|or\b)[a-z]+ ){{0,3}}?{_FINDING})", "no "),
    _turn(
        "think believe feel",
        r"\b(?:do not|don't|did not|didn't) (?:\w+ly )?(?:think|believe|feel)(?: that)? ((?:the|these|those)"
        r" (?:(?!is\b|are\b|has\b|have\b)[a-z]+ ){1,6}(?:is|are|has|have))(?= [a-z])",
        r"; \1 not",
    ),
    _turn(
        "think believe feel suspect",
        rf"\b(?:do not|don't|did not|didn't|would not|wouldn't) (?:\w+ly )?(?:(?:think|believe|feel)(?: that)?"
        rf" {_ABOUT_THIS}|suspect(?: that {_ABOUT_THIS})?)(?: any)?(?= [a-z])",
        "; no",
    ),
    _turn(
        "nothing",
        r"\bnothing (?:(?:else|here|acute|definite|convincing|specific) )?(?:(?:to|that|which) (?:\w+ly )?(?:suggests?"
        r"|indicates?|supports?|points? to(?:wards?)?|favou?rs?)|(?:suggestive|indicative|suspicious|concerning"
        r"|worrisome)(?: of| for)?)\b(?! that\b)(?: the presence of)?",
        "no",
    ),
    _turn(
        "either",
        rf"\beither (?=(?:[a-z]+ ){{0,3}}?(?:{_FINDING}|infection|hemorrhage|aspiration|failure) or\b)"
        r"(?!(?:side|lungs?|base|apex|hemithorax|costophrenic|hemidiaphragm|of)\b)",
        "likely ",
    ),
    # It was asked for, and was not found.
    _turn(
        "none",
        rf"\b(?:question\w*|concern\w*|quer(?:y|ied)|suspicion|suspected|possibility)\b(?P<what>[^;,]{{1,80}}?)"
        rf"(?:[;,]| but| however| although){{1,3}} none (?:is |are |was |were |can be )?{_NOT_SEEN}\b{_OF_OTHER_SIDE}",
        r"no\g<what> ;",
    ),
    _turn(
        "none",
        rf"\b(?P<what>{_FINDING}) (?P<said>(?:is|was|has been|had been) (?:clinically )?(?:questioned|suspected|queried"
        r"|raised|suggested|considered)[^;,]{0,60}?)(?:[;,]| but| however| although){1,3} none"
        rf" (?:is |are |was |were |can be )?{_NOT_SEEN}\b{_OF_OTHER_SIDE}",
        r"no \g<what> ;",
    ),
    _turn("doubt doubts", r"\b(?:no|without|beyond|little)(?: any| a| all| reasonable){0,2} doubts?\b", "definitely"),
    _turn("likely", r"\bnot (?:very )?likely\b", "unlikely"),
    _turn(
        "unlikely likely",
        r"\b(?:is |are )?unlikely to (?:be|represent|reflect|indicate)\b"
        r"|(?:^|[,;] )unlikely (?=[a-z])(?!and\b|or\b|to\b|but\b)",
        " ; no ",
    ),
    # What has not gone, or has not come.
    _turn(
        "resolution resolved clearing cleared",
        r"\b(?:near(?:ly)?|almost|partial(?:ly)?|incomplete(?:ly)?|largely|mostly"
        r"|subtotal)[ -]?(?:complete(?:ly)?|total)? "
        r"(?:resolution(?: of)?|clearing(?: of)?|resolved|cleared)\b",
        "improved",
    ),
    _turn(
        "enlarged increased changed worsened progressed grown expanded",
        rf"\b(?:has|have)(?:n't| not) (?:\w+ly )?{_GROWN}\b",
        "is stable",
    ),
    _turn(
        "interval",
        r"\b(no|without)((?: \w{5,12}(?:nt|te))? )interval (?=(?:development|appearance|occurrence)\b)",
        r"\1\2",
    ),
    _turn("keeping consistent compatible", r"\b(?:in )?(?:keeping|consistent|compatible) with\b", "representing"),
    _turn("likely probable", r"\b(?:is|are) (?:very |most |more )?(?:likely|probable)(?= ?$)", "is suspected"),
    _turn("but", r"\bbut (?:otherwise |are |is )?(?=clear\b|normal\b|unremarkable\b)", "and "),
    _turn("if", r"^if\b", "evaluate for"),
    # "History of heart failure, now with edema"
    _turn(
        "history",
        r"\b(history of (?:(?!history)[^;]){1,80}?),? (?:who )?(?:(?:is )?now (?:has|(?:presents |presenting )?with)"
        r"|(?:presenting )?with(?= (?:an? )?(?:new|acute|small|tiny|trace|moderate|large|worsening)\b))",
        r"\1 ; with",
    ),
    _turn(
        "bony osseous skeletal bone bones rib",
        r"\b(?:no|without|nil)((?: [a-z]{3,15}){0,3}) (?:bony|osseous|skeletal|bone|rib) (?:abnormalit\w+"
        r"|injur\w+|patholog\w+|findings?|changes?)\b",
        r"no\1 fracture",
    ),
    # "The right effusion has resolved, the left has increased": the finding is named once, and said of each side.
    _turn(
        "left right",
        rf"\b(?P<side>left|right)\b(?: |-)?(?P<name>(?:[a-z]+ ){{0,3}}?{_FINDING})\b(?P<said>[^,;]{{1,60}}?)"
        r"(?:[,;]| and| but| while| whereas){1,2} (?:that )?(?:on )?(?:the )?(?!(?P=side)\b)(?P<other>left|right)"
        r"(?: one| side)?(?= (?:has|have|is|was|appears?|persists?|remains?|shows?)\b)",
        r"\g<side> \g<name>\g<said> ; \g<other> \g<name>",
    ),
    # Gone is what stands before the verb, not what the next clause names.
    _turn(
        "resolved cleared gone disappeared removed",
        r"\b((?:has|have|is|are)(?: now| since| been| completely| entirely| fully){0,2}"
        r" (?:resolved|cleared|gone|disappeared|removed))(?:,| and| but| while| whereas){1,2}"
        r" (?!as\b|so\b|nor\b)(?=(?:[a-z]+ ){1,6}(?:has|have|is|are|persists?|remains?|appears?)\b)",
        r"\1 ; ",
    ),
    # "An effusion was present yesterday but is gone now": what is gone stands before.
    _turn(
        "but",
        r",? but (?:it |they )?(?=(?:(?:is|are|has|have) )(?:now |since |been |completely |entirely |fully ){0,2}"
        rf"(?:gone|resolved|cleared|disappeared|(?:no longer|not(?: now| currently)?) {_NOT_SEEN})\b(?! as\b))",
        ", ",
    ),
    # Drained is gone, unless the sentence goes on about what is left.
    _turn(
        "drained evacuated aspirated",
        r"\b(?:has|have) (?:now |since )?been (?:completely |fully |successfully |entirely )?(?:drained|evacuated"
        r"|aspirated)\b(?!.*(?<!\bno )(?<!\bwithout )(?<!\bno significant )\b(?:residual|remain\w*|persist\w*|recurr\w+"
        r"|re-?accumulat\w+|still|left(?= ?$))\b)",
        "has resolved ;",
    ),
    # A finding that could not be looked for is neither there nor absent.
    _turn(
        "assessed evaluated examined determined imaged included assessable evaluable",
        rf"\b((?:{_FINDING}(?:,|,? or|,? and) (?:[a-z]+ )?)*{_FINDING}) (?:(?:is|are|was|were|has|have) )?"
        r"(?:not|cannot|can ?not|could not|can't)(?: be| been)?(?: [a-z]+ly| well| fully)?"
        r" (?:assessed|evaluated|examined|determined|imaged|included|assessable|evaluable)\b",
        r"; evaluate for \1 ;",
    ),
    # "Effusion on the left has resolved, a small one on the right persists."
    _turn(
        "one",
        rf"\b(?P<name>{_FINDING})\b(?P<said>[^,;]{{0,60}}?)(?:[,;]| and| but| while| whereas| however| although"
        r"| though| yet){1,3} (?P<other>(?:that )?(?:there (?:is|are|was|were|remains?) )?(?:an? |the )?"
        r"(?:[a-z-]+ ){0,2})one (?P<where>(?:(?:is|was|has|been|remains?|persists?|seen|present|noted|visible"
        r"|identified|developed|now|again|still) ){0,4}(?:on|in|at) (?:the )?)(?=left|right)",
        r"\g<name>\g<said> ; \g<other>\g<name> \g<where>",
    ),
    # "No persistent pneumothorax": a word that ends a denial elsewhere does not where it follows at once.
    _turn(
        "no without",
        r"\b(no|without)((?: (?:definite|convincing|obvious|residual|significant|new|acute|any|evidence of)){0,3})"
        r" (?:persistent|stable|chronic|mild|mildly|minimal|old|remote|healed|unchanged)"
        r"(?= (?!changes?\b)[a-z])",
        r"\1\2",
    ),
    # "No consolidation, likely atelectasis"
    _turn(
        "no without unlikely nothing",
        rf"\b(no|without) (?P<denied>(?:[^;]{{0,80}}?\b)?(?:{_FINDING}|disease|process|abnormalit\w+|findings?"
        r"|changes?)(?: (?!or\b|nor\b|and\b|to\b|that\b|which\b)[a-z]+){0,3}?),? (?:and |but |with )?"
        r"(?=(?:possibl[ey]|probabl[ey]|(?:more |most |very )?likely|suspected|instead|only|just|besides) (?!resol))",
        r"\1 \g<denied> ; ",
    ),
    _turn(
        "not longer resolved cleared gone disappeared removed",
        rf"\b((?:not|no longer) {_NOT_SEEN}|resolved|cleared|gone|disappeared|removed)"
        r"(?:, (?:but |with )?| with | but )"
        rf"(?=(?:possibl[ey]|probabl[ey]|likely|suspected|instead|only|just|{_ANEW}) (?:[a-z]+ ){{0,4}}?{_FINDING})"
        r"(?!.*\b(?:or|nor|resolved|cleared|gone|disappeared|removed|not seen|none seen)\b)",
        r"\1 ; ",
    ),
    # "Removal of the tube with residual pneumothorax", "After removal of the tube, small pneumothorax"
    _turn(
        "removal resolution resolved clearing",
        r"((?:\b(?:removal|resolution|clearing) of|(?:^|; ?)(?:interval )?resolved) [^,;]{1,80}?)"
        rf"(?:,? with (?=(?:an? |the )?(?:residual|remaining|increas\w+|worsening|{_ANEW})\b)"
        r"|,? and (?=(?:an? |the )?(?:residual|remaining|increas\w+|worsening|new|persistent)\b)"
        r"|,? (?:and|with) (?=(?:interval |new |subsequent )?(?:placement|insertion)\b"
        r"|(?:[a-z]+ ){1,5}(?:unchanged|in place|in position|remain\w*)\b))",
        r"\1 ; ",
    ),
    _turn(
        "removal resolution",
        r"^((?:after|following|status post|since)\b[^,;]* (?:removal|resolution) of [^,;]*),",
        r"\1 ;",
    ),
    # "Possible pneumonia with small effusion": scopes end at "accompanied by", so that the effusion is there.
    _turn(
        "with",
        rf"\bwith (?=(?:an? )?(?:{_ANEW}|unchanged) (?:[a-z]+ ){{0,3}}?(?:effusions?|pneumothora\w+|cardiomegaly"
        r"|atelectas[ie]s|fractures?|nodules?)\b)(?!.*\b(?:or|versus|vs)\b)",
        "accompanied by ",
    ),
    _turn("there", r", (?:and )?(?=there (?:is|are)\b)", " ; "),
    _turn("exclude", r",? (?:and |but )?(?=cannot exclude\b)", " ; "),
    # "No pneumothorax, small effusion": two statements, unless the list goes on with "or".
    _turn("no", rf"\bno ((?:[a-z]+ ){{0,4}}[a-z]+ ?), (?=(?:{_ANEW})\b)(?!.*\b(?:or|nor)\b)", r"no \1 but "),
    # The same after a dash or a bracket.
    _turn(
        "no without",
        rf"\b(no|without) ((?:[a-z]+ ){{0,4}}?[a-z]+)(?: ?[\u2013\u2014]| -| ?\() ?"
        rf"(?=(?:{_ANEW})\b(?: (?!or\b|nor\b)[a-z]+){{0,4}}? {_FINDING}\b)",
        r"\1 \2 but ",
    ),
)

# A line of a template or table: "Pneumothorax: none", "Effusion | yes | left".
_FIELD = re.compile(r"(?:^|[;,] ?)([a-z][a-z /&]{1,40}?)(?: ?\(([^()]{0,20})\))? ?[:=|] ?")
_OF_SIDE = re.compile(r"(?:left|right|[lr]t?|both|bilateral|b/l)(?: sides?)?")
_SIGNED = re.compile(
    r"((?:[a-z]+ ){0,2}[a-z]+) ?\( ?(?:(-|\u2013|neg|negative|absent|no|none)|\+|pos|positive|present|yes) ?\)"
)
_DASHED = re.compile(
    r"\b((?:[a-z]+ ){0,2}[a-z]+) [-\u2013\u2014] (?=(?:none|no|nil|negative|absent|yes|present|positive)\b ?(?:$|[;,(]"
    r"|(?:on|in|at|left|right|bilateral\w*)\b))"
)
# "Pneumothorax, none", "effusion none"
_NONE_AFTER = re.compile(rf"\b((?:[a-z]+ ){{0,2}}{_FINDING})[,;]? (?:none|nil|no)(?= ?(?:$|[,;]))")
# "Edema +, effusion -"
_PLUS_MINUS = re.compile(rf"\b((?:[a-z]+ ){{0,2}}(?:{_FINDING}|ptx|pna|eff|atel)) ?([+-])(?= ?(?:$|[,;]))")
# "None on the left, small on the right": of the side that has some.
_NONE_ON_SIDE = re.compile(
    r"(?:^|[,;] ?(?:and |but )?)(?:none|no|nil|absent|not seen) (?:(?:on|in|at) )?(?:the )?(?:left|right)(?: side)?"
    r"(?= ?(?:$|[,;]))"
)
_SAID_OF_ALL = frozenset(
    {"normal", "unremarkable", "normal study", "normal exam", "normal examination", "within normal limits", "healthy"}
    | {"nofinding", "nofindings"}
)
_NONE = re.compile(
    r"(?:none|no|nil|neg(?:ative)?|absent|false|n|0|unlikely|not (?:seen|present|identified|visuali[sz]ed|detected"
    r"|evident|noted|demonstrated"
    r"|apparent)|none (?:seen|identified|present|detected|visuali[sz]ed|evident|noted))[ .,|-]*$|[-\u2013] ?$"
)
# Nothing is said of the finding: the field is empty, or does not apply.
_UNSAID = re.compile(
    r"(?:n ?/ ?a|n\.? ?a|not applicable|unknown|pending|x{2,}|(?:(?:was |is )?not|cannot be|can ?not be|could not be"
    r"|unable to|not able to be)(?: \w+ly| well| fully| be)? (?:assess(?:ed|able)?|evaluat(?:ed|e)|evaluable|examined?"
    r"|determined?|reported|specified|documented|mentioned|stated|imaged|included|recorded|performed|done|known)"
    r"|(?:limited|no) (?:assessment|evaluation))\b|(?:[^\w?]|_)*$(?<![-\u2013+])"
)
_UNSURE = re.compile(r"(?:indeterminate|uncertain|unclear|unsure|unconfirmed)\b")
_DENIED = re.compile(r"(?:no|none|nil|without)\b(?!.*\bchanges?\b)")
_THERE = re.compile(r"(?:yes|present|pos(?:itive)?|true|seen|noted|y|1|\+)(?:\b|(?<=\+))[ .,:;()|-]*")
_NAMED = re.compile(
    r"(?:pneumothora\w+|ptx|effusions?|o?edema|consolidations?|atelectas[ie]s|fractures?|cardiomegaly|nodules?|mass(?:es)?"
    r"|opacit(?:y|ies)|pneumonia|pna|infiltrates?|lesions?|devices?|tubes?|lines?|catheters?|pacemaker|thickening|plaques?"
    r"|congestion|collapse|drains?|hardware|failure)$"
)


def reworded(sentence: str) -> Iterator[str]:
    """One sentence, in lower case, as one or more in the words of terms and cues.

    A line of a template becomes a statement: "pneumothorax: none" gives "no pneumothorax". A word alone, as captions
    and impressions have it, is said of the chest: "normal".
    """
    if sentence.strip(" .") in _SAID_OF_ALL:
        yield "normal chest"
        return
    sentence = (
        _SIGNED.sub(lambda m: f"no {m[1]} ;" if m[2] else f"; {m[1]} ;", sentence) if "(" in sentence else sentence
    )
    if "+" in sentence or "\u00b1" in sentence:
        sentence = sentence.replace("+/-", " potentially ").replace("\u00b1", " potentially ")
        sentence = _PLUS_MINUS.sub(lambda m: f"no {m[1]} ;" if m[2] == "-" else f"; {m[1]} ;", sentence)
    if "\u2013" in sentence or "\u2014" in sentence or " - " in sentence:
        sentence = _DASHED.sub(r"\1: ", sentence)
    if ":" in sentence or "=" in sentence or "|" in sentence:
        before, *fields = _FIELD.split(sentence.strip("| "))
        if before.strip():
            yield _turned(before)
        for name, aside, value in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
            side = aside if aside and _OF_SIDE.fullmatch(aside.strip()) else ""
            yield _turned(_statement(name.strip(), value.strip(" |"), side.strip()))
    else:
        yield _turned(sentence)


def _statement(name: str, value: str, side: str = "") -> str:
    """What a field says of its name, and of the side beside it; what follows a value that says nothing."""
    if name.endswith("devices"):
        name = "support devices"
    if not _NAMED.search(name):
        return f"{name} {value}"
    if _NONE.match(value):
        return f"no {name}"
    value = _NONE_ON_SIDE.sub("", value).strip(" ,;.") or value
    if _UNSAID.match(value):
        return re.split("[,;]", value, maxsplit=1)[1] if re.search("[,;]", value) else ""
    if _UNSURE.match(value):
        return f"possible {side} {name}"
    there = _THERE.match(value)
    rest = (value[there.end() :] if there else value).replace(",", " ").strip(" )")
    words = rest.split()
    if there is None and _DENIED.match(value):
        return value if set(name.split()) & set(words) else f"no {name}, {value}"
    if len(words) <= 5 and not any(map(_NAMED.match, words)):
        return f"{rest} {side} {name}"
    return f"{name} {rest}"


def _turned(sentence: str) -> str:
    words = frozenset(_WORD.findall(sentence))
    if not words.isdisjoint(_WORDS_OF):
        sentence = _ABBREVIATED.sub(lambda match: _ABBREVIATIONS[match[0]], sentence)
        words = frozenset(_WORD.findall(sentence))
    if not words.isdisjoint(("none", "nil", "no")):
        sentence = _NONE_AFTER.sub(r"no \1 ;", sentence)
    for turn in _TURNS:
        if not turn.needs.isdisjoint(words):
            sentence = turn.pattern.sub(turn.instead, sentence)
    return sentence
