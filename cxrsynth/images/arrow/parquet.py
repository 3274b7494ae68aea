"""Parquet files whose rows are images, as Hugging Face has data sets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cxrsynth.address import Location
from cxrsynth.errors import ShardError
from cxrsynth.images.arrow.rows import (
    ImageColumns,
    Place,
    columns_of,
    find_columns,
    raw_images,
    splits_of,
    start_of,
    survey_labels,
)
from cxrsynth.images.decode import RawImage
from cxrsynth.images.image import Damaged
from cxrsynth.images.layouts.find import Survey, of_split
from cxrsynth.images.layouts.layout import Recognized
from cxrsynth.images.layouts.splits import split_of_path
from cxrsynth.images.limits import UnreadableError, open_plain
from cxrsynth.images.table import ImageRows
from cxrsynth.images.unit import UNIT_FILES, Unit, stat_digest

SUFFIX: Final = ".parquet"
_ROWS: Final = 4  # decoded at once
_BUFFER_BYTES: Final = 1 << 20
# Images hardly shrink: what grows more than this was made to fill the memory.
_LARGEST_GROWTH: Final = 200
_GROWTH_FROM_BYTES: Final = 64 << 20
_BROKEN: Final = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True)
class _File:
    """One file: its columns, and rows of each of its row groups. Broken ones have no columns."""

    name: str
    columns: ImageColumns | None
    groups: tuple[int, ...]
    by_datasets: bool = False


class ParquetImages:
    """Rows of Parquet files. A unit is one row group, or several small ones of at most 256 rows together."""

    def __init__(self, root: Location, files: Sequence[_File], rows: ImageRows | None, split: str | None) -> None:
        self._root, self._rows = root, rows
        splits = {file.name: split_of_path(file.name) for file in files}
        names = sorted(splits)
        names = names if split is None else of_split(names, {n: s for n, s in splits.items() if s}, split, root=root)
        self._files = {file.name: file for file in files if file.name in names}
        self._groups = {name: (file, groups) for file in self._files.values() for name, groups in _units(file)}
        self.units = tuple(Unit(name) for name in sorted(self._groups))
        survey = Survey()
        for file in self._files.values():
            self._survey(file, survey)
        known = [file.columns for file in self._files.values() if file.columns is not None and rows is None]
        columns = columns_of(known, survey)
        self.recognized = Recognized(
            "Hugging Face Parquet" if any(file.by_datasets for file in files) else "Parquet of images",
            without=dict(survey.without.most_common()),
            unknown_kinds=len(survey.unknown),
            unknown_images=survey.unknown_images,
            splits=splits_of((splits[file.name], sum(file.groups)) for file in files),
            split=split,
            read=columns["read"],
            left=columns["left"],
        )

    def raw_images(self, unit: Unit) -> Iterator[RawImage | Damaged]:
        """Images of one unit."""
        file, groups = self._groups[unit.name]
        if file.columns is None:
            yield Damaged(file.name, "", "broken, or not a complete Parquet file")
            return
        columns = file.columns
        read = [f"{columns.image}.bytes", f"{columns.image}.path"] if columns.in_struct else [columns.image]
        place = Place(unit.name, file.name, sum(file.groups[: groups[0]]))
        try:
            with open_plain(self._root / file.name) as opened:
                parquet = _parquet(opened)
                _refuse_growth(parquet, groups, columns.image)
                batches = parquet.iter_batches(
                    batch_size=_ROWS, row_groups=list(groups), columns=[*read, *columns.others], use_threads=False
                )
                yield from raw_images(batches, columns, place, self._rows)
        except UnreadableError as error:
            yield Damaged(unit.name, "", str(error))
        except _BROKEN:
            yield Damaged(unit.name, "", "broken, or truncated; the rest is not read")

    def digest_of(self, unit: Unit) -> str:
        """Digest of the file's name, size and time."""
        return stat_digest(self._root, [self._groups[unit.name][0].name])

    def _survey(self, file: _File, survey: Survey) -> None:
        if file.columns is None or not file.columns.labels or self._rows is not None:
            return
        try:
            with open_plain(self._root / file.name) as opened:
                parquet = _parquet(opened)
                for name in file.columns.labels:
                    _refuse_growth(parquet, range(parquet.num_row_groups), name)
                batches = parquet.iter_batches(columns=list(file.columns.labels), use_threads=False)
                survey_labels(batches, file.columns, survey)
        except (*_BROKEN, UnreadableError):
            return  # it is reported where the images are read


def open_parquet(
    root: Location, names: Sequence[str], rows: ImageRows | None, split: str | None
) -> ParquetImages | None:
    """The images in some Parquet files; None where none of them holds images: they are tables then.

    Raises:
        ShardError: if a file has several columns of images, or there are no images of the split.
    """
    files = [found for name in names if (found := _open(root, name)) is not None]
    return ParquetImages(root, files, rows, split) if any(file.columns for file in files) else None


def _open(root: Location, name: str) -> _File | None:
    """A file of images, or one that is broken; None for a table without images."""
    try:
        with open_plain(root / name) as opened:
            parquet = _parquet(opened)
            groups = tuple(parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups))
            columns = find_columns(parquet.schema_arrow, lambda binary: _starts(parquet, binary))
            return (
                _File(name, columns, groups, b"huggingface" in (parquet.schema_arrow.metadata or {}))
                if columns
                else None
            )
    except ShardError as error:
        raise ShardError(f"{root / name}: {error}") from None
    except (*_BROKEN, UnreadableError):
        return _File(name, None, ())


def _parquet(opened: Any) -> Any:
    # Columns are read a buffer at a time, not a whole row group.
    return pq.ParquetFile(opened, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def _starts(parquet: Any, names: list[str]) -> Mapping[str, bytes]:
    """How the first value of some columns begins."""
    first = next(parquet.iter_batches(batch_size=1, columns=names, use_threads=False), None)
    if first is None or not first.num_rows:
        return {}
    values = {name: first.column(name)[0] for name in names}
    return {name: start_of(value) for name, value in values.items() if value.is_valid}


def _units(file: _File) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and row groups of each unit."""
    if file.columns is None:
        yield file.name, ()
        return
    together: list[int] = []
    for index, count in enumerate(file.groups):
        if together and sum(file.groups[one] for one in together) + count > UNIT_FILES:
            yield f"{file.name}#{together[0]:06d}", tuple(together)
            together = []
        together.append(index)
    if together:
        yield f"{file.name}#{together[0]:06d}", tuple(together)


def _refuse_growth(parquet: Any, groups: Sequence[int], column: str) -> None:
    """Raise UnreadableError for a column that would fill the memory, by what the file says of its sizes."""
    for index in groups:
        group = parquet.metadata.row_group(index)
        for place in range(group.num_columns):
            one = group.column(place)
            if one.path_in_schema.split(".")[0] != column:
                continue
            large = one.total_uncompressed_size > _GROWTH_FROM_BYTES
            if large and one.total_uncompressed_size > _LARGEST_GROWTH * one.total_compressed_size:
                raise UnreadableError(f"images that grow to {one.total_uncompressed_size} bytes, more than images do")
