"""Phrases that name who signed, dictated or was informed."""

import re

from cxrsynth.reports.deid.rules import MARK, NOUN

# From a match on, a sentence is about people, not about the chest: it is removed to its end.
CONTACT: re.Pattern[str] = re.compile(
    r"\b(?:(?:electronically\s)?(?:dictated|signed|read|reviewed|interpreted|transcribed|verified|approved|authenticated"
    r"|finalized|reported|performed|attested|entered|edited|typed|authored|prepared|requested|referred|ordered)"
    r"(?:\sand\s\w{1,20})?(?:\s(?:electronically|in conjunction))?\s(?:by|with)\b"
    r"|(?:electronically\s)?signed\s?:|dictated\s?:|(?:discussed|discussion)\b(?!\s(?:above|below))|d/w\b|communicated\b"
    r"|conveyed\b|relayed\b|telephoned\b|phoned\b|paged\b|notified\b|notification\b|informed\b|spoken?\b|emailed\b"
    r"|texted\b"
    r"|(?:called|faxed|reported|told|given)\s(?:\S{1,40}\s){0,4}?to\b|made\saware\b|(?:by|via)\s(?:tele)?phone\b"
    r"|(?:telephone|phone)\s(?:call|conversation))",
    re.IGNORECASE,
)
# Looked for first, in lower case: a sentence with none of them is not searched for CONTACT.
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
    *("d/w", "communicat", "convey", "relay", "phone", "paged", "notif", "informed", "spoke", "mailed", "texted"),
    *("called", "faxed", "told", "given", "aware"),
)
# Words before "discussed with ...": subject and auxiliaries go with it, a finding stays.
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


def before_contact(head: str) -> str:
    """What stays of a sentence, `head` being its text up to the contact: empty, or ended by a full stop."""
    words = head.rstrip(" ,;:-\n").split(" ")
    while words and words[-1].strip(" ,;:-\n").lower() in CONTACT_LEAD:
        words.pop()
    head = " ".join(words)
    return f"{head}." if head.strip() else ""
