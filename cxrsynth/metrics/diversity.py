"""How alike images of a set are: MS-SSIM of random pairs; near 1 where a generator draws the same image over and
over.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from cxrsynth.metrics.fidelity import Interval, mean_interval

Radiographs = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Pairs = npt.NDArray[np.int64]

# Of five scales, finest first. Source: Wang et al., "Multiscale structural similarity" (Asilomar 2003), section 3.2.
_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_KERNEL = 11
_BATCH = 16


def scale_weights(side: int) -> tuple[float, ...]:
    """Weights of the scales an image of `side` pixels bears with the kernel of 11.

    Five from 176 pixels on, four from 99, three from 44, two from 22, else one.

    Fewer than five are the finest of Wang's, made to sum to 1 as his do. Values of different sizes are therefore not to
    be compared.

    Raises:
        ValueError: if the image is smaller than the kernel.
    """
    if side < _KERNEL:
        raise ValueError(f"images of {side} pixels, expected at least {_KERNEL}")
    # torchmetrics' own condition, and its padding by reflection, which no image narrower than the kernel bears.
    bears = (n for n in range(len(_BETAS), 0, -1) if min(side // max(1, (n - 1) ** 2), side >> (n - 1)) >= _KERNEL)
    scales = next(bears)
    total = sum(_BETAS[:scales])
    return tuple(beta / total for beta in _BETAS[:scales])


def ms_ssim(first: Tensor, second: Tensor) -> Tensor:
    """Images [B, 1, H, W] in [0, 1], pair by pair -> [B]; 1 is equal.

    Source: torchmetrics, with negative contrast terms taken as 0 so that unlike images have a value.
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


def similarity_within(radiographs: Radiographs, *, pairs: int, seed: int) -> Interval:
    """Mean MS-SSIM of random pairs of different images of one set, with the interval of its bootstrap over pairs.

    Args:
        radiographs: [N, H, W], uint8, or float32 in [0, 1]; may be memory-mapped: only images in pairs are read.
        pairs: how many. Up to half as many as images share none; beyond that pairs share images and the interval is
            narrower than what other images would give.
        seed: of pairs and bootstrap.

    Raises:
        ValueError: for fewer than two images.
    """
    if len(radiographs) < 2:
        raise ValueError(f"{len(radiographs)} images, expected at least 2")
    return _interval(radiographs, radiographs, _pairs_within(len(radiographs), pairs, seed=seed), seed=seed)


def similarity_between(made: Radiographs, real: Radiographs, *, pairs: int, seed: int) -> Interval:
    """Mean MS-SSIM of random pairs of one image of each set; else as `similarity_within`.

    Raises:
        ValueError: if a set is empty, or their images differ in size.
    """
    if not (len(made) and len(real)) or made.shape[1:] != real.shape[1:]:
        raise ValueError(f"images {made.shape} and {real.shape}, expected [N, H, W] of one size, at least one of each")
    one = _drawn(len(made), len(made), pairs, seed=seed)
    other = _drawn(len(real), len(real), pairs, seed=seed + 1)
    return _interval(made, real, np.stack([one, other], axis=1), seed=seed)


def _pairs_within(radiographs: int, pairs: int, *, seed: int) -> Pairs:
    """[pairs, 2] places; both of a pair are of one turn, so never the same image."""
    return _drawn(radiographs // 2 * 2, radiographs, pairs * 2, seed=seed).reshape(pairs, 2)


def _drawn(turn: int, radiographs: int, count: int, *, seed: int) -> Pairs:
    """`count` places out of `radiographs`: shuffled repeatedly, the first `turn` of each shuffle taken."""
    rng = np.random.default_rng(seed)
    turns = [rng.permutation(radiographs)[:turn] for _ in range(-(-count // turn))]
    return np.concatenate(turns)[:count]


def _interval(first: Radiographs, second: Radiographs, pairs: Pairs, *, seed: int) -> Interval:
    values = torch.cat([ms_ssim(*batch) for batch in _batches(first, second, pairs)])
    return mean_interval(values.double().numpy(), seed=seed)


def _batches(first: Radiographs, second: Radiographs, pairs: Pairs) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(pairs), _BATCH):
        part = pairs[start : start + _BATCH]
        yield _unit(first[part[:, 0]]), _unit(second[part[:, 1]])


def _unit(radiographs: Radiographs) -> Tensor:
    """[B, H, W] -> [B, 1, H, W] float32 in [0, 1]."""
    scaled = torch.from_numpy(np.asarray(radiographs))[:, None].float()
    return scaled / 255.0 if radiographs.dtype == np.uint8 else scaled
