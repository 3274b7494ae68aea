"""A rule: one pattern of identifiers, when to try it, and the placeholder that replaces a match."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from cxrsynth.reports.deid.lexicon import is_word
from cxrsynth.reports.deid.pieces import CAPITAL

# Placeholders for removed text, from the private area of Unicode; they are first removed from the input. A noun (date,
# name, number) takes the preposition before it along. A mark can stand for any word, so it does not.
NOUN, MARK = "\ue000", "\ue001"
# A regular expression for either, alone or as part of others.
HOLES = f"[{NOUN}{MARK}]"
HOLE: re.Pattern[str] = re.compile(HOLES)

# Words that deny what follows. Removed as the end of a name, they would turn a finding into its opposite.
DENIALS = frozenset(
    (
        *("no", "not", "nor", "none", "without", "never", "neither", "non"),
        *("kein", "keine", "keinen", "keiner", "keinem", "ohne", "nicht", "sans", "aucun", "aucune", "pas"),
        *(
            "sin",
            "ning\u00fan",
            "ningun",
            "ninguna",
            "sem",
            "nenhum",
            "nenhuma",
            "senza",
            "nessun",
            "nessuna",
            "kh\u00f4ng",
        ),
    )
)
_DENIAL_AT_END = re.compile(rf"(?<![\w])(?:{'|'.join(sorted(DENIALS))})\s*$", re.IGNORECASE)

# Where a match of a rule can begin, see `Rule.starts`. A pattern that begins with one character of a class is found
# several times as fast as one that begins with a repetition or looks back.
DIGITS: re.Pattern[str] = re.compile(r"\d\d*+")
CAPITALS: re.Pattern[str] = re.compile(f"{CAPITAL}{CAPITAL}*+")
_DIGIT_OR_CAPITAL = CAPITAL.replace(r"\d", "")
DIGITS_AND_CAPITALS: re.Pattern[str] = re.compile(f"{_DIGIT_OR_CAPITAL}{_DIGIT_OR_CAPITAL}*+")

# A word of the next line that a name seems to go on with.
_NEXT_LINE = re.compile(r"\n\s*+(?P<word>[^\W\d_]{1,40})")
_JOINT = re.compile(r"\d([:/.-])(?=\d)")
_WORDS = re.compile(r"[^\W\d_]+")
_NO_LETTERS = str.maketrans({chr(code): " " for code in range(128) if not chr(code).isalpha()})
_CAPITALS_OF_TEXT = re.compile(r"\\.|\(\?P|[A-Z]+")


@dataclass(frozen=True, slots=True)
class Rule:
    """One pattern, and when to try it. `kind` is one of `KINDS` in sanitize.py."""

    kind: str
    pattern: re.Pattern[str]
    # The rule is tried only if one of these is in the lower-case text; most reports have none.
    needs: tuple[str, ...] = ()
    needs_exact: tuple[str, ...] = ()
    # How many digits the text must have, and characters of which one must stand between digits.
    digits: int = 0
    between: str = ""
    # One of these must be a whole run of digits of the text.
    numbers: frozenset[str] = frozenset()
    # The lower case of the text must have a match of this; a pattern that is found fast.
    hint: re.Pattern[str] | None = None
    # The text must have one of these words, in lower case and of letters only.
    words: frozenset[str] = frozenset()
    # Only for text with characters that are not ASCII.
    beyond_ascii: bool = False
    # A match begins only where a match of this does: `pattern` is tried nowhere else. For patterns that look back, so
    # that none begins inside a run of digits or capitals.
    starts: re.Pattern[str] | None = None
    # Found in the lower case of an ASCII text wherever `pattern` is found in the text, and sooner, as it heeds case.
    lower: re.Pattern[str] | None = None
    if_true: Callable[[re.Match[str]], bool] | None = None


class _Contents:
    """What rules need to know of a text, found out once and when a rule asks for it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lower = text.lower()
        self._starts: dict[str, list[int]] = {}
        numbers = DIGITS.findall(text)
        self.numbers = frozenset(numbers)
        self.digits = len("".join(numbers))

    @cached_property
    def _filled(self) -> str:
        return self.lower.replace(NOUN, " ").replace(MARK, " ")

    @cached_property
    def is_ascii(self) -> bool:
        """Whether all characters but placeholders are ASCII."""
        return self.text.isascii() or self._filled.isascii()

    @cached_property
    def words(self) -> frozenset[str]:
        """In lower case and of letters only."""
        filled = self._filled
        return frozenset(filled.translate(_NO_LETTERS).split() if self.is_ascii else _WORDS.findall(self.lower))

    @cached_property
    def joints(self) -> frozenset[str]:
        """The characters between two digits."""
        return frozenset(_JOINT.findall(self.text))

    def starts(self, pattern: re.Pattern[str]) -> list[int]:
        """Where matches of a pattern begin."""
        # By its text, whose hash is kept: that of a pattern is not.
        if (found := self._starts.get(pattern.pattern)) is None:
            found = self._starts[pattern.pattern] = [match.start() for match in pattern.finditer(self.text)]
        return found


