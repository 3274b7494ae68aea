"""`python -m tests.benchmarks.memorization_speed`: the search for near-duplicates against 100,000 reference images.

The reference is augmented (small warps, other gray levels, noise) from images made in code: timing needs no real
images. Reported are the search by features, which should stay below 1 ms per query, its memory, how often it finds the
nearest image of a full search, and the verification of the candidates.
"""

import argparse
import resource
import time

import faiss
import numpy as np
import torch
from rich.console import Console
from rich.table import Table as RichTable

from cxrsynth.metrics.memorization.features import FeatureIndex, MatchSpace, Thumbs, Vectors, mirrored
from cxrsynth.metrics.memorization.verification import CANDIDATES, Gallery, compare
from cxrsynth.runtime.warps import warp, warp_matrices
from tests.metrics.made_images import made_thumbs


def main() -> None:
    """Print times, memory and agreement with a full search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=2_000, help="images that the reference is augmented from")
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)

    table = RichTable("measure", "value")
    thumbs = augmented(made_thumbs(options.images), options.reference)
    started = time.perf_counter()
    space = MatchSpace.fit(thumbs)
    table.add_row("fit of the features, s", f"{time.perf_counter() - started:.1f}")
    started = time.perf_counter()
    features = space.features(thumbs)
    table.add_row("features, ms per image", f"{(time.perf_counter() - started) / len(thumbs) * 1e3:.2f}")
    started = time.perf_counter()
    index = FeatureIndex(features, [str(place) for place in range(len(thumbs))])
    table.add_row("index, s", f"{time.perf_counter() - started:.1f}")

    queries = augmented(thumbs[:: max(1, len(thumbs) // options.queries)][: options.queries], options.queries, seed=1)
    found = [
        timed_search(index, space.features(queries), space.features(mirrored(queries))) for _ in range(options.rounds)
    ]
    table.add_row(
        "search of an image and its mirror image, ms", ", ".join(f"{1e3 * s / len(queries):.3f}" for s in found)
    )
    table.add_row("nearest of a full search found", f"{agreement(index, features, space.features(queries)):.1%}")
    gallery = Gallery(thumbs, np.arange(len(thumbs)), index, space)
    compare(queries[:256], gallery, leave_out=np.full(256, -1))
    started, spent = time.perf_counter(), time.process_time()
    compare(queries, gallery, leave_out=np.full(len(queries), -1))
    wall, used = (
        (now - then) / len(queries) * 1e3
        for now, then in ((time.perf_counter(), started), (time.process_time(), spent))
    )
    table.add_row("look at whole images, ms an image", f"{wall:.2f} ({used:.2f} of processor time)")
    table.add_row("reference images, width", f"{features.shape[0]}, {features.shape[1]}")
    table.add_row("memory of the index, MB", f"{index.size_bytes / 1e6:.0f}")
    table.add_row("memory of the thumbnails, MB", f"{thumbs.nbytes / 1e6:.0f}")
    table.add_row("peak memory of the process, MB", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f}")
    table.add_row("threads", str(options.threads))
    Console().print(table)


def augmented(thumbs: Thumbs, count: int, *, seed: int = 0, block: int = 1000) -> Thumbs:
    """`count` images, each one of `thumbs` in turn, moved, lighter or darker, with noise."""
    rng = torch.Generator().manual_seed(seed)
    parts = []
    for first in range(0, count, block):
        places = np.arange(first, min(first + block, count)) % len(thumbs)
        images = torch.from_numpy(thumbs[places]).float()[:, None] / 255.0
        moves = torch.randn(len(places), 5, generator=rng) * 0.06
        gamma = (torch.randn(len(places), 1, 1, 1, generator=rng) * 0.2).exp()
        images = warp(images, warp_matrices(moves)).clamp(1e-3, 1) ** gamma
        images = images + 0.03 * torch.randn(images.shape, generator=rng)
        parts.append((images.clamp(0, 1)[:, 0] * 255).round().to(torch.uint8).numpy())
    return np.concatenate(parts)


def timed_search(index: FeatureIndex, *sides: Vectors) -> float:
    """Seconds for the candidates of all queries."""
    started = time.perf_counter()
    for side in sides:
        index.nearest(side, CANDIDATES)
    return time.perf_counter() - started


def agreement(index: FeatureIndex, features: Vectors, queries: Vectors) -> float:
    """Share of queries whose nearest of all is the nearest found."""
    full = faiss.IndexFlatIP(features.shape[1])
    full.add(features)
    return float((full.search(queries, 1)[1][:, 0] == index.nearest(queries, CANDIDATES).places[:, 0]).mean())


if __name__ == "__main__":
    main()
