"""Data sets of `cxrsynth generate`: shards or a DICOM file-set, checked against their manifest."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from cxrsynth.address import Address, Location, unreachable
from cxrsynth.errors import ReportsError, ShardError
from cxrsynth.images.decode import RawImage
from cxrsynth.images.dicom import key_of_ours
from cxrsynth.images.folder import read_files
from cxrsynth.images.image import Damaged
from cxrsynth.images.limits import UnreadableError, bad_name
from cxrsynth.images.table import ImageRows, Row, Unread
from cxrsynth.images.unit import Unit, file_units, stat_digest
from cxrsynth.images.webdataset import SUFFIXES, read_shard
from cxrsynth.reports.table.records import read_records
from cxrsynth.runtime.files import has_sha256, stable_json
from cxrsynth.shards.folder import FILE_SET, MANIFEST, METADATA

CHANGED = "not as manifest.json says (sha256)"


def read_manifest(folder: Location) -> dict[str, Any] | None:
    """The manifest of a cxrsynth data set; None without a manifest.json, or with another program's.

    Raises:
        ShardError: if it cannot be read, or is incomplete.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ShardError(
            f"{path}: broken, so the shards cannot be checked against it\n"
            "  copy it again; without the file, the shards are read unchecked"
        ) from None
    if not isinstance(content, dict) or content.get("synthetic") is not True or "plan" not in content:
        return None
    if not _is_whole(content):
        raise ShardError(f"{path}: not a manifest written by cxrsynth\n  copy it again")
    return content


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    shards, files = manifest.get("shards"), manifest.get("files")
    if not isinstance(shards, list) or not isinstance(files, dict) or not isinstance(manifest.get("counts", {}), dict):
        return False
    pairs = [(s.get("name"), s.get("sha256")) if isinstance(s, dict) else (None, None) for s in shards]
    pairs += files.items()
    return bool(pairs) and all(
        isinstance(name, str) and not bad_name(name) and isinstance(sha256, str) for name, sha256 in pairs
    )


class OurShards:
    """Shards of a manifest. Each is hashed in full before its first sample, then read from the same open file.

    A shard in the folder that the manifest does not list is a unit too: it is reported, not read.
    """

    def __init__(self, folder: Location, manifest: Mapping[str, Any], *, only: str | None = None) -> None:
        self._folder = folder
        self._sha256 = {str(shard["name"]): str(shard["sha256"]) for shard in manifest["shards"]}
        there = {name for name in _names(folder) if name.endswith(SUFFIXES) and name[0] != "."}
        names = sorted(there | self._sha256.keys()) if only is None else [only]
        self.units = tuple(Unit(name) for name in names)

    def raw_images(self, unit: Unit) -> Iterator[RawImage | Damaged]:
        """Images of a shard whose SHA-256 matches the manifest."""
        sha256 = self._sha256.get(unit.name)
        if sha256 is None:
            yield Damaged(unit.name, "", "not listed in manifest.json")
        else:
            found = read_shard(self._folder / unit.name, unit.name, sha256=sha256, patient_of=_subject)
            for one in found:
                # A dark image is dark on purpose: what `generate` writes in 16 bits has 16.
                yield one if isinstance(one, Damaged) else replace(one, is_full_range=True)

    def digest_of(self, unit: Unit) -> str:
        """Digest of the manifest's SHA-256 and the file's size and time: a shard damaged later is read again."""
        return _digest(self._sha256.get(unit.name, ""), stat_digest(self._folder, [unit.name]))

    def content_of(self, unit: Unit) -> str:
        """The manifest's SHA-256; empty for a shard it does not list."""
        return self._sha256.get(unit.name, "")


class FileSet:
    """An unpacked DICOM file-set, checked against the manifest; each image has a line in metadata.jsonl."""

    def __init__(self, folder: Location, manifest: Mapping[str, Any]) -> None:
        self._folder = folder
        self._sha256: dict[str, str] = dict(manifest["files"])
        self.units = file_units(
            name for name in self._sha256 if name.startswith(f"{FILE_SET}/") and not name.endswith("/DICOMDIR")
        )
        self._rows, self._fault = self._read_metadata()

    def raw_images(self, unit: Unit) -> Iterator[RawImage | Damaged]:
        """Images whose SHA-256 matches the manifest; without metadata.jsonl, only their headers describe them."""
        if self._fault and unit == self.units[0]:
            yield Damaged(unit.name, METADATA, self._fault)
        for radiograph in read_files(self._folder, unit.files, unit.name, find_row=self._rows.find, check=self._key):
            yield radiograph if isinstance(radiograph, Damaged) else _with_members(radiograph)

    def digest_of(self, unit: Unit) -> str:
        """Digest of the manifest's SHA-256 of the files and the metadata, and of the files' sizes and times."""
        return _digest(self.content_of(unit), stat_digest(self._folder, [*unit.files, METADATA]))

    def content_of(self, unit: Unit) -> str:
        """Digest of the manifest's SHA-256 of the files and the metadata."""
        return _digest(*(self._sha256[name] for name in unit.files), self._sha256.get(METADATA, ""))

    def _key(self, name: str, content: bytes) -> str:
        if hashlib.sha256(content).hexdigest() != self._sha256[name]:
            raise UnreadableError(CHANGED)
        return key_of_ours(content)

    def _read_metadata(self) -> tuple[ImageRows, str]:
        path = self._folder / METADATA
        try:
            if not has_sha256(path, self._sha256.get(METADATA)):
                return ImageRows("key", []), CHANGED if path.exists() else "missing"
            return ImageRows("key", (_row(line, record) for line, record in read_records(path, []))), ""
        except (OSError, ReportsError) as error:
            if isinstance(path, Address) and isinstance(error, OSError):
                raise unreachable(path, error) from None
            return ImageRows("key", []), "cannot be read"


def _names(folder: Location) -> Iterable[str]:
    if isinstance(folder, Address):
        try:
            return folder.sizes()
        except OSError as error:
            raise unreachable(folder, error) from None
    return [path.name for path in folder.iterdir()]


def _digest(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _row(line: int, record: Mapping[str, Any] | str) -> Row | Unread:
    return Unread(line, record) if isinstance(record, str) else Row(line, record)


# What a line of metadata.jsonl has beside the JSON of its image.
_OF_THE_LINE = frozenset({"key", "text", "path", "sop_instance_uid"})


def _with_members(radiograph: RawImage) -> RawImage:
    """The image with its line of metadata.jsonl as members, as in a shard, so that they go where the image goes."""
    members = dict(radiograph.members)
    if radiograph.row is not None:
        record = {name: value for name, value in radiograph.row.record.items() if name not in _OF_THE_LINE}
        members["json"] = stable_json(record)
        if isinstance(text := radiograph.row.record.get("text"), str):
            members["txt"] = text.encode()
    return replace(radiograph, patient=_subject(radiograph.key), members=members)


def _subject(key: str) -> str:
    """The synthetic patient of a sample key, shared by all images of one report."""
    return key.rpartition("-")[0]
