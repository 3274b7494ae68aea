"""Entities that a model finds in what rules and dictionaries have left of a text, and what of them has to go."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cxrsynth.reports.deid.dictionary import TOKEN, Kind, kind_of, names_an_illness
from cxrsynth.reports.deid.rules import NOUN

# What models of entities find that identifies nobody: ages below 90 stay, measures and orders are not names.
_HARMLESS = frozenset(
    {"O", "AGE", "CARDINAL", "ORDINAL", "QUANTITY", "PERCENT", "MONEY", "LANGUAGE", "LAW", "PRODUCT", "EVENT"}
    | {"WORK_OF_ART", "MISC"}
)
_DATES = frozenset({"DATE", "TIME", "DATE_TIME", "DAT"})


class Entity(NamedTuple):
    """Where an entity stands in a text, and the model's name for its kind."""

    start: int
    end: int
    kind: str


def without_entities(text: str, entities: Sequence[Entity]) -> tuple[str, int]:
    """Replace words and numbers of entities by placeholders.

    Words of the clinical vocabulary stay where the model takes them alone for a name, and so do eponyms of diseases.

    Returns:
        The text, and how many words and numbers were replaced.
    """
    tokens = list(TOKEN.finditer(text))
    starts, ends = [token.start() for token in tokens], [token.end() for token in tokens]
    taken = {
        span
        for one in entities
        for span in _identifying(text, tokens, range(bisect_right(ends, one.start), bisect_left(starts, one.end)), one)
    }
    kept, position = [], 0
    for start, end in sorted(taken):
        if start >= position:
            kept += [text[position:start], f" {NOUN} "]
            position = end
    return "".join(kept) + text[position:], len(taken)


def _identifying(text: str, tokens: list[re.Match[str]], inside: range, entity: Entity) -> Iterator[tuple[int, int]]:
    """Start and end of each word and number of an entity that has to go; `inside` are the tokens that it touches."""
    has_digit = any(map(str.isdigit, text[entity.start : entity.end]))
    if entity.kind in _HARMLESS or (entity.kind in _DATES and not has_digit):
        return
    if has_digit:
        start, end = entity.start, entity.end
        while start > 0 and text[start - 1].isalnum():
            start -= 1
        while end < len(text) and text[end].isalnum():
            end += 1
        yield start, end
        return
    kinds = [kind_of(tokens[index][0]) for index in inside]
    if all(kind in (Kind.WORD, Kind.BRAND) for kind in kinds):
        return
    for index, kind in zip(inside, kinds, strict=True):
        token = tokens[index]
        is_plain = kind is Kind.WORD and token[0][0].islower()
        if is_plain or kind is Kind.BRAND or names_an_illness(tokens, index, text):
            continue
        yield token.span()
