"""What readers see of an image: gray levels and a text, made the same way for real and synthetic ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isqrt

import numpy as np

from cxrsynth.auditing.reader_study.key import TextKind
from cxrsynth.auditing.scored import Scored
from cxrsynth.errors import ShardError
from cxrsynth.images.image import Radiograph
from cxrsynth.images.pictures import Pixels, squared
from cxrsynth.reports.deid.sanitize import sanitize, sanitize_part
from cxrsynth.reports.labels import NO_FINDING, Status
from cxrsynth.reports.sections import shown_text
from cxrsynth.reports.table.rows import Report

MOST_SIDE = 1024
# Uncompressed, so that all images have the same size on the page: noise compresses badly, and real images have more.
_MOST_BYTES = 48_000_000


@dataclass(frozen=True, slots=True)
class Source:
    """What the first reading of an image gives: its short side in pixels, its hash, and the texts it could have."""

    short_side: int
    sha256: str
    texts: dict[TextKind, str] = field(repr=False)


def read_images(scored: Scored, keys: set[str], *, workers: int) -> Iterator[Radiograph]:
    """Some images of a collection, decoded anew: the audit keeps small ones only.

    Raises:
        ShardError: if one of them can no longer be read.
    """
    left = set(keys)
    examined = scored.examined
    tables = examined.cache.tables(["key"])
    for unit, table in zip(examined.collection.units, tables, strict=True):
        here = left & set(table["key"].to_pylist())
        if here:
            for radiograph in examined.collection.read_only(unit, here, workers=workers):
                left.discard(radiograph.key)
                yield radiograph
    if left:
        raise ShardError(f"--reader-study: {len(left)} images of {examined.collection.path} can no longer be read")


def read_sources(scored: Scored, keys: set[str], *, workers: int) -> dict[str, Source]:
    """The first reading of some images, by key. Pixels are not kept: a hundred large ones would fill the memory."""
    return {
        radiograph.key: Source(min(radiograph.pixels.shape), radiograph.sha256, texts_of(radiograph.report))
        for radiograph in read_images(scored, keys, workers=workers)
    }


def common_side(sources: Sequence[Source]) -> int:
    """The side in pixels that all are shown at: no image is enlarged, since blur would give it away."""
    return min(MOST_SIDE, isqrt(_MOST_BYTES // len(sources)), *(one.short_side for one in sources))


def common_text(sources: Sequence[Source]) -> TextKind | None:
    """Which text all of them have: reports where there is one of each image, else findings, else none."""
    kinds: tuple[TextKind, ...] = ("report", "findings")
    return next((kind for kind in kinds if all(one.texts[kind] for one in sources)), None)


def gray_levels(pixels: Pixels, side: int) -> bytes:
    """[H, W] in [0, 1] -> side * side bytes, row by row: the center square, 0 is black."""
    return (squared(pixels, side) * 255).round().astype(np.uint8).tobytes()


def texts_of(report: Report | None) -> dict[TextKind, str]:
    """Each kind of text, empty where the image has none.

    A report is what is said of the image, strictly de-identified and without line breaks. Of findings, only those
    stated as present are named: label tables of real images seldom name absent ones, sides or doubts.
    """
    if report is None:
        return {"report": "", "findings": ""}
    present = [name for name, label in report.labels.items() if label.status is Status.PRESENT and name != NO_FINDING]
    is_normal = NO_FINDING in report.labels and report.labels[NO_FINDING].status is Status.PRESENT
    findings = ", ".join(sorted(present)) or (NO_FINDING if is_normal else "")
    names = sanitize(report.full_text).introduced
    shown = sanitize_part(shown_text(report.full_text), introduced=names, strength="strict").text
    return {"report": " ".join(shown.split()), "findings": findings}
