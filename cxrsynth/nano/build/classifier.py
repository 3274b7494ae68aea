"""The finding classifier of a reward family: trained on half of the patients, calibrated and measured on `val`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cxrsynth.nano.build.config import FitSettings
from cxrsynth.nano.build.fitting import augmented, fit, sample_batch, seeded, teaching_thread
from cxrsynth.nano.build.images import Radiograph
from cxrsynth.nano.build.training import forward_context
from cxrsynth.reports.labels import OBSERVATIONS, OPACITY_KINDS
from cxrsynth.rewards.networks import SUBJECT_HEADS, FindingClassifier

_SUBJECT = {"AP view": ("view", "AP"), "Child": ("age_group", "child"), "Female": ("sex", "F")}


def choose_heads(halves: list[list[Radiograph]], *, least: int) -> list[str]:
    """Observations present on at least `least` images of each half, then `SUBJECT_HEADS`."""
    counts = [Counter(name for radiograph in half for name in _shown(radiograph)) for half in halves]
    return [name for name in OBSERVATIONS if min(count[name] for count in counts) >= least] + list(SUBJECT_HEADS)


def targets(radiographs: list[Radiograph], heads: list[str]) -> Tensor:
    """1 present, 0 absent, nan unknown; float32 [N, K]."""
    return torch.tensor([[_target(radiograph, head) for head in heads] for radiograph in radiographs])


def train_classifier(
    radiographs: list[Radiograph],
    pixels: Tensor,
    heads: list[str],
    checkpoint: Path,
    *,
    trunk: dict[str, Any],
    settings: FitSettings,
    seed: int,
    save_every: int,
    teachers: Sequence[FindingClassifier] = (),
) -> FindingClassifier:
    """Train on labels, or on the mean logits of `teachers`, which have the same heads and are calibrated.

    Labels: masked binary cross-entropy; the rarer outcome of a head weighs more, by the root of its rarity. Teachers:
    squared error of the logits (Ba and Caruana, arXiv:1312.6184), on the same augmented images (Beyer et al.,
    arXiv:2106.05237).
    """
    with seeded(seed):
        network = FindingClassifier(heads, trunk | {"size": settings.size})
    wanted = targets(radiographs, heads)
    known = ~wanted.isnan()
    filled = wanted.nan_to_num()
    positive = (filled * known).sum(0).clamp(min=1)
    negative = ((1 - filled) * known).sum(0).clamp(min=1)
    weight = (negative / positive).sqrt().clamp(0.5, 8.0)  # [K]
    # Images with a rare finding are sampled more often.
    rarity = torch.where((filled > 0) & known, positive, torch.tensor(float(len(radiographs)))).amin(1)
    chances = (len(radiographs) / rarity).sqrt().clamp(max=5.0)
    frames = torch.eye(2, 3)[None]

    def loss(rng: torch.Generator) -> Tensor:
        chosen = sample_batch(chances, settings, rng)
        images = augmented(pixels[chosen], frames.expand(len(chosen), -1, -1), settings, rng)
        taught = aside.submit(ensemble_logits, teachers, images) if teachers else None
        logits = network(images).float()
        if taught is not None:
            return F.mse_loss(logits, taught.result())
        each = F.binary_cross_entropy_with_logits(logits, filled[chosen], pos_weight=weight, reduction="none")
        return (each * known[chosen]).sum() / known[chosen].sum()

    with teaching_thread() as aside:
        fit(network, loss, checkpoint, settings=settings, seed=seed, save_every=save_every)
    return network


@torch.no_grad()
def ensemble_logits(members: Sequence[FindingClassifier], images: Tensor) -> Tensor:
    """Mean of the members' logits, float32 [B, K]."""
    with forward_context():
        return torch.stack([member(images).float() for member in members]).mean(0)


def calibrate(network: FindingClassifier, logits: Tensor, wanted: Tensor) -> None:
    """Set each head's temperature and offset by maximum likelihood on the images of `val`.

    Args:
        network: with temperature 1 and offset 0.
        logits: its outputs, float32 [N, K].
        wanted: 1 present, 0 absent, nan unknown, [N, K].

    Source: Platt 1999; Guo et al., arXiv:1706.04599.
    """
    for head in range(logits.shape[1]):
        known = ~wanted[:, head].isnan()
        truth = wanted[known, head].double()
        if known.any() and 0 < truth.mean() < 1:
            scale, offset = platt(logits[known, head].double(), truth)
            network.temperature[head], network.offset[head] = 1 / scale, offset


def platt(logits: Tensor, truth: Tensor) -> tuple[float, float]:
    """Maximum-likelihood scale (0.1 to 10) and offset of logits [n] for outcomes [n]."""
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log scale, offset
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        optimizer.zero_grad()
        scaled = logits * parameters[0].clamp(-2.3, 2.3).exp() + parameters[1]
        value = F.binary_cross_entropy_with_logits(scaled, truth)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(cost)  # type: ignore[no-untyped-call]
    log_scale, offset = parameters.detach().tolist()
    return float(torch.tensor(log_scale).clamp(-2.3, 2.3).exp()), offset


def _shown(radiograph: Radiograph) -> set[str]:
    """Observations present; any kind of opacity counts as a lung opacity."""
    present = set(radiograph.present)
    return present | {"Lung Opacity"} if present & set(OPACITY_KINDS) else present


def _target(radiograph: Radiograph, head: str) -> float:
    if head in _SUBJECT:
        field, positive = _SUBJECT[head]
        value = getattr(radiograph.subject, field)
        return float("nan") if value is None else float(value == positive)
    shown = _shown(radiograph)
    if head in shown:
        return 1.0
    if head == "No Finding":
        return 0.0 if shown else float("nan")
    return 0.0 if head in radiograph.absent else float("nan")
