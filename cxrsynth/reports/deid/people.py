"""Patterns of names of people and places, by what stands around them; bare names are found by `dictionary`."""

import re

from cxrsynth.reports.deid.lexicon import LATIN, clinical, core, fold, foreign_words, is_word, names
from cxrsynth.reports.deid.pieces import (
    CAPITAL,
    DEGREE,
    EXACT,
    NAME,
    PARTICLES,
    PROPER,
    ROLE,
    SMALL_NAME,
    STOP,
    TITLE,
    WORD,
)
from cxrsynth.reports.deid.rules import CAPITALS, DIGITS, HOLES, Rule, make_rule

_LETTERS = re.compile(r"[^\W\d_]+")
_CAPITALS = rf"(?:{PARTICLES}{WORD}(?:[\s,&-]{{1,2}}{PARTICLES}{WORD}){{0,4}})"


def names_someone(match: re.Match[str]) -> bool:
    """Whether the group `who` of a match has a word that is not of the clinical vocabulary, or only initials."""
    words = _LETTERS.findall(match["who"])
    return not all(is_word(word) for word in words if len(word) > 1) or all(len(word) == 1 for word in words)


def _is_labelled(match: re.Match[str]) -> bool:
    """As `names_someone`; after a label that only people have, any word but the most common ones is a name."""
    if _ALSO_OF_THINGS.match(match[0]):
        return names_someone(match)
    return not all(word in core() for word in _LETTERS.findall(match["who"].lower()) if len(word) > 1)


def _is_typist(match: re.Match[str]) -> bool:
    """As `_is_labelled`; what is an abbreviation elsewhere are initials here: `Transcribed: cad`."""
    return not all(word in clinical("core") for word in _LETTERS.findall(match["who"].lower()) if len(word) > 1)


def _has_a_known_name(match: re.Match[str]) -> bool:
    """Whether a word of the group `who` is a name and nothing else: words in lower case say no more than that."""
    words = [fold(word) for word in _LETTERS.findall(match["who"])]
    return any(word in names() and not is_word(word) for word in words)


def _are_initials(match: re.Match[str]) -> bool:
    """False for `PA/lat` and the like."""
    return not all(word in core() for word in _LETTERS.findall(match["who"].lower()))


def _are_initials_of_someone(match: re.Match[str]) -> bool:
    """False for `PT is a 45 year old`, and for capitals before a gap, which can be anything."""
    if "." in match["who"]:
        return True
    is_known = match["who"].lower() in core() | clinical("core") | {"pt"}
    return not is_known and not re.match(rf"[\s\w,]{{0,10}}{HOLES}", match.string[match.end() :])


def names_a_person(match: re.Match[str]) -> bool:
    """As `names_someone`, for text in any language: the first word is no common word of a report in its language."""
    words = [fold(word) for word in _LETTERS.findall(match["who"])]
    return bool(words) and not any(words[0] in foreign_words(language) for language in LATIN) and names_someone(match)


def names_a_place(match: re.Match[str]) -> bool:
    """Whether the group `where` of a match begins with a word that is not in nearly every report."""
    words = _LETTERS.findall(match["where"].lower())
    return bool(words) and not match.string.isupper() and words[0] not in core()


def _is_a_saint(match: re.Match[str]) -> bool:
    """False for the names of devices and illnesses, and for `St. Elevated`."""
    word = fold(match["where"]).removesuffix("'s")
    return not is_word(word) and word not in clinical("brands") | clinical("eponyms") | {"jude"}


def _has_title(match: re.Match[str]) -> bool:
    """False for `Dr catheter`, a size in French: a title without a full stop, and a plain word after it."""
    return match["who"][:1].isupper() or match["who"][0] in HOLES or "." in match[0][:5] or names_someone(match)


