"""Images to fine-tune on: read, without those of held-out and test reports, encoded once, and cached by unit.

The cache holds prompts, and its latents can be decoded into images: it serves one run and is removed when the stage is
done.
"""

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cxrsynth import __version__
from cxrsynth.console import counted
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.sampler import encode_images
from cxrsynth.errors import ModelError, RecipeError, ReportsError
from cxrsynth.images.collection import Collection as ImageCollection
from cxrsynth.images.collection import Unit, open_collection
from cxrsynth.images.image import Damaged, Radiograph
from cxrsynth.images.pictures import centered
from cxrsynth.recipe.schema import DistillStage, SftStage
from cxrsynth.reports.request import PromptBuilder, Reader
from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.reports.table.rows import Report
from cxrsynth.reports.template import PromptFormat, PromptTemplate
from cxrsynth.runtime.batches import chunks
from cxrsynth.runtime.files import write_atomically
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.tuning.splits import text_key

_DIGEST = "sha256"  # in a file's header, of its latents and of all else there: a flipped bit would train on unnoticed
_USED, _DAMAGED, _NO_REPORT, _HELD_OUT = "used", "could not be read", "without a report", "of held-out or test reports"


def open_images(
    stage: SftStage | DistillStage, prompt_format: PromptFormat, labeler: Reader | None = None
) -> ImageCollection:
    """The images a stage trains on, with what their prompts need; `labeler` None: labels are read by rules.

    Raises:
        ShardError, ReportsError: as `open_collection` does.
    """
    template = prompt_format if isinstance(prompt_format, PromptTemplate) else None
    columns = ColumnNames(**stage.columns)
    assert stage.data is not None
    return open_collection(stage.data, table=stage.table, columns=columns, template=template, labeler=labeler)


@dataclass(frozen=True)
class Pair:
    """Prompt and conditions an image is trained with."""

    prompt: str = field(repr=False)
    conditions: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """One encoded unit."""

    path: Path
    pairs: tuple[Pair, ...] = field(repr=False)
    counts: Counter[str]
    first_damage: str


class TrainingImages:
    """Latents and prompts of all usable images, by place; latents stay on disk until they are needed."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part.pairs) for part in parts))
        self.counts: Counter[str] = sum((part.counts for part in parts), Counter())
        self._first_damage = next((part.first_damage for part in parts if part.first_damage), "")

    def __len__(self) -> int:
        return self._ends[-1]

    def pair(self, place: int) -> Pair:
        """Prompt and conditions of an image."""
        part, row = self._find(place)
        return part.pairs[row]

    def latent(self, place: int) -> Tensor:
        """Scaled latent of an image, [C, h, w] float32 on the CPU.

        Raises:
            ModelError: if its file cannot be read.
        """
        part, row = self._find(place)
        with _readable(part.path), safe_open(part.path, framework="pt") as file:
            return file.get_slice("latents")[row].float()  # type: ignore[no-any-return]

    def summary(self, *, first_damage: bool = True) -> str:
        """How many images are used, and why others are not.

        Args:
            first_damage: name the first damaged image; its name may be a patient's.
        """
        left = [f"{self.counts[why]} {why}" for why in (_DAMAGED, _NO_REPORT, _HELD_OUT) if self.counts[why]]
        damage = f" (first: {self._first_damage})" if first_damage and self._first_damage else ""
        return counted(self.counts[_USED], "image") + (f"; left out: {', '.join(left)}{damage}" if left else "")

    def _find(self, place: int) -> tuple[_Part, int]:
        index = bisect_right(self._ends, place)
        part = self._parts[index]
        return part, place - (self._ends[index] - len(part.pairs))


@dataclass(frozen=True)
class ExcludedReports:
    """Reports whose images must not be trained on; nor may images of the same patients or with the same report text.

    `unknown` counts reports by which no image can be recognized.
    """

    ids: frozenset[str] = field(repr=False)
    patients: frozenset[str] = field(repr=False)
    texts: frozenset[bytes] = field(repr=False)
    unknown: int

    @classmethod
    def of(cls, reports: Sequence[Report]) -> "ExcludedReports":
        """By what these reports' images are recognized."""
        return cls(
            frozenset(report.report_id for report in reports if report.has_id),
            frozenset(report.patient_id for report in reports if report.patient_id),
            frozenset(key for report in reports if (key := text_key(report)) is not None),
            sum(not (report.has_id or report.patient_id or text_key(report)) for report in reports),
        )

    def has(self, radiograph: Radiograph) -> bool:
        """Whether an image belongs to one of the reports, to a patient of theirs, or has the same report text."""
        report = radiograph.report
        return radiograph.patient in self.patients or (
            report is not None and (report.report_id in self.ids or text_key(report) in self.texts)
        )

    @property
    def identity(self) -> list[list[str]]:
        """The same for the same reports, as plain JSON."""
        return [sorted(self.ids), sorted(self.patients), sorted(key.hex() for key in self.texts)]


