"""Synthetic images that are near-duplicates of real ones, and how well the search for them works.

An image is flagged if it is more similar to its nearest real image than real images of different patients are to each
other. The same reference shows how many planted near-duplicates such a threshold finds, and how many real images of
other patients it flags by mistake. The absence of a flag does not prove that an image is not memorized.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from cxrsynth.console import counted
from cxrsynth.errors import ShardError
from cxrsynth.metrics.memorization.features import MatchSpace, Thumbs, Vectors, thumbnails
from cxrsynth.metrics.memorization.looks import Searchable
from cxrsynth.metrics.memorization.planted import ALTERATIONS, MIXED, Autoencode, Probes, altered
from cxrsynth.metrics.memorization.registration import Register, unmoved
from cxrsynth.metrics.memorization.verification import Mask, Nearest, Places
from cxrsynth.metrics.proportion import Share

FEWEST = 20  # reference images; fewer do not show how similar different patients are
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_FEATURES = (
    "linear discriminants of local contrast, 64 x 64 pixels, of images and of patches; correlation of fine detail of"
    " registered candidates, whole and in the best window of 25 x 25 pixels; correlation of finest detail of images as"
    " they are framed, whole and in the best window of 20 x 20 pixels"
)


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images by key: thumbnails [N, T, T], registered and as framed; and each image's patient, empty where unknown."""

    keys: tuple[str, ...]
    thumbs: Thumbs
    framed: Thumbs
    patients: tuple[str, ...] = ()

    def groups(self) -> Places:
        """Number of each image's patient, [N], see `patient_numbers`."""
        return patient_numbers(self.patients or ("",) * len(self.keys))


