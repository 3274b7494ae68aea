"""What is known of each unit once it was scored: one Parquet file, so that a stopped audit goes on where it was."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cxrsynth.images.collection import Collection, Unit
from cxrsynth.images.image import Damaged
from cxrsynth.runtime.files import stable_json, write_atomically

_DAMAGED = b"cxrsynth damaged"
_NAME_CHARS = 20


class Parts:
    """Scored units of one collection, in a folder.

    A file's name holds the identity of the unit and of everything its scores depend on: changed shards, judges or
    settings find no part and are scored anew.
    """

    def __init__(self, folder: Path, collection: Collection, identity: dict[str, Any]) -> None:
        self.folder = folder
        self._collection = collection
        self._identity = stable_json(identity)

    def path(self, unit: Unit) -> Path:
        """Where a unit's rows are, or would be."""
        content = hashlib.sha256(
            self._identity + unit.name.encode() + b"\0" + self._collection.digest_of(unit).encode()
        )
        return self.folder / f"{content.hexdigest()[:_NAME_CHARS]}.parquet"

    def is_scored(self, unit: Unit) -> bool:
        """Whether the unit was scored before, whole: what was damaged is read again, for it may be mended by now."""
        return self.path(unit).is_file() and not self._damaged(unit)

    def count(self, unit: Unit) -> int:
        """Images of a scored unit."""
        return int(pq.read_metadata(self.path(unit)).num_rows)

    def write(
        self, unit: Unit, rows: Sequence[pa.Table], damaged: Sequence[Damaged], schema: pa.Schema, *, whole: int = 0
    ) -> None:
        """Keep a unit's rows and what could not be read of it, whole or not at all; of `whole` images the pixels
        too.
        """
        told = json.dumps([[one.source, one.member, one.reason] for one in damaged]).encode()
        table = _with_pixels_of(whole, pa.concat_tables(rows) if rows else schema.empty_table())
        table = table.replace_schema_metadata({_DAMAGED: told})
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
        """Names of the rows' columns."""
        return list(pq.read_schema(self.path(self._collection.units[0])).names)

    def damaged(self) -> list[Damaged]:
        """What could not be read, in order."""
        return [one for unit in self._collection.units for one in self._damaged(unit)]

    def _damaged(self, unit: Unit) -> list[Damaged]:
        metadata = pq.read_schema(self.path(unit)).metadata or {}
        return [Damaged(*one) for one in json.loads(metadata.get(_DAMAGED, b"[]"))]

    def drop_others(self, keep: set[Path]) -> None:
        """Remove parts of units or settings that are no longer asked for."""
        for path in self.folder.glob("*.parquet"):
            if path not in keep:
                path.unlink()


def _with_pixels_of(count: int, table: pa.Table) -> pa.Table:
    """The table, with whole pixels for `count` images only, drawn by key: the same in whatever order they are read."""
    keys = table["key"].to_pylist()
    drawn = set(sorted(keys, key=lambda key: hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest())[:count])
    radiographs = [
        radiograph if key in drawn else None for key, radiograph in zip(keys, table["image"].to_pylist(), strict=True)
    ]
    place = table.schema.get_field_index("image")
    return table.set_column(place, table.schema.field(place), pa.array(radiographs, pa.binary()))
