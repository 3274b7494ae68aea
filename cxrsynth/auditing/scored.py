"""A collection once it is scored: its rows, and its pictures as far as they are needed."""

import io
from collections import Counter, defaultdict
from collections.abc import Iterable
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
from scipy.cluster.hierarchy import DisjointSet

from cxrsynth.auditing.examined import Examined
from cxrsynth.auditing.scorer import EMBEDDING, FEATURES, IMAGE_SIZE, LOGITS, PREVIEW_SIZE, VECTOR_COLUMNS, preview
from cxrsynth.errors import ShardError
from cxrsynth.images.collection import Unit
from cxrsynth.images.image import Radiograph
from cxrsynth.images.pictures import squared
from cxrsynth.metrics.groups import ImageTable
from cxrsynth.metrics.memorization.features import THUMB, unit
from cxrsynth.metrics.memorization.planted import ProbeKeeper, Probes
from cxrsynth.metrics.memorization.search import ImageSet


@dataclass(frozen=True)
class Scored:
    """All rows of a collection, pixels and vectors excepted: those are read from disk by what needs them."""

    examined: Examined
    rows: pa.Table = field(init=False, repr=False)

    def __post_init__(self) -> None:
        cache = self.examined.cache
        columns = [name for name in cache.columns() if name not in VECTOR_COLUMNS]
        object.__setattr__(self, "rows", pa.concat_tables(cache.tables(columns)).combine_chunks())

    def values(self, column: str) -> list[Any]:
        """One column as Python values."""
        return list(self.rows[column].to_pylist())

    @cached_property
    def patients(self) -> list[str]:
        """Each image's patient as a number in order of appearance, empty where unknown.

        Numbers, not pseudonyms: these depend on the key, and splits by patient must not. Patients of whom the same file
        is listed are one: as two they would show different patients to be alike.
        """
        numbers: dict[str, str] = {}
        people = DisjointSet(filter(None, self._listed))
        for names in self._shared_files.values():
            for name in names[1:]:
                people.merge(names[0], name)
        return [numbers.setdefault(people[name], str(len(numbers))) if name else "" for name in self._listed]

    @property
    def listed_twice(self) -> int:
        """Images whose file is listed under another patient, too, or several times without one."""
        return sum(map(len, self._shared_files.values()))

    @cached_property
    def _listed(self) -> list[str]:
        """Each image's patient; of files listed several times without one, a name of their own."""
        hashes = self.values("sha256")
        times = Counter(hashes)
        return [
            patient or (f"file {sha256}" if times[sha256] > 1 else "")
            for patient, sha256 in zip(self.values("patient"), hashes, strict=True)
        ]

    @cached_property
    def _shared_files(self) -> dict[str, list[str]]:
        """Patients of each file that is listed under more than one name, or several times without one."""
        names: dict[str, list[str]] = {}
        for sha256, name in zip(self.values("sha256"), self._listed, strict=True):
            names.setdefault(sha256, []).append(name)
        return {sha256: found for sha256, found in names.items() if len(set(found)) > 1 or found[0].startswith("file ")}

    @cached_property
    def features(self) -> npt.NDArray[np.float32]:
        """[N, D] float32."""
        return self._matrix(FEATURES)

    @cached_property
    def finding_logits(self) -> npt.NDArray[np.float32]:
        """[N, K] float32, in the order of the classifier's outputs."""
        return self._matrix(LOGITS)

    @cached_property
    def embeddings(self) -> npt.NDArray[np.float32]:
        """Of the verifier, of length 1, [N, D] float32."""
        return unit(self._matrix(EMBEDDING))

    @cached_property
    def thumbnails(self) -> npt.NDArray[np.uint8]:
        """Of the registered images, [N, T, T] uint8."""
        return self._small("thumbnail")

    def _small(self, column: str) -> npt.NDArray[np.uint8]:
        packed = bytearray()
        for table in self.examined.cache.tables([column]):
            packed += b"".join(table[column].to_pylist())
        return np.frombuffer(packed, dtype=np.uint8).reshape(-1, THUMB, THUMB)

    def _matrix(self, column: str) -> npt.NDArray[np.float32]:
        """The vectors of all images that have one, [N, D] float32."""
        cache = self.examined.cache
        matrix = np.empty((self.rows.num_rows, cache.width(column)), dtype=np.float32)
        filled = 0
        for table in cache.tables([column]):
            vectors = pc.list_flatten(table[column]).to_numpy().reshape(-1, matrix.shape[1])
            matrix[filled : filled + len(vectors)] = vectors
            filled += len(vectors)
        return matrix[:filled]

    def image_set(self) -> ImageSet:
        """What the search for near-duplicates compares."""
        return ImageSet(tuple(self.values("key")), self.thumbnails, self._small("framed"), tuple(self.patients))

    def probes(self, count: int, *, seed: int) -> Probes:
        """A sample of the images whose full pixels were kept."""
        keeper = ProbeKeeper(count, seed=seed)
        for table in self.examined.cache.tables(["key", "image"]):
            for key, pixels in zip(table["key"].to_pylist(), table["image"].to_pylist(), strict=True):
                if pixels is not None:
                    levels = np.frombuffer(pixels, dtype=np.uint8).reshape(1, 1, IMAGE_SIZE, IMAGE_SIZE)
                    keeper.offer([key], torch.from_numpy(levels / np.float32(255)))
        return keeper.probes()

    def image_table(self, pixels: npt.NDArray[np.uint8] | None = None) -> ImageTable:
        """What fidelity and utility are measured on; diversity needs `pixels` as well."""
        return ImageTable(
            features=self.features,
            view=self.values("view"),
            sex=self.values("sex"),
            age_group=self.values("age_group"),
            present=[set(names) for names in self.values("present")],
            absent=[set(names) for names in self.values("absent")],
            patients=self.patients,
            pixels=pixels,
        )

    def pixels(self, path: Path) -> npt.NDArray[np.uint8]:
        """Previews decoded into a file at `path`, [N, P, P] uint8: only those of sampled pairs are ever in memory.

        Raises:
            ShardError: if an image has to be read again and is gone.
        """
        count = self.rows.num_rows
        if not count:
            return np.zeros((0, PREVIEW_SIZE, PREVIEW_SIZE), dtype=np.uint8)
        pixels = np.memmap(path, dtype=np.uint8, mode="w+", shape=(count, PREVIEW_SIZE, PREVIEW_SIZE))
        previews = Previews(self)
        for place, key in enumerate(self.values("key")):
            jpeg = previews.get(key)
            if jpeg is None:
                # summary.json quotes this, and the key of a real image may name a patient.
                raise ShardError(f"{self.examined.collection.path}: an image can no longer be read")
            pixels[place] = np.asarray(Image.open(io.BytesIO(jpeg)))
        return pixels


