"""Image metadata, from the columns of a table or the keys of a JSON member, as a Report."""

import math
import re
import threading
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cxrsynth.images.layouts.paths import PATH_COLUMNS, VIEW_COLUMNS, patient_of, plain, view_of
from cxrsynth.images.layouts.vocabulary import BROADER, NIH, class_of, observations_of
from cxrsynth.images.listed import label_cells, may_list
from cxrsynth.reports.labels import OBSERVATIONS, FindingLabel, Side, Status
from cxrsynth.reports.prompt import age_group
from cxrsynth.reports.table.columns import (
    TEXT_ROLES,
    USUAL_NAMES,
    ColumnNames,
    find_roles,
    is_of_ids,
    observation_of,
)
from cxrsynth.reports.table.rows import Report, UnusableError, known_patient, report_text, status_of, to_report
from cxrsynth.reports.table.source import is_text
from cxrsynth.reports.template import PromptTemplate

if TYPE_CHECKING:
    from cxrsynth.reports.request import PromptBuilder, Reader

_PATIENT = USUAL_NAMES["patient_id"]
_AGE_GROUP = ("agegroup",)
_KEYWORDS = {"ViewPosition": "view", "PatientSex": "sex", "PatientAge": "age", "PatientID": "patient_id"}
_OF_SUBJECTS = ("view", "sex", "age")
# Text columns, used if none has a usual name; `txt` is a WebDataset member.
_CAPTION = ("caption", "txt")
_AGE_RANGE = re.compile(r"\s*(\d{1,3})\s*-\s*(\d{1,3})\s*", re.ASCII)
_GROUPS: dict[str, Literal["adult", "child"]] = {"adult": "adult", "child": "child"}
_OWN_VIEW = "\x02"
_FILLER = "\x01"  # no column has this name


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """What is known of an image. `report` is None if nothing is; `report_id` is empty where no column has it."""

    report: Report | None = field(default=None, repr=False)
    age_group: str | None = None
    patient: str = field(default="", repr=False)
    report_id: str = field(default="", repr=False)


def is_metadata(name: str, roles: Mapping[str, str]) -> bool:
    """Whether a column describes the image, by its role or its name."""
    usual = plain(name) in (*_PATIENT, *_AGE_GROUP, *_CAPTION, *VIEW_COLUMNS, *PATH_COLUMNS) or may_list(name)
    return usual or name in roles.values() or observation_of(name) is not None or bool(observations_of(name))


