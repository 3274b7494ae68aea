"""One row of a table, as a `Report` or a `Rejected` line."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from decimal import Decimal
from functools import lru_cache, partial
from itertools import pairwise
from operator import attrgetter
from typing import Any, Literal, TypeVar

from cxrsynth.reports.labels import FindingLabel, Status
from cxrsynth.reports.table.columns import TEXT_ROLES, observation_of
from cxrsynth.reports.table.source import is_text

MAX_ID_CHARS = 256
_Value = TypeVar("_Value")
# Roles without which a row can still be used.
_CAN_BE_LOST = ("view", "sex", "age")
# Cells of view, sex and age that are remembered: a table repeats them.
_CACHED = 4096
MAX_AGE_YEARS = 130
_LAST_STATED = 89  # HIPAA's Safe Harbor groups all ages above

# Texts that stand for a missing one, without signs; so does a text without a letter: "-", "___", "0".
_NO_TEXT = re.compile(
    r"(?:n a|na|nan|nat|n|none|null|nil|unknown|blank|tbd|empty|x{2,}(?: x{2,})*"
    r"|(?:(?:the )?(?:report|text|findings|impression|result)s? (?:is |are )?)?(?:missing|pending"
    r"|not (?:yet )?(?:available|applicable|dictated|transcribed|recorded|provided))"
    r"|no (?:report|text)(?: (?:yet|available|dictated|recorded))*)?"
)
# No longer text of which this many characters begin with words in a row stands for a missing one; most texts do, and
# taking signs out of all of them costs more than the rest of reading a table.
_LONGEST_MISSING = 200
_TEXT_BEGINS = re.compile(r"(?=[^\W\d_]*[^\W\d_xX])(?:[^\W_]+[ .,:;/()-]{1,3}){9}")
# What stands for a value that is not known.
UNKNOWN = frozenset({"", "unknown", "unk", "na", "n/a", "nan", "none", "null", "<na>", "other", "o", "u", "-", "?"})
UNKNOWN |= {"n.a.", ".", "--", "blank", "missing", "unspecified", "not applicable", "not available", "not known"}
UNKNOWN |= {"not recorded", "not reported", "not specified", "not stated", "\\n", "#n/a"}
_SEXES: dict[str, Literal["M", "F"]] = {
    **dict.fromkeys(("m", "male", "man", "boy", "m\u00e4nnlich", "masculin", "masculino", "maschile", "nam"), "M"),
    **dict.fromkeys(("\u7537", "\u7537\u6027", "\ub0a8", "\ub0a8\uc131"), "M"),
    **dict.fromkeys(("f", "female", "woman", "girl", "w", "weiblich", "f\u00e9minin", "femenino", "femminile"), "F"),
    **dict.fromkeys(("feminino", "n\u1eef", "\u5973", "\u5973\u6027", "\uc5ec", "\uc5ec\uc131"), "F"),
}
# Neither of the two that a model can be asked for.
_OTHER_SEXES = frozenset({"x", "d", "divers", "diverse", "nonbinary", "non-binary", "intersex", "indeterminate"})
_STATUSES = {
    **dict.fromkeys(("present", "positive", "true", "yes", "pos", "y", "t"), Status.PRESENT),
    **dict.fromkeys(("absent", "negative", "false", "no", "neg", "n", "f"), Status.ABSENT),
    **dict.fromkeys(("uncertain", "possible", "probable", "likely", "suspected"), Status.UNCERTAIN),
    **dict.fromkeys(("equivocal", "indeterminate", "questionable", "unsure"), Status.UNCERTAIN),
}
_MINUS = re.compile("^[\u2010-\u2015\u2212\ufe63\uff0d](?=\\d)")  # as word processors write the one of -1
_NUMBERS = {1.0: Status.PRESENT, 0.0: Status.ABSENT, -1.0: Status.UNCERTAIN}  # CheXpert's
MISSING_LABELS = UNKNOWN | {"not mentioned", "no mention", "unmentioned", "not assessed", "not documented"}
# What stands for a missing id; "o" and "other" may be ids.
_NO_IDS = frozenset({"", "unknown", "na", "n/a", "nan", "none", "null", "<na>", "-", "?"})
_VIEW_WORDS = {
    **dict.fromkeys(("pa", "posteroanterior"), "PA"),
    **dict.fromkeys(("ap", "anteroposterior", "portable", "mobile", "supine", "sup", "semierect", "bedside"), "AP"),
    **dict.fromkeys(("lateral", "lat", "la", "ll", "rl", "l"), "LATERAL"),
}
# Words that describe the image without naming its view.
_VIEW_EXTRAS = frozenset(
    {"chest", "view", "views", "erect", "upright", "horizontal", "axial", "frontal", "and", "left"}
)
_VIEW_EXTRAS |= {"right", "semi", "projection", "decubitus", "lld", "rld", "xray", "x", "ray", "standing", "sitting"}
_VIEW_EXTRAS |= {
    "xr",
    "cr",
    "dx",
    "cxr",
    "cross",
    "table",
    "xtable",
    "crosstable",
    "radiograph",
    "radiography",
    "film",
    "digital",
    "thorax",
    "port",
    "bed",
    "v",
    "r",
    "single",
    "one",
    "two",
    "image",
}
# How the names of views are written apart.
_APART = re.compile(r"\b(poster|anter)(?:o|ior)[\s-]*(?:to[\s-]+)?(anterior|posterior)\b")
_INITIALS = re.compile(r"\b(p|a)[.-]([ap])\b")  # P.A, A-P
_AGE = re.compile(
    r"(?P<least>>=|\u2265)?(?P<over>>|over\s+)?\s*(?P<number>[0-9]{1,4}(?:\.[0-9]{1,6})?)\s*(?P<plus>\+?)(?:\s*|-(?=[a-z]))(?P<unit>(?:[a-z\u00e0-\u00ff/.]{0,8}?|[\u6b73\u5c81\uc138]|tu\u1ed5i)(?:[\s-]+old|\s+of\s+age)?)",
)
# Of more than one unit, as in 45y 3m or 1 month, 3 days.
_AGE_PART = r"[0-9]{1,4}\s?[a-z\u00e0-\u00ff.]{1,8}"
_AGE_IN_PARTS = re.compile(rf"{_AGE_PART}(?:(?:,\s?|\s?and\s|\s?){_AGE_PART}){{1,2}}(?:\s+old)?")
_AGE_PARTS = re.compile(r"([0-9]+)\s?([a-z\u00e0-\u00ff.]+?)(?=\s?and\s|[\s,0-9]|$)")
_NEWBORN = frozenset({"newborn", "neonate", "nb"})
_YEARS_PER_UNIT = {
    **dict.fromkeys(("", "y", "yr", "yrs", "year", "years", "yo", "y/o"), 1.0),
    **dict.fromkeys(("m", "mo", "mos", "mth", "mths", "mon", "month", "months"), 1 / 12),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 1 / 8766),
    **dict.fromkeys(("j", "\u6b73", "\u5c81", "\uc138", "tu\u1ed5i"), 1.0),  # Jahre, and in Asia
    **dict.fromkeys(("w", "wk", "wks", "week", "weeks"), 7 / 365.25),
    **dict.fromkeys(("d", "dy", "day", "days"), 1 / 365.25),
    # French, German, Spanish, Italian and Portuguese.
    **dict.fromkeys(("an", "ans", "jahr", "jahre", "a\u00f1o", "a\u00f1os", "anno", "anni", "ano", "anos"), 1.0),
    **dict.fromkeys(("mois", "monat", "monate", "mes", "meses", "mese", "mesi"), 1 / 12),
    **dict.fromkeys(("semaine", "semaines", "woche", "wochen", "semana", "semanas"), 7 / 365.25),
    **dict.fromkeys(("jour", "jours", "tag", "tage", "d\u00eda", "d\u00edas", "dia", "dias", "giorni"), 1 / 365.25),
}


@dataclass(frozen=True, slots=True)
class Report:
    """One radiology report. Its repr never contains text; `line` is where the row starts, the header being line 1.

    `text` is the whole report if the table has a report column; `view` is PA, AP or LATERAL; `stated_age_group` is
    adult or child if that is known without an age; `has_id` is False if the table has no id column, and the id is made
    from the line; `patient_id` is empty if the patient is not known; `fields` holds what a prompt template takes from
    columns as it is: field -> text; `given` are the labels of columns, where `labels` has those read from the text too;
    `unread` names the roles and observations whose cells were not understood; `repeat` is the row's number among those
    with its id, in a table with a row for each image.
    """

    report_id: str
    line: int
    findings: str = field(default="", repr=False)
    impression: str = field(default="", repr=False)
    text: str = field(default="", repr=False)
    view: str | None = None
    sex: Literal["M", "F"] | None = None
    age_years: float | None = None
    labels: dict[str, FindingLabel] = field(default_factory=dict)
    stated_age_group: Literal["adult", "child"] | None = None
    has_id: bool = True
    patient_id: str = field(default="", repr=False)
    fields: dict[str, str] = field(default_factory=dict, repr=False)
    given: dict[str, FindingLabel] | None = field(default=None, repr=False, compare=False)
    unread: tuple[str, ...] = ()
    repeat: int = 0

    def __reduce__(self) -> tuple[type["Report"], tuple[Any, ...]]:
        """For pickle, which looks up the names of all fields anew for each object otherwise."""
        return Report, _VALUES(self)

    @property
    def full_text(self) -> str:
        """All text of the row, the whole report first, joined by blank lines; what a part repeats stands once."""
        parts: list[str] = []
        said: set[str] = set()
        for part in filter(None, (self.text, self.findings, self.impression)):
            # Whole sentences: what may be, or is asked for, in one is not what another says with the same words.
            sentences = {words for one in _SENTENCE_END.split(part) if (words := _plain_words(one))}
            if not parts or not sentences <= said:
                parts.append(part)
            said |= sentences
        return "\n\n".join(parts)


_SENTENCE_END = re.compile(r"[.:;!?]+|\n\s*\n")
_VALUES = attrgetter(*(one.name for one in dataclass_fields(Report)))


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used. The reason contains column names and counts, never a value of the row."""

    line: int
    reason: str


