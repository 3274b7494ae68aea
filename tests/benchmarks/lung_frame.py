"""Measure where real lungs lie in the canonical frame, and how well known warps of them are recovered.

Run: python -m tests.benchmarks.lung_frame DATA FRAMES

DATA holds images and their lung masks; FRAMES is the registration of the training images by `cxrsynth.nano.build`
(`frames.safetensors`). The constants of `cxrsynth.rewards.xrv_posture` are medians over masks of open images. Errors
are also measured on images of the other licence tier, registered to the same mean image.
"""

import csv
import io
import math
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from scipy import ndimage
from torch import Tensor

from cxrsynth.nano.build.align import registered_frames
from cxrsynth.nano.build.config import BuildConfig, load_config
from cxrsynth.nano.build.images import Radiograph, Subject, load_images
from cxrsynth.rewards.xrv_posture import LungFrame, chest_posture, lung_frame, lung_outlines
from cxrsynth.runtime.warps import compose, warp_matrices

_OPEN, _OTHER = ("cohen_open", "hannover"), ("cohen_nc",)
_BUILD = Path(__file__).resolve().parents[2] / "cxrsynth" / "nano" / "build" / "config.yaml"


def main(data: Path, frames: Path) -> None:
    """Print the constants, the smallest lung of all outlines, and median errors on known warps."""
    settings = load_config(_BUILD)
    for name, groups in (("open", _OPEN), ("other tier", _OTHER)):
        pairs = {image_id: pair for group in groups for image_id, pair in _lungs(data, group).items()}
        found = _training_frames(data, frames, settings) if groups is _OPEN else {}
        found = found or _other_frames(data, frames, settings)
        shown = sorted(pairs.keys() & found.keys())
        lungs = torch.stack([pairs[image_id] for image_id in shown])
        matrices = torch.stack([found[image_id] for image_id in shown])
        _report(name, [_frame(pair) for pair in _seen(lungs, matrices)])
        _known_warps(name, lungs, matrices, settings)
    _shapes(data)


def _report(name: str, frames: list[LungFrame]) -> None:
    table = np.array([[*f.centre, *f.std, f.tilt_rad] for f in frames])
    _print(f"{name}: {len(table)} pairs of lungs in the canonical frame: centre x y, std x y, tilt (rad)")
    _print("  median  ", np.median(table, 0).round(4))
    _print("  median absolute deviation", np.median(np.abs(table - np.median(table, 0)), 0).round(4))


def _known_warps(name: str, lungs: Tensor, matrices: Tensor, settings: BuildConfig) -> None:
    """Uniform warps within the reach of training, as `nano.build.measure_reward_models` measures the regressors."""
    for part in (0.0, 0.5, 1.0):
        rng = torch.Generator().manual_seed(settings.seed)
        moved = (
            (torch.rand(5 * len(lungs), 5, generator=rng) * 2 - 1)
            * torch.tensor(settings.reward_models.posture_reach)
            * part
        )
        seen = _seen(lungs.repeat(5, 1, 1, 1), compose(matrices.repeat(5, 1, 1), warp_matrices(moved)))
        posture = chest_posture(seen)
        lost = posture.isnan().any(1)
        error = (posture - moved)[~lost].abs().median(0).values
        _print(
            f"{name}: {part:.0%} of the reach: rotation {math.degrees(error[4]):.2f} degrees,"
            f" shift {50 * error[:2].mean():.2f}% of width, scale {100 * (error[2:4].mean().exp() - 1):.2f}%,"
            f" {int(lost.sum())} of {len(lost)} not found"
        )


def _shapes(data: Path) -> None:
    """Outlines of lungs without an image: the smallest lung, and how many pairs are read as upside down."""
    packed = np.load(data / "masks" / "lung_shapes_v7labs.npz")["packed"]
    pairs = [pair for shape in np.unpackbits(packed, axis=1).reshape(-1, 96, 96) if (pair := _pair(shape)) is not None]
    smallest = min(float(pair.float().mean((1, 2)).min()) for pair in pairs)
    turned = [abs(lung_frame(outlines).tilt_rad) > math.pi / 2 for p in pairs if (outlines := lung_outlines(p.numpy()))]
    _print(
        f"{len(pairs)} outlines: smallest lung {smallest:.2%} of the image, {sum(turned)} of {len(turned)} upside down"
    )


def _print(*parts: object) -> None:
    sys.stdout.write(" ".join(map(str, parts)) + "\n")


def _lungs(data: Path, group: str) -> dict[str, Tensor]:
    found = {}
    with tarfile.open(data / "masks" / f"{group}.tar") as tar:
        for member in tar:
            handle = tar.extractfile(member) if member.name.endswith(".png") else None
            if handle is not None:
                with Image.open(io.BytesIO(handle.read())) as image:
                    pair = _pair(np.asarray(image.convert("L")) > 0)
                if pair is not None:
                    found[Path(member.name).stem] = pair
    return found


def _pair(mask: np.ndarray) -> Tensor | None:
    """The two largest connected components, bool [2, H, W]; None where the second is too small."""
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())[1:]
    order = sizes.argsort()[::-1][:2]
    if len(order) < 2 or sizes[order[1]] < 0.1 * sizes[order[0]]:
        return None
    return torch.from_numpy(np.stack([parts == place + 1 for place in order]))


def _training_frames(data: Path, frames: Path, settings: BuildConfig) -> dict[str, Tensor]:
    radiographs, _ = load_images(data, size=settings.image_size)
    kept = load_file(frames)
    rows = zip(radiographs, kept["matrices"], kept["shown"].tolist(), strict=True)
    return {radiograph.image_id: matrix for radiograph, matrix, shown in rows if shown}


def _other_frames(data: Path, frames: Path, settings: BuildConfig) -> dict[str, Tensor]:
    """Images of the other licence tier; they are read here only, for measurement."""
    radiographs, pixels = [], []
    for group in _OTHER:
        with (data / "manifests" / f"{group}.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["lung_mask"]]
        with tarfile.open(data / "images" / f"{group}.tar") as tar:
            for row in rows:
                handle = tar.extractfile(f"{row['id']}.jpg")
                assert handle is not None
                with Image.open(io.BytesIO(handle.read())) as image:
                    pixels.append(torch.from_numpy(np.array(image.convert("L")))[None])
                subject = Subject(view=None, age_group="adult", sex=None)
                padded = row["fit"] == "pad"
                radiographs.append(Radiograph(row["id"], row["patient_id"], group, subject, (), (), padded=padded))
    matrices, shown = registered_frames(radiographs, torch.stack(pixels), frames, settings=settings.align)
    return {
        radiograph.image_id: matrix
        for radiograph, matrix, here in zip(radiographs, matrices, shown.tolist(), strict=True)
        if here
    }


def _seen(lungs: Tensor, matrices: Tensor) -> Tensor:
    """Resample masks bool [N, 2, H, W] by matrices [N, 2, 3]."""
    grid = F.affine_grid(matrices, list(lungs.shape), align_corners=False)
    return F.grid_sample(lungs.float(), grid, align_corners=False) > 0.5


def _frame(pair: Tensor) -> LungFrame:
    outlines = lung_outlines(pair.numpy())
    assert outlines is not None
    return lung_frame(outlines)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
