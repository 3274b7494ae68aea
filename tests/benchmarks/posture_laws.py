"""`python -m tests.benchmarks.posture_laws --data DIR --frames FILE`: does posture fall with misalignment?

Images of split `val` are registered to the mean images in FILE, which `cxrsynth.nano.build` writes when it registers
its training images (`frames.safetensors`); the reward models take no part in that. From the canonical frame each image
is rotated, shifted and zoomed step by step, in a random direction. The tables give, for both reward families, the mean
reward at each step, the share of images whose reward falls at every step, and the error on known warps.
"""

import math
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from cxrsynth.nano.build.align import registered_frames
from cxrsynth.nano.build.config import load_config
from cxrsynth.nano.build.fitting import resampled
from cxrsynth.nano.build.images import load_images
from cxrsynth.nano.build.measure_reward_models import posture_numbers
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.backends import FAMILIES, family_folder
from cxrsynth.rewards.networks import PostureRegressor
from cxrsynth.rewards.posture import PostureReward
from cxrsynth.runtime.warps import compose, warp_matrices

_BUILD = Path(__file__).resolve().parents[2] / "cxrsynth" / "nano" / "build" / "config.yaml"
_SIZE = 128  # side in pixels of the scored images; the networks downsample them
_SEED = 0
# Degrees, percent of the width, percent of the scale.
_STEPS = {
    "rotated by degrees": (0, 5, 10, 15, 20, 25),
    "shifted by % of width": (0, 3, 6, 9, 12, 15),
    "zoomed by %": (0, 6, 12, 18, 24, 30),
}


def main(
    data: Annotated[Path, typer.Option(help="Folder with images/ and manifests/.")],
    frames: Annotated[Path, typer.Option(help="frames.safetensors of a build of nano.")],
) -> None:
    """Print one Markdown table per family."""
    settings = load_config(_BUILD)
    radiographs, pixels = load_images(data, size=256, split="val")
    matrices, fits = registered_frames(radiographs, pixels, frames, settings=settings.align)
    pixels, matrices = pixels[fits], matrices[fits]
    rng = torch.Generator().manual_seed(_SEED)
    sign = torch.randint(2, (len(pixels), 2), generator=rng) * 2.0 - 1.0
    typer.echo(f"{len(pixels)} images of split val in the canonical frame")
    for family in FAMILIES:
        folder = family_folder(family)
        assert folder is not None
        network = PostureRegressor.from_pretrained(folder / "posture").eval()
        error = posture_numbers(network, pixels, matrices, reach=settings.reward_models.posture_reach, seed=_SEED)
        typer.echo(
            f"\n{family}: median error on known warps {error}\n\n| warp | mean reward at each step | falls at each |"
        )
        typer.echo("| --- | --- | --- |")
        for kind, steps in _STEPS.items():
            warped_images = [warped(pixels, matrices, kind, step, sign) for step in steps]
            rewards = torch.stack([posture_rewards(network, images) for images in warped_images])  # [steps, N]
            falls = (rewards.diff(dim=0) < 0).all(0).float().mean()
            means = ", ".join(f"{step}: {mean:.2f}" for step, mean in zip(steps, rewards.mean(1).tolist(), strict=True))
            typer.echo(f"| {kind} | {means} | {falls:.1%} |")


def warped(pixels: Tensor, frames: Tensor, kind: str, step: float, sign: Tensor) -> Tensor:
    """Images in the canonical frame, warped by one step, uint8 [N, 1, H, W] -> float32 [N, 1, S, S] in [0, 1].

    Args:
        pixels: the images.
        frames: canonical frames [N, 2, 3].
        kind: one of `_STEPS`.
        step: in the kind's unit.
        sign: [N, 2] of -1 and 1: the direction, and for shifts the axis.
    """
    moves = torch.zeros(len(pixels), 5)
    direction, axis = sign.unbind(1)
    match kind:
        case "rotated by degrees":
            moves[:, 4] = math.radians(step) * direction
        case "shifted by % of width":
            moves[torch.arange(len(pixels)), (axis > 0).long()] = 2 * step / 100 * direction  # half widths
        case _:
            moves[:, 2:4] = (math.log1p(step / 100) * direction)[:, None]
    return resampled(pixels, compose(frames, warp_matrices(moves)), _SIZE)


def posture_rewards(network: PostureRegressor, images: Tensor) -> Tensor:
    """Posture rewards of [N, 1, S, S], [N]."""
    reward = PostureReward(network)
    return torch.cat([reward(part, [Report(report_id="", line=0)] * len(part)) for part in images.split(64)])


if __name__ == "__main__":
    typer.run(main)
