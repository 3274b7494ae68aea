"""The output folder while a data set grows: plan first, shards as they finish, manifest last.

.cxrsynth/plan.json            what this folder is being filled with
.cxrsynth/cxr-000000.json      record of a shard: hash, counts; written before the shard gets its name
cxr-000000.tar                 there means finished
manifest.json                  there means the data set is complete; .cxrsynth is then removed
"""

import fcntl
import json
import shutil
from pathlib import Path
from typing import IO, Any

from cxrsynth.errors import ShardError
from cxrsynth.runtime.files import file_sha256, stable_json, write_atomically, writing_failed
from cxrsynth.shards.plan import plan_differences, shard_name
from cxrsynth.shards.tar import ShardWriter

MANIFEST = "manifest.json"
_STATE = ".cxrsynth"


class OutputFolder:
    """One data set's folder. All paths a run touches in it are named here; errors name it as the value of `option`."""

    def __init__(self, path: Path, *, option: str = "--out") -> None:
        self.path = path
        self._named = f"{option} {path}"
        self.state = path / _STATE
        self._lock: IO[str] | None = None

    def check(self, plan: dict[str, Any]) -> bool:
        """Refuse a folder that holds something else; True if this plan is already complete there.

        Raises:
            ShardError: for a foreign non-empty folder, another plan, a file in the way, an unreadable folder.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ShardError(f"{self._named}: is a file, expected a folder")
        try:
            names = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        except OSError as error:
            raise ShardError(f"{self._named}: cannot be read ({error.strerror})") from None
        known = self._known_plan() if self._has_begun(names) else None
        if known is None:
            # Only beside our state: the start removes them, and elsewhere they are somebody's.
            if names - {_STATE} - (_partials(names) if _STATE in names else set()):
                raise ShardError(
                    f"{self._named}: not empty, and not a data set cxrsynth was writing\n  choose a new or empty folder"
                )
            return False
        differences = plan_differences(known, plan)
        if differences:
            raise ShardError(
                f"{self._named}: holds a data set of another plan\n  "
                + "\n  ".join(differences)
                + "\n  choose a new folder, or run the command that started this one"
            )
        return (self.path / MANIFEST).exists()

    def _has_begun(self, names: set[str]) -> bool:
        """Whether there is any shard: a run that failed before its first binds nobody to its plan."""
        shards = any(name.startswith("cxr-") for name in names)
        return MANIFEST in names or shards or any(self.state.glob("cxr-*.json"))

    def start(self, plan: dict[str, Any]) -> None:
        """Make the folder, take its lock and write the plan down. Raises ShardError if that cannot be done."""
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            self._lock = (self.state / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.drop_leftovers()
            write_atomically(self.state / "plan.json", stable_json(plan))
        except BlockingIOError:
            raise ShardError(f"{self._named}: another run is writing there\n  wait for it, or stop it") from None
        except OSError as error:
            raise writing_failed(self.path, error) from None

    def drop_leftovers(self) -> None:
        """Remove what an interrupted run was writing."""
        for leftover in [*self.path.glob(".*.partial"), *self.state.glob(".*.partial")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def is_finished(self, index: int) -> bool:
        """Whether a shard is whole: it has its name, a record, and the bytes the record tells of."""
        path, record = self.path / shard_name(index), self.record(index)
        return record is not None and file_sha256(path) == str(record["sha256"])

    def record(self, index: int) -> dict[str, Any] | None:
        """What was written down about a shard, or None."""
        path = self.state / f"{shard_name(index)}.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None  # absent or damaged: the shard is made again
        whole = isinstance(record, dict) and isinstance(record.get("sha256"), str) and "samples" in record
        return record if whole else None

    def forget_shards(self) -> None:
        """Have all shards made again."""
        for path in [*self.state.glob("cxr-*.json"), *self.path.glob("cxr-*.tar")]:
            path.unlink()

    def writer(self, index: int) -> ShardWriter:
        """A writer for one shard."""
        return ShardWriter(self.path / shard_name(index))

    def drop_partial(self, index: int) -> None:
        """Remove what there is of a shard that was not published."""
        (self.path / f".{shard_name(index)}.partial").unlink(missing_ok=True)

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
        """Hash again what the manifest of a complete set lists. Raises ShardError naming what is missing or changed."""
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            listed = {shard["name"]: shard["sha256"] for shard in manifest["shards"]} | manifest["files"]
        except (OSError, ValueError, KeyError, TypeError):
            raise _not_ours(self.path / MANIFEST) from None
        damaged = [name for name, sha256 in listed.items() if file_sha256(self.path / name) != sha256]
        if damaged:
            raise ShardError(
                f"{self._named}: {len(damaged)} of {len(listed)} files are missing or not as the manifest says:"
                f" {', '.join(damaged[:3])}{' ...' if len(damaged) > 3 else ''}\n"
                "  run the command with a new folder: it gives the same bytes again"
            )

    def clean(self, *, drop_shards: bool) -> None:
        """Drop the state folder of a complete set, and the tars where they were only a stage."""
        if drop_shards:
            for path in self.path.glob("cxr-*.tar"):
                path.unlink()
        shutil.rmtree(self.state, ignore_errors=True)

    def unlock(self) -> None:
        """Let another run write here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _known_plan(self) -> dict[str, Any] | None:
        for path, part in ((self.path / MANIFEST, "plan"), (self.state / "plan.json", None)):
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


def _not_ours(path: Path) -> ShardError:
    return ShardError(f"{path}: not a file cxrsynth wrote\n  choose a new or empty folder")


def _partials(names: set[str]) -> set[str]:
    """What an interrupted run was writing."""
    return {name for name in names if name.startswith(".") and name.endswith(".partial")}
