"""What is written once all shards are finished: rejected rows, id map, preview, card, manifest."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cxrsynth import console
from cxrsynth.console import counted
from cxrsynth.errors import ReportsError, ShardError
from cxrsynth.generation.id_map import write_id_map
from cxrsynth.generation.plan import GenerateRun
from cxrsynth.generation.rows import Rows
from cxrsynth.runtime.files import file_sha256, folder_atomically, open_atomically, write_atomically
from cxrsynth.shards.card import contact_sheet, dataset_card
from cxrsynth.shards.encode import decode_member
from cxrsynth.shards.folder import CARD, FILE_SET, METADATA, PREVIEW, REJECTED, OutputFolder
from cxrsynth.shards.plan import shard_name
from cxrsynth.shards.tar import read_members

_PREVIEW_IMAGES = 24


def finish_dataset(run: GenerateRun, folder: OutputFolder, rows: Rows, *, shards: int) -> None:
    """Complete the folder; the manifest comes last and declares it complete."""
    try:
        _finish(run, folder, rows, shards=shards)
    except BaseException:
        folder.sweep()
        raise


def _finish(run: GenerateRun, folder: OutputFolder, rows: Rows, *, shards: int) -> None:
    _check_table(run, folder)
    records = [_record(folder, index) for index in range(shards)]
    _write_rejected(folder, rows)
    write_id_map(run, rows)
    write_atomically(folder.path / PREVIEW, contact_sheet(_first_images(folder, shards)))
    files = _unpack(run, folder, shards=shards) if run.settings.shards.unpacked else {}
    manifest = {
        "synthetic": True,
        "note": "Synthetic images made by a generative model, of no patient. Not for diagnosis.",
        "plan": run.plan,
        "counts": {
            "reports": rows.usable,
            "rejected": rows.rejected,
            "samples": sum(record["samples"] for record in records),
        },
        "shards": [] if files else [{k: r[k] for k in ("name", "sha256", "bytes", "samples")} for r in records],
        "files": files,
        "sanitized": _total(records, "sanitized"),
        "prompts_truncated": sum(record["prompts_truncated"] for record in records),
        "reports_not_in_english": sum(record["reports_not_in_english"] for record in records),
        "label_contradictions": _total(records, "label_contradictions"),
        "unsupported_findings": _total(records, "unsupported_findings"),
    }
    write_atomically(folder.path / CARD, dataset_card(manifest))
    folder.finish(manifest)
    _say_unread(manifest)
    folder.clean(drop_shards=run.settings.shards.unpacked)


def _say_unread(manifest: dict[str, Any]) -> None:
    """Warn of reports whose findings could not be read."""
    unread, reports = manifest["reports_not_in_english"], manifest["counts"]["reports"]
    if unread:
        console.warn(
            f"{unread:,} of {counted(reports, 'report')} {'is' if unread == 1 else 'are'} not in English: no findings"
            " were read; give label columns"
        )


def _check_table(run: GenerateRun, folder: OutputFolder) -> None:
    """Raise ReportsError if the table has changed since the plan was made: its rows may have been read in between."""
    if not run.is_table_unchanged():
        folder.forget_shards()
        raise ReportsError(
            f"{run.settings.reports}: changed during the run; images may show rows other than those the data set"
            " would list\n"
            "  all shards will be made again: restore the table and run the same command, or use a new --out"
        )


def _record(folder: OutputFolder, index: int) -> dict[str, Any]:
    record = folder.record(index)
    if record is None or not (folder.path / shard_name(index)).exists():
        raise ShardError(f"{folder.path / shard_name(index)}: missing\n  run the same command again to make it")
    return record


def _total(records: list[dict[str, Any]], name: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for record in records:
        total.update(record[name])
    return dict(total)


def _write_rejected(folder: OutputFolder, rows: Rows) -> None:
    """Write rejected.csv: line and reason of each rejected row, no text and no id."""
    with open_atomically(folder.path / REJECTED) as raw:
        file = io.TextIOWrapper(raw, newline="", encoding="utf-8")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["line", "reason"])
        writer.writerows([row.line, row.reason] for row in rows.rejected_rows())
        file.detach()  # flushes


def _members(folder: OutputFolder, shards: int) -> Iterator[tuple[str, bytes]]:
    for index in range(shards):
        yield from read_members(folder.path / shard_name(index))


def _first_images(folder: OutputFolder, shards: int) -> Iterator[Any]:
    images = (decode_member(name, content) for name, content in _members(folder, shards))
    return islice((image for image in images if image is not None), _PREVIEW_IMAGES)


def _unpack(run: GenerateRun, folder: OutputFolder, *, shards: int) -> dict[str, str]:
    """Write a DICOM file-set with DICOMDIR, and all JSON members as lines; return path -> SHA-256."""
    from cxrsynth.shards.file_set import write_file_set

    target = folder.path / FILE_SET
    with folder_atomically(target) as partial:
        write_file_set(
            (content for name, content in _members(folder, shards) if name.endswith(".dcm")),
            partial,
            uid_seed=run.identity.seed,
        )
    with open_atomically(folder.path / METADATA) as file:
        for row in _metadata_rows(folder, shards):
            file.write((json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n").encode())
    return _hashes(folder.path, [folder.path / METADATA, *(p for p in sorted(target.rglob("*")) if p.is_file())])


def _metadata_rows(folder: OutputFolder, shards: int) -> Iterator[dict[str, Any]]:
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
