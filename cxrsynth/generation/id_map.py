"""The id map: a CSV of report ids and sample keys, outside the shared folder."""

import csv
import io

from cxrsynth.errors import ShardError
from cxrsynth.generation.plan import GenerateRun
from cxrsynth.generation.rows import Rows
from cxrsynth.runtime.files import open_atomically
from cxrsynth.shards.sample import sample_key, subject_key


def write_id_map(run: GenerateRun, rows: Rows) -> None:
    """Write the id map, mode 0600, if the user named a file for it; one line per image.

    Raises:
        ShardError: if it cannot be written.
    """
    path = run.settings.id_map
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(path, mode=0o600) as raw:
            file = io.TextIOWrapper(raw, newline="", encoding="utf-8", errors="surrogateescape")
            writer = csv.writer(file)
            writer.writerow(["report_id", "sample_key"])
            for report in rows.reports():
                subject = subject_key(run.id_key, report.report_id)
                for index in range(run.settings.images_per_report):
                    writer.writerow([report.report_id, sample_key(subject, index)])
            file.detach()  # flushes
    except OSError as error:
        raise ShardError(
            f"--id-map {path}: cannot be written ({error.strerror or error})\n  name another file"
        ) from None
