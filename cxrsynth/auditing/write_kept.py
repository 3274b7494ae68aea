"""The images an audit kept, written again: members byte for byte unchanged, in new shards with a new manifest."""

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from PIL import Image

from cxrsynth import __version__
from cxrsynth.address import Location, refuse_address
from cxrsynth.auditing.score_table import decisions_csv, write_csv
from cxrsynth.errors import ShardError
from cxrsynth.images.image import Damaged, Radiograph
from cxrsynth.runtime.files import stable_json
from cxrsynth.shards.card import contact_sheet, kept_card
from cxrsynth.shards.folder import CARD, KEYS, MANIFEST, PREVIEW, REJECTED, STATE, OutputFolder
from cxrsynth.shards.sample import fit_keys

_PREVIEW_IMAGES, _PREVIEW_SIDE = 24, 192
# Of the input's manifest, what tells how its images came about.
_OF_THE_SOURCE = ("plan", "acceptance", "audit", "source")
_FIT_MEMBER = re.compile(r"[A-Za-z0-9_.-]{1,100}")  # a name in a USTAR header


class _Unit(Protocol):
    @property
    def name(self) -> str: ...


Unit = TypeVar("Unit", bound=_Unit)


class Readable(Protocol[Unit]):
    """A collection as cxrsynth.images reads it: the images of a unit, their `source`, come in a fixed order."""

    @property
    def units(self) -> Sequence[Unit]: ...

    def read(self, unit: Unit, *, workers: int) -> Iterator[Radiograph | Damaged]: ...


@dataclass(frozen=True)
class Origin:
    """Where kept images come from, and by which rules.

    `path` is the input, never written to. `source` identifies its content, not its location (kind, digest); `manifest`
    is the input's own, if it has one. `rules` and `audit` are JSON; equal ones give equal bytes.
    """

    path: Location
    source: Mapping[str, Any]
    rules: Mapping[str, Any]
    audit: Mapping[str, Any] = field(repr=False)
    manifest: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Kept:
    """What the folder holds afterwards."""

    samples: int
    rejected: int
    shards: int
    renamed: int
    already_complete: bool = False


def root_of(path: Location) -> Location:
    """The folder of an input, which may be given by its manifest."""
    return path.parent if path.name == MANIFEST else path


def lies_inside(out: Path, path: Location) -> bool:
    """Whether a folder of this machine lies inside an input."""
    root = root_of(path)
    return isinstance(root, Path) and out.resolve().is_relative_to(root.resolve())


def refuse_target(out: Path, path: Location) -> None:
    """Refuse a folder that kept images cannot go to, before hours of scoring.

    Raises:
        ShardError: if `out` is the input at `path`, lies inside it, is a file, or holds other files than cxrsynth's.
    """
    refuse_address(out, f"--write-kept {out}")
    if lies_inside(out, path):
        raise ShardError(f"--write-kept {out}: lies inside {path}, which is never written to\n  choose another folder")
    if out.exists() and not out.is_dir():
        raise ShardError(f"--write-kept {out}: is a file, expected a folder")
    if out.exists() and any(out.iterdir()) and not ((out / STATE).exists() or (out / MANIFEST).exists()):
        raise ShardError(
            f"--write-kept {out}: not empty, and not a data set cxrsynth was writing\n  choose a new or empty folder"
        )


