"""Bring chests to one place, and two films of a pair to each other, by affine warps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cxrsynth.rewards.networks import PostureRegressor
from cxrsynth.rewards.warps import compose, inverse, warp, warp_matrices

Register = Callable[[Tensor], Tensor]  # images [B, 1, H, W] in [0, 1] -> the same, the chest in the canonical frame

# How far refinement may move a film from its registered place, in half widths and in units of the matrix: what
# posture regressors leave over, and no more. A wider reach finds likeness in films that have none.
_REACH = 0.16
_DAMPING = 0.02  # of Gauss-Newton, share of the mean curvature
_WEAKEST = 0.35  # least correlation the step is scaled for: below it the step is noise


def to_canonical(network: PostureRegressor) -> Register:
    """Registration by a posture regressor: what it says moved the chest is undone."""
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
    # As products with banded matrices: several times faster than average pooling.
    down, across = (_running_mean(length, reach) for length in images.shape[-2:])
    return down @ images @ across.T


def _running_mean(length: int, reach: int) -> Tensor:
    """[length, length]: each row the mean of the places within reach of its own."""
    ones = F.pad(torch.eye(length)[:, None], (reach, reach), mode="reflect")
    return F.avg_pool1d(ones, 2 * reach + 1, stride=1)[:, 0].T


def unmoved(images: Tensor) -> Tensor:
    """The registration that leaves films as they are."""
    return images


@dataclass(frozen=True, slots=True)
class Fit:
    """Correlations of pairs [P] at the best place found, and the matrices [P, 2, 3] that led there."""

    correlation: Tensor
    matrices: Tensor


@torch.inference_mode()
def fit_pairs(moving: Tensor, fixed: Tensor, *, start: Tensor, blurs: tuple[int, ...]) -> Fit:
    """Largest correlation of each pair over small affine moves of the first film.

    Gauss-Newton on the films' gain-free difference, coarse to fine; the best place met is kept, the start included.

    Args:
        moving: details of the films to move, [P, 1, h, w]; locally normalised, as `copy_features.details`.
        fixed: details of the films they are compared with, [P, 1, h, w].
        start: matrices [P, 2, 3] to set out from.
        blurs: reach of the box blur at each step, 0 for none.

    Source: inverse compositional alignment (Baker & Matthews, IJCV 2004) with the gain of the enhanced correlation
    coefficient (Evangelidis & Psarakis, IEEE TPAMI 2008).
    """
    weight = _middle(fixed)
    matrices = start
    best, best_matrices = correlation(warp(moving, start), fixed), start
    steps: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for blur in blurs:
        if blur not in steps:
            soft = local_mean(fixed, blur)
            slopes = _slopes(soft)  # [P, hw, 6]
            steps[blur] = soft, slopes, _solver(slopes, weight)
        soft, slopes, solver = steps[blur]
        seen = warp(local_mean(moving, blur), matrices)
        matrices = _step(seen, soft, slopes, solver, weight, matrices)
        here = correlation(warp(moving, matrices), fixed)
        better = here > best
        best = torch.where(better, here, best)
        best_matrices = torch.where(better[:, None, None], matrices, best_matrices)
    return Fit(best, best_matrices)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Normalised cross-correlation of pairs [P, 1, h, w], the middle weighed more; [P]."""
    weight = _middle(second)
    a, b = _centred(first, weight), _centred(second, weight)
    power = (a.square() * weight).sum((1, 2, 3)) * (b.square() * weight).sum((1, 2, 3))
    return (a * b * weight).sum((1, 2, 3)) / power.clamp_min(1e-12).sqrt()


def _step(seen: Tensor, fixed: Tensor, slopes: Tensor, solver: Tensor, weight: Tensor, matrices: Tensor) -> Tensor:
    """One Gauss-Newton step from `matrices`, held within reach of the identity."""
    a, b = _centred(seen, weight).flatten(1), _centred(fixed, weight).flatten(1)  # [P, hw]
    w = weight.flatten()
    scale = (a.square() * w).sum(1).clamp_min(1e-8).rsqrt() * (b.square() * w).sum(1).clamp_min(1e-8).sqrt()
    a = a * scale[:, None]
    alike = ((a * b * w).sum(1) / (b.square() * w).sum(1).clamp_min(1e-8)).clamp_min(_WEAKEST)
    slope = slopes.transpose(1, 2) @ ((a / alike[:, None] - b) * w)[..., None]  # [P, 6, 1]
    change = (solver @ slope).view(-1, 2, 3)
    identity = torch.eye(2, 3)
    moved = compose(matrices, inverse(identity + change.clamp(-_REACH, _REACH)))
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
    """Damped inverse curvature, [P, 6, 6]."""
    curvature = slopes.transpose(1, 2) @ (slopes * weight.flatten()[:, None])
    mean = curvature.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-6)
    inverted: Tensor = torch.linalg.inv(curvature + _DAMPING * mean[:, None, None] * torch.eye(6))
    return inverted


def _middle(images: Tensor) -> Tensor:
    """Weight of the pixels [h, w]: the middle counts, the edges hold arms, markers and what was beyond the film."""
    rows, columns = (torch.hann_window(n + 2, periodic=False)[1:-1].sqrt() for n in images.shape[-2:])
    return rows[:, None] * columns


def _centred(images: Tensor, weight: Tensor) -> Tensor:
    return images - (images * weight).sum((1, 2, 3), keepdim=True) / weight.sum()
