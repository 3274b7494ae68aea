"""A rule: one pattern of identifiers, when to try it, and the placeholder that replaces a match."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

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

_NUMBER = re.compile(r"\d(?:[:/.-]?\d)*+")
_JOINTS = frozenset(":/.-")
_WORDS = re.compile(r"[^\W\d_]+")


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
    # The text must have one of these words, in lower case and of letters only.
    words: frozenset[str] = frozenset()
    # Only for text with characters that are not ASCII.
    beyond_ascii: bool = False
    if_true: Callable[[re.Match[str]], bool] | None = None


@dataclass(frozen=True, slots=True)
class _Contents:
    """What rules need to know of a text: its lower case, words, number of digits, and characters between digits."""

    lower: str
    words: frozenset[str]
    digits: int
    joints: frozenset[str]
    is_ascii: bool


def _contents(text: str) -> _Contents:
    lower = text.lower()
    found = "".join(_NUMBER.findall(text))
    return _Contents(
        lower=lower,
        words=frozenset(_WORDS.findall(lower)),
        digits=sum(map(str.isdecimal, found)),
        joints=frozenset(found) & _JOINTS,
        is_ascii=text.isascii(),
    )


def make_rule(
    kind: str,
    pattern: str,
    *,
    needs: str = "",
    needs_exact: str = "",
    digits: int = 0,
    between: str = "",
    words: str = "",
    beyond_ascii: bool = False,
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
        frozenset(words.split()),
        beyond_ascii,
        if_true,
    )


def take_out(text: str, rules: Iterable[Rule], *, removed: Counter[str], people: list[str]) -> str:
    """Replace each match of each rule, in order, by a placeholder.

    The number of each kind is added to `removed`, and the group `who` of each match that has one to `people`.
    """
    contents = _contents(text)
    for rule in rules:
        if not _may_match(rule, text, contents):
            continue
        text, count = _replace(rule, text, people)
        if count:
            removed[rule.kind] += count
            contents = _contents(text)
    return text


def _may_match(rule: Rule, text: str, contents: _Contents) -> bool:
    """Cheap tests that rule out most patterns for most reports."""
    if contents.digits < rule.digits or (rule.beyond_ascii and contents.is_ascii):
        return False
    if rule.words and rule.words.isdisjoint(contents.words):
        return False
    if rule.between and contents.joints.isdisjoint(rule.between):
        return False
    return _has_one(contents.lower, rule.needs) and _has_one(text, rule.needs_exact)


def _has_one(text: str, needs: tuple[str, ...]) -> bool:
    # A loop: a generator would take twice as long, and this is half the time of a report with nothing to remove.
    for need in needs:
        if need in text:
            return True
    return not needs


def _replace(rule: Rule, text: str, people: list[str]) -> tuple[str, int]:
    hole = MARK if rule.kind == "mark" else NOUN
    names_people = "who" in rule.pattern.groupindex
    count = 0

    def swap(match: re.Match[str]) -> str:
        nonlocal count
        if rule.if_true is not None and not rule.if_true(match):
            return match[0]
        count += 1
        if names_people:
            people.append(match["who"])
        denial = _DENIAL_AT_END.search(match[0])
        return f" {hole} {denial[0] if denial else ''}"

    return rule.pattern.sub(swap, text), count
