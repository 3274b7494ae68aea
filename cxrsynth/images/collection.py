"""Image collections of any kind, in units that processes can share and a resumed run can skip."""

import hashlib
import re
import stat
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from cxrsynth.address import Address, Location, unreachable
from cxrsynth.console import counted
from cxrsynth.errors import ReportsError, ShardError
from cxrsynth.images.archive import SUFFIX as ZIP
from cxrsynth.images.archive import ZipFolder, Zipped
from cxrsynth.images.arrow.parquet import SUFFIX as PARQUET
from cxrsynth.images.arrow.parquet import ParquetImages, open_parquet
from cxrsynth.images.arrow.saved import SavedImages, open_saved
from cxrsynth.images.decode import IMAGE_EXTENSIONS, RawImage, decode, identify
from cxrsynth.images.dicom import EXTENSIONS as DICOM_EXTENSIONS
from cxrsynth.images.folder import (
    LINKED_FOLDER,
    UNLISTED_ROOT,
    Files,
    Listing,
    image_extension,
    list_files,
    passed_over,
)
from cxrsynth.images.image import Damaged, Radiograph
from cxrsynth.images.layouts.find import folders_of_classes, of_split, open_layout
from cxrsynth.images.layouts.layout import Recognized
from cxrsynth.images.layouts.splits import split_of_path
from cxrsynth.images.metadata import MetadataReader
from cxrsynth.images.own import FileSet, OurShards, read_manifest
from cxrsynth.images.table import ImageRows, Matches, Unclear, open_rows
from cxrsynth.images.unit import Source, Unit, stat_digest
from cxrsynth.images.webdataset import SUFFIXES, Shards
from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.reports.table.source import is_text
from cxrsynth.reports.template import PromptTemplate
from cxrsynth.runtime.pool import in_order
from cxrsynth.shards.folder import MANIFEST, PREVIEW

# What img2dataset writes beside each shard.
_IMG2DATASET = re.compile(r"(?:^|/)\d{5,}_stats\.json$")
Kind = Literal["cxrsynth", "webdataset", "parquet", "arrow", "zip", "folder", "dicom"]

if TYPE_CHECKING:
    from cxrsynth.reports.request import Reader

__all__ = ["Collection", "Kind", "Unit", "open_collection"]


