"""The page that readers work on: one file that needs no network, with the images in it and without the key.

Pixels are plain bytes in base64, so that every image takes the same space and carries no metadata. A browser keeps the
progress; the answers leave it as a file that the reader saves.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cxrsynth.auditing.page.inline import asset, content_policy, environment
from cxrsynth.auditing.reader_study.answers import EXPERIENCE, FORMAT, QUALITIES, VERSION
from cxrsynth.auditing.reader_study.key import TextKind
from cxrsynth.reports.labels import NO_FINDING
from cxrsynth.runtime.files import write_atomically

_HERE = "cxrsynth.auditing.reader_study"
# The key to press for each finding. Others are taken: R, S, Y, P, N by questions, I, T by the view.
FINDING_KEYS = {
    NO_FINDING: "z",
    "Enlarged Cardiomediastinum": "m",
    "Cardiomegaly": "c",
    "Lung Opacity": "o",
    "Lung Lesion": "l",
    "Edema": "e",
    "Consolidation": "k",
    "Pneumonia": "u",
    "Atelectasis": "a",
    "Pneumothorax": "x",
    "Pleural Effusion": "f",
    "Pleural Other": "q",
    "Fracture": "b",
    "Support Devices": "d",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """An image by its name on the page, and the text it is compared with, empty if that is not asked."""

    name: str
    text: str = field(repr=False)


def write_study_page(
    path: Path, study: str, shown: Sequence[Shown], levels: Mapping[str, bytes], *, side: int, text: TextKind | None
) -> None:
    """Write the page, whole or not at all, for its owner alone (mode 0600).

    Args:
        path: the page, replaced where it is there.
        study: its identity, under which the browser keeps progress and the key is found again.
        shown: the images in the order they are read in.
        levels: side * side gray levels of each image by name.
        side: of the images, in pixels.
        text: the kind of text.

    Raises:
        ValueError: for an image of another size.
    """
    if any(len(levels[one.name]) != side * side for one in shown):
        raise ValueError(f"images of other sizes, expected {side} x {side} gray levels each")
    style, script = asset(_HERE, "reader_study.css"), asset(_HERE, "reader_study.js")
    data = {
        "format": FORMAT,
        "version": VERSION,
        "study": study,
        "side": side,
        "images": [one.name for one in shown],
        "texts": None if text is None else [one.text for one in shown],
    }
    content = (
        environment(_HERE)
        .get_template("reader_study.html.jinja")
        .render(
            style=style,
            script=script,
            policy=content_policy(style, script, images=False),
            data=data,
            pictures=[base64.b64encode(levels[one.name]).decode() for one in shown],
            text=text,
            qualities=QUALITIES,
            experience=EXPERIENCE,
            findings=FINDING_KEYS,
            normal=NO_FINDING,
        )
    )
    write_atomically(path, content.encode(), mode=0o600)
