"""What is written once all shards are finished: rejected rows, id map, preview, card, manifest."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cxrsynth import console
from cxrsynth.console import counted
from cxrsynth.errors import ShardError
from cxrsynth.generation.accept_counts import NotAccepted, total_acceptance
from cxrsynth.generation.lists import write_id_map, write_rejected
from cxrsynth.generation.plan import GenerateRun
from cxrsynth.generation.rows import Rows, listed_counts
from cxrsynth.runtime.files import file_sha256, folder_atomically, open_atomically
from cxrsynth.shards.card import contact_sheet, dataset_card
from cxrsynth.shards.encode import decode_member
from cxrsynth.shards.folder import CARD, FILE_SET, METADATA, NOT_ACCEPTED, PREVIEW, OutputFolder
from cxrsynth.shards.plan import shard_name
from cxrsynth.shards.tar import SYNTHETIC_NOTE

_PREVIEW_IMAGES = 24
_NOT_RECORDED = "not recorded"  # by shards of earlier versions


def finish_dataset(run: GenerateRun, folder: OutputFolder, rows: Rows, *, shards: int) -> dict[str, Any]:
    """Complete the folder; the manifest, which is returned, comes last and declares it complete.

    Raises:
        ShardError: if a shard is missing, or no image was accepted.
    """
    try:
        return _finish(run, folder, rows, shards=shards)
    except BaseException:
        folder.sweep()
        raise


def _finish(run: GenerateRun, folder: OutputFolder, rows: Rows, *, shards: int) -> dict[str, Any]:
    with NotAccepted() as not_accepted:
        return _complete(run, folder, rows, not_accepted, shards=shards)


def _complete(
    run: GenerateRun, folder: OutputFolder, rows: Rows, not_accepted: NotAccepted, *, shards: int
) -> dict[str, Any]:
    records = [not_accepted.taken_from(record) for record in _records(folder, shards, finish=run.settings.finish)]
    samples = sum(record["samples"] for record in records)
    if not samples:
        raise ShardError(
            f"{run.settings.out}: none of {rows.usable * run.settings.images_per_report} images was accepted, so there"
            f" is nothing to share\n  images that failed, by rule: {listed_counts(not_accepted.reasons)}\n"
            "  lower the thresholds, or keep what is not accepted without --only-accepted; either needs another --out"
        )
    write_rejected(run, rows)
    write_id_map(run, rows)
    # A shard none of whose images was accepted is no part of the set: readers take a tar without members for broken.
    full = [index for index, record in enumerate(records) if record["samples"]]
    folder.write(PREVIEW, contact_sheet(_first_images(folder, full), comment=SYNTHETIC_NOTE))
    unpacked = run.settings.shards.unpacked
    files = _unpack(run, folder, full) if unpacked else {}
    listed = [{name: records[index][name] for name in ("name", "sha256", "bytes", "samples")} for index in full]
    manifest = {
        "synthetic": True,
        "note": "Synthetic images made by a generative model, of no patient. Not for diagnosis.",
        "plan": run.plan,
        "counts": {
            "reports": rows.usable,
            "rejected": rows.rejected,
            "samples": samples,
        },
        "hardware": dict(sorted(Counter(records[index].get("hardware", _NOT_RECORDED) for index in full).items())),
        "shards": [] if unpacked else listed,
        "files": files,
        "sanitized": _total(records, "sanitized"),
        "prompts_truncated": sum(record["prompts_truncated"] for record in records),
        "reports_not_in_english": sum(record["reports_not_in_english"] for record in records),
        "label_contradictions": _total(records, "label_contradictions"),
        "unsupported_findings": _total(records, "unsupported_findings"),
        "rejected_reasons": dict(rows.reasons),
        "unread_cells": dict(rows.unread),
    }
    if run.settings.accept is not None:
        manifest["acceptance"] = total_acceptance([record["acceptance"] for record in records])
        with folder.new_file(NOT_ACCEPTED) as file:
            files[NOT_ACCEPTED] = not_accepted.write(file)
    folder.write(CARD, dataset_card(manifest))
    folder.finish(manifest)
    _say_limits(manifest)
    folder.clean(manifest)
    return manifest


def _say_limits(manifest: dict[str, Any]) -> None:
    """Warn of what the images cannot show: findings not read, prompts cut, findings that the model never saw.

    And of hardware that differed: the same command gives other bytes then.
    """
    if len(made_on := manifest["hardware"]) > 1:
        named = "; ".join(f"{name}: {counted(count, 'shard')}" for name, count in made_on.items())
        console.warn(
            f"made on different hardware ({named}): the last bits of pixels depend on it, so making the set again may"
            " not give the same bytes; the manifest lists this"
        )
    if cut := manifest["prompts_truncated"]:
        console.warn(
            f"{counted(cut, 'prompt')} cut to fit the model, at the end of a sentence or word where one fits; no label"
            " says what was cut"
        )
    if unsupported := manifest["unsupported_findings"]:
        named = ", ".join(f"{name} in {counted(count, 'image')}" for name, count in sorted(unsupported.items()))
        console.say(f"requested, but never seen by the model in training: {named}")
    unread, reports = manifest["reports_not_in_english"], manifest["counts"]["reports"]
    if unread:
        console.warn(
            f"{unread:,} of {counted(reports, 'report')} {'is' if unread == 1 else 'are'} not in English: no findings"
            " were read; give label columns"
        )
    if left_out := manifest["sanitized"].get("language"):
        console.warn(
            f"{counted(left_out, 'report')} of {reports:,} in a language that de-identification does not cover: nothing"
            " of the text is used or stored"
        )


def _records(folder: OutputFolder, shards: int, *, finish: bool) -> Iterator[dict[str, Any]]:
    """The records of all shards, one at a time.

    Raises:
        ShardError: if a shard is not there, or not as long as its record says.
    """
    refuse_missing(folder, shards, finish=finish)
    for index, record in enumerate(folder.records(shards)):
        if record is None:
            raise ShardError(f"{folder.name}: the record of {shard_name(index)} is missing\n  {_to_make_it(finish)}")
        yield record


def refuse_missing(folder: OutputFolder, shards: int, *, finish: bool) -> None:
    """Raise ShardError unless all shards of a data set are there. `finish`: whether this run makes none itself."""
    if missing := missing_shards(folder, shards):
        raise ShardError(
            f"{folder.name}: {missing}\n  {_to_make_it(finish)}, or the parts (--part) that they belong to"
        )


def missing_shards(folder: OutputFolder, shards: int) -> str:
    """How many shards of a data set are missing, and the first of them; empty if all are there. Raises OSError."""
    missing = folder.missing(shards)
    if not missing:
        return ""
    names = ", ".join(shard_name(index) for index in missing[:3])
    return f"{counted(len(missing), 'shard')} of {shards} missing: {names}{' ...' if len(missing) > 3 else ''}"


def _to_make_it(finish: bool) -> str:
    return "run the command without --finish" if finish else "run the same command again"


def _total(records: list[dict[str, Any]], name: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for record in records:
        total.update(record[name])
    return dict(total)


def _members(folder: OutputFolder, shards: Sequence[int]) -> Iterator[tuple[str, bytes]]:
    for index in shards:
        yield from folder.members(index)


def _first_images(folder: OutputFolder, shards: Sequence[int]) -> Iterator[Any]:
    images = (decode_member(name, content) for name, content in _members(folder, shards))
    return islice((image for image in images if image is not None), _PREVIEW_IMAGES)


def _unpack(run: GenerateRun, folder: OutputFolder, shards: Sequence[int]) -> dict[str, str]:
    """Write a DICOM file-set with DICOMDIR, and all JSON members as lines; return path -> SHA-256."""
    from cxrsynth.shards.file_set import write_file_set

    target = folder.path / FILE_SET
    with folder_atomically(target) as partial:
        stored = write_file_set(
            (content for name, content in _members(folder, shards) if name.endswith(".dcm")),
            partial,
            uid_seed=run.identity.seed,
        )
    with open_atomically(folder.path / METADATA) as file:
        for row, one in zip(_metadata_rows(folder, shards), stored, strict=True):
            row |= {"path": f"{FILE_SET}/{one.path}", "sop_instance_uid": one.sop_instance_uid}
            file.write((json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n").encode())
    return _hashes(folder.path, [folder.path / METADATA, *(p for p in sorted(target.rglob("*")) if p.is_file())])


def _metadata_rows(folder: OutputFolder, shards: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The JSON member of each sample, with its key, and its text if it has any."""
    row: dict[str, Any] = {}
    for name, content in _members(folder, shards):
        key, _, extension = name.rpartition(".")
        if extension == "json":
            if row:
                yield row
            row = {"key": key} | json.loads(content)
        elif extension == "txt":
            # The members of a sample are sorted by name: its text follows its JSON.
            row["text"] = content.decode()
    if row:
        yield row


def _hashes(root: Path, paths: list[Path]) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): file_sha256(path) for path in paths}
