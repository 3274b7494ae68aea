"""An image read from a collection, or the reason it could not be read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cxrsynth.reports.table.rows import Report


@dataclass(frozen=True, slots=True)
class Radiograph:
    """One readable image.

    `source` is the unit it came from (a shard, a folder of files), relative to its collection; `place` is its position
    there, from 0; `key` is unique in the collection. `pixels` are [H, W] float32 in [0, 1], bright bone on dark lung
    whatever the file's photometric interpretation. `report` is None if nothing is known of the image. `members` are the
    bytes of the sample by extension, as they were read, if they can be written again; `sha256` is that of the image
    member. `patient` identifies the patient, `report_id` the report; both are empty if unknown. `gray_range` says what
    black and white were taken from, as `12 of 16 bits`; `table_line` is the line of the user's table that describes the
    image, None if none does.
    """

    key: str
    source: str
    place: int
    pixels: npt.NDArray[np.float32] = field(repr=False)
    sha256: str
    report: Report | None = field(default=None, repr=False)
    age_group: str | None = None
    patient: str = field(default="", repr=False)
    report_id: str = field(default="", repr=False)
    members: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    gray_range: str = ""
    table_line: int | None = None


@dataclass(frozen=True, slots=True)
class Damaged:
    """A shard, or a member of one, that cannot be read. The reason quotes no report text."""

    source: str
    member: str
    reason: str
