"""Bare names of people and places in a sentence, by dictionary: what no rule finds by the words around it."""

import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache

from cxrsynth.reports.deid.lexicon import also_names, clinical, core, fold, foreign_words, names, vocabulary
from cxrsynth.reports.deid.rules import DENIALS, NOUN

TOKEN: re.Pattern[str] = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_PARTS = re.compile("['\u2019-]")
_LOOK_BACK = 12
_OPENERS = r"[:;\u2022*\n]|[-.)]\s|\d[.)]"
_OPENS = re.compile(rf"(?:^|{_OPENERS})[\s\"'(\[]*$")
_OPENS_LATER = re.compile(rf"(?:{_OPENERS})[\s\"'(\[]*$")
# What people do, right after a name that opens a sentence.
_OF_PEOPLE = re.compile(
    r"\s(?:\(\w{2,4}\)\s)?(?:(?:was|has been|were|is)\s(?:\w{2,10}ly\s)?(?:called|told|notified|informed"
    r"|paged|aware|contacted|made|present|seen)|acknowledge[sd]|called|paged"
    r"|agree[sd]?|concur\w*|coughs?|notified|told|said|states?|stated|reports?|reported|requested|asked"
    r"|will|signed|read|reviewed|dictated|present|saw|denies|complains)\b",
)
_JOINED = re.compile(r"(?:,?\s|\s&\s|\sand\s|/|-|,?\s[A-Z]\.?\s)")
_NUMBER_NEXT = re.compile(r"\s#?\d{1,4}[A-Za-z]?(?=\s?(?:[,;:)]|\.?\s*+$))")
_NAME_ENDS = re.compile(r"\s?(?:[,.;:)\]]|$)")
_ENDS = re.compile(r"[.;:()\ue000\ue001]")  # what parts an eponym from its noun
_FARTHEST = 40  # characters from an eponym to its noun
_AHEAD = 4  # tokens after an eponym in which its noun stands: "Gilles de la Tourette syndrome"
_SHORTEST = 3  # letters of a name that is looked for elsewhere in its report
_BETWEEN = frozenset({"de", "la", "and", "von", "of", "the", "s", "del", "le", "van", "du"})


class Kind(Enum):
    """What a word is to the dictionaries."""

    WORD = 0  # of the clinical vocabulary
    NAME = 1
    BOTH = 2  # a word that is a common name, too
    EPONYM = 3  # a name that diseases, signs or devices bear
    BRAND = 4  # of a device, or an eponym that stands alone
    UNKNOWN = 5


@lru_cache(maxsize=1 << 16)
def kind_of(token: str) -> Kind:
    """The kind of a token, without regard to its capitals."""
    word = fold(token).removesuffix("'s").replace("\u2019", "'")
    if word in core() or word in DENIALS:
        return Kind.WORD
    if word in clinical("brands"):
        return Kind.BRAND
    if word in clinical("eponyms"):
        return Kind.EPONYM
    if word in also_names():
        return Kind.BOTH
    if word in vocabulary():
        return Kind.WORD
    if word in names():
        return Kind.NAME
    return _of_parts(re.split("['-]", word))


def _of_parts(parts: list[str]) -> Kind:
    """The kind of a word with hyphens or apostrophes: a name, if a part is one."""
    if len(parts) == 1:
        return _inflected(parts[0])
    kinds = {kind_of(part) for part in parts if len(part) > 1}
    if Kind.EPONYM in kinds and Kind.WORD in kinds and len(kinds) == 2:
        return Kind.BOTH  # `White-out`
    for kind in (Kind.EPONYM, Kind.NAME, Kind.UNKNOWN, Kind.BRAND):
        if kind in kinds:
            return kind
    return Kind.WORD


def _inflected(word: str) -> Kind:
    known = vocabulary()
    for ending, instead in (("s", ""), ("es", ""), ("ed", ""), ("ed", "e"), ("ing", ""), ("ly", ""), ("ies", "y")):
        if word.endswith(ending) and len(word) > 6 and word.removesuffix(ending) + instead in known:
            return Kind.WORD
    for start in (
        "non",
        "sub",
        "peri",
        "para",
        "retro",
        "infra",
        "supra",
        "inter",
        "intra",
        "extra",
        "hyper",
        "hypo",
        "pseudo",
        "post",
        "pre",
        "re",
        "un",
        "bi",
        "mid",
        "over",
        "under",
        "micro",
        "hemi",
        "pneumo",
    ):
        if word.startswith(start) and len(word) > len(start) + 4 and word.removeprefix(start) in known:
            return Kind.WORD
    return Kind.UNKNOWN