def make_rule(
    kind: str,
    pattern: str,
    *,
    needs: str = "",
    needs_exact: str = "",
    digits: int = 0,
    between: str = "",
    numbers: frozenset[str] = frozenset(),
    hint: str = "",
    words: str = "",
    beyond_ascii: bool = False,
    starts: re.Pattern[str] | None = None,
    flags: int = re.IGNORECASE,
    if_true: Callable[[re.Match[str]], bool] | None = None,
) -> Rule:
    """Make a rule from its pattern, with `needs` and `needs_exact` as comma-separated words, `words` with blanks.

    `flags` are those of `re`; `if_true` checks each match; a match for which it is false stays.
    """
    return Rule(
        kind,
        re.compile(pattern, flags),
        tuple(needs.split(",")) if needs else (),
        tuple(needs_exact.split(",")) if needs_exact else (),
        digits,
        between,
        numbers,
        re.compile(hint) if hint else None,
        frozenset(words.split()),
        beyond_ascii,
        starts,
        re.compile(_lowered(pattern)) if flags & re.IGNORECASE else None,
        if_true,
    )


def _lowered(pattern: str) -> str:
    """A pattern with small letters, but for those of escapes (`\\W`) and of names of groups (`(?P<`)."""
    return _CAPITALS_OF_TEXT.sub(lambda found: found[0].lower() if found[0].isalpha() else found[0], pattern)


def take_out(text: str, rules: Iterable[Rule], *, removed: Counter[str], people: list[str]) -> str:
    """Replace each match of each rule, in order, by a placeholder.

    The number of each kind is added to `removed`, and the group `who` of each match that has one to `people`.
    """
    contents = _Contents(text)
    for rule in rules:
        # The number of digits rules most patterns out for most reports; it costs less than a call.
        if contents.digits < rule.digits or not _may_match(rule, text, contents):
            continue
        text, count = _replace(rule, text, contents, people)
        if count:
            removed[rule.kind] += count
            contents = _Contents(text)
    return text


def _may_match(rule: Rule, text: str, contents: _Contents) -> bool:
    """Cheap tests that rule out most patterns for most reports."""
    if rule.beyond_ascii and contents.is_ascii:
        return False
    if rule.words and rule.words.isdisjoint(contents.words):
        return False
    if rule.between and contents.joints.isdisjoint(rule.between):
        return False
    if rule.numbers and rule.numbers.isdisjoint(contents.numbers):
        return False
    if rule.needs and not has_one(contents.lower, rule.needs):
        return False
    if rule.needs_exact and not has_one(text, rule.needs_exact):
        return False
    return rule.hint is None or rule.hint.search(contents.lower) is not None


def has_one(text: str, needs: tuple[str, ...]) -> bool:
    """Whether a text has one of these; true if there are none."""
    # A loop: a generator would take twice as long, and this is half the time of a report with nothing to remove.
    for need in needs:
        if need in text:
            return True
    return not needs


def _replace(rule: Rule, text: str, contents: _Contents, people: list[str]) -> tuple[str, int]:
    hole = MARK if rule.kind == "mark" else NOUN
    names_people = "who" in rule.pattern.groupindex
    kept, position, count = [], 0, 0
    for match in _matches(rule, text, contents):
        if rule.if_true is not None and not rule.if_true(match):
            continue
        count += 1
        end = _end_of_name(match) if names_people else match.end()
        if names_people:
            people.append(text[match.start("who") : min(match.end("who"), end)])
        denial = _DENIAL_AT_END.search(text, match.start(), end)
        kept += [text[position : match.start()], f" {hole} {denial[0] if denial else ''}"]
        position = end
    return ("".join(kept) + text[position:], count) if count else (text, 0)


def _end_of_name(match: re.Match[str]) -> int:
    """Where a name ends: with its line, if the next one begins with a word that is clinical and no name."""
    if "\n" in match["who"]:
        for line in _NEXT_LINE.finditer(match.string, match.start("who") + 1, match.end()):
            if is_word(line["word"]):
                return line.start()
    return match.end()


def _matches(rule: Rule, text: str, contents: _Contents) -> Iterator[re.Match[str]]:
    lower = rule.lower if contents.is_ascii else None
    if lower is None:
        searched, pattern = text, rule.pattern
    else:
        searched, pattern = contents.lower, lower
    if rule.starts is None:
        found = pattern.finditer(searched)
    else:
        found = _matches_at(contents.starts(rule.starts), pattern, searched)
    if lower is None:
        yield from found
        return
    for one in found:
        match = rule.pattern.match(text, one.start())
        if match is not None:
            yield match


def _matches_at(starts: list[int], pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """As `pattern.finditer`, for a pattern whose matches begin at `starts` only."""
    end, match_at = 0, pattern.match
    for start in starts:
        if start >= end and (match := match_at(text, start)):
            yield match
            end = match.end()
