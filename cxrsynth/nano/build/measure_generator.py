"""What the generator is worth against images of split `val`: fidelity, obedience, answers to words, copies."""

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
from cxrsynth.diffusion.noise import sample_noise
from cxrsynth.diffusion.parallel import SamplingPool
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
from cxrsynth.metrics.memorization.search import Share
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
_DRAWS = 20
_COPY_SIZE = 64  # pixels at which images are compared for copying


@dataclass(frozen=True)
class Framed:
    """Images in the canonical frame: what the generator learned to draw. Images [N, 1, H, W] float32 in [0, 1]."""

    radiographs: list[Radiograph]
    images: Tensor

    @staticmethod
    def of(radiographs: list[Radiograph], pixels: Tensor, frames: Tensor) -> "Framed":
        """From uint8 [N, 1, H, W] and matrices [N, 2, 3]."""
        return Framed(radiographs, resampled(pixels, frames, pixels.shape[-1]))


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
                sampler=self.model.spec.defaults.sampler,
                steps=self.model.spec.defaults.steps,
                guidance=self.model.spec.defaults.guidance,
            )

        with SamplingPool(self.model, batch_size=_BATCH, threads_per_batch=1) as pool:
            return torch.cat([images for _, images in pool.map_in_order(one, batches)])


def generator_numbers(
    maker: Maker,
    judge: FindingClassifier,
    train: Framed,
    val: Framed,
    *,
    known: list[Radiograph],
    real: dict[str, dict[str, Any]],
    told: Collection[str],
    count: int,
    pairs: int,
    seed: int,
    sheet: Path,
) -> dict[str, Any]:
    """All numbers: on `count` images by prompts of val images in turn, and on `pairs` pairs that differ in a word.

    Args:
        maker: the generator.
        judge: the classifier that did not help to make it.
        train: images it may have copied.
        val: images to be compared with.
        known: all val images, those of 64 pixels and those beside the canonical frame too: rare findings are among
        them.
        real: what the judge is worth on them, by head (`classifier_numbers`).
        told: heads that tell real images apart beyond chance; on the others no image can be shown right.
        count: images.
        pairs: pairs of images.
        seed: of what is drawn.
        sheet: file for a picture of the first hundred images, none left out.
    """
    rng = random.Random(seed)
    asked = _asked(val.radiographs, known, count, rng)
    images = maker.make(
        [caption(radiograph, rng, whole=True) for radiograph in asked], [f"measure-{i}" for i in range(count)]
    )
    sheet.write_bytes(contact_sheet((image[0].numpy() for image in images[:100]), columns=10))
    return {
        "fidelity": _fidelity(judge, train, val, images[: len(val.radiographs)], rng),
        # Each image's prompt once: images of one prompt are not independent.
        "obedience": _obedience(judge, asked[: len(known)], images[: len(known)], real=real, told=told),
        "words": _words(maker, judge, val, told=told, pairs=pairs, rng=rng),
        "copies": _copies(train, val, images),
    }


def _asked(framed: list[Radiograph], known: list[Radiograph], count: int, rng: random.Random) -> list[Radiograph]:
    """Whose prompts are asked: each framed image once, then the others, then all again; each part in random order.

    The first `len(framed)` images so have the mix of adults, children and findings of the images they are compared
    with.
    """
    ids = {radiograph.image_id for radiograph in framed}
    asked: list[Radiograph] = []
    while len(asked) < count:
        for radiographs in (framed, [radiograph for radiograph in known if radiograph.image_id not in ids]):
            asked += rng.sample(radiographs, len(radiographs))
    return asked[:count]


def _fidelity(
    judge: FindingClassifier, train: Framed, val: Framed, images: Tensor, rng: random.Random
) -> dict[str, Any]:
    """Distances in the judge's features at equal counts, beside those of real train images to real val images.

    Train images are drawn `_DRAWS` times, as many of each source as val has: a single draw's distance says little (2.3
    to 3.5 on nano's images).
    """
    equal = min(len(val.radiographs), len(images))
    chosen = rng.sample(range(len(val.radiographs)), equal)
    real = _features(judge, val.images[chosen])
    made, trained = _features(judge, images[:equal]), _features(judge, train.images)
    sources = [val.radiographs[place].group for place in chosen]
    draws = [trained[_alike(sources, train.radiographs, rng)] for _ in range(_DRAWS)]
    numbers: dict[str, Any] = {"images": equal, "draws": _DRAWS}
    numbers["frechet_made_to_val"] = asdict(frechet_interval(made, real))
    numbers["frechet_train_to_val"] = asdict(_spread([frechet_distance(drawn, real) for drawn in draws]))
    numbers["frechet_ratio"] = numbers["frechet_made_to_val"]["value"] / numbers["frechet_train_to_val"]["value"]
    numbers["kid_made_to_val"] = asdict(kernel_interval(made, real))
    numbers["kid_train_to_val"] = asdict(_spread([kernel_distance(drawn, real) for drawn in draws]))
    numbers["manifolds_made"] = asdict(manifolds(real, made))
    several = [asdict(manifolds(real, drawn)) for drawn in draws]
    numbers["manifolds_train"] = {name: float(np.mean([one[name] for one in several])) for name in several[0]}
    return numbers


