"""A recipe of the stage `sft`, and its table of images."""

import csv
from pathlib import Path
from typing import Any

from tests.generation.making import HEADER, ROWS


def other_text(place: int, more: str = "Again.") -> tuple[str, ...]:
    """A row without its id, with other words than the table of reports has: those may be held out."""
    findings, *rest = ROWS[place][1:]
    return f"{findings} {more}", *rest


def write_images(path: Path, rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("filename", *HEADER), *rows])


def recipe(model: Path, radiographs: Path, **changes: Any) -> dict[str, Any]:
    stage = {
        "stage": "sft",
        "data": str(radiographs),
        "table": str(radiographs.parent / "images.csv"),
        "steps": 4,
        "batch_size": 4,
        "micro_batch": 2,
        "checkpoint_every": 1,
        "train": {"learning_rate": 1.0e-3, "ema_decay": 0.9},
    }
    return {
        "model": {"checkpoint": str(model), "device": "cpu", "precision": "fp32"},
        "reports": {"table": "reports.csv", "held_out": 2},
        "stages": [stage | changes],
        "evaluation": {"every": 2, "steps": 2, "sheet": 1},
    }
