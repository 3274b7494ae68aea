"""Scores kept on disk: one Parquet file per scored unit, so that a stopped audit resumes where it was."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cxrsynth.auditing.read import Reading
from cxrsynth.auditing.scorer import PIXEL_COLUMNS
from cxrsynth.images.collection import Collection, Unit
from cxrsynth.images.image import Damaged
from cxrsynth.runtime.files import stable_json, write_atomically

_DAMAGED = b"cxrsynth damaged"
_READING = b"cxrsynth reading"
_NAME_CHARS = 20
_UNREADABLE = "cannot be read"  # the file system's fault, which no size or time of the file need show


class ScoreCache:
    """Scored units of one collection, in a folder.

    A file is named after the identity of its unit and of everything the scores depend on: if a shard, a network or a
    setting changes, no file is found and the unit is scored again. What a unit is found to be at first counts until the
    end of the run: a store takes a request each time, and a shard that changes meanwhile is scored in the next run.
    """

    def __init__(self, folder: Path, collection: Collection, identity: dict[str, Any]) -> None:
        self.folder = folder
        self._collection = collection
        self._identity = stable_json(identity)
        self._digests: dict[str, str] = {}

    def path(self, unit: Unit) -> Path:
        """Where a unit's rows are, or would be. Raises ShardError if a store cannot be reached."""
        if unit.name not in self._digests:
            self._digests[unit.name] = self._collection.digest_of(unit)
        content = hashlib.sha256(self._identity + unit.name.encode() + b"\0" + self._digests[unit.name].encode())
        return self.folder / f"{content.hexdigest()[:_NAME_CHARS]}.parquet"

    def is_scored(self, unit: Unit, *, with_pixels: bool = False) -> bool:
        """Whether nothing of the unit is left to score; `with_pixels`, whether its pixels are there as well.

        Damage is remembered with the scores: a repaired file has another size or time, so it is found under another
        name. Only a file that the system refused to open, and now would open, is tried again.
        """
        if not self.path(unit).is_file():
            return False
        if with_pixels and not self.has_pixels(unit):
            return False
        if _READING not in (pq.read_schema(self.path(unit)).metadata or {}):
            return False  # of an earlier version
        return not any(self._may_be_readable_now(one) for one in self.damaged_in(unit))

    def _may_be_readable_now(self, damaged: Damaged) -> bool:
        root = self._collection.path if self._collection.path.is_dir() else self._collection.path.parent
        if not isinstance(root, Path):
            return False
        files = [path for name in (damaged.member, damaged.source) if (path := root / name).is_file()]
        return damaged.reason.startswith(_UNREADABLE) and any(os.access(path, os.R_OK) for path in files)

    def has_pixels(self, unit: Unit) -> bool:
        """Whether the pixels of a scored unit have not been deleted."""
        return set(PIXEL_COLUMNS) <= set(pq.read_schema(self.path(unit)).names)

    def count(self, unit: Unit) -> int:
        """Images of a scored unit."""
        return int(pq.read_metadata(self.path(unit)).num_rows)

    def write(
        self,
        unit: Unit,
        rows: Sequence[pa.Table],
        damaged: Sequence[Damaged],
        schema: pa.Schema,
        *,
        reading: Reading,
        full: int = 0,
    ) -> None:
        """Write a unit's rows, its damage and how it was read, whole or not at all.

        The full pixels of at most `full` images stay.
        """
        damage = json.dumps([[one.source, one.member, one.reason] for one in damaged]).encode()
        table = pa.concat_tables(rows) if rows else schema.empty_table()
        if "image" in schema.names:
            table = _with_full_images(full, table)
        read = stable_json(reading.as_json())
        self._write(unit, table.replace_schema_metadata({_DAMAGED: damage, _READING: read}))

    def _write(self, unit: Unit, table: pa.Table) -> None:
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        write_atomically(self.path(unit), buffer.getvalue().to_pybytes())

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Rows of every unit, in the collection's order."""
        for unit in self._collection.units:
            yield self.table(unit, columns)

    def table(self, unit: Unit, columns: list[str] | None = None) -> pa.Table:
        """Rows of one unit."""
        return pq.read_table(self.path(unit), columns=columns)

    def columns(self) -> list[str]:
        """Names of the columns that every unit has: pixels may be deleted."""
        return [name for name in self._schema().names if name not in PIXEL_COLUMNS]

    def width(self, column: str) -> int:
        """How many numbers each vector of a column has."""
        return int(self._schema().field(column).type.list_size)

    def _schema(self) -> pa.Schema:
        return pq.read_schema(self.path(self._collection.units[0]))

    def damaged(self) -> list[Damaged]:
        """Everything that cannot be read, in order."""
        return [one for unit in self._collection.units for one in self.damaged_in(unit)]

    def damaged_in(self, unit: Unit) -> list[Damaged]:
        """What of a scored unit cannot be read, in order."""
        metadata = pq.read_schema(self.path(unit)).metadata or {}
        return [Damaged(*one) for one in json.loads(metadata.get(_DAMAGED, b"[]"))]

    def reading(self, unit: Unit) -> Reading:
        """How a scored unit was read."""
        return Reading.of_json(json.loads((pq.read_schema(self.path(unit)).metadata or {})[_READING]))

    def fingerprint(self) -> str | None:
        """Identity of all scores, with or without their pixels; None while a unit has still to be scored."""
        digest = hashlib.sha256()
        for unit in self._collection.units:
            if not self.path(unit).is_file():
                return None
            digest.update(f"{self.path(unit).name} {self.count(unit)} {len(self.damaged_in(unit))}\n".encode())
        return digest.hexdigest()

    def delete_pixels(self) -> None:
        """Delete what shows the images; scores, features and metadata stay."""
        for unit in self._collection.units:
            if self.has_pixels(unit):
                self._write(unit, self.table(unit).drop_columns(list(PIXEL_COLUMNS)))

    def delete_others(self, keep: set[Path]) -> None:
        """Delete scores of units or settings that are no longer asked for."""
        for path in self.folder.glob("*.parquet"):
            if path not in keep:
                path.unlink()


def _with_full_images(count: int, table: pa.Table) -> pa.Table:
    """The table with full pixels for `count` images only, chosen by key: the same ones in whatever order they come."""
    keys = table["key"].to_pylist()
    ranked = sorted(keys, key=lambda key: hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest())
    chosen = set(ranked[:count])
    images = [image if key in chosen else None for key, image in zip(keys, table["image"].to_pylist(), strict=True)]
    place = table.schema.get_field_index("image")
    return table.set_column(place, table.schema.field(place), pa.array(images, pa.binary()))
