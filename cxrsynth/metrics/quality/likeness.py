"""How much a picture looks like an upright chest: correlation with mean chests over a small search of positions."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cxrsynth.errors import ModelError, in_words
from cxrsynth.metrics.memorization.registration import local_mean
from cxrsynth.rewards.networks import PostureRegressor
from cxrsynth.runtime.warps import warp, warp_matrices

TEMPLATES_FILE = "canonical.safetensors"
TEMPLATES = ("mean_adult", "mean_child")
TEMPLATE_SIDE = 64  # pixels
# Pixels on a side when registered: the input size of the posture regressors.
_SMALL = 96
_SIDE = 32  # pixels on a side while comparing
# Radius, in 64ths, within which contrast is equalized: about the width of a lung.
_RADIUS = 8
# Positions compared, relative to where the chest should be: shifts in half widths (both axes), log scale x, log scale
# y, radians. Few if a network has registered the chest, many if nothing has.
_NEAR = ((-0.12, -0.06, 0.0, 0.06, 0.12), (-0.08, 0.08), (-0.08, 0.08), (0.0,))
# A view is registered only if the wide search finds its correlation this close to the best: one that is further behind
# is not the best after registration either.
_DOUBT = 0.2
_FAR = ((-0.24, -0.12, 0.0, 0.12, 0.24), (-0.12, 0.03, 0.18), (-0.12, 0.04, 0.2, 0.36), (-0.06, 0.06))


@dataclass(frozen=True, slots=True)
class Resemblance:
    """Best correlations with a mean chest, each [B] float32 in [-1, 1]: of the image, its negative, and it rotated.

    `turned` is the best of upside down and on either side.
    """

    upright: Tensor
    inverted: Tensor
    turned: Tensor


@dataclass(frozen=True)
class Likeness:
    """Mean chests, and what brings a chest to their position.

    Args:
        templates: mean chests in the canonical frame, float32 [T, 64, 64] in [0, 1].
        register: images [B, 1, H, H] -> the same in the canonical frame, on the CPU; without it, a wider search is used
            instead.

    Raises:
        ValueError: if the templates are of another shape or range.
    """

    templates: Tensor
    register: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.templates.shape)
        if self.templates.dim() != 3 or not shape[0] or shape[1:] != (TEMPLATE_SIDE, TEMPLATE_SIDE):
            raise ValueError(f"templates of shape {shape}, expected [T, {TEMPLATE_SIDE}, {TEMPLATE_SIDE}]")
        if not (self.templates.amin() >= 0 and self.templates.amax() <= 1):
            raise ValueError("templates hold values outside [0, 1], or none that are numbers")

    @classmethod
    def load(cls, folder: Path, network: PostureRegressor) -> "Likeness":
        """From `canonical.safetensors` (`mean_adult`, `mean_child`) of a family of reward models.

        Args:
            folder: of the family.
            network: its posture regressor, which registers images.

        Raises:
            ModelError: if the mean chests are missing or cannot be used.
        """
        path = folder / TEMPLATES_FILE
        try:
            kept = load_file(path)
            means = [kept[name].float().reshape(TEMPLATE_SIDE, TEMPLATE_SIDE) for name in TEMPLATES]
            return cls(torch.stack(means), lambda images: to_canonical(images, network))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{folder}: no mean chests to compare with: {in_words(error)}\n"
                f"  expected: {TEMPLATES_FILE} with {' and '.join(TEMPLATES)}, {TEMPLATE_SIDE} x {TEMPLATE_SIDE} in"
                " [0, 1]"
            ) from None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Resemblance:
        """Images [B, 1, H, W] float32 in [0, 1] on the CPU.

        Each rotation and polarity is searched by itself; of upright, negative and upside down, those that may be the
        best are registered before they are compared.
        """
        details = _details(_resized(images, TEMPLATE_SIDE))
        views = [details, -details, *(details.rot90(turns, (2, 3)) for turns in (2, 1, 3))]
        found = self._far.best(torch.cat(views)).view(len(views), len(images))
        if self.register is not None:
            # A chest on its side needs no network: it resembles an upright one far less than one upside down does.
            doubtful = found[:3] >= found[:3].amax(0) - _DOUBT  # [3, B]
            small = _resized(images, _SMALL)
            pictures = torch.stack((small, 1 - small, small.rot90(2, (2, 3))))
            placed = self.register(pictures[doubtful])
            found[:3][doubtful] = self._near.best(_details(_resized(placed, TEMPLATE_SIDE)))
        return Resemblance(found[0], found[1], found[2:].amax(0))

    @cached_property
    def _near(self) -> "_Bank":
        return _Bank.of(self.templates, _moves(*_NEAR))

    @cached_property
    def _far(self) -> "_Bank":
        return _Bank.of(self.templates, _moves(*_FAR))


@torch.inference_mode()
def to_canonical(images: Tensor, network: PostureRegressor) -> Tensor:
    """Square images [B, 1, H, H] with the warp that the network finds undone, on the CPU.

    The network predicts the look-up that made the image from the canonical one; its inverse leads back.
    """
    device = next(network.parameters()).device
    matrices = torch.eye(3).repeat(len(images), 1, 1)
    matrices[:, :2] = warp_matrices(network(images.to(device)).float().cpu())
    return warp(images, torch.linalg.inv(matrices)[:, :2], outside="border")


@dataclass(frozen=True, slots=True)
class _Bank:
    """Windows and windowed templates in every position, as rows: one matrix product correlates all of them."""

    windows: Tensor  # [M, pixels]
    chests: Tensor  # [T, M, pixels]: mean zero and unit power under the window, times the window

    @classmethod
    def of(cls, templates: Tensor, moves: Tensor) -> "_Bank":
        """Templates [T, 64, 64] in positions [M, 5]."""
        matrices = warp_matrices(moves)
        line = torch.hann_window(_SIDE + 2, periodic=False)[1:-1].sqrt()
        window = line[:, None] * line  # weight the middle: edges hold arms and markers
        seen = warp(window.expand(len(moves), 1, -1, -1), matrices)
        windows = seen.flatten(1)
        chests = []
        for detail in _details(templates[:, None]):
            moved = warp(detail.expand(len(moves), 1, -1, -1), matrices, outside="border").flatten(1)
            centered = moved - (moved * windows).sum(1, keepdim=True) / windows.sum(1, keepdim=True)
            chests.append(centered * windows / (centered.square() * windows).sum(1, keepdim=True).sqrt())
        return cls(windows, torch.stack(chests))

    def best(self, details: Tensor) -> Tensor:
        """Highest normalized cross-correlation of each of [B, 1, 32, 32] with any template in any position, [B]."""
        details = details.flatten(1)
        mean = self.windows @ details.T  # [M, B]
        power = self.windows @ details.square().T - mean.square() / self.windows.sum(1, keepdim=True)
        # A flat picture has no power: its correlation is 0, not a ratio of rounding errors.
        correlation = (self.chests @ details.T) / power.clamp(min=1e-3).sqrt()  # [T, M, B]
        return correlation.amax((0, 1))


def _details(images: Tensor) -> Tensor:
    """Edges rather than exposure, [B, 1, 64, 64] -> [B, 1, 32, 32]: local mean subtracted, local contrast equalized."""
    centered = images - local_mean(images, _RADIUS)
    deviation = local_mean(centered.square(), _RADIUS).clamp(min=0).sqrt()
    return F.adaptive_avg_pool2d(centered / (deviation + 0.02), _SIDE)


def _resized(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)


def _moves(shifts: tuple[float, ...], *others: tuple[float, ...]) -> Tensor:
    """Every combination, [M, 5] in the order of `POSTURE`."""
    return torch.tensor(list(itertools.product(shifts, shifts, *others)))
