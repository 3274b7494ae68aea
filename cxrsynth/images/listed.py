"""Labels that one cell lists: words of findings, however these are joined, or findings with marks."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cxrsynth.images.layouts.labels import AROUND_WORDS, cell_text, object_in, words_in
from cxrsynth.images.layouts.paths import plain
from cxrsynth.images.layouts.vocabulary import observations_of
from cxrsynth.reports.table.rows import MISSING_LABELS, status_of

LISTED: Final = (
    *("labels", "label", "findinglabels", "labelnames", "labelname", "labeltext", "textlabel"),
    *("class", "classes", "classname", "classnames", "category", "categories", "diagnosis", "diagnoses"),
    *("pathology", "pathologies", "finding", "disease", "diseases", "diseaselabel", "diseaselabels"),
    *("abnormality", "abnormalities"),
)
# Columns of these names hold much else. They are read where words of findings stand in them.
MAY_BE_LISTED: Final = (*("tags", "tag", "target", "targets", "annotation", "annotations", "groundtruth", "gt", "y"),)
_ALSO_BETWEEN = re.compile(r"[/+&\n\t]|\band\b", re.IGNORECASE)
# After such a word a text is a sentence: what it names then need not be there.
_QUALIFIED = re.compile(
    r"\b(?:no|not|non|none|without|negative|absen(?:t|ce)|den(?:y|ies)|free|clear|possibl[ey]|probabl[ey]|questionable"
    r"|suspected|rule[ds]?|exclude[ds]?|history|prior|previous|vs|versus|or)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class LabelCell:
    """What a cell lists.

    `words` stand for observations, or for none as Emphysema does; `marks` are findings by name with 1 or 0; `rest` is
    what else stands there.
    """

    words: tuple[str, ...] = field(default=(), repr=False)
    marks: Mapping[str, Any] = field(default_factory=dict, repr=False)
    rest: tuple[str, ...] = field(default=(), repr=False)

    @property
    def is_read(self) -> bool:
        """Whether anything of it is understood."""
        return bool(self.words or self.marks)


def may_list(name: str) -> bool:
    """Whether a column of this name may list labels."""
    return plain(name) in (*LISTED, *MAY_BE_LISTED)


def label_cells(record: Mapping[str, Any], *, taken: Iterable[str] = ()) -> dict[str, LabelCell]:
    """Column -> what its cell lists, of the columns that may list labels; without empty cells, and without `taken`."""
    left = {name: value for name, value in record.items() if may_list(name) and name not in set(taken)}
    cells = {name: label_cell(value) for name, value in left.items()}
    return {name: cell for name, cell in cells.items() if cell.is_read or cell.rest}


def label_cell(value: Any) -> LabelCell:
    """What a cell lists: a text as `Effusion|Mass`, `Edema/Consolidation`, a list, or an object, also as text."""
    value = _parsed(value)
    if isinstance(value, Mapping):
        given = {name: one for name, one in value.items() if cell_text(one).lower() not in MISSING_LABELS}
        marks = {
            name: one
            for name, one in given.items()
            if observations_of(name) is not None and status_of(cell_text(one).lower()) is not None
        }
        return LabelCell(marks=marks, rest=tuple(name for name in given if name not in marks))
    known: list[str] = []
    rest: list[str] = []
    for item in value if isinstance(value, list) else [value]:
        for word in _words(cell_text(item)):
            if observations_of(word) is not None:
                known.append(word)
                continue
            rest.append(word)
            if _QUALIFIED.search(word):
                break
    return LabelCell(tuple(known), rest=tuple(rest))


def _parsed(value: Any) -> Any:
    """An object with its names, also one that is written as text; else the value."""
    if isinstance(value, str):
        found = object_in(value)
        return value if found is None else found
    return {str(name): one for name, one in value.items()} if isinstance(value, Mapping) else value


def _words(text: str) -> Iterator[str]:
    """Words of a list. One that is no finding is taken apart further where that gives a finding."""
    for word in words_in(text):
        parts = [part for one in _ALSO_BETWEEN.split(word) if (part := one.strip(AROUND_WORDS))]
        apart = observations_of(word) is None and any(observations_of(part) is not None for part in parts)
        yield from parts if apart else [word]
