"""Measure the generator against images of split `val`: fidelity, prompt adherence, prompt pairs, memorization."""

import random
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cxrsynth.diffusion.model import DiffusionModel, choose_precision, load_model
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.metrics.fidelity import (
    Interval,
    bootstrap,
    frechet_distance,
    frechet_interval,
    kernel_distance,
    kernel_interval,
    manifolds,
    mean_interval,
)
from cxrsynth.metrics.proportion import Share
from cxrsynth.nano.build.classifier import targets
from cxrsynth.nano.build.fitting import resampled
from cxrsynth.nano.build.images import Radiograph, caption
from cxrsynth.nano.build.measure_reward_models import classifier_numbers
from cxrsynth.reports.labels import OPACITY_KINDS, FindingLabel, Status
from cxrsynth.reports.prompt import canonical_prompt
from cxrsynth.rewards.networks import SUBJECT_HEADS, FindingClassifier
from cxrsynth.settings import Precision
from cxrsynth.shards.card import contact_sheet

_BATCH = 4
_RESAMPLES = 20
_COMPARED_SIZE = 64  # side in pixels at which images are compared for memorization


@dataclass(frozen=True)
class Framed:
    """Images in the canonical frame, as the generator was trained on; [N, 1, H, W] float32 in [0, 1]."""

    radiographs: list[Radiograph]
    images: Tensor

    @staticmethod
    def of(radiographs: list[Radiograph], pixels: Tensor, frames: Tensor) -> "Framed":
        """From uint8 [N, 1, H, W] and matrices [N, 2, 3]."""
        return Framed(radiographs, resampled(pixels, frames, pixels.shape[-1]))


class ImageGenerator:
    """The exported model with its own defaults: prompts in, images out."""

    def __init__(self, folder: Path) -> None:
        device = torch.device("cpu")
        precision = choose_precision(Precision.AUTO, device)
        self.model: DiffusionModel = load_model(resolve_model(str(folder)), device=device, precision=precision)

    def generate(self, prompts: list[str], names: list[str]) -> Tensor:
        """[N, 1, H, W] float32 in [0, 1]; noise depends on the name only, so equal names share it."""
        batches = list(range(0, len(prompts), _BATCH))

        def one(first: int) -> Tensor:
            own = slice(first, first + _BATCH)
            noise = torch.stack([seeded_noise(self.model.latent_shape, 0, name) for name in names[own]])
            return sample_images(
                self.model,
                prompts[own],
                noise,
                sampler=self.model.spec.defaults.sampler,
                steps=self.model.spec.defaults.steps,
                guidance=self.model.spec.defaults.guidance,
            )

        with SamplingPool(self.model, batch_size=_BATCH, threads_per_batch=1) as pool:
            return torch.cat([images for _, images in pool.map_in_order(one, batches)])


def generator_numbers(
    generator: ImageGenerator,
    classifier: FindingClassifier,
    train: Framed,
    val: Framed,
    *,
    known: list[Radiograph],
    real: dict[str, dict[str, Any]],
    measurable: Collection[str],
    count: int,
    pairs: int,
    seed: int,
    sheet: Path,
) -> dict[str, Any]:
    """All measurements: on `count` images from prompts of val images, and on `pairs` pairs that differ in a finding.

    Args:
        generator: the exported model.
        classifier: of the family that had no part in building it.
        train: images it may have memorized.
        val: images to compare with.
        known: all val images, including those of 64 pixels and those outside the canonical frame: they show rare
            findings.
        real: the classifier's numbers on them, by head (`classifier_numbers`).
        measurable: heads that are better than chance on real images; the others cannot show that an image is right.
        count: number of images.
        pairs: number of image pairs.
        seed: of all sampling.
        sheet: file for a contact sheet of the first hundred images, uncurated.
    """
    rng = random.Random(seed)
    prompted = _prompted(val.radiographs, known, count, rng)
    images = generator.generate(
        [caption(radiograph, rng, whole=True) for radiograph in prompted], [f"measure-{i}" for i in range(count)]
    )
    sheet.write_bytes(contact_sheet((image[0].numpy() for image in images[:100]), columns=10))
    return {
        "fidelity": _fidelity(classifier, train, val, images[: len(val.radiographs)], rng),
        # Each prompt once: images of one prompt are not independent.
        "adherence": _adherence(
            classifier, prompted[: len(known)], images[: len(known)], real=real, measurable=measurable
        ),
        "words": _words(generator, classifier, val, measurable=measurable, pairs=pairs, rng=rng),
        "memorization": _memorization(train, val, images),
    }


