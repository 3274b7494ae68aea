"""A collection whose images are scored, and where the scores are kept."""

from dataclasses import dataclass
from functools import cached_property

from cxrsynth.auditing.read import Reading
from cxrsynth.auditing.score_cache import ScoreCache
from cxrsynth.images.collection import Collection, no_match
from cxrsynth.images.table import Matches


@dataclass(frozen=True)
class Examined:
    """A collection, where its scores are kept, and how many images of each unit keep their full pixels.

    `most_per_unit` images of each unit are scored; all where None.
    """

    collection: Collection
    cache: ScoreCache
    full_images_per_unit: int = 0
    most_per_unit: int | None = None

    @cached_property
    def reading(self) -> Reading:
        """How the images were read, once all are scored."""
        return Reading.together(self.cache.reading(unit) for unit in self.collection.units)

    @property
    def matches(self) -> Matches | None:
        """How many images have a row in the user's table; None without one. Of shards known once they are scored."""
        if self.collection.matches is not None:
            return self.collection.matches
        if self.collection.table is None or not self.collection.is_whole:
            return None
        return self.reading.matches(self.collection.rows)

    def refuse_no_match(self) -> None:
        """Raise ReportsError if a table describes none of the images; of shards only scoring can tell."""
        matches, table = self.matches, self.collection.table
        if table is not None and matches is not None and matches.images and not matches.with_row:
            raise no_match(table, self.collection.path)