def write_kept(
    collection: Readable[Unit],
    decided: Any,
    out: Path,
    *,
    origin: Origin,
    size: int = 1000,
    workers: int = 1,
    advance: Callable[[int], object] = lambda radiographs: None,
) -> Kept:
    """Write the images whose row says `kept` into `out`, resuming an earlier run of the same plan.

    Args:
        collection: the input, read again; units without kept images are skipped.
        decided: pyarrow Table with `key`, `source`, `kept`, `reasons` of every image, in the collection's order; a
            column `sha256`, if there is one, is compared with the images.
        out: a new or empty folder, or one where this plan was started.
        origin: what the manifest says about input and audit.
        size: images in a shard.
        workers: threads that decode.
        advance: called with the number of images written, or found written.

    Raises:
        ShardError: for an `out` that `refuse_target` refuses or that holds another plan, a full disk, or an input that
            no longer holds what was audited.
    """
    refuse_target(out, origin.path)
    kept = decided.filter(decided["kept"])
    names = fit_keys(kept["key"].to_pylist())
    plan = _plan(decided, origin, size=size)
    done = Kept(
        samples=kept.num_rows,
        rejected=decided.num_rows - kept.num_rows,
        shards=-(-kept.num_rows // size),
        renamed=sum(old != new for old, new in names.items()),
    )
    folder = OutputFolder(out, option="--write-kept")
    if folder.check(plan):
        folder.clean(folder.verify())
        return replace(done, already_complete=True)
    folder.start(plan)
    try:
        radiographs = _KeptImages(collection, kept, origin.path, size=size, workers=workers)
        preview = _write_shards(radiographs, folder, names, advance)
        _finish(folder, decided, names, _manifest(folder, plan, origin, done), preview)
    except OSError as error:
        raise folder.failure(error) from None
    finally:
        folder.unlock()
    return done


def _plan(decided: Any, origin: Origin, *, size: int) -> dict[str, Any]:
    """The identity of the kept set: input, rules, each decision, and what the audit found."""
    columns = [name for name in ("key", "source", "kept", "reasons", "sha256") if name in decided.column_names]
    decisions = hashlib.sha256(decisions_csv(decided, columns)).hexdigest()
    return {
        "source": dict(origin.source),
        "rules": dict(origin.rules),
        "decisions": decisions,
        "audit": hashlib.sha256(stable_json(dict(origin.audit))).hexdigest(),
        "shards": {"size": size},
        "versions": {"cxrsynth": __version__},
    }


class _KeptImages:
    """The kept images of a collection, read again and compared with what was audited."""

    def __init__(self, collection: Readable[Any], kept: Any, path: Location, *, size: int, workers: int) -> None:
        self.keys: list[str] = kept["key"].to_pylist()
        self.sources: list[str] = kept["source"].to_pylist()
        self.size = size
        self._hashes = kept["sha256"].to_pylist() if "sha256" in kept.column_names else None
        self._collection, self._path, self._workers = collection, path, workers

    @property
    def shards(self) -> int:
        return -(-len(self.keys) // self.size)

    def read(self, places: set[int]) -> Iterator[tuple[int, Radiograph]]:
        """Each image of `places` among the kept ones, in order. Raises ShardError for one that has changed."""
        ahead = iter(sorted(places))
        sources = {self.sources[place] for place in places}
        wanted = {self.keys[place] for place in places}
        for unit in self._collection.units:
            if unit.name in sources:
                for radiograph in self._radiographs(unit):
                    if radiograph.key in wanted:
                        place = next(ahead, None)
                        if place is None or radiograph.key != self.keys[place] or not self._is_same(place, radiograph):
                            raise self._changed(place)
                        yield place, radiograph
        missing = next(ahead, None)
        if missing is not None:
            raise self._changed(missing)

    def _radiographs(self, unit: Any) -> Iterator[Radiograph]:
        try:
            for radiograph in self._collection.read(unit, workers=self._workers):
                if isinstance(radiograph, Radiograph):
                    yield radiograph
        except OSError as error:
            raise ShardError(f"{self._path}: {unit.name}: cannot be read ({error.strerror})") from None

    def _is_same(self, place: int, radiograph: Radiograph) -> bool:
        return bool(radiograph.members) and (self._hashes is None or self._hashes[place] == radiograph.sha256)

    def _changed(self, place: int | None) -> ShardError:
        which = "more images than were audited" if place is None else f"{self.sources[place]}: image {self.keys[place]}"
        return ShardError(
            f"{self._path}: {which}: changed since it was audited\n  audit the input again, and write into a new folder"
        )


def _write_shards(
    radiographs: _KeptImages, folder: OutputFolder, names: Mapping[str, str], advance: Callable[[int], object]
) -> list[npt.NDArray[np.float32]]:
    """Write the unfinished shards; returns small pictures of the first images."""
    preview: list[npt.NDArray[np.float32]] = []
    places = range(len(radiographs.keys))
    finished = {index for index in range(radiographs.shards) if folder.is_finished(index)}
    needed = {place for place in places if place < _PREVIEW_IMAGES or place // radiographs.size not in finished}
    advance(sum(place // radiographs.size in finished for place in places))
    for index, group in groupby(
        _previewed(radiographs.read(needed), preview), key=lambda one: one[0] // radiographs.size
    ):
        if index in finished:
            continue
        try:
            with folder.writer(index) as writer:
                for place, radiograph in group:
                    writer.write(names[radiograph.key], _members(radiograph, names[radiograph.key]))
                    advance(1)
                    if place + 1 in (len(places), (index + 1) * radiographs.size):
                        break  # publish before waiting for the first image of the next shard: reading it may fail
                folder.publish(index, writer, {"samples": place + 1 - index * radiographs.size})
        except BaseException:
            folder.drop_partial(index)  # Ctrl-C may come between opening the file and entering the context
            raise
    return preview


def _previewed(
    radiographs: Iterator[tuple[int, Radiograph]], preview: list[npt.NDArray[np.float32]]
) -> Iterator[tuple[int, Radiograph]]:
    """Pass images on, keeping a small picture of the first ones: full images would fill the memory."""
    for place, radiograph in radiographs:
        if place < _PREVIEW_IMAGES:
            picture = Image.fromarray(radiograph.pixels).resize((_PREVIEW_SIDE, _PREVIEW_SIDE), Image.Resampling.BOX)
            preview.append(np.asarray(picture).clip(0, 1))
        yield place, radiograph


def _members(radiograph: Radiograph, name: str) -> dict[str, bytes]:
    for extension in radiograph.members:
        if not _FIT_MEMBER.fullmatch(f"{name}.{extension}"):
            raise ShardError(
                f"{radiograph.source}: image {radiograph.key}: member {extension!r} cannot be named in a shard\n"
                "  expected: at most 100 characters of [A-Za-z0-9_.-] with the key; rename it in the input"
            )
    return dict(radiograph.members)


def _manifest(folder: OutputFolder, plan: dict[str, Any], origin: Origin, done: Kept) -> dict[str, Any]:
    """The manifest, except for the files next to the shards."""
    records = folder.records(done.shards)
    theirs = origin.manifest or {}
    return {
        **{name: theirs[name] for name in ("synthetic", "note") if name in theirs},
        "plan": plan,
        "counts": {"samples": done.samples, "rejected": done.rejected, "renamed": done.renamed},
        "shards": [
            {name: (record or {})[name] for name in ("name", "sha256", "bytes", "samples")} for record in records
        ],
        "audit": dict(origin.audit),
        "source": dict(origin.source) | {name: theirs[name] for name in _OF_THE_SOURCE if name in theirs},
    }


def _finish(
    folder: OutputFolder,
    decided: Any,
    names: Mapping[str, str],
    manifest: dict[str, Any],
    preview: list[npt.NDArray[np.float32]],
) -> None:
    """Lists, preview and card; the manifest comes last and declares the folder complete."""
    lists = {REJECTED: decisions_csv(decided.filter(pc.invert(decided["kept"])), ("key", "source", "reasons"))}
    renamed = {new: old for old, new in sorted(names.items()) if old != new}
    if renamed:
        with io.BytesIO() as sink:
            write_csv(sink, pa.table({"key": list(renamed), "input_key": list(renamed.values())}))
            lists[KEYS] = sink.getvalue()
    for name, content in lists.items():
        folder.write(name, content)
    if preview:
        folder.write(PREVIEW, contact_sheet(preview))
    folder.write(CARD, kept_card(manifest))
    manifest |= {"files": {name: hashlib.sha256(lists[name]).hexdigest() for name in sorted(lists)}}
    folder.finish(manifest)
    folder.clean(manifest)
