"""The output folder of a data set: the plan comes first, shards as they finish, the manifest last.

.cxrsynth/plan.json            what this folder is being filled with
.cxrsynth/lock                 held by a run that makes or completes the whole set
.cxrsynth/part-1-of-4.lock     held by a run that makes a part of it; several parts may be made at once
.cxrsynth/cxr-000000.tar.0123456789abcdef.json
                               record of a shard: SHA-256, counts; written before the shard gets its name
cxr-000000.tar                 a finished shard
manifest.json                  declares the data set complete; .cxrsynth is then removed

A prefix of an object store holds the same, without locks. There, runs that make the same shard on different hardware
may replace each other's: each leaves a record of its own, named after the digest, so that whichever shard stays has its
record, and only a shard with several records must be hashed to know which one.
"""

import json
from collections.abc import Iterator, Mapping, Set
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from cxrsynth.address import Address, Location
from cxrsynth.errors import ShardError
from cxrsynth.runtime.files import stable_json
from cxrsynth.settings import Part
from cxrsynth.shards.place import LocalPlace, Place, StorePlace
from cxrsynth.shards.plan import plan_differences, plan_digest, record_name, shard_index, shard_name
from cxrsynth.shards.tar import ShardWriter, read_members

MANIFEST = "manifest.json"
FILE_SET, METADATA = "fileset", "metadata.jsonl"
REJECTED, NOT_ACCEPTED, KEYS = "rejected.csv", "not_accepted.csv", "keys.csv"
PREVIEW, CARD = "preview.png", "README.md"
STATE = ".cxrsynth"
_PLAN = f"{STATE}/plan.json"
_WRITTEN = (
    *("cxr-*.tar", MANIFEST, FILE_SET, METADATA, REJECTED, NOT_ACCEPTED, KEYS, PREVIEW, CARD),
    *(_PLAN, f"{STATE}/cxr-*.json"),
)


