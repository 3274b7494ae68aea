"""Features that distinguish a near-duplicate from another image of a similar chest, and the index to search them in."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file
from scipy.linalg import eigh
from torch import Tensor

from cxrsynth.metrics.memorization.registration import Register, halved, local_mean
from cxrsynth.runtime.files import system_errors
from cxrsynth.runtime.warps import warp, warp_matrices

Thumbs = npt.NDArray[np.uint8]  # [N, T, T]
Vectors = npt.NDArray[np.float32]  # [N, D], of length 1

THUMB = 64  # pixels on a side of a thumbnail
_WIDEST = 4 * THUMB  # larger images are shrunk to this before they are registered
_SIDE = 24  # pixels on a side of what the projection sees
_WIDTH = 128  # D
_FITTED_ON = 4096  # images at most
_BLOCK = 256  # images at a time
_EXACT_BELOW = 50_000  # features that are searched exhaustively; more are searched by cells
# Small moves and changes of exposure that a near-duplicate may have: half widths, log scales, radians; log gamma.
_JITTER, _JITTER_GAMMA = (0.07, 0.07, 0.06, 0.06, 0.06), 0.4


def thumbnails(images: Tensor, register: Register) -> Thumbs:
    """Registered images at a small size, which the search compares.

    Args:
        images: [B, 1, H, W] float32 in [0, 1], all framed in the same way (square, cropped rather than squeezed).
        register: brings chests to one position; `unmoved` where they are in position already.

    Returns:
        [B, T, T], T = 64.
    """
    longest = max(images.shape[-2:])
    if longest > _WIDEST:
        images = F.interpolate(images, (_WIDEST, _WIDEST), mode="bilinear", antialias=True)
    small = F.interpolate(register(images), (THUMB, THUMB), mode="bilinear", antialias=True)
    return np.asarray((small[:, 0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def mirrored(thumbs: Thumbs) -> Thumbs:
    """The same images, left for right."""
    return np.ascontiguousarray(thumbs[:, :, ::-1])


def inverted(thumbs: Thumbs, mean: Vectors) -> npt.NDArray[np.bool_]:
    """Which thumbnails are negatives, bool [N]: what they show correlates negatively with the mean image [T, T]."""
    shown = (thumbs > 0).reshape(len(thumbs), -1)
    flat, expected = thumbs.reshape(len(thumbs), -1).astype(np.float32), mean.ravel()
    total, other = flat.sum(1), shown @ expected
    return np.asarray(flat @ expected < total * other / shown.sum(1).clip(min=1))


def negatives(thumbs: Thumbs) -> Thumbs:
    """Gray levels inverted; what is black beyond an image's edge stays black."""
    return np.where(thumbs > 0, 255 - thumbs, thumbs)


def details(thumbs: Thumbs, *, reach: int = 8, half: bool = False) -> Tensor:
    """Edges rather than exposure: local mean subtracted, local contrast equalized; [N, 1, T, T] float32.

    `half`: for the images at half their size.
    """
    images = torch.from_numpy(thumbs)[:, None].float() / 255.0
    images = halved(images) if half else images
    centred = images - local_mean(images, reach)
    return centred / (local_mean(centred.square(), reach).clamp_min(0).sqrt() + 0.02)


