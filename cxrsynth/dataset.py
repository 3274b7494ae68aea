"""A data set for training: images, labels and metadata as a `webdataset` pipeline."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from os import PathLike
from typing import Any, TypeAlias

import torch
import webdataset as wds
from webdataset.compat import FluidInterface
from webdataset.utils import pytorch_worker_info

from cxrsynth.address import Location, parse_location
from cxrsynth.errors import ShardError
from cxrsynth.images.collection import Collection, open_collection
from cxrsynth.images.image import Damaged, Radiograph
from cxrsynth.reports.labels import OBSERVATIONS as OBSERVATIONS
from cxrsynth.reports.labels import Status
from cxrsynth.reports.table.columns import ColumnNames

Example: TypeAlias = tuple[torch.Tensor, torch.Tensor, dict[str, str]]
_VALUES = {Status.PRESENT: 1.0, Status.ABSENT: 0.0, Status.UNCERTAIN: float("nan")}


class Dataset(wds.DataPipeline, FluidInterface):  # type: ignore[misc]
    """A pipeline of (image, labels, metadata), with webdataset's methods: `.map_tuple`, `.batched`, `.with_epoch`."""


def open_dataset(
    path: str | PathLike[str],
    *,
    table: str | PathLike[str] | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    shuffle: int = 0,
    seed: int = 0,
    skip_damaged: bool = False,
) -> Dataset:
    """Open a data set for training: a `webdataset` pipeline, ready for a `DataLoader`.

    Each sample is a tuple of

    - the image, [1, H, W] float32 in [0, 1], 0 black, bone bright whatever the file's photometric interpretation;
    - the labels, [14] float32, in the order of `OBSERVATIONS`: 1 present, 0 absent, nan for an observation that is
      uncertain or not mentioned, so mask the loss with `~labels.isnan()`;
    - the metadata, a dict of texts, empty where unknown: `key`, `source` (shard or group of files), `patient`, `view`,
      `sex`, `age_group`, and `json`, the sample's own JSON record.

    It reads everything that `audit` reads: WebDataset tars, tars of DICOM objects, unpacked DICOM file-sets, and
    folders of images. The files of a data set that cxrsynth made are checked against its manifest.

    Shards (of unpacked files: groups of 256) are split over the processes of a distributed run and the workers of a
    `DataLoader`, so write at least as many as there are of both. Call `.with_epoch(n)` where every process must give
    the same number of samples.

    Args:
        path: folder of a data set, one shard, or one image; or the address of one in an object store, as
            `s3://bucket/set`.
        table: CSV, JSON, Parquet or Excel table that describes the images, for data sets of other programs.
        columns: role (`report`, `findings`, `impression`, `view`, `sex`, `age`) -> column name, for columns without a
            usual name.
        split: of a public data set whose splits are known, only this one: `train`, `val`, `test`, or a name of its own.
            Without it, all are read.
        shuffle: samples in the shuffle buffer, which also turns on shuffling of shards; 0 keeps the order of the files.
        seed: seed of the shuffling. The order changes with each pass over the pipeline; with `DataLoader` workers only
            under `persistent_workers=True`.
        skip_damaged: leave out what cannot be read instead of raising.

    Raises:
        ShardError: if there are no images at `path`, and, during iteration, for a file that cannot be read or for fewer
            shards than processes.
        ReportsError: if the table cannot be used.
        ValueError: for an unknown role.
    """
    roles = sorted(role.name for role in fields(ColumnNames))
    for unknown in sorted((columns or {}).keys() - set(roles)):
        raise ValueError(f"columns: {unknown!r}, expected roles among {', '.join(roles)}")
    read = _ReadUnits(
        parse_location(path),
        table=None if table is None else parse_location(table),
        columns=ColumnNames(**(columns or {})),
        split=split,
        skip_damaged=skip_damaged,
    )
    shards = [unit.name for unit in read.collection.units]
    return Dataset(
        wds.SimpleShardList(shards),
        # The same order in every process: they then take every n-th shard of one list.
        wds.detshuffle(len(shards), initial=len(shards), seed=seed) if shuffle else None,
        _EnoughShards(path, len(shards)),
        wds.split_by_node,
        wds.split_by_worker,
        read,
        wds.detshuffle(shuffle, initial=shuffle, seed=seed) if shuffle else None,
    )


class _EnoughShards:
    """Raises where a process of a distributed run would get no shard, and training would wait for it for ever."""

    def __init__(self, path: str | PathLike[str], shards: int) -> None:
        self._path, self._shards = path, shards

    def __call__(self, source: Iterable[Any]) -> Iterator[Any]:
        processes = pytorch_worker_info()[1]
        if self._shards < processes:
            raise ShardError(
                f"{self._path}: {self._shards} shards for {processes} processes\n"
                "  expected at least one for each: generate with a smaller --shard-size"
            )
        yield from source


class _ReadUnits:
    """Names of units in, samples out. Each worker opens the collection anew: it holds locks, which cannot be sent."""

    def __init__(
        self,
        path: Location,
        *,
        table: Location | None,
        columns: ColumnNames,
        split: str | None,
        skip_damaged: bool,
    ) -> None:
        self._path, self._table, self._columns, self._skip_damaged = path, table, columns, skip_damaged
        self._split = split
        self._collection: Collection | None = None

    @property
    def collection(self) -> Collection:
        """What is at the path, opened on first use."""
        if self._collection is None:
            self._collection = open_collection(self._path, table=self._table, columns=self._columns, split=self._split)
        return self._collection

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_collection": None}

    def __call__(self, source: Iterable[Mapping[str, str]]) -> Iterator[Example]:
        units = {unit.name: unit for unit in self.collection.units}
        for shard in source:
            for found in self.collection.read(units[shard["url"]], workers=1):
                if not isinstance(found, Damaged):
                    yield torch.from_numpy(found.pixels)[None], _labels(found), _metadata(found)
                elif not self._skip_damaged:
                    member = f": {found.member}" if found.member else ""
                    raise ShardError(
                        f"{self._path / found.source}{member}: {found.reason}\n"
                        "  repair or remove it, or open the data set with skip_damaged=True"
                    )


def _labels(radiograph: Radiograph) -> torch.Tensor:
    """[14] float32; nan where the status is not known."""
    labels = radiograph.report.labels if radiograph.report is not None else {}
    nan = float("nan")
    return torch.tensor([_VALUES[labels[name].status] if name in labels else nan for name in OBSERVATIONS])


def _metadata(radiograph: Radiograph) -> dict[str, str]:
    """Texts only, all keys in all samples: what a DataLoader can put into batches."""
    report = radiograph.report
    return {
        "key": radiograph.key,
        "source": radiograph.source,
        "patient": radiograph.patient,
        "view": (report.view if report is not None else None) or "",
        "sex": (report.sex if report is not None else None) or "",
        "age_group": radiograph.age_group or "",
        "json": bytes(radiograph.members.get("json", b"")).decode("utf-8-sig"),
    }
