"""Registration by affine warps: chests to the canonical frame, and the two images of a pair to each other."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cxrsynth.errors import ModelError, in_words
from cxrsynth.rewards.networks import PostureRegressor
from cxrsynth.runtime.pretrained import LOADING_ERRORS
from cxrsynth.runtime.warps import compose, inverse, warp, warp_matrices

Register = Callable[[Tensor], Tensor]  # images [B, 1, H, W] in [0, 1] -> the same, the chest in the canonical frame

# How far refinement may move an image from its registered position, in half widths and in units of the matrix: what
# posture regressors leave over, and no more. A wider reach finds similarity where there is none.
_REACH = 0.16
_DAMPING = 0.02  # of Gauss-Newton, share of the mean curvature
_WEAKEST = 0.35  # least correlation that scales a step: below it the step is noise


def load_posture(folder: Path, device: torch.device) -> PostureRegressor:
    """The posture regressor of a family of reward models.

    Raises:
        ModelError: if it is missing or cannot be loaded.
    """
    try:
        network = PostureRegressor.from_pretrained(folder / "posture")
    except LOADING_ERRORS as error:
        raise ModelError(
            f"{folder}: no posture regressor to register images with: {in_words(error)}\n"
            "  expected: posture/ with config.json and model.safetensors"
        ) from None
    return network.eval().to(device)


def to_canonical(network: PostureRegressor) -> Register:
    """Registration by a posture regressor: the move it finds is undone."""
    network = network.eval()

    @torch.inference_mode()
    def register(images: Tensor) -> Tensor:
        device = next(network.parameters()).device
        moved = network(images.to(device)).float().to(images.device)
        return warp(images, inverse(warp_matrices(moved)))

    return register


def local_mean(images: Tensor, reach: int) -> Tensor:
    """Mean of the square of 2 reach + 1 pixels around each pixel of [N, 1, H, W], mirrored beyond the edges."""
    if reach == 0:
        return images
    # Products with banded matrices are several times faster than average pooling.
    down, across = (_running_mean(length, reach) for length in images.shape[-2:])
    return down @ images @ across.T


def halved(images: Tensor) -> Tensor:
    """Images [..., H, W] of even sides at half their size; sums are several times faster than average pooling."""
    rows = images[..., ::2, :] + images[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def _running_mean(length: int, reach: int) -> Tensor:
    """[length, length]: each row averages the places within reach of its own."""
    ones = F.pad(torch.eye(length)[:, None], (reach, reach), mode="reflect")
    return F.avg_pool1d(ones, 2 * reach + 1, stride=1)[:, 0].T


def unmoved(images: Tensor) -> Tensor:
    """The registration that leaves images as they are."""
    return images


@dataclass(frozen=True, slots=True)
class Fit:
    """Correlations of pairs [P] at the best position found, and the matrices [P, 2, 3] that lead there."""

    correlation: Tensor
    matrices: Tensor


@torch.inference_mode()
def fit_pairs(moving: Tensor, fixed: Tensor, *, start: Tensor, blurs: tuple[int, ...]) -> Fit:
    """Maximize the correlation of each pair by small affine moves of the first image.

    Gauss-Newton on the gain-free difference of the images, coarse to fine; where that ends below the start, the start
    is kept.

    Args:
        moving: details of the images to move, [P, 1, h, w]; locally normalized, see `features.details`.
        fixed: details of the images they are compared with, [Q, 1, h, w]: the first with the first P / Q, and so on.
        start: matrices [P, 2, 3] to start from.
        blurs: reach of the box blur at each step, 0 for none.

    Source: inverse compositional alignment (Baker & Matthews, IJCV 2004) with the gain of the enhanced correlation
    coefficient (Evangelidis & Psarakis, IEEE TPAMI 2008).
    """
    matrices = start
    steps: dict[int, tuple[Tensor, _Target]] = {}
    for blur in blurs:
        if blur not in steps:
            steps[blur] = local_mean(moving, blur), _Target.of(local_mean(fixed, blur))
        soft, target = steps[blur]
        matrices = _step(warp(soft, matrices), target, matrices)
    before, after = (correlation(warp(moving, there), fixed) for there in (start, matrices))
    better = after > before
    return Fit(torch.where(better, after, before), torch.where(better[:, None, None], matrices, start))


@torch.inference_mode()
def fit_regions(
    moving: Tensor, fixed: Tensor, weight: Tensor, *, start: Tensor, blurs: tuple[int, ...], further: float
) -> Tensor:
    """As `fit_pairs`, but each pair in a region of its own: the matrices [P, 2, 3].

    Args:
        moving: details of the images to move, [P, 1, h, w].
        fixed: details of the images they are compared with, [P, 1, h, w].
        weight: of the pixels of the fixed images, [P, 1, h, w], above zero somewhere.
        start: matrices [P, 2, 3] to start from.
        blurs: reach of the box blur at each step, 0 for none.
        further: how far the matrices may go from the start, in their units.
    """
    weights = weight.flatten(1)[..., None]
    weights = weights / weights.sum(1, keepdim=True)
    identity = torch.eye(2, 3)
    targets: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    matrices = start
    for blur in blurs:
        if blur not in targets:
            soft = local_mean(fixed, blur)
            slopes = _slopes(soft)
            targets[blur] = local_mean(moving, blur), soft, (slopes * weights) @ _solver(slopes, weights)
        soft_moving, target, lead = targets[blur]
        seen, wanted = (_weighted(side, weights) for side in (warp(soft_moving, matrices), target))
        powers = [(side.square() * weights).sum(1).clamp_min(1e-6) for side in (wanted, seen)]
        scale = (powers[0] / powers[1]).sqrt()
        correlated = (scale * (seen * wanted * weights).sum(1) / powers[0]).clamp_min(_WEAKEST)
        change = ((seen * (scale / correlated)[:, None] - wanted) * lead).sum(1)
        moved = compose(matrices, inverse(identity + change.view(-1, 2, 3).clamp(-_REACH, _REACH)))
        matrices = start + (moved - start).clamp(-further, further)
    before, after = (_region_correlation(warp(moving, there), fixed, weights) for there in (start, matrices))
    return torch.where((after > before)[:, None, None], matrices, start)


def _weighted(images: Tensor, weights: Tensor) -> Tensor:
    """[P, 1, h, w] as columns [P, hw, 1], their weighted means subtracted; weights [P, hw, 1] of sum 1."""
    flat = images.flatten(1)[..., None]
    return flat - (flat * weights).sum(1, keepdim=True)


def _region_correlation(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Normalized cross-correlation of pairs [P, 1, h, w] under weights [P, hw, 1]; [P]."""
    a, b = _weighted(first, weights), _weighted(second, weights)
    powers = [(side.square() * weights).sum(1).clamp_min(0.1) for side in (a, b)]
    return ((a * b * weights).sum(1) / (powers[0] * powers[1]).sqrt()).flatten()


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Normalized cross-correlation of pairs [P, 1, h, w] and [Q, 1, h, w] as in `fit_pairs`, middle weighted; [P]."""
    sides = _Sides.of(first, second)
    return (sides.product / (sides.power * sides.other_power).clamp_min(1e-12).sqrt()).flatten()


@dataclass(frozen=True, slots=True)
class _Sides:
    """Weighted sums over the pixels of P images s and Q images b, each image's mean subtracted: ss, bb, sb."""

    power: Tensor  # [Q, P / Q]
    other_power: Tensor  # [Q, 1]
    product: Tensor  # [Q, P / Q]

    @classmethod
    def of(cls, first: Tensor, second: Tensor) -> "_Sides":
        weight = _middle(second).flatten()
        seen = first.reshape(len(second), -1, len(weight))
        other = _centered(second, weight)
        mean = seen @ weight / weight.sum()
        power = seen.square() @ weight - mean.square() * weight.sum()
        return cls(
            power.clamp_min(0), other.square() @ weight[:, None], (seen @ (other * weight)[..., None]).squeeze(-1)
        )


