"""Bring the films' chests to one place: registration of each to a mean film that sharpens as they agree.

No film says where its lungs are. Each is warped by five affine numbers (shift, two scales, rotation) so that it
correlates best with the mean of all warped films of its age group; the mean is drawn again as they settle.

Source: congealing (Learned-Miller, IEEE TPAMI 2006), with normalised cross-correlation in place of entropy.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from cxrsynth.nano.build.config import AlignSettings
from cxrsynth.nano.build.films import Film
from cxrsynth.nano.build.training import log

_SMALL = 64  # pixels on a side while registering
_BATCH = 256
# Order of the five numbers, and how far each may go: fractions of the half width, log scales, radians.
PARAMETERS = ("shift_x", "shift_y", "log_scale_x", "log_scale_y", "rotation_rad")
_REACH = torch.tensor((0.25, 0.25, 0.25, 0.25, 0.25))


def warp_matrices(parameters: Tensor) -> Tensor:
    """`affine_grid` matrices [N, 2, 3] from output to input of the five numbers [N, 5].

    A positive log scale shows a larger piece of the film, that is, makes the chest smaller.
    """
    shift_x, shift_y, log_x, log_y, angle = parameters.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    first = torch.stack((log_x.exp() * cos, -log_y.exp() * sin, shift_x), -1)
    second = torch.stack((log_x.exp() * sin, log_y.exp() * cos, shift_y), -1)
    return torch.stack((first, second), -2)


def compose(first: Tensor, then: Tensor) -> Tensor:
    """The matrices [N, 2, 3] that look up by `then` in what `first` gives; both [N or 1, 2, 3]."""
    last = torch.tensor([[[0.0, 0.0, 1.0]]])
    square = [torch.cat([m, last.expand(len(m), -1, -1)], 1) for m in (first, then)]
    return (square[0] @ square[1])[:, :2]


def warp(images: Tensor, matrices: Tensor, *, mode: str = "bilinear", outside: str = "zeros") -> Tensor:
    """Resample [N, 1, H, W] by matrices [N, 2, 3]; beyond the film's edge black, or as `outside` says."""
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode=outside, align_corners=False)


def canonical_frames(
    films: list[Film], pixels: Tensor, path: Path, *, settings: AlignSettings
) -> tuple[Tensor, Tensor]:
    """Matrices [N, 2, 3] that show each film's chest in the canonical frame, and which films fit it, bool [N].

    Left out are letterboxed films and those of which too much of the frame lies beyond the film's edge. Kept at `path`.
    """
    if path.exists():
        kept = load_file(path)
        return kept["matrices"], kept["shown"]
    filled = torch.tensor([not film.padded for film in films])
    matrices = torch.eye(2, 3).repeat(len(films), 1, 1)
    kinds = ["child" if film.group == "kermany_ped" else "adult" for film in films]
    of_filled = [kind for kind, here in zip(kinds, filled.tolist(), strict=True) if here]
    zoom = torch.tensor([[[settings.zoom, 0.0, settings.centre[0]], [0.0, settings.zoom, settings.centre[1]]]])
    parameters = align_films(pixels[filled], of_filled, settings=settings)
    matrices[filled] = compose(warp_matrices(parameters), zoom.expand(len(parameters), -1, -1))
    beyond = 1 - warp(torch.ones(len(films), 1, _SMALL, _SMALL), matrices).mean((1, 2, 3))  # [N]
    shown = filled & (beyond <= settings.beyond)
    log.info("align: %d of %d films shown in the canonical frame", shown.sum(), len(films))
    save_file({"matrices": matrices, "shown": shown}, path)
    return matrices, shown


def align_films(pixels: Tensor, kinds: list[str], *, settings: AlignSettings) -> Tensor:
    """The five numbers of each film, float32 [N, 5]; their mean over each kind of film is zero.

    Args:
        pixels: uint8 [N, 1, H, W].
        kinds: each film's kind; a kind is aligned to a mean of its own.
        settings: rounds and steps.
    """
    details = _details(F.adaptive_avg_pool2d(pixels.float() / 255.0, _SMALL))
    found = torch.zeros(len(pixels), 5)
    for kind in sorted(set(kinds)):
        chosen = torch.tensor([other == kind for other in kinds])
        found[chosen] = _congeal(details[chosen], settings, kind)
    return found


def _details(images: Tensor) -> Tensor:
    """Edges rather than exposure: local mean taken off, local contrast made equal; [N, 1, h, w]."""
    low = F.avg_pool2d(F.pad(images, (8, 8, 8, 8), mode="reflect"), 17, stride=1)
    centred = images - low
    spread = F.avg_pool2d(F.pad(centred.square(), (8, 8, 8, 8), mode="reflect"), 17, stride=1).sqrt()
    return centred / (spread + 0.02)


def _congeal(details: Tensor, settings: AlignSettings, kind: str) -> Tensor:
    """Five numbers for films of one kind, [N, 1, h, w] -> [N, 5]."""
    raw = torch.zeros(len(details), 5)
    window = torch.hann_window(_SMALL + 2, periodic=False)[1:-1].sqrt()
    weight = window[:, None] * window  # the middle of the picture counts: edges hold arms and markers
    for round_index in range(settings.rounds):
        # From blurred to sharp: far apart first, then ribs.
        blur = max(1, 9 - 4 * round_index) if round_index < 2 else 1
        seen = F.avg_pool2d(details, blur, stride=1, padding=blur // 2)
        with torch.no_grad():
            mean = _warped(seen, raw).mean(0, keepdim=True)
        scores = []
        for rows in torch.arange(len(raw)).split(_BATCH):
            part = raw[rows].clone().requires_grad_()
            optimizer = torch.optim.Adam([part], lr=settings.learning_rate)
            for _ in range(settings.steps):
                warped = warp(seen[rows], warp_matrices(_REACH * part.tanh()), outside="reflection")
                score = _correlation(warped, mean, weight)  # [B]
                loss = (settings.stay * part.square().sum(-1) - score).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            raw[rows] = part.detach()
            scores.append(score.detach())
        raw = raw - raw.mean(0)
        log.info("align %s: round %d, mean correlation %.3f", kind, round_index + 1, torch.cat(scores).mean())
    return _REACH * raw.tanh()


def _warped(images: Tensor, raw: Tensor) -> Tensor:
    parts = zip(images.split(_BATCH), raw.split(_BATCH), strict=True)
    return torch.cat([warp(part, warp_matrices(_REACH * r.tanh()), outside="reflection") for part, r in parts])


def _correlation(images: Tensor, mean: Tensor, weight: Tensor) -> Tensor:
    """Weighted normalised cross-correlation of [B, 1, h, w] with [1, 1, h, w]: [B]."""
    total = weight.sum()
    a = images - (images * weight).sum((1, 2, 3), keepdim=True) / total
    b = mean - (mean * weight).sum((1, 2, 3), keepdim=True) / total
    product = (a * b * weight).sum((1, 2, 3))
    power = (a.square() * weight).sum((1, 2, 3)) * (b.square() * weight).sum((1, 2, 3))
    return product / (power + 1e-8).sqrt()
