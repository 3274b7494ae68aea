"""What the generator is worth against films of split `val`: fidelity, obedience, answers to words, copies."""

import random
from collections import Counter
from collections.abc import Callable, Collection
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
from cxrsynth.evidence.fidelity import (
    Interval,
    bootstrap,
    frechet_distance,
    kernel_distance,
    manifolds,
    mean_interval,
)
from cxrsynth.nano.build.classifier import targets
from cxrsynth.nano.build.films import Film, caption
from cxrsynth.nano.build.fitting import resampled
from cxrsynth.nano.build.judges import JudgedFilms, logits_of
from cxrsynth.reports.labels import FindingLabel, Status
from cxrsynth.reports.prompt import canonical_prompt
from cxrsynth.rewards.networks import FindingClassifier
from cxrsynth.seeds import sample_noise
from cxrsynth.settings import Precision, Sampler

_BATCH = 4
_DRAWS = 20
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
    maker: Maker,
    judge: FindingClassifier,
    train: Framed,
    val: Framed,
    *,
    known: JudgedFilms,
    told: Collection[str],
    count: int,
    pairs: int,
    seed: int,
) -> dict[str, Any]:
    """All numbers: on `count` images by prompts of val films in turn, and on `pairs` pairs that differ in a word.

    Args:
        maker: the generator.
        judge: the classifier that did not help to make it.
        train: films it may have copied.
        val: films to be compared with.
        known: all val films, those of 64 pixels and those beside the canonical frame too: rare findings are among them.
        told: heads that tell real films apart beyond chance; on the others no image can be shown right.
        count: images.
        pairs: pairs of images.
        seed: of what is drawn.
    """
    rng = random.Random(seed)
    asked = _asked(val.films, known.films, count, rng)
    images = maker.make([caption(film, rng, whole=True) for film in asked], [f"measure-{i}" for i in range(count)])
    return {
        "fidelity": _fidelity(judge, train, val, images[: len(val.films)], rng),
        "obedience": _obedience(judge, asked, images, known),
        "words": _words(maker, judge, val, told=told, pairs=pairs, rng=rng),
        "copies": _copies(train, val, images),
    }


def _asked(framed: list[Film], known: list[Film], count: int, rng: random.Random) -> list[Film]:
    """Whose prompts are asked: each framed film once, then the others, then all again; each part in random order.

    The first `len(framed)` images so have the mix of adults, children and findings of the films they are compared with.
    """
    ids = {film.film_id for film in framed}
    asked: list[Film] = []
    while len(asked) < count:
        for films in (framed, [film for film in known if film.film_id not in ids]):
            asked += rng.sample(films, len(films))
    return asked[:count]


def _fidelity(
    judge: FindingClassifier, train: Framed, val: Framed, images: Tensor, rng: random.Random
) -> dict[str, Any]:
    """Distances in the judge's features at equal counts, beside those of real train films to real val films.

    Train films are drawn `_DRAWS` times, as many of each source as val has: a single draw's distance says little (2.3
    to 3.5 on nano's films). Value and interval are mean and percentiles of the draws.
    """
    equal = min(len(val.films), len(images))
    chosen = rng.sample(range(len(val.films)), equal)
    real = _features(judge, val.images[chosen])
    made, trained = _features(judge, images[:equal]), _features(judge, train.images)
    sources = [val.films[place].group for place in chosen]
    draws = [trained[_alike(sources, train.films, rng)] for _ in range(_DRAWS)]
    measures: dict[str, Callable[..., float]] = {"frechet": frechet_distance, "kid": kernel_distance}
    numbers: dict[str, Any] = {"images": equal, "draws": _DRAWS}
    for name, measure in measures.items():
        numbers[f"{name}_made_to_val"] = asdict(bootstrap(measure, made, real, rounds=50))
        values = np.array([measure(drawn, real) for drawn in draws])
        low, high = np.quantile(values, [0.025, 0.975])
        numbers[f"{name}_train_to_val"] = asdict(Interval(float(values.mean()), float(low), float(high)))
    numbers["frechet_ratio"] = numbers["frechet_made_to_val"]["value"] / numbers["frechet_train_to_val"]["value"]
    for kind, features in (("made", made), ("train", draws[0])):
        numbers[f"manifolds_{kind}"] = asdict(manifolds(real, features))
    return numbers


