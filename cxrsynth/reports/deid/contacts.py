"""Contacts: the part of a sentence that says who signed, dictated or was informed."""

import re

from cxrsynth.reports.deid.lexicon import core
from cxrsynth.reports.deid.rules import HOLES, MARK, NOUN

# "Performed with the patient supine": how an image was made or looked at, not by whom.
_TECHNIQUE = (
    r"certainty|confidence|nipple|markers?|fluoroscop|inspiration|expiration|(?:(?:iv|oral|intravenous|and|or|without)\s){0,3}contrast"
    r"|(?:the\s)?patient\s(?:supine|prone|upright|erect|seated|sitting|standing|lying|rotated|in\s)"
)
# From a match on, a sentence is about people, not about the chest: the rest of it is removed.
CONTACT: re.Pattern[str] = re.compile(
    r"\b(?:(?:electronically\s)?(?:dictated|signed|read|reviewed|interpreted|transcribed|verified"
    r"|approved|authenticated"
    r"|finali[sz]ed|reported|performed|attested|entered|edited|typed|authored|prepared|requested"
    r"|referred|ordered|seen|confirmed|checked"
    r"|released|validated|completed|generated|created|acknowledged|countersigned|cosigned|co-signed"
    r"|discussed|witnessed|supervised)"
    # Between the verb and who: when, how and where it was done. A placeholder has two spaces on either side.
    r"(?:,?\s{1,2}(?:and\s\w{1,20}|electronically|digitally|verbally|personally|in conjunction|on|at|in|as"
    r"|date|time|the|final|report"
    rf"|[ap]\.?m\.?|\w{{1,10}}ly|{HOLES}),?){{0,8}}(?:\s{{1,2}}by|\swith(?!\s(?:caution|care|attention|reference"
    rf"|the\s(?:benefit|exception|aid|use)|an?\s|no\s|respect|{_TECHNIQUE})))\b"
    r"|(?:electronically\s)?signed\s?:|dictated\s?:|(?:discussed|discussion)\b(?!\s(?:above|below))"
    r"|d/w\b|communicated\b"
    r"|conveyed\b|relayed\b|telephoned\b|phoned\b|paged\b|notified\b|notification\b"
    r"|informed\b(?!\sconsent)|spoken?\b|emailed\b"
    r"|texted\b"
    r"|(?:called|faxed|reported|told|given)\s(?:\S{1,40}\s){0,4}?to\b(?!\s(?:be|have|the\s(?:clinical"
    r"|patient|presence)))|made\saware\b|(?:by|via)\s(?:tele)?phone\b"
    r"|(?:telephone|phone)\s(?:call|conversation))",
    re.IGNORECASE,
)
# Checked first, in lower case: a sentence without any of these is not searched for CONTACT.
CONTACT_NEEDS: tuple[str, ...] = (
    *(
        "dictat",
        "signed",
        "read ",
        "review",
        "interpret",
        "transcri",
        "verif",
        "approv",
        "authent",
        "finaliz",
        "report",
    ),
    *("perform", "attest", "entered", "edited", "typed", "author", "prepar", "request", "referr", "ordered", "discuss"),
    *("seen", "confirm", "check", "releas", "valid", "complet", "generat", "creat", "acknowledg", "sign", "witness"),
    *(
        "supervis",
        "d/w",
        "communicat",
        "convey",
        "relay",
        "phone",
        "paged",
        "notif",
        "informed",
        "spoke",
        "mailed",
        "texted",
    ),
    *("called", "faxed", "told", "given", "aware"),
)
# Words before "discussed with ...": subject and auxiliaries are removed with it, a finding stays.
CONTACT_LEAD: frozenset[str] = frozenset(
    (
        *("these", "this", "the", "all", "above", "critical", "preliminary", "urgent", "important", "significant"),
        *("abnormal", "unexpected", "positive", "finding", "findings", "result", "results", "impression", "report"),
        *(
            "study",
            "case",
            "it",
            "they",
            "wet",
            "and",
            "images",
            "were",
            "was",
            "is",
            "are",
            "has",
            "have",
            "been",
            "be",
        ),
        *("verbally", "directly", "personally", "immediately", "then", "also", "i", "we", "team", "clinician", "nurse"),
        *("physician", "provider", "referring", "ordering", "which", "as", "electronically", "recommendation", ""),
        *("recommendations", NOUN, MARK),
    )
)


_LONGEST_NAME = 3  # words of a name that no dictionary has


def before_contact(head: str) -> str:
    """What is kept of a sentence whose text up to the contact is `head`: nothing, or text that ends in a full stop."""
    words = head.rstrip(" ,;:-\n").split(" ")
    is_passive = bool(words) and words[-1].lower() in ("was", "were", "been", "is")
    while words and words[-1].strip(" ,;:-\n").lower() in CONTACT_LEAD:
        words.pop()
    plain = [word.strip(".,") for word in words if word and word not in (NOUN, MARK)]
    if is_passive and len(plain) <= _LONGEST_NAME and all(w[:1].isupper() and w.lower() not in core() for w in plain):
        return ""  # "Jane Roe was notified"
    head = " ".join(words)
    return f"{head}." if head.strip() else ""
