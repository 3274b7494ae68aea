"""What the generator is worth against films of split `val`: fidelity, obedience, answers to words, copies."""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from cxrsynth.diffusion.model import DiffusionModel, choose_precision, load_model
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.evidence.fidelity import bootstrap, frechet_distance, kernel_distance, manifolds
from cxrsynth.nano.build.classifier import targets
from cxrsynth.nano.build.films import Film, caption
from cxrsynth.nano.build.fitting import resampled
from cxrsynth.reports.labels import FindingLabel, Status
from cxrsynth.reports.prompt import canonical_prompt
from cxrsynth.rewards.networks import FindingClassifier
from cxrsynth.seeds import sample_noise
from cxrsynth.settings import Precision, Sampler

_BATCH = 4
_COPY_SIZE = 64  # pixels at which films are compared for copying


@dataclass(frozen=True)
class Framed:
    """Films in the canonical frame: what the generator learned to draw. Images [N, 1, H, W] float32 in [0, 1]."""

    films: list[Film]
    images: Tensor

    @staticmethod
    def of(films: list[Film], pixels: Tensor, frames: Tensor) -> "Framed":
        """From uint8 [N, 1, H, W] and matrices [N, 2, 3]."""
        return Framed(films, resampled(pixels, frames, pixels.shape[-1]))


class Maker:
    """The exported generator with its own defaults: prompts in, images out."""

    def __init__(self, folder: Path) -> None:
        device = torch.device("cpu")
        precision = choose_precision(Precision.AUTO, device)
        self.model: DiffusionModel = load_model(str(folder), device=device, precision=precision)

    def make(self, prompts: list[str], names: list[str]) -> Tensor:
        """[N, 1, H, W] float32 in [0, 1]; noise depends on the name alone, so equal names share it."""
        batches = list(range(0, len(prompts), _BATCH))

        def one(first: int) -> Tensor:
            own = slice(first, first + _BATCH)
            noise = torch.stack([sample_noise(0, name, self.model.latent_shape) for name in names[own]])
            return sample_images(
                self.model,
                prompts[own],
                noise,
                sampler=Sampler.DDIM,
                steps=self.model.spec.defaults.steps,
                guidance=self.model.spec.defaults.guidance,
            )

        with SamplingPool(self.model, batch_size=_BATCH, threads_per_batch=1) as pool:
            return torch.cat([images for _, images in pool.map_in_order(one, batches)])


def generator_numbers(
    maker: Maker, judge: FindingClassifier, train: Framed, val: Framed, *, count: int, pairs: int, seed: int
) -> dict[str, Any]:
    """All numbers: on `count` images by prompts of val films in turn, and on `pairs` pairs that differ in a word."""
    rng = random.Random(seed)
    asked = [val.films[place % len(val.films)] for place in range(count)]
    images = maker.make([caption(film, rng, whole=True) for film in asked], [f"measure-{i}" for i in range(count)])
    return {
        "fidelity": _fidelity(judge, train, val, images, rng),
        "obedience": _obedience(judge, asked, images, val),
        "words": _words(maker, judge, val, pairs=pairs, rng=rng),
        "copies": _copies(train, val, images),
    }


def _fidelity(
    judge: FindingClassifier, train: Framed, val: Framed, images: Tensor, rng: random.Random
) -> dict[str, Any]:
    """Distances in the judge's features at equal counts, beside those of real train films to real val films."""
    equal = min(len(val.films), len(train.films), len(images))
    chosen = {
        "val": _features(judge, val.images[rng.sample(range(len(val.films)), equal)]),
        "train": _features(judge, train.images[rng.sample(range(len(train.films)), equal)]),
        "made": _features(judge, images[rng.sample(range(len(images)), equal)]),
    }
    measures: dict[str, Callable[..., float]] = {"frechet": frechet_distance, "kid": kernel_distance}
    numbers: dict[str, Any] = {"images": equal}
    for name, measure in measures.items():
        for kind in ("made", "train"):
            numbers[f"{name}_{kind}_to_val"] = asdict(bootstrap(measure, chosen[kind], chosen["val"], rounds=50))
    numbers["frechet_ratio"] = numbers["frechet_made_to_val"]["value"] / numbers["frechet_train_to_val"]["value"]
    for kind in ("made", "train"):
        numbers[f"manifolds_{kind}"] = asdict(manifolds(chosen["val"], chosen[kind]))
    return numbers


