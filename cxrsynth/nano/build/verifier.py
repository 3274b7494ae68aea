"""`python -m cxrsynth.nano.build.verifier --data DIR --work DIR`: the network that tells patients apart.

It learns to pick, of the images in a batch, the one that shows the same patient: another image of hers where there is
one, else the same image augmented anew.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from cxrsynth.metrics.reidentification.identify import separation
from cxrsynth.metrics.reidentification.verifier import PatientVerifier
from cxrsynth.nano.build.config import FitSettings
from cxrsynth.nano.build.fitting import augmented, fit, seeded
from cxrsynth.nano.build.images import GROUPS, SMALL_GROUPS, Radiograph, load_images
from cxrsynth.nano.build.training import log
from cxrsynth.runtime.warps import warp_matrices

_TRUNK = {"kind": "resnet", "size": 128, "widths": [32, 64, 128, 224], "depths": [1, 1, 1, 1]}
_WIDTH = 128
_SETTINGS = FitSettings(
    size=128,
    steps=2000,
    batch_size=48,  # patients; two images of each
    learning_rate=1e-3,
    weight_decay=0.05,
    shift=0.14,
    zoom=0.18,
    rotation_rad=0.16,
    gamma=0.5,
    noise=0.04,
    erase=0.5,
)
_SAVE_EVERY = 100
_WITH_FOLLOW_UPS, _CHILDREN = 3.0, 0.4  # weights of patients with several images, and of the many children
_CHILDREN_GROUP = "kermany_ped"
_LOGIT_SCALE = 14.0
# Of the NIH at full size: with images of several sources, or of several sizes, a source would do for a patient.
_TESTED = ("nih", "nih_more")


def main(
    data: Annotated[Path, typer.Option(help="Collection of real images.")],
    work: Annotated[Path, typer.Option(help="Work folder; an interrupted run goes on from there.")],
    steps: int = _SETTINGS.steps,
    seed: int = 0,
) -> None:
    """Train the network and write it to the folder `verifier` in the work folder, with what it can do in its config."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    work.mkdir(parents=True, exist_ok=True)
    radiographs, pixels = load_images(data, size=256, groups=(*GROUPS, *SMALL_GROUPS), resample=True)
    with seeded(seed):
        network = PatientVerifier(_TRUNK, _WIDTH)
    # The scale is part of the training only: cosines need none.
    learned = nn.ParameterDict({"log_scale": nn.Parameter(torch.tensor(math.log(_LOGIT_SCALE)))})
    learner = nn.ModuleDict({"network": network, "learned": learned})
    settings = _SETTINGS.model_copy(update={"steps": steps})
    patients = images_of_patients(radiographs)
    weights = _weights(radiographs, patients)

    def loss(rng: torch.Generator) -> Tensor:
        chosen = torch.multinomial(weights, settings.batch_size, generator=rng).tolist()
        pairs = [_two_of(patients[patient], rng) for patient in chosen]
        places = torch.tensor([*(first for first, _ in pairs), *(second for _, second in pairs)])
        still = warp_matrices(torch.zeros(len(places), 5))
        images = augmented(pixels[places], still, settings, rng, outside="border")
        return contrastive_loss(network(images).float(), learned["log_scale"].exp().clamp(max=50))

    fit(learner, loss, work / "verifier.pt", settings=settings, seed=seed, save_every=_SAVE_EVERY)
    network.half().save_pretrained(work / "verifier")
    network = PatientVerifier.from_pretrained(work / "verifier").float().eval()
    held_out = measure_verifier(network, *load_images(data, size=256, split="val", groups=_TESTED), seed=seed)
    config = json.loads((work / "verifier" / "config.json").read_text(encoding="utf-8"))
    (work / "verifier" / "config.json").write_text(json.dumps(config | {"held_out": held_out}, indent=2) + "\n")
    log.info("%s", json.dumps(held_out))


def images_of_patients(radiographs: Sequence[Radiograph]) -> list[list[int]]:
    """Places of each patient's images, in order of appearance."""
    places: dict[str, list[int]] = {}
    for place, radiograph in enumerate(radiographs):
        places.setdefault(radiograph.patient_id, []).append(place)
    return list(places.values())


def contrastive_loss(embeddings: Tensor, scale: Tensor) -> Tensor:
    """How hard it is to pick the partner of each image among all others of the batch.

    Args:
        embeddings: [2 B, D] of length 1; image i and image i + B show the same patient, all others another.
        scale: of the cosines.

    Source: NT-Xent, Chen et al., arXiv:2002.05709.
    """
    count = len(embeddings) // 2
    scores = embeddings @ embeddings.T * scale
    scores = scores.masked_fill(torch.eye(2 * count, dtype=torch.bool), -torch.inf)
    partners = torch.arange(2 * count).roll(count)
    return F.cross_entropy(scores, partners)


@torch.inference_mode()
def measure_verifier(
    network: PatientVerifier, radiographs: Sequence[Radiograph], pixels: Tensor, *, seed: int
) -> dict[str, Any]:
    """How well it tells patients apart it was not trained on: AUC with 95% interval over patients, and their number."""
    parts = [network(part.float() / 255.0).numpy() for part in pixels.split(64)]
    patients = np.unique([one.patient_id for one in radiographs], return_inverse=True)[1].astype(np.int64)
    auc = separation(np.concatenate(parts), patients, seed=seed)
    several = np.bincount(patients) > 1
    return {"auc": None if auc is None else asdict(auc), "patients": int(several.sum()), "images": len(patients)}


def _weights(radiographs: Sequence[Radiograph], patients: Sequence[Sequence[int]]) -> Tensor:
    """How often each patient is taken."""
    return torch.tensor(
        [
            (_WITH_FOLLOW_UPS if len(places) > 1 else 1.0)
            * (_CHILDREN if radiographs[places[0]].group == _CHILDREN_GROUP else 1.0)
            for places in patients
        ]
    )


def _two_of(places: Sequence[int], rng: torch.Generator) -> tuple[int, int]:
    """Two images of a patient, different ones where there are."""
    order = torch.randperm(len(places), generator=rng).tolist()
    return places[order[0]], places[order[-1]]


if __name__ == "__main__":
    typer.run(main)
