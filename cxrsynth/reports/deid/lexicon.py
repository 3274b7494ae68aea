"""Word lists of the sanitizer: names, places, a clinical vocabulary, and words that look like names and are none.

Sources and licences: `lists/NOTICE`. All words are in lower case and without accents (see `fold`).
"""

import lzma
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "lists"
_PLAIN = str.maketrans({"ß": "ss", "ø": "o", "đ": "d", "ł": "l", "æ": "ae", "œ": "oe", "\u0131": "i", "\u2019": "'"})


def fold(word: str) -> str:
    """A word in lower case and without accents, as the lists have it."""
    if word.isascii():
        return word.lower()
    parts = unicodedata.normalize("NFD", word.lower().translate(_PLAIN))
    return "".join(letter for letter in parts if not unicodedata.combining(letter))


def _packed(name: str) -> frozenset[str]:
    return frozenset(lzma.decompress((FOLDER / f"{name}.txt.xz").read_bytes()).decode().split("\n"))


def _sections(name: str) -> Iterator[tuple[str, list[str]]]:
    """Each section of a hand-written list: its title, which stands in square brackets, and its words."""
    for part in (FOLDER / f"{name}.txt").read_text(encoding="utf-8").split("\n[")[1:]:
        title, _, words = part.partition("]\n")
        yield title, words.split()


@cache
def clinical(section: str) -> frozenset[str]:
    """One section of `lists/clinical.txt`."""
    return frozenset(word for title, words in _sections("clinical") if title == section for word in words)


# Languages in Latin script with rules of their own, besides English.
LATIN = ("de", "fr", "es", "it", "pt", "vi")


@cache
def foreign_words(language: str) -> frozenset[str]:
    """Common words of reports in a language (`de`, `fr`, ...), folded."""
    return frozenset(fold(word) for title, words in _sections("languages") if title == language for word in words)


@cache
def core() -> frozenset[str]:
    """Words of nearly every report; never a name unless a title or a label says so."""
    return clinical("core") | clinical("abbreviations") | clinical("heads")


@cache
def _packed_vocabulary() -> frozenset[str]:
    return _packed("vocabulary")


@cache
def also_names() -> frozenset[str]:
    """Words that are common names, too: `brown`, `may`, `hope`."""
    return clinical("also") - clinical("core")


@cache
def vocabulary() -> frozenset[str]:
    """Words of clinical English, without those that are foremost names of people or places."""
    words = clinical("words") | core()
    return (_packed_vocabulary() - clinical("names") - (_packed("places") - words)) | words | also_names()


@cache
def names() -> frozenset[str]:
    """Given names, surnames and single-word names of places and hospitals that are no word of the vocabulary."""
    places = frozenset(place for place in _packed("places") | clinical("hospitals") if place.isalpha())
    return (_packed("names") | clinical("names") | places) - vocabulary() - clinical("brands")


def is_word(word: str) -> bool:
    """Whether a word is of the clinical vocabulary and no common name."""
    folded = fold(word)
    return folded in vocabulary() and folded not in also_names()