def _obedience(judge: FindingClassifier, asked: list[Film], images: Tensor, val: Framed) -> dict[str, Any]:
    """Per head: how well the judge tells what was asked for, against how well it tells real films apart."""
    heads = list(judge.heads)
    made, real = _logits(judge, images), _logits(judge, val.images)
    numbers = {}
    for place, head in enumerate(heads):
        areas = [
            _area(logits[:, place], targets(films, heads)[:, place])
            for logits, films in ((made, asked), (real, val.films))
        ]
        if None not in areas and areas[1] != 0.5:
            numbers[head] = {
                "made": areas[0],
                "real": areas[1],
                "share": (areas[0] - 0.5) / (areas[1] - 0.5),  # type: ignore[operator]
            }
    return numbers


def _words(maker: Maker, judge: FindingClassifier, val: Framed, *, pairs: int, rng: random.Random) -> dict[str, Any]:
    """Same noise, one finding present or denied: does the judge's logit follow, and do the others stay?"""
    shown = maker.model.spec.depicts
    if shown is None:
        raise ValueError("the model folder does not say what the model was shown")
    findings = [name for name in judge.heads if name in shown.findings and name != "No Finding"]
    subjects = [rng.choice(val.films).subject for _ in range(pairs)]
    changed = [findings[i % len(findings)] for i in range(pairs)]
    names = [f"pair-{i}" for i in range(pairs)]
    seen = []
    for status in (Status.PRESENT, Status.ABSENT):
        prompts = [
            canonical_prompt(subject, {name: FindingLabel(status)})
            for subject, name in zip(subjects, changed, strict=True)
        ]
        seen.append(_logits(judge, maker.make(prompts, names)).sigmoid())
    moved = seen[0] - seen[1]  # [pairs, K]
    place = torch.tensor([judge.heads.index(name) for name in changed])
    own = moved.gather(1, place[:, None])[:, 0]
    unrelated = torch.ones_like(moved, dtype=torch.bool)
    related = [judge.heads.index(name) for name in ("No Finding", "Lung Opacity") if name in judge.heads]
    unrelated[:, related] = False
    unrelated[torch.arange(pairs), place] = False
    beside = (moved.abs() * unrelated).sum(1) / unrelated.sum(1)
    right = (own > 0).double().numpy()[:, None]
    return {
        "pairs": pairs,
        "right_way": asdict(bootstrap(lambda rows: float(rows.mean()), right)),
        "unrelated_to_own": (beside.mean() / own.abs().mean()).item(),
        "by_finding": {
            name: float(np.mean([right[i, 0] for i in range(pairs) if changed[i] == name])) for name in findings
        },
    }


def _copies(train: Framed, val: Framed, images: Tensor) -> dict[str, float]:
    """Share of images nearer to a training film than one in a hundred real val films is."""
    known = _small(train.images)

    def nearest(others: Tensor) -> Tensor:
        return torch.cdist(_small(others), known).amin(1)

    real, made = nearest(val.images), nearest(images)
    edge = real.quantile(0.01)
    return {
        "nearer_than_first_percentile": (made < edge).float().mean().item(),
        "median_made": made.median().item(),
        "median_val": real.median().item(),
    }


def _small(images: Tensor) -> Tensor:
    """[N, 1, H, W] -> [N, 4096] of zero mean and unit length: exposure does not hide a copy."""
    flat = F.interpolate(images, (_COPY_SIZE, _COPY_SIZE), mode="bilinear", antialias=True).flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


@torch.no_grad()
def _features(judge: FindingClassifier, images: Tensor) -> Any:
    return torch.cat([judge.trunk(part) for part in images.split(32)]).double().numpy()


@torch.no_grad()
def _logits(judge: FindingClassifier, images: Tensor) -> Tensor:
    return torch.cat([judge(part) for part in images.split(32)])


def _area(logits: Tensor, wanted: Tensor) -> float | None:
    known = ~wanted.isnan()
    truth = wanted[known].long()
    if truth.min() == truth.max():
        return None
    return float(binary_auroc(logits[known].double().sigmoid(), truth))