class MetadataReader:
    """Turns records into reports; threads may share one reader.

    A value that is not understood counts as missing: an unreadable age does not cost the image. Label columns take
    precedence over lists of label names, and both over labels read from text. A finding that a list does not name is
    unknown, not absent.

    Args:
        columns: names of columns that differ from the usual ones.
        template: of prompts; the columns among its fields are kept as they are, without those of ids and ages.
        labeler: reads labels from text; None for the rules.
    """

    def __init__(
        self,
        columns: ColumnNames | None = None,
        template: PromptTemplate | None = None,
        labeler: "Reader | None" = None,
    ) -> None:
        self._asked = columns or ColumnNames()
        self._labeler = labeler
        self._template = template
        self._lock = threading.Lock()

    def read(self, record: Mapping[str, Any], *, key: str, line: int, path: str = "") -> ImageMetadata:
        """Metadata of the image `key` from a record that starts on `line`.

        `findings` may be text, or the object that `generate` writes. The image's path counts where the record says
        nothing: it may name the patient, or lie in a folder of a class.
        """
        findings = record.get("findings") if _is_of_generate(record.get("findings")) else None
        listed, marks = _listed(record, taken=set(self._roles(record).values()))
        record = {name: value for name, value in record.items() if not isinstance(value, dict | list)} | _joined(record)
        record = {**marks, **record}
        roles = self._roles(record)
        # A column of frontal views alone says less than it does together with the one of lateral views.
        is_split = "view" not in roles or (self._asked.view is None and plain(roles["view"]) in VIEW_COLUMNS)
        if is_split and (view := view_of(record)):
            record, roles = {**record, _OWN_VIEW: view}, {**roles, "view": _OWN_VIEW}
        fields = self._fields(record, roles)
        roles.pop("race", None)
        report = replace(_understood(line, record, roles), fields=fields)
        report_id = report.report_id if report.has_id else ""
        if not report.has_id:
            report = replace(report, report_id=key, has_id=True)
        report = replace(report, stated_age_group=_stated_group(record, roles))
        report = replace(report, labels=listed | _marked(record, roles) | report.labels)
        if findings is not None:
            report = replace(report, labels=_labels(findings))
        elif report.full_text:
            report = replace(report, labels=self._read_text(report), given=report.labels)
        if not report.labels and not report.full_text and (folder := class_of(path)) is not None:
            report = replace(report, labels=dict.fromkeys(folder, FindingLabel(Status.PRESENT)))
        known = (report.full_text, report.labels, report.view, report.sex, report.age_years, report.stated_age_group)
        group = report.stated_age_group or age_group(report.age_years)
        patient = _patient(record) if self._asked.patient_id is None else report.patient_id
        patient = patient or patient_of(path) or _patient_of_paths(record)
        return ImageMetadata(
            report if any(part is not None and part not in ("", {}) for part in known) else None,
            group,
            patient,
            report_id,
        )

    def with_header(self, record: Mapping[str, Any], header: Mapping[str, str]) -> dict[str, Any]:
        """The record of a DICOM object, and of its header (`DicomImage.header`) what the record does not say."""
        columns = {name: value for name, value in record.items() if not isinstance(value, dict | list)}
        roles = {role: name for role, name in self._roles(columns).items() if role in _KEYWORDS.values()}
        found = _understood(1, {name: columns[name] for name in roles.values()}, roles)
        said = {
            "view": found.view or view_of(columns),
            "sex": found.sex,
            "age": found.age_years if found.age_years is not None else _stated_group(columns, roles),
            "patient_id": _patient(columns) if self._asked.patient_id is None else found.patient_id,
        }
        left = {
            keyword: value
            for keyword, value in header.items()
            if keyword not in record and said[_KEYWORDS[keyword]] in (None, "")
        }
        # Columns of these meanings that say nothing would go before those of the header.
        dropped = {name for role, name in roles.items() if said[role] in (None, "")}
        return {name: value for name, value in record.items() if name not in dropped} | left

    def _roles(self, record: Mapping[str, Any]) -> dict[str, str]:
        asked = {entry.name: getattr(self._asked, entry.name) for entry in fields(self._asked)}
        here = ColumnNames(**{role: name for role, name in asked.items() if name in record})
        roles = find_roles(Path(), tuple(record), asked=here)
        if not any(role in roles for role in TEXT_ROLES):
            captions = [name for wanted in _CAPTION for name in record if plain(name) == wanted]
            if captions:
                roles["report"] = captions[0]
        return roles

    def _fields(self, record: Mapping[str, Any], roles: Mapping[str, str]) -> dict[str, str]:
        """Field of the template -> text of its column, for race and named columns."""
        if self._template is None:
            return {}
        columns = {
            name: name for name in self._template.columns if name != roles.get("age") and not is_of_ids(name, roles)
        }
        if self._template.needs_race and "race" in roles:
            columns["race"] = roles["race"]
        return {name: _number(record.get(column)) or _written(record.get(column)) for name, column in columns.items()}

    def _read_text(self, report: Report) -> dict[str, FindingLabel]:
        """Labels of the report and its text, as `generate` reads them."""
        with self._lock:  # the findings reader is not thread-safe
            return _labels(self._prompt_builder.build(report).metadata["findings"])

    @cached_property
    def _prompt_builder(self) -> "PromptBuilder":
        # Loaded late: the findings reader takes tenths of a second, and not all images come with text.
        from cxrsynth.reports.request import PromptBuilder
        from cxrsynth.settings import PromptStyle

        return PromptBuilder(PromptStyle.CANONICAL, None, lambda _: True, reader=self._labeler)


def _joined(record: Mapping[str, Any]) -> dict[str, str]:
    """Lists of names, each joined into one text."""
    return {name: "|".join(map(str, value)) for name, value in record.items() if isinstance(value, list)}


def _understood(line: int, record: Mapping[str, Any], roles: Mapping[str, str]) -> Report:
    """The report of a record, without the columns whose values are not understood."""
    wanted = {name: value for name, value in record.items() if name in roles.values() or observation_of(name)}
    text = wanted.pop(roles["report"], "") if "report" in roles else ""
    report = _whole(line, wanted, roles)
    if report is None:
        kept: dict[str, Any] = {}
        for name, value in wanted.items():
            if _whole(line, kept | {name: value}, roles) is not None:
                kept[name] = value
        report = _whole(line, kept, roles)
    assert report is not None  # a record without columns is always accepted
    return replace(report, text=report_text(_text(text)))


def _whole(line: int, record: Mapping[str, Any], roles: Mapping[str, str]) -> Report | None:
    here = {role: name for role, name in roles.items() if role != "report" and name in record}
    # A row of a report table needs text or labels; an image needs neither, so a filler takes their place.
    try:
        return to_report(line, {**record, _FILLER: "filler"}, roles=here | {"report": _FILLER})
    except UnusableError:
        return None


def _text(value: Any) -> str:
    """A readable text, else empty."""
    return value.strip() if isinstance(value, str) and is_text(value) and "\0" not in value else ""


def _stated_group(record: Mapping[str, Any], roles: Mapping[str, str]) -> Literal["adult", "child"] | None:
    """An age group given as such, or as a range of years within one: `1-5`."""
    if (stated := _GROUPS.get(_first(record, _AGE_GROUP).casefold())) is not None:
        return stated
    span = _AGE_RANGE.fullmatch(str(record.get(roles.get("age", ""), "")))
    groups = {age_group(float(years)) for years in span.groups()} if span else set()
    return _GROUPS.get(groups.pop() or "") if len(groups) == 1 else None


