"""Quality checks of single images: does it show an upright chest, in readable gray levels, without burned-in text?"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from cxrsynth.metrics.quality.burned_in import longest_row
from cxrsynth.metrics.quality.gray_levels import effective_levels, end_share, structure
from cxrsynth.metrics.quality.likeness import Likeness


@dataclass(frozen=True, slots=True)
class Check:
    """What a check measures, and on which side of which threshold an image fails.

    Thresholds were chosen on real images of split `train`; `python -m tests.benchmarks.quality_checks` measures them on
    split `val`.
    """

    meaning: str  # of a failure, in words
    unit: str
    fails: Literal["below", "above"]
    threshold: float


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        # Lowest of 2,053 training images: 0.055. Noise, plain and shaded pictures are below 0.04.
        "blank": Check(
            "hardly any structure: blank, or noise", "range of coarse gray levels, of full range", "below", 0.05
        ),
        # Exceeded by one training image.
        "saturated": Check(
            "large parts purely black or white", "share of the middle at one end of the gray levels", "above", 0.03
        ),
        # Lowest of the training images: 36. Images with 16 levels are below 16.
        "clipped": Check("few gray levels, as after clipping", "gray levels in use, of 256", "below", 32.0),
        # 0.2%, 0.2% and 0.3% of the training images fall below.
        "inverted": Check(
            "black and white exchanged", "correlation with a mean chest, minus that of the negative", "below", 0.0
        ),
        "not_a_chest": Check(
            "does not resemble a frontal chest",
            "correlation with a mean chest, of the image or its negative",
            "below",
            0.35,
        ),
        "turned": Check(
            "rotated by 90, 180 or 270 degrees",
            "correlation with a mean chest, minus that of the rotated image",
            "below",
            0.0,
        ),
        # Side markers are rows of one or two letters, some of three ("A-P").
        "text": Check("burned-in text", "letters in a row", "above", 3.5),
    }
)
# These compare with mean chests, and are left out without them.
LIKENESS_CHECKS = ("inverted", "not_a_chest", "turned")


@dataclass(frozen=True, slots=True)
class QualityTable:
    """What the checks measured of B images, one column per check, and which images fail."""

    names: tuple[str, ...]
    values: Tensor  # [B, Q] float32
    failed: Tensor  # [B, Q] bool


class QualityChecks:
    """All checks of `CHECKS` on the same images; those of `LIKENESS_CHECKS` need a likeness.

    Args:
        likeness: mean chests and registration.
        thresholds: by name of check; they replace those of `CHECKS`.

    Raises:
        ValueError: for a threshold of an unknown check.
    """

    def __init__(self, likeness: Likeness | None = None, thresholds: Mapping[str, float] | None = None) -> None:
        self.names = tuple(name for name in CHECKS if likeness or name not in LIKENESS_CHECKS)
        given = dict(thresholds or {})
        if unknown := sorted(given.keys() - set(self.names)):
            raise ValueError(f"thresholds for {', '.join(unknown)}; checks made: {', '.join(self.names)}")
        self.thresholds = {name: float(given.get(name, CHECKS[name].threshold)) for name in self.names}
        self._likeness = likeness

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> QualityTable:
        """Check square images [B, 1, H, H] float32 in [0, 1], each by itself.

        Raises:
            ValueError: for images of another shape, type or range.
        """
        _refuse_others(images)
        images = images.cpu()
        measured = {
            "blank": structure(images),
            "saturated": end_share(images),
            "clipped": effective_levels(images),
            "text": longest_row(images),
        }
        if self._likeness is not None:
            like = self._likeness(images)
            chest = torch.maximum(like.upright, like.inverted)
            measured |= {
                "inverted": like.upright - like.inverted,
                "not_a_chest": chest,
                "turned": chest - like.turned,
            }
        values = torch.stack([measured[name] for name in self.names], 1)
        limits = torch.tensor([self.thresholds[name] for name in self.names])
        low = torch.tensor([CHECKS[name].fails == "below" for name in self.names])
        failed = torch.where(low, values < limits, values > limits)
        if self._likeness is not None:
            # What resembles a chest in no position is none; to call it inverted or turned as well says nothing.
            least = self.thresholds["not_a_chest"]
            for name, resembles in (("inverted", chest), ("turned", torch.maximum(chest, like.turned))):
                failed[:, self.names.index(name)] &= resembles >= least
        return QualityTable(self.names, values, failed)


def _refuse_others(images: Tensor) -> None:
    shape = tuple(images.shape)
    if images.dim() != 4 or shape[1] != 1 or shape[2] != shape[3] or images.dtype != torch.float32 or not len(images):
        raise ValueError(f"images of shape {shape} and type {images.dtype}, expected [B, 1, H, H] float32, B >= 1")
    if not (images.amin() >= 0 and images.amax() <= 1):
        raise ValueError("images hold values outside [0, 1], or none that are numbers")
