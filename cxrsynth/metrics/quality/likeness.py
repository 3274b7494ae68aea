"""How much a picture looks like an upright chest: correlation with mean chests over a small search of placements."""

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

from cxrsynth.errors import ModelError
from cxrsynth.metrics.memorization.registration import local_mean
from cxrsynth.rewards.networks import PostureRegressor
from cxrsynth.runtime.warps import warp, warp_matrices

TEMPLATES_FILE = "canonical.safetensors"
TEMPLATES = ("mean_adult", "mean_child")
TEMPLATE_SIDE = 64  # pixels
# Pixels on a side when registered: the size the posture regressors look at.
_SMALL = 96
_SIDE = 32  # pixels on a side while comparing
# Radius, in 64ths, within which contrast is made equal: about that of a lung's width.
_RADIUS = 8
# Placements compared, as differences to where the chest is thought to be: shifts in half widths (both axes), log scale
# x, log scale y, radians. Few where a network has brought the chest to its place, many where nothing has.
_NEAR = ((-0.12, -0.06, 0.0, 0.06, 0.12), (-0.08, 0.08), (-0.08, 0.08), (0.0,))
# A view is registered where the wide search finds it this much less alike than the best, or less: further behind it is
# not the best when registered either.
_DOUBT = 0.2
_FAR = ((-0.24, -0.12, 0.0, 0.12, 0.24), (-0.12, 0.03, 0.18), (-0.12, 0.04, 0.2, 0.36), (-0.06, 0.06))


@dataclass(frozen=True, slots=True)
class Resemblance:
    """Best correlations with a mean chest, each [B] float32 in [-1, 1]: as it is, as its negative, as turned.

    `turned` is the best of upside down and lying on either side.
    """

    upright: Tensor
    inverted: Tensor
    turned: Tensor


@dataclass(frozen=True)
class Likeness:
    """Mean chests, and what brings a chest to their place.

    Args:
        templates: mean grey chests in the canonical frame, float32 [T, 64, 64] in [0, 1].
        register: images [B, 1, H, H] -> the same shown in the canonical frame, on the CPU; without it a wider search
            takes its place.

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
    def load(cls, folder: Path, device: torch.device) -> "Likeness":
        """From a family of judges: `canonical.safetensors` (`mean_adult`, `mean_child`) and `posture/`.

        Raises:
            ModelError: if a part is missing or cannot be used.
        """
        path = folder / TEMPLATES_FILE
        try:
            kept = load_file(path)
            means = [kept[name].float().reshape(TEMPLATE_SIDE, TEMPLATE_SIDE) for name in TEMPLATES]
            network = PostureRegressor.from_pretrained(folder / "posture").eval().to(device)
            return cls(torch.stack(means), lambda images: to_canonical(images, network))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{folder}: no mean chests to compare with: {type(error).__name__}: {error}\n"
                f"  expected: {TEMPLATES_FILE} with {' and '.join(TEMPLATES)}, {TEMPLATE_SIDE} x {TEMPLATE_SIDE} in"
                f" [0, 1], and posture/ with config.json and model.safetensors"
            ) from None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Resemblance:
        """Images [B, 1, H, W] float32 in [0, 1] on the CPU.

        Each turn and polarity is looked for by itself; of upright, negative and upside down those that may be the best
        are registered before they are compared.
        """
        details = _details(_resized(images, TEMPLATE_SIDE))
        views = [details, -details, *(details.rot90(turns, (2, 3)) for turns in (2, 1, 3))]
        found = self._far.best(torch.cat(views)).view(len(views), len(images))
        if self.register is not None:
            # Lying chests need no network: they resemble an upright one far less than those upside down do.
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
    """Square images [B, 1, H, H] undone by the warp the network sees in them, on the CPU.

    The network tells by which look-up the image was made from the canonical one; the way back is its inverse.
    """
    device = next(network.parameters()).device
    matrices = torch.eye(3).repeat(len(images), 1, 1)
    matrices[:, :2] = warp_matrices(network(images.to(device)).float().cpu())
    return warp(images, torch.linalg.inv(matrices)[:, :2], outside="border")


@dataclass(frozen=True, slots=True)
class _Bank:
    """Windows and windowed templates in every placement, as rows: correlation of all at once is a matrix product."""

    windows: Tensor  # [M, pixels]
    chests: Tensor  # [T, M, pixels]: mean zero and unit power under the window, times the window

    @classmethod
    def of(cls, templates: Tensor, moves: Tensor) -> "_Bank":
        """Templates [T, 64, 64] in placements [M, 5]."""
        matrices = warp_matrices(moves)
        line = torch.hann_window(_SIDE + 2, periodic=False)[1:-1].sqrt()
        window = line[:, None] * line  # the middle of the picture counts: edges hold arms and markers
        seen = warp(window.expand(len(moves), 1, -1, -1), matrices)
        windows = seen.flatten(1)
        chests = []
        for detail in _details(templates[:, None]):
            moved = warp(detail.expand(len(moves), 1, -1, -1), matrices, outside="border").flatten(1)
            centred = moved - (moved * windows).sum(1, keepdim=True) / windows.sum(1, keepdim=True)
            chests.append(centred * windows / (centred.square() * windows).sum(1, keepdim=True).sqrt())
        return cls(windows, torch.stack(chests))

    def best(self, details: Tensor) -> Tensor:
        """Highest normalised cross-correlation of each of [B, 1, 32, 32] with any template in any placement, [B]."""
        details = details.flatten(1)
        mean = self.windows @ details.T  # [M, B]
        power = self.windows @ details.square().T - mean.square() / self.windows.sum(1, keepdim=True)
        # A flat picture has no power: its correlation is 0, not a ratio of rounding errors.
        correlation = (self.chests @ details.T) / power.clamp(min=1e-3).sqrt()  # [T, M, B]
        return correlation.amax((0, 1))


def _details(images: Tensor) -> Tensor:
    """Edges rather than exposure, [B, 1, 64, 64] -> [B, 1, 32, 32]: local mean taken off, local contrast made equal."""
    centred = images - local_mean(images, _RADIUS)
    spread = local_mean(centred.square(), _RADIUS).clamp(min=0).sqrt()
    return F.adaptive_avg_pool2d(centred / (spread + 0.02), _SIDE)


def _resized(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)


def _moves(shifts: tuple[float, ...], *others: tuple[float, ...]) -> Tensor:
    """Every combination, [M, 5] in the order of `POSTURE`."""
    return torch.tensor(list(itertools.product(shifts, shifts, *others)))
