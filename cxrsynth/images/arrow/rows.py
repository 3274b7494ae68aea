"""Rows of Arrow tables as images: which column holds the image, and what the others say of it."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pyarrow as pa

from cxrsynth.errors import ShardError
from cxrsynth.images.decode import IMAGE_EXTENSIONS, RawImage
from cxrsynth.images.folder import START_BYTES, kind_of
from cxrsynth.images.image import Damaged
from cxrsynth.images.layouts.find import Survey
from cxrsynth.images.layouts.paths import plain
from cxrsynth.images.layouts.vocabulary import observations_of
from cxrsynth.images.limits import MAX_MEMBER_BYTES, MAX_TEXT_BYTES, UnreadableError, bad_name, shown
from cxrsynth.images.listed import LISTED, label_cells, may_list
from cxrsynth.images.metadata import is_metadata
from cxrsynth.images.table import ImageRows, Row
from cxrsynth.reports.table.columns import ColumnNames, find_roles

_USUAL: Final = ("image", "img", "jpg", "jpeg", "png", "xray", "picture")


@dataclass(frozen=True)
class ImageColumns:
    """Columns of a table of images.

    `image` holds bytes, or a struct of `bytes` and `path`; `others` are those that are read as metadata; `classes` are
    the names that stand for the numbers of a column; `structs` are those of others that hold findings with marks;
    `left` are columns that are not read.
    """

    image: str
    in_struct: bool
    others: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    structs: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Columns of lists of labels, by their names."""
        return tuple(name for name in self.others if may_list(name))


def find_columns(schema: pa.Schema, starts: Callable[[list[str]], Mapping[str, bytes]]) -> ImageColumns | None:
    """Which column holds the images, None where none does.

    Args:
        schema: of the table.
        starts: names of columns of bytes -> how the first value of each begins.

    Raises:
        ShardError: if there are several, none of which has a usual name; it does not name the table.
    """
    features = _features(schema)
    structs = [one.name for one in schema if pa.types.is_struct(one.type) and _holds_bytes(one.type)]
    binary = [one.name for one in schema if _is_bytes(one.type)]
    found = structs + ([name for name, start in starts(binary).items() if kind_of(start)] if binary else [])
    usual = [name for name in found if plain(name) in _USUAL]
    if not found:
        return None
    if len(found) > 1 and len(usual) != 1:
        raise ShardError(f"columns {', '.join(found)} all hold images\n  name one of them image, or leave one")
    image = found[0] if len(found) == 1 else usual[0]
    classes = {name: tuple(map(str, names)) for name, one in features.items() if (names := _classes(one))}
    others = tuple(one.name for one in schema if one.name not in found and _is_metadata(one, classes))
    left = tuple(one.name for one in schema if one.name not in (image, *others))
    marked = tuple(name for name in others if pa.types.is_struct(schema.field(name).type))
    return ImageColumns(image, image in structs, others, classes, marked, left)