@dataclass(frozen=True)
class Collection:
    """Images at `path`, which is never written to. `manifest` is None unless cxrsynth made the data set."""

    path: Location
    kind: Kind
    manifest: dict[str, Any] | None = field(repr=False)
    units: tuple[Unit, ...] = field(repr=False)
    _source: Source = field(repr=False)
    _metadata: MetadataReader = field(repr=False)
    # Unreadable lines of tables, reported with the first unit.
    _unread: tuple[Damaged, ...] = field(default=(), repr=False)
    # The tables' part of every digest.
    _table: str = field(default="", repr=False)
    # The table, which of its columns are read for what, and how many rows it has.
    table: Location | None = None
    columns_used: str = ""
    rows: int = 0
    # Images, and those of them with a row in a table, where files are known; of a user's table, its rows as well.
    described: tuple[int, int] | None = None
    matches: Matches | None = None
    # Columns of the table with cells that are not understood.
    unclear: Mapping[str, Unclear] = field(default_factory=dict)
    # What looks like images and is not read: how many of each extension, and linked folders.
    passed_over: Mapping[str, int] = field(default_factory=dict)
    # The public data set, or kind of file, whose layout was recognized.
    layout: Recognized | None = None

    @property
    def is_whole(self) -> bool:
        """Whether no units were taken out."""
        return len(self.units) == len(self._source.units)

    def read(self, unit: Unit, *, workers: int = 2) -> Iterator[Radiograph | Damaged]:
        """Images of a unit in member order, decoded ahead of the caller by `workers` threads.

        Memory is bounded: 8 images per worker are in flight, each at most `MAX_SAMPLE_BYTES` read and `MAX_PIXELS`
        decoded (cxrsynth.images.limits). Whatever is wrong with a unit or one of its members comes as a `Damaged`.

        Raises:
            ValueError: if `workers` is not above zero.
        """
        raw = self._source.raw_images(unit)
        jobs = chain(self._unread, raw) if unit == self.units[0] else raw
        return in_order(jobs, partial(decode, metadata=self._metadata), workers=workers)

    def read_only(self, unit: Unit, keys: Set[str], *, workers: int = 2) -> Iterator[Radiograph]:
        """The images of a unit with these keys, in member order; no other is decoded, and no other file is read."""
        if isinstance(self._source, Files):
            unit = replace(unit, files=tuple(name for name in unit.files if name in keys))
        wanted = (raw for raw in self._source.raw_images(unit) if isinstance(raw, RawImage) and raw.key in keys)
        for found in in_order(wanted, partial(decode, metadata=self._metadata), workers=workers):
            if isinstance(found, Radiograph):
                yield found

    def identities(self, *, workers: int = 2) -> Iterator[tuple[str, str]]:
        """SHA-256 and patient of every readable image, units in order; pictures are read, not decoded."""
        for unit in self.units:
            raw = self._source.raw_images(unit)
            yield from filter(None, in_order(raw, partial(identify, metadata=self._metadata), workers=workers))

    def per_unit(self, count: int) -> int:
        """The least number of images to take of every unit so that they are `count` in all.

        Where it is not known how many images a unit holds, an even share: smaller units then leave fewer in all.
        """
        sizes = sorted(self._sizes())
        for place, size in enumerate(sizes):
            rest = len(sizes) - place
            if size * rest >= count:
                return max(1, -(-count // rest))
            count -= size
        return max([1, *sizes]) if sizes else max(1, -(-count // len(self.units)))

    def _sizes(self) -> list[int]:
        """How many images each unit holds at most; empty if that is not known of all."""
        listed = {shard["name"]: shard.get("samples") for shard in (self.manifest or {}).get("shards", ())}
        sizes = [len(unit.files) or listed.get(unit.name) for unit in self.units]
        return [size for size in sizes if size] if all(sizes) else []

    def digest_of(self, unit: Unit) -> str:
        """Identity of a unit and of its table, 64 hex digits, computed without reading the unit.

        It covers names, sizes and times, and the manifest's SHA-256 for a shard that cxrsynth made.
        """
        digest = self._source.digest_of(unit)
        return hashlib.sha256(f"{digest} {self._table}".encode()).hexdigest() if self._table else digest

    def content_of(self, unit: Unit) -> str:
        """Like `digest_of`, but for data sets of cxrsynth it depends on the bytes alone: the manifest's SHA-256."""
        known = self._source.content_of(unit) if isinstance(self._source, OurShards | FileSet) else ""
        return known or self.digest_of(unit)


def open_collection(
    path: Location,
    *,
    table: Location | None = None,
    columns: ColumnNames | None = None,
    template: PromptTemplate | None = None,
    file_column: str | None = None,
    split: str | None = None,
    labeler: "Reader | None" = None,
) -> Collection:
    """Find out what is at `path`: a cxrsynth data set, a shard or a folder of shards, an image or a folder of images.

    Folders are searched recursively; linked ones are not. Pictures beside a shard, or a Parquet file of images, are
    not read: most are previews. What is not read is counted (`passed_over`). Public data sets are recognized by their
    paths and tables (cxrsynth.images.layouts), which then describe the images unless `table` does.

    Args:
        path: a folder, a tar, a zip archive of images, one image, or the manifest.json of a cxrsynth data set.
        table: CSV, JSON, Parquet or Excel table of the images, one row each, found by file name. An image's metadata is
            then its row, plus what a DICOM header adds.
        columns: names of columns (and keys of JSON members) that differ from the usual ones.
        template: of prompts, whose fields are read, too.
        file_column: the table's column of file names, if it has that one; else a usual one.
        split: of a data set whose splits are known, only this one: train, val, test, or a name of its own.
        labeler: reads labels from the text of reports; None for the rules.

    Raises:
        ShardError: if there is nothing at `path`, nothing that can be read as images, or a broken cxrsynth manifest.
        ReportsError: if the table cannot be used.
    """
    root, only = _place(path)
    manifest = None if isinstance(root, Zipped) else read_manifest(root)
    if manifest is not None and table is not None:
        raise ShardError(f"{path}: a cxrsynth data set carries its own metadata\n  leave out the table")
    rows = None if table is None else open_rows(table, columns=columns, template=template, file_column=file_column)
    if manifest is not None:
        if split is not None:
            raise ShardError(f"{path}: a data set of cxrsynth has no splits\n  leave out the split")
        opened = _Opened(_own_source(root, only, manifest), passed_over=_beside_ours(root, only, manifest))
    else:
        opened = _other_source(path, root, only, rows, split)
    source = opened.source
    _check_units(path, source)
    counts = source.counts() if isinstance(source, Files) else None
    matches = source.matches() if isinstance(source, Files) else None
    if table is not None and matches is not None and not matches.with_row:
        raise no_match(table, path)
    described = _Table() if table is None or rows is None else _Table.of(table, rows)
    kind = _kind(source)
    metadata = MetadataReader(columns, template, labeler)
    return Collection(
        path,
        kind,
        manifest,
        source.units,
        source,
        metadata,
        described.unread or opened.unread,
        described.digest or (stat_digest(root, opened.tables) if opened.tables else ""),
        table=table,
        columns_used="" if rows is None else rows.used,
        rows=0 if rows is None else len(rows),
        described=counts,
        matches=matches,
        unclear={} if rows is None else rows.unclear,
        passed_over=opened.passed_over,
        layout=opened.layout,
    )


def _check_units(path: Location, source: Source) -> None:
    """Raises ShardError if there is nothing to read, or a file's name is no text: it stands in every row of a score."""
    if not source.units:
        raise ShardError(f"{path}: a data set without images\n  expected at least one; an audit may have rejected all")
    for unit in source.units:
        if not is_text(unit.name):
            raise ShardError(f"{path}: a file {unit.name!a}, whose name has undecodable bytes\n  rename it")


def no_match(table: Location, path: Location) -> ReportsError:
    """The error for a table none of whose rows describes an image."""
    return ReportsError(
        f"{table}: no row matches an image in {path}\n  expected file names, or paths, of the images there"
    )


@dataclass(frozen=True)
class _Opened:
    """A source, what beside it is not read, the layout it was recognized by, and its tables that describe it."""

    source: Source
    layout: Recognized | None = None
    tables: tuple[str, ...] = ()
    unread: tuple[Damaged, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Table:
    """What a collection keeps of a table apart from its rows."""

    unread: tuple[Damaged, ...] = ()
    digest: str = ""

    @classmethod
    def of(cls, path: Location, rows: ImageRows) -> "_Table":
        unread = tuple(Damaged(path.name, f"line {row.line}", row.reason) for row in rows.unread)
        return cls(unread, stat_digest(path.parent, [path.name]))


def _place(path: Location) -> tuple[Location, str | None]:
    """The folder of a collection, and the name of the one file in it that was given, if any.

    Raises:
        ShardError: if there is nothing.
    """
    if isinstance(path, Address):
        root, only = _place_in_store(path)
        return (Zipped.root(path), None) if only is not None and path.suffix.lower() == ZIP else (root, only)
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
    if path.suffix.lower() == ZIP:
        return Zipped.root(path), None
    return path.parent, None if path.name == MANIFEST else path.name


def _place_in_store(address: Address) -> tuple[Address, str | None]:
    try:
        if address.is_dir():
            return address, None
        if not address.exists():
            raise ShardError(f"{address}: nothing there\n  check the address")
    except OSError as error:
        raise unreachable(address, error) from None
    return address.parent, None if address.name == MANIFEST else address.name


def _own_source(root: Location, only: str | None, manifest: dict[str, Any]) -> Source:
    listed = {shard["name"] for shard in manifest["shards"]}
    if only is not None and only not in listed:
        return _other_source(root / only, root, only, None, None).source
    return OurShards(root, manifest, only=only) if listed else FileSet(root, manifest)


def _beside_ours(root: Location, only: str | None, manifest: Mapping[str, Any]) -> dict[str, int]:
    """What looks like images in a data set of ours and is not in its manifest."""
    if only is not None:
        return {}
    listed = {PREVIEW, *manifest["files"]}
    listing = list_files(root)
    others = [name for name in listing.names if name not in listed]
    return passed_over(Listing(others, listing.linked), also=IMAGE_EXTENSIONS)


def _other_source(
    path: Location, root: Location, only: str | None, rows: ImageRows | None, split: str | None
) -> _Opened:
    """Any other collection. Raises ShardError if there is nothing that can be read as images."""
    listing = list_files(root) if only is None else Listing([only])
    names = listing.names
    if names == [UNLISTED_ROOT]:
        raise ShardError(f"{path}: cannot be read\n  check its permissions")
    if not names and listing.linked:
        raise ShardError(
            f"{path}: nothing but {counted(listing.linked, LINKED_FOLDER)}, and links to folders are not followed\n"
            "  name the folder that a link leads to, or copy it here"
        )
    if not names:
        raise ShardError(f"{path}: an empty folder\n  expected shards, pictures or DICOM files")
    tars = [name for name in names if name.lower().endswith(SUFFIXES)]
    if isinstance(root, Zipped) and (tars or any(name.lower().endswith((PARQUET, ".arrow")) for name in names)):
        raise ShardError(f"{path}: an archive of shards, not of images\n  unpack it, and name the folder")
    if tars:
        tars = tars if split is None else of_split(tars, {name: split_of_path(name) for name in tars}, split, root=path)
        layout = Recognized("img2dataset") if any(_IMG2DATASET.search(name) for name in names) else None
        return _Opened(Shards(root, tars, rows), layout, passed_over=_beside(listing, only))
    saved = open_saved(root, names, rows, split) or open_parquet(
        root, [name for name in names if name.lower().endswith(PARQUET)], rows, split
    )
    if saved is not None:
        return _Opened(saved, saved.recognized, passed_over=_beside(listing, only))
    kinds = {name: None if name.endswith("/") else image_extension(root / name) for name in names}
    radiographs = [name for name in names if name.endswith("/") or kinds[name] is not None]
    found = {kind for kind in kinds.values() if kind is not None}
    zips = [name for name in names if name.lower().endswith(ZIP)]
    if not found and zips:
        root = ZipFolder.of(root, zips)
        names = sorted({*names, *root.members()})
        kinds = {name: None if name.endswith("/") else image_extension(root / name) for name in names}
        radiographs = [name for name in names if kinds[name] is not None]
        found = {kind for kind in kinds.values() if kind is not None}
    if not found:
        raise ShardError(
            f"{path}: no image among {counted(len(names), 'file')}\n"
            f"  expected shards ({', '.join(SUFFIXES)}), Parquet files with rows and a column of images, a saved"
            f" Hugging Face data set, or files ending in {', '.join(IMAGE_EXTENSIONS)}, also in a zip archive"
        )
    read = set(zips if isinstance(root, ZipFolder) else ())
    left = passed_over(Listing([name for name in names if name not in read], listing.linked), root=root)
    laid = open_layout(root, names, radiographs, split=split, has_table=rows is not None)
    source = Files(
        root,
        laid.images,
        laid.rows if rows is None else rows,
        all_dicom=found <= set(DICOM_EXTENSIONS),
        beside=laid.beside,
    )
    layout = laid.recognized or folders_of_classes(laid.images)
    return _Opened(source, layout, laid.tables, () if laid.rows is None else tuple(laid.rows.unread), left)


def _beside(listing: Listing, only: str | None) -> dict[str, int]:
    """What looks like images beside shards, or files with rows of images."""
    return {} if only is not None else passed_over(listing, also=IMAGE_EXTENSIONS)


def _kind(source: Source) -> Kind:
    if isinstance(source, OurShards | FileSet):
        return "cxrsynth"
    if isinstance(source, Shards):
        return "webdataset"
    if isinstance(source, ParquetImages | SavedImages):
        return "parquet" if isinstance(source, ParquetImages) else "arrow"
    if isinstance(source, Files) and source.in_archives:
        return "zip"
    return "dicom" if isinstance(source, Files) and source.all_dicom else "folder"
