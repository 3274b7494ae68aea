"""A collection of images of any kind, as units that processes can split and a resumed run can skip."""

import hashlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from cxrsynth.errors import ReportsError, ShardError
from cxrsynth.images.decode import IMAGE_EXTENSIONS, decode
from cxrsynth.images.dicom import EXTENSIONS as DICOM_EXTENSIONS
from cxrsynth.images.folder import UNLISTED_ROOT, Files, extension_of, image_extension, walk
from cxrsynth.images.image import Damaged, Radiograph
from cxrsynth.images.metadata import MetadataReader
from cxrsynth.images.own import FileSet, OurShards, read_manifest
from cxrsynth.images.table import ImageRows, open_rows
from cxrsynth.images.unit import Source, Unit, stat_digest
from cxrsynth.images.webdataset import SUFFIXES, Shards
from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.runtime.pool import in_order
from cxrsynth.shards.folder import MANIFEST

Kind = Literal["cxrsynth", "webdataset", "folder", "dicom"]

__all__ = ["Collection", "Kind", "Unit", "open_collection"]


@dataclass(frozen=True)
class Collection:
    """Images at `path`, never written to. `manifest` is that of a data set of ours, else None."""

    path: Path
    kind: Kind
    manifest: dict[str, Any] | None = field(repr=False)
    units: tuple[Unit, ...] = field(repr=False)
    _source: Source = field(repr=False)
    _teller: MetadataReader = field(repr=False)
    # Lines of the table that cannot be read: told of with the first unit. And what the table is, for the digests.
    _unread: tuple[Damaged, ...] = field(default=(), repr=False)
    _table: str = field(default="", repr=False)

    def read(self, unit: Unit, *, workers: int = 2) -> Iterator[Radiograph | Damaged]:
        """Images of a unit in member order, decoded by `workers` threads ahead of who takes them.

        Memory is bounded: 8 images a worker are in flight, each at most `MAX_SAMPLE_BYTES` read and `MAX_PIXELS`
        decoded
        (cxrsynth.images.limits). Whatever is wrong with a unit or a member of it comes as a `Damaged`.

        Raises:
            ValueError: if `workers` is not above zero.
        """
        raw = self._source.raw_images(unit)
        jobs = chain(self._unread, raw) if unit == self.units[0] else raw
        return in_order(jobs, partial(decode, teller=self._teller), workers=workers)

    def digest_of(self, unit: Unit) -> str:
        """Identity of a unit and of what the table may say of it, 64 hex digits, told without reading the unit.

        Made of names, sizes and times, and for a shard of ours of the manifest's SHA-256.
        """
        digest = self._source.digest_of(unit)
        return hashlib.sha256(f"{digest} {self._table}".encode()).hexdigest() if self._table else digest

    def content_of(self, unit: Unit) -> str:
        """As `digest_of`, but the same for the same bytes wherever they lie: of ours it is the manifest's SHA-256."""
        known = self._source.content_of(unit) if isinstance(self._source, OurShards | FileSet) else ""
        return known or self.digest_of(unit)


def open_collection(path: Path, *, table: Path | None = None, columns: ColumnNames | None = None) -> Collection:
    """Find out what is at `path`: a data set of ours, a shard or a folder of shards, an image or a folder of images.

    Folders are searched through. Where there is a shard, pictures beside it are not read: mostly they are previews.

    Args:
        path: a folder, a tar, one image, or the manifest.json of a data set of ours.
        table: CSV, JSONL or Parquet that tells of the images, one row each, found by their file names. Its row is then
            all that is read of an image, but for what a DICOM header says beside.
        columns: names of columns (and keys of JSON members) that are not the usual ones.

    Raises:
        ShardError: if there is nothing at `path`, nothing that can be read as images, or a broken manifest of ours.
        ReportsError: if the table cannot be used.
    """
    root, only = _place(path)
    manifest = read_manifest(root)
    if manifest is not None and table is not None:
        raise ShardError(f"{path}: a data set of cxrsynth tells of its images by itself\n  leave the table away")
    rows = None if table is None else open_rows(table, columns=columns)
    source = _of_ours(root, only, manifest) if manifest is not None else _of_others(path, root, only, rows)
    if isinstance(source, Files) and rows is not None and not source.any_row():
        raise ReportsError(
            f"{table}: tells of no image in {path}\n  expected file names, or paths, of the images there"
        )
    told = _Table() if table is None or rows is None else _Table.of(table, rows)
    kind = _kind(source)
    return Collection(path, kind, manifest, source.units, source, MetadataReader(columns), told.unread, told.digest)


@dataclass(frozen=True)
class _Table:
    """What a collection keeps of a table besides its rows."""

    unread: tuple[Damaged, ...] = ()
    digest: str = ""

    @classmethod
    def of(cls, path: Path, rows: ImageRows) -> "_Table":
        unread = tuple(Damaged(path.name, f"line {row.line}", row.reason) for row in rows.unread)
        return cls(unread, stat_digest(path.parent, [path.name]))


def _place(path: Path) -> tuple[Path, str | None]:
    """The folder of a collection, and the one file in it that is meant, if it is one.

    Raises:
        ShardError: if there is nothing.
    """
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        raise ShardError(f"{path}: no such file or folder\n  check the path") from None
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from None
    if not is_file:
        if not path.is_dir():
            raise ShardError(f"{path}: a pipe or device\n  expected a folder or a file")
        return path, None
    return path.parent, None if path.name == MANIFEST else path.name


def _of_ours(root: Path, only: str | None, manifest: dict[str, Any]) -> Source:
    listed = {shard["name"] for shard in manifest["shards"]}
    if only is not None and only not in listed:
        return _of_others(root / only, root, only, None)
    return OurShards(root, manifest, only=only) if listed else FileSet(root, manifest)


def _of_others(path: Path, root: Path, only: str | None, rows: ImageRows | None) -> Source:
    """Raises ShardError if there is nothing that can be read as images."""
    names = list(walk(root)) if only is None else [only]
    if names == [UNLISTED_ROOT]:
        raise ShardError(f"{path}: cannot be read\n  check its permissions")
    if not names:
        raise ShardError(f"{path}: an empty folder\n  expected shards, pictures or DICOM files")
    tars = [name for name in names if name.lower().endswith(SUFFIXES)]
    if tars:
        return Shards(root, tars, rows)
    radiographs = [name for name in names if name.endswith("/") or image_extension(root / name) is not None]
    if not any(not name.endswith("/") for name in radiographs):
        raise ShardError(
            f"{path}: no image among {len(names)} files\n"
            f"  expected shards ({', '.join(SUFFIXES)}), or files ending in {', '.join(IMAGE_EXTENSIONS)}"
        )
    return Files(root, radiographs, rows)


def _kind(source: Source) -> Kind:
    if isinstance(source, OurShards | FileSet):
        return "cxrsynth"
    if isinstance(source, Shards):
        return "webdataset"
    radiographs = (name for unit in source.units for name in unit.files if not name.endswith("/"))
    return "dicom" if all(extension_of(name) in DICOM_EXTENSIONS for name in radiographs) else "folder"
