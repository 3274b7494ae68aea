"""How well a verifier tells patients apart, on real images of patients it was not trained on.

Run: python -m tests.benchmarks.reidentification IMAGES [--table CSV] [--split val] [--verifier NAME]...

IMAGES is any collection that `audit` reads, with several images of some patients. For each verifier, pairs of images of
one patient against pairs of two: AUC, each patient weighing the same, with a 95% interval over patients; and the share
of pairs of one patient found at few false matches. Where 100 patients are known, also what an audit with these images
as its reference would find: patients of whom one image is matched to another, at 1% false matches an image.
"""

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from cxrsynth.images.collection import open_collection
from cxrsynth.images.image import Radiograph
from cxrsynth.images.pictures import squared
from cxrsynth.metrics.memorization.features import Vectors, unit
from cxrsynth.metrics.memorization.search import patient_numbers
from cxrsynth.metrics.reidentification.identify import FEWEST, calibrate, pair_scores, separation
from cxrsynth.metrics.reidentification.verifier import load_verifier
from cxrsynth.settings import DEFAULT_VERIFIER

SIDE = 256
BATCH = 32
FALSE_MATCHES = (0.01, 0.001)


def main(
    images: Path,
    table: Path | None = None,
    split: str | None = None,
    verifier: Annotated[list[str], typer.Option()] = [DEFAULT_VERIFIER],  # noqa: B006
    seed: int = 0,
) -> None:
    """Print a row for each verifier."""
    collection = open_collection(images, table=table, split=split)
    read = [one for unit_ in collection.units for one in collection.read(unit_) if isinstance(one, Radiograph)]
    pixels = torch.from_numpy(np.stack([squared(one.pixels, SIDE) for one in read]))[:, None]
    patients = patient_numbers([one.patient for one in read])
    sizes = np.bincount(patients)
    pairs = int((sizes * (sizes - 1) // 2).sum())
    several = int((sizes > 1).sum())
    typer.echo(f"{len(read)} images of {len(sizes)} patients, {several} with several: {pairs} pairs of one patient")
    for name in verifier:
        embed = load_verifier(name, device=torch.device("cpu")).embed
        started = time.monotonic()
        vectors: Vectors = unit(np.concatenate([embed(part).numpy() for part in pixels.split(BATCH)]))
        took = (time.monotonic() - started) / len(read)
        auc = separation(vectors, patients, seed=seed)
        if auc is None:
            raise typer.BadParameter("no patient has two images")
        typer.echo(f"{name}: AUC {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f}), {1000 * took:.1f} ms an image")
        scores = pair_scores(vectors, patients)
        for share in FALSE_MATCHES:
            found = (scores.same > np.quantile(scores.others, 1 - share)).mean()
            typer.echo(f"  pairs of one patient found at {share:.1%} false matches of pairs: {found:.1%}")
        if len(sizes) >= FEWEST:
            known = calibrate(vectors, patients, seed=seed)
            typer.echo(f"  false matches of images: {known.false_matches}")
            typer.echo(f"  patients found by another image: {known.found}")


if __name__ == "__main__":
    typer.run(main)