def names_an_illness(tokens: list[re.Match[str]], index: int, sentence: str) -> bool:
    """Whether the noun of an eponym stands a few tokens after it: `Gilles de la Tourette syndrome`, `Hampton hump`."""
    listed = kind_of(tokens[index][0]) is Kind.EPONYM
    # No patient lends a name to a syndrome; `Smith fracture` is one only because it is listed.
    heads = clinical("heads") if listed else clinical("firm")
    if listed and index > 1 and fold(tokens[index - 1][0]) == "of" and fold(tokens[index - 2][0]) in heads:
        return True
    end = tokens[index].end()
    for token in tokens[index + 1 : index + 1 + _AHEAD]:
        if token.start() - end > _FARTHEST or _ENDS.search(sentence, end, token.start()):
            return False
        word = fold(token[0])
        if word in heads:
            return True
        between = word in _BETWEEN or len(word) == 1 or kind_of(token[0]) in (Kind.EPONYM, Kind.BRAND, Kind.BOTH)
        if not between:
            return False
    return False


@dataclass(frozen=True)
class Sentence:
    """A sentence and its tokens. Whatever is looked at once per token must take a time that its length does not set."""

    text: str
    tokens: list[re.Match[str]]
    kinds: list[Kind]
    language: str
    # What the report says are names, see `words_of_name`.
    introduced: Set[str] = frozenset()

    @cached_property
    def shouted(self) -> bool:
        """Whether capitals say nothing because all letters are capitals."""
        return self.text.upper() == self.text

    @cached_property
    def is_headline(self) -> bool:
        """Whether most plain words have capitals, which say nothing then: `Small Right Pleural Effusion`."""
        return has_capitals_throughout(
            [token[0] for token, kind in zip(self.tokens[1:], self.kinds[1:], strict=True) if kind is Kind.WORD]
        )

    @property
    def is_english(self) -> bool:
        return self.language == "en"

    def opens(self, index: int) -> bool:
        return opens_sentence(self.text, self.tokens[index].start())

    def is_said_of_people(self, index: int) -> bool:
        token = self.tokens[index]
        rest = self.text[token.end() : token.end() + 60]
        return _OF_PEOPLE.match(rest) is not None or token[0].endswith(("'s", "\u2019s"))

    def is_introduced(self, index: int) -> bool:
        """Whether the report says elsewhere that a token, or a part of it, is a name."""
        return not self.introduced.isdisjoint(words_of_name(self.tokens[index][0])) if self.introduced else False

    def precedes_name(self, index: int) -> bool:
        if index + 1 >= len(self.tokens) or self.kinds[index + 1] is not Kind.NAME:
            return False
        return _JOINED.fullmatch(self.text, self.tokens[index].end(), self.tokens[index + 1].start()) is not None


def words_of_name(name: str) -> Iterator[str]:
    """The words of a name and their parts, folded, without short ones and those that the vocabulary has.

    A report that names its patient in full goes on with a part of the name: `Patient: Mbali Nkosi. Mbali has a cough.`
    """
    for word in TOKEN.findall(name):
        for part in {word, *_PARTS.split(word)}:
            if len(part) >= _SHORTEST and kind_of(part) in (Kind.NAME, Kind.UNKNOWN):
                yield fold(part).removesuffix("'s")


def opens_sentence(sentence: str, start: int) -> bool:
    """Whether a word that begins at `start` opens a sentence, a list item, or what follows a colon."""
    if start <= _LOOK_BACK:
        return _OPENS.search(sentence, 0, start) is not None
    return _OPENS_LATER.search(sentence, start - _LOOK_BACK, start) is not None


def has_capitals_throughout(words: list[str]) -> bool:
    """Whether more than half of two or more longer words begin with a capital."""
    plain = [word for word in words if len(word) > 3]
    return len(plain) > 1 and sum(word[0].isupper() for word in plain) * 2 > len(plain)


def without_names(sentence: str, *, language: str, introduced: Set[str] = frozenset()) -> tuple[str, int]:
    """Replace names of people and places by placeholders.

    Args:
        sentence: one sentence.
        language: of the report, see `language_of`. In English, a word with a capital inside a sentence is taken for a
            name even if it is in no dictionary.
        introduced: names of the report, as `words_of_name` gives them: names wherever they have a capital.

    Returns:
        The sentence, and the number of names.
    """
    tokens, named = _find_names(sentence, language, introduced)
    return _replace(tokens, named, sentence) if any(named) else (sentence, 0)


def names_after(sentence: str, position: int, *, language: str) -> list[str]:
    """The words that `without_names` removes of a sentence from a position on."""
    tokens, named = _find_names(sentence, language, frozenset())
    return [token[0] for token, is_name in zip(tokens, named, strict=True) if is_name and token.start() >= position]


def _find_names(sentence: str, language: str, introduced: Set[str]) -> tuple[list[re.Match[str]], list[bool]]:
    """The tokens of a sentence, and which of them are names; no tokens if all are plain words."""
    kinds = [kind_of(word) for word in TOKEN.findall(sentence)]
    if kinds.count(Kind.WORD) == len(kinds):
        return [], []
    tokens = list(TOKEN.finditer(sentence))
    parsed = Sentence(sentence, tokens, kinds, language, introduced)
    named = [_is_name(parsed, index) for index in range(len(tokens))]
    if any(named):
        _extend(parsed, named)
    return tokens, named


