"""Images in files of their own: pictures and DICOM objects in a folder and below it."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cxrsynth.address import Address, Location, unreachable
from cxrsynth.images import dicom
from cxrsynth.images.archive import ZipFolder, Zipped
from cxrsynth.images.decode import IMAGE_EXTENSIONS, RawImage
from cxrsynth.images.image import Damaged
from cxrsynth.images.layouts.find import LayoutRows
from cxrsynth.images.limits import MAX_MEMBER_BYTES, MAX_TEXT_BYTES, UnreadableError, open_plain, shown
from cxrsynth.images.table import ImageRows, Matches, Row
from cxrsynth.images.unit import Unit, file_units, stat_digest

# The name `walk` gives a root that cannot be listed.
UNLISTED_ROOT = "./"
START_BYTES = 132
_MAGIC = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpg"), (b"II*\0", "tif"), (b"MM\0*", "tif"))
_UNREAD = frozenset(
    {"bmp", "gif", "jp2", "j2k", "j2c", "jpx", "jxl", "jls", "pgm", "ppm", "pnm", "avif", "heic", "heif", "npy", "npz"}
    | {"nii", "nrrd", "mha", "mhd", "hdr", "exr", "svg", "pdf", "zip", "apng", "tga", "ima", "mat", "h5", "hdf", "hdf5"}
    | {"pcx", "dcx", "pbm", "pfm", "qoi", "psd", "dds", "ico", "icns", "palm", "icb", "vda", "vst", "jpf", "jpc", "mpo"}
    | {"sgi", "rgb", "rgba", "bw", "ras", "xbm", "xpm", "msp", "im", "img", "raw", "fit", "fits", "fts", "dib", "avifs"}
    | {"blp", "bufr", "cur", "emf", "eps", "flc", "fli", "ftc", "ftu", "gbr", "grib", "iim", "pcd", "pxr", "wal", "wmf"}
)
_NO_IMAGES = frozenset(
    {"csv", "tsv", "txt", "json", "jsonl", "xml", "html", "htm", "md", "yaml", "yml", "toml", "ini", "cfg", "log"}
    | {"parquet", "arrow", "xlsx", "xls", "feather", "gz", "tar", "zip", "bz2", "xz", "zst", "7z", "db", "sqlite"}
    | {"py", "ipynb", "sh", "r", "doc", "docx", "rtf", "pt", "pth", "ckpt", "safetensors", "pkl", "md5", "sha256"}
)
# What is passed over is counted by extension; this is no extension.
LINKED_FOLDER = "linked folder"


@dataclass(frozen=True)
class Listing:
    """Files below a folder by relative path, sorted, and how many linked folders are not followed."""

    names: list[str]
    linked: int = 0


def list_files(root: Location) -> Listing:
    """Files below a folder; hidden files and linked folders are skipped.

    A folder that cannot be listed is there like a file, its name ending in a slash: reading it then gives the reason.

    Raises:
        ShardError: if an object store cannot be reached.
    """
    if isinstance(root, Address):
        try:
            return Listing(root.walk())
        except OSError as error:
            raise unreachable(root, error) from None
    unlisted: list[str] = []

    def remember(error: OSError) -> None:
        unlisted.append(f"{Path(error.filename).relative_to(root).as_posix()}/")

    names: list[str] = []
    linked = 0
    for folder, below, files in os.walk(root, onerror=remember):
        below[:] = [name for name in below if not name.startswith(".")]
        linked += sum(os.path.islink(os.path.join(folder, name)) for name in below)
        here = Path(folder).relative_to(root)
        names += [(here / name).as_posix() for name in files if not name.startswith(".")]
    return Listing(sorted(names + unlisted), linked)


def kind_of(start: bytes) -> str | None:
    """The kind of an image by its first 132 bytes; None for any other file."""
    if dicom.is_dicom(start):
        return "dcm"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "webp"
    return next((kind for magic, kind in _MAGIC if start.startswith(magic)), None)


def passed_over(listing: Listing, *, also: Sequence[str] = (), root: Location | None = None) -> dict[str, int]:
    """How many images of each kind are not read, by extension, and how many linked folders.

    Args:
        listing: what there is.
        also: kinds that are read elsewhere, but not here.
        root: where the files are; those of no known extension are looked into. None looks at names alone.
    """
    kinds = Counter(
        kind
        for name in listing.names
        if (kind := _kind_passed_over(name, also) or ("" if root is None else _kind_within(root, name)))
    )
    found = dict(kinds.most_common())
    return found | ({LINKED_FOLDER: listing.linked} if listing.linked else {})


def _kind_passed_over(name: str, also: Sequence[str]) -> str:
    """Extension of an image that is not read, empty for any other file."""
    path = PurePosixPath(name.lower())
    packed = path.suffix == ".gz"
    kind = PurePosixPath(path.stem).suffix if packed else path.suffix
    unread = kind[1:] in _UNREAD or kind[1:] in (IMAGE_EXTENSIONS if packed else also)
    return kind + (".gz" if packed else "") if unread else ""


def _kind_within(root: Location, name: str) -> str:
    """Extension of a file that starts like an image, as a copy named `1.png.bak` does; empty for any other file."""
    suffix = PurePosixPath(name.lower()).suffix
    extension = suffix[1:]
    if not extension or extension.isdecimal() or extension in IMAGE_EXTENSIONS or extension in _NO_IMAGES:
        return ""
    try:
        with open_plain(root / name) as file:
            return suffix if kind_of(file.read(START_BYTES)) else ""
    except (OSError, UnreadableError):
        return ""


def image_extension(path: Location) -> str | None:
    """The kind of image in a file, by its extension; of a file without one, by how it starts.

    A DICOMDIR is not an image: it lists the others. A file without an extension that cannot be opened counts as DICOM,
    so that reading it gives the reason.
    """
    extension = path.suffix.lower().removeprefix(".")
    if extension in IMAGE_EXTENSIONS:
        return extension
    # The last part of a UID is not an extension.
    if path.name.upper() == "DICOMDIR" or (extension and not extension.isdecimal()):
        return None
    try:
        with open_plain(path) as file:
            return kind_of(file.read(START_BYTES))
    except UnreadableError:
        return None
    except OSError:
        return "dcm"


def read_files(
    root: Location,
    names: tuple[str, ...],
    source: str,
    *,
    find_row: Callable[[str], Row | None] = lambda _: None,
    check: Callable[[str, bytes], str] = lambda name, content: name,
    beside: tuple[str, ...] = (),
) -> Iterator[RawImage | Damaged]:
    """The images of some files, in order.

    Args:
        root: the collection's folder.
        names: relative paths.
        source: name of this unit of the collection.
        find_row: the table row of the image with this key.
        check: file name and content -> the image's key; may raise UnreadableError.
        beside: extensions of files with the image's name that belong to it.
    """
    for place, name in enumerate(names):
        try:
            if not name.isprintable():
                raise UnreadableError("a name with control characters or undecodable bytes")
            content = _read(root / name)
            key = check(name, content)
        except UnreadableError as error:
            yield Damaged(source, shown(name), str(error))
        except OSError as error:
            yield Damaged(source, shown(name), f"cannot be read: {error.strerror or 'input error'}")
        else:
            suffix = PurePosixPath(name).suffix.lower().removeprefix(".")
            extension = suffix if suffix in IMAGE_EXTENSIONS else kind_of(content[:START_BYTES]) or "dcm"
            members = {extension: content} | _members_beside(root, name, beside)
            yield RawImage(key, source, place, name, extension, members, row=find_row(key))


def _members_beside(root: Location, name: str, extensions: tuple[str, ...]) -> dict[str, bytes]:
    """Content of those files that there are; one that is too long is refused as it is decoded."""
    members = {}
    for extension in extensions:
        path = root / f"{name.rpartition('.')[0]}.{extension}"
        try:
            with open_plain(path) as file:
                members[extension] = file.read(MAX_TEXT_BYTES + 1)
        except (OSError, UnreadableError):
            continue
    return members


def _read(path: Location) -> bytes:
    with open_plain(path) as file:
        content = file.read(MAX_MEMBER_BYTES + 1)
    if len(content) > MAX_MEMBER_BYTES:
        raise UnreadableError(f"more than {MAX_MEMBER_BYTES} bytes")
    return content


class Files:
    """Pictures and DICOM files of a folder, described by the rows of a table if there is one."""

    def __init__(
        self,
        root: Location,
        names: Iterable[str],
        rows: ImageRows | LayoutRows | None = None,
        *,
        all_dicom: bool = False,
        beside: tuple[str, ...] = (),
    ) -> None:
        self._root = root
        self.all_dicom = all_dicom
        self._here = PurePosixPath(root.url if isinstance(root, Address) else Path(os.path.abspath(root)).as_posix())
        self._rows = rows
        self._beside = beside
        self.in_archives = isinstance(root, Zipped | ZipFolder)
        self.units = file_units(names)
        listed = (name for unit in self.units for name in unit.files)
        self._unclear = rows.unclear_among(listed, self._here) if isinstance(rows, ImageRows) else frozenset()

    def raw_images(self, unit: Unit) -> Iterator[RawImage | Damaged]:
        """Images of one chunk of files; the key of an image is its path in the folder."""
        yield from read_files(self._root, unit.files, unit.name, find_row=self._row, beside=self._beside)

    def digest_of(self, unit: Unit) -> str:
        """Digest of the names, sizes and times of the files and of what lies beside them."""
        others = [f"{name.rpartition('.')[0]}.{extension}" for extension in self._beside for name in unit.files]
        others += self._rows.reports_of(unit.files) if isinstance(self._rows, LayoutRows) else []
        return stat_digest(self._root, [*unit.files, *others])

    def counts(self) -> tuple[int, int] | None:
        """How many files there are, and for how many of them a table has a row; None without a table."""
        rows = self._rows
        if isinstance(rows, LayoutRows):
            found = [rows.has_row(name) for unit in self.units for name in unit.files]
            return (len(found), sum(found)) if rows.describes else None
        matches = self.matches()
        return None if matches is None else (matches.images, matches.with_row)

    def matches(self) -> Matches | None:
        """Which of the files, and of the rows of a user's table, belong to each other; None without such a table."""
        if not isinstance(self._rows, ImageRows):
            return None
        found = [self._row(name) for unit in self.units for name in unit.files]
        lines = [row.line for row in found if row is not None]
        return Matches(len(found), len(lines), len(self._rows), len(set(lines)), len(self._unclear))

    def _row(self, name: str) -> Row | None:
        return None if self._rows is None or name in self._unclear else self._rows.find(name, self._here)
