"""Samples of a WebDataset shard: consecutive members with one name and different extensions."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from cxrsynth.address import Location
from cxrsynth.images.decode import IMAGE_EXTENSIONS, RawImage
from cxrsynth.images.image import Damaged
from cxrsynth.images.limits import MAX_SAMPLE_BYTES, MAX_SAMPLE_MEMBERS, UnreadableError, open_plain, shown
from cxrsynth.images.table import ImageRows, Row
from cxrsynth.images.tar import BrokenTarError, Member, read_tar
from cxrsynth.images.unit import Unit, stat_digest

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_EXTENSIONS = (*IMAGE_EXTENSIONS, "json", "txt")


@dataclass(slots=True)
class _Sample:
    """Members of one sample as they arrive; after the first fault, content is dropped."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    size: int = 0
    fault: tuple[str, str] | None = None

    def add(self, extension: str, member: Member) -> None:
        self.size += len(member.content)
        if self.fault is None:
            reason = member.refused or self._too_much()
            if reason:
                self.fault = (member.name, reason)
                self.members.clear()
            else:
                self.members[extension] = member.content

    def _too_much(self) -> str:
        if self.size > MAX_SAMPLE_BYTES:
            return f"a sample of more than {MAX_SAMPLE_BYTES} bytes"
        return f"a sample of more than {MAX_SAMPLE_MEMBERS} members" if len(self.members) == MAX_SAMPLE_MEMBERS else ""


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, split at the first dot of the file name, as in WebDataset.

    A name like `1.2.840.7.dcm`, numbers separated by dots, is a UID: it is split at the last dot.
    """
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    *middle, last = extension.lower().split(".")
    if middle and last in _EXTENSIONS and all(part.isdecimal() for part in (key, *middle)):
        key, extension = file[: -len(last) - 1], last
    return folder + slash + key, extension.lower()


def read_shard(
    path: Location,
    source: str,
    *,
    prefix: str = "",
    sha256: str | None = None,
    find_row: Callable[[str], Row | None] = lambda _: None,
    patient_of: Callable[[str], str] = lambda _: "",
) -> Iterator[RawImage | Damaged]:
    """Samples of one shard in order; a truncated shard ends with a `Damaged` of its own.

    The sample at the truncation is left out: one of its members may be missing.

    Args:
        path: the tar, plain or gzip.
        source: the shard's name in its collection.
        prefix: put before each key.
        sha256: of the whole file, if known; a file with another one is not read at all.
        find_row: the table row of the member with this name.
        patient_of: the patient of a key.
    """
    seen: set[str] = set()
    last = ""
    try:
        with open_plain(path) as file:
            if sha256 is not None:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise UnreadableError("its bytes do not match manifest.json (sha256); none of its samples are read")
                file.seek(0)
            for place, sample in enumerate(_samples(read_tar(file))):
                last = sample.key
                radiograph = _radiograph(sample, source, place, seen)
                if isinstance(radiograph, RawImage):
                    row = find_row(radiograph.member)
                    radiograph = replace(
                        radiograph, key=prefix + radiograph.key, row=row, patient=patient_of(radiograph.key)
                    )
                yield radiograph
    except UnreadableError as error:
        yield Damaged(source, "", str(error))
    except BrokenTarError as error:
        # A key may name a patient: it belongs where an audit hides it, not in the reason.
        after = " after this sample" if last else ""
        yield Damaged(source, shown(last), f"{error}{after}; the rest is not read")
    except OSError as error:
        yield Damaged(source, "", f"cannot be read: {error.strerror or 'input error'}")


def _samples(members: Iterator[Member]) -> Iterator[_Sample]:
    """Consecutive members with one key; names that start with a dot or two underscores are ignored."""
    sample: _Sample | None = None
    try:
        for member in members:
            if member.name.rpartition("/")[2].startswith((".", "__")) and not member.refused:
                continue
            key, extension = split_name(member.name)
            if sample is None or sample.key != key or extension in sample.members:
                if sample is not None:
                    yield sample
                sample = _Sample(key)
            sample.add(extension, member)
    except BrokenTarError:
        if sample is not None and sample.fault is not None:
            yield sample
        raise
    if sample is not None:
        yield sample


def _radiograph(sample: _Sample, source: str, place: int, seen: set[str]) -> RawImage | Damaged:
    if sample.key in seen:
        return Damaged(source, shown(sample.key), "a second sample of this name in the shard")
    seen.add(sample.key)
    if sample.fault is not None:
        name, reason = sample.fault
        return Damaged(source, shown(name), reason)
    images = [extension for extension in sample.members if extension in IMAGE_EXTENSIONS]
    if len(images) != 1:
        found = f"{len(images)} images ({', '.join(images)})" if images else "no image"
        return Damaged(source, shown(sample.key), f"{found}, expected one of {', '.join(IMAGE_EXTENSIONS)}")
    return RawImage(sample.key, source, place, f"{sample.key}.{images[0]}", images[0], sample.members)


def _stem(name: str) -> str:
    return next(name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix))


class Shards:
    """Tars of any origin. Keys start with the shard's name: other programs may restart their keys in every shard."""

    def __init__(self, root: Location, names: Iterable[str], rows: ImageRows | None = None) -> None:
        self._root = root
        self._rows = rows
        self.units = tuple(Unit(name) for name in sorted(names))
        self._stems = Counter(_stem(unit.name) for unit in self.units)

    def raw_images(self, unit: Unit) -> Iterator[RawImage | Damaged]:
        """Images of one shard."""
        stem = _stem(unit.name)
        # `a.tar` and `a.tgz` may both hold an image `0`.
        prefix = stem if self._stems[stem] == 1 else unit.name
        yield from read_shard(self._root / unit.name, unit.name, prefix=f"{prefix}/", find_row=self._row)

    def digest_of(self, unit: Unit) -> str:
        """Digest of the file's name, size and time."""
        return stat_digest(self._root, [unit.name])

    def _row(self, member: str) -> Row | None:
        return None if self._rows is None else self._rows.find(member)
