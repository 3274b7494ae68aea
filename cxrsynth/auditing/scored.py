"""Images and their scores, read back from the audit folder."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image

from cxrsynth.auditing.scorer import IMAGE_SIZE, PREVIEW_SIZE
from cxrsynth.auditing.setup import Examined
from cxrsynth.metrics.groups import ImageTable
from cxrsynth.metrics.memorization.features import THUMB
from cxrsynth.metrics.memorization.planted import ProbeKeeper, Probes
from cxrsynth.metrics.memorization.search import ImageSet


@dataclass(frozen=True)
class Scored:
    """All rows of a collection; features and thumbnails as arrays, previews left on disk until one is asked for."""

    examined: Examined
    rows: pa.Table = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = self.examined.parts
        columns = [name for name in parts.columns() if name not in ("preview", "image")]
        object.__setattr__(self, "rows", pa.concat_tables(parts.tables(columns)).combine_chunks())

    def texts(self, column: str) -> list[Any]:
        """One column as Python values."""
        return list(self.rows[column].to_pylist())

    @cached_property
    def features(self) -> npt.NDArray[np.float32]:
        """[N, D] float32."""
        width = self.rows.schema.field("features").type.list_size
        flat = pc.list_flatten(self.rows["features"]).to_numpy(zero_copy_only=False)
        return np.asarray(flat, dtype=np.float32).reshape(-1, width)

    @cached_property
    def thumbnails(self) -> npt.NDArray[np.uint8]:
        """[N, T, T] uint8."""
        packed = bytearray().join(self.rows["thumbnail"].to_pylist())
        return np.frombuffer(packed, dtype=np.uint8).reshape(-1, THUMB, THUMB)

    def image_set(self) -> ImageSet:
        """What the search of copies looks at."""
        return ImageSet(tuple(self.texts("key")), self.thumbnails, tuple(self.texts("patient")))

    def probes(self, count: int, *, seed: int) -> Probes:
        """A sample of the images kept whole."""
        keeper = ProbeKeeper(count, seed=seed)
        for part in self.examined.parts.tables(["key", "image"]):
            for key, radiograph in zip(part["key"].to_pylist(), part["image"].to_pylist(), strict=True):
                if radiograph is not None:
                    levels = np.frombuffer(radiograph, dtype=np.uint8).reshape(1, 1, IMAGE_SIZE, IMAGE_SIZE)
                    keeper.offer([key], torch.from_numpy(levels / np.float32(255)))
        return keeper.probes()

    def table(self, pixels: npt.NDArray[np.uint8] | None) -> ImageTable:
        """What fidelity and utility look at."""
        return ImageTable(
            features=self.features,
            view=self.texts("view"),
            sex=self.texts("sex"),
            age_group=self.texts("age_group"),
            present=[set(names) for names in self.texts("present")],
            absent=[set(names) for names in self.texts("absent")],
            patients=self.texts("patient"),
            pixels=pixels,
        )

    def previews(self) -> Iterator[tuple[str, bytes]]:
        """Key and JPEG of every image, in order."""
        for part in self.examined.parts.tables(["key", "preview"]):
            yield from zip(part["key"].to_pylist(), part["preview"].to_pylist(), strict=True)

    def pixels(self, path: Path) -> npt.NDArray[np.uint8]:
        """Previews decoded into a file of their own, [N, P, P] uint8: only those of drawn pairs are ever in memory."""
        count = self.rows.num_rows
        if not count:
            return np.zeros((0, PREVIEW_SIZE, PREVIEW_SIZE), dtype=np.uint8)
        pixels = np.memmap(path, dtype=np.uint8, mode="w+", shape=(count, PREVIEW_SIZE, PREVIEW_SIZE))
        for place, (_, jpeg) in enumerate(self.previews()):
            pixels[place] = np.asarray(Image.open(io.BytesIO(jpeg)))
        return pixels


class _Pictures:
    """Previews by key, read unit by unit; the last unit asked for stays in memory."""

    def __init__(self, scored: Scored) -> None:
        self._parts = scored.examined.parts
        units = scored.examined.collection.units
        self._unit_of = {
            key: unit
            for unit, table in zip(units, self._parts.tables(["key"]), strict=True)
            for key in table["key"].to_pylist()
        }
        self._now: tuple[Any, dict[str, bytes]] = (None, {})

    def get(self, key: str) -> bytes | None:
        """JPEG of an image, None for an unknown key."""
        unit = self._unit_of.get(key)
        if unit is None:
            return None
        if self._now[0] != unit:
            table = self._parts.table(unit, ["key", "preview"])
            self._now = (unit, dict(zip(table["key"].to_pylist(), table["preview"].to_pylist(), strict=True)))
        return self._now[1].get(key)
