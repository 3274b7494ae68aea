"""Align chests: each image is registered to a mean image, which sharpens as the images agree.

No image is annotated with its lungs. Each is warped by five affine parameters (shift, two scales, rotation) that
maximize its correlation with the mean of all warped images of its age group; the mean is recomputed every round.

Source: congealing (Learned-Miller, IEEE TPAMI 2006), with normalized cross-correlation in place of entropy.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from cxrsynth.nano.build.config import AlignSettings
from cxrsynth.nano.build.images import Radiograph
from cxrsynth.nano.build.training import log
from cxrsynth.rewards.networks import POSTURE
from cxrsynth.runtime.warps import compose, warp, warp_matrices

_SMALL = 64  # pixels on a side while registering
_BATCH = 256
# Largest value of each parameter of `POSTURE`: fractions of the half width, log scales, radians.
_REACH = torch.tensor((0.25, 0.25, 0.25, 0.25, 0.25))


def canonical_frames(
    radiographs: list[Radiograph], pixels: Tensor, path: Path, *, settings: AlignSettings
) -> tuple[Tensor, Tensor]:
    """Matrices [N, 2, 3] that show each image's chest in the canonical frame, and which images fit it, bool [N].

    Letterboxed images are excluded, as are images whose frame lies too far beyond the image's edge. The result is
    saved to `path` with the mean image of each kind, so that other images can be registered to it later.
    """
    if path.exists():
        kept = load_file(path)
        return kept["matrices"], kept["shown"]
    filled = torch.tensor([not radiograph.padded for radiograph in radiographs])
    kinds = [image_kind(radiograph) for radiograph in radiographs]
    found, means = align_images(
        pixels[filled], [kind for kind, here in zip(kinds, filled.tolist(), strict=True) if here], settings=settings
    )
    parameters = torch.zeros(len(radiographs), len(POSTURE))
    parameters[filled] = found
    matrices, fits = _frames(parameters, settings)
    shown = filled & fits
    log.info("align: %d of %d images shown in the canonical frame", shown.sum(), len(radiographs))
    save_file({"matrices": matrices, "shown": shown} | {f"mean_{kind}": mean for kind, mean in means.items()}, path)
    return matrices, shown


def registered_frames(
    radiographs: list[Radiograph], pixels: Tensor, path: Path, *, settings: AlignSettings
) -> tuple[Tensor, Tensor]:
    """As `canonical_frames`, for images that are not part of the mean: they are registered to the mean in `path`."""
    means = load_file(path)
    parameters = torch.zeros(len(radiographs), len(POSTURE))
    details = _details(_shrunk(pixels))
    for kind in {image_kind(radiograph) for radiograph in radiographs}:
        chosen = torch.tensor([image_kind(radiograph) == kind for radiograph in radiographs])
        raw = torch.zeros(int(chosen.sum()), len(POSTURE))
        for blur in _blurs(settings.rounds):
            raw, _ = _register(_blurred(details[chosen], blur), raw, _blurred(means[f"mean_{kind}"], blur), settings)
        parameters[chosen] = _REACH * raw.tanh()
    matrices, fits = _frames(parameters, settings)
    return matrices, fits & torch.tensor([not radiograph.padded for radiograph in radiographs])


def image_kind(radiograph: Radiograph) -> str:
    """`child` or `adult`: small children have a mean image of their own."""
    return "child" if radiograph.group == "kermany_ped" else "adult"


def _frames(parameters: Tensor, settings: AlignSettings) -> tuple[Tensor, Tensor]:
    """Canonical frames [N, 2, 3] from registered parameters [N, 5], and which lie within their image [N]."""
    zoom = torch.tensor([[[settings.zoom, 0.0, settings.centre[0]], [0.0, settings.zoom, settings.centre[1]]]])
    matrices = compose(warp_matrices(parameters), zoom.expand(len(parameters), -1, -1))
    beyond = 1 - warp(torch.ones(len(matrices), 1, _SMALL, _SMALL), matrices).mean((1, 2, 3))
    return matrices, beyond <= settings.beyond


def align_images(pixels: Tensor, kinds: list[str], *, settings: AlignSettings) -> tuple[Tensor, dict[str, Tensor]]:
    """Parameters of each image, float32 [N, 5], with zero mean in each kind; and the mean image of each kind.

    Args:
        pixels: uint8 [N, 1, H, W].
        kinds: the kind of each image; each kind is aligned to its own mean.
        settings: rounds and steps.
    """
    details = _details(_shrunk(pixels))
    found, means = torch.zeros(len(pixels), len(POSTURE)), {}
    for kind in sorted(set(kinds)):
        chosen = torch.tensor([other == kind for other in kinds])
        raw = torch.zeros(int(chosen.sum()), len(POSTURE))
        for round_index, blur in enumerate(_blurs(settings.rounds)):
            seen = _blurred(details[chosen], blur)
            raw, score = _register(seen, raw, _warped(seen, raw).mean(0, keepdim=True), settings)
            raw = raw - raw.mean(0)
            log.info("align %s: round %d, mean correlation %.3f", kind, round_index + 1, score)
        found[chosen] = _REACH * raw.tanh()
        means[kind] = _warped(details[chosen], raw).mean(0, keepdim=True)
    return found, means


def _blurs(rounds: int) -> list[int]:
    """Blur width in each round: coarse alignment first, then ribs."""
    return [9, 5, *[1] * rounds][:rounds]


def _blurred(images: Tensor, width: int) -> Tensor:
    return F.avg_pool2d(images, width, stride=1, padding=width // 2)


def _shrunk(pixels: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(pixels.float() / 255.0, _SMALL)


def _details(images: Tensor) -> Tensor:
    """Edges rather than exposure: local mean subtracted, local contrast normalized; [N, 1, h, w]."""
    low = F.avg_pool2d(F.pad(images, (8, 8, 8, 8), mode="reflect"), 17, stride=1)
    centered = images - low
    std = F.avg_pool2d(F.pad(centered.square(), (8, 8, 8, 8), mode="reflect"), 17, stride=1).sqrt()
    return centered / (std + 0.02)


def _register(seen: Tensor, raw: Tensor, mean: Tensor, settings: AlignSettings) -> tuple[Tensor, float]:
    """Register [N, 1, h, w] to [1, 1, h, w], starting at raw parameters [N, 5]; returns these and the correlation."""
    window = torch.hann_window(_SMALL + 2, periodic=False)[1:-1].sqrt()
    weight = window[:, None] * window  # the center counts: edges show arms and markers
    moved, scores = [], []
    for images, start in zip(seen.split(_BATCH), raw.split(_BATCH), strict=True):
        part = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([part], lr=settings.learning_rate)
        for _ in range(settings.steps):
            warped = warp(images, warp_matrices(_REACH * part.tanh()), outside="reflection")
            score = _correlation(warped, mean, weight)  # [B]
            loss = (settings.stay * part.square().sum(-1) - score).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        moved.append(part.detach())
        scores.append(score.detach())
    return torch.cat(moved), torch.cat(scores).mean().item()


def _warped(images: Tensor, raw: Tensor) -> Tensor:
    parts = zip(images.split(_BATCH), raw.split(_BATCH), strict=True)
    return torch.cat([warp(part, warp_matrices(_REACH * r.tanh()), outside="reflection") for part, r in parts])


def _correlation(images: Tensor, mean: Tensor, weight: Tensor) -> Tensor:
    """Weighted normalized cross-correlation of [B, 1, h, w] with [1, 1, h, w]: [B]."""
    total = weight.sum()
    a = images - (images * weight).sum((1, 2, 3), keepdim=True) / total
    b = mean - (mean * weight).sum((1, 2, 3), keepdim=True) / total
    product = (a * b * weight).sum((1, 2, 3))
    power = (a.square() * weight).sum((1, 2, 3)) * (b.square() * weight).sum((1, 2, 3))
    return product / (power + 1e-8).sqrt()
