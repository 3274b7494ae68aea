"""torchxrayvision's chest segmentation as a second reward model for posture: where are the two lungs?"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from scipy import ndimage
from scipy.spatial import ConvexHull
from torch import Tensor, nn
from torchvision.transforms.functional import normalize
from torchxrayvision.baseline_models.chestx_det import PSPNet
from torchxrayvision.baseline_models.chestx_det.ptsemseg.pspnet import pspnet

from cxrsynth.errors import ModelError, in_words
from cxrsynth.rewards.networks import POSTURE
from cxrsynth.rewards.posture import PostureReward
from cxrsynth.rewards.xrv_weights import ReleasedName, cached_file, folder_state, released_state
from cxrsynth.runtime.files import read_json

# Name of the released weights, and where torchxrayvision's `PSPNet` downloads them from.
RELEASED = "pspnet"
_RELEASED_URL = "https://github.com/mlmed/torchxrayvision/releases/download/v1/pspnet_chestxray_best_model_4.pth"
_LUNGS = ("Left Lung", "Right Lung")
# ImageNet statistics, as torchxrayvision's `PSPNet` normalizes its images.
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Smallest share of an image's pixels that counts as a lung. The smallest of 6,394 real outlines by V7 Labs is 0.039.
_MIN_LUNG = 0.01
# Scale and tilt depend on each other; after this many rounds the residual is far below a pixel.
_ROUNDS = 8

Points = npt.NDArray[np.float64]  # [V, 2], x to the right and y down, in half widths from the middle


@dataclass(frozen=True)
class LungFrame:
    """Position, size and tilt of a pair of lungs, independent of how a segmentation treats the heart.

    Center and standard deviation are those of the convex hull of both lungs, in half widths of the image. The tilt is
    that of the line halfway between the lungs' long chords, from apex to costophrenic angle, clockwise from upright.
    """

    centre: tuple[float, float]
    std: tuple[float, float]
    tilt_rad: float


# Medians of 16 real pairs of lungs (outlines by V7 Labs) on images in the canonical frame of nano's training images;
# median absolute deviations 0.011 and 0.035, 0.017 and 0.018, 0.015 rad. Medians of 68 other images, which did not
# contribute: -0.013 and 0.064, 0.474 and 0.433, 0.029 rad. Measured by tests/benchmarks/lung_frame.py.
CANONICAL = LungFrame(centre=(-0.022, 0.045), std=(0.462, 0.410), tilt_rad=0.015)


class LungPosture(nn.Module):
    """Warp between a chest and the canonical frame, from segmented lungs; a drop-in for `PostureRegressor`.

    Args:
        network: torchxrayvision's `pspnet`, the network within its `PSPNet`: RGB [B, 3, size, size] -> logits [B, 14,
            size, size].
        size: side in pixels of the images it takes.
    """

    def __init__(self, network: nn.Module, *, size: int) -> None:
        super().__init__()
        self._network = network
        self._size = size
        self._places = [PSPNet.targets.index(lung) for lung in _LUNGS]

    def forward(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] in [0, 1] -> [B, 5], in the order of `POSTURE`; nan where two lungs are not found."""
        return chest_posture(self.segment(images)[:, self._places] > 0).to(images.device)

    def segment(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] in [0, 1] -> logits of `PSPNet.targets`, [B, 14, size, size]."""
        if images.shape[-2:] != (self._size, self._size):
            images = F.interpolate(images, (self._size, self._size), mode="bilinear", antialias=True)
        # Its wrapper takes images in [-1024, 1024] and maps them back to [0, 1] first.
        logits: Tensor = self._network(normalize(images.expand(-1, 3, -1, -1), _MEAN, _STD))
        return logits


def load_lung_posture(backend: str, *, device: torch.device, cache: Path | None = None) -> PostureReward:
    """A posture reward based on torchxrayvision's anatomy segmentation; nan for an image without two lungs.

    Args:
        backend: `pspnet` or `pspnet@sha256:<digest of the file>` (released weights, downloaded by torchxrayvision into
            `cache`), or a folder of `config.json` (`{"architecture": "pspnet", "input_resolution": 512}`) and
            `model.safetensors`, the `state_dict()` of torchxrayvision's `PSPNet`.
        device: where it runs.
        cache: torchxrayvision's own cache where None.

    Raises:
        ModelError: if it cannot be loaded or trusted.
    """
    released = ReleasedName.parse(backend)
    posture = _released(released, cache) if released.name == RELEASED else _from_folder(Path(backend))
    return PostureReward(posture.to(device))


def released_segmentation(cache: Path | None = None) -> Path:
    """The file into which torchxrayvision downloads the weights of its `PSPNet`."""
    return cached_file(_RELEASED_URL, cache)


def chest_posture(lungs: Tensor) -> Tensor:
    """Warp from the canonical frame to these lungs, in the order and units of `POSTURE`.

    An image in the canonical frame, warped by these parameters (`warps.warp_matrices`), would show its lungs here. The
    two lungs are distinguished by position, so a mirrored chest scores equally; an upside-down one is rotated by half a
    turn.

    Args:
        lungs: bool [B, 2, H, W], one mask per lung; only its largest connected component counts.

    Returns:
        float32 [B, 5]; nan where a lung is missing or too small.
    """
    pairs = lungs.cpu().numpy()
    return torch.tensor([_posture(pair) for pair in pairs], dtype=torch.float32).reshape(-1, len(POSTURE))


def lung_frame(outlines: tuple[Points, Points]) -> LungFrame:
    """Center, standard deviation and tilt of two lungs, each given by the corners of its convex hull."""
    both = np.concatenate(outlines)
    centre, covariance = _moments(both[ConvexHull(both).vertices])
    std_x, std_y = np.sqrt(np.diag(covariance)).tolist()
    centre_x, centre_y = centre.tolist()
    return LungFrame((centre_x, centre_y), (std_x, std_y), _tilt(outlines))


def lung_outlines(pair: npt.NDArray[np.bool_]) -> tuple[Points, Points] | None:
    """Corners of the convex hull of each of two lungs, [2, H, W] -> twice [V, 2]; None where one is missing.

    Where the masks of both mostly overlap, the segmentation has not found two lungs.
    """
    if 2 * np.count_nonzero(pair[0] & pair[1]) > min(np.count_nonzero(pair[0]), np.count_nonzero(pair[1])):
        return None
    first, second = _outline(pair[0]), _outline(pair[1])
    return None if first is None or second is None else (first, second)


def _posture(pair: npt.NDArray[np.bool_]) -> list[float]:
    outlines = lung_outlines(pair)
    if outlines is None:
        return [math.nan] * len(POSTURE)
    found = lung_frame(outlines)
    variance_x, variance_y = np.square(CANONICAL.std)
    scale, angle = np.ones(2), 0.0
    for _ in range(_ROUNDS):
        angle = CANONICAL.tilt_rad - _tilt((outlines[0] * scale, outlines[1] * scale))
        cos2, sin2 = math.cos(angle) ** 2, math.sin(angle) ** 2
        # Standard deviation of the canonical lungs along the image's axes when rotated by the angle.
        rotated = np.sqrt([variance_x * cos2 + variance_y * sin2, variance_x * sin2 + variance_y * cos2])
        scale = rotated / found.std
    cos, sin = math.cos(angle), math.sin(angle)
    shift = np.array(CANONICAL.centre) - np.array([[cos, -sin], [sin, cos]]) @ (scale * found.centre)
    return [*shift.tolist(), *np.log(scale).tolist(), math.remainder(angle, math.tau)]


def _outline(mask: npt.NDArray[np.bool_]) -> Points | None:
    """Corners of the convex hull of a mask's largest connected component; None where that is too small."""
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())[1:]
    if not len(sizes) or sizes.max() < _MIN_LUNG * mask.size:
        return None
    largest = parts == sizes.argmax() + 1
    rows = np.flatnonzero(largest.any(1))
    left, right = largest[rows].argmax(1), mask.shape[1] - largest[rows, ::-1].argmax(1)
    # The corners of the hull are corners of pixels at the ends of rows.
    corners = np.concatenate([np.stack([x, y], 1) for x in (left, right) for y in (rows, rows + 1)])
    points: Points = corners / np.array(mask.shape[::-1]) * 2.0 - 1.0
    hull: Points = points[ConvexHull(points).vertices]
    return hull