@dataclass(frozen=True, slots=True)
class MatchSpace:
    """Linear features that differ much between images and little between small moves of one image.

    `mean` [S] is the mean reference image, `directions` [S, D] weights deviations from it. What dominates all images
    (posture, exposure) gets little weight, and so does what a small shift or rotation changes.
    """

    mean: Vectors
    directions: Vectors

    @classmethod
    def fit(cls, thumbs: Thumbs, *, seed: int = 0) -> "MatchSpace":
        """From reference images [N, T, T], N at least 2; from an even sample if there are many.

        Source: linear discriminants of images against jittered copies of themselves (within-class covariance), then
        whitened: Hatch et al., Interspeech 2006 (WCCN), for faces Belhumeur et al., IEEE TPAMI 1997.
        """
        if len(thumbs) < 2:
            raise ValueError(f"{len(thumbs)} reference images, expected at least 2")
        sample = thumbs[np.linspace(0, len(thumbs) - 1, min(len(thumbs), _FITTED_ON)).round().astype(int)]
        plain = _flat(sample).astype(np.float64)
        generator = torch.Generator().manual_seed(seed)
        moves = [_flat(jittered(sample, generator)) - plain for _ in range(2)]
        # With as many directions as images, all images of the fit would be equally far apart, near-duplicates too.
        return cls(*discriminants(plain, moves, min(_WIDTH, max(1, len(plain) // 4))))

    def features(self, thumbs: Thumbs) -> Vectors:
        """Images [N, T, T] -> unit vectors [N, D]; compare by cosine."""
        return unit((_flat(thumbs) - self.mean) @ self.directions)

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        with system_errors(path):
            save_file({field.name: np.ascontiguousarray(getattr(self, field.name)) for field in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> "MatchSpace":
        """Read what `save` wrote."""
        return cls(**load_file(path))


def discriminants(
    plain: npt.NDArray[np.float64], moves: Sequence[npt.NDArray[np.float64]], width: int
) -> tuple[Vectors, Vectors]:
    """Mean [S] and whitened discriminants [S, width] of samples [N, S], given their changes under small moves."""
    within = np.sum([move.T @ move for move in moves], axis=0) / (2 * len(moves) * len(plain))
    within += 0.1 * np.trace(within) / len(within) * np.eye(len(within))
    power, directions = eigh(
        np.cov(plain, rowvar=False), within, subset_by_index=(len(within) - width, len(within) - 1)
    )
    weighed = directions / np.sqrt(power.clip(min=1e-9))
    return plain.mean(0).astype(np.float32), weighed.astype(np.float32)


def unit(vectors: npt.NDArray[np.floating[Any]]) -> Vectors:
    """Vectors [..., D] at length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(min=1e-9), dtype=np.float32)


def middle_weight(side: int) -> Tensor:
    """Weight of each pixel of a square picture, [side, side]: most in the middle."""
    edge = torch.hann_window(side + 2, periodic=False)[1:-1].sqrt()
    return (edge[:, None] * edge).sqrt()


def _flat(thumbs: Thumbs) -> Vectors:
    """What the projection takes as input: soft details, the middle weighted more; [N, S], of length 1."""
    weight = middle_weight(_SIDE)
    parts = []
    for first in range(0, len(thumbs), _BLOCK):
        seen = details(thumbs[first : first + _BLOCK])
        soft = F.interpolate(seen, (_SIDE, _SIDE), mode="bilinear", antialias=True) * weight
        flat = soft.flatten(1)
        parts.append(F.normalize(flat - flat.mean(1, keepdim=True), dim=1).numpy())
    return np.concatenate(parts) if parts else np.zeros((0, _SIDE * _SIDE), np.float32)


def jittered(thumbs: Thumbs, generator: torch.Generator) -> Thumbs:
    """Each image moved a little and made brighter or darker."""
    count = len(thumbs)
    moves = (torch.rand(count, 5, generator=generator) * 2 - 1) * torch.tensor(_JITTER)
    gamma = ((torch.rand(count, 1, 1, 1, generator=generator) * 2 - 1) * _JITTER_GAMMA).exp()
    images = warp(torch.from_numpy(thumbs).float()[:, None] / 255.0, warp_matrices(moves))
    return np.asarray(((images.clamp(1e-3, 1.0) ** gamma)[:, 0] * 255).round().to(torch.uint8).numpy())


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The k nearest of each query: `places` [Q, k] in the index (-1: none), cosines [Q, k] falling."""

    places: npt.NDArray[np.int64]
    cosines: Vectors


class FeatureIndex:
    """Search by cosine among reference features: exact for few, by cells (IVF) for many.

    Memory: 4 D bytes per feature (51 MB for 100,000 of width 128), and 8 more for its id in a cell.
    """

    def __init__(self, features: Vectors, names: Sequence[str]) -> None:
        if len(features) != len(names):
            raise ValueError(f"{len(features)} features for {len(names)} names")
        self.names = tuple(names)
        self._index = _index(np.ascontiguousarray(features, dtype=np.float32))

    @property
    def exact(self) -> bool:
        """Whether every feature is compared."""
        return isinstance(self._index, faiss.IndexFlatIP)

    @property
    def size_bytes(self) -> int:
        """Memory of the features and their ids."""
        return int(self._index.ntotal * (4 * self._index.d + (0 if self.exact else 8)))

    def nearest(self, queries: Vectors, k: int) -> Neighbors:
        """The k nearest of queries [Q, D]; of equals, the first."""
        k = min(k, len(self.names))
        cosines, places = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        return Neighbors(places, cosines)


def _index(features: Vectors) -> Any:
    count, width = features.shape
    index: Any
    if count < _EXACT_BELOW:
        index = faiss.IndexFlatIP(width)
    else:
        cells = int(4 * count**0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.max_points_per_centroid, index.cp.seed = 6, 40, 0
        index.nprobe = max(1, cells // 20)
        index.train(features)
    index.add(features)
    return index
