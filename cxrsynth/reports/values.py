"""Values of the fields of a prompt template, for one report."""

import re
from collections import Counter
from collections.abc import Callable, Mapping

from cxrsynth.reports.deid.sanitize import Sanitized
from cxrsynth.reports.prompt import Subject, age_group
from cxrsynth.reports.sections import Kind, section_text, with_content
from cxrsynth.reports.table.rows import UNKNOWN, Report
from cxrsynth.reports.template import TEXT_FIELDS, PromptTemplate

OLDEST_YEARS = 89  # older patients are few enough to be found by their age; see `deid`
_SEXES = {"F": "female", "M": "male"}
_VIEWS = {"LATERAL": "lateral"}
# Of MIMIC-IV's races, besides the usual ones.
_UNKNOWN_RACES = frozenset({"unable to obtain", "patient declined to answer"})
# The groups that MIMIC-IV's races begin with, as RoentGen-v2 names them.
_RACE_GROUPS = {"WHITE": ("white", "caucasian"), "BLACK": ("black", "african"), "ASIAN": ("asian",)} | {
    "HISPANIC": ("hispanic", "latino", "latina")
}
# What a person is not: "Not Hispanic or Latino", "Non-Hispanic White".
_GROUP = "|".join(name for names in _RACE_GROUPS.values() for name in names)
_DENIED = re.compile(rf"\b(?:not?|non)\b[\s-]*(?:of\s+)?(?:{_GROUP})(?:(?:\s*/\s*|\s+(?:or|nor|and)\s+)(?:{_GROUP}))*")
# Words with "age" in them that are no ages.
_NOT_AGES = re.compile(
    r"image|language|average|percentage|dosage|stage|usage|message|page(?![a-z])|lineage|storage|package"
)


def content_fields(template: PromptTemplate) -> list[str]:
    """Fields of a template that say what the image shows, in order of their first place.

    Those of the report; in a template without them, the columns outside of clauses.
    """
    of_report = [name for name in template.fields if name in (*TEXT_FIELDS, "canonical")]
    return of_report or [name for name in template.outside if name in template.columns]


def section_of(report: Report, kind: Kind) -> str:
    """The impression or findings of a report: its column, else the section of the whole report; empty without one."""
    column = report.impression if kind is Kind.IMPRESSION else report.findings
    return column or section_text(report.text, kind)


def field_values(
    template: PromptTemplate,
    report: Report,
    subject: Subject,
    *,
    clean: Callable[[str], Sanitized],
    clean_text: str,
    canonical: str,
    removed: Counter[str],
) -> dict[str, str]:
    """Field -> text of those that the template has; empty where the report does not have it.

    Args:
        template: whose fields are wanted.
        report: of the prompt.
        subject: what the model can show of the report's view and patient; nothing else is requested.
        clean: removes identifiers from a text.
        clean_text: all text of the report, sanitized.
        canonical: the report's canonical prompt.
        removed: gets the number of items of each kind that are removed from columns.
    """
    known: Mapping[str, Callable[[], str]] = {
        "impression": lambda: with_content(clean(section_of(report, Kind.IMPRESSION)).text),
        "findings": lambda: with_content(clean(section_of(report, Kind.FINDINGS)).text),
        "report": lambda: clean_text,
        "canonical": lambda: canonical,
        "age": lambda: _age(report.age_years, subject),
        "age_group": lambda: subject.age_group or "",
        "sex": lambda: _SEXES.get(subject.sex or "", ""),
        "race_group": lambda: _race_group(report.fields.get("race", "")),
        "view": lambda: _VIEWS.get(subject.view or "", subject.view or ""),
    }
    return {
        name: known[name]() if name in known else _of_column(name, report.fields.get(name, ""), clean, removed)
        for name in template.fields
    }


def _age(age_years: float | None, subject: Subject) -> str:
    """Whole years; empty above 89, below 1, and for an age group that the model cannot show."""
    if age_years is None or not 1 <= int(age_years) <= OLDEST_YEARS or age_group(age_years) != subject.age_group:
        return ""
    return str(int(age_years))


def _race_group(race: str) -> str:
    """One of four groups; empty where the race names none of them, or more than one."""
    words = set(re.findall(r"[a-z]+", _DENIED.sub(" ", race.casefold())))
    groups = [group for group, names in _RACE_GROUPS.items() if not words.isdisjoint(names)]
    return groups[0] if len(groups) == 1 else ""


def _is_of_ages(name: str) -> bool:
    """Whether a column's name says that it holds ages: `anchor_age`, `ageYears`, `PATIENTAGE`, but not `image`."""
    return "age" in re.sub(_NOT_AGES, "", name.casefold())


def _of_column(name: str, value: str, clean: Callable[[str], Sanitized], removed: Counter[str]) -> str:
    if value.casefold() in UNKNOWN or (name == "race" and value.casefold() in _UNKNOWN_RACES):
        return ""
    # A bare number is no age to the rules of `sanitize`; the name of its column says that it is one.
    if _is_of_ages(name) and any(int(number) > OLDEST_YEARS for number in re.findall(r"\d{1,9}", value)):
        removed["age"] += 1
        return ""
    cleaned = clean(value)
    removed.update(cleaned.removed)
    return cleaned.text