def _is_of_generate(findings: Any) -> bool:
    """Whether this is the object that `generate` writes, with a status and a side for each finding."""
    return isinstance(findings, dict) and all(isinstance(one, dict) for one in findings.values())


def _listed(record: Mapping[str, Any], *, taken: Set[str]) -> tuple[dict[str, FindingLabel], Mapping[str, Any]]:
    """Observations that the first cell which names any lists, and the marks in it, as columns of their own."""
    if isinstance(record.get("findings"), dict):
        # Marks there are labels, too; its usual place is a section of the report.
        record = {"labels": record["findings"], **record} if "labels" not in record else record
    cells = (cell for cell in label_cells(record, taken=taken).values() if cell.is_read)
    if (first := next(cells, None)) is None:
        return {}, {}
    found = (name for word in first.words for name in observations_of(word) or ())
    return dict.fromkeys(found, FindingLabel(Status.PRESENT)), first.marks


def _marked(record: Mapping[str, Any], roles: Mapping[str, str]) -> dict[str, FindingLabel]:
    """Labels of columns named after words of findings, `Effusion` or `Viral Pneumonia`, with 1 or 0.

    An observation is absent only where the record denies all of NIH's words for it: no nodule is not yet no mass.
    """
    marks: dict[str, dict[str, Status]] = {}
    for column, value in record.items():
        status = status_of(_written(value).lower())
        if status is None or column in roles.values() or observation_of(column) is not None:
            continue
        if plain(column) not in NIH and status is Status.ABSENT:
            continue  # of one kind alone
        for name in observations_of(column) or ():
            marks.setdefault(name, {})[plain(column)] = status
    found = {}
    for name, statuses in marks.items():
        # The words for these are of some kinds only.
        is_denied = name not in BROADER | {"Lung Opacity"} and statuses.keys() == _words_of(name)
        for status in (Status.PRESENT, Status.UNCERTAIN, *([Status.ABSENT] if is_denied else [])):
            if status in statuses.values():
                found[name] = FindingLabel(status)
                break
    return found


def _words_of(observation: str) -> set[str]:
    """NIH's words for an observation, as `plain` writes them."""
    return {word for word, names in NIH.items() if observation in names}


def _labels(findings: Mapping[str, Any]) -> dict[str, FindingLabel]:
    """Labels of the `findings` object of a sample (cxrsynth.reports.request)."""
    labels = {}
    for name in OBSERVATIONS:
        finding = findings.get(name)
        status, side = (finding.get("status"), finding.get("side")) if isinstance(finding, dict) else ("", "")
        if status in tuple(Status):
            labels[name] = FindingLabel(Status(status), Side(side) if side in tuple(Side) else None)
    return labels


def unclear_roles(record: Mapping[str, Any], roles: Mapping[str, str]) -> list[str]:
    """Columns of the view, sex and age whose cells are not understood, so that they stay unknown."""
    cells = tuple(_written(record.get(roles.get(role, ""))) for role in _OF_SUBJECTS)
    unclear = dict(zip(_OF_SUBJECTS, _are_unclear(*cells), strict=True))
    # Two columns together say which of the frontal views it is.
    unclear["view"] &= plain(roles.get("view", "")) not in VIEW_COLUMNS
    return [roles[role] for role, is_unclear in unclear.items() if is_unclear]


@lru_cache(maxsize=4096)
def _are_unclear(view: str, sex: str, age: str) -> tuple[bool, bool, bool]:
    columns = {role: role for role in _OF_SUBJECTS}
    found = to_report(1, {"view": view, "sex": sex, "age": age, _FILLER: "filler"}, roles=columns | {"report": _FILLER})
    frontal = found.view is None and re.search("frontal", view, re.IGNORECASE) is not None
    is_range = _AGE_RANGE.fullmatch(age) is not None
    return frontal or "view" in found.unread, "sex" in found.unread, "age" in found.unread and not is_range


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first non-empty column with one of the names, as text; empty if there is none."""
    values = (_written(value) for name, value in record.items() if plain(name) in names)
    return next(filter(None, values), "")


def _patient(record: Mapping[str, Any]) -> str:
    """The first patient that a column names, in the order of their usual names; empty if none does."""
    cells = (_written(value) for name in _PATIENT for column, value in record.items() if plain(column) == name)
    return next(filter(None, map(known_patient, cells)), "")


def _patient_of_paths(record: Mapping[str, Any]) -> str:
    """The patient that a column of paths names, as that of the image a file was copied from; empty if none does."""
    paths = (_written(value).replace("\\", "/") for column, value in record.items() if plain(column) in PATH_COLUMNS)
    return next(filter(None, map(patient_of, paths)), "")


def _number(value: Any) -> str:
    """A fraction as text, empty for anything else."""
    return str(value) if isinstance(value, float) and math.isfinite(value) and not value.is_integer() else ""


def _written(value: Any) -> str:
    """A value as text. Whole numbers may come as floats: many tools write a column with gaps that way."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _text(value) if isinstance(value, str) else str(value) if isinstance(value, int) else ""
