"""Diversity of a set: MS-SSIM of random pairs, near 1 where a generator makes the same image over and over."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from cxrsynth.metrics.fidelity import Interval, mean_interval

Images = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Pairs = npt.NDArray[np.int64]

# Of five scales, finest first. Source: Wang et al., "Multiscale structural similarity" (Asilomar 2003), section 3.2.
_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_KERNEL = 11
_BATCH = 16


def scale_weights(side: int) -> tuple[float, ...]:
    """Weights of the scales that an image of `side` pixels allows with the kernel of 11.

    Five from 176 pixels on, four from 99, three from 44, two from 22, else one.

    Fewer than five are the finest of Wang's, scaled to sum to 1 as his do. Values for different sizes are therefore not
    comparable.

    Raises:
        ValueError: if the image is smaller than the kernel.
    """
    if side < _KERNEL:
        raise ValueError(f"images of {side} pixels, expected at least {_KERNEL}")
    # torchmetrics' own condition, and that of its padding by reflection, which needs an image as wide as the kernel.
    allowed = (n for n in range(len(_BETAS), 0, -1) if min(side // max(1, (n - 1) ** 2), side >> (n - 1)) >= _KERNEL)
    scales = next(allowed)
    total = sum(_BETAS[:scales])
    return tuple(beta / total for beta in _BETAS[:scales])


def ms_ssim(first: Tensor, second: Tensor) -> Tensor:
    """Images [B, 1, H, W] in [0, 1], pair by pair -> [B]; 1 is equal.

    Source: torchmetrics, with negative contrast terms set to 0 so that dissimilar images have a value.
    """
    similarity: Tensor = multiscale_structural_similarity_index_measure(
        first,
        second,
        data_range=1.0,
        kernel_size=_KERNEL,
        betas=scale_weights(min(first.shape[-2:])),
        reduction="none",
        normalize="relu",
    )
    return similarity


def similarity_within(images: Images, *, pairs: int, seed: int) -> Interval:
    """Mean MS-SSIM of random pairs of different images of one set, with its bootstrap interval over pairs.

    Args:
        images: [N, H, W], uint8, or float32 in [0, 1]; may be memory-mapped: only images in pairs are read.
        pairs: how many. Up to half the number of images, no two pairs share an image; beyond that they do, and the
            interval is narrower than other images would give.
        seed: of pairs and bootstrap.

    Raises:
        ValueError: for fewer than two images.
    """
    if len(images) < 2:
        raise ValueError(f"{len(images)} images, expected at least 2")
    return _interval(images, images, _pairs_within(len(images), pairs, seed=seed), seed=seed)


def similarity_between(made: Images, real: Images, *, pairs: int, seed: int) -> Interval:
    """Mean MS-SSIM of random pairs with one image from each set; otherwise as `similarity_within`.

    Raises:
        ValueError: if a set is empty, or their images differ in size.
    """
    if not (len(made) and len(real)) or made.shape[1:] != real.shape[1:]:
        raise ValueError(f"images {made.shape} and {real.shape}, expected [N, H, W] of one size, at least one of each")
    one = _sampled(len(made), len(made), pairs, seed=seed)
    other = _sampled(len(real), len(real), pairs, seed=seed + 1)
    return _interval(made, real, np.stack([one, other], axis=1), seed=seed)


def _pairs_within(images: int, pairs: int, *, seed: int) -> Pairs:
    """[pairs, 2] places; both of a pair come from one shuffle, so they are never the same image."""
    return _sampled(images // 2 * 2, images, pairs * 2, seed=seed).reshape(pairs, 2)


def _sampled(turn: int, images: int, count: int, *, seed: int) -> Pairs:
    """`count` places out of `images`: shuffled repeatedly, the first `turn` of each shuffle taken."""
    rng = np.random.default_rng(seed)
    turns = [rng.permutation(images)[:turn] for _ in range(-(-count // turn))]
    return np.concatenate(turns)[:count]


def _interval(first: Images, second: Images, pairs: Pairs, *, seed: int) -> Interval:
    values = torch.cat([ms_ssim(*batch) for batch in _batches(first, second, pairs)])
    return mean_interval(values.double().numpy(), seed=seed)


def _batches(first: Images, second: Images, pairs: Pairs) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(pairs), _BATCH):
        part = pairs[start : start + _BATCH]
        yield _unit(first[part[:, 0]]), _unit(second[part[:, 1]])


def _unit(images: Images) -> Tensor:
    """[B, H, W] -> [B, 1, H, W] float32 in [0, 1]."""
    scaled = torch.from_numpy(np.asarray(images))[:, None].float()
    return scaled / 255.0 if images.dtype == np.uint8 else scaled
