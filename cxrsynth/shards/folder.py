"""The output folder of a data set: the plan comes first, shards as they finish, the manifest last.

.cxrsynth/plan.json            what this folder is being filled with
.cxrsynth/lock                 held by a run that makes or completes the whole set
.cxrsynth/part-1-of-4.lock     held by a run that makes a part of it; several parts may be made at once
.cxrsynth/cxr-000000.tar.json  record of a shard: SHA-256, counts; written before the shard gets its name
cxr-000000.tar                 a finished shard
manifest.json                  declares the data set complete; .cxrsynth is then removed
"""

import json
import shutil
from pathlib import Path
from typing import Any

from cxrsynth.errors import ShardError
from cxrsynth.runtime.files import has_sha256, partial_path, stable_json, write_atomically
from cxrsynth.runtime.folder import LockedFolder
from cxrsynth.runtime.part_locks import PartLocks
from cxrsynth.settings import Part
from cxrsynth.shards.plan import plan_differences, shard_index, shard_name
from cxrsynth.shards.tar import ShardWriter

MANIFEST = "manifest.json"
FILE_SET, METADATA = "fileset", "metadata.jsonl"
REJECTED, KEYS, PREVIEW, CARD = "rejected.csv", "keys.csv", "preview.png", "README.md"
_STATE = ".cxrsynth"
_PLAN = "plan.json"
_WRITTEN = (
    *("cxr-*.tar", MANIFEST, FILE_SET, METADATA, REJECTED, KEYS, PREVIEW, CARD),
    *(f"{_STATE}/{_PLAN}", f"{_STATE}/cxr-*.tar.json"),
)


