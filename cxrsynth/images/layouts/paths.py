"""What the paths and tables of public data sets say in ways of their own: patients, views, and folders of a class."""

import re
from collections.abc import Mapping
from typing import Any

from cxrsynth.reports.labels import NO_FINDING
from cxrsynth.reports.table.columns import observation_of

PICTURE = r"\.(?:png|jpe?g|webp|tiff?|dcm|dicom)$"
# Columns that may hold the path of an image in its data set.
PATH_COLUMNS = (
    *("path", "filepath", "imagepath", "filename", "file", "imagefilename", "imageindex", "dicompath", "jpgpath"),
    *("sourcepath", "sourcefile", "sourcefilename", "sourceimage", "originalpath", "originalfile", "originalfilename"),
)
# Each data set's way to name a patient in an image's path, also where folders became parts of a name, or a name has
# the set's before it. What is taken of it is written as in the data set's tables, whose `subject_id` and `Patient ID`
# are numbers: one folder may be read with a table and another without.
_PATIENTS = (
    re.compile(r"(?:^|[/_-])(patient\d{4,6})[/_-]study\d+[/_-]", re.IGNORECASE),  # CheXpert
    re.compile(r"(?:^|[/_-])p(\d{8})[/_-]s\d{8}[/_-]"),  # MIMIC-CXR
    # NIH ChestX-ray14, whose patients have numbers below 31,000: a date has eight digits, too.
    re.compile(r"(?:^|[/_-])(?=000[0-3]\d{4}_)0*(\d+)_\d{3}" + PICTURE, re.IGNORECASE),
    re.compile(r"(?:^|[/_-])(person\d+)_(?:bacteria|virus)_\d+" + PICTURE, re.IGNORECASE),  # Kermany
    re.compile(r"(?:^|[/_])(?:normal|bacteria|virus)-(\d{6,8})-\d{4}" + PICTURE, re.IGNORECASE),  # its third release
)
_FRONTAL_OR_LATERAL = ("frontal/lateral", "frontallateral")
_AP_OR_PA = ("ap/pa", "appa")
VIEW_COLUMNS = (*_FRONTAL_OR_LATERAL, *_AP_OR_PA)
_NORMAL = frozenset({"normal", "nofinding", "nofindings", "healthy"})
HOLDS_IMAGES = frozenset({"images", "image", "img", "imgs", "png", "jpg"})


def plain(name: str) -> str:
    """A name without case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def patient_of(path: str) -> str:
    """The patient that the path of an image names, empty where it is of no known layout."""
    return next((found[1].casefold() for pattern in _PATIENTS if (found := pattern.search(path))), "")


def named(word: str) -> str | None:
    """The observation that a word of a label stands for; `normal` is No Finding."""
    return NO_FINDING if plain(word) in _NORMAL else observation_of(word)


def view_of(record: Mapping[str, Any]) -> str:
    """The view that CheXpert's columns `Frontal/Lateral` and `AP/PA` say together, empty where they do not."""
    values = {plain(name): str(value).strip().upper() for name, value in record.items() if plain(name) in VIEW_COLUMNS}
    first, second = (
        next((values[name] for name in names if name in values), "") for names in (_FRONTAL_OR_LATERAL, _AP_OR_PA)
    )
    if first.startswith("LAT"):
        return "LATERAL"
    return second if second in ("AP", "PA") else ""
