"""Which images the page shows, and what it tells of each."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from cxrsynth.auditing.page.figures import figure

Indices = npt.NDArray[np.int64]

PICTURE_SIDE = 256
PICTURE_BYTES = 24_000  # a larger picture is made smaller: the page has an upper bound
_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_FACTS = {
    "source": "Source",
    "view": "View",
    "sex": "Sex",
    "age_group": "Age group",
    "duplicate_of": "Near duplicate of",
    "duplicate_similarity": "Similarity to it",
    "nearest_real": "Nearest real image",
    "copy_similarity": "Similarity to it",
}


class Pictures:
    """Pictures as data URIs; counts what they add to the page."""

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0

    def uri(self, data: bytes | None) -> str | None:
        """The picture as a data URI, made smaller where it is large; None for None.

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
    """JPEG within PICTURE_SIDE and PICTURE_BYTES."""
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
    """One image of the gallery. `rewards` and `facts` are pairs of name and text."""

    key: str
    kept: bool
    picture: str | None
    reasons: Sequence[str]
    findings: Sequence[str]
    rewards: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Cards in the order of the set; `data` holds for each what it is sorted and filtered by."""

    cards: Sequence[Card]
    data: Sequence[Mapping[str, Any]]
    rejected: int
    kept: int


def make_gallery(
    rows: pa.Table, pictures: Callable[[str], str | None], *, rewards: Sequence[str], limit: int
) -> Gallery:
    """At most `limit` radiographs: rejected ones up to half of it, evenly over reasons; then kept ones, over
    findings.
    """
    kept = rows["kept"].to_numpy(zero_copy_only=False).astype(bool)
    rejected = choose(_by_value(rows["reasons"], ~kept), limit // 2)
    chosen = choose(_by_value(rows["present"], kept), limit - len(rejected))
    radiographs = rows.take(pa.array(sorted([*rejected, *chosen]), pa.int64())).to_pylist()
    return Gallery(
        [_card(radiograph, pictures(radiograph["key"]), rewards) for radiograph in radiographs],
        [_data(radiograph, rewards) for radiograph in radiographs],
        rejected=len(rejected),
        kept=len(chosen),
    )


def choose(groups: Iterable[Indices], count: int) -> list[int]:
    """At most `count` of the members of groups that may overlap: one of each group in turn, drawn at random.

    The same groups give the same choice.
    """
    rng = np.random.default_rng(0)
    queues = [iter(rng.permutation(members).tolist()) for members in groups]
    taken: set[int] = set()
    while queues:
        for queue in list(queues):
            radiograph = next((radiograph for radiograph in queue if radiograph not in taken), None)
            if radiograph is None:
                queues.remove(queue)
            elif len(taken) < count:
                taken.add(radiograph)
            else:
                return sorted(taken)
    return sorted(taken)


def _by_value(column: pa.ChunkedArray, wanted: npt.NDArray[np.bool_]) -> list[Indices]:
    """Places of the wanted rows that hold each value of a column of lists, and of those that hold none."""
    lists = column.combine_chunks()
    parents = np.asarray(pc.list_parent_indices(lists), dtype=np.int64)
    encoded = pc.dictionary_encode(pc.cast(pc.list_flatten(lists), pa.string()))
    codes = np.asarray(encoded.indices.to_numpy(zero_copy_only=False))
    empty = wanted.copy()
    empty[parents] = False
    groups = [np.flatnonzero(empty)]
    names = encoded.dictionary.to_pylist()
    for code in sorted(range(len(names)), key=names.__getitem__):
        holding = parents[codes == code]
        groups.append(holding[wanted[holding]])
    return [group for group in groups if len(group)]


def _card(radiograph: Mapping[str, Any], picture: str | None, rewards: Sequence[str]) -> Card:
    facts = [(title, radiograph[name]) for name, title in _FACTS.items() if radiograph[name] is not None]
    findings = [("Present", ", ".join(radiograph["present"] or ())), ("Absent", ", ".join(radiograph["absent"] or ()))]
    return Card(
        key=radiograph["key"],
        kept=radiograph["kept"],
        picture=picture,
        reasons=radiograph["reasons"] or (),
        findings=radiograph["present"] or (),
        rewards=[(name, figure(radiograph[f"reward_{name}"])) for name in rewards],
        facts=[(title, figure(value) if isinstance(value, float) else str(value)) for title, value in facts]
        + [(title, text) for title, text in findings if text],
    )


def _data(radiograph: Mapping[str, Any], rewards: Sequence[str]) -> dict[str, Any]:
    numbers = {f"reward {name}": radiograph[f"reward_{name}"] for name in rewards} | {
        "similarity": radiograph["copy_similarity"]
    }
    return {
        "key": radiograph["key"],
        "kept": radiograph["kept"],
        "reasons": radiograph["reasons"] or [],
        "findings": radiograph["present"] or [],
        "view": radiograph["view"] or "",
        # The digits float32 holds.
        "numbers": {name: None if value is None else float(f"{value:.7g}") for name, value in numbers.items()},
    }