def _spread(values: list[float]) -> Interval:
    """Mean of draws, and between which values 95 in 100 of them lie."""
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(np.mean(values)), float(low), float(high))


def _alike(sources: list[str], train: list[Radiograph], rng: random.Random) -> list[int]:
    """Places of train images of these sources, each source as often as it is named, or as often as it has images."""
    places = []
    for group, number in sorted(Counter(sources).items()):
        own = [place for place, radiograph in enumerate(train) if radiograph.group == group]
        places += rng.sample(own, min(number, len(own)))
    return places


def _obedience(
    judge: FindingClassifier,
    asked: list[Radiograph],
    images: Tensor,
    *,
    real: dict[str, dict[str, Any]],
    told: Collection[str],
) -> dict[str, Any]:
    """Per head: how well the judge tells what was asked for, against how well it tells real images apart (`real`)."""
    heads = list(judge.heads)
    made = classifier_numbers(_logits(judge, images), targets(asked, heads), heads)
    return {
        head: {
            "images": real[head]["present"],
            "made": one["auroc"],
            "real": real[head]["auroc"],
            "share": _kept(one["auroc"], real[head]["auroc"]["value"]) if head in told else None,
        }
        for head, one in made.items()
        if head in real
    }


def _kept(made: dict[str, float], real: float) -> dict[str, float]:
    """An AUROC and its interval as shares of a real one, both counted from chance."""
    return {part: (area - 0.5) / (real - 0.5) for part, area in made.items()}


def _words(
    maker: Maker,
    judge: FindingClassifier,
    val: Framed,
    *,
    told: Collection[str],
    pairs: int,
    rng: random.Random,
) -> dict[str, Any]:
    """Same noise, one finding present or denied: does the judge's logit follow, and do the others stay?"""
    shown = maker.model.spec.depicts
    if shown is None:
        raise ValueError("the model folder does not say what the model was shown")
    findings = [name for name in judge.heads if name in shown.findings and name != "No Finding"]
    subjects = [rng.choice(val.radiographs).subject for _ in range(pairs)]
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
    heads = list(judge.heads)
    unrelated, others = (torch.tensor([beside(name, heads) for name in changed]) for beside in (_unrelated, _others))
    right = (own > 0).double().numpy()
    able = np.array([name in told for name in changed])
    return {
        "pairs": pairs,
        "right_way": asdict(mean_interval(right)),
        "pairs_told": int(able.sum()),
        "right_way_told": asdict(mean_interval(right[able])) if able.any() else None,
        "unrelated_to_own": _movement(moved, own, unrelated),
        "others_to_own": _movement(moved, own, others),
        "by_finding": {
            name: float(np.mean([right[i] for i in range(pairs) if changed[i] == name])) for name in findings
        },
    }


def _others(changed: str, heads: list[str]) -> list[bool]:
    """Which heads are findings other than `changed`; with it a lung opacity moves rightly."""
    return [head not in (changed, "No Finding", "Lung Opacity", *SUBJECT_HEADS) for head in heads]


def _unrelated(changed: str, heads: list[str]) -> list[bool]:
    """Which heads are findings that have no parent in common with `changed` in CheXpert's hierarchy."""
    kin = OPACITY_KINDS if changed in ("Lung Opacity", *OPACITY_KINDS) else ()
    return [other and head not in kin for other, head in zip(_others(changed, heads), heads, strict=True)]


def _movement(moved: Tensor, own: Tensor, beside: Tensor) -> dict[str, float]:
    """Mean change of the heads `beside` [pairs, K], against the changed finding's own [pairs]."""
    mean = (moved.abs() * beside).sum(1) / beside.sum(1)
    return asdict(bootstrap(_ratio, torch.stack((mean, own.abs()), 1).double().numpy()))


def _ratio(rows: Any) -> float:
    """Mean of the first column over that of the second, [n, 2]."""
    first, second = rows.mean(0)
    return float(first / second)


def _copies(train: Framed, val: Framed, images: Tensor) -> dict[str, Any]:
    """Share of images nearer to a training image than one in a hundred real val images is."""
    known = _small(train.images)

    def nearest(others: Tensor) -> Tensor:
        return torch.cdist(_small(others), known).amin(1)

    real, made = nearest(val.images), nearest(images)
    near = Share.among((made < real.quantile(0.01)).numpy())
    return {
        "nearer_than_first_percentile": {"value": near.caught / near.of, "low": near.low, "high": near.high},
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