class UnusableError(Exception):
    """Why one row is rejected: the reason of a `Rejected`."""


def to_report(
    line: int,
    record: Mapping[str, Any],
    *,
    roles: Mapping[str, str],
    fields: Mapping[str, str] | None = None,
    strict: bool = False,
) -> Report:
    """The report of one row.

    A cell of view, sex, age or a label that is not understood is left out, and named in `unread`.

    Args:
        line: where the row starts, the header being line 1; it becomes the id if there is no id column.
        record: column name -> value as in the file, including columns that are not read.
        roles: role -> column name.
        fields: field of a prompt template -> column name.
        strict: a cell that is not understood costs the row.

    Raises:
        UnusableError: if the row has neither text nor a label, or a value that it cannot do without.
    """
    problems: dict[str, UnusableError] = {}

    def understood(name: str, read: Callable[[str], _Value | None], column: str | None) -> _Value | None:
        if column is None:
            return None
        try:
            return read(_cell(column, record.get(column)))
        except UnusableError as problem:
            if strict:
                raise
            problems.setdefault(name, problem)
            return None

    cells = {role: _cell(column, record.get(column)) for role, column in roles.items() if role not in _CAN_BE_LOST}
    taken = set(roles.values())
    labels = {}
    for column in record:
        # Checked in every row, not in the header: any JSONL row may be the first to name an observation.
        observation = observation_of(column) if column not in taken else None
        if observation is None:
            continue
        label = understood(observation, partial(_label, observation), column)
        if label is not None:
            if observation in labels:
                raise UnusableError(f"{observation}: given twice")
            labels[observation] = label
    text = {role: report_text(cells.get(role, "")) for role in TEXT_ROLES}
    if not labels and not any(text.values()):
        raise next(iter(problems.values()), UnusableError("empty text"))
    return Report(
        report_id=_report_id(cells["report_id"]) if "report_id" in cells else f"row-{line}",
        line=line,
        findings=text["findings"],
        impression=text["impression"],
        text=text["report"],
        view=understood("view", _view, roles.get("view")) or _lateral(cells.get("lateral", "")),
        sex=understood("sex", _sex, roles.get("sex")),
        age_years=understood("age", _age_years, roles.get("age")),
        labels=labels,
        has_id="report_id" in cells,
        patient_id=known_patient(cells.get("patient_id", "")),
        fields={name: _whole(_cell(column, record.get(column)).strip()) for name, column in (fields or {}).items()},
        unread=tuple(problems),
    )


