"""One batch of images becomes one row each: rewards, quality checks, features, and small pictures of the image."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from cxrsynth.images.image import Radiograph
from cxrsynth.images.pictures import Pixels, squared
from cxrsynth.metrics.features import Extractor, check_finite
from cxrsynth.metrics.memorization.features import thumbnails
from cxrsynth.metrics.memorization.registration import unmoved
from cxrsynth.metrics.quality.checks import QualityChecks
from cxrsynth.metrics.reidentification.verifier import Verifier
from cxrsynth.reports.labels import Status
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import RewardSuite, check_images
from cxrsynth.rewards.diagnosis import DiagnosisReward
from cxrsynth.rewards.networks import features_once
from cxrsynth.shards.sample import subject_key

# Images of any size are brought to this side first; each network then resamples to its own input.
IMAGE_SIZE = 256
PREVIEW_SIZE = 128
_PREVIEW_QUALITY = 92
REWARD, CHECK = "reward_", "check_"
FEATURES, LOGITS, EMBEDDING = "features", "finding_logits", "embedding"
# Vectors, which are most of what is kept of an image beside its pixels.
VECTOR_COLUMNS = (FEATURES, LOGITS, EMBEDDING)
# The columns that hold what an image looks like.
PIXEL_COLUMNS = ("thumbnail", "framed", "preview", "image")


@dataclass(frozen=True)
class Scorer:
    """All networks that score an image. `register` brings [B, 1, H, W] to the canonical frame.

    `id_key` keys the pseudonyms of patients. `verifier` is None where there is nobody to recognize. `identity` is
    everything the scores depend on besides the image: digests and versions of the networks, and a fingerprint of the
    key.
    """

    suite: RewardSuite
    checks: QualityChecks
    extractor: Extractor
    register: Callable[[Tensor], Tensor]
    device: torch.device
    id_key: bytes = field(repr=False)
    identity: dict[str, Any]
    verifier: Verifier | None = None

    def __call__(self, radiographs: Sequence[Radiograph], *, keep_image: bool = False) -> pa.Table:
        """One row per image, in order; see `row_schema`. `keep_image` also stores the full pixels in column `image`."""
        squares = [squared(radiograph.pixels, IMAGE_SIZE) for radiograph in radiographs]
        images = torch.from_numpy(np.stack(squares))[:, None]  # [B, 1, H, W]
        reports = [radiograph.report or Report(report_id=radiograph.key, line=0) for radiograph in radiographs]
        columns = metadata_columns(radiographs, self.id_key)
        with features_once():
            columns |= self._rewards(images, reports) | self._features(images)
            columns |= self._checks(images, [radiograph.pixels for radiograph in radiographs])
        columns["preview"] = [preview(image[0]) for image in images]
        columns["image"] = [_levels(image[0]).tobytes() if keep_image else None for image in images]
        return pa.table(columns, schema=self.schema())

    def schema(self) -> pa.Schema:
        """Columns of the rows."""
        return row_schema(
            tuple(self.suite.rewards),
            self.checks.names,
            width=self.extractor.width,
            findings=len(self.findings),
            embedding=self.verifier.embed.width if self.verifier else 0,
        )

    @property
    def findings(self) -> tuple[str, ...]:
        """Findings that the diagnosis reward's classifier looks for; none if there is no such reward."""
        return finding_heads(self.suite)

    @torch.inference_mode()
    def _rewards(self, images: Tensor, reports: Sequence[Report]) -> dict[str, Any]:
        check_images(images, reports)
        columns: dict[str, Any] = {LOGITS: [None] * len(images)}
        for name, reward in self.suite.rewards.items():
            if isinstance(reward, DiagnosisReward):
                logits = reward.logits(images)  # the classifier runs once for both
                check_finite(logits, f"the classifier of the reward {name}")
                columns[LOGITS] = list(logits.numpy())
                values = reward.likelihood(logits, reports)
            else:
                values = reward(images, reports).float().cpu()
            columns[REWARD + name] = _with_nulls(values)
        return columns

    def _checks(self, images: Tensor, stored: Sequence[Pixels]) -> dict[str, Any]:
        found = self.checks(images, stored)
        columns: dict[str, Any] = {
            CHECK + name: found.values[:, place].tolist() for place, name in enumerate(found.names)
        }
        failed = [[name for name, bad in zip(found.names, row, strict=True) if bad] for row in found.failed.tolist()]
        return columns | {"checks_failed": failed}

    @torch.inference_mode()
    def _features(self, images: Tensor) -> dict[str, Any]:
        features = self.extractor(images).float().cpu().numpy()
        columns: dict[str, Any] = {FEATURES: list(features)}
        for name, register in (("thumbnail", self.register), ("framed", unmoved)):
            columns[name] = [one.tobytes() for one in thumbnails(images, register)]
        if self.verifier is not None:
            columns[EMBEDDING] = list(self.verifier.embed(images).numpy())
        return columns