def _moments(corners: Points) -> tuple[Points, Points]:
    """Centroid [2] and covariance [2, 2] of a convex polygon, its corners in order [V, 2]."""
    middle = corners.mean(0)
    a, b = corners - middle, np.roll(corners, -1, axis=0) - middle
    area = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])[:, None]  # of triangles around the middle, twice
    weight = area / area.sum()
    centre = (weight * (a + b)).sum(0) / 3
    # Second moments of a triangle with one corner at the origin.
    square = ((weight * a).T @ a + (weight * b).T @ b + (weight * (a + b)).T @ (a + b)) / 12
    return middle + centre, square - np.outer(centre, centre)


def _tilt(outlines: tuple[Points, Points]) -> float:
    """Angle of the lungs' upward direction, clockwise from upright, in (-pi, pi].

    Lungs widen towards the base: of the two possible directions, the right one has the longer chords from an apex to a
    base further out.
    """
    first, second = (_moments(outline)[0] for outline in outlines)
    outwards = (second - first) / np.linalg.norm(second - first).clip(1e-12)
    across = np.array([outwards[1], -outwards[0]])
    candidates = [
        np.array([_chord(outlines[0], -outwards, up), _chord(outlines[1], outwards, up)]) for up in (across, -across)
    ]
    chords = max(candidates, key=lambda pair: float(np.linalg.norm(pair, axis=1).sum()))
    x, y = (chords / np.linalg.norm(chords, axis=1, keepdims=True).clip(1e-12)).sum(0).tolist()
    return math.atan2(x, -y)