def report_text(cell: str) -> str:
    """Report text; empty for what stands for a missing one."""
    if not cell:
        return ""
    text = cell.strip()
    if len(text) > _LONGEST_MISSING and _TEXT_BEGINS.match(text):
        return text
    words = _plain_words(text)
    is_missing = _NO_TEXT.fullmatch(words) or not any(map(str.isalpha, words))
    return "" if is_missing else text


def _plain_words(text: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", text).casefold().split())


def _cell(column: str, value: Any) -> str:
    """A cell as text: empty for null and NaN."""
    if type(value) is str:  # most are
        return _checked(column, value)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise UnusableError(f"undecodable bytes in column {column!r}") from None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, int) and abs(value) >= 1 << 256:
        # Python does not print integers of thousands of digits.
        raise UnusableError(f"column {column!r}: number too large")
    if not isinstance(value, str | int | float | Decimal):
        raise UnusableError(f"column {column!r}: expected text or a number")
    # A large whole number has its digits, not an exponent: it may be an id.
    is_whole = isinstance(value, float) and value.is_integer()
    return _checked(column, f"{value:.0f}" if is_whole else str(value))


def _checked(column: str, text: str) -> str:
    if "\0" in text:
        raise UnusableError(f"NUL byte in column {column!r}")
    if not is_text(text):
        raise UnusableError(f"undecodable bytes in column {column!r}")
    return text