def finding_heads(suite: RewardSuite) -> tuple[str, ...]:
    """Names of the diagnosis classifier's outputs, in the order of the column of logits."""
    return next((reward.heads for reward in suite.rewards.values() if isinstance(reward, DiagnosisReward)), ())


def row_schema(
    rewards: Sequence[str], checks: Sequence[str], *, width: int, findings: int, embedding: int = 0
) -> pa.Schema:
    """Rows of a scored unit.

    `width` is that of the features, `findings` the number of the classifier's outputs, `embedding` the width of a
    verifier's embeddings, 0 without one.
    """
    names = ("key", "source", "sha256", "report", "patient", "view", "sex", "age_group")
    texts = [(name, pa.string()) for name in names]
    return pa.schema(
        [
            *texts,
            ("place", pa.int32()),
            ("has_text", pa.bool_()),
            ("present", pa.list_(pa.string())),
            ("absent", pa.list_(pa.string())),
            *((REWARD + name, pa.float32()) for name in rewards),
            *((CHECK + name, pa.float32()) for name in checks),
            ("checks_failed", pa.list_(pa.string())),
            (FEATURES, pa.list_(pa.float32(), width)),
            (LOGITS, pa.list_(pa.float32(), findings)),
            *([(EMBEDDING, pa.list_(pa.float32(), embedding))] if embedding else []),
            *((name, pa.binary()) for name in PIXEL_COLUMNS),
        ]
    )


def metadata_columns(radiographs: Sequence[Radiograph], id_key: bytes) -> dict[str, list[Any]]:
    """Metadata of images by column: never a report's text, never a patient's own identifier."""
    reports = [radiograph.report for radiograph in radiographs]
    return {
        "key": [radiograph.key for radiograph in radiographs],
        "source": [radiograph.source for radiograph in radiographs],
        "sha256": [radiograph.sha256 for radiograph in radiographs],
        "report": [
            subject_key(id_key, radiograph.report_id) if radiograph.report_id else "" for radiograph in radiographs
        ],
        "patient": [pseudonym(id_key, radiograph.patient) for radiograph in radiographs],
        "view": [report.view if report else None for report in reports],
        "sex": [report.sex if report else None for report in reports],
        "age_group": [radiograph.age_group for radiograph in radiographs],
        "place": [radiograph.place for radiograph in radiographs],
        "has_text": [bool(report and report.full_text) for report in reports],
        "present": [_named(report, Status.PRESENT) for report in reports],
        "absent": [_named(report, Status.ABSENT) for report in reports],
    }


def pseudonym(id_key: bytes, patient: str) -> str:
    """Keyed hash that stands for a patient, empty where the patient is unknown.

    An audit only needs to know which images share a patient. Without the key nobody can recover an identifier by
    trying all of them. The prefix keeps pseudonyms apart from the sample keys that `generate` makes with the same key.
    """
    return subject_key(id_key, f"patient {patient}") if patient else ""


def preview(image: Tensor) -> bytes:
    """JPEG of [H, W] in [0, 1], for the gallery and the measures of diversity."""
    buffer = io.BytesIO()
    small = Image.fromarray(_levels(image)).resize((PREVIEW_SIZE, PREVIEW_SIZE), Image.Resampling.BOX)
    small.save(buffer, "JPEG", quality=_PREVIEW_QUALITY)
    return buffer.getvalue()


def _named(report: Report | None, status: Status) -> list[str]:
    return [name for name, label in report.labels.items() if label.status is status] if report else []


def _with_nulls(column: Tensor) -> list[float | None]:
    return [value if isfinite(value) else None for value in column.tolist()]


def _levels(image: Tensor) -> npt.NDArray[np.uint8]:
    """[H, W] in [0, 1] -> uint8."""
    return np.asarray((image.numpy() * 255).round().astype(np.uint8))