def _prompted(framed: list[Radiograph], known: list[Radiograph], count: int, rng: random.Random) -> list[Radiograph]:
    """Images whose prompts are used: each framed image once, then the others, then all again; each in random order.

    So the first `len(framed)` prompts have the same mix of adults, children and findings as the images they are
    compared with.
    """
    ids = {radiograph.image_id for radiograph in framed}
    prompted: list[Radiograph] = []
    while len(prompted) < count:
        for radiographs in (framed, [radiograph for radiograph in known if radiograph.image_id not in ids]):
            prompted += rng.sample(radiographs, len(radiographs))
    return prompted[:count]


def _fidelity(
    classifier: FindingClassifier, train: Framed, val: Framed, images: Tensor, rng: random.Random
) -> dict[str, Any]:
    """Distances in the classifier's features at equal counts, and those of real train images to real val images.

    Train images are sampled `_RESAMPLES` times, as many of each source as val has: the distance of a single sample
    varies too much (2.3 to 3.5 on nano's images).
    """
    equal = min(len(val.radiographs), len(images))
    chosen = rng.sample(range(len(val.radiographs)), equal)
    real = features_of(classifier, val.images[chosen])
    generated, trained = features_of(classifier, images[:equal]), features_of(classifier, train.images)
    sources = [val.radiographs[place].group for place in chosen]
    samples = [trained[_matched(sources, train.radiographs, rng)] for _ in range(_RESAMPLES)]
    numbers: dict[str, Any] = {"images": equal, "resamples": _RESAMPLES}
    numbers["frechet_generated_to_val"] = asdict(frechet_interval(generated, real))
    numbers["frechet_train_to_val"] = asdict(_interval([frechet_distance(sample, real) for sample in samples]))
    numbers["frechet_ratio"] = numbers["frechet_generated_to_val"]["value"] / numbers["frechet_train_to_val"]["value"]
    numbers["kid_generated_to_val"] = asdict(kernel_interval(generated, real))
    numbers["kid_train_to_val"] = asdict(_interval([kernel_distance(sample, real) for sample in samples]))
    numbers["manifolds_generated"] = asdict(manifolds(real, generated))
    several = [asdict(manifolds(real, sample)) for sample in samples]
    numbers["manifolds_train"] = {name: float(np.mean([one[name] for one in several])) for name in several[0]}
    return numbers


def _interval(values: list[float]) -> Interval:
    """Mean, and the interval that holds 95% of the values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(np.mean(values)), float(low), float(high))


def _matched(sources: list[str], train: list[Radiograph], rng: random.Random) -> list[int]:
    """Indices of train images with these sources: each source as often as it is listed, or all it has."""
    places = []
    for group, number in sorted(Counter(sources).items()):
        own = [place for place, radiograph in enumerate(train) if radiograph.group == group]
        places += rng.sample(own, min(number, len(own)))
    return places


def _adherence(
    classifier: FindingClassifier,
    prompted: list[Radiograph],
    images: Tensor,
    *,
    real: dict[str, dict[str, Any]],
    measurable: Collection[str],
) -> dict[str, Any]:
    """Per head: the classifier's AUROC on generated images for what the prompt states, against that on real images."""
    heads = list(classifier.heads)
    generated = classifier_numbers(_logits(classifier, images), targets(prompted, heads), heads)
    return {
        head: {
            "images": real[head]["present"],
            "generated": one["auroc"],
            "real": real[head]["auroc"],
            "share": _relative(one["auroc"], real[head]["auroc"]["value"]) if head in measurable else None,
        }
        for head, one in generated.items()
        if head in real
    }


def _relative(generated: dict[str, float], real: float) -> dict[str, float]:
    """An AUROC and its interval relative to the AUROC on real images, both above chance (0.5)."""
    return {part: (area - 0.5) / (real - 0.5) for part, area in generated.items()}