def _label(observation: str, cell: str) -> FindingLabel | None:
    """The label that a cell states; None if it states none."""
    word = cell.strip().lower()
    if word in MISSING_LABELS:
        return None
    status = status_of(word)
    if status is None:
        raise UnusableError(f"{observation}: value not understood; expected 1, 0, -1 or nothing")
    return FindingLabel(status)


def status_of(word: str) -> Status | None:
    """What a label cell says: a word, or CheXpert's number in any spelling (1.00, 1,0, +1)."""
    if word in _STATUSES:
        return _STATUSES[word]
    try:
        word = _MINUS.sub("-", word).replace(",", ".")
        return _NUMBERS.get(float(word)) if word.isascii() else None
    except ValueError:
        return None


def _report_id(cell: str) -> str:
    report_id = _whole(cell.strip())
    if report_id.casefold() in _NO_IDS:
        raise UnusableError("empty id")
    if len(report_id) > MAX_ID_CHARS:
        raise UnusableError(f"id longer than {MAX_ID_CHARS} characters")
    return report_id


def known_patient(cell: str) -> str:
    """The patient that a cell names, a whole number without fraction; empty for `unknown` and other placeholders."""
    patient_id = cell.strip()
    return "" if patient_id.casefold() in UNKNOWN else _whole(patient_id)