def start_of(value: Any) -> bytes:
    """How a value of bytes begins, as far as `kind_of` looks."""
    buffer = value.as_buffer()
    return bytes(buffer.slice(0, min(buffer.size, START_BYTES)).to_pybytes())


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """What `datasets` wrote of the columns, empty for other writers."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, LookupError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _classes(feature: Any) -> Sequence[Any]:
    """Names of a feature of classes, or of a list of them."""
    while isinstance(feature, dict | list) and feature:
        feature = feature[0] if isinstance(feature, list) else feature
        if isinstance(feature, dict) and isinstance(feature.get("names"), list):
            return list(feature["names"])
        feature = feature.get("feature") if isinstance(feature, dict) else feature
    return ()


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_bytes(kind: pa.StructType) -> bool:
    place = kind.get_field_index("bytes")
    return place >= 0 and _is_bytes(kind.field(place).type)


def _is_metadata(one: pa.Field, classes: Mapping[str, Any]) -> bool:
    """Texts, numbers, lists of texts or classes, and structs of observations; not pixels or embeddings."""
    kind = one.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return one.name in classes or _is_text(kind.value_type)
    if pa.types.is_struct(kind):
        return may_list(one.name) or all(observations_of(part.name) is not None for part in kind)
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return _is_text(kind) or any(is_number(kind) for is_number in numbers)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


@dataclass(frozen=True)
class Place:
    """Where rows come from: the unit's name, the file's, and the number of the first row in the file, from 0."""

    unit: str
    file: str
    first: int


def raw_images(
    batches: Iterable[pa.RecordBatch], columns: ImageColumns, place: Place, rows: ImageRows | None
) -> Iterator[RawImage | Damaged]:
    """The images of consecutive rows, with what their other columns say, or the user's table.

    The key of an image is the file's name without its extension, and the row. Memory: one batch.
    """
    number = place.first
    for batch in batches:
        values = {name: batch.column(name) for name in (columns.image, *columns.others)}
        for index in range(batch.num_rows):
            key = f"{PurePosixPath(place.file).with_suffix('')}/{number:06d}"
            try:
                yield _raw_image(values, index, columns, key, place, number, rows)
            except UnreadableError as error:
                yield Damaged(place.unit, shown(key), str(error))
            except (UnicodeDecodeError, pa.ArrowException):
                yield Damaged(place.unit, shown(key), "a text that is not UTF-8, or another broken value")
            number += 1


def _raw_image(
    values: Mapping[str, Any],
    index: int,
    columns: ImageColumns,
    key: str,
    place: Place,
    number: int,
    rows: ImageRows | None,
) -> RawImage:
    content, path = _content(values[columns.image][index], in_struct=columns.in_struct)
    suffix = PurePosixPath(path).suffix.lower().removeprefix(".")
    extension = kind_of(content[:START_BYTES]) or (suffix if suffix in IMAGE_EXTENSIONS else "")
    if not extension:
        raise UnreadableError(f"no image of a kind that is read, expected one of {', '.join(IMAGE_EXTENSIONS)}")
    # Its path may name the patient, or a class.
    member = f"{key}.{extension}" if not path or bad_name(path) else f"{key}/{path}"
    row = None if rows is None else rows.find(path or key)
    if row is None:
        row = Row(number + 1, record_of({name: values[name][index] for name in columns.others}, columns.classes))
    return RawImage(key, place.unit, number - place.first, member, extension, {extension: content}, row=row)


def _content(value: Any, *, in_struct: bool) -> tuple[bytes, str]:
    """Bytes and path of an image. The size is known before the bytes are copied."""
    path = value["path"].as_py() if in_struct and value.is_valid and "path" in value else None
    value = value["bytes"] if in_struct and value.is_valid else value
    if not value.is_valid:
        raise UnreadableError("no bytes of an image" + (", only its path" if path else ""))
    buffer = value.as_buffer()
    if buffer.size > MAX_MEMBER_BYTES:
        raise UnreadableError(f"an image of {buffer.size} bytes, more than {MAX_MEMBER_BYTES}")
    return buffer.to_pybytes(), path or ""


def record_of(values: Mapping[str, Any], classes: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Column name -> value of one row, classes by name, structs of findings as columns of their own.

    Raises:
        UnreadableError: for a text that is too long.
    """
    record: dict[str, Any] = {}
    for name, value in values.items():
        found = value.as_py()
        if name in classes:
            found = _named(found, classes[name])
        if isinstance(found, str) and len(found) > MAX_TEXT_BYTES:
            raise UnreadableError(f"a text longer than {MAX_TEXT_BYTES} characters")
        if isinstance(found, dict) and not may_list(name):
            record |= {part: one for part, one in found.items() if one is not None}
        elif found is not None:
            record[name] = found
    return record


def _named(value: Any, names: tuple[str, ...]) -> Any:
    """Names in place of numbers; None for a number without one, as -1 stands for an unknown class."""
    if isinstance(value, list):
        return [name for one in value if (name := _named(one, names)) is not None]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def survey_labels(batches: Iterable[pa.RecordBatch], columns: ImageColumns, survey: Survey) -> None:
    """Count words of labels, of batches of the columns of labels alone, that stand for no observation."""
    for batch in batches:
        for index in range(batch.num_rows):
            try:
                record = record_of({name: batch.column(name)[index] for name in columns.labels}, columns.classes)
            except (UnreadableError, UnicodeDecodeError, pa.ArrowException):
                continue  # it is reported where the image is read
            cells = label_cells(record)
            survey.read |= {name for name, cell in cells.items() if cell.is_read}
            cells = {name: cell for name, cell in cells.items() if plain(name) in LISTED or cell.is_read}
            first = next((cell for cell in cells.values() if cell.is_read), next(iter(cells.values()), None))
            if first is None:
                continue
            survey.without.update(word for word in (*first.words, *first.marks) if observations_of(word) == ())
            survey.unknown |= set(first.rest)
            survey.unknown_images += bool(first.rest)


def columns_of(files: Iterable[ImageColumns], survey: Survey) -> dict[str, tuple[str, ...]]:
    """Which columns of some files are read, beside the images, and which are not; as `Recognized` has them."""
    read: dict[str, None] = {}
    left: dict[str, None] = {}
    for columns in files:
        roles = find_roles(Path(), columns.others, asked=ColumnNames())
        for name in columns.others:
            known = name in survey.read if may_list(name) else name in columns.structs or is_metadata(name, roles)
            (read if known else left)[name] = None
        left |= dict.fromkeys(columns.left)
    return {"read": tuple(read), "left": tuple(name for name in left if name not in read)}


def splits_of(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Images of each split, from the split and the number of images of each file; those of none are left out."""
    found: Counter[str] = Counter()
    for split, count in counts:
        found[split] += count
    return {split: count for split, count in sorted(found.items()) if split}
