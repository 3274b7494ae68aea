"""Recall of the quality checks on faults made from real images, and their false rejections of good ones.

Run: python -m tests.benchmarks.quality_checks --data DIR [--family DIR] [--made SHARD.tar] [--laterals TAR]
[--split val]

Every fault is made from images of the split (or generated, where it shows no chest), then all checks are applied.
Recall is the share that fails the check named for the fault, or, in the last column, any check.
"""

import argparse
import io
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom.data
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from skimage.color import rgb2gray
from torch import Tensor

from cxrsynth.metrics.memorization.registration import load_posture
from cxrsynth.metrics.quality.checks import CHECKS, QualityChecks, QualityTable
from cxrsynth.metrics.quality.framing import load_framing
from cxrsynth.metrics.quality.likeness import Likeness
from cxrsynth.nano.build.images import GROUPS, Radiograph, load_images

Gray = npt.NDArray[np.float32]  # [H, W] in [0, 1]
Make = Callable[[Gray, np.random.Generator], Gray]

BATCH = 32
SIDE = 256
PACKAGED = Path(__file__).resolve().parents[2] / "cxrsynth/nano/assets/judges/nano-judge"
WORDS = ("PORTABLE", "AP SUPINE", "PATIENT 48213", "ST MARY HOSPITAL", "2019-03-12 14:05", "ROOM 12", "SMITH JOHN")
PHOTOGRAPHS = ("astronaut", "camera", "cell", "chelsea", "clock", "coffee", "coins", "hubble_deep_field", "moon")
TEXTURES = ("brick", "grass", "gravel", "immunohistochemistry", "page", "retina", "text")
SLICES = ("CT_small.dcm", "MR_small.dcm")


@dataclass(frozen=True, slots=True)
class Fault:
    """A way to spoil an image, and the checks of which one should fail."""

    name: str
    checks: tuple[str, ...]
    make: Make


def exposed(gain: float, lift: float) -> Make:
    """Gray levels multiplied and moved, cut off at both ends."""
    return lambda radiograph, rng: np.clip(radiograph * gain + lift, 0.0, 1.0)


def posterised(levels: int) -> Make:
    """Gray levels rounded to few."""
    return lambda radiograph, rng: np.round(radiograph * (levels - 1)) / (levels - 1)


def lettered(size: int) -> Make:
    """One line of white text of a font size, in a corner, along an edge or inside; plain, on a plate or outlined.

    Plain text is put where it can be read: white on white is not tested.
    """

    def make(radiograph: Gray, rng: np.random.Generator) -> Gray:
        image = Image.fromarray((radiograph * 255).round().astype(np.uint8))
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
        words = str(rng.choice(WORDS))
        while draw.textlength(words, font) > SIDE - 8:
            words = words[:-2]
        x0, y0, x1, y1 = draw.textbbox((0, 0), words, font)
        width, height, style = int(x1 - x0), int(y1 - y0), int(rng.integers(3))
        right, low = SIDE - 3 - width, SIDE - 4 - height
        inside = (int(rng.integers(3, max(4, right))), int(rng.integers(4, low)))
        spots = [(3, 4), (right, 4), (3, low), (right, low), inside]
        readable = [(x, y) for x, y in spots if np.percentile(radiograph[y : y + height, x : x + width], 90) <= 0.65]
        plate = style == 1 or not readable
        x, y = spots[int(rng.integers(len(spots)))] if plate or style == 2 else readable[0]
        if plate:
            draw.rectangle((x - 2, y - 2, x + width + 2, y + height + 2), fill=0)
        draw.text((x - x0, y - y0), words, 250, font, stroke_width=1 if style == 2 and not plate else 0, stroke_fill=0)
        return np.asarray(image, dtype=np.float32) / 255

    return make


def noise(radiograph: Gray, rng: np.random.Generator, *, blur: float = 0.0) -> Gray:
    """Gray noise, as soft as `blur` pixels."""
    drawn = rng.standard_normal((SIDE, SIDE))
    drawn = ndimage.gaussian_filter(drawn, blur) if blur else drawn
    drawn = drawn / drawn.std() * 0.2 + 0.5
    return np.clip(drawn, 0, 1).astype(np.float32)


