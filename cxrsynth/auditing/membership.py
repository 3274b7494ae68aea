"""Membership inference on the model: images it was trained on and held-out ones, attacked alike and compared."""

import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from cxrsynth.auditing.examined import Examined
from cxrsynth.auditing.keyed import keyed_digest
from cxrsynth.auditing.score_cache import ScoreCache
from cxrsynth.auditing.scorer import IMAGE_SIZE, Scorer, metadata_columns, pseudonym
from cxrsynth.console import counted
from cxrsynth.diffusion.model import DiffusionModel, choose_precision, load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import encode_images
from cxrsynth.images.collection import Collection
from cxrsynth.images.image import Radiograph
from cxrsynth.images.pictures import centered, squared
from cxrsynth.metrics.features import Extractor
from cxrsynth.metrics.membership.attacks import DISCREPANCY, Attacks
from cxrsynth.metrics.membership.inference import LEAST, WITHOUT_MODEL, measure_attacks
from cxrsynth.reports.request import PromptBuilder, Reader
from cxrsynth.settings import AuditSettings, Precision

MEMBERS, OTHERS = "members", "non_members"
_METADATA = ("key", "sha256", "patient")
# Attacked with its prompt, an image gets other values than with the empty one, whether the model knows it or not.
_ONE_SIDE = "give both sides reports or labels (--members-table, --non-members-table), or neither"


@dataclass(frozen=True)
class AttackScorer:
    """What the attacks find in a batch of images, one row each."""

    model: DiffusionModel
    attacks: Attacks
    prompt_builder: PromptBuilder
    extractor: Extractor
    device: torch.device
    id_key: bytes

    def __call__(self, radiographs: Sequence[Radiograph], *, keep_image: bool = False) -> pa.Table:
        """One row per image, in order. No pixels are kept, whatever `keep_image`."""
        shown = [centered(radiograph.pixels, self.model.image_shape) for radiograph in radiographs]
        clean = encode_images(self.model, torch.from_numpy(np.stack(shown))[:, None])
        built = [None if one.report is None else self.prompt_builder.build(one.report) for one in radiographs]
        requests = [None if one is None or one.is_any else one for one in built]
        found = self.attacks(
            clean,
            [radiograph.sha256 for radiograph in radiographs],
            [None if one is None else one.prompt for one in requests],
            [() if one is None else one.conditions for one in requests],
        )
        squares = np.stack([squared(radiograph.pixels, IMAGE_SIZE) for radiograph in radiographs])
        with torch.inference_mode():
            features = self.extractor(torch.from_numpy(squares)[:, None]).float().cpu().numpy()
        metadata = metadata_columns(radiographs, self.id_key)
        columns = {name: metadata[name] for name in _METADATA} | {
            "prompted": [one is not None for one in requests],
            "attacks": list(found.numpy()),
            "features": list(features),
        }
        return pa.table(columns, schema=self.schema())

    def schema(self) -> pa.Schema:
        """Columns of the rows."""
        return pa.schema(
            [
                *((name, pa.string()) for name in _METADATA),
                ("prompted", pa.bool_()),
                ("attacks", pa.list_(pa.float32(), len(self.attacks.names))),
                ("features", pa.list_(pa.float32(), self.extractor.width)),
            ]
        )


@dataclass(frozen=True)
class Membership:
    """A model under attack: images it was trained on, images it never saw, and what attacks them."""

    members: Examined
    others: Examined
    scorer: AttackScorer
    every_member: Collection  # of which `members` may be a part

    def measure(self, *, seed: int, workers: int) -> dict[str, Any]:
        """That part of summary.json, once both collections are scored.

        Args:
            seed: of the statistics.
            workers: threads that read the members which were not attacked: their patients are members, too.

        Raises:
            ValueError: for too few patients, or reports on one side alone.
        """
        members, others = (_Rows.of(one, self.scorer) for one in (self.members, self.others))
        known = list(self.every_member.identities(workers=workers))
        apart = others.without(
            {sha256 for sha256, _ in known},
            {pseudonym(self.scorer.id_key, patient) for patient in {patient for _, patient in known} if patient},
        )
        left_out = len(others) - len(apart)
        prompted = bool(members.prompted or apart.prompted)
        without_report = {MEMBERS: 0, OTHERS: 0}
        if prompted:
            without_report = {name: len(rows) - rows.prompted for name, rows in ((MEMBERS, members), (OTHERS, apart))}
            members, apart = members.with_report(), apart.with_report()
        for what, rows, bare in (
            ("--members", members, without_report[MEMBERS]),
            ("--non-members", apart, without_report[OTHERS]),
        ):
            if rows.patients < LEAST:
                raise ValueError(
                    f"{what}: {counted(rows.patients, 'patient')} left, expected at least {LEAST}"
                    + (f"; {counted(left_out, 'image')} of members' patients were left out" if left_out else "")
                    + (f"; {counted(bare, 'image')} without report or labels: {_ONE_SIDE}" if bare else "")
                )
        both = [members.table, apart.table]
        values = np.concatenate([_matrix(table["attacks"]) for table in both])
        attacks = self.scorer.attacks.by_attack(values)
        if not prompted:
            del attacks[DISCREPANCY]
        model = self.scorer.model
        found = measure_attacks(
            attacks,
            np.concatenate([_matrix(table["features"]) for table in both]),
            np.repeat([True, False], [len(members), len(apart)]),
            [patient for table in both for patient in table["patient"].to_pylist()],
            seed=seed,
        )
        return {
            "model": {"name": model.name, "digest": model.digest},
            MEMBERS: members.as_json(self.members.collection, self.scorer.id_key),
            OTHERS: apart.as_json(self.others.collection, self.scorer.id_key),
            "left_out": left_out,
            "prompted": prompted,
            "without_report": without_report,
            "caveats": _caveats(members, apart, prompted=prompted, without_report=without_report)
            + _confounded(found[WITHOUT_MODEL]["auc"]),
            "passes_per_image": self.scorer.attacks.passes,
            "attacks": found,
        }