class Previews:
    """Previews by key. The last unit used stays in memory; deleted previews are made again from the input.

    Args:
        scored: the images.
        wanted: keys that will be asked for; all where None.
    """

    def __init__(self, scored: Scored, wanted: Iterable[str] | None = None) -> None:
        self._examined = scored.examined
        self._wanted = None if wanted is None else set(wanted)
        units = self._examined.collection.units
        self._unit_of = {
            key: unit
            for unit, table in zip(units, self._examined.cache.tables(["key"]), strict=True)
            for key in table["key"].to_pylist()
            if self._wanted is None or key in self._wanted
        }
        self._keys_of: dict[Unit, set[str]] = defaultdict(set)
        for key, of in self._unit_of.items():
            self._keys_of[of].add(key)
        self._read: dict[Unit, dict[str, bytes]] = {}

    def get(self, key: str) -> bytes | None:
        """JPEG of an image, None for an unknown key."""
        unit = self._unit_of.get(key)
        if unit is None:
            return None
        if unit not in self._read:
            if self._wanted is None:
                self._read.clear()
            self._read[unit] = self._previews_of(unit)
        return self._read[unit].get(key)

    def _previews_of(self, unit: Unit) -> dict[str, bytes]:
        cache = self._examined.cache
        if cache.has_pixels(unit):
            table = cache.table(unit, ["key", "preview"])
            found = dict(zip(table["key"].to_pylist(), table["preview"].to_pylist(), strict=True))
            return {key: jpeg for key, jpeg in found.items() if key in self._unit_of}
        wanted = self._keys_of[unit]
        images = self._examined.collection.read(unit)
        return {
            radiograph.key: preview(torch.from_numpy(squared(radiograph.pixels, IMAGE_SIZE)))
            for radiograph in images
            if isinstance(radiograph, Radiograph) and radiograph.key in wanted
        }
