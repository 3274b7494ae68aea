"""Quality checks of single images: an upright frontal chest, sharp, in readable gray levels, without burned-in text?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from cxrsynth.images.pictures import Pixels, squared
from cxrsynth.metrics.quality.burned_in import longest_row
from cxrsynth.metrics.quality.framing import FRAMING_FAULTS, FramingNetwork
from cxrsynth.metrics.quality.gray_levels import effective_levels, end_share, structure
from cxrsynth.metrics.quality.likeness import Likeness
from cxrsynth.metrics.quality.texture import block_edges, fineness, noise_level


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
        # Lowest of 2,053 training images: -1.64; enlarged from 128 pixels: at most -1.86. Images that were stored at
        # less than the size of the checks are measured at their own.
        "blurred": Check(
            "soft, as after blurring or enlarging", "log ratio of the finest detail to the next finest", "below", -1.7
        ),
        # Highest of 2,053 training images: 3.46; with noise of 5 gray levels added, images are above 4.1.
        "noisy": Check("noisy", "standard deviation of the noise, gray levels of 255", "above", 3.7),
        # Highest of the training images: 0.35. JPEG of quality 5: 0.58 or more.
        "blocks": Check("cut into blocks, as by strong compression", "steps at block edges", "above", 0.5),
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
        # Logits; chosen on split `val`, since the network knows the training images. Of its 324 images 2, 1, 0 and 1
        # exceed these.
        "mirrored": Check("left and right exchanged: the heart on the wrong side", "logit", "above", 4.0),
        "rotated": Check("rotated by some degrees", "logit", "above", 1.0),
        "cropped": Check("shows only a part of the chest", "logit", "above", 1.5),
        "not_frontal": Check("not the proportions of a frontal view: lateral, or squeezed", "logit", "above", 1.0),
        # Side markers are rows of one or two letters, some of three ("A-P").
        "text": Check("burned-in text", "letters in a row", "above", 3.5),
    }
)
_LEAST_SIDE = 128  # pixels: a smaller image is enlarged, and so blurred, at the size of the checks
# These compare with mean chests, or need the network; they are left out without them.
LIKENESS_CHECKS = ("inverted", "not_a_chest", "turned")
FRAMING_CHECKS = FRAMING_FAULTS
FRONTAL_CHECKS = frozenset({*LIKENESS_CHECKS, *FRAMING_CHECKS})  # know frontal chests alone


@dataclass(frozen=True, slots=True)
class QualityTable:
    """What the checks measured of B images, one column per check, and which images fail."""

    names: tuple[str, ...]
    values: Tensor  # [B, Q] float32
    failed: Tensor  # [B, Q] bool


class QualityChecks:
    """All checks of `CHECKS` on the same images; those of `LIKENESS_CHECKS` and `FRAMING_CHECKS` need their networks.

    Args:
        likeness: mean chests and registration.
        framing: tells how a chest is framed.
        thresholds: by name of check; they replace those of `CHECKS`.

    Raises:
        ValueError: for a threshold of an unknown check.
    """

    def __init__(
        self,
        likeness: Likeness | None = None,
        framing: FramingNetwork | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        left_out = (*(() if likeness else LIKENESS_CHECKS), *(() if framing else FRAMING_CHECKS))
        self.names = tuple(name for name in CHECKS if name not in left_out)
        given = dict(thresholds or {})
        if unknown := sorted(given.keys() - set(self.names)):
            raise ValueError(f"thresholds for {', '.join(unknown)}; checks made: {', '.join(self.names)}")
        self.thresholds = {name: float(given.get(name, CHECKS[name].threshold)) for name in self.names}
        self._likeness, self._framing = likeness, framing

    @torch.inference_mode()
    def __call__(self, images: Tensor, stored: Sequence[Pixels] | None = None) -> QualityTable:
        """Check images, each by itself.

        Args:
            images: square, [B, 1, H, H] float32 in [0, 1].
            stored: the same B images [H, W] at the size at which they were stored, which shows what resizing hides;
                without them, `images` are taken for it.

        Raises:
            ValueError: for images of another shape, type or range, or another number of stored ones.
        """
        _refuse_others(images)
        if stored is not None and len(stored) != len(images):
            raise ValueError(f"{len(stored)} stored images for {len(images)}")
        images = images.cpu()
        stored = list(images[:, 0].numpy()) if stored is None else stored
        measured = {
            "blank": structure(images),
            "saturated": end_share(images),
            "clipped": effective_levels(images),
            "blurred": _fineness(images, stored),
            "noisy": noise_level(images),
            "blocks": torch.tensor([block_edges(one) for one in stored]),
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
        if self._framing is not None:
            device = next(self._framing.parameters()).device
            logits = self._framing(images.to(device)).float().cpu()
            measured |= dict(zip(FRAMING_CHECKS, logits.unbind(1), strict=True))
        values = torch.stack([measured[name] for name in self.names], 1)
        limits = torch.tensor([self.thresholds[name] for name in self.names])
        low = torch.tensor([CHECKS[name].fails == "below" for name in self.names])
        failed = torch.where(low, values < limits, values > limits)
        if self._likeness is not None:
            # What resembles a chest in no position is none; to call it inverted or turned as well says nothing.
            least = self.thresholds["not_a_chest"]
            for name, resembles in (("inverted", chest), ("turned", torch.maximum(chest, like.turned))):
                failed[:, self.names.index(name)] &= resembles >= least
            if self._framing is not None:
                # The network knows upright chests alone.
                other = failed[:, [self.names.index(name) for name in LIKENESS_CHECKS]].any(1)
                failed[:, [self.names.index(name) for name in FRAMING_CHECKS]] &= ~other[:, None]
        return QualityTable(self.names, values, failed)


def _fineness(images: Tensor, stored: Sequence[Pixels]) -> Tensor:
    """Of images [B, 1, H, H]; of those stored at a smaller size, at that size."""
    found, side = fineness(images), images.shape[-1]
    for place, one in enumerate(stored):
        if _LEAST_SIDE <= min(one.shape) < side:
            found[place] = fineness(torch.from_numpy(squared(one, min(one.shape)))[None, None])[0]
    return found


def _refuse_others(images: Tensor) -> None:
    shape = tuple(images.shape)
    if images.dim() != 4 or shape[1] != 1 or shape[2] != shape[3] or images.dtype != torch.float32 or not len(images):
        raise ValueError(f"images of shape {shape} and type {images.dtype}, expected [B, 1, H, H] float32, B >= 1")
    if not (images.amin() >= 0 and images.amax() <= 1):
        raise ValueError("images hold values outside [0, 1], or none that are numbers")
