"""Removes identifiers, de-identification marks and comparisons with earlier studies from the text of a report.

The text becomes a prompt and may be shared, so whatever looks like an identifier is removed, even if it might not be
one. Rules find what has a form or stands in a context (`identifiers`, `contacts`), dictionaries find bare names of
people and places (`dictionary`), and the clinical vocabulary says what is none. What is left of a sentence is repaired
just enough to be readable.
"""

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cxrsynth.reports.deid.comparisons import (
    COMPARISON,
    COMPARISON_NEEDS,
    COMPARISON_WORD_NEEDS,
    without_comparison_sections,
    without_comparison_words,
)
from cxrsynth.reports.deid.contacts import CONTACT, CONTACT_NEEDS, before_contact
from cxrsynth.reports.deid.dictionary import names_after, without_names, words_of_name
from cxrsynth.reports.deid.entities import without_entities
from cxrsynth.reports.deid.identifiers import RULES
from cxrsynth.reports.deid.language import language_of
from cxrsynth.reports.deid.rules import HOLE, has_one, take_out
from cxrsynth.reports.deid.sentences import own_header, repair, sentences
from cxrsynth.reports.deid.spelling import in_plain_spelling
from cxrsynth.reports.deid.strict import is_clinical
from cxrsynth.reports.text import check_text

if TYPE_CHECKING:
    from cxrsynth.reports.deid.entity_model import EntityModel

STRENGTHS = ("standard", "strict")
_MOST_ROUNDS = 6  # until nothing changes; a text needs two, seldom three

KINDS = (
    "mark",  # traces of an earlier de-identification: ___, XXXX, [**...**], <NAME>
    "email",
    "url",
    "age",  # above 89
    "date",
    "time",
    "phone",
    "number",  # record, accession, social security and other long numbers
    "name",
    "place",  # hospital, street
    "contact",  # who signed, dictated, was informed: to the end of the sentence
    "comparison",  # a sentence, or a COMPARISON section, about an earlier study
    "comparison_word",  # "stable", "interval": the word, not the finding
    "sentence",  # strict: with a word or number that is not known to be clinical
    "entity",  # found by a model of the user's
    "language",  # the whole text: in a language that the rules do not cover
)


@dataclass(frozen=True, slots=True)
class Sanitized:
    """What is left of a text, and how many items of each kind were removed (see `KINDS`).

    `introduced` has the words of names that the text introduces, for other parts of the same report.
    """

    text: str = field(repr=False)
    removed: Counter[str]
    introduced: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    @property
    def covered(self) -> bool:
        """Whether the text is in a language that the rules cover. If not, nothing of it is left."""
        return not self.removed.get("language")


def sanitize(
    text: str,
    *,
    strength: Literal["standard", "strict"] = "standard",
    model: "str | PathLike[str] | EntityModel | None" = None,
) -> Sanitized:
    """Remove what identifies people, places and times, and what compares with earlier studies.

    Sentences that compare with an earlier study are removed whole. Of words such as "stable" or "interval" only the
    word is removed, so that the finding it qualifies stays. Text with nothing to remove comes back unchanged except for
    white space and the spelling of characters: rules see composed letters, plain hyphens and slashes, ASCII in place of
    fullwidth characters, ordinary digits in dates, and no HTML entities. Time grows linearly with the text. What is
    sanitized stays as it is when it is sanitized again.

    Args:
        text: a report, or a part of one, in English, German, French, Spanish, Italian, Portuguese, Vietnamese, Chinese,
            Japanese or Korean. Of a text in another language nothing is left, and `removed` counts one `language`. A
            text of fewer than six words in Latin script counts as English unless one is of another language only.
        strength: `standard`, or `strict`, which also drops any sentence with a word that is not of the clinical
            vocabulary, a word with a capital that it should not have, or a number that is no measure.
        model: a folder of spaCy or transformers that finds named entities in what the rules leave; None for rules
            alone. It needs `pip install 'cxrsynth[presidio]'`, and is loaded by the first call.

    Raises:
        ReportsError: if the text is no `str`.
        ValueError: for another strength.
        ModelError: if the model cannot be loaded.
    """
    check_text(text, function="sanitize")
    return sanitize_part(text, introduced=frozenset(), strength=strength, model=model)


