"""What is told of an image, as columns of a table or keys of a JSON member -> a Report."""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cxrsynth.reports.labels import OBSERVATIONS, FindingLabel, Side, Status
from cxrsynth.reports.prompt import age_group
from cxrsynth.reports.table.columns import TEXT_ROLES, ColumnNames, find_roles, observation_of
from cxrsynth.reports.table.records import is_text
from cxrsynth.reports.table.rows import Report, UnusableError, to_report

if TYPE_CHECKING:
    from cxrsynth.reports.request import PromptBuilder

_PATIENT = ("patientid", "subjectid", "patient", "subject")
_AGE_GROUP = ("agegroup",)
_LISTED = ("labels", "label", "findinglabels")
# Names of a text where no column has a usual one; `txt` is the member of a WebDataset.
_CAPTION = ("caption", "txt")
# NIH ChestX-ray14's names of observations that CheXpert names otherwise; the rest of them have no counterpart.
_NIH_NAMES = {
    "effusion": "Pleural Effusion",
    "infiltration": "Lung Opacity",
    "mass": "Lung Lesion",
    "nodule": "Lung Lesion",
    "pleuralthickening": "Pleural Other",
}
_AGE_RANGE = re.compile(r"\s*(\d{1,3})\s*-\s*(\d{1,3})\s*", re.ASCII)
_GROUPS: dict[str, Literal["adult", "child"]] = {"adult": "adult", "child": "child"}
_FILLER = "\x01"  # no column is named so


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """What is known of an image. `report` is None where that is nothing."""

    report: Report | None = field(default=None, repr=False)
    age_group: str | None = None
    patient: str = field(default="", repr=False)


