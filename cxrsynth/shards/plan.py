"""From reports to shards. The plan identifies the data set: the bytes of its shards depend on nothing else."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cxrsynth.runtime.batches import Item

_DIGITS = 16  # of a SHA-256 in the name of a record


def shard_name(index: int) -> str:
    """File name of a shard: `cxr-000000.tar`."""
    return f"cxr-{index:06d}.tar"


def record_name(index: int, sha256: str) -> str:
    """File name of the record of a shard with this digest: `cxr-000000.tar.0123456789abcdef.json`."""
    return f"{shard_name(index)}.{sha256[:_DIGITS]}.json"


def shard_index(name: str) -> int | None:
    """The number of a shard in the name of its file, its record, or either half-written; None for another file."""
    # Records of earlier versions have no digest in their name.
    found = re.fullmatch(r"\.?cxr-(\d{6,})\.tar((\.[0-9a-f]{16})?\.json)?(\.partial)?", name)
    return None if found is None else int(found[1])


def shard_count(reports: int, *, images_per_report: int, size: int) -> int:
    """Number of shards for this many usable reports."""
    return -(-reports * images_per_report // size)


def samples(reports: Iterable[Item], images_per_report: int) -> Iterator[tuple[Item, int]]:
    """Each report with each of its image indices, in table order."""
    for report in reports:
        for image_index in range(images_per_report):
            yield report, image_index


def plan_digest(plan: dict[str, Any]) -> str:
    """SHA-256 of a plan."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def plan_differences(found: dict[str, Any], wanted: dict[str, Any], *, prefix: str = "") -> list[str]:
    """One line for each setting that differs."""
    lines: list[str] = []
    for name in sorted(found.keys() | wanted.keys()):
        old, new = found.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += plan_differences(old, new, prefix=f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: {old!r} there, {new!r} now")
    return lines


def as_generated(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a manifest records of the set that `generate` made, from which images may since have been kept by audits."""
    while "source" in manifest:
        manifest = manifest["source"]
    return manifest
