"""The key of a reader study: which image is real. It stays in the audit's private folder, and on no page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cxrsynth.errors import ShardError
from cxrsynth.runtime.files import read_json, stable_json, write_atomically

Kind = Literal["real", "synthetic"]
TextKind = Literal["report", "findings"]

KINDS: tuple[Kind, ...] = ("real", "synthetic")
PATTERN = "reader-study-*.json"


class KeyedImage(BaseModel):
    """An image of a study: its kind, its own key in its collection, and what its report states."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    key: str
    sha256: str
    present: tuple[str, ...]
    absent: tuple[str, ...]


class StudyKey(BaseModel):
    """What the answers to a study are scored with. `images` go by the names they have on the page.

    `side` is in pixels, `text` the kind of text that readers compare an image with, `matched` in how many of the pairs
    real and synthetic images agree by their metadata.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    study: str
    seed: int
    side: int
    text: TextKind | None
    matched: Mapping[str, int]
    images: Mapping[str, KeyedImage]

    def of_kind(self, kind: Kind) -> list[str]:
        """Names of the images of one kind."""
        return [name for name, image in self.images.items() if image.kind == kind]

    def described(self) -> dict[str, Any]:
        """What summary.json says of the study: nothing of a single image."""
        return {
            "study": self.study,
            "images": len(self.images),
            "real": len(self.of_kind("real")),
            "synthetic": len(self.of_kind("synthetic")),
            "seed": self.seed,
            "side": self.side,
            "text": self.text,
            "matched": dict(self.matched),
        }


def key_path(folder: Path, study: str) -> Path:
    """Where the key of a study is. Each study has its own file, so that answers to an earlier one can be scored."""
    return folder / PATTERN.replace("*", study)


def write_key(folder: Path, key: StudyKey) -> None:
    """Write a key that only its owner can read (mode 0600)."""
    write_atomically(key_path(folder, key.study), stable_json(key.model_dump(mode="json")), mode=0o600)


def read_key(folder: Path, study: str) -> StudyKey | None:
    """The key of a study, None if there is none. Raises ShardError for a damaged one."""
    path = key_path(folder, study)
    try:
        return StudyKey.model_validate(read_json(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError):
        raise ShardError(
            f"{path}: not the key of a reader study\n  make the study again: the same images give the same key"
        ) from None