class OutputFolder:
    """The folder of one data set, or its prefix in an object store; names every file in it.

    Messages call it the value of `option`.
    """

    def __init__(self, location: Location, *, option: str = "--out") -> None:
        self.location = location
        self._place: Place = (
            StorePlace(location, option=option)
            if isinstance(location, Address)
            else LocalPlace(location, option=option, state=STATE, written=_WRITTEN)
        )
        self._plan: dict[str, Any] | None = None
        self.name = self._place.name
        self.failure = self._place.failure
        self.sweep = self._place.sweep
        self.unlock = self._place.leave
        self.write = self._place.write
        # As it is locked; None for an object store.
        self.locked = self._place.locked if isinstance(self._place, LocalPlace) else None

    @property
    def path(self) -> Path:
        """The folder. Raises TypeError if it is none of this machine."""
        if isinstance(self.location, Address):
            raise TypeError(f"{self.location} is no folder of this machine")
        return self.location

    def check(self, plan: dict[str, Any], *, begun: bool = False) -> bool:
        """Refuse a folder that holds something else; True if this plan is already complete there.

        A plan binds later runs once there is any shard, or where `begun` says that a run is at work.

        Raises:
            ShardError: for a foreign non-empty folder, another plan, a file in the way, an unreadable folder.
        """
        self._plan = plan
        self._place.refuse_file()
        names = self._place.sizes().keys()
        known = self._known_plan() if begun or self._has_begun(names) else None
        if known is None:
            # Beside our state, leftovers are ours and the start removes them; elsewhere they are somebody's.
            leftovers = self._place.leftovers(names) if STATE in names else set()
            if names - {STATE} - leftovers:
                raise ShardError(
                    f"{self.name}: not empty, and not a data set cxrsynth was writing\n  choose a new or empty folder"
                )
            return False
        self._refuse_other(known, plan)
        return MANIFEST in names

    def begun_plan(self) -> dict[str, Any] | None:
        """The plan that binds later runs; None as long as there is none.

        Raises:
            ShardError: for a file in the way, an unreadable folder, a damaged plan.
        """
        self._place.refuse_file()
        return self._known_plan() if self._has_begun(self._place.sizes().keys()) else None

    def _refuse_other(self, known: dict[str, Any], plan: dict[str, Any]) -> None:
        differences = plan_differences(known, plan)
        if differences:
            raise ShardError(
                f"{self.name}: holds a data set of another plan\n  "
                + "\n  ".join(differences)
                + _about_precision(differences, known)
                + "\n  choose a new folder, or run the command that started this one"
            )

    def _has_begun(self, names: Set[str]) -> bool:
        """Whether there is any shard: a run that failed before its first shard does not bind later runs to its plan."""
        shards = any(name.startswith("cxr-") for name in names)
        return MANIFEST in names or shards or any(name.startswith("cxr-") for name in self._place.sizes(STATE))

    def start(self, plan: dict[str, Any], *, part: Part | None = None) -> bool:
        """Make the folder, take its lock, or that of a part, and write down the plan; True if it is complete by now.

        Raises:
            ShardError: if that fails, or another run has begun there since it was checked.
        """
        try:
            with self._place.starting(part) as others:
                if self.check(plan, begun=others):
                    return True
                self.write(_PLAN, stable_json(plan))
        except OSError as error:
            raise self.failure(error, writing=True) from None
        return False

    def is_last(self, shards: int) -> bool:
        """At the end of a part: whether all shards are there and no other part is at work.

        If so, the folder is this run's alone; if not, it has let go of its part. An object store has no locks: several
        parts that end together may all be the last there.
        """
        return self._place.is_last(lambda: not self.missing(shards))

    def missing(self, shards: int) -> list[int]:
        """Indices of the shards that are not there. Those that are there were whole once.

        One is hashed only where it has several records.
        """
        sizes, records = self._place.sizes(), self._record_names()
        if MANIFEST in sizes:
            return []

        def is_there(index: int) -> bool:
            name = shard_name(index)
            record = self._record(index, records.get(index, [])) if name in sizes else None
            return record is not None and record.get("bytes") == sizes[name]

        return [index for index in range(shards) if not is_there(index)]

    def is_finished(self, index: int) -> bool:
        """Whether a shard is whole: it has its name, a record, and the bytes the record gives the SHA-256 of.

        In a set that others have completed in the meantime, every shard is.
        """
        if MANIFEST in self._place.names():
            return True
        records = self._records(self._record_names().get(index, []))
        return any(self._is_ours(one) and self._place.has(shard_name(index), one["sha256"]) for one in records)

    def records(self, shards: int) -> Iterator[dict[str, Any] | None]:
        """The record of each shard, read as it is asked for.

        None if it is absent or damaged, or of another plan than was checked last.
        Where runs that overlapped left several, it is that of the shard which is there.
        """
        names = self._record_names()
        return (self._record(index, names.get(index, [])) for index in range(shards))

    def _record(self, index: int, names: list[str]) -> dict[str, Any] | None:
        records = self._records(names)
        if len({record["sha256"] for record in records}) > 1:
            records = [record for record in records if self._place.has(shard_name(index), record["sha256"])]
        return next(filter(self._is_ours, records), None)

    def _records(self, names: list[str]) -> list[dict[str, Any]]:
        """What can be read of these records, whatever plan they are of."""
        records = []
        for name in names:
            try:
                record = json.loads(self._place.read(f"{STATE}/{name}"))
            except (FileNotFoundError, ValueError, RecursionError):
                continue  # the shard is made again
            if isinstance(record, dict) and isinstance(record.get("sha256"), str) and "samples" in record:
                records.append(record)
        return records

    def _is_ours(self, record: Mapping[str, Any]) -> bool:
        digest = None if self._plan is None else plan_digest(self._plan)
        return bool(record.get("plan", digest) == digest)

    def _record_names(self) -> dict[int, list[str]]:
        """Names of the records of each shard: one, unless runs overlapped in a place without locks."""
        found: dict[int, list[str]] = {}
        for name in sorted(self._place.names(STATE)):
            index = shard_index(name)
            if index is not None and name.startswith("cxr-"):
                found.setdefault(index, []).append(name)
        return found

    def writer(self, index: int) -> ShardWriter:
        """A writer for one shard."""
        return ShardWriter(self._place.staged(shard_name(index)))

    def drop_partial(self, index: int) -> None:
        """Delete a half-written shard."""
        self._place.staged(shard_name(index)).unlink(missing_ok=True)

    def publish(self, index: int, writer: ShardWriter, record: dict[str, Any]) -> None:
        """Close a shard, write its record, then give it its name.

        One that another run has finished in the meantime stays. In a store nothing else keeps two runs apart.

        Raises:
            ShardError: if a run of another plan has begun there in the meantime.
        """
        sha256, size_bytes = writer.close()
        assert self._plan is not None
        known = self._known_plan()
        if known is not None:
            self._refuse_other(known, self._plan)
        if self.is_finished(index):
            self.drop_partial(index)
            return
        name = shard_name(index)
        record = record | {"name": name, "sha256": sha256, "bytes": size_bytes, "plan": plan_digest(self._plan)}
        self.write(f"{STATE}/{record_name(index, sha256)}", stable_json(record))
        self._place.put(name)

    def members(self, index: int) -> Iterator[tuple[str, bytes]]:
        """Names and contents of a shard's members, in order."""
        with self._place.open(shard_name(index)) as file:
            yield from read_members(file)

    def new_file(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A file to write, which appears once the context ends without an error."""
        return self._place.new_file(name)

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, which declares the set complete."""
        self.write(MANIFEST, stable_json(manifest))

    def verify(self) -> dict[str, Any]:
        """Hash every file a complete set's manifest lists, and return it.

        Raises:
            ShardError: naming the files that are missing or changed, or one that cannot be read.
        """
        try:
            manifest = json.loads(self._place.read(MANIFEST))
            listed = {shard["name"]: shard["sha256"] for shard in manifest["shards"]} | manifest["files"]
            damaged = [name for name, sha256 in listed.items() if not self._place.has(name, sha256)]
        except OSError as error:
            raise self.failure(error) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._not_ours(MANIFEST) from None
        if damaged:
            raise ShardError(
                f"{self.name}: {len(damaged)} of {len(listed)} files are missing or not as the manifest says:"
                f" {', '.join(damaged[:3])}{' ...' if len(damaged) > 3 else ''}\n"
                "  run the command with a new folder: it writes the same bytes again"
            )
        return dict(manifest)

    def clean(self, manifest: dict[str, Any]) -> None:
        """Delete the state folder of a complete set, what killed runs left, and shards that the manifest does not list.

        These are empty, or were only a step towards a file-set. Another file of such a name has no record, and stays.
        """
        listed = {shard["name"] for shard in manifest["shards"]}
        unlisted = {shard_name(index) for index in self._record_names()} - listed
        self._place.delete(unlisted & self._place.names())
        self._place.delete_folder(STATE)
        self._place.delete_unfinished()

    def _known_plan(self) -> dict[str, Any] | None:
        for name, part in ((MANIFEST, "plan"), (_PLAN, None)):
            try:
                content = json.loads(self._place.read(name))
                plan = content[part] if part else content
            except FileNotFoundError:
                continue
            except IsADirectoryError:
                raise self._not_ours(name) from None
            except OSError as error:
                raise self.failure(error) from None  # says nothing of what is in it
            except (ValueError, KeyError, TypeError, RecursionError):
                raise self._not_ours(name) from None
            if not isinstance(plan, dict):
                raise self._not_ours(name)
            return plan
        return None

    def _not_ours(self, name: str) -> ShardError:
        return ShardError(f"{self.location / name}: not a file cxrsynth wrote\n  choose a new or empty folder")


def _about_precision(differences: list[str], known: Mapping[str, Any]) -> str:
    """Parts that begin together, on machines that choose differently, cannot see each other's plan in time."""
    differing = {line.partition(":")[0] for line in differences}
    if "sampling.precision" not in differing or "sampling.device" in differing:
        return ""
    return f"\n  --precision auto depends on the machine: give all of them --precision {known['sampling']['precision']}"