def plain(name: str) -> str:
    """A column's name without case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def is_told_by(name: str, roles: Mapping[str, str]) -> bool:
    """Whether a column tells something of an image: by its role, or by its name."""
    usual = plain(name) in (*_PATIENT, *_AGE_GROUP, *_LISTED, *_CAPTION)
    return usual or name in roles.values() or observation_of(name) is not None


class MetadataReader:
    """Makes reports of what is told; threads may share one.

    A value that is not understood is not told: an image is not lost for its age. Labels of columns win over those
    listed
    by name, and both over those read from text. A list of labels denies nothing: what it does not name is unknown.

    Args:
        columns: names of columns that are not the usual ones.
    """

    def __init__(self, columns: ColumnNames | None = None) -> None:
        self._asked = columns or ColumnNames()
        self._lock = threading.Lock()

    def tell(self, record: Mapping[str, Any], *, key: str, line: int) -> ImageMetadata:
        """What a record says of the image `key`; `line` is where it stands.

        `findings` may be text, or the object that samples of `generate` have.
        """
        facts = record.get("findings") if isinstance(record.get("findings"), dict) else None
        record = {name: value for name, value in record.items() if not isinstance(value, dict | list)} | _joined(record)
        roles = self._roles(record)
        report = _understood(line, record, roles)
        if report.report_id == f"row-{line}":
            report = replace(report, report_id=key)
        report = replace(report, stated_age_group=_stated_group(record, roles))
        report = replace(report, labels=_listed(record, roles) | report.labels)
        if facts is not None:
            report = replace(report, labels=_of_facts(facts))
        elif report.full_text:
            report = replace(report, labels=self._read(report))
        known = (report.full_text, report.labels, report.view, report.sex, report.age_years, report.stated_age_group)
        group = report.stated_age_group or age_group(report.age_years)
        patient = _first(record, _PATIENT)
        return ImageMetadata(
            report if any(part is not None and part not in ("", {}) for part in known) else None, group, patient
        )

    def _roles(self, record: Mapping[str, Any]) -> dict[str, str]:
        asked = {entry.name: getattr(self._asked, entry.name) for entry in fields(self._asked)}
        here = ColumnNames(**{role: name for role, name in asked.items() if name in record})
        roles = find_roles(Path(), tuple(record), asked=here)
        if not any(role in roles for role in TEXT_ROLES):
            captions = [name for wanted in _CAPTION for name in record if plain(name) == wanted]
            if captions:
                roles["report"] = captions[0]
        return roles

    def _read(self, report: Report) -> dict[str, FindingLabel]:
        """Labels of the report and its text, as `generate` would take them."""
        with self._lock:  # the reader of findings is not made for threads
            return _of_facts(self._prompt_builder.build(report).facts["findings"])

    @cached_property
    def _prompt_builder(self) -> "PromptBuilder":
        # Late: its reader of findings takes tenths of a second, and not all images come with text.
        from cxrsynth.reports.request import PromptBuilder
        from cxrsynth.settings import PromptStyle

        return PromptBuilder(PromptStyle.CANONICAL, None, lambda _: True)


def _joined(record: Mapping[str, Any]) -> dict[str, str]:
    """Lists of names, as one text each."""
    return {name: "|".join(map(str, value)) for name, value in record.items() if isinstance(value, list)}


def _understood(line: int, record: Mapping[str, Any], roles: Mapping[str, str]) -> Report:
    """The report of a record, without the columns whose value is not understood."""
    wanted = {name: value for name, value in record.items() if name in roles.values() or observation_of(name)}
    text = wanted.pop(roles["report"], "") if "report" in roles else ""
    report = _whole(line, wanted, roles)
    if report is None:
        kept: dict[str, Any] = {}
        for name, value in wanted.items():
            if _whole(line, kept | {name: value}, roles) is not None:
                kept[name] = value
        report = _whole(line, kept, roles)
    assert report is not None  # without any column there is nothing to refuse
    return replace(report, text=_text(text))


def _whole(line: int, record: Mapping[str, Any], roles: Mapping[str, str]) -> Report | None:
    here = {role: name for role, name in roles.items() if role != "report" and name in record}
    # A row of a table of reports needs text or labels, and an image neither: a filler stands for them.
    try:
        return to_report(line, {**record, _FILLER: _FILLER}, roles=here | {"report": _FILLER})
    except UnusableError:
        return None


def _text(value: Any) -> str:
    """A text that can be read, else nothing."""
    return value.strip() if isinstance(value, str) and is_text(value) and "\0" not in value else ""


def _stated_group(record: Mapping[str, Any], roles: Mapping[str, str]) -> Literal["adult", "child"] | None:
    """An age group told as such, or by a range of years that lies in one: `1-5`."""
    if (told := _GROUPS.get(_first(record, _AGE_GROUP).casefold())) is not None:
        return told
    span = _AGE_RANGE.fullmatch(str(record.get(roles.get("age", ""), "")))
    groups = {age_group(float(years)) for years in span.groups()} if span else set()
    return _GROUPS.get(groups.pop() or "") if len(groups) == 1 else None


def _listed(record: Mapping[str, Any], roles: Mapping[str, str]) -> dict[str, FindingLabel]:
    """Observations named in a list of labels, `Effusion|Mass`; words that name none are passed over."""
    taken = set(roles.values())
    text = _first({name: value for name, value in record.items() if name not in taken}, _LISTED)
    words = [word for word in re.split(r"[|;,]", text) if word.strip()]
    named = (observation_of(word.strip()) or _NIH_NAMES.get(plain(word)) for word in words)
    return {name: FindingLabel(Status.PRESENT) for name in named if name is not None}


def _of_facts(facts: Mapping[str, Any]) -> dict[str, FindingLabel]:
    """Labels of the `findings` object of a sample (cxrsynth.reports.request)."""
    labels = {}
    for name in OBSERVATIONS:
        fact = facts.get(name)
        status, side = (fact.get("status"), fact.get("side")) if isinstance(fact, dict) else ("", "")
        if status in tuple(Status):
            labels[name] = FindingLabel(Status(status), Side(side) if side in tuple(Side) else None)
    return labels


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first column called by one of the names that holds anything, as text; empty where there is none."""
    values = (_written(value) for name, value in record.items() if plain(name) in names)
    return next(filter(None, values), "")


def _written(value: Any) -> str:
    """A value as text. A whole number may come as a float: what made the table had a number missing in the column."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _text(value) if isinstance(value, str) else str(value) if isinstance(value, int) else ""