def _whole(text: str) -> str:
    """A number without `.0`: tools that write a column of whole numbers with gaps make them 12.0."""
    return re.sub(r"^(\d+)\.0$", r"\1", text) if ".0" in text else text


@lru_cache(_CACHED)
def _lateral(cell: str) -> str | None:
    """LATERAL, or None, where frontal views are told apart elsewhere."""
    return "LATERAL" if cell.strip().casefold().startswith("lat") else None


@lru_cache(_CACHED)
def _view(cell: str) -> str | None:
    """PA, AP or LATERAL; None if unknown, or if the report covers two views."""
    word = cell.strip().lower()
    if word in UNKNOWN:
        return None
    word = _APART.sub(r"\1o\2", _INITIALS.sub(r"\1\2", word)).replace(".", "")  # P.A., postero-anterior
    words = re.findall(r"[a-z]+", word)
    rest = [word for word in words if word not in _VIEW_EXTRAS and word not in _VIEW_WORDS]
    if rest or not words or not re.fullmatch(r"[a-z\s_/,;:+&()\d-]+", word):
        raise UnusableError("view: value not understood; expected PA, AP or LATERAL")
    # A decubitus view is taken lying on the side, so it is none of the three.
    named = {_VIEW_WORDS[word] for word in words if word in _VIEW_WORDS}
    return named.pop() if len(named) == 1 and not {"decubitus", "lld", "rld"} & set(words) else None


@lru_cache(_CACHED)
def _sex(cell: str) -> Literal["M", "F"] | None:
    word = cell.strip().lower()
    word = word if word in UNKNOWN else word.rstrip(".")
    if word in UNKNOWN or word in _OTHER_SEXES:
        return None
    if word not in _SEXES:
        raise UnusableError("sex: value not understood; expected M or F")
    return _SEXES[word]


@lru_cache(_CACHED)
def _age_years(cell: str) -> float | None:
    """Years: a plain number, DICOM's 067Y, 006M, 010W, 005D, `45y 3m`, or a capped `>89`, `>=90`, `89+`, `90+`."""
    word = " ".join(cell.lower().split())  # without blanks that do not break
    word = re.sub(r"(?<=\d),(?=\d)", ".", word)  # as German and French tables write numbers
    if word in UNKNOWN:
        return None
    if word in _NEWBORN:
        return 0.0
    if _AGE_IN_PARTS.fullmatch(word) and (age_years := _age_in_parts(word)) is not None:
        return age_years
    match = _AGE.fullmatch(word)
    unit = None if match is None else re.sub(r"[\s-]+old$|\s+of\s+age$", "", match["unit"]).replace(".", "")
    if match is None or unit not in _YEARS_PER_UNIT:
        raise UnusableError("age: value not understood; expected years, or a number and Y, M, W or D")
    # Over 89, or 89 and more, is 90 at least: an age that no prompt states.
    number = float(match["number"])
    at_least = bool(match["plus"]) or bool(match["least"])
    above = bool(match["over"]) or (at_least and number == _LAST_STATED)
    age_years = (number + above) * _YEARS_PER_UNIT[unit]
    if age_years > MAX_AGE_YEARS:
        raise UnusableError(f"age: over {MAX_AGE_YEARS} years")
    return age_years


def _age_in_parts(word: str) -> float | None:
    """The sum of an age in several units, from the longest to the shortest; None if it is none."""
    parts = [(int(number), _YEARS_PER_UNIT.get(unit.replace(".", ""))) for number, unit in _AGE_PARTS.findall(word)]
    units = [unit for _, unit in parts if unit is not None]
    if len(units) < len(parts) or any(later >= earlier for earlier, later in pairwise(units)):
        return None
    age_years = sum(number * unit for (number, _), unit in zip(parts, units, strict=True))
    return age_years if age_years <= MAX_AGE_YEARS else None