@dataclass(frozen=True, slots=True)
class _Target:
    """The fixed images [Q] of a registration, with what every step needs of them; computed once."""

    image: Tensor  # [Q, 1, h, w]
    lead: Tensor  # [Q, hw, 6]: from gray-level differences to the change of the matrix
    own: Tensor  # [Q, 1, 6]: the part of the image itself
    level: Tensor  # [Q, 1, 6]: that of a constant gray level of 1

    @classmethod
    def of(cls, image: Tensor) -> "_Target":
        weight = _middle(image).flatten()
        slopes = _slopes(image)
        lead = slopes * weight[:, None] @ _solver(slopes, weight[:, None])
        return cls(image, lead, _centered(image, weight)[:, None] @ lead, lead.sum(1, keepdim=True))


def _step(seen: Tensor, target: _Target, matrices: Tensor) -> Tensor:
    """One Gauss-Newton step of images seen [P, 1, h, w] through `matrices`, held within reach of the identity."""
    sides = _Sides.of(seen, target.image)
    weight = _middle(target.image).flatten()
    flat = seen.reshape(len(target.image), -1, len(weight))
    mean = (flat @ weight / weight.sum())[..., None]  # [Q, P / Q, 1]
    scale = (sides.other_power.clamp_min(1e-8) / sides.power.clamp_min(1e-8)).sqrt()
    correlated = (scale * sides.product / sides.other_power.clamp_min(1e-8)).clamp_min(_WEAKEST)
    change = (flat @ target.lead - mean * target.level) * (scale / correlated)[..., None] - target.own  # [Q, P / Q, 6]
    identity = torch.eye(2, 3)
    moved = compose(matrices, inverse(identity + change.view(-1, 2, 3).clamp(-_REACH, _REACH)))
    return identity + (moved - identity).clamp(-_REACH, _REACH)


def _slopes(images: Tensor) -> Tensor:
    """How each pixel changes with the six numbers of the matrix, [P, hw, 6]."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    along_x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]).flatten(1) * (width / 4)
    along_y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]).flatten(1) * (height / 4)
    place = F.affine_grid(torch.eye(2, 3)[None], [1, 1, height, width], align_corners=False).view(-1, 2)
    place = torch.cat((place, torch.ones(len(place), 1)), 1)  # [hw, 3]
    return torch.cat((along_x[..., None] * place, along_y[..., None] * place), 2)


def _solver(slopes: Tensor, weight: Tensor) -> Tensor:
    """Damped inverse curvature [P, 6, 6] under weights [hw, 1] or [P, hw, 1]."""
    curvature = slopes.transpose(1, 2) @ (slopes * weight)
    mean = curvature.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-6)
    inverted: Tensor = torch.linalg.inv(curvature + _DAMPING * mean[:, None, None] * torch.eye(6))
    return inverted


def _middle(images: Tensor) -> Tensor:
    """Weight of the pixels [h, w]: most in the middle; the edges hold arms, markers and what was outside the image."""
    rows, columns = (torch.hann_window(n + 2, periodic=False)[1:-1].sqrt() for n in images.shape[-2:])
    return rows[:, None] * columns


def _centered(images: Tensor, weight: Tensor) -> Tensor:
    """[N, 1, h, w] as rows [N, hw], the weighted mean subtracted."""
    flat = images.flatten(1)
    return flat - (flat @ weight / weight.sum())[:, None]