def _is_name(sentence: Sentence, index: int) -> bool:
    word, kind = sentence.tokens[index][0], sentence.kinds[index]
    if kind in (Kind.WORD, Kind.BRAND) or len(word) < 2:
        return False
    if not sentence.is_english and fold(word) in foreign_words(sentence.language):
        return False
    if kind in (Kind.EPONYM, Kind.NAME, Kind.BOTH) and names_an_illness(sentence.tokens, index, sentence.text):
        return False
    has_capital = word[0] != word[0].lower()
    if has_capital and sentence.is_introduced(index):
        return True
    if kind is Kind.EPONYM:
        folded = fold(word).removesuffix("'s")
        kind = Kind.NAME if folded in names() else Kind.BOTH if folded in also_names() else Kind.WORD
    if kind is Kind.NAME and not has_capital:
        return sentence.is_english and len(word) > 3 and "-" not in word
    if not has_capital or kind is Kind.WORD:
        return False
    opens = sentence.opens(index)
    if kind is Kind.NAME:
        return sentence.is_english or not opens or sentence.is_said_of_people(index)
    shouted = word.isupper() and sentence.shouted
    if opens or shouted:
        # A word that opens a sentence has its capital anyway.
        is_first_name = kind is Kind.BOTH and sentence.precedes_name(index)
        return is_first_name or (not shouted and sentence.is_said_of_people(index))
    if sentence.is_headline:
        return False
    if kind is Kind.BOTH:
        return True
    is_acronym = word.isupper() and len(word) < 6
    return sentence.is_english and not is_acronym and not names_an_illness(sentence.tokens, index, sentence.text)


def _extend(sentence: Sentence, named: list[bool]) -> None:
    """Mark words with capitals beside a name as parts of it: `Karen Brown`, `SMITH, JOHN`, `Nguyen Van An`."""
    last = len(named) - 1
    for index in range(1, last + 1):
        named[index] = named[index] or (named[index - 1] and _continues(sentence, index, index - 1))
    for index in range(last - 1, -1, -1):
        named[index] = named[index] or (named[index + 1] and _continues(sentence, index, index + 1))


def _continues(sentence: Sentence, index: int, beside: int) -> bool:
    """Whether a token is a part of the name beside it."""
    word, kind = sentence.tokens[index][0], sentence.kinds[index]
    if word.lower() in DENIALS:
        return False
    if word[0].islower():
        if beside > index:
            return _begins_lower_name(sentence, index) or _is_lower_first_name(sentence, index)
        return kind in (Kind.BOTH, Kind.EPONYM) and _ends_lower_name(sentence, index)
    if not word[0].isupper() or (word.isupper() and 1 < len(word) < 6 and not sentence.shouted):
        return False
    first, second = sorted((index, beside))
    gap = sentence.text[sentence.tokens[first].end() : sentence.tokens[second].start()]
    forward = beside < index
    is_core = fold(word) in core()
    if gap != " " and (gap != ", " or (forward and is_core)):
        return False
    is_plain = kind is Kind.WORD and (sentence.shouted or not forward or is_core)
    return not is_plain or len(word) == 1 or (forward and len(word) < 4)


def _ends_lower_name(sentence: Sentence, index: int) -> bool:
    """Whether a word follows a name in lower case and ends what it stands in: `patient john doe, 45`."""
    before, token = sentence.tokens[index - 1], sentence.tokens[index]
    is_lower_name = before[0][0].islower() and sentence.kinds[index - 1] is Kind.NAME
    gap = sentence.text[before.end() : token.start()]
    return is_lower_name and gap == " " and _NAME_ENDS.match(sentence.text, token.end()) is not None


def _is_lower_first_name(sentence: Sentence, index: int) -> bool:
    """Whether a word is a common name and another one follows it, both in lower case: `raj patel`, `james wilson`."""
    token, after = sentence.tokens[index], sentence.tokens[index + 1]
    is_given = sentence.kinds[index] in (Kind.NAME, Kind.BOTH, Kind.EPONYM) and fold(token[0]) in names() | also_names()
    return is_given and after[0][0].islower() and sentence.text[token.end() : after.start()] == " "


def _begins_lower_name(sentence: Sentence, index: int) -> bool:
    """Whether a word opens a sentence and a name in lower case is after its comma: `smith, john; portable chest`."""
    token, after = sentence.tokens[index], sentence.tokens[index + 1]
    is_surname = sentence.kinds[index] in (Kind.BOTH, Kind.EPONYM, Kind.UNKNOWN) and sentence.opens(index)
    is_lower_name = after[0][0].islower() and sentence.kinds[index + 1] is Kind.NAME
    return is_surname and is_lower_name and sentence.text[token.end() : after.start()] in (", ", ",")


def _replace(tokens: list[re.Match[str]], named: list[bool], sentence: str) -> tuple[str, int]:
    kept, position, count = [], 0, 0
    for token, is_name in zip(tokens, named, strict=True):
        if is_name:
            kept += [sentence[position : token.start()], f" {NOUN} "]
            # With the number of a ward: `Farr 9, portable`.
            number = _NUMBER_NEXT.match(sentence, token.end()) if token[0][0].isupper() else None
            position = number.end() if number else token.end()
            count += 1
    return "".join(kept) + sentence[position:], count
