"""Folders that Hugging Face `datasets` saved (`save_to_disk`): Arrow streams, mapped into memory."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from cxrsynth.address import Address, Location
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
from cxrsynth.images.limits import bad_name
from cxrsynth.images.table import ImageRows
from cxrsynth.images.unit import UNIT_FILES, Unit, stat_digest
from cxrsynth.runtime.files import read_json

_STATE: Final = "state.json"
_INFO: Final = "dataset_info.json"
_BROKEN: Final = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True)
class _Stream:
    """One Arrow file: its columns, and the rows of each of its batches. Broken ones have no columns."""

    name: str
    columns: ImageColumns | None
    batches: tuple[int, ...] = ()
    fault: str = ""


class SavedImages:
    """Rows of saved folders. A unit is one batch of a file, or several small ones of at most 256 rows together."""

    def __init__(self, root: Path, streams: Sequence[_Stream], rows: ImageRows | None, split: str | None) -> None:
        self._root, self._rows = root, rows
        splits = {one.name: split_of_path(one.name.rpartition("/")[0]) for one in streams}
        names = sorted(splits)
        names = names if split is None else of_split(names, {n: s for n, s in splits.items() if s}, split, root=root)
        self._units = {name: found for one in streams if one.name in names for name, found in _units(one)}
        self.units = tuple(Unit(name) for name in sorted(self._units))
        survey = Survey()
        for stream in streams:
            if stream.name in names and stream.columns is not None and rows is None:
                with _batches(root / stream.name) as reader:
                    labels = (_checked(reader.read_next_batch(), stream.columns.labels) for _ in stream.batches)
                    survey_labels(labels, stream.columns, survey)
        known = [one.columns for one in streams if one.name in names and one.columns is not None and rows is None]
        columns = columns_of(known, survey)
        self.recognized = Recognized(
            "Hugging Face saved folder",
            without=dict(survey.without.most_common()),
            unknown_kinds=len(survey.unknown),
            unknown_images=survey.unknown_images,
            splits=splits_of((splits[one.name], sum(one.batches)) for one in streams),
            split=split,
            read=columns["read"],
            left=columns["left"],
        )

    def raw_images(self, unit: Unit) -> Iterator[RawImage | Damaged]:
        """Images of one unit."""
        stream, first, count = self._units[unit.name]
        if stream.columns is not None:
            columns = stream.columns
            place = Place(unit.name, stream.name, sum(stream.batches[:first]))
            try:
                with _batches(self._root / stream.name) as reader:
                    for _ in range(first):
                        reader.read_next_batch()  # mapped, not read
                    used = (columns.image, *columns.others)
                    batches = (_checked(reader.read_next_batch(), used) for _ in range(count))
                    yield from raw_images(batches, columns, place, self._rows)
            except (*_BROKEN, StopIteration, RuntimeError):
                yield Damaged(unit.name, "", "broken, or changed meanwhile; the rest is not read")
        # What follows the last whole batch of a broken file is reported with it.
        if stream.fault and first + count == len(stream.batches):
            yield Damaged(stream.name, "", stream.fault)

    def digest_of(self, unit: Unit) -> str:
        """Digest of the file's name, size and time."""
        return stat_digest(self._root, [self._units[unit.name][0].name])


def open_saved(root: Location, names: Sequence[str], rows: ImageRows | None, split: str | None) -> SavedImages | None:
    """The images of saved folders at or below `root`; None where there is no such folder.

    Raises:
        ShardError: if one is in an object store, is not whole, holds no images or several columns of them, or there are
            no images of the split.
    """
    files = [file for name in names for file in _of_state(root, name, names)]
    if not files:
        return None
    if isinstance(root, Address):
        raise ShardError(f"{root}: a folder that datasets saved is read from a disk\n  copy it to this machine")
    streams = [_open(root, file) for file in files]
    if not any(stream.columns for stream in streams):
        fault = next((stream.fault for stream in streams if stream.fault), "no column of images")
        raise ShardError(
            f"{root}: a folder that datasets saved: {fault}\n  expected a column of images with their bytes"
        )
    return SavedImages(root, streams, rows, split)


def _of_state(root: Location, name: str, names: Sequence[str]) -> list[str]:
    """The data files that a `state.json` of `datasets` lists; none for any other file."""
    folder, slash, file = name.rpartition("/")
    if file != _STATE or f"{folder}{slash}{_INFO}" not in names:
        return []
    try:
        content = json.loads((root / name).read_bytes()) if isinstance(root, Address) else read_json(root / name)
        listed = [str(one["filename"]) for one in content["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    if any(bad_name(one) for one in listed):
        raise ShardError(f"{root / name}: lists files outside of its folder\n  save the data set again")
    return [f"{folder}{slash}{one}" for one in listed]


def _open(root: Path, name: str) -> _Stream:
    rows: list[int] = []
    columns = None
    try:
        with _batches(root / name) as reader:
            while True:
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    break
                if columns is None:
                    columns = find_columns(reader.schema, partial(_starts, batch))
                rows.append(batch.num_rows)
    except ShardError as error:
        raise ShardError(f"{root / name}: {error}") from None
    except FileNotFoundError:
        return _Stream(name, None, fault="cannot be read: no such file")
    except _BROKEN:
        return _Stream(name, columns, tuple(rows), fault="broken, or truncated; the rest is not read")
    return _Stream(name, columns, tuple(rows))


@contextmanager
def _batches(path: Path) -> Iterator[Any]:
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as reader:
        yield reader


def _checked(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """Some columns, every offset of which is known to lie in the file: Arrow trusts them otherwise."""
    found = batch.select(list(columns))
    found.validate(full=True)
    return found


def _starts(batch: pa.RecordBatch, names: list[str]) -> dict[str, bytes]:
    values = {name: _checked(batch, [name]).column(0)[0] for name in names if batch.num_rows}
    return {name: start_of(value) for name, value in values.items() if value.is_valid}


def _units(stream: _Stream) -> Iterator[tuple[str, tuple[_Stream, int, int]]]:
    """Name of each unit, and its file, first batch and number of batches."""
    first, count, rows = 0, 0, 0
    for index, more in enumerate(stream.batches):
        if count and rows + more > UNIT_FILES:
            yield f"{stream.name}#{first:06d}", (stream, first, count)
            first, count, rows = index, 0, 0
        count, rows = count + 1, rows + more
    if count or not stream.batches:
        yield f"{stream.name}#{first:06d}", (stream, first, count)