def _words(
    generator: ImageGenerator,
    classifier: FindingClassifier,
    val: Framed,
    *,
    measurable: Collection[str],
    pairs: int,
    rng: random.Random,
) -> dict[str, Any]:
    """Same noise, one finding present or absent: does its logit follow, and do the others stay?"""
    depicts = generator.model.spec.depicts
    if depicts is None:
        raise ValueError("the model folder does not list the findings of its training images")
    findings = [name for name in classifier.heads if name in depicts.findings and name != "No Finding"]
    subjects = [rng.choice(val.radiographs).subject for _ in range(pairs)]
    changed = [findings[i % len(findings)] for i in range(pairs)]
    names = [f"pair-{i}" for i in range(pairs)]
    probabilities = []
    for status in (Status.PRESENT, Status.ABSENT):
        prompts = [
            canonical_prompt(subject, {name: FindingLabel(status)})
            for subject, name in zip(subjects, changed, strict=True)
        ]
        probabilities.append(_logits(classifier, generator.generate(prompts, names)).sigmoid())
    moved = probabilities[0] - probabilities[1]  # [pairs, K]
    place = torch.tensor([classifier.heads.index(name) for name in changed])
    own = moved.gather(1, place[:, None])[:, 0]
    heads = list(classifier.heads)
    unrelated, others = (torch.tensor([beside(name, heads) for name in changed]) for beside in (_unrelated, _others))
    right = (own > 0).double().numpy()
    able = np.array([name in measurable for name in changed])
    return {
        "pairs": pairs,
        "right_way": asdict(mean_interval(right)),
        "pairs_measurable": int(able.sum()),
        "right_way_measurable": asdict(mean_interval(right[able])) if able.any() else None,
        "unrelated_to_own": _movement(moved, own, unrelated),
        "others_to_own": _movement(moved, own, others),
        "by_finding": {
            name: float(np.mean([right[i] for i in range(pairs) if changed[i] == name])) for name in findings
        },
    }


def _others(changed: str, heads: list[str]) -> list[bool]:
    """Which heads are findings other than `changed`; lung opacity does not count, since it should move too."""
    return [head not in (changed, "No Finding", "Lung Opacity", *SUBJECT_HEADS) for head in heads]


def _unrelated(changed: str, heads: list[str]) -> list[bool]:
    """Which heads are findings that share no parent with `changed` in CheXpert's hierarchy."""
    kin = OPACITY_KINDS if changed in ("Lung Opacity", *OPACITY_KINDS) else ()
    return [other and head not in kin for other, head in zip(_others(changed, heads), heads, strict=True)]


def _movement(moved: Tensor, own: Tensor, beside: Tensor) -> dict[str, float]:
    """Mean change of the heads `beside` [pairs, K], relative to that of the changed finding [pairs]."""
    mean = (moved.abs() * beside).sum(1) / beside.sum(1)
    return asdict(bootstrap(_ratio, torch.stack((mean, own.abs()), 1).double().numpy()))


def _ratio(rows: Any) -> float:
    """Ratio of the means of two columns, [n, 2]."""
    first, second = rows.mean(0)
    return float(first / second)


def _memorization(train: Framed, val: Framed, images: Tensor) -> dict[str, Any]:
    """Share of images that are closer to a training image than 99% of real val images are."""
    known = _small(train.images)

    def nearest(others: Tensor) -> Tensor:
        return torch.cdist(_small(others), known).amin(1)

    real, generated = nearest(val.images), nearest(images)
    near = Share.among((generated < real.quantile(0.01)).numpy())
    return {
        "nearer_than_first_percentile": {"value": near.caught / near.of, "low": near.low, "high": near.high},
        "median_generated": generated.median().item(),
        "median_val": real.median().item(),
    }


def _small(images: Tensor) -> Tensor:
    """[N, 1, H, W] -> [N, 4096] of zero mean and unit length: independent of exposure."""
    flat = F.interpolate(images, (_COMPARED_SIZE, _COMPARED_SIZE), mode="bilinear", antialias=True).flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


@torch.no_grad()
def features_of(classifier: FindingClassifier, images: Tensor) -> Any:
    """The classifier's features of images [N, 1, H, W]: float64 [N, D]."""
    return torch.cat([classifier.trunk(part) for part in images.split(32)]).double().numpy()


@torch.no_grad()
def _logits(classifier: FindingClassifier, images: Tensor) -> Tensor:
    return torch.cat([classifier(part) for part in images.split(32)])
