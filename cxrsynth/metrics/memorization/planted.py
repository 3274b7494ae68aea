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
from scipy import ndimage
from skimage.exposure import equalize_adapthist
from torch import Tensor

from cxrsynth.runtime.warps import warp, warp_matrices

Autoencode = Callable[[Tensor], Tensor]  # images [B, 1, H, W] in [0, 1] -> the same through an autoencoder

_GAMMA, _NOISE, _JPEG_QUALITY = 0.7, 0.05, 30
_ROTATIONS_DEG = {"rotated": 3.0, "rotated_15": 15.0}
_SHIFTS = {"shifted": 0.03, "shifted_12": 0.12}
_ZOOMS = {"zoomed": 0.05, "zoomed_15": 0.15, "zoomed_30": 0.30}
_BLENDS = {"blended": 0.5, "blended_65": 0.65}  # share of the image
_CROP, _PATCH, _CLIP_LIMIT = 0.8, 100 / 256, 0.03  # shares of a side; of `equalize_adapthist`
_BLUR = 2 / 256  # standard deviation, share of the width
_BEND, _BEND_WIDTH = 0.03, 0.08  # the largest displacement, and what its fields are smoothed by, shares of the width
_BATCH = 8  # images through the autoencoder at a time
# What is done to an image; the report lists the kinds in this order.
ALTERATIONS = {
    "exact": "nothing",
    "shifted": "3% of its width and height",
    "shifted_12": "12% of its width and height",
    "rotated": "3 degrees",
    "rotated_15": "15 degrees",
    "zoomed": "5%",
    "zoomed_15": "15%",
    "zoomed_30": "30%",
    "cropped": "a corner, 80% of width and height, at full size",
    "elastic": "bent smoothly, by up to 3% of the width",
    "blurred": "Gaussian, standard deviation 0.8% of the width",
    "contrast": "gamma 0.7, gray levels compressed to 80%",
    "clahe": "contrast-limited adaptive histogram equalization, clip limit 0.03",
    "inverted": "black and white exchanged",
    "noise": "Gaussian, standard deviation 5% of full range",
    "jpeg": "quality 30",
    "mirrored": "left and right exchanged",
    "blended": "50% with an image of another patient",
    "blended_65": "65% of it, 35% of an image of another patient",
    "half": "one half of an image of another patient replaced by its own",
    "patch": "one square of 39% of the width pasted into an image of another patient",
    "autoencoded": "through a latent diffusion model's autoencoder",
}
MIXED = (*_BLENDS, "half", "patch")  # with an image of another patient


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
        seed: of the noise, of the direction of each move, and of how each image is bent.
        autoencode: needed for `autoencoded`.

    Returns:
        [P, 1, H, W] float32 in [0, 1].

    Raises:
        ValueError: for an unknown kind, or `autoencoded` without an autoencoder.
    """
    rng = torch.Generator().manual_seed(seed)
    sign = torch.randint(2, (len(images), 2), generator=rng) * 2.0 - 1.0
    if kind in (*_SHIFTS, *_ZOOMS, *_ROTATIONS_DEG):
        return warp(images, warp_matrices(_move(kind, sign)))
    if kind in _BLENDS:
        return _BLENDS[kind] * images + (1 - _BLENDS[kind]) * partners
    match kind:
        case "exact":
            return images
        case "cropped":
            return _cropped(images, sign)
        case "elastic":
            return torch.stack([_bent(image, rng) for image in images])
        case "blurred":
            sigma = _BLUR * images.shape[-1]
            return torch.from_numpy(ndimage.gaussian_filter(images.numpy(), sigma, axes=(-2, -1)))
        case "contrast":
            return images**_GAMMA * 0.8 + 0.1
        case "clahe":
            equal = [equalize_adapthist(image.double().numpy(), clip_limit=_CLIP_LIMIT) for image in images[:, 0]]
            return torch.from_numpy(np.stack(equal)[:, None]).float()
        case "inverted":
            return 1 - images
        case "noise":
            return (images + _NOISE * torch.randn(images.shape, generator=rng)).clamp(0, 1)
        case "jpeg":
            return torch.stack([_through_jpeg(image) for image in images])
        case "mirrored":
            return images.flip(-1)
        case "half" | "patch":
            return torch.where(_pasted(kind, images, rng), images, partners)
        case "autoencoded" if autoencode is not None:
            return torch.cat([autoencode(part) for part in images.split(_BATCH)]).clamp(0, 1)
    raise ValueError(f"alteration {kind!r}: expected {', '.join(ALTERATIONS)}; autoencoded with an autoencoder")


def _move(kind: str, sign: Tensor) -> Tensor:
    """The five numbers of `warp_matrices`, [P, 5], from the direction of each move [P, 2]."""
    move = torch.zeros(len(sign), 5)
    if kind in _SHIFTS:
        move[:, :2] = 2 * _SHIFTS[kind] * sign  # in half widths
    elif kind in _ZOOMS:
        move[:, 2:4] = math.log(1 + _ZOOMS[kind]) * sign[:, :1]
    else:
        move[:, 4] = math.radians(_ROTATIONS_DEG[kind]) * sign[:, 0]
    return move


def _cropped(images: Tensor, sign: Tensor) -> Tensor:
    """A corner of each image at full size."""
    scale = torch.full((len(images), 2), math.log(_CROP))
    move = torch.cat(((1 - _CROP) * sign, scale, torch.zeros(len(images), 1)), 1)
    return warp(images, warp_matrices(move))


def _bent(image: Tensor, rng: torch.Generator) -> Tensor:
    """One image [1, H, W] whose pixels are displaced by smooth random fields, after Simard et al., ICDAR 2003."""
    height, width = image.shape[-2:]
    noise = torch.randn(2, height, width, generator=rng).numpy()  # displacements down and across
    fields = ndimage.gaussian_filter(noise, _BEND_WIDTH * width, axes=(-2, -1))
    fields *= _BEND * width / np.hypot(*fields).max()
    rows, columns = np.mgrid[:height, :width]
    bent = ndimage.map_coordinates(image[0].numpy(), (rows + fields[0], columns + fields[1]), order=1, mode="nearest")
    return torch.from_numpy(bent)[None]


def _pasted(kind: str, images: Tensor, rng: torch.Generator) -> Tensor:
    """Which pixels of each image replace its partner's, bool [P, 1, H, W]: each half in turn, or a square."""
    pasted = torch.zeros(images.shape, dtype=torch.bool)
    height, width = images.shape[-2:]
    side = round(_PATCH * min(height, width))
    rows, columns = (torch.randint(n - side + 1, (len(images),), generator=rng).tolist() for n in (height, width))
    halves = [slice(width // 2), slice(width // 2, None), slice(height // 2), slice(height // 2, None)]
    for number, mask in enumerate(pasted[:, 0]):
        if kind == "patch":
            mask[rows[number] : rows[number] + side, columns[number] : columns[number] + side] = True
        elif number % 4 < 2:
            mask[:, halves[number % 4]] = True
        else:
            mask[halves[number % 4]] = True
    return pasted


def _through_jpeg(image: Tensor) -> Tensor:
    """One image [1, H, W] written as JPEG and read back."""
    buffer = io.BytesIO()
    Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy()).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    with Image.open(buffer) as read:
        return torch.from_numpy(np.asarray(read, dtype=np.float32) / 255.0)[None]
