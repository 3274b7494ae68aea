"""Measure the reward models on images of split `val`: classifier, posture regressor, dual encoder."""

import math
import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error
from transformers import CLIPTokenizer

from cxrsynth.metrics.fidelity import Interval, bootstrap
from cxrsynth.nano.build.fitting import resampled
from cxrsynth.nano.build.images import Radiograph, caption
from cxrsynth.rewards.networks import DualEncoder, PostureRegressor
from cxrsynth.runtime.warps import compose, warp_matrices


def classifier_numbers(logits: Tensor, labels: Tensor, heads: list[str]) -> dict[str, dict[str, Any]]:
    """Per head: AUROC with interval, calibration error (15 bins, Guo et al. 2017), images with and without.

    `ece_of_chance` is the mean error of a perfectly calibrated head with as few images.

    Args:
        logits: [N, K] after temperature.
        labels: [N, K], 1 present, 0 absent, nan unknown.
        heads: K names.
    """
    numbers = {}
    for place, head in enumerate(heads):
        known = ~labels[:, place].isnan()
        scores, truth = logits[known, place].double().sigmoid(), labels[known, place].long()
        present, absent = int(truth.sum()), int((1 - truth).sum())
        if present and absent:
            numbers[head] = {
                "auroc": asdict(_interval(_auroc, scores, truth)),
                "ece": round(binary_calibration_error(scores, truth, n_bins=15).item(), 4),
                "ece_of_chance": round(_ece_of_chance(scores), 4),
                "present": present,
                "absent": absent,
            }
    return numbers


def _ece_of_chance(scores: Tensor, *, samples: int = 50) -> float:
    """Mean calibration error over outcomes sampled from the probabilities [n] themselves."""
    rng = torch.Generator().manual_seed(0)
    outcomes = torch.rand((samples, len(scores)), generator=rng, dtype=scores.dtype) < scores
    return float(sum(binary_calibration_error(scores, one.long(), n_bins=15).item() for one in outcomes) / samples)


@torch.no_grad()
def posture_numbers(
    network: PostureRegressor, pixels: Tensor, frames: Tensor, *, reach: tuple[float, ...], seed: int
) -> dict[str, float]:
    """Median errors on known warps of images in the canonical frame, in degrees, percent of width, percent of scale.

    Args:
        network: the regressor.
        pixels: uint8 [N, 1, H, W].
        frames: canonical frames [N, 2, 3].
        reach: largest warp, as in training.
        seed: of the warps.
    """
    rng = torch.Generator().manual_seed(seed)
    warps = (torch.rand(len(pixels), len(reach), generator=rng) * 2 - 1) * torch.tensor(reach)
    warped = resampled(pixels, compose(frames, warp_matrices(warps)), network.trunk.size)
    error = (torch.cat([network(part) for part in warped.split(64)]) - warps).abs()  # [N, 5]
    median = error.median(0).values
    return {
        "rotation_deg": round(math.degrees(median[4].item()), 2),
        "shift_percent": round(50 * median[:2].mean().item(), 2),  # half widths to widths
        "scale_percent": round(100 * (median[2:4].mean().exp().item() - 1), 2),
    }


@torch.no_grad()
def dual_encoder_numbers(
    network: DualEncoder, tokenizer: CLIPTokenizer, radiographs: list[Radiograph], pixels: Tensor, *, seed: int
) -> dict[str, Any]:
    """Share of images that are closer to their own canonical text than to that of an image with other findings."""
    rng = random.Random(seed)
    known = [place for place, radiograph in enumerate(radiographs) if radiograph.present]
    own, wrong = [], []
    for place in known:
        others = [other for other in known if set(radiographs[other].present) != set(radiographs[place].present)]
        own.append(_text(radiographs[place], radiographs[place], rng))
        wrong.append(_text(radiographs[place], radiographs[rng.choice(others)], rng))
    images = torch.cat([network.encode_images(part.float() / 255.0) for part in pixels[known].split(32)])

    def texts(sentences: list[str]) -> Tensor:
        ids = tokenizer(sentences, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return torch.cat([network.encode_texts(part) for part in ids.split(64)])

    better = ((images * texts(own)).sum(1) > (images * texts(wrong)).sum(1)).float()
    return {"right_over_wrong": asdict(_interval(lambda one: one.mean().item(), better)), "pairs": len(better)}


def _text(radiograph: Radiograph, findings_of: Radiograph, rng: random.Random) -> str:
    """Canonical text of an image's subject with the findings of another, so that only the findings differ."""
    described = Radiograph(
        radiograph.image_id,
        radiograph.patient_id,
        radiograph.group,
        radiograph.subject,
        findings_of.present,
        (),
        padded=radiograph.padded,
    )
    return caption(described, rng, whole=True)


def _auroc(scores: Tensor, truth: Tensor) -> float:
    return float(binary_auroc(scores, truth))


def _interval(measure: Callable[..., float], *tensors: Tensor) -> Interval:
    """Bootstrap over rows, all tensors resampled together; rounded to three decimals."""
    rows = np.arange(len(tensors[0]), dtype=np.float64)[:, None]

    def of_rows(chosen: Any) -> float:
        places = torch.from_numpy(chosen[:, 0].astype(np.int64))
        return measure(*(tensor[places] for tensor in tensors))

    found = bootstrap(of_rows, rows)
    return Interval(*(round(value, 3) for value in (found.value, found.low, found.high)))
