"""Which images the page shows, and what it says about each."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from cxrsynth.auditing.page.figures import figure
from cxrsynth.auditing.page.reasons import Limit, measured
from cxrsynth.auditing.score_table import rows_by_value, rows_without_value

Indices = npt.NDArray[np.int64]

PICTURE_SIDE = 256
PICTURE_BYTES = 24_000  # larger pictures are reduced, so that the size of the page is bounded
_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_METADATA = {
    "source": "Source",
    "view": "View",
    "sex": "Sex",
    "age_group": "Age group",
    "duplicate_of": "Duplicate of",
    "duplicate_similarity": "Similarity",
    "nearest_real": "Nearest real image",
    "nearest_real_similarity": "Similarity to it",
}


class Pictures:
    """Pictures as data URIs; counts how much they add to the page."""

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0

    def uri(self, data: bytes | None) -> str | None:
        """The picture as a data URI, reduced if it is large; None for None.

        Raises:
            ValueError: if the bytes are neither PNG nor JPEG.
        """
        if data is None:
            return None
        if len(data) > PICTURE_BYTES:
            data = _smaller(data)
        kind = next((kind for magic, kind in _KINDS.items() if data.startswith(magic)), None)
        if kind is None:
            raise ValueError("a picture for the page is neither PNG nor JPEG")
        uri = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        self.count += 1
        self.bytes += len(uri)
        return uri


def _smaller(data: bytes) -> bytes:
    """The picture as a JPEG within PICTURE_SIDE and PICTURE_BYTES."""
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as opened:
        image = opened.convert("L")
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    for quality in (85, 60, 30, 5):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= PICTURE_BYTES:
            break
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Card:
    """One image of the gallery. `rewards` and `metadata` are pairs of name and text.

    So are `reasons`: the text is what was measured, and the limit. `original` is the key of the image that this one
    repeats, if it is a duplicate.
    """

    key: str
    kept: bool
    picture: str | None
    original: str | None
    original_picture: str | None
    reasons: Sequence[tuple[str, str]]
    findings: Sequence[str]
    rewards: Sequence[tuple[str, str]]
    metadata: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Cards in the order of the set; `data` holds what each is sorted and filtered by."""

    cards: Sequence[Card]
    data: Sequence[Mapping[str, Any]]
    rejected: int
    kept: int


def make_gallery(
    rows: pa.Table,
    pictures: Pictures,
    thumbnails: Callable[[str], bytes | None],
    *,
    rewards: Sequence[str],
    limits: Mapping[str, Limit],
    count: int,
) -> Gallery:
    """At most `count` images: up to half rejected, evenly over the reasons, then kept ones over the findings.

    Duplicates come with a picture of the image that they repeat, whether that is among them or not.
    """
    kept = rows["kept"].to_numpy(zero_copy_only=False).astype(bool)
    rejected = choose(_by_value(rows["reasons"], ~kept), count // 2)
    chosen = choose(_by_value(rows["present"], kept), count - len(rejected))
    images = rows.take(pa.array(sorted([*rejected, *chosen]), pa.int64())).to_pylist()
    wanted = {key for image in images for key in (image["key"], image["duplicate_of"])}
    # In the order of the set: those of one shard are read at once.
    read = {key: thumbnails(key) for key in rows["key"].to_pylist() if key in wanted}
    return Gallery(
        [_card(image, lambda key: pictures.uri(read.get(key)), rewards, limits) for image in images],
        [_data(image, rewards) for image in images],
        rejected=len(rejected),
        kept=len(chosen),
    )


def choose(groups: Iterable[Indices], count: int) -> list[int]:
    """At most `count` members of groups that may overlap: one of each group in turn, at random.

    The same groups give the same choice.
    """
    rng = np.random.default_rng(0)
    queues = [iter(rng.permutation(members).tolist()) for members in groups]
    taken: set[int] = set()
    while queues:
        for queue in list(queues):
            place = next((place for place in queue if place not in taken), None)
            if place is None:
                queues.remove(queue)
            elif len(taken) < count:
                taken.add(place)
            else:
                return sorted(taken)
    return sorted(taken)


def _by_value(lists: pa.ChunkedArray, wanted: npt.NDArray[np.bool_]) -> list[Indices]:
    """Places of the wanted rows with each value of a column of lists, and of those with an empty list."""
    groups = [rows_without_value(lists), *rows_by_value(lists).values()]
    return [chosen for group in groups if len(chosen := group[wanted[group]])]


def _card(
    image: Mapping[str, Any],
    picture: Callable[[str], str | None],
    rewards: Sequence[str],
    limits: Mapping[str, Limit],
) -> Card:
    original = image["duplicate_of"]
    metadata = [(title, image[name]) for name, title in _METADATA.items() if image[name] is not None]
    findings = [("Present", ", ".join(image["present"] or ())), ("Absent", ", ".join(image["absent"] or ()))]
    return Card(
        key=image["key"],
        kept=image["kept"],
        picture=picture(image["key"]),
        original=original,
        original_picture=None if original is None else picture(original),
        reasons=[(reason, measured(reason, image, limits)) for reason in image["reasons"] or ()],
        findings=image["present"] or (),
        rewards=[(name, figure(image[f"reward_{name}"])) for name in rewards],
        metadata=[(title, figure(value) if isinstance(value, float) else str(value)) for title, value in metadata]
        + [(title, text) for title, text in findings if text],
    )


def _data(image: Mapping[str, Any], rewards: Sequence[str]) -> dict[str, Any]:
    numbers = {f"reward {name}": image[f"reward_{name}"] for name in rewards} | {
        "similarity": image["nearest_real_similarity"]
    }
    return {
        "key": image["key"],
        "kept": image["kept"],
        "reasons": image["reasons"] or [],
        "findings": image["present"] or [],
        "view": image["view"] or "",
        # As many digits as float32 has.
        "numbers": {name: None if value is None else float(f"{value:.7g}") for name, value in numbers.items()},
    }
