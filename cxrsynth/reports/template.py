"""Prompt templates: text with fields in braces, and clauses in square brackets that go when a field is missing.

`[[{age} year old ][{race} ]{sex}. ]{impression}` gives `28 year old WHITE female. Small left effusion.`, without a race
`28 year old female. Small left effusion.`, and without a sex the impression alone.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from cxrsynth.settings import PromptStyle

# Fields that every report may have, and what each one is.
FIELDS = {
    "impression": "the impression section, sanitized",
    "findings": "the findings section, sanitized",
    "report": "the whole report, sanitized",
    "canonical": "fixed sentences of view, age group, sex and findings",
    "age": "whole years; missing above 89 and below 1",
    "age_group": "adult or child",
    "sex": "female or male",
    "view": "PA, AP or lateral",
    "race": "as in its column, sanitized",
    "race_group": "of the same column: WHITE, BLACK, ASIAN or HISPANIC, missing for others",
}
# Text of the report; a prompt that lost all of it would request any image at all.
TEXT_FIELDS = ("impression", "findings", "report")
# Fields of few possible values. A prompt of these alone holds no free text and no exact age.
_CODED = frozenset({"canonical", "age_group", "sex", "view"})
_MAX_CHARS = 2000
_MAX_DEPTH = 8
_TOKEN = re.compile(
    r"\\(?P<escaped>.?)|\{(?P<field>[^{}]*)(?P<end>\}?)|(?P<sign>[\[\]}])|(?P<literal>[^\\{}\[\]]+)", re.DOTALL
)
_ESCAPED = frozenset("[]{}\\")


@dataclass(frozen=True, slots=True)
class Preset:
    """The format in which a known model was trained. `source` says where that is stated, and what is not."""

    text: str
    source: str


PRESETS = {
    "roentgen": Preset(
        "{impression}",
        "RoentGen (arXiv:2211.12737) takes free text in the words of a report. That this is the impression alone, as in"
        " the demonstration data of its successor, could not be checked in the paper.",
    ),
    "roentgen-v2": Preset(
        "[[{age} year old ][{race_group} ]{sex}. ]{impression}",
        "RoentGen-v2 (arXiv:2508.16783): demo_data/demo_inference_prompts.csv and README.md of"
        " github.com/StanfordMIMI/RoentGen-v2, where race is WHITE, BLACK, ASIAN or HISPANIC, or left out.",
    ),
    "chexgenbench": Preset(
        "{findings}",
        "CheXGenBench (arXiv:2505.10496): the column annotated_prompt of its tables (tools/generate_data_common.py of"
        " github.com/Raman1121/CheXGenBench), made of LLaVA-Rad's annotations; the one prompt it prints is a findings"
        " section. For its own tables: --findings-column annotated_prompt.",
    ),
    "radedit": Preset(
        "{impression}",
        "RadEdit (arXiv:2312.12865): the model card of microsoft/radedit says an impression section, or a list of"
        " observations; the wording of that list could not be checked.",
    ),
}


class TemplateError(ValueError):
    """What is wrong with a template, what is expected, and what to do; not where the template stands."""


@dataclass(frozen=True, slots=True)
class Field:
    """A place where the value of a field goes."""

    name: str


@dataclass(frozen=True, slots=True)
class Clause:
    """Parts in brackets. They go together if a field directly among them is missing.

    A clause without a field of its own goes if all clauses in it do.
    """

    parts: "tuple[Part, ...]"


Part: TypeAlias = str | Field | Clause


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A parsed template. `text` is the template as written, for plans and messages."""

    text: str
    parts: tuple[Part, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all fields, in order of their first place."""
        return tuple(dict.fromkeys(_names(self.parts)))

    @property
    def outside(self) -> tuple[str, ...]:
        """Names of the fields outside of all clauses, in order of their first place."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Field)))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the fields that are columns of a table, called by their names."""
        return tuple(name for name in self.fields if name not in FIELDS)

    @property
    def needs_race(self) -> bool:
        """Whether the column of the patient's race is read."""
        return not {"race", "race_group"}.isdisjoint(self.fields)

    @property
    def is_coded(self) -> bool:
        """Whether prompts are made of codes alone: they hold no free text and no exact age."""
        return set(self.fields) <= _CODED

    def rendered_fields(self, values: Mapping[str, str]) -> set[str]:
        """Names of the fields with a value that `render` writes."""
        return set(_written(self.parts, values))

    def render(self, values: Mapping[str, str]) -> str:
        """The prompt, with single spaces.

        Args:
            values: field -> text; an empty or absent one is missing. Outside of clauses, nothing takes its place.
        """
        return re.sub(r" ?\n ?", "\n", re.sub(r"[^\S\n]+", " ", _rendered(self.parts, values))).strip()


PromptFormat: TypeAlias = PromptStyle | PromptTemplate


def parse_template(text: str) -> PromptTemplate:
    r"""The template of a text, or of a preset that it names.

    Fields stand in braces: those of `FIELDS`, or any column of the table by its name. Square brackets enclose clauses,
    which may hold others. `\[`, `\]`, `\{`, `\}` and `\\` are the signs themselves.

    Raises:
        TemplateError: if the text is empty, too long or not well formed, has no field, or is no preset.
    """
    if not text.strip():
        raise TemplateError(
            f"empty\n  expected: a preset ({', '.join(PRESETS)}), or text with fields, as '{{findings}}'"
        )
    if not set(text) & _ESCAPED:
        if text not in PRESETS:
            raise _no_preset(text)
        text = PRESETS[text].text
    if len(text) > _MAX_CHARS:
        raise TemplateError(f"{len(text)} characters, expected at most {_MAX_CHARS}")
    template = PromptTemplate(text, tuple(_parsed(text)))
    if not template.fields:
        raise TemplateError(f"{text!r}: no field, so every report would get the same prompt\n  {_known_fields()}")
    return template


def _parsed(text: str) -> list[Part]:
    """The parts of a template; clauses still open are on a stack with the places of their brackets."""
    levels: list[list[Part]] = [[]]
    opened: list[int] = []
    for token in _TOKEN.finditer(text):
        at, sign = token.start(), token["sign"]
        if (escaped := token["escaped"]) is not None:
            if escaped not in _ESCAPED or not escaped:
                raise _wrong(text, at, f"a backslash before {escaped or 'the end'!r}", "one of [ ] { } \\ after it")
            levels[-1].append(escaped)
        elif token["field"] is not None:
            levels[-1].append(_field(text, token))
        elif sign == "[":
            if len(opened) == _MAX_DEPTH:
                raise _wrong(text, at, f"more than {_MAX_DEPTH} brackets inside one another", "fewer")
            levels.append([])
            opened.append(at)
        elif sign == "]":
            if not opened:
                raise _wrong(text, at, "']' without '['", r"a bracket that it closes, or \] for the sign itself")
            parts, start = levels.pop(), opened.pop()
            if all(isinstance(part, str) for part in parts):
                raise _wrong(text, start, "a clause without a field", r"a field in it, or \[ and \] for the signs")
            levels[-1].append(Clause(tuple(parts)))
        elif sign == "}":
            raise _wrong(text, at, "'}' without '{'", r"a brace that it closes, or \} for the sign itself")
        else:
            levels[-1].append(token["literal"])
    if opened:
        raise _wrong(text, opened[-1], "'[' that is never closed", r"']' after it, or \[ for the sign itself")
    return levels[0]


def _field(text: str, token: re.Match[str]) -> Field:
    name = token["field"].strip()
    if not token["end"]:
        raise _wrong(text, token.start(), "'{' that is never closed", r"'}' after the name, or \{ for the sign itself")
    if not name:
        raise _wrong(text, token.start(), "a field without a name", "a name in the braces, as {impression}")
    return Field(name)


def _wrong(text: str, at: int, found: str, expected: str) -> TemplateError:
    return TemplateError(f"character {at + 1} of {text!r}: found {found}\n  expected: {expected}")


def _no_preset(text: str) -> TemplateError:
    # A sentence typed by mistake is not repeated in full.
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    close = difflib.get_close_matches(text, PRESETS, n=1)
    hint = f"\n  did you mean: {close[0]}" if close else ""
    return TemplateError(
        f"{shown!r}: no preset, and no field in braces\n  presets: {', '.join(PRESETS)}\n  {_known_fields()}{hint}"
    )


def _known_fields() -> str:
    return f"fields: {', '.join(f'{{{name}}}' for name in FIELDS)}, or any column of the table"


def _names(parts: tuple[Part, ...]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, Field):
            yield part.name
        elif isinstance(part, Clause):
            yield from _names(part.parts)


def _rendered(parts: tuple[Part, ...], values: Mapping[str, str]) -> str:
    text = []
    for part in parts:
        if isinstance(part, str):
            text.append(part)
        elif isinstance(part, Field):
            text.append(values.get(part.name, ""))
        elif _is_kept(part, values):
            text.append(_rendered(part.parts, values))
    return "".join(text)


def _written(parts: tuple[Part, ...], values: Mapping[str, str]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, Field) and values.get(part.name):
            yield part.name
        elif isinstance(part, Clause) and _is_kept(part, values):
            yield from _written(part.parts, values)


def _is_kept(clause: Clause, values: Mapping[str, str]) -> bool:
    own = [part.name for part in clause.parts if isinstance(part, Field)]
    if own:
        return all(values.get(name) for name in own)
    return any(_is_kept(part, values) for part in clause.parts if isinstance(part, Clause))