class OutputFolder:
    """The folder of one data set; names every path in it. Messages call it the value of `option`."""

    def __init__(self, path: Path, *, option: str = "--out") -> None:
        self.path = path
        self.state = path / _STATE
        self._folder = LockedFolder(
            path, lock=f"{_STATE}/lock", written=_WRITTEN, kept="finished shards are whole", option=option
        )
        self.name = self._folder.name
        self._parts = PartLocks(self.state, self.name)
        self.failure = self._folder.failure
        self.sweep = self._folder.sweep

    def check(self, plan: dict[str, Any], *, begun: bool = False) -> bool:
        """Refuse a folder that holds something else; True if this plan is already complete there.

        A plan binds later runs once there is any shard, or where `begun` says that a run is at work.

        Raises:
            ShardError: for a foreign non-empty folder, another plan, a file in the way, an unreadable folder.
        """
        self._folder.refuse_file()
        names = self._folder.names()
        known = self._known_plan() if begun or self._has_begun(names) else None
        if known is None:
            # Beside our state, leftovers are ours and the start removes them; elsewhere they are somebody's.
            leftovers = {path.name for path in self._folder.leftovers()} if _STATE in names else set()
            if names - {_STATE} - leftovers:
                raise ShardError(
                    f"{self.name}: not empty, and not a data set cxrsynth was writing\n  choose a new or empty folder"
                )
            return False
        differences = plan_differences(known, plan)
        if differences:
            raise ShardError(
                f"{self.name}: holds a data set of another plan\n  "
                + "\n  ".join(differences)
                + "\n  choose a new folder, or run the command that started this one"
            )
        return (self.path / MANIFEST).exists()

    def _has_begun(self, names: set[str]) -> bool:
        """Whether there is any shard: a run that failed before its first shard does not bind later runs to its plan."""
        shards = any(name.startswith("cxr-") for name in names)
        return MANIFEST in names or shards or any(self.state.glob("cxr-*.json"))

    def start(self, plan: dict[str, Any], *, part: Part | None = None) -> bool:
        """Make the folder, take its lock, or that of a part, and write down the plan; True if it is complete by now.

        Raises:
            ShardError: if that fails, or another run has begun there since it was checked.
        """
        self._folder.make()
        try:
            with self._parts.gate():
                others = bool(self._parts.running())
                if part is None:
                    self._parts.refuse_running()
                    self._folder.lock()
                else:
                    self._folder.refuse_locked()
                    self._parts.take(part)
                    self._folder.sweep(spare=lambda left: not _may_be_of(part, left))
                if self.check(plan, begun=others):
                    return True
                write_atomically(self.state / _PLAN, stable_json(plan))
        except OSError as error:
            raise self.failure(error, writing=True) from None
        return False

    def is_last(self, shards: int) -> bool:
        """At the end of a part: whether all shards are there and no other part is at work.

        If so, the folder is this run's alone; if not, it has let go of its part.
        """
        with self._parts.gate():
            if self._parts.running() or self.missing(shards):
                self._parts.release()
                return False
            self._folder.lock()
            return True

    def unlock(self) -> None:
        """Let another run write here; do nothing without a lock."""
        self._parts.release()
        self._folder.unlock()

    def missing(self, shards: int) -> list[int]:
        """Indices of the shards that are not there. Those that are there were whole once; none is hashed."""
        return [index for index in range(shards) if not self._is_there(index)]

    def _is_there(self, index: int) -> bool:
        record, path = self.record(index), self.path / shard_name(index)
        return record is not None and path.exists() and path.stat().st_size == record.get("bytes")

    def is_finished(self, index: int) -> bool:
        """Whether a shard is whole: it has its name, a record, and the bytes the record gives the SHA-256 of."""
        record = self.record(index)
        return record is not None and has_sha256(self.path / shard_name(index), record["sha256"])

    def record(self, index: int) -> dict[str, Any] | None:
        """The record of a shard; None if it is absent or damaged."""
        path = self.state / f"{shard_name(index)}.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None  # the shard is made again
        whole = isinstance(record, dict) and isinstance(record.get("sha256"), str) and "samples" in record
        return record if whole else None

    def forget_shards(self) -> None:
        """Delete all shards, so that the next run makes them again."""
        for path in [*self.state.glob("cxr-*.json"), *self.path.glob("cxr-*.tar")]:
            path.unlink()

    def writer(self, index: int) -> ShardWriter:
        """A writer for one shard."""
        return ShardWriter(self.path / shard_name(index))

    def drop_partial(self, index: int) -> None:
        """Delete a half-written shard."""
        partial_path(self.path / shard_name(index)).unlink(missing_ok=True)

    def publish(self, index: int, writer: ShardWriter, record: dict[str, Any]) -> None:
        """Close a shard, write its record, then give it its name."""
        sha256, size_bytes = writer.close()
        record = record | {"name": shard_name(index), "sha256": sha256, "bytes": size_bytes}
        write_atomically(self.state / f"{shard_name(index)}.json", stable_json(record))
        writer.publish()

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, which declares the set complete."""
        write_atomically(self.path / MANIFEST, stable_json(manifest))

    def verify(self) -> None:
        """Hash every file a complete set's manifest lists. Raises ShardError naming those missing or changed."""
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            listed = {shard["name"]: shard["sha256"] for shard in manifest["shards"]} | manifest["files"]
        except (OSError, ValueError, KeyError, TypeError):
            raise _not_ours(self.path / MANIFEST) from None
        damaged = [name for name, sha256 in listed.items() if not has_sha256(self.path / name, sha256)]
        if damaged:
            raise ShardError(
                f"{self.name}: {len(damaged)} of {len(listed)} files are missing or not as the manifest says:"
                f" {', '.join(damaged[:3])}{' ...' if len(damaged) > 3 else ''}\n"
                "  run the command with a new folder: it writes the same bytes again"
            )

    def clean(self, *, drop_shards: bool) -> None:
        """Delete the state folder of a complete set, and its tars if they were only an intermediate step."""
        if drop_shards:
            for path in self.path.glob("cxr-*.tar"):
                path.unlink()
        shutil.rmtree(self.state, ignore_errors=True)

    def _known_plan(self) -> dict[str, Any] | None:
        for path, part in ((self.path / MANIFEST, "plan"), (self.state / _PLAN, None)):
            if path.exists():
                try:
                    content = json.loads(path.read_text(encoding="utf-8"))
                    plan = content[part] if part else content
                except (OSError, ValueError, KeyError, TypeError):
                    raise _not_ours(path) from None
                if not isinstance(plan, dict):
                    raise _not_ours(path)
                return plan
        return None


def _may_be_of(part: Part, left: Path) -> bool:
    """Whether no other part of the same division writes this file."""
    index = shard_index(left.name)
    return index is None or part.has(index)


def _not_ours(path: Path) -> ShardError:
    return ShardError(f"{path}: not a file cxrsynth wrote\n  choose a new or empty folder")
