"""A collection whose images are scored, and where the scores are kept."""

from dataclasses import dataclass

from cxrsynth.auditing.score_cache import ScoreCache
from cxrsynth.images.collection import Collection


@dataclass(frozen=True)
class Examined:
    """A collection, where its scores are kept, and how many images of each unit keep their full pixels.

    `most_per_unit` images of each unit are scored; all where None.
    """

    collection: Collection
    cache: ScoreCache
    full_images_per_unit: int = 0
    most_per_unit: int | None = None
