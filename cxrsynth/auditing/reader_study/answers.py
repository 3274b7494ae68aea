"""The answers that readers save, read back and checked against the key of their study."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from cxrsynth.auditing.reader_study.key import StudyKey, read_key
from cxrsynth.errors import ShardError
from cxrsynth.reports.labels import OBSERVATIONS
from cxrsynth.runtime.files import read_json

FORMAT, VERSION = "cxrsynth reader answers", 1
QUALITIES = {1: "not usable", 2: "poor", 3: "fair", 4: "good", 5: "excellent"}
EXPERIENCE = ("radiologist", "radiology resident", "other physician", "radiographer", "other")
_OPTION = "--reader-answers"
_LONGEST = 1 << 24  # bytes
_LONGEST_PLACE = 80  # characters
_ONCE_MORE = "expected a file that the page of a reader study saved\n  ask the reader to save it once more"


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Reader(_Checked):
    """Who answered: initials or a code, the kind of experience, and years of it."""

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=40)]
    role: Literal["radiologist", "radiology resident", "other physician", "radiographer", "other"]
    years: Annotated[float, Field(ge=0, le=80)] | None = None

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        name = " ".join(name.split())  # of any kind of space
        if not name.isprintable():  # it is shown on terminals
            raise ValueError("expected a name of printable characters")
        return name


class Answer(_Checked):
    """What was answered on one image; None and empty where nothing was, yet. `seconds` are those it was looked at."""

    image: str
    origin: Literal["real", "synthetic"] | None = None
    quality: Annotated[int, Field(ge=1, le=5)] | None = None
    findings: list[str] = []
    match: Literal["yes", "partly", "no"] | None = None
    seconds: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0

    @field_validator("findings")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names) or not set(names) <= set(OBSERVATIONS):
            raise ValueError("expected findings of CheXpert, each once")
        return names


class AnswerFile(_Checked):
    """What a reader saved."""

    format: Literal["cxrsynth reader answers"]
    version: Literal[1]
    study: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]  # part of a file's name
    reader: Reader
    answers: list[Answer]


@dataclass(frozen=True)
class Answered:
    """All answers to one study, and its key."""

    key: StudyKey
    files: tuple[AnswerFile, ...]


def read_answers(paths: Sequence[Path], keys: Path) -> Answered:
    """Read the answers of several readers to one study.

    Args:
        paths: files that readers saved, at least one. Unfinished ones count as far as they go.
        keys: the folder where the key is.

    Raises:
        ShardError: for a file that is damaged, of another study, with an image that the study does not have, with a
            value out of range, or by a reader who has another file.
    """
    files = [_read(path) for path in paths]
    for path, file in zip(paths, files, strict=True):
        if file.study != files[0].study:
            raise ShardError(
                f"{_OPTION} {path}: answers to study {file.study}, those in {paths[0]} are to {files[0].study}\n"
                "  score each study by itself"
            )
    key = read_key(keys, files[0].study)
    if key is None:
        raise ShardError(
            f"{_OPTION} {paths[0]}: answers to study {files[0].study}, which has no key in {keys}\n"
            "  name the folder in which --reader-study made its page with --out"
        )
    readers: dict[str, Path] = {}
    for path, file in zip(paths, files, strict=True):
        _check(path, file, key)
        first = readers.setdefault(file.reader.name.casefold(), path)
        if first != path or sum(path == other for other in paths) > 1:
            raise ShardError(
                f"{_OPTION} {path}: reader {file.reader.name!r} also answered in {first}\n"
                "  give one file of each reader; if they are two readers, change the name in one file"
            )
    return Answered(key, tuple(files))


def _read(path: Path) -> AnswerFile:
    try:
        return AnswerFile.model_validate(read_json(path, longest=_LONGEST))
    except ValidationError as error:
        found = error.errors()[0]
        # Names in it may be the file's own: nothing that a terminal would obey, and not pages of it.
        where = repr(".".join(map(str, found["loc"])))[1:-1][:_LONGEST_PLACE]
        said = f"{where}: {found['msg']}" if where else "not the answers of a reader"
        raise ShardError(f"{_OPTION} {path}: {said}\n  {_ONCE_MORE}") from None
    except OSError as error:
        raise ShardError(f"{_OPTION} {path}: cannot be read ({error.strerror})\n  {_ONCE_MORE}") from None
    except ValueError:
        raise ShardError(f"{_OPTION} {path}: damaged, not JSON\n  {_ONCE_MORE}") from None


def _check(path: Path, file: AnswerFile, key: StudyKey) -> None:
    """Raises ShardError unless all images are the study's, each once, and something was answered."""
    names = [answer.image for answer in file.answers]
    unknown = [name for name in names if name not in key.images]
    if unknown or len(set(names)) < len(names):
        which = f"image {unknown[0][:40]!r} is not one of study {key.study}" if unknown else "an image is there twice"
        raise ShardError(f"{_OPTION} {path}: {which}\n  {_ONCE_MORE}")
    if not any(answer.origin for answer in file.answers):
        raise ShardError(f"{_OPTION} {path}: no image is answered\n  leave this file out")
