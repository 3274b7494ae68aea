"""Images in files of their own: pictures and DICOM objects in a folder and below it."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from cxrsynth.address import Address, Location, unreachable
from cxrsynth.images import dicom
from cxrsynth.images.archive import ZipFolder, Zipped
from cxrsynth.images.decode import IMAGE_EXTENSIONS, RawImage
from cxrsynth.images.image import Damaged
from cxrsynth.images.layouts.find import LayoutRows
from cxrsynth.images.limits import MAX_MEMBER_BYTES, MAX_TEXT_BYTES, UnreadableError, open_plain, shown
from cxrsynth.images.table import ImageRows, Row
from cxrsynth.images.unit import Unit, file_units, stat_digest

# The name `walk` gives a root that cannot be listed.
UNLISTED_ROOT = "./"
START_BYTES = 132
_MAGIC = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpg"), (b"II*\0", "tif"), (b"MM\0*", "tif"))
_UNREAD = frozenset(
    {"bmp", "gif", "jp2", "j2k", "jxl", "pgm", "ppm", "pnm", "avif", "heic", "heif", "npy", "npz", "nii", "nrrd", "mha"}
    | {"mhd", "hdr", "exr", "svg", "pdf", "zip"}
)


def walk(root: Location) -> Iterator[str]:
    """Files below a folder by relative path, sorted; hidden files and linked folders are skipped.

    A folder that cannot be listed is yielded like a file, its name ending in a slash: reading it then gives the reason.

    Raises:
        ShardError: if an object store cannot be reached.
    """
    if isinstance(root, Address):
        try:
            yield from root.walk()
        except OSError as error:
            raise unreachable(root, error) from None
        return
    unlisted: list[str] = []

    def remember(error: OSError) -> None:
        unlisted.append(f"{Path(error.filename).relative_to(root).as_posix()}/")

    names: list[str] = []
    for folder, below, files in os.walk(root, onerror=remember):
        below[:] = [name for name in below if not name.startswith(".")]
        here = Path(folder).relative_to(root)
        names += [(here / name).as_posix() for name in files if not name.startswith(".")]
    yield from sorted(names + unlisted)


def kind_of(start: bytes) -> str | None:
    """The kind of an image by its first 132 bytes; None for any other file."""
    if dicom.is_dicom(start):
        return "dcm"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "webp"
    return next((kind for magic, kind in _MAGIC if start.startswith(magic)), None)


def looks_like_a_picture(name: str) -> bool:
    """Whether a file is an image of a kind that is not read."""
    suffix = PurePosixPath(name).suffix.lower().removeprefix(".")
    return suffix in _UNREAD


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
        passed_over: Mapping[str, int] | None = None,
        beside: tuple[str, ...] = (),
    ) -> None:
        self._root = root
        self.all_dicom = all_dicom
        self.passed_over = dict(passed_over or {})
        self._here = PurePosixPath(root.url if isinstance(root, Address) else Path(os.path.abspath(root)).as_posix())
        self._rows = rows
        self._beside = beside
        self.in_archives = isinstance(root, Zipped | ZipFolder)
        self.units = file_units(names)

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
        if rows is None or (isinstance(rows, LayoutRows) and not rows.describes):
            return None
        has_row = rows.has_row if isinstance(rows, LayoutRows) else lambda name: self._row(name) is not None
        found = [has_row(name) for unit in self.units for name in unit.files]
        return len(found), sum(found)

    def _row(self, name: str) -> Row | None:
        return None if self._rows is None else self._rows.find(name, self._here)
