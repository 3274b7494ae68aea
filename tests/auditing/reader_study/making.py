"""Keys of reader studies and answers to them, made by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cxrsynth.auditing.reader_study.key import KeyedImage, StudyKey, write_key

STUDY = "0123456789abcdef"


def study_key(real: int, synthetic: int, *, present: Mapping[str, Sequence[str]] | None = None) -> StudyKey:
    """A key with images r0, r1 ..., s0, s1 ...; `present` gives findings by name."""
    kinds = {f"r{place}": "real" for place in range(real)} | {f"s{place}": "synthetic" for place in range(synthetic)}
    images = {
        name: KeyedImage.model_validate(
            {
                "kind": kind,
                "key": f"own-{name}",
                "sha256": "0" * 64,
                "present": (present or {}).get(name, ()),
                "absent": (),
            }
        )
        for name, kind in kinds.items()
    }
    return StudyKey(
        study=STUDY, seed=0, side=8, text="findings", matched={"view": real, "present": real}, images=images
    )


def answer(image: str, origin: str | None, **others: Any) -> dict[str, Any]:
    """One answer as the page saves it."""
    given = {
        "image": image,
        "origin": origin,
        "quality": 3,
        "findings": ["No Finding"],
        "match": "yes",
        "seconds": 10.0,
    }
    return given | others


def file_of(name: str, answers: Sequence[Mapping[str, Any]], **others: Any) -> dict[str, Any]:
    """What the page saves for one reader."""
    reader = {"name": name, "role": "radiologist", "years": 5}
    head = {"format": "cxrsynth reader answers", "version": 1, "study": STUDY}
    return {**head, "reader": reader, "answers": list(answers)} | others


def write(folder: Path, name: str, content: Any) -> Path:
    """A file of answers."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def with_key(folder: Path, key: StudyKey) -> Path:
    """A state folder that holds the key."""
    folder.mkdir(exist_ok=True)
    write_key(folder, key)
    return folder
