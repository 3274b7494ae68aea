"""Near-duplicates planted on purpose, which measure how well the search finds them."""

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cxrsynth.runtime.warps import warp, warp_matrices

Autoencode = Callable[[Tensor], Tensor]  # images [B, 1, H, W] in [0, 1] -> the same through an autoencoder

_SHIFT, _ROTATION_DEG, _ZOOM, _GAMMA, _NOISE, _JPEG_QUALITY = 0.03, 3.0, 0.05, 0.7, 0.05, 30
_BATCH = 8  # images through the autoencoder at a time
# What is done to an image; the report lists the kinds in this order.
ALTERATIONS = {
    "exact": "nothing",
    "shifted": "3% of its width and height",
    "rotated": "3 degrees",
    "zoomed": "5%",
    "contrast": "gamma 0.7, gray levels compressed to 80%",
    "noise": "Gaussian, standard deviation 5% of full range",
    "jpeg": "quality 30",
    "mirrored": "left and right exchanged",
    "blended": "50% with an image of another patient",
    "autoencoded": "through a latent diffusion model's autoencoder",
}


@dataclass(frozen=True, slots=True)
class Probes:
    """Reference images to plant near-duplicates of: their keys, and uint8 [P, 1, H, W]."""

    keys: tuple[str, ...]
    images: npt.NDArray[np.uint8]


class ProbeKeeper:
    """Keeps a sample of the images offered; the choice depends on their keys and the seed alone, not on their order."""

    def __init__(self, count: int = 100, *, seed: int = 0) -> None:
        self._count, self._seed = count, seed
        self._kept: dict[str, npt.NDArray[np.uint8]] = {}

    def offer(self, keys: Sequence[str], images: Tensor) -> None:
        """Images [B, 1, H, W] float32 in [0, 1], all of one size, and their keys."""
        for key, image in zip(keys, images, strict=True):
            if len(self._kept) == self._count:
                last = max(self._kept, key=self._rank)
                if self._rank(key) >= self._rank(last):
                    continue
                del self._kept[last]
            self._kept[key] = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()

    def probes(self) -> Probes:
        """The sample, in an order that depends on keys and seed.

        Raises:
            ValueError: if nothing was offered.
        """
        if not self._kept:
            raise ValueError("no image was offered to the probe keeper")
        keys = tuple(sorted(self._kept, key=self._rank))
        return Probes(keys, np.stack([self._kept[key] for key in keys]))

    def _rank(self, key: str) -> bytes:
        return hashlib.sha256(f"{self._seed}\0{key}".encode()).digest()


def altered(kind: str, images: Tensor, *, partners: Tensor, seed: int, autoencode: Autoencode | None) -> Tensor:
    """Near-duplicates of images.

    Args:
        kind: one of `ALTERATIONS`.
        images: [P, 1, H, W] float32 in [0, 1].
        partners: the images they are blended with, of the same shape.
        seed: of the noise, and of the direction of each move.
        autoencode: needed for `autoencoded`.

    Returns:
        [P, 1, H, W] float32 in [0, 1].

    Raises:
        ValueError: for an unknown kind, or `autoencoded` without an autoencoder.
    """
    rng = torch.Generator().manual_seed(seed)
    sign = torch.randint(2, (len(images), 2), generator=rng) * 2.0 - 1.0
    still = torch.zeros(len(images))
    way, other_way = sign.unbind(1)
    # Shifts count half widths.
    moves = {
        "shifted": (2 * _SHIFT * way, 2 * _SHIFT * other_way, still, still, still),
        "rotated": (still, still, still, still, math.radians(_ROTATION_DEG) * way),
        "zoomed": (still, still, math.log(1 + _ZOOM) * way, math.log(1 + _ZOOM) * way, still),
    }
    if kind in moves:
        return warp(images, warp_matrices(torch.stack(moves[kind], 1)))
    match kind:
        case "exact":
            return images
        case "contrast":
            return images**_GAMMA * 0.8 + 0.1
        case "noise":
            return (images + _NOISE * torch.randn(images.shape, generator=rng)).clamp(0, 1)
        case "jpeg":
            return torch.stack([_through_jpeg(image) for image in images])
        case "mirrored":
            return images.flip(-1)
        case "blended":
            return (images + partners) / 2
        case "autoencoded" if autoencode is not None:
            return torch.cat([autoencode(part) for part in images.split(_BATCH)]).clamp(0, 1)
    raise ValueError(f"alteration {kind!r}: expected {', '.join(ALTERATIONS)}; autoencoded with an autoencoder")


def _through_jpeg(image: Tensor) -> Tensor:
    """One image [1, H, W] written as JPEG and read back."""
    buffer = io.BytesIO()
    Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy()).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    with Image.open(buffer) as read:
        return torch.from_numpy(np.asarray(read, dtype=np.float32) / 255.0)[None]
