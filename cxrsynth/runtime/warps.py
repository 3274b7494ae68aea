"""Affine warps of images, given by the five numbers of `POSTURE` or by matrices.

Matrices are those of `torch.nn.functional.affine_grid`: they map a position in the output to one in the input, in half
widths from the center.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def warp_matrices(parameters: Tensor) -> Tensor:
    """Matrices [N, 2, 3] for the five numbers of `POSTURE` [N, 5]; zeros give the identity.

    A positive log scale shows more of the image and so makes the chest smaller.
    """
    shift_x, shift_y, log_x, log_y, angle = parameters.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    first = torch.stack((log_x.exp() * cos, -log_y.exp() * sin, shift_x), -1)
    second = torch.stack((log_x.exp() * sin, log_y.exp() * cos, shift_y), -1)
    return torch.stack((first, second), -2)


def inverse(matrices: Tensor) -> Tensor:
    """The inverse matrices [N, 2, 3]."""
    turned = torch.linalg.inv(matrices[..., :2])
    return torch.cat((turned, -turned @ matrices[..., 2:]), -1)


def compose(first: Tensor, then: Tensor) -> Tensor:
    """Matrices [N, 2, 3] of the warp `first` followed by `then`; both [N or 1, 2, 3]."""
    shift = first[..., :2] @ then[..., 2:] + first[..., 2:]
    return torch.cat((first[..., :2] @ then[..., :2], shift), -1)


def warp(images: Tensor, matrices: Tensor, *, mode: str = "bilinear", outside: str = "zeros") -> Tensor:
    """Images [N, 1, H, W] warped by matrices [N, 2, 3]; black beyond the edges, or as `outside` says."""
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode=outside, align_corners=False)