def _caveats(members: "_Rows", others: "_Rows", *, prompted: bool, without_report: Mapping[str, int]) -> list[str]:
    """What a reader of the numbers must know."""
    found = []
    unknown = [
        f"{rows.unknown} {what}" for what, rows in (("members", members), ("non-members", others)) if rows.unknown
    ]
    if unknown:
        found.append(
            f"the patients of {' and '.join(unknown)} are unknown: intervals take each image for a patient, and images"
            " of one patient may be on both sides"
        )
    if not prompted:
        found.append(
            "no attacked image has a report or labels: all were attacked with the empty prompt, and the discrepancy"
            " with and without was not measured"
        )
    if any(without_report.values()):
        found.append(
            f"{without_report[MEMBERS]} members and {without_report[OTHERS]} non-members have no report or labels and"
            " were left out: the others are attacked with their own prompts"
        )
    return found


def _confounded(auc: Mapping[str, float]) -> list[str]:
    """What follows where images alone, without the model, say which side they are of."""
    if auc["low"] <= 0.5:
        return []
    return [
        "members and non-members differ in themselves: without the model they are distinguished with an AUC of"
        f" {auc['value']:.2f} ({auc['low']:.2f} to {auc['high']:.2f}), so that the attacks say nothing of the model;"
        " take both from one source"
    ]


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """A column of lists of equal length, [N, K]."""
    return np.asarray(column.to_pylist(), dtype=np.float64)


@dataclass(frozen=True)
class _Rows:
    """Attacked images."""

    table: pa.Table

    @classmethod
    def of(cls, examined: Examined, scorer: AttackScorer) -> "_Rows":
        """Every image once."""
        table = pa.concat_tables(examined.cache.tables()).combine_chunks()
        hashes = table["sha256"].to_pylist()
        first = {one: place for place, one in reversed(list(enumerate(hashes)))}
        return cls(table.take(sorted(first.values())).select(scorer.schema().names))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def patients(self) -> int:
        """How many there are; an image of unknown patient counts as one."""
        known = [one for one in self.table["patient"].to_pylist() if one]
        return len(set(known)) + len(self) - len(known)

    @property
    def unknown(self) -> int:
        """Images whose patient is unknown."""
        return int(self.table["patient"].to_pylist().count(""))

    @property
    def prompted(self) -> int:
        """Images that were attacked with a prompt of their own."""
        return int(pc.sum(self.table["prompted"]).as_py() or 0)

    def with_report(self) -> "_Rows":
        """Those."""
        return _Rows(self.table.filter(self.table["prompted"]))

    def without(self, hashes: Set[str], patients: Set[str]) -> "_Rows":
        """Those that are none of these images, nor of these patients."""
        rows = zip(self.table["sha256"].to_pylist(), self.table["patient"].to_pylist(), strict=True)
        return _Rows(
            self.table.filter(pa.array([own not in hashes and not (of and of in patients) for own, of in rows]))
        )

    def as_json(self, collection: Collection, id_key: bytes) -> dict[str, Any]:
        """What summary.json says of them."""
        return {
            "path": collection.path.name,
            "digest": keyed_digest(self.table["sha256"].to_pylist(), id_key),
            "images": len(self),
            "patients": self.patients,
            "patients_unknown": self.unknown,
        }


def load_membership(
    settings: AuditSettings,
    members: Collection,
    others: Collection,
    scorer: Scorer,
    folder: Path,
    labeler: Reader | None = None,
) -> Membership:
    """The attacked model, and about `settings.attacked` images of both collections; scores are kept in `folder`.

    `labeler` reads the labels of prompts, None for the rules.

    Raises:
        ModelError: if the model cannot be loaded.
    """
    assert settings.generator is not None
    resolved = resolve_model(settings.generator, option="--model")
    precision = choose_precision(Precision.AUTO, scorer.device)
    model = load_model(resolved, device=scorer.device, precision=precision)
    spec = model.spec
    attacking = AttackScorer(
        model=model,
        attacks=Attacks(model, seed=settings.seed),
        prompt_builder=PromptBuilder(
            spec.prompt_format, spec.depicts, model.fits, classes=spec.classes, reader=labeler
        ),
        extractor=scorer.extractor,
        device=scorer.device,
        id_key=scorer.id_key,
    )
    identity = {
        "version": scorer.identity["version"],
        "id_key_fingerprint": scorer.identity["id_key_fingerprint"],
        "features": scorer.identity["features"],
        **({"labeler": scorer.identity["labeler"]} if "labeler" in scorer.identity else {}),
        "columns": dict(sorted(settings.columns.items())),
        "model": model.digest,
        "precision": precision.value,
        "attacks": attacking.attacks.names,
        "seed": settings.seed,
    }
    seen, unseen = (_some(one, settings.attacked, identity, folder) for one in (members, others))
    return Membership(seen, unseen, attacking, members)


def _some(collection: Collection, count: int, identity: dict[str, Any], folder: Path) -> Examined:
    """About `count` images of a collection: some of every unit, or one of some of its units."""
    units = collection.units
    if len(units) > count:
        ranked = sorted(units, key=lambda unit: hashlib.sha256(unit.name.encode("utf-8", "surrogateescape")).digest())
        chosen = set(ranked[:count])
        collection = replace(collection, units=tuple(unit for unit in units if unit in chosen))
    each = collection.per_unit(count)
    return Examined(collection, ScoreCache(folder, collection, identity | {"most": each}), most_per_unit=each)
