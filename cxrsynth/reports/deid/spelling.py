"""One spelling for each character, so that rules meet the digits, slashes, hyphens and letters that they know."""

import html
import re
import unicodedata

# Invisible characters that end a line or separate words.
_BREAK = re.compile("\r\n?|[\u000b\u000c\u001c-\u001f\u0085\u2028\u2029]")
_UNSEEN = re.compile(
    "[\u0000-\u0008\u000e-\u001b\u007f-\u0084\u0086-\u009f\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufe00-\ufe0f\ufeff\ufff9-\ufffb\ue000\ue001\U000e0000-\U000e01ef]"
)
# With any number of escaped ampersands: `&amp;amp;lt;` is `<`. Numbers do without the semicolon.
_ENTITY = re.compile(
    r"&(?:(?:amp|AMP|#0*38|#[xX]0*26);)*(?P<last>#\d{1,20};?|#[xX][0-9a-fA-F]{1,20};?|[a-zA-Z]{2,8}\d{0,2};)"
)
_MOST_NESTED = 5  # entities inside of entities: `&#3&#56;;`. What is nested deeper was not written by any export.
# Hyphens, and dashes used as hyphens.
_HYPHEN = re.compile("[\u2010\u2011\u2212\ufe63]|(?<=\\w)[\u2012\u2013](?=\\w)|(?<=\\d)[\u2014\u2015](?=\\d)")
_ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # fullwidth signs
_SLASHES = dict.fromkeys((0x2044, 0x2215, 0x29F8, 0x2571), ord("/"))
_SIGNS = _ASCII | _SLASHES
_OTHER_DIGIT = re.compile(r"[^\D0-9]")
# Circled, raised and lowered digits, alone a list number or a unit, are of a date or time only beside its separators.
_RAISED = (
    "\u00b2\u00b3\u00b9\u2070\u2074-\u2079\u2080-\u2089\u2460-\u2473\u24ea\u24eb-\u24f4\u24ff\u2776-\u277f\u3251-\u325f"
)
_FIGURES = re.compile(rf"(?<![\d{_RAISED}])[\d{_RAISED}]++(?:[-/.:\u5e74\u6708][\d{_RAISED}]++)++")
_ANY_RAISED = re.compile(f"[{_RAISED}]")
_UNEVEN = re.compile(r"[^\S\n]{2,}|[^\S \n]")


def in_plain_spelling(text: str) -> str:
    """Normalize the spelling of characters, and white space to single spaces and at most one blank line.

    A second time changes nothing. Time grows linearly with the text.
    """
    for _ in range(_MOST_NESTED):
        text = _once(text)
        decoded = _ENTITY.sub(_decoded, text) if "&" in text else text
        if decoded == text:
            return _tidy(text)
        text = decoded
    # A blank is in no entity, so that none can come of it.
    return _tidy(_ENTITY.sub(" ", _once(text)))


def _once(text: str) -> str:
    """Invisible characters first: they stand between the letters of an entity, and before an accent."""
    text = _UNSEEN.sub("", _BREAK.sub("\n", text))
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.translate(_SIGNS))
        text = _OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)
        text = _HYPHEN.sub("-", text)
        if _ANY_RAISED.search(text):
            text = _FIGURES.sub(lambda figures: _ANY_RAISED.sub(_plain_number, figures[0]), text)
    return text


def _decoded(entity: re.Match[str]) -> str:
    return html.unescape(f"&{entity['last']}")


def _plain_number(sign: re.Match[str]) -> str:
    return str(int(unicodedata.numeric(sign[0])))


def _tidy(text: str) -> str:
    if " ".join(text.split()) == text:
        return text
    text = _UNEVEN.sub(" ", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", text)).strip()
