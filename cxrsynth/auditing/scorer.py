"""One batch of images -> one row each: rewards, checks, features, what the search of copies compares, a preview."""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from cxrsynth.images.image import Radiograph
from cxrsynth.images.pictures import squared
from cxrsynth.metrics.features import Extractor
from cxrsynth.metrics.memorization.features import thumbnails
from cxrsynth.metrics.quality.checks import QualityChecks
from cxrsynth.reports.labels import Status
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import RewardSuite

# Judges resample to their own input; this is what images of any size are brought to before.
IMAGE_SIZE = 256
PREVIEW_SIZE = 128
_PREVIEW_QUALITY = 92
REWARD, CHECK = "reward_", "check_"


@dataclass(frozen=True)
class Scorer:
    """All networks an image is shown to. `register` brings [B, 1, H, W] to the canonical frame.

    `identity` says what the numbers depend on beside the image: judges' digests and versions.
    """

    suite: RewardSuite
    checks: QualityChecks
    extractor: Extractor
    register: Callable[[Tensor], Tensor]
    device: torch.device
    identity: dict[str, Any]

    def __call__(self, radiographs: Sequence[Radiograph], *, whole: bool = False) -> pa.Table:
        """One row an image, in order; see `part_schema`. `whole`: with the pixels themselves, in column
        `radiograph`.
        """
        images = torch.from_numpy(np.stack([squared(radiograph.pixels, IMAGE_SIZE) for radiograph in radiographs]))[
            :, None
        ]
        reports = [radiograph.report or Report(report_id=radiograph.key, line=0) for radiograph in radiographs]
        rewards, checks = self.suite(images, reports), self.checks(images)
        with torch.inference_mode():
            features = self.extractor(images).float().cpu().numpy()
            registered = thumbnails(images, self.register)
        columns: dict[str, Any] = facts(radiographs)
        for name in rewards.names:
            columns[REWARD + name] = _with_nulls(rewards.column(name))
        for place, name in enumerate(checks.names):
            columns[CHECK + name] = checks.values[:, place].tolist()
        columns["checks_failed"] = [
            [name for name, wrong in zip(checks.names, row, strict=True) if wrong] for row in checks.failed.tolist()
        ]
        columns["features"] = list(features)
        columns["thumbnail"] = [one.tobytes() for one in registered]
        columns["preview"] = [_preview(image[0]) for image in images]
        columns["image"] = [_levels(image[0]).tobytes() if whole else None for image in images]
        return pa.table(columns, schema=self.schema())

    def schema(self) -> pa.Schema:
        """Columns of the rows."""
        return part_schema(tuple(self.suite.rewards), self.checks.names, width=self.extractor.width)


def part_schema(rewards: Sequence[str], checks: Sequence[str], *, width: int) -> pa.Schema:
    """Rows of a scored unit; `width` is of the features."""
    texts = [(name, pa.string()) for name in ("key", "source", "sha256", "patient", "view", "sex", "age_group")]
    return pa.schema(
        [
            *texts,
            ("place", pa.int32()),
            ("present", pa.list_(pa.string())),
            ("absent", pa.list_(pa.string())),
            *((REWARD + name, pa.float32()) for name in rewards),
            *((CHECK + name, pa.float32()) for name in checks),
            ("checks_failed", pa.list_(pa.string())),
            ("features", pa.list_(pa.float32(), width)),
            ("thumbnail", pa.binary()),
            ("preview", pa.binary()),
            ("image", pa.binary()),
        ]
    )


def facts(radiographs: Sequence[Radiograph]) -> dict[str, list[Any]]:
    """What is known of images, by column: never a report's text."""
    reports = [radiograph.report for radiograph in radiographs]
    return {
        "key": [radiograph.key for radiograph in radiographs],
        "source": [radiograph.source for radiograph in radiographs],
        "sha256": [radiograph.sha256 for radiograph in radiographs],
        "patient": [_pseudonym(radiograph.patient) for radiograph in radiographs],
        "view": [report.view if report else None for report in reports],
        "sex": [report.sex if report else None for report in reports],
        "age_group": [radiograph.age_group for radiograph in radiographs],
        "place": [radiograph.place for radiograph in radiographs],
        "present": [_named(report, Status.PRESENT) for report in reports],
        "absent": [_named(report, Status.ABSENT) for report in reports],
    }


def _pseudonym(patient: str) -> str:
    """Stands for a patient: only whether two images are of one counts, and real ids need not stay in the folder."""
    return hashlib.sha256(patient.encode()).hexdigest()[:16] if patient else ""


def _named(report: Report | None, status: Status) -> list[str]:
    return [name for name, label in report.labels.items() if label.status is status] if report else []


def _with_nulls(column: Tensor) -> list[float | None]:
    return [None if value != value else value for value in column.tolist()]


def _preview(image: Tensor) -> bytes:
    """JPEG of [H, W] in [0, 1], for the page's gallery and the measures of diversity."""
    buffer = io.BytesIO()
    small = Image.fromarray(_levels(image)).resize((PREVIEW_SIZE, PREVIEW_SIZE), Image.Resampling.BOX)
    small.save(buffer, "JPEG", quality=_PREVIEW_QUALITY)
    return buffer.getvalue()


def _levels(image: Tensor) -> npt.NDArray[np.uint8]:
    """[H, W] in [0, 1] -> uint8."""
    return np.asarray((image.numpy() * 255).round().astype(np.uint8))
