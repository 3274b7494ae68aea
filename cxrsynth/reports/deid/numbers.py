"""Patterns of numbers that identify (telephone, record, account, device, room), and of addresses on the net."""

import re

from cxrsynth.reports.deid.pieces import EXACT, UNIT
from cxrsynth.reports.deid.rules import CAPITALS, DIGITS, Rule, make_rule

# What stands between a label and its number.
_JOINT = (
    r"(?:\s?(?:numbers?|nummer|num\b|no\b\.?|nr\b\.?|n\.|#|n[\u00ba\u00b0o]|ids?\b|code|key|card"
    r"|tag))?\s?[:#=.\u2116-]{0,2}\s{0,2}(?:is\s|was\s|are\s)?[#(\[]?"
)
_VALUE = (
    rf"(?:[a-z]{{1,6}}[-/])?(?:[a-z]{{1,6}}[-/ ]?)?\d[\w/-]{{0,40}}(?:\.\d[\w/-]{{0,20}}){{0,5}}"
    rf"(?:\s\d{{2,6}}(?![\w/-]|\.\d|\s?(?:{UNIT}))){{0,8}}"
    # A last group of one digit: `2123 45670 1`.
    r"(?:(?<=\d{4})\s\d(?=\s{0,2}(?:[,;)\n]|\.(?!\d)|$)))?[)\]]?"
)
# Labels that are followed by a number of a person, even by a short one.
_STRONG = (
    r"(?:e?mrn|mr\s?#|iban|rvnr|urn|hrn|pid|mpi|empi|chi|nhi|ihi|uhid|ssn|social security|nino|nhs|csn|har|dob"
    r"|medical record|accession|acc(?:ession)?\s?#|fin(?=\s?[:#=]\s?[a-z]?\d)|(?:hx|history)\s?#"
    r"|medicare|medicaid|hicn|mbi|npi|gmc|upin|dea|dln?|vin|imei|udi|s/n|sn|serial|licen[cs]e|passport"
    r"|national id|nid|aadhaar"
    r"|ss\s?(?:#|no\b\.?|number)"
    r"|driver'?s licen[cs]e|(?:licen[cs]e|number|vehicle|car|registration) plate|(?:patient|pat|pt|study|exam"
    r"|order|case|visit"
    r"|encounter|account|acct|record|requisition|req|insurance|policy|chart"
    r"|hospital|hosp|pacs|ris|unit|subject|participant|job|dictation|document|doc|report|specimen|sample|lab"
    r"|path(?:ology)?|film|x-?ray|image|admission|adm"
    r"|episode|claim|auth(?:orization)?|member|subscriber|beneficiary|group|plan|reg|registration"
    r"|certificate|cert|invoice|bill|receipt|ticket"
    r"|tracking|confirmation|reference|ref|lot|batch|device|model|catalog|employee|staff|student|badge"
    r"|trial|protocol|study arm|file|folder"
    r"|ip|op|opd|ipd|er|ed|mr|cr|ct|us|dept|clinic|health card|identity|id card|license plate|plate|fin|tax|bank|iban"
    r"|slip)"
    r"[\s.-]{0,2}(?:numbers?\b|num\b|no\b\.?|#|ids?\b|code\b)|(?<![\w-])id\s?(?:number|no\b\.?|[#:])|ae "
    r"title|station name)"
)
# Labels of their own that other things have, too: followed by a number of four signs and more.
_WEAK = (
    r"(?:patient|pat|pt|subject|participant|visit|encounter|account|acct|record|order|accession|acc"
    r"|admission|episode|chart|file|policy"
    r"|member|claim|ref(?:erence)?|case|exam|study|film|job|dictation|document|lot|batch|group|plan"
    r"|reg(?:istration)?|ticket|invoice"
    r"|requisition|req|specimen|sample|certificate|badge|insurance|protocol|trial|plate|clinic)"
)
_WEAK_VALUE = r"(?=[\w/-]{0,12}\d[\w/-]{0,3}\d)(?=[\w/-]{4})(?:[a-z]{1,4}[-/]?)?\d[\w/-]{2,40}"
_GROUPED = rf"\d{{2,4}}(?:\s\d{{2,6}}){{1,4}}(?!\s?(?:{UNIT}))"
_PLACE_NUMBER = (
    r"(?:no\b\.?\s?|number\s|nr\b\.?\s?|#\s?)?(?:[a-z]{1,2}-?)?\d{1,5}(?:-?[a-z]{1,2}\b|-\d{1,4})?(?![\w%]"
    r"|[.,]\d|/\d|\s?(?:mm|cm|ml|cc|mg|hours?|hrs|days?|weeks?|views?|of)\b)"
)