def _chord(corners: Points, outwards: Points, up: Points) -> Points:
    """The longest line from a base to an apex above it that is closer to the other lung; zero if there is none."""
    lines = corners[None] - corners[:, None]  # [base, apex, 2]
    length = np.where((lines @ up > 0) & (lines @ outwards < 0), np.linalg.norm(lines, axis=2), 0.0)
    base, apex = np.unravel_index(length.argmax(), length.shape)
    line: Points = lines[base, apex] * (length[base, apex] > 0)
    return line


def _from_folder(folder: Path) -> LungPosture:
    try:
        config: dict[str, Any] = read_json(folder / "config.json")
        if config.get("architecture") != RELEASED:
            raise ValueError(f"config.json has architecture {config.get('architecture')!r}")
        return LungPosture(_network(folder_state(folder)), size=int(config.get("input_resolution", 512)))
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: cannot be loaded as a lung segmentation: {in_words(error)}\n"
            f'  expected: config.json with "architecture": "{RELEASED}", and model.safetensors of torchxrayvision\'s'
            " PSPNet"
        ) from None


def _released(released: ReleasedName, cache: Path | None) -> LungPosture:
    state = released_state(released, _RELEASED_URL, cache=cache)
    try:
        return LungPosture(_network(state), size=512)
    except RuntimeError as error:
        raise ModelError(
            f"{RELEASED}: the released file does not fit torchxrayvision's PSPNet: {in_words(error)}"
        ) from None


def _network(state: dict[str, Tensor]) -> nn.Module:
    with torch.device("meta"):  # the state holds every weight
        network: nn.Module = pspnet(len(PSPNet.targets))
    network.load_state_dict(state, assign=True)
    return network.eval()