def power_law(exponent: float) -> Make:
    """Noise whose amplitude falls with frequency as 1 / f ** exponent: as natural images' does for 1."""
    rows, columns = np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1.0

    def make(radiograph: Gray, rng: np.random.Generator) -> Gray:
        drawn = np.fft.ifft2(np.fft.fft2(rng.standard_normal((SIDE, SIDE))) / frequency**exponent).real
        drawn = (drawn - drawn.mean()) / drawn.std() * 0.2 + 0.5
        return np.clip(drawn, 0, 1).astype(np.float32)

    return make


def shade(radiograph: Gray, rng: np.random.Generator) -> Gray:
    """A plain gray that changes smoothly across, with a little noise."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    across = rng.uniform(-0.2, 0.2, 2)
    drawn = 0.5 + across[0] * x + across[1] * y + 0.02 * rng.standard_normal((SIDE, SIDE))
    return np.clip(drawn, 0, 1).astype(np.float32)


def limb(radiograph: Gray, rng: np.random.Generator) -> Gray:
    """Bright rods that fan out over soft tissue on black, as fingers or a limb do."""
    canvas = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(canvas)
    fingers, base = int(rng.integers(1, 6)), rng.uniform(90, 160, 2)
    for angle in np.linspace(-0.9, 0.9, fingers) + rng.uniform(-0.4, 0.4):
        tip = base + 150 * np.array([np.sin(angle), -np.cos(angle)])
        foot = base + 60 * np.array([-np.sin(angle) * 0.3, 1.5])
        for width, gray in ((40, 90), (18, 200)):
            draw.line([tuple(tip), tuple(foot)], fill=gray, width=width)
    return ndimage.gaussian_filter(np.asarray(canvas, dtype=np.float32) / 255, 3)


def shuffled(radiograph: Gray, rng: np.random.Generator) -> Gray:
    """The image's 4 x 4 patches in another order."""
    patches = radiograph.reshape(4, SIDE // 4, 4, SIDE // 4).swapaxes(1, 2).reshape(16, SIDE // 4, SIDE // 4)
    mixed = patches[rng.permutation(16)].reshape(4, 4, SIDE // 4, SIDE // 4).swapaxes(1, 2)
    return mixed.reshape(SIDE, SIDE).copy()


def quarter(radiograph: Gray, rng: np.random.Generator) -> Gray:
    """A quarter of the image, enlarged."""
    top, left = rng.integers(2, size=2) * (SIDE // 2)
    piece = Image.fromarray(radiograph[top : top + SIDE // 2, left : left + SIDE // 2].copy())
    return np.clip(np.asarray(piece.resize((SIDE, SIDE), Image.Resampling.BILINEAR)), 0, 1)


def foreign(picture: Gray) -> Make:
    """A square piece of another picture, brought to size."""

    def make(radiograph: Gray, rng: np.random.Generator) -> Gray:
        side = int(min(picture.shape) * rng.uniform(0.6, 1.0))
        top, left = (int(rng.integers(n - side + 1)) for n in picture.shape)
        piece = Image.fromarray(np.ascontiguousarray(picture[top : top + side, left : left + side]))
        return np.clip(np.asarray(piece.resize((SIDE, SIDE), Image.Resampling.BILINEAR)), 0, 1)

    return make


def faults() -> Iterator[Fault]:
    """All faults, in the order of the checks."""
    for level in (0.0, 0.5, 1.0):
        yield Fault(
            f"blank: level {level}", ("blank",), lambda radiograph, rng, level=level: np.full_like(radiograph, level)
        )
    yield Fault("blank: noise only", ("blank",), noise)
    yield Fault("blank: smooth shade", ("blank",), shade)
    yield Fault("blank: faint chest, 5% of contrast", ("blank",), exposed(0.05, 0.4))
    yield Fault("overexposed: gray x 2.2", ("saturated", "clipped"), exposed(2.2, 0.0))
    yield Fault("overexposed: gray + 0.4", ("saturated", "clipped"), exposed(1.0, 0.4))
    yield Fault("underexposed: gray x 0.15", ("saturated", "clipped"), exposed(0.15, 0.0))
    yield Fault("underexposed: gray - 0.5", ("saturated", "clipped"), exposed(1.0, -0.5))
    yield Fault("both ends: contrast x 5", ("saturated", "clipped"), exposed(5.0, -2.0))
    for levels in (4, 8, 16):
        yield Fault(f"posterised: {levels} levels", ("clipped",), posterised(levels))
    yield Fault("inverted", ("inverted",), lambda radiograph, rng: 1 - radiograph)
    for turns, words in ((2, "upside down"), (1, "on its side, left"), (3, "on its side, right")):
        yield Fault(
            f"turned: {words}",
            ("turned", "not_a_chest"),
            lambda radiograph, rng, k=turns: np.rot90(radiograph, k).copy(),
        )
    for size in (10, 12, 16, 20, 28):
        yield Fault(f"text: font of {size} pixels", ("text",), lettered(size))
    other = ("not_a_chest", "turned", "inverted", "blank")
    yield from _framing_and_texture()
    for blur in (2.0, 8.0, 20.0):
        yield Fault(
            f"no chest: noise of {blur:.0f} pixels",
            other,
            lambda radiograph, rng, b=blur: noise(radiograph, rng, blur=b),
        )
    yield Fault("no chest: limbs", other, limb)
    yield Fault("no chest: patches in another order", other, shuffled)
    yield Fault("no chest: a quarter of the image", other, quarter)
    for exponent in (1.0, 1.5, 2.0, 2.5, 3.0):
        yield Fault(f"noise, amplitude 1/f^{exponent:g}", other, power_law(exponent))
    for kind, pictures in (("photographs", _named(PHOTOGRAPHS)), ("textures", _named(TEXTURES)), ("slices", _slices())):
        yield Fault(f"no chest: {kind}", other, _any_of(pictures))


def _framing_and_texture() -> Iterator[Fault]:
    for sigma in (0.5, 0.7, 1.0, 1.5, 3.0):
        yield Fault(f"blurred: Gaussian of {sigma:g} pixels", ("blurred",), blurred(sigma))
    for side in (64, 128):
        yield Fault(f"enlarged from {side} pixels", ("blurred",), enlarged(side, Image.Resampling.BICUBIC))
    yield Fault("enlarged from 64, pixel by pixel", ("blocks",), enlarged(64, Image.Resampling.NEAREST))
    for levels in (3, 5, 10):
        yield Fault(f"noise of {levels} gray levels", ("noisy",), noised(levels))
    for quality in (5, 10, 20, 30, 50):
        yield Fault(f"JPEG of quality {quality}", ("blocks",), compressed(quality))
    yield Fault("mirrored", ("mirrored",), lambda radiograph, rng: radiograph[:, ::-1].copy())
    for degrees in (5, 10, 15, 25):
        yield Fault(f"rotated by {degrees} degrees, black beyond", ("rotated",), rotated(degrees, "constant"))
        yield Fault(f"rotated by {degrees} degrees, edge repeated", ("rotated",), rotated(degrees, "nearest"))
    for zoom in (1.3, 1.5, 2.0):
        yield Fault(f"zoomed by {zoom:g}", ("cropped",), zoomed(zoom, zoom))
    yield Fault("squeezed to 60% of the width", ("not_frontal",), zoomed(1.0, 0.6))
    yield Fault("one half, drawn out", ("not_frontal",), one_half)


def blurred(sigma: float) -> Make:
    """Gaussian blur, in pixels."""
    return lambda radiograph, rng: ndimage.gaussian_filter(radiograph, sigma)


def noised(levels: float) -> Make:
    """Gaussian noise, its standard deviation in gray levels of 255, in 256 levels."""

    def make(radiograph: Gray, rng: np.random.Generator) -> Gray:
        drawn = 255 * radiograph + levels * rng.standard_normal(radiograph.shape)
        return (np.clip(np.round(drawn), 0, 255) / 255).astype(np.float32)

    return make


def enlarged(side: int, how: Image.Resampling) -> Make:
    """Shrunk to `side` pixels and enlarged again, in 256 levels."""

    def make(radiograph: Gray, rng: np.random.Generator) -> Gray:
        image = Image.fromarray((radiograph * 255).round().astype(np.uint8))
        small = image.resize((side, side), Image.Resampling.BOX)
        return np.asarray(small.resize(image.size, how), dtype=np.float32) / 255

    return make


def compressed(quality: int) -> Make:
    """Written as JPEG and read back."""

    def make(radiograph: Gray, rng: np.random.Generator) -> Gray:
        buffer = io.BytesIO()
        Image.fromarray((radiograph * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer), dtype=np.float32) / 255

    return make


def rotated(degrees: float, outside: str) -> Make:
    """Rotated to either side; `outside` as `scipy.ndimage.rotate` has it."""

    def make(radiograph: Gray, rng: np.random.Generator) -> Gray:
        angle = degrees * rng.choice((-1, 1))
        return np.clip(ndimage.rotate(radiograph, angle, reshape=False, order=1, mode=outside), 0, 1)

    return make


def zoomed(down: float, across: float) -> Make:
    """Enlarged in each direction about the center, or shrunk, with black beyond."""

    def make(radiograph: Gray, rng: np.random.Generator) -> Gray:
        matrix = np.array([1 / down, 1 / across])
        offset = (SIDE - 1) / 2 * (1 - matrix)
        return np.clip(ndimage.affine_transform(radiograph, matrix, offset, order=1), 0, 1)

    return make


def one_half(radiograph: Gray, rng: np.random.Generator) -> Gray:
    """The left or right half at twice its width."""
    half = radiograph[:, : SIDE // 2] if rng.random() < 0.5 else radiograph[:, SIDE // 2 :]
    return np.clip(ndimage.zoom(half, (1, 2), order=1), 0, 1)


def _any_of(pictures: list[Gray]) -> Make:
    return lambda radiograph, rng: foreign(pictures[int(rng.integers(len(pictures)))])(radiograph, rng)


def _named(names: tuple[str, ...]) -> list[Gray]:
    shown = (getattr(skimage.data, name)() for name in names)
    return [_stretched(rgb2gray(one) if one.ndim == 3 else one) for one in shown]


def _slices() -> list[Gray]:
    files = (pydicom.data.get_testdata_file(name, read=True) for name in SLICES)
    return [_stretched(np.asarray(one.pixel_array)) for one in files]


def _stretched(picture: npt.NDArray[np.generic]) -> Gray:
    gray = picture.astype(np.float32)
    low, high = np.percentile(gray, (0.5, 99.5))
    return np.clip((gray - low) / (high - low), 0, 1)


def examine(checks: QualityChecks, images: Tensor) -> QualityTable:
    """The checks of [N, 1, H, W], batch by batch."""
    parts = [checks(part) for part in images.split(BATCH)]
    return QualityTable(
        checks.names, torch.cat([part.values for part in parts]), torch.cat([part.failed for part in parts])
    )


def rejected(title: str, table: QualityTable) -> str:
    """A line of shares that fail each check, and any."""
    shares = [*table.failed.float().mean(0).tolist(), table.failed.any(1).float().mean().item()]
    return f"| {title} | {len(table.failed)} | " + " | ".join(f"{100 * share:.1f}%" for share in shares) + " |"


def kinds(radiographs: list[Radiograph]) -> dict[str, Tensor]:
    """Which images belong to each kind worth a line of its own, bool [N]."""
    found = {f"real, {group}": [radiograph.group == group for radiograph in radiographs] for group in GROUPS}
    found |= {f"real, {view}": [radiograph.subject.view == view for radiograph in radiographs] for view in ("PA", "AP")}
    found["real, letterboxed"] = [radiograph.padded for radiograph in radiographs]
    return {name: torch.tensor(which) for name, which in found.items() if any(which)}


def raw_pixels(data: Path, radiographs: list[Radiograph]) -> Tensor:
    """Gray levels as they are filed, [N, 1, H, W] in [0, 1]: an audit stretches nothing."""
    wanted = {f"{radiograph.image_id}.jpg": place for place, radiograph in enumerate(radiographs)}
    images = torch.zeros(len(radiographs), 1, SIDE, SIDE)
    for group in GROUPS:
        with tarfile.open(data / "images" / f"{group}.tar") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name in wanted else None
                if file is not None:
                    gray = np.asarray(Image.open(io.BytesIO(file.read())).convert("L"), dtype=np.float32)
                    images[wanted.pop(member.name), 0] = torch.from_numpy(gray / 255)
    if wanted:
        raise FileNotFoundError(f"{len(wanted)} images of the manifests are in no tar, among them {min(wanted)}")
    return images


def made_images(path: Path) -> Tensor:
    """The pictures of a shard, [N, 1, H, W] in [0, 1]."""
    with tarfile.open(path) as tar:
        files = [tar.extractfile(member) for member in tar if member.name.endswith((".png", ".jpg"))]
        pictures = [np.asarray(Image.open(io.BytesIO(file.read())).convert("L")) for file in files if file]
    return torch.from_numpy(np.stack(pictures))[:, None].float() / 255


def write_false_rejects(
    checks: QualityChecks, radiographs: list[Radiograph], images: Tensor, made: Path | None
) -> None:
    """The table of good images."""
    heading = ("good images", "images", *checks.names, "any")
    sys.stdout.write(f"\n| {' | '.join(heading)} |\n| --- |{' ---: |' * (len(heading) - 1)}\n")
    table = examine(checks, images)
    sys.stdout.write(rejected("real, all", table) + "\n")
    for name, which in kinds(radiographs).items():
        sys.stdout.write(rejected(name, QualityTable(table.names, table.values[which], table.failed[which])) + "\n")
    if made is not None:
        sys.stdout.write(rejected("generated", examine(checks, made_images(made))) + "\n")


def write_recall(checks: QualityChecks, images: Tensor, laterals: Path | None) -> None:
    """The table of faults."""
    sys.stdout.write("\n| fault | images | by | recall | rejected at all |\n| --- | ---: | --- | ---: | ---: |\n")
    for fault in faults():
        rng = np.random.default_rng(0)
        spoilt = torch.from_numpy(np.stack([fault.make(image[0].numpy(), rng) for image in images]))[:, None].float()
        table = examine(checks, spoilt)
        caught = table.failed[:, [table.names.index(name) for name in fault.checks]].any(1)
        shares = [100 * one.float().mean().item() for one in (caught, table.failed.any(1))]
        by = " or ".join(fault.checks)
        sys.stdout.write(f"| {fault.name} | {len(images)} | {by} | {shares[0]:.1f}% | {shares[1]:.1f}% |\n")
    if laterals is not None:
        failed = examine(checks, made_images(laterals)).failed
        share = 100 * failed.any(1).float().mean().item()
        sys.stdout.write(f"| real lateral views | {len(failed)} | any | {share:.1f}% | {share:.1f}% |\n")


def main() -> None:
    """Write both tables and the time taken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="collection of real images")
    parser.add_argument("--family", type=Path, default=PACKAGED, help="family of reward models")
    parser.add_argument("--laterals", type=Path, help="tar of real lateral views")
    parser.add_argument("--made", type=Path, help="shard of generated images")
    parser.add_argument("--split", default="val")
    parser.add_argument("--images", type=int, default=100, help="images each fault is made from")
    args = parser.parse_args()
    torch.set_num_threads(1)
    checks = QualityChecks(
        Likeness.load(args.family, load_posture(args.family, torch.device("cpu"))), load_framing(torch.device("cpu"))
    )
    radiographs, _ = load_images(args.data, size=SIDE, split=args.split)
    images = raw_pixels(args.data, radiographs)
    limits = ", ".join(f"{name} {CHECKS[name].fails} {limit:g}" for name, limit in checks.thresholds.items())
    sys.stdout.write(f"Fails: {limits}\n")
    write_false_rejects(checks, radiographs, images, args.made)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: args.images]
    write_recall(checks, images[chosen], args.laterals)
    started = time.process_time()
    examine(checks, images[:256])
    whole = (time.process_time() - started) / len(images[:256])
    started = time.process_time()
    examine(QualityChecks(), images[:256])
    plain = (time.process_time() - started) / len(images[:256])
    sys.stdout.write(
        f"\n{1e3 * whole:.1f} ms of processor time an image of {SIDE} x {SIDE}; {1e3 * plain:.1f} ms without likeness\n"
    )


if __name__ == "__main__":
    main()
