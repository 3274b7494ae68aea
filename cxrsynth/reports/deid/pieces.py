"""Parts that patterns of identifiers are made of: names, titles, months, days, units."""

# A letter that is not lower case: a capital, or a letter of a script without case.
CAPITAL = r"[^\W\d_a-zß-öø-ÿ]"
STOP = (
    r"(?i:at|on|in|by|with|the|was|were|is|are|from|and|or|for|to|of|who|will|has|have|had|about|regarding|via|this"
    r"|that|no|there|if|as|per|over|after|before|findings?|heart|lungs?|chest|pleural|mild|moderate|left|right"
    r"|a|an|it|he|she|we|they|small|large|stable|mildly|bilateral|status|lines?|tubes?|lungs|new|not"
    r"|time|phone|telephone|pager|drs?|mrs?|ms|mx|miss|prof|professor|doctors?)(?![\w'\u2019-])"
)
# The capital is asked for first: most words have none, and then STOP is not tried.
_NO_STOP = rf"(?={CAPITAL})(?!{STOP})"
WORD = rf"(?:(?:{CAPITAL}\.\s?){{1,3}}|{_NO_STOP}{CAPITAL}[\w'\u2019-]{{0,60}})"
# A word of a name or place with an abbreviated saint or an initial; the full stop of a sentence is no part of it.
PROPER = rf"(?:(?:St|Ste|Mt|Ft|Sta|Sto)\.|{_NO_STOP}(?:{CAPITAL}\.(?=\s?{CAPITAL})|{CAPITAL}[\w'\u2019-]{{0,40}}))"
PARTICLES = r"(?:(?i:van|von|der|den|de|da|dos|del|di|la|le|el|al|bin|ibn|ter|ten)\s+){0,3}"
NAME = rf"{PARTICLES}{WORD}(?:\s*+{PARTICLES}{WORD}){{0,3}}(?:,?\s(?:Jr|Sr|II|III)\b\.?)?"
# In text without capitals any word may be the name.
_SMALL_WORD = rf"(?!{STOP})[^\W\d_][\w'\u2019-]{{0,60}}"
# What a name is followed by: `mr. roe could not hold his breath`.
_AFTER_NAME = (
    r"(?i:could|can|cannot|would|should|might|must|may|did|does|do|never|now|also|then|when|while|which|but|because|during"
    r"|until|came|went|fell|needs?|refused|denies|coughs|complains|presents|presented|underwent|remains|was|unable)"
    r"(?![\w'\u2019-])"
)
SMALL_NAME = rf"{_SMALL_WORD}(?:\s(?!{_AFTER_NAME}){_SMALL_WORD}){{0,2}}"
# DR, MR and MS are also digital radiography, magnetic resonance and multiple sclerosis.
NO_PERSON = r"(?!(?i:imag|exam|scan|stud|angio|brain|spine|cardiac|chest|abd|radiog|system|detect|plate|view|portab))"
TITLE = (
    r"(?<![\w'\u2019-])(?:(?:Drs?|DR|Mrs?|MR|MRS|Ms|MS|Prof|Miss)\.?\s(?:&|and|AND|or)\s(?=(?:Drs?|DR|Mrs?|MR|MRS|Ms|MS|Prof|Miss)\b))?(?:"
    r"(?i:drs?|mrs?|ms|mx|prof)\.\s*|(?:Drs?|Mrs?|Ms|Mx|Miss|Prof)\s|(?:(?i:professor|doctors?)|dr|DR|MRS)\s"
    rf"|(?:MR|MS|mr|ms)\s(?={CAPITAL})"
    rf")(?:(?i:med|dent|vet|phil|jur|habil|univ)\.\s*){{0,4}}{NO_PERSON}"
)
ROLE = (
    r"(?i:resident|attending|radiologist|physician|technologist|technician|surgeon|nurse|practitioner|fellow"
    r"|provider)s?"
)
DEGREE = r"(?:M\.\s?D\b\.?|D\.\s?O\b\.?|R\.\s?N\b\.?|Ph\.?\s?D\b\.?|(?:MD|DO|RN|NP|PA-C|MBBS|FRCR|FACR|CRNA|DNP)\b)"
MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)\b\.?"
)
DAY = r"(?:0?[1-9]|[12]\d|3[01])"
YEAR = r"(?:19|20)\d\d"
UNIT = r"(?:mm|cm|ml|cc|mg|hu|kvp?|mas?|gy|degrees?|percent)\b|%"
EXACT = 0  # flags of a pattern for which capitals matter
