"""`python -m cxrsynth.nano.build.framing --data DIR --work DIR`: the network that tells how a chest is framed.

It learns from faults made in real images: mirrored, rotated and cropped ones, and such as have other proportions than
a frontal view.
"""

import logging
import math
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from cxrsynth.metrics.quality.framing import FRAMING_FAULTS, FramingNetwork
from cxrsynth.nano.build.config import FitSettings
from cxrsynth.nano.build.fitting import augmented, fit, sample_batch, seeded
from cxrsynth.nano.build.images import load_images
from cxrsynth.runtime.warps import warp_matrices

_TRUNK = {"kind": "resnet", "size": 128, "widths": [24, 48, 96, 160], "depths": [1, 1, 1, 1]}
# Small moves, which no image should be rejected for, are part of the augmentation.
_SETTINGS = FitSettings(
    size=128,
    steps=4000,
    batch_size=32,
    learning_rate=1e-3,
    weight_decay=0.02,
    shift=0.06,
    zoom=0.06,
    rotation_rad=0.035,
    gamma=0.4,
    noise=0.03,
    erase=0.2,
)
_SAVE_EVERY = 100
_FAULTY = 0.6  # share of images with a fault besides being mirrored
_ROTATED = (math.radians(7), math.radians(35))
_CROPPED = (math.log(1.3), math.log(2.2))
_SQUEEZED = (math.log(1.35), math.log(2.2))
_ONE_LUNG = (math.log(0.5), math.log(0.65))
# Generators leave no black corners, and rotated copies may have them.
_OUTSIDE = ("zeros", "border", "reflection")


def main(
    data: Annotated[Path, typer.Option(help="Collection of real images.")],
    work: Annotated[Path, typer.Option(help="Work folder; an interrupted run goes on from there.")],
    steps: int = _SETTINGS.steps,
    seed: int = 0,
) -> None:
    """Train the network and write it to the folder `framing` in the work folder."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    work.mkdir(parents=True, exist_ok=True)
    _, pixels = load_images(data, size=256)
    with seeded(seed):
        network = FramingNetwork(_TRUNK)
    even = torch.ones(len(pixels))
    settings = _SETTINGS.model_copy(update={"steps": steps})

    def loss(rng: torch.Generator) -> Tensor:
        chosen = sample_batch(even, settings, rng)
        moves, faults = framed(len(chosen), rng)
        outside = _OUTSIDE[int(torch.randint(len(_OUTSIDE), (1,), generator=rng))]
        images = augmented(pixels[chosen], warp_matrices(moves), settings, rng, outside=outside)
        logits = network(images).float()
        others = F.binary_cross_entropy_with_logits(logits[:, 1:], faults)
        # One side is enough: the mirror image's logit is the opposite.
        return F.softplus(logits[:, 0]).mean() + 3 * others

    fit(network, loss, work / "framing.pt", settings=settings, seed=seed, save_every=_SAVE_EVERY)
    network.half().save_pretrained(work / "framing")


def framed(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Moves [B, 5] in the order of `POSTURE`, and which fault each makes, [B, 3] in the order of `FRAMING_FAULTS`."""
    kinds = len(FRAMING_FAULTS) - 1
    kind = torch.randint(kinds, (count,), generator=rng)
    kind[torch.rand(count, generator=rng) >= _FAULTY] = kinds
    extent, sign = torch.rand(count, generator=rng), torch.randint(2, (count,), generator=rng) * 2.0 - 1

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * extent

    moves = torch.zeros(count, 5)
    # A cut-out lies anywhere in the image.
    cropped = between(*_CROPPED)
    room = (1 - torch.exp(-cropped))[:, None]
    place = (torch.rand(count, 2, generator=rng) * 2 - 1) * room
    moves[:, 4] = torch.where(kind == 0, sign * between(*_ROTATED), 0.0)
    moves[:, :2] = torch.where((kind == 1)[:, None], place, 0.0)
    moves[:, 2:4] = torch.where((kind == 1)[:, None], -cropped[:, None], 0.0)
    # No lateral views are at hand to learn from: squeezed chests, and one lung drawn out to the full width.
    shape = torch.randint(3, (count,), generator=rng)
    moves[:, 2] += torch.where((kind == 2) & (shape == 0), between(*_SQUEEZED), 0.0)
    moves[:, 3] += torch.where((kind == 2) & (shape == 1), between(*_SQUEEZED), 0.0)
    moves[:, 2] += torch.where((kind == 2) & (shape == 2), between(*_ONE_LUNG), 0.0)
    moves[:, 0] += torch.where((kind == 2) & (shape == 2), sign * 0.45, 0.0)
    return moves, F.one_hot(kind, kinds + 1)[:, :kinds].float()


if __name__ == "__main__":
    typer.run(main)