def sanitize_part(
    text: str,
    *,
    introduced: Set[str],
    strength: Literal["standard", "strict"] = "standard",
    model: "str | PathLike[str] | EntityModel | None" = None,
) -> Sanitized:
    """As `sanitize`, for a section or column of a report that introduces names elsewhere.

    A prompt of the impression alone must not keep the name that only the header says is one.

    Args:
        text: a part of a report.
        introduced: `Sanitized.introduced` of all of the report.
        strength: as for `sanitize`.
        model: as for `sanitize`.

    Raises:
        ValueError, ModelError: as `sanitize` does.
    """
    if strength not in STRENGTHS:
        raise ValueError(f"strength: {strength!r}, expected one of {', '.join(STRENGTHS)}")
    finder = _finder(model)
    removed: Counter[str] = Counter()
    names = set(introduced)
    settled: dict[str, int] = {}
    text = in_plain_spelling(text)
    for _ in range(_MOST_ROUNDS):
        before = text
        text = _once(text, removed, names, settled, strict=strength == "strict")
        if text == before and finder is not None and text:
            text, count = without_entities(text, finder.find(text))
            removed["entity"] += count
        if text == before:
            break
    return Sanitized(text, +removed, frozenset(names))


def _finder(model: "str | PathLike[str] | EntityModel | None") -> "EntityModel | None":
    if model is None:
        return None
    from cxrsynth.reports.deid.entity_model import EntityModel, shared_entity_model

    return model if isinstance(model, EntityModel) else shared_entity_model(Path(model))


def _once(text: str, removed: Counter[str], introduced: set[str], settled: dict[str, int], *, strict: bool) -> str:
    """One round; the names that the report introduces are added to `introduced`, and found in the round after, too.

    `settled` has the sentences that a round left as they are, with the number of names it knew: the next one need not
    look at them again.
    """
    language = language_of(text)
    if language is None:
        removed["language"] += 1
        return ""
    # By paragraphs: what is removed at the end of one must not join it to the next, whose negation would be lost.
    people: list[str] = []
    text = "\n\n".join(take_out(part, RULES, removed=removed, people=people) for part in text.split("\n\n"))
    for name in people:
        introduced.update(words_of_name(name))
    text = without_comparison_sections(text, removed)

    def left_of(sentence: str) -> str:
        known = f"{language} {sentence}"
        if settled.get(known) == len(introduced):
            return sentence
        before = removed.total(), len(introduced)
        left = _sentence(sentence, removed, introduced, language, strict=strict)
        if left == sentence and before == (removed.total(), len(introduced)):
            settled[known] = len(introduced)
        return left

    parts = ("".join(map(left_of, sentences(part))) for part in text.split("\n\n"))
    # What closes up around a gap can make an entity or a date of digits in another spelling.
    return in_plain_spelling("\n\n".join(parts))


def _after_contact(rest: str, language: str) -> str:
    """After the semicolon of "Discussed with Dr. Roe; large pneumothorax": kept if clinical without capitals."""
    _, _, clause = rest.partition("; ")
    is_finding = clause.islower() and CONTACT.search(clause) is None and is_clinical(clause, language)
    return f" {clause[0].upper()}{clause[1:]}" if is_finding else ""


def _sentence(sentence: str, removed: Counter[str], introduced: set[str], language: str, *, strict: bool) -> str:
    lower = sentence.lower()
    if has_one(lower, COMPARISON_NEEDS) and COMPARISON.search(lower):
        removed["comparison"] += 1
        return own_header(sentence)
    changed = HOLE.search(sentence) is not None
    if has_one(lower, CONTACT_NEEDS):
        contact = CONTACT.search(sentence)
        if contact:
            removed["contact"] += 1
            head = before_contact(sentence[: contact.start()])
            # "Mbali Nkosi was notified" leaves no head.
            for name in names_after(sentence, contact.end() if head else 0, language=language):
                introduced.update(words_of_name(name))
            sentence, changed = head + _after_contact(sentence[contact.end() :], language), True
    if has_one(lower, COMPARISON_WORD_NEEDS):
        sentence, count = without_comparison_words(sentence)
        if count:
            removed["comparison_word"] += count
            changed = True
    sentence, count = without_names(sentence, language=language, introduced=introduced)
    if count:
        removed["name"] += count
        changed = True
    if changed:
        sentence = repair(sentence)
    if strict and not is_clinical(sentence, language):
        removed["sentence"] += 1
        return own_header(sentence)
    return sentence
