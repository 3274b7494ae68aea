"""What a layout is: how paths and tables of one data set are read."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from cxrsynth.console import counted
from cxrsynth.images.layouts.labels import LabelReader, Labels
from cxrsynth.images.layouts.paths import plain
from cxrsynth.images.listed import LISTED

_NAMED: Final = 10
# A column by name, or a value made of several.
Column: TypeAlias = str | Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Table:
    """One table of a layout, or a list of file names (`.txt`), whose lines are in the column without a name.

    Args:
        gives: what it says, in words.
        files: patterns of its name; the first that fits a file counts.
        key: column that says which image, or which group of them, a row describes.
        by: group of the layout's `path` that `key` holds; a key that is a path is taken apart by it, too.
        columns: role -> column, of `view`, `sex`, `age`, `patient_id`, `split`, `report`, `findings`, `impression`.
        labels: how the labels of its rows are read.
        constants: what is known of every image it lists.
        has: columns that make it this table: other data sets have a `train.csv`, too.
        many: whether an image may have several rows.
        unless: pattern of a table that makes this one unnecessary.
        is_needed: whether the layout is another without it.
    """

    gives: str
    files: tuple[str, ...]
    key: Column
    by: str = "image"
    columns: Mapping[str, Column] = field(default_factory=dict)
    labels: LabelReader | None = None
    constants: Mapping[str, str] = field(default_factory=dict)
    has: tuple[str, ...] = ()
    many: bool = False
    unless: str = ""
    is_needed: bool = False


@dataclass(frozen=True)
class Layout:
    """How the images of one data set lie, and what describes them.

    Args:
        name: of the data set.
        path: its images, and the groups `image` (always), `patient`, `study`, `split` and `label` of what a path says.
        tables: beside the images.
        constants: what the data set's paper says of all images.
        labels: how the group `label` is read.
        is_distinctive: whether no other data set has such paths, so that it is known without its tables.
        report: path of an image -> path of its report.
        beside: extensions of files beside an image, with its name, that are read as its JSON and its text.
    """

    name: str
    path: re.Pattern[str]
    tables: tuple[Table, ...] = ()
    constants: Mapping[str, str] = field(default_factory=dict)
    labels: Callable[[str], Labels] | None = None
    is_distinctive: bool = False
    report: Callable[[re.Match[str]], str] | None = None
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recognized:
    """A layout that was found, and what is read of it.

    `tables` are read, each with what it gives; `missing` says what tables that are not there would give. `without`
    counts the images of each word of the data set that stands for no observation; of words that it is not known to
    have, `unknown_kinds` and `unknown_images` count the kinds and the images. `splits` counts the images of each split
    before `split` was chosen. `read` and `left` are columns of tables of images beside these that are read or not.
    """

    name: str
    tables: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    without: Mapping[str, int] = field(default_factory=dict)
    unknown_kinds: int = 0
    unknown_images: int = 0
    splits: Mapping[str, int] = field(default_factory=dict)
    split: str | None = None
    read: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def caveats(self) -> list[str]:
        """What is not read, for the user. Words of labels that are not the data set's own are never quoted."""
        found = [f"{self.name} without its table of {one}" for one in self.missing]
        if self.without:
            names = [f"{word} ({count})" for word, count in list(self.without.items())[:_NAMED]]
            more = f" and {len(self.without) - _NAMED} more" if len(self.without) > _NAMED else ""
            found.append(f"labels that are none of the 14 observations are left out: {', '.join(names)}{more}")
        if self.unknown_kinds:
            kinds, images = counted(self.unknown_kinds, "kind"), counted(self.unknown_images, "image")
            found.append(f"labels not understood: {kinds} in {images}")
        found += [
            f"the column {name} names no observation, and is not read: write names in it, or, where 1 and 0 mark one"
            " observation, give the column that name"
            for name in self.left
            if plain(name) in LISTED
        ]
        return found

    def as_json(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "name": self.name,
            "tables": dict(self.tables),
            "missing": list(self.missing),
            "splits": dict(self.splits),
            "split": self.split,
            "columns": list(self.read),
            "columns_not_read": list(self.left),
            "labels_without_observation": dict(self.without),
            "labels_not_understood": {"kinds": self.unknown_kinds, "images": self.unknown_images},
        }