# Labels of people that findings have, too: `Final: Normal chest.`
_ALSO_OF_THINGS = re.compile(
    r"(?i:from|to|by|re|read|report|reported|final|reviewed|contact|checked|released|staff|team|patient|pt"
    r"|cc)\b"
)
_ABBREVIATION = re.compile(r"[A-Z]{1,4}\d?(?![\w-])|[A-Z]\d")
_PLAIN_FACILITY = re.compile(
    r"(?i)(?:the|this|an?|our|outside|same|general|local|community|chest|acute|post|pre|mobile|portable"
    r"|medical|cardiac|repeat|follow-?up|prior|further)\s"
)


def _common_facility(match: re.Match[str]) -> bool:
    """Whether a match is no name: `Chest imaging`, `Outside hospital`."""
    return (
        _PLAIN_FACILITY.match(match["where"]) is not None
        or match["where"].strip().lower() in core()
        or match.string.isupper()
    )


_NAMED = rf"{CAPITAL}[\w'\u2019-]{{1,40}}"
_SURNAME_FIRST = rf"{_NAMED}(?:\s{_NAMED})?,\s?{_NAMED}(?:\s{CAPITAL}[\w'\u2019-]{{0,40}})?"
_AGE = r"\d{1,3}\s?-?(?:Y|YO|YRS?|YEARS?|y|yo|yrs?|years?|Y/O|y/o)(?![\w/])"
_SEX = r"(?:[MF]|MALE|FEMALE|[Mm]ale|[Ff]emale)(?!\w)"
_AGE_SAID = (
    rf"(?:(?:\d{{1,3}}[\s-]{{0,2}}(?:years?|yrs?|yo|y/o|y\.o|(?:month|week|day)s?[\s-]old)\b)|{HOLES}|\s{HOLES})"
)
HEADERS: tuple[Rule, ...] = (
    # The line on top of a page: name, sex and age. The name goes, the sex and the age stay.
    make_rule(
        "name",
        rf"(?<![\w'\u2019-])(?P<who>{_SURNAME_FIRST}|{_NAMED}(?:\s{_NAMED}){{1,3}})(?=[\s,;(/-]{{1,3}}(?:"
        rf"{_SEX}[\s,;/-]{{0,3}}{_AGE}|{_AGE}[\s,;/-]{{0,3}}{_SEX}|{_SEX}[\s,;/-]{{1,3}}\d{{1,3}}(?!\w|[.]\d)))",
        digits=1,
        needs_exact="M,F,male",
        flags=EXACT,
        if_true=names_someone,
        starts=CAPITALS,
    ),
    # `M.Q. is a 45 year old`: initials are a person's before an age or what only people do.
    make_rule(
        "name",
        r"(?<![\w.'\u2019-])(?P<who>(?:[A-Z]\.\s?){2,4}|[A-Z]{2,3})"
        rf"(?=\s?(?:(?:is|was)\s(?:an?\s|the\s)?|,\san?\s){_AGE_SAID}"
        r"|\s?(?:complains|denies|coughs|presented\swith|presents\swith|lives|smokes)\b)",
        needs="is ,was ,a ,an ,complains,denies,coughs,presented,presents,lives,smokes",
        flags=EXACT,
        if_true=_are_initials_of_someone,
        starts=CAPITALS,
    ),
)
NAMES: tuple[Rule, ...] = (
    make_rule(
        "name",
        rf"{TITLE}(?P<who>{HOLES}|{NAME}(?:(?:,?\s(?i:and|&)\s|,\s){NAME}){{0,4}}(?:['\u2019]s\b)?|{SMALL_NAME})",
        words="dr drs mr mrs ms mx prof miss professor doctor doctors",
        flags=EXACT,
        if_true=_has_title,
    ),
    make_rule(
        "name",
        r"\b(?i:(?:patient|pt|physician|provider|radiologist|doctor|attending|resident|referrer"
        r"|referring|ordering|mother"
        r"|father|spouse|guardian|relative)(?:['\u2019]s)?\s)?(?i:name)(?:\s(?i:is)\s|\s?[:=]\s?)"
        rf"(?P<who>{PARTICLES}{WORD}(?:,?\s{{0,2}}{PARTICLES}{WORD}){{0,4}}|{SMALL_NAME})",
        needs="name",
        flags=EXACT,
    ),
    make_rule(
        "name",
        rf"\b(?:(?i:patient|pt)(?:\s?:\s?|,\s)|(?i:the )?(?i:patient"
        rf"|pt)\.?\s(?=[A-Z][a-z]))(?P<who>{NAME}(?:,\s{NAME})?)",
        needs="patient,pt",
        flags=EXACT,
        if_true=names_someone,
    ),
    # A label, and up to five words with capitals after it.
    make_rule(
        "name",
        r"(?<![\w-])(?i:(?:name|surname|(?:first|last|given|family|middle|maiden|full|patient|pt\.?"
        r"|legal|preferred)\s?names?|alias|aka|a\.k\.a\.|re|cc|attn|attention"
        r"|from|to|by|author|co-?author|reader|reported|reporter|report|signed|verified|final(?:ized)?"
        r"|approved|transcribed|transcriptionist|typist|dictated|read|interpreted"
        r"|reviewed|requesting|requested|requestor|requester|ordering|ordered|referring|referred"
        r"|referrer|consultant|consulting|attending|resident|fellow|intern|physician|provider|radiologist"
        r"|doctor|surgeon|pcp|gp|nurse|tech(?:nologist)?|radiographer|operator|supervisor|witness"
        r"|contact|caller|next of kin|nok|guardian|mother|father|spouse|husband|wife"
        r"|son|daughter|brother|sister|partner|employer|insured|guarantor|subscriber|prepared|checked"
        r"|released|validated|responsible|staff|team|notified|informed|spoke with)"
        r"(?:\s(?:physician|provider|doctor|md|radiologist|clinician|surgeon|by|to"
        r"|name))?)\s?(?:\([^)]{0,30}\)\s?)?[:;=]\s{0,2}"
        rf"(?P<who>{_CAPITALS})",
        needs=":,;,=",
        flags=EXACT,
        if_true=_is_labelled,
    ),
    make_rule(
        "name",
        r"(?<![\w-])(?i:(?:first|last|given|family|middle|maiden|full|patient|pt\.?)\s?names?|surname"
        r"|alias|aka|a\.k\.a\.|initials|named|called|reporter"
        r"|radiographer|sonographer|midwife|sister|matron|pgy-?\s?\d|ms-?\d|ho|sho|spr|st\d)\s(?i:is\s|was\s)?"
        rf"(?P<who>{NAME})",
        words=(
            "name names surname alias aka k initials named called reporter radiographer sonographer "
            "midwife sister matron pgy ms ho sho spr st"
        ),
        flags=EXACT,
        if_true=names_someone,
    ),
    make_rule(
        "name",
        r"(?<![\w-])(?:signed|transcribed|dictated|typed|author|typist|verified"
        r"|transcriptionist)\s?(?:by\s?)?:\s?(?P<who>[^\W\d_]{2,20}(?:\s[^\W\d_]{1,20}){0,2})",
        needs=":",
        if_true=_is_typist,
    ),
    # In lower case after a label that people have: `referring physician: raj patel`. One word must be a known name.
    make_rule(
        "name",
        r"(?<![\w-])(?:(?:referring|ordering|requesting|attending|reading|interpreting)\s)?(?:attn|attention|tech(?:nologist)?"
        r"|radiographer|operator|physician|provider|radiologist|doctor|surgeon|pcp|gp|nurse|resident|fellow|attending|pt"
        r"|patient|reader|mother|father|mom|dad|spouse|husband|wife|son|daughter|next of kin|nok|contact)\s?:\s?"
        r"(?P<who>[^\W\d_]{2,20}(?:\s[^\W\d_]{2,20})?)",
        needs=":",
        if_true=_has_a_known_name,
    ),
    make_rule(
        "name",
        r"(?<![\w-])(?:(?:by|with)\s(?:the\s)?(?:tech(?:nologist)?|nurse|radiographer)\s"
        r"|(?:mother|father|mom|dad|spouse|husband|wife|son|daughter)\s\()(?P<who>[^\W\d_]{2,20})(?=\s?[).,;]|\s?$)",
        needs="tech,nurse,radiographer,mother,father,mom,dad,spouse,husband,wife,son,daughter",
        if_true=_has_a_known_name,
    ),
    make_rule(
        "name",
        rf"\b(?:(?i:referring|ordering|attending|requesting|covering|on-?call|staff|senior|junior"
        rf"|chief)\s)?{ROLE}\s?[:,]?\s(?:(?:on call|is|was|by)\s)?(?P<who>{NAME}(?:,\s{NAME})?)",
        needs="resident,attending,radiologist,physician,techn,surgeon,nurse,practitioner,fellow,provider",
        flags=EXACT,
        if_true=names_someone,
    ),
    make_rule(
        "name",
        rf"(?<![\w'\u2019-])(?P<who>{WORD}(?:(?:,\s|\s)?{PARTICLES}{WORD}){{0,3}}),?\s(?:\(?{DEGREE}\)?,?[^\S\n]?){{1,3}}",
        needs_exact="MD,M.D,M. D,DO,D.O,D. O,RN,R.N,R. N,Ph,NP,PA-C,MBBS,FRCR,FACR,CRNA",
        flags=EXACT,
        starts=CAPITALS,
    ),
    make_rule(
        "name",
        rf"(?<![\w'\u2019-])(?:{DEGREE}|RT|LPN|APRN|CNS|SHO|SpR"
        rf"|PA)\s(?P<who>{CAPITAL}[\w'\u2019-]{{1,40}}(?:\s{CAPITAL}[\w'\u2019-]{{1,40}})?)",
        needs_exact="MD,M.D,DO,D.O,RN,R.N,NP,PA,RT,LPN,APRN,CNS,SHO,SpR",
        flags=EXACT,
        if_true=names_someone,
        starts=CAPITALS,
    ),
    # Greetings, and "per Smith".
    make_rule(
        "name",
        rf"\b(?i:dear|hi|hello|thanks,?|thank you,?|(?:best |kind |warm )?regards,?|sincerely,?|yours,?"
        rf"|per|via|courtesy of|attn)\s(?P<who>{_CAPITALS})",
        words="dear hi hello thanks thank regards sincerely yours per via courtesy attn",
        flags=EXACT,
        if_true=names_someone,
    ),
    make_rule("name", r"(?P<who>[^\W\d_][\w'\u2019-]{0,40}\^[\w'\u2019^.-]{0,120})", needs="^"),
    # Initials of who dictated and who typed: JQS/abc, JS:mkt, D: JS T: mkt.
    make_rule(
        "name",
        r"(?<![\w/-])(?P<who>[A-Z]{2,4}[/:][a-z]{2,4})(?![\w/-])",
        needs="/,:",
        flags=EXACT,
        if_true=_are_initials,
        starts=CAPITALS,
    ),
    make_rule(
        "name",
        r"(?<![\w/-])[DTRVS]:\s?(?P<who>[A-Za-z]{2,4})(?![\w/-])",
        needs=":",
        flags=EXACT,
        if_true=_are_initials,
        starts=CAPITALS,
    ),
    make_rule(
        "name",
        rf"(?<![\w.'\u2019-])(?:{CAPITAL}\.\s?){{1,3}}(?P<who>{PARTICLES}(?!{STOP}){CAPITAL}[\w'\u2019-]{{1,60}})",
        words="a b c d e f g h i j k l m n o p q r s t u v w x y z",
        needs=".",
        flags=EXACT,
        if_true=lambda match: names_someone(match) and not match.string.isupper(),
        starts=CAPITALS,
    ),
)
_FACILITY = (
    r"(?:Hospitals?|Medical Cent(?:er|re)|Clinics?|Infirmary|Health(?:care)? (?:System|Cent(?:er|re)"
    r"|Network|Partners|Trust)|Healthcare|University|Institute"
    r"|Sanatorium|Hospice|Nursing Home|Rehab(?:ilitation)?(?: Cent(?:er|re)| Hospital)?|Care Cent(?:er"
    r"|re)|Surgery Cent(?:er|re)|Imaging(?: Cent(?:er|re))?"
    r"|Radiology (?:Associates|Group|Partners|Consultants)|NHS(?: Foundation)? Trust|Foundation Trust"
    r"|Medical (?:Group|Associates|Office|Clinic|College|School)"
    r"|Urgent Care|Cancer Cent(?:er|re)|Heart Cent(?:er|re)|Community Cent(?:er|re)|Prison|Jail"
    r"|Correctional \w{1,12}|Shelter|Church|School|Elementary|College)"
)
_PART = rf"(?:{PROPER}|of|the|and|for|&)\s"
_STREET = (
    r"(?:Street|St|Avenue|Ave|Av|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Way|Terrace"
    r"|Ter|Circle|Cir|Highway|Hwy|Parkway|Pkwy|Square|Sq"
    r"|Trail|Trl|Close|Crescent|Cres|Row|Mews|Walk|Alley|Plaza|Loop|Pike|Route|Rte|Gardens|Grove|Hill|Park)"
)
_SMALL_STREET = r"(?:st|street|ave?|avenue|rd|road|ln|lane|dr|drive|ct|court|blvd|boulevard|pl|place|way|ter|cir)"
_CROSSING = rf"(?={PROPER}){CAPITAL}[\w'\u2019-]{{1,40}}"
_STATE = (
    r"A[LKZR]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]|T[NX]|UT|V[AT]"
    r"|W[AIVY]"
)
_POSTCODE = r"[A-Z]{1,2}\d[A-Z\d]?\s\d[A-Z]{2}(?!\w)"
_PART_OF_TOWN = rf"(?!{_POSTCODE}){PROPER}"
_TOWN = rf"(?:,\s{_PART_OF_TOWN}(?:\s{_PART_OF_TOWN}){{0,2}}){{0,2}}(?:,?\s(?:\d{{5}}(?:-\d{{4}})?\b|{_POSTCODE}))?"
_FLAT = (
    r"(?:(?:[Ff]lat|[Aa]pt\.?|[Aa]partment|[Uu]nit|[Ss]uite|[Rr]oom|[Ff]loor)"
    r"\s#?(?:\d{1,5}[A-Za-z]?|[A-Z]\d{0,3}),?\s)?"
)
_WHEREABOUTS = re.compile(
    r"\b(?:lives?|living|resid(?:es?|ing)|resident|native|visitors?|visiting|tourist|immigrant|(?:e"
    r"|im)migrated|originally|moved|travel(?:s|ed|led|ing)?|trip|born|flew|returned|incarcerated"
    r"|homeless|works?|employed|sent|came|arrived|brought|received|imported|uploaded|copied|shared"
    r"|visit(?:s|ed)?|transfer(?:s|red)?|transported|admitted|referred|referral|enrolled|treated|seen"
    r"|evaluated|followed|hospitali[sz]ed|discharged|presented|placed|inserted|done|performed|obtained"
    r"|taken|images?|films?|study|studies|CTs?|MRI|radiographs?|x-?rays?|records?|outside|patient"
    r"|surgery|care|walk-?in)\s(?:\w{1,12}\s)?$",
    re.IGNORECASE,
)
PLACES: tuple[Rule, ...] = (
    make_rule(
        "place",
        rf"(?<![\w.]){_FLAT}\d{{1,6}}[A-Za-z]?(?:-\d{{1,5}})?,?\s(?:(?:[NSEW]|NE|NW|SE|SW)\.?\s)?(?:(?:{PROPER}"
        rf"|\d{{1,3}}(?:st|nd|rd|th))\s){{1,4}}{_STREET}\b"
        rf"(?:,?\s(?:Apt|Unit|Suite|Ste|No|#)\.?\s?#?\w{{1,6}})?{_TOWN}",
        needs="st,av,road,rd,lvd,boulevard,l,dr,c,pl,way,ter,h,sq,tr,row,m,w,p,g",
        digits=1,
        flags=EXACT,
    ),
    # A street with a number for its name, and what it crosses: "near 5th Avenue and Pine".
    make_rule(
        "place",
        r"(?<![\w.])\d{1,3}(?:st|nd|rd|th|ST|ND|RD|TH)\s(?:Street|STREET|Avenue|AVENUE|Ave|Road|ROAD|Boulevard|Blvd)\b"
        rf"(?:\s(?:(?i:and|at)|&)\s(?:\d{{1,3}}(?:st|nd|rd|th)\b|{_CROSSING}(?:\s{_STREET}\b)?))?",
        digits=1,
        needs="street,ave,road,boulevard,blvd",
        flags=EXACT,
        starts=DIGITS,
    ),
    # In lower case only after words that end nothing but a street: `2 tubes in place` is no address.
    make_rule(
        "place",
        r"(?<![\w.])\d{1,5}\s(?:[a-z][a-z'-]{1,20}\s){1,3}(?:street|avenue|boulevard|highway|parkway)\b"
        rf"(?:,\s[a-z]{{2,20}}(?:\s[a-z]{{2,20}})?(?=,?\s(?:{_STATE})\s\d))?(?:,?\s(?:{_STATE})\s\d{{5}}(?:-\d{{4}})?\b)?",
        needs="street,avenue,boulevard,highway,parkway",
        digits=1,
        starts=DIGITS,
    ),
    # Or after what only an address follows, or with a point of the compass: `lives at 12 elm st.`, `123 n. main st`.
    make_rule(
        "place",
        rf"(?:(?<=\blives at )|(?<=\blive at )|(?<=\bresides at )|(?<=\baddress: )|(?<=\baddress ))\d{{1,5}}\s"
        rf"(?:[a-z][a-z'-]{{1,20}}\s){{1,3}}{_SMALL_STREET}(?![\w-])\.?(?:,?\s[a-z]{{3,20}}(?:,?\s[a-z]{{2}})?(?=\s?[.,;]|\s?$))?"
        rf"|(?<![\w.])\d{{1,5}}\s[nsew]\.?\s(?:[a-z][a-z'-]{{1,20}}\s){{1,2}}{_SMALL_STREET}(?![\w-])\.?",
        needs="st,av,road,rd,lvd,l,dr,c,pl,way",
        digits=1,
    ),
    # Hospitals that are known by their initials.
    make_rule(
        "place",
        r"(?<![\w-])(?i:from|at|to|by)\s(?:MGH|BWH|BIDMC|UCSF|UCLA|UCSD|UPMC|NYP|NYU|MSKCC|MDACC|JHH|OHSU|MUSC|VAMC)(?![\w-])",
        needs_exact="MGH,BWH,BIDMC,UC,UPMC,NY,MSKCC,MDACC,JHH,OHSU,MUSC,VAMC",
        flags=EXACT,
    ),
    # Of Australia.
    make_rule(
        "place",
        r"(?<![\w-])(?:NSW|VIC|QLD|TAS|ACT|WA|SA|NT)\s\d{4}(?![\w%]|[.,/-]\d|\s?(?:ml|mL|mg|cc|cm|mm)\b)",
        digits=4,
        flags=EXACT,
        starts=CAPITALS,
    ),
    make_rule("place", rf"(?<=,)\s(?:{_STATE})\s\d{{5}}(?:-\d{{4}})?\b", needs=",", digits=2),
    make_rule(
        "place",
        r"\b(?:p\.?\s?o\.?\s?box|post office box|postfach|apartado|casilla|bo[iî]te postale|caixa postal)\s?#?\d{1,8}",
        needs="box,post,aparta,casilla,bo,caixa",
        digits=1,
    ),
    make_rule(
        "place",
        rf"\b(?:{_STATE})\s\d{{5}}(?:-\d{{4}})?\b"
        r"|\b(?i:zip|zip code|postal code|postcode|post code"
        r"|plz|cap|cep)\s?:?\s?[A-Z\d][\w-]{2,5}(?:\s\d\w\w)?",
        needs="a,c,d,f,g,h,i,k,l,m,n,o,p,r,s,t,u,v,w,zip,post",
        digits=2,
        flags=EXACT,
    ),
    make_rule(
        "place",
        r"(?<![\w-])(?:[A-Z]{1,2}\d[A-Z\d]?\s\d(?!MM|CM|ML|MG|CC)[A-Z]{2}|[A-Z]\d[A-Z]\s?\d[A-Z]\d)(?![\w-])",
        digits=2,
        flags=EXACT,
        starts=CAPITALS,
    ),
    # By its first name, in brackets: "outside films (Valley Regional)".
    make_rule(
        "place",
        rf"(?<=\()(?:{PROPER}\s){{1,3}}(?:General|Memorial|Regional|Community|Presbyterian|Methodist|Baptist|Lutheran)(?=[,)])",
        needs_exact="General,Memorial,Regional,Community,Presbyterian,Methodist,Baptist,Lutheran",
        flags=EXACT,
    ),
    make_rule(
        "place",
        rf"(?<![\w'\u2019-])(?P<where>{PROPER}\s(?:{_PART}){{0,5}}?)(?i:{_FACILITY})(?![\w-])"
        rf"(?:\s(?:of|for|at|in)\s{CAPITAL}[\w'\u2019-]{{0,40}}(?:\s{CAPITAL}[\w'\u2019-]{{0,40}}){{0,2}})?(?:,\s{CAPITAL}[\w'\u2019-]{{1,40}})?",
        needs=(
            "hospi,medical,clinic,infirmary,health,university,institute,sanat,nursing,rehab,care,surg,"
            "imaging,radiology,trust,cent,prison,jail,correct,shelter,church,school,college"
        ),
        flags=EXACT,
        if_true=lambda match: (
            any(not is_word(word) for word in _LETTERS.findall(match["where"])) or not _common_facility(match)
        ),
        starts=CAPITALS,
    ),
    make_rule(
        "place",
        r"(?<![\w-])(?:from|to|at|in|by)\s(?P<where>[a-z][a-z'\u2019-]{2,30}(?:\s[a-z][a-z'\u2019-]{1,30}){0,2}?)\s"
        r"(?:hospital|medical cent(?:er|re)|clinic|infirmary|nursing home|hospice)(?![\w-])",
        needs="hospi,medical,clinic,infirmary,nursing",
        if_true=lambda match: any(not is_word(word) for word in _LETTERS.findall(match["where"].lower())),
    ),
    # A saint is a town, a hospital or a church; `St. Jude` also makes heart valves.
    make_rule(
        "place",
        rf"(?<![\w-])(?:St|Ste|Sta|Sto)\.\s(?P<where>{CAPITAL}[\w'\u2019-]{{2,40}})",
        needs_exact="St.,Ste.,Sta.,Sto.",
        flags=EXACT,
        if_true=_is_a_saint,
        starts=CAPITALS,
    ),
    make_rule(
        "place",
        rf"\b(?:Hospital|University|Church|College"
        rf"|School)\sof\s{CAPITAL}[\w'\u2019-]{{1,40}}(?:\s{CAPITAL}[\w'\u2019-]{{1,40}}){{0,2}}",
        needs="hospital,university,church,college,school",
        flags=EXACT,
        starts=CAPITALS,
    ),
    # Where someone lives, or comes from, or was treated: words with capitals after the preposition.
    make_rule(
        "place",
        r"(?<=\s)(?:from|to|at|in|of|near|with|by)\s(?:the\s)?"
        rf"(?P<where>{PROPER}(?:\s(?:(?:of|the|and|de|la)\s)?{PROPER}){{0,3}}(?:,\s{PROPER})?)",
        words="from to at in of near with by",
        flags=EXACT,
        if_true=lambda match: (
            _WHEREABOUTS.search(match.string[max(0, match.start() - 32) : match.start()]) is not None
            and names_a_place(match)
            and not _ABBREVIATION.match(match["where"])
        ),
    ),
)