class ImageEncoder:
    """Encodes units of a collection into a folder; a unit found there, as it was written, is not encoded again.

    Args:
        collection: the images.
        model: whose autoencoder encodes them.
        prompt_builder: makes their prompts, as `generate` does.
        excluded: held-out and test reports, whose images are left out.
        folder: where latents are cached.
        limit_bytes: the most disk space they may take.
        batch_size: images per forward pass.
        pool: where forward passes run in parallel.
    """

    def __init__(
        self,
        collection: ImageCollection,
        model: DiffusionModel,
        prompt_builder: PromptBuilder,
        *,
        excluded: ExcludedReports,
        folder: Path,
        limit_bytes: float,
        batch_size: int,
        pool: OrderedPool,
    ) -> None:
        self._collection = collection
        self._model = model
        self._prompt_builder = prompt_builder
        self._excluded = excluded
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._batch_size = batch_size
        self._pool = pool
        depends_on = [__version__, model.digest, model.precision.value, batch_size, excluded.identity]
        self._identity = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()

    def encode(self, units: Sequence[Unit], *, advance: Callable[[int], None]) -> None:
        """Encode those of `units` that are missing or damaged.

        Raises:
            RecipeError: if the latents take more disk space than is allowed.
            ModelError: if a latent is not a number.
            OSError: if they cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for unit in units:
            path = self._path(unit)
            if not _is_whole(path):
                write_atomically(path, self._encoded(unit, advance))
            self._check_room()

    def images(self) -> TrainingImages:
        """The images of all units, once these are encoded.

        Raises:
            ReportsError: if no image can be used.
            ModelError: if a file cannot be read.
        """
        images = TrainingImages([_read(self._path(unit)) for unit in self._collection.units])
        if not len(images):
            raise ReportsError(
                f"{self._collection.path}: no image to train on: {images.summary()}\n"
                "  expected: images with a report or labels beside them, or a table of reports (the stage's `table`)"
            )
        return images

    def _path(self, unit: Unit) -> Path:
        """Where a unit's latents are or will be, named by everything they depend on."""
        name = f"{self._identity}\0{unit.name}\0{self._collection.content_of(unit)}"
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"

    def _check_room(self) -> None:
        taken = sum(path.stat().st_size for path in self._folder.glob("*.safetensors"))
        if taken > self._limit_bytes:
            raise RecipeError(
                f"cache_gib {self._limit_bytes / 2**30:g}: latents of the images in {self._collection.path} take more\n"
                "  raise it if the disk has room, or train on fewer images"
            )

    def _encoded(self, unit: Unit, advance: Callable[[int], None]) -> bytes:
        counts: Counter[str] = Counter()
        damages: list[str] = []
        pairs: list[Pair] = []
        latents = [torch.zeros(0, *self._model.latent_shape, dtype=torch.float16)]
        batches = chunks(self._usable(unit, counts, damages), self._batch_size)

        def encode(batch: list[tuple[Pair, Tensor]]) -> Tensor:
            return encode_images(self._model, torch.stack([image for _, image in batch])).cpu()

        for batch, found in self._pool.map_in_order(encode, batches):
            kept = found.half()
            if not kept.isfinite().all():
                raise ModelError(f"vae: latents of images in {unit.name} are not numbers\n  try precision: fp32")
            pairs += [pair for pair, _ in batch]
            latents.append(kept)
            advance(len(batch))
        joined = torch.cat(latents)
        metadata = {
            "pairs": json.dumps([[pair.prompt, pair.conditions] for pair in pairs]),
            "counts": json.dumps(counts),
            "first_damage": damages[0] if damages else "",
        }
        return save({"latents": joined}, metadata=metadata | {_DIGEST: _digest_of(joined, metadata)})

    def _usable(self, unit: Unit, counts: Counter[str], damages: list[str]) -> Iterator[tuple[Pair, Tensor]]:
        """Images of a unit that have a prompt, [1, H, W] in [0, 1]; the others are counted by reason."""
        for found in self._collection.read(unit):
            if isinstance(found, Damaged):
                damages.append(f"{found.source} {found.member}: {found.reason}")
                counts[_DAMAGED] += 1
                continue
            why, pair = self._pair(found)
            counts[why] += 1
            if pair is not None:
                yield pair, torch.from_numpy(centered(found.pixels, self._model.image_shape))[None]

    def _pair(self, radiograph: Radiograph) -> tuple[str, Pair | None]:
        if radiograph.report is None:
            return _NO_REPORT, None
        if self._excluded.has(radiograph):
            return _HELD_OUT, None
        built = self._prompt_builder.build(radiograph.report)
        # A report without any text that can be used would teach nothing.
        return (_NO_REPORT, None) if built.is_any else (_USED, Pair(built.prompt, built.conditions))


def _is_whole(path: Path) -> bool:
    """Whether a unit has been encoded, and its file holds what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            latents, metadata = file.get_tensor("latents"), dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return False
    found: str | None = metadata.pop(_DIGEST, None)
    return found == _digest_of(latents, metadata)


def _digest_of(latents: Tensor, metadata: Mapping[str, str]) -> str:
    header = json.dumps(metadata, sort_keys=True).encode()
    return hashlib.sha256(header + b"\0" + latents.contiguous().numpy().tobytes()).hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say what to do where a file of latents has been lost or damaged under way."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path}: cannot be read any more ({error})\n  the same command encodes what is missing, and goes on"
        ) from None


def _read(path: Path) -> _Part:
    with _readable(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    pairs = tuple(Pair(prompt, tuple(conditions)) for prompt, conditions in json.loads(metadata["pairs"]))
    return _Part(path, pairs, Counter(json.loads(metadata["counts"])), metadata["first_damage"])
