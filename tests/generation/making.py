"""Shared by the tests of `generate`: a table with planted secrets, the command, and folders by their hashes."""

import csv
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import diffusers

from cxrsynth.diffusion.schedule import KNOWN_SCHEDULERS

# Ids and words that occur nowhere else: if one is in an output, it leaked. Ids are complete, since three letters
# occur in compressed pixels by chance.
SECRET_WORDS = ("Zorblattic", "Quibbleton", "Blatherwick", "03/14/2019", "QZX-77", "qzx-77", "Xylograph")
HEADER = ("report_id", "findings", "impression", "view", "sex", "age")
ROWS = (
    ("QZX-7781", "Zorblattic heart size is normal.", "Left pleural effusion.", "PA", "F", "61"),
    ("QZX-7782", "Told Dr. Quibbleton Blatherwick on 03/14/2019. Zorblattic lungs.", "Edema.", "AP", "M", "6"),
    ("QZX-7783", "Cardiomegaly.", "Cardiomegaly.", "PA", "F", "44"),
    ("QZX-7784", "Xylograph lines. Right pneumothorax.", "Pneumothorax.", "LATERAL", "", ""),
    ("QZX-7785", "Lungs are clear.", "Possible pneumonia.", "", "M", "30"),
    ("QZX-7786", "Old rib fracture.", "Rib fracture.", "PA", "M", "82"),
    ("QZX-7787", "Picc line ends in the SVC.", "", "AP", "F", "50"),
)


def write_table(path: Path, rows: tuple[tuple[str, ...], ...] = ROWS, header: tuple[str, ...] = HEADER) -> Path:
    """A CSV table of `rows`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def known_schedulers() -> set[str]:
    """Those of `KNOWN_SCHEDULERS` that the installed diffusers has; the oldest allowed release lacks one."""
    return {name for name in KNOWN_SCHEDULERS if hasattr(diffusers, name)}


def command(reports: Path, out: Path, model: Path | str, *options: str, keep_order: bool = True) -> list[str]:
    """Arguments of a `generate` that takes a second; `options` override those given here.

    Samples are in the order of the table, so that tests know which is which: the order of keys depends on the id key.
    """
    usual = ["--steps", "2", "--shard-size", "3", "--batch-size", "2", "--device", "cpu", "--precision", "fp32"]
    order = ["--keep-order"] if keep_order else []
    return ["generate", str(reports), "--out", str(out), "--model", str(model), *usual, *order, *options]


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder and its subfolders, by relative path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def members(folder: Path) -> dict[str, bytes]:
    """Members of all shards of a folder, by name."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                assert info.name not in found
                found[info.name] = file.read()
    return found


def metadata(folder: Path) -> dict[str, dict[str, Any]]:
    """JSON member of each sample, by key."""
    return {name.removesuffix(".json"): json.loads(raw) for name, raw in members(folder).items() if ".json" in name}


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete folder."""
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return content
