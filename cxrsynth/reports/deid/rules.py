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

_NUMBER = re.compile(r"\d(?:[:/.-]?\d)*+")
_JOINTS = frozenset(":/.-")


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
    if_true: Callable[[re.Match[str]], bool] | None = None


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The number of digits in a text, and the characters between them."""

    digits: int
    joints: frozenset[str]


def _numbers(text: str) -> _Numbers:
    found = "".join(_NUMBER.findall(text))
    joints = frozenset(found) & _JOINTS
    return _Numbers(sum(map(str.isdecimal, found)), joints)


def make_rule(
    kind: str,
    pattern: str,
    *,
    needs: str = "",
    needs_exact: str = "",
    digits: int = 0,
    between: str = "",
    flags: int = re.IGNORECASE,
    if_true: Callable[[re.Match[str]], bool] | None = None,
) -> Rule:
    """Make a rule from its pattern, with `needs` and `needs_exact` as comma-separated words.

    `flags` are those of `re`; `if_true` checks each match; a match for which it is false stays.
    """
    words, exact = tuple(needs.split(",")) if needs else (), tuple(needs_exact.split(",")) if needs_exact else ()
    return Rule(kind, re.compile(pattern, flags), words, exact, digits, between, if_true)


def take_out(text: str, rules: Iterable[Rule], *, removed: Counter[str]) -> str:
    """Replace each match of each rule, in order, by a placeholder; the number of each kind is added to `removed`."""
    lower, numbers = text.lower(), _numbers(text)
    for rule in rules:
        if not _may_match(rule, text, lower, numbers):
            continue
        text, count = _replace(rule, text)
        if count:
            removed[rule.kind] += count
            lower, numbers = text.lower(), _numbers(text)
    return text


def _may_match(rule: Rule, text: str, lower: str, numbers: _Numbers) -> bool:
    """Cheap tests that rule out most patterns for most reports."""
    if numbers.digits < rule.digits or (rule.between and numbers.joints.isdisjoint(rule.between)):
        return False
    if rule.needs and not any(need in lower for need in rule.needs):
        return False
    return not rule.needs_exact or any(need in text for need in rule.needs_exact)


def _replace(rule: Rule, text: str) -> tuple[str, int]:
    hole = MARK if rule.kind == "mark" else NOUN
    if rule.if_true is None:
        return rule.pattern.subn(f" {hole} ", text)
    holds = rule.if_true
    count = 0

    def swap(match: re.Match[str]) -> str:
        nonlocal count
        if not holds(match):
            return match[0]
        count += 1
        return f" {hole} "

    return rule.pattern.sub(swap, text), count