def _alike(sources: list[str], train: list[Film], rng: random.Random) -> list[int]:
    """Places of train films of these sources, each source as often as it is named, or as often as it has films."""
    places = []
    for group, number in sorted(Counter(sources).items()):
        own = [place for place, film in enumerate(train) if film.group == group]
        places += rng.sample(own, min(number, len(own)))
    return places


def _obedience(judge: FindingClassifier, asked: list[Film], images: Tensor, known: JudgedFilms) -> dict[str, Any]:
    """Per head: how well the judge tells what was asked for, against how well it tells real films apart."""
    heads = list(judge.heads)
    made, real = _logits(judge, images), logits_of(judge, known.pixels)
    numbers = {}
    for place, head in enumerate(heads):
        seen = _scored(made[:, place], targets(asked, heads)[:, place])
        there = _scored(real[:, place], targets(known.films, heads)[:, place])
        if all(len(part) for part in (*seen, *there)):
            real_area = bootstrap(_area, *there)
            numbers[head] = {
                "films": len(there[0]),
                "made": asdict(bootstrap(_area, *seen)),
                "real": asdict(real_area),
                # Near chance on real films there is nothing to keep a share of.
                "share": asdict(bootstrap(_kept, *seen, *there)) if real_area.low > 0.5 else None,
            }
    return numbers


def _kept(with_it: Any, without: Any, real_with_it: Any, real_without: Any) -> float:
    """How much of (AUROC - 0.5) on real films is there on images; infinite where the real one is at chance."""
    real = _area(real_with_it, real_without) - 0.5
    return (_area(with_it, without) - 0.5) / real if real else np.inf


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
    able = np.array([name in told for name in changed])
    return {
        "pairs": pairs,
        "right_way": asdict(bootstrap(lambda rows: float(rows.mean()), right)),
        "pairs_told": int(able.sum()),
        "right_way_told": asdict(bootstrap(lambda rows: float(rows.mean()), right[able])) if able.any() else None,
        "unrelated_to_own": asdict(bootstrap(_ratio, torch.stack((beside, own.abs()), 1).double().numpy())),
        "by_finding": {
            name: float(np.mean([right[i, 0] for i in range(pairs) if changed[i] == name])) for name in findings
        },
    }


def _ratio(rows: Any) -> float:
    """Mean of the first column over that of the second, [n, 2]."""
    first, second = rows.mean(0)
    return float(first / second)


def _copies(train: Framed, val: Framed, images: Tensor) -> dict[str, Any]:
    """Share of images nearer to a training film than one in a hundred real val films is."""
    known = _small(train.images)

    def nearest(others: Tensor) -> Tensor:
        return torch.cdist(_small(others), known).amin(1)

    real, made = nearest(val.images), nearest(images)
    edge = real.quantile(0.01)
    return {
        "nearer_than_first_percentile": asdict(mean_interval((made < edge).double().numpy())),
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


def _scored(logits: Tensor, wanted: Tensor) -> tuple[Any, Any]:
    """Logits [n, 1] of films that show it, and of those that do not; what is unknown is left out."""
    scores = logits.double().numpy()[:, None]
    return scores[(wanted == 1).numpy()], scores[(wanted == 0).numpy()]


def _area(with_it: Any, without: Any) -> float:
    """Area under the ROC curve of logits [n, 1] and [m, 1]."""
    truth = torch.tensor([1] * len(with_it) + [0] * len(without))
    return float(binary_auroc(torch.from_numpy(np.concatenate((with_it, without))[:, 0]).sigmoid(), truth))
