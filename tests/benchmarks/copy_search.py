"""How many planted near-duplicates of real images the search finds, by kind, and how often it is wrong.

Run: python -m tests.benchmarks.copy_search --data DIR [--reference 800] [--others 1000] [--planted 30]

The reference is drawn by patient from split `train`. All images of split `val` and others of `train`, of patients
outside the reference, are searched for as well: each one flagged is a false alarm.
"""

import argparse
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor

from cxrsynth.metrics.memorization.features import MatchSpace, thumbnails
from cxrsynth.metrics.memorization.looks import Searchable
from cxrsynth.metrics.memorization.planted import ALTERATIONS, ProbeKeeper
from cxrsynth.metrics.memorization.registration import Register, load_posture, to_canonical, unmoved
from cxrsynth.metrics.memorization.search import ImageSet, find_near_duplicates
from cxrsynth.metrics.proportion import Share
from cxrsynth.nano.build.images import Radiograph, load_images

PACKAGED = Path(__file__).resolve().parents[2] / "cxrsynth/nano/assets/judges/nano-judge"
SIDE = 256
BATCH = 32


def image_set(radiographs: list[Radiograph], pixels: Tensor, register: Register) -> ImageSet:
    """Thumbnails of uint8 images [N, 1, H, W], as an audit makes them."""
    thumbs, framed = (
        np.concatenate([thumbnails(part.float() / 255, how) for part in pixels.split(BATCH)])
        for how in (register, unmoved)
    )
    return ImageSet(
        tuple(radiograph.image_id for radiograph in radiographs),
        thumbs,
        framed,
        tuple(radiograph.patient_id for radiograph in radiographs),
    )


def drawn(radiographs: list[Radiograph], count: int, *, seed: int) -> list[int]:
    """Places of all images of random patients, `count` images or a few more."""
    by_patient: dict[str, list[int]] = {}
    for place, radiograph in enumerate(radiographs):
        by_patient.setdefault(radiograph.patient_id, []).append(place)
    places: list[int] = []
    for number in np.random.default_rng(seed).permutation(len(by_patient)):
        if len(places) < count:
            places += list(by_patient.values())[number]
    return places


def line(name: str, share: Share, note: str = "") -> str:
    """A row of the table."""
    return f"| {name} | {share.caught} of {share.of} | {share.low:.2f} to {share.high:.2f} | {note} |\n"


def main() -> None:
    """Write the table and the time taken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="collection of real images")
    parser.add_argument("--family", type=Path, default=PACKAGED, help="family of reward models")
    parser.add_argument("--reference", type=int, default=800)
    parser.add_argument("--others", type=int, default=1000)
    parser.add_argument("--planted", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    register = to_canonical(load_posture(args.family, torch.device("cpu")))
    train, pixels = load_images(args.data, size=SIDE, split="train")
    chosen = drawn(train, args.reference, seed=args.seed)
    reference = image_set([train[place] for place in chosen], pixels[chosen], register)
    keeper = ProbeKeeper(args.planted, seed=args.seed)
    keeper.offer(reference.keys, pixels[chosen].float() / 255)
    val, held = load_images(args.data, size=SIDE, split="val")
    patients = set(reference.patients)
    rest = [place for place, radiograph in enumerate(train) if radiograph.patient_id not in patients]
    rest = rest[: max(0, args.others - len(val))]
    others = image_set([*val, *(train[place] for place in rest)], torch.cat((held, pixels[rest])), register)
    space = MatchSpace.fit(reference.thumbs)
    found = find_near_duplicates(others, reference, space, register=register, probes=keeper.probes())
    sys.stdout.write("| planted | found | 95% interval | what |\n| --- | ---: | --- | --- |\n")
    for kind, share in found.sensitivity.items():
        sys.stdout.write(line(kind, share, ALTERATIONS[kind]))
    flagged = np.array([match.flagged for match in found.matches])
    sys.stdout.write(line("false alarms", Share.among(flagged), "real images of other patients"))
    real = Searchable.of(reference.thumbs, reference.framed, reference.groups(), space)
    started = time.process_time()
    real.nearest(others.thumbs, others.framed, leave_out=np.full(len(others.keys), -1))
    spent = (time.process_time() - started) / len(others.keys)
    sys.stdout.write(f"\n{len(reference.keys)} reference images; {1e3 * spent:.1f} ms of processor time an image\n")


if __name__ == "__main__":
    main()