def patient_numbers(patients: Sequence[str]) -> Places:
    """Number of each image's patient, from 0, [N]; an image of an unknown patient counts as one of its own."""
    numbers: dict[tuple[str, int], int] = {}
    named = [(patient, -1 if patient else place) for place, patient in enumerate(patients)]
    return np.array([numbers.setdefault(name, len(numbers)) for name in named], np.int64)


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How the threshold is found.

    It is the `quantile` of similarity between real images of different patients, plus `margin`, because many images are
    compared and the tail is known from few. It is never below `floor`, where no near-duplicate was observed, nor above
    `ceiling`, so that one image listed under two patients cannot hide every near-duplicate. `sample` real images are
    compared to find it; up to `held_out` images, at most `held_share` of all, are set aside to count false alarms.
    """

    quantile: float = 0.99
    margin: float = 0.02
    floor: float = 0.5
    ceiling: float = 0.8
    sample: int = 1000
    held_out: int = 300
    held_share: float = 0.2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Match:
    """An image and the real one most similar to it; `real` is empty where there was none to compare with."""

    key: str
    real: str
    similarity: float  # correlation of fine detail, which decides
    feature_similarity: float  # cosine of features, which found it
    mirrored: bool
    flagged: bool


@dataclass(frozen=True, slots=True)
class SearchReport:
    """What the search found in a set, and how well it works."""

    matches: tuple[Match, ...]
    threshold: float
    made_to_real: dict[str, float]
    real_to_real: dict[str, float]
    sensitivity: dict[str, Share]
    false_alarms: Share
    patients_known: bool

    def summary(self, *, nearest: int = 24) -> dict[str, Any]:
        """As `memorization` in summary.json, with the `nearest` most similar pairs."""
        first = sorted(self.matches, key=lambda match: (-match.similarity, match.key))[:nearest]
        return {
            "flagged": sum(match.flagged for match in self.matches),
            "threshold": self.threshold,
            "features": _FEATURES,
            "patients_known": self.patients_known,
            "made_to_real": self.made_to_real,
            "real_to_real": self.real_to_real,
            "sensitivity": {kind: asdict(share) for kind, share in self.sensitivity.items()},
            "false_alarms": asdict(self.false_alarms),
            "nearest": [
                {"key": match.key, "real": match.real, "similarity": match.similarity, "flagged": match.flagged}
                for match in first
            ],
        }


def check_reference(groups: Places) -> None:
    """Raises ShardError if a reference, by the number of each image's patient [N], has too few images or patients.

    Expected are 20 images, and 3 patients.
    """
    if len(groups) < FEWEST or groups.max() < 2:
        raise ShardError(
            f"reference: {counted(len(groups), 'image')} of {counted(len(np.unique(groups)), 'patient')}\n"
            f"  expected: at least {FEWEST} images of 3 patients, to show how similar different patients are"
        )


def find_near_duplicates(
    made: ImageSet,
    reference: ImageSet,
    space: MatchSpace,
    *,
    register: Register,
    probes: Probes | None = None,
    autoencode: Autoencode | None = None,
    settings: SearchSettings | None = None,
) -> SearchReport:
    """Compare synthetic images with real ones.

    Args:
        made: the synthetic images.
        reference: the real ones.
        space: features fitted on the reference.
        register: what registered the thumbnails; planted near-duplicates are registered in the same way.
        probes: reference images to plant near-duplicates of, from `ProbeKeeper`; without them sensitivity is not
            measured.
        autoencode: plants the kind `autoencoded`; without it that kind is left out.
        settings: for the threshold and the measurement of the search.

    Raises:
        ShardError: if the reference has fewer than 20 images, or fewer than 3 patients.
    """
    settings = settings or SearchSettings()
    groups = reference.groups()
    check_reference(groups)
    real = Searchable.of(reference.thumbs, reference.framed, groups, space, seed=settings.seed)
    held = _held_out(groups, settings)
    null = _real_to_real(real, reference, groups, ~held, settings)
    threshold = _threshold(null, settings)
    nearest = real.nearest(made.thumbs, made.framed, leave_out=np.full(len(made.keys), -1))
    return SearchReport(
        matches=_matches(made.keys, reference.keys, nearest, threshold),
        threshold=threshold,
        made_to_real=_quantiles(nearest.similarity),
        real_to_real=_quantiles(null),
        sensitivity=_sensitivity(probes, reference, real, threshold, register, autoencode, settings.seed),
        false_alarms=_false_alarms(reference, groups, held, threshold, settings.seed),
        patients_known=bool(reference.patients) and all(reference.patients),
    )


def _held_out(groups: Places, settings: SearchSettings) -> Mask:
    """All images of some random patients, at least one and never all, bool [N].

    A patient with more images than are to be held out is passed over, or hardly any would be left.
    """
    sizes = np.bincount(groups)
    order = np.random.default_rng([settings.seed, 1]).permutation(len(sizes))
    most = min(settings.held_out, int(settings.held_share * len(groups)))
    fits = order[sizes[order] <= most]
    if not len(fits):
        fits, most = order[[sizes[order].argmin()]], int(sizes.min())
    taken = np.cumsum(sizes[fits]) <= most
    return np.isin(groups, fits[taken])


def _real_to_real(
    real: Searchable, reference: ImageSet, groups: Places, eligible: Mask, settings: SearchSettings
) -> Vectors:
    """Similarity of a sample of the eligible real images to the nearest image of another patient."""
    places = eligible.nonzero()[0]
    if len(places) > settings.sample:
        places = np.sort(np.random.default_rng([settings.seed, 2]).choice(places, settings.sample, replace=False))
    return real.nearest(reference.thumbs[places], reference.framed[places], leave_out=groups[places]).similarity


def _threshold(null: Vectors, settings: SearchSettings) -> float:
    found = float(np.quantile(null, settings.quantile)) + settings.margin
    return min(max(found, settings.floor), settings.ceiling)


def _matches(keys: Sequence[str], names: Sequence[str], nearest: Nearest, threshold: float) -> tuple[Match, ...]:
    return tuple(
        Match(
            key,
            names[place] if place >= 0 else "",
            float(similarity),
            float(cosine),
            bool(mirrored),
            bool(similarity > threshold),
        )
        for key, place, similarity, cosine, mirrored in zip(
            keys, nearest.places, nearest.similarity, nearest.cosines, nearest.mirrored, strict=True
        )
    )


def _false_alarms(reference: ImageSet, groups: Places, held: Mask, threshold: float, seed: int) -> Share:
    """Real images of patients outside the reference that are flagged all the same.

    Features are fitted anew without these patients, as synthetic images have no part in the fit either.
    """
    rest = reference.thumbs[~held]
    space = MatchSpace.fit(rest, seed=seed)
    without = Searchable.of(rest, reference.framed[~held], groups[~held], space, seed=seed)
    nobody = np.full(int(held.sum()), -1)
    nearest = without.nearest(reference.thumbs[held], reference.framed[held], leave_out=nobody)
    return Share.among(nearest.similarity > threshold, groups[held])


def _sensitivity(
    probes: Probes | None,
    reference: ImageSet,
    real: Searchable,
    threshold: float,
    register: Register,
    autoencode: Autoencode | None,
    seed: int,
) -> dict[str, Share]:
    """Share of planted near-duplicates that are flagged, by kind."""
    if probes is None:
        return {}
    place_of = {key: place for place, key in enumerate(reference.keys)}
    places = np.array([place_of[key] for key in probes.keys], np.int64)
    groups = real.gallery.groups[places]
    partner = _partners(groups)
    alone = (groups[partner] == groups).any()
    images = torch.from_numpy(probes.images).float() / 255.0
    found = {}
    for kind in ALTERATIONS:
        # A mixture needs an image of another patient.
        if (kind == "autoencoded" and autoencode is None) or (kind in MIXED and alone):
            continue
        planted = altered(kind, images, partners=images[partner], seed=seed, autoencode=autoencode)
        # A mixture must be recognized by the image it is planted of: its other part is hidden from the search.
        leave_out = groups[partner] if kind in MIXED else np.full(len(groups), -1)
        small, framed = thumbnails(planted, register), thumbnails(planted, unmoved)
        nearest = real.nearest(small, framed, leave_out=leave_out)
        found[kind] = Share.among(nearest.similarity > threshold, groups)
    return found


def _partners(groups: Places) -> Places:
    """For each image the next of another patient (itself where there is none)."""
    count = len(groups)
    later = (np.arange(count)[:, None] + np.arange(count)) % count  # [P, P]: itself, the next, ...
    chosen: Places = later[np.arange(count), (groups[later] != groups[:, None]).argmax(1)]
    return chosen


def _quantiles(values: Vectors) -> dict[str, float]:
    """Quantiles by name, `p5` to `p100`; none of no values."""
    if not len(values):
        return {}
    return {f"p{round(100 * q)}": float(v) for q, v in zip(_QUANTILES, np.quantile(values, _QUANTILES), strict=True)}