def _not_a_lymph_node(match: re.Match[str]) -> bool:
    """False for `station 4R node`, `2 units of blood` and `POD 2`."""
    if match[0].startswith("POD"):
        return False  # day after an operation
    if not match[0].lower().startswith(("station", "unit")):
        return True
    around = match.string[max(0, match.start() - 40) : match.end() + 40].lower()
    return not re.search(r"node|nodal|lymph|paratrach|blood|prbc|insulin|heparin", around)


def _is_a_number_of_something_else(match: re.Match[str]) -> bool:
    """False for `group 2022 mm` and the like: a number with a unit after it."""
    return not re.match(
        rf"\s?(?:{UNIT}|weeks?|days?|years?|yrs?|y/?o|months?|hours?|views?|images?)\b",
        match.string[match.end() : match.end() + 10],
        re.I,
    )


def _is_long(match: re.Match[str]) -> bool:
    """Whether digits in groups are ten or more, and no measures with a unit after them."""
    return sum(map(str.isdigit, match[0])) >= _LONG and _is_a_number_of_something_else(match)


_LONG = 10
_COORDINATE = r"[-+]?\d{1,3}\.\d{3,10}"
_DEGREES = (
    r"\d{1,3}\s?\u00b0\s?\d{1,2}(?:\.\d{1,6})?\s?['\u2019\u2032]"
    r"(?:\s?\d{1,2}(?:\.\d{1,6})?\s?(?:[\"\u201d\u2033]|''))?"
)
POSITIONS: tuple[Rule, ...] = (
    # Where a picture was taken, by GPS.
    make_rule(
        "place",
        rf"(?:(?<![\w.])[NS]\s?)?(?<![\d.]){_COORDINATE}\s?\u00b0?\s?[NS]?[,;/]?\s?(?:[EWO]\s?)?{_COORDINATE}\s?\u00b0?\s?[EWO]?"
        r"(?![\w.]\d|[^\W\d_])",
        digits=8,
        between=".",
        flags=EXACT,
        if_true=lambda match: re.search(r"[NSEWO\u00b0]|\.\d{4,}\D+\.?\d+\.\d{4,}", match[0]) is not None,
    ),
    make_rule(
        "place",
        rf"(?<![\d.]){_DEGREES}\s?[NSEWO](?!\w)(?:[,;/]?\s?{_DEGREES}\s?[NSEWO](?!\w))?",
        digits=2,
        needs_exact="\u00b0",
        flags=EXACT,
        starts=DIGITS,
    ),
    make_rule(
        "place",
        r"(?<![\w-])(?:gps|lat(?:itude)?|long?(?:itude)?|lng)\b\.?\s?[:=]?\s?[-+]?\d{1,3}\.\d{2,10}(?:\s?[nsewo]\b)?",
        digits=3,
        words="gps lat latitude lon long longitude lng",
    ),
)
# Names of accounts and machines: any word after the label.
ACCOUNTS: tuple[Rule, ...] = (
    make_rule(
        "name",
        r"(?<![\w-])(?:user\s?(?:name|id)?|log-?(?:in|on)(?:\s(?:name|id))?|logged (?:in|on)(?:\sas)?|sign-?in name"
        r"|pass\s?word|pwd|benutzer(?:name|kennung)?|anmeldename|utilisateur|identifiant|usuario|usu\u00e1rio|utente)"
        r"(?:\s?[:=]\s?|\sis\s|(?<=\sas)\s)[\w.@$\\-]{1,60}(?<![.])",
        words="user username userid login logon log logged sign password pass pwd benutzer benutzername benutzerkennung"
        " anmeldename utilisateur identifiant usuario utente usu",
    ),
    make_rule(
        "place",
        r"(?<![\w-])(?:work\s?station|station name|host\s?(?:name)?|computer(?: name)?|machine name|device name"
        r"|ae[ -]?title|aet|modality name|scanner name)\s?[:=]\s?[\w.-]{2,60}(?<![.])",
        words="workstation work station host hostname computer machine device ae aet modality scanner",
    ),
    # Stations have lymph nodes, too: `Station: 4R`.
    make_rule(
        "place",
        r"(?<![\w-])(?:station|modality|scanner|console|equipment)\s?[:=]\s?(?=[a-z_-]{2,40}[\d_-])[a-z][\w-]{2,60}",
        words="station modality scanner console equipment",
    ),
)
NET: tuple[Rule, ...] = (
    make_rule(
        "email",
        r"(?<![\w.+-])[\w.+-]{1,64}\s?(?:@|\(at\)|\[at\]|\{at\}|\sat\s(?=[\w-]{1,40}(?:\.|\sdot\s)(?:com"
        r"|org|edu|net|gov|nhs)))\s?[\w-]{1,63}"
        r"(?:\s?(?:\.(?=\w)|\(dot\)|\[dot\]|\sdot\s)\s?[\w-]{1,63}){1,6}",
        needs="@,(at),[at],{at}, at ",
        if_true=lambda match: not match[0].endswith("."),
    ),
    make_rule("url", r"\\{2}[\w.$-]{1,63}(?:\\[\w.$-]{1,63}){0,20}|\b[a-z]:\\[\w.$\\-]{1,200}", needs="\\"),
    make_rule(
        "url", r"(?<![\w/.])/(?:home|mnt|data|users?|usr|var|srv|net|share|export|opt|tmp)/[\w./-]{1,200}", needs="/"
    ),
    make_rule(
        "url",
        r"(?<![\w:])(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}(?![\w:])"
        r"|(?<![\w:])(?:[0-9a-f]{1,4}:{1,2}){3,7}[0-9a-f]{1,4}(?![\w:])",
        needs=":,-",
        digits=2,
        hint="[:-][0-9a-f]{1,4}[:-]",
    ),
    make_rule("email", r"[^\s@<>(),;:]{0,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){0,6}", needs="@"),
    make_rule("url", r"(?:\b(?:https?|ftp|file)://|\bwww\.)\S{0,2000}(?<![.,;:)!?])", needs="://,www."),
    make_rule(
        "url",
        r"(?<![\w.-])(?:[\w-]{1,63}\.){1,6}(?:com|org|edu|net|gov|mil|info|io|int|local|internal|lan"
        r"|health|hospital|clinic|nhs\.uk|[a-z]{2}\.[a-z]{2}"
        r"|[a-z]{2,3}(?=/\w))\b(?:/\S{0,500}(?<![.,;:)]))?",
        hint=r"\.\w",
    ),
)
# By their form alone: IBAN, cards and other numbers in groups, the numbers of social security of France, Germany and
# Britain and of taxpayers in Brazil. Before labels and dates, which would take a part of one.
FORMS: tuple[Rule, ...] = (
    make_rule(
        "number",
        r"(?<!\w)[A-Z]{2}\d{2}(?:\s[A-Z0-9]{4}){3,7}(?:\s[A-Z0-9]{1,3})?(?!\w)",
        digits=10,
        flags=EXACT,
        starts=CAPITALS,
    ),
    make_rule("number", r"(?<!\w)\d{2}\s?\d{6}\s?[A-Z]\s?\d{3}(?!\w)", digits=11, flags=EXACT, starts=DIGITS),
    make_rule("number", r"(?<!\w)[A-Z]{2}(?:\s\d\d){3}\s[A-D](?!\w)", digits=6, flags=EXACT, starts=CAPITALS),
    make_rule(
        "number",
        r"(?<![\w.,/-])[1-478]\s\d{2}\s(?:0[1-9]|1[0-2]|[2-9]\d)\s(?:\d{2}|2[AB])\s\d{3}\s\d{3}(?:\s\d{2})?(?!\w)",
        digits=12,
        starts=DIGITS,
    ),
    make_rule("number", r"(?<![\w.,/-])(?:\d{3}\.){2}\d{3}-\d{2}(?!\w)", digits=11, between=".", starts=DIGITS),
    make_rule(
        "number",
        r"(?<![^\W\u3040-\u9fff])(?<![.,/-])\d{3,6}(?:(?:\s\d{3,6}){2,8}|(?:-\d{4}){2,5})(?:[\s-]\d{1,6})?(?![\w/]|[.,]\d)",
        digits=10,
        if_true=_is_long,
        starts=DIGITS,
    ),
)
LABELLED: tuple[Rule, ...] = (
    make_rule("number", rf"(?<![\w-]){_STRONG}{_JOINT}{_VALUE}", digits=3, if_true=_is_a_number_of_something_else),
    make_rule(
        "number",
        rf"(?<![\w-]){_WEAK}{_JOINT}(?:{_WEAK_VALUE}|{_GROUPED})",
        digits=3,
        if_true=_is_a_number_of_something_else,
    ),
    make_rule(
        "number",
        r"(?<![\w-])(?:patient|pt|account|acct|record|encounter|visit|accession"
        r"|order)\s?[:#]\s?#?(?:[a-z]{1,6}-?)?\d[\w-]{0,40}",
        digits=1,
        needs=":,#",
    ),
    make_rule(
        "number",
        r"(?<![\w-])(?:no\.|nr\.|n\.?[\u00b0\u00ba]|#|\u2116)\s?(?:de\s\w{3,12}\s)?(?:[a-z]{1,4}-?)?\d{3,}[\w/-]{0,30}"
        r"(?:\.\d[\w/-]{0,20}){0,5}",
        digits=3,
        needs="no.,nr.,n\u00b0,n\u00ba,n.\u00b0,n.\u00ba,#,\u2116",
    ),
    # A plate: two to four groups, of which one has digits.
    make_rule(
        "number",
        r"(?<![\w-])(?i:(?:licen[cs]e |number |vehicle |car |registration )plate|plate (?:no\b\.?|number|#)|kennzeichen"
        r"|immatriculation|matr[i\u00ed]cula|targa|placa)\s?[:#]?\s?(?:is\s)?(?=[A-Z -]{0,9}\d)"
        r"[A-Z0-9]{1,7}(?:[ -][A-Z0-9]{1,4}){1,3}(?![\w-])",
        digits=1,
        words="plate kennzeichen immatriculation matricula targa placa matr",
        flags=EXACT,
    ),
)
ROOMS: tuple[Rule, ...] = (
    make_rule(
        "place",
        r"(?<![\w-])(?:(?:icu|er|ed|or|ward|isolation|hospital)\s)?(?:room|rm|bed|bay|cubicle|suite|ward"
        r"|unit|station|pod|bldg|building|wing|apartment|apt"
        rf"|desk|booth|locker|floor|corridor|cube|curtain|chair|stretcher|theat(?:re|er)|resus|trauma "
        rf"bay)\.?\s?:?\s?{_PLACE_NUMBER}",
        digits=1,
        words="room rm bed bay cubicle suite ward unit station pod bldg building wing apartment apt desk booth locker"
        " floor"
        " corridor cube curtain chair stretcher theatre theater resus trauma",
        if_true=_not_a_lymph_node,
    ),
    make_rule(
        "place",
        r"(?<![\w-])(?:(?:OR|ED|ER|ICU|MICU|SICU|CCU|CICU|NICU|PICU|PACU|Resus|RESUS|Trauma)\s#?"
        r"|(?:[A-Z]{0,3}ICU|CCU|PACU)-)\d{1,3}[A-Z]?(?![\w%]|[.,/-]\d|\s?(?:mm|cm|ml|hours?|hrs|days?|weeks?|views?)\b)",
        digits=1,
        flags=EXACT,
        starts=CAPITALS,
    ),
    make_rule(
        "place",
        r"(?<![\w-])\d{1,2}(?:st|nd|rd|th)?\s(?:North|South|East|West|NORTH|SOUTH|EAST|WEST)\b"
        r"|\b(?:North|South|East|West)\s\d{1,2}[A-Z]?\b|\b\d{1,2}(?:st|nd|rd|th)\s[Ff]loor\b"
        r"|\b[Ww]ard\s[A-Z][\w'-]{2,20}",
        needs="north,south,east,west,floor,ward",
        flags=EXACT,
    ),
)
PHONES: tuple[Rule, ...] = (
    make_rule(
        "phone",
        r"(?<![\w-])(?:bleep|pgr|spectralink|vocera|ascom|dect|voalte|hot ?line|help ?line|contact|ring"
        r"|dial|text|sms|whatsapp|direct(?: line)?|switchboard|cell|tel[e\u00e9]?f(?:on|ono|one)?"
        r"|t[e\u00e9]l|portable|m[o\u00f3]vil|celular|cellulare|telem[o\u00f3]vel|handy|call(?:ed)?"
        r"|extn?|extension|beep(?:er)?|pager?|phone|questions)"
        r"\b[.#:]{0,2}\s?(?:number|no\b\.?|#)?[:\s]{0,2}(?:is\s|at\s"
        r"|on\s)?(?=[\d(+x])[\d(+x][\d().x/ -]{1,24}(?<=\d)(?<=\d\d\d)(?:-\d{1,4})?(?!\d|\s?(?:am|pm|" + UNIT + "))",
        digits=3,
        needs=(
            "bleep,pgr,spectra,vocera,ascom,dect,voalte,line,contact,ring,dial,text,sms,whats,direct,"
            "switch,cell,tel,t\u00e9l,port,m\u00f3vil,movil,handy,call,ext,beep,page,phone,questions"
        ),
    ),
    make_rule("phone", rf"(?<![\w./-])\d-\d{{4}}(?![\d-]|\s?(?:{UNIT}))|\bx\s?\d{{3,6}}\b(?!\s?(?:{UNIT}))", digits=4),
    make_rule(
        "phone",
        r"(?<![\w.-])0\d{2,4}[\s/-]\d{3,8}(?:\s\d{2,6}|-\d{1,6}){0,2}(?!\d)|(?<![\w.-])\d{2}(?:[ .]\d{2}){4}(?!\d)",
        digits=7,
        starts=DIGITS,
    ),
    # The first number of a call has taken its label; this is what stands after it.
    make_rule("phone", r"\ue000\s{0,3}(?:,?\s?(?:x|ext\.?|extension)\s?\d{1,6})\b", digits=1, needs="x"),
    make_rule(
        "phone",
        r"\b(?:tele)?(?:phone|fax|pager|beeper|cell|mobile|tel|ext(?:ension)?|page|call(?:back)?)\b[.#:]?\s?"
        r"(?:number|no\b\.?|#)?[:\s]{0,2}(?:is\s|at\s)?(?=[\d(+x])[\d(+x][\d().x -]{1,24}(?<=\d)(?!\s?(?:am|pm|"
        + UNIT
        + "))",
        digits=3,
        needs="phone,fax,pag,beep,cell,mobile,tel,ext,call",
    ),
    make_rule(
        "phone",
        r"(?<![\w.+])(?:\+?\d{1,3}[\s.-]?)?(?:\(\d{3}\)|\d{3})[\s.-]?\d{3}[\s.-]\d{4}(?!\d)(?:,?\s?(?:x"
        r"|ext\.?|extension)\s?\d{1,6})?",
        digits=7,
    ),
    make_rule(
        "phone",
        r"(?<![\w.+-])\+\d[\d\s().-]{6,20}\d|(?<![\w.-])\d{3}[-.]\d{4}(?!\d)|\bx\s?\d{1,2}-?\d{4}\b",
        digits=5,
    ),
)
_DIGIT = "(?:zero|oh|one|two|three|four|five|six|seven|eight|nine|double|triple)"
NUMBERS: tuple[Rule, ...] = (
    # Dictated: `five five five one two one two`. Six in a row count nothing.
    make_rule(
        "number",
        rf"(?<![\w-]){_DIGIT}(?:[\s,-]{{1,2}}{_DIGIT}){{5,20}}(?![\w-])",
        words="zero oh one two three four five six seven eight nine double triple",
    ),
    make_rule(
        "number",
        r"(?<![\w.])\d{3}-\d{2}-\d{4}(?!\d)|(?<![\w.])\d{1,3}(?:\.\d{1,39}){3,30}(?!\d)",
        digits=4,
        between="-.",
        starts=DIGITS,
    ),
    # A token of letters with four digits in a row, or five in all, that is neither a size nor a range of vertebrae.
    make_rule(
        "number",
        r"(?<![\w.-])(?!(?:[tcls]\d{1,2}[-/]?)++(?![\w-]))(?!\d++-?(?:mm|cm|ml|cc|mg|kvp?|mas?"
        r"|hu)\b)(?![\w-]{0,40}\d(?:mm|cm)(?![a-z]))"
        r"(?=[\w-]*+(?<=[\w-]))(?=[\d_-]*+[^\W\d_])(?=(?:[^\W\d]|-)*+\d(?:[\w-]*?\d{4}|\d{3}"
        r"|(?:(?:[^\W\d]|-)*+\d){4}))[\w-]++",
        digits=4,
    ),
    make_rule(
        "number", r"(?<![\d.])\d{6,}+(?:[-/]\d++)*+|(?<![\w.-])\d{2,}+(?:-\d{2,}+){2,}+", digits=6, starts=DIGITS
    ),
    # Of texts with fewer digits; last, since other rules know plates and the like whole.
    make_rule("number", rf"(?<![\w-]){_STRONG}{_JOINT}{_VALUE}", digits=1, if_true=_is_a_number_of_something_else),
)
