"""Affine warps of images, by the five numbers of `POSTURE` or by matrices.

Matrices are those of `torch.nn.functional.affine_grid`: they tell, for a place of the output, where in the input to
look, in half widths from the middle.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def warp_matrices(parameters: Tensor) -> Tensor:
    """Matrices [N, 2, 3] of the five numbers of `POSTURE` [N, 5]; zero is the identity.

    A positive log scale shows a larger piece of the image, that is, makes the chest smaller.
    """
    shift_x, shift_y, log_x, log_y, angle = parameters.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    first = torch.stack((log_x.exp() * cos, -log_y.exp() * sin, shift_x), -1)
    second = torch.stack((log_x.exp() * sin, log_y.exp() * cos, shift_y), -1)
    return torch.stack((first, second), -2)


def inverse(matrices: Tensor) -> Tensor:
    """Matrices [N, 2, 3] that undo others."""
    turned = torch.linalg.inv(matrices[..., :2])
    return torch.cat((turned, -turned @ matrices[..., 2:]), -1)


def compose(first: Tensor, then: Tensor) -> Tensor:
    """The matrices [N, 2, 3] that look up by `then` in what `first` gives; both [N or 1, 2, 3]."""
    shift = first[..., :2] @ then[..., 2:] + first[..., 2:]
    return torch.cat((first[..., :2] @ then[..., :2], shift), -1)


def warp(images: Tensor, matrices: Tensor, *, mode: str = "bilinear", outside: str = "zeros") -> Tensor:
    """Images [N, 1, H, W] seen through matrices [N, 2, 3]; beyond the image's edge black, or as `outside` says."""
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode=outside, align_corners=False)
