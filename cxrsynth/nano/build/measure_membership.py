"""Membership inference on the generator: images it was trained on against images of split `val`."""

import random
from collections import Counter
from typing import Any

import numpy as np
import torch

from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.sampler import encode_images
from cxrsynth.metrics.membership.attacks import Attacks
from cxrsynth.metrics.membership.inference import LEAST, measure_attacks
from cxrsynth.nano.build.images import Radiograph, caption
from cxrsynth.nano.build.measure_generator import Framed, features_of
from cxrsynth.nano.build.training import cores
from cxrsynth.rewards.networks import FindingClassifier
from cxrsynth.runtime.pool import OrderedPool

_BATCH = 8
_MEMBERS_PER_VAL_IMAGE = 2


def membership_numbers(
    model: DiffusionModel, classifier: FindingClassifier, train: Framed, val: Framed, *, seed: int
) -> dict[str, Any] | None:
    """How well attacks tell train images from val images of the same sources, each with its own prompt.

    Args:
        model: the exported generator.
        classifier: whose features say how well the images alone are told apart.
        train: members; up to twice as many of each source are attacked as val has.
        val: non-members, all of them.
        seed: of choice, noise and bootstrap.

    Returns:
        Number of `members` and `non_members`, and `attacks` as `measure_attacks` gives them; None for too few patients.
    """
    rng = random.Random(seed)
    wanted = Counter(radiograph.group for radiograph in val.radiographs)
    places: list[int] = []
    for group, count in sorted(wanted.items()):
        own = [place for place, one in enumerate(train.radiographs) if one.group == group]
        places += rng.sample(own, min(_MEMBERS_PER_VAL_IMAGE * count, len(own)))
    radiographs = [*(train.radiographs[place] for place in places), *val.radiographs]
    images = torch.cat([train.images[places], val.images])
    fewest = min(
        len({one.patient_id for one in side}) for side in (radiographs[: len(places)], radiographs[len(places) :])
    )
    if fewest < LEAST:
        return None
    attacks = Attacks(model, seed=seed)
    found = _attacked(attacks, model, radiographs, images)
    features = features_of(classifier, images)
    members = np.arange(len(radiographs)) < len(places)
    patients = [radiograph.patient_id for radiograph in radiographs]
    return {
        "members": len(places),
        "non_members": len(val.radiographs),
        "attacks": measure_attacks(attacks.by_attack(found), features, members, patients, seed=seed),
    }


def _attacked(
    attacks: Attacks, model: DiffusionModel, radiographs: list[Radiograph], images: torch.Tensor
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """What the attacks find in each image, [N, K]."""
    rng = random.Random(0)  # for parts of a prompt that are left out, of which there are none
    prompts = [caption(radiograph, rng, whole=True) for radiograph in radiographs]

    def one(first: int) -> torch.Tensor:
        own = slice(first, first + _BATCH)
        keys = [radiograph.image_id for radiograph in radiographs[own]]
        return attacks(encode_images(model, images[own]), keys, prompts[own], [()] * len(keys))

    with OrderedPool(cores(), threads=1) as pool:
        found = [part for _, part in pool.map_in_order(one, range(0, len(radiographs), _BATCH))]
    return np.asarray(torch.cat(found).double().numpy())
