"""One `audit` run made ready: inputs opened, judges loaded, rules and minimums checked before hours of scoring."""

from dataclasses import dataclass
from pathlib import Path

import torch

from cxrsynth import __version__
from cxrsynth.auditing.decide import Rules
from cxrsynth.auditing.fail_under import Minimum, known_metrics, parse_minimums
from cxrsynth.auditing.folder import AuditFolder
from cxrsynth.auditing.score_cache import Parts
from cxrsynth.auditing.scorer import IMAGE_SIZE, Scorer
from cxrsynth.auditing.write_kept import refuse_target, root_of
from cxrsynth.diffusion.model import choose_device
from cxrsynth.errors import ModelError, ShardError
from cxrsynth.images.collection import Collection, open_collection
from cxrsynth.metrics.features import load_extractor
from cxrsynth.metrics.memorization.planted import ALTERATIONS
from cxrsynth.metrics.memorization.registration import to_canonical
from cxrsynth.metrics.quality.checks import QualityChecks
from cxrsynth.metrics.quality.likeness import TEMPLATES_FILE, Likeness
from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.rewards.backends import family_folder, load_reward
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rewards.digests import backend_digest
from cxrsynth.rewards.nano import check_family
from cxrsynth.rewards.networks import PostureRegressor
from cxrsynth.runtime.files import file_sha256
from cxrsynth.runtime.processes import ProcessGroup, join_processes, read_launch
from cxrsynth.settings import AuditSettings


@dataclass(frozen=True)
class Examined:
    """A collection and what is known of its units."""

    collection: Collection
    parts: Parts


@dataclass(frozen=True)
class AuditRun:
    """What all parts of `audit` share."""

    settings: AuditSettings
    made: Examined
    reference: Examined | None
    scorer: Scorer
    rules: Rules
    minimums: tuple[Minimum, ...]
    folder: "AuditFolder"
    processes: ProcessGroup


def open_audit(settings: AuditSettings) -> AuditRun:
    """Check every input that can be checked before work starts.

    Raises:
        RecipeError, ReportsError, ModelError, ShardError: for what the user can mend.
    """
    folder = AuditFolder(settings.out or _beside(settings.shards))
    folder.check(settings)
    if settings.write_kept is not None:
        _check_kept(settings.write_kept, folder.path, settings)
    rules = Rules(
        minimum=settings.rules.minimum,
        percentile=settings.rules.beat,
        keep_fraction=settings.rules.keep_fraction,
        ignored_checks=frozenset(settings.rules.ignored_checks),
    )
    rewards = tuple(settings.judges)
    minimums = parse_minimums(settings.fail_under, known_metrics(rewards, ALTERATIONS))
    columns = ColumnNames(**settings.columns)
    made = open_collection(settings.shards, table=settings.table, columns=columns)
    reference = None
    if settings.reference is not None:
        reference = open_collection(settings.reference, table=settings.reference_table, columns=columns)
    elif settings.utility:
        raise ShardError("--utility: needs real images to test on\n  name them with --reference")
    device = choose_device(settings.device, local_rank=read_launch().local_rank)
    scorer = load_scorer(settings, device=device)
    rules.check(rewards, rewards if reference else (), scorer.checks.names)
    return AuditRun(
        settings=settings,
        made=_examined(made, folder, scorer, settings),
        reference=_examined(reference, folder, scorer, settings, probes=settings.probes) if reference else None,
        scorer=scorer,
        rules=rules,
        minimums=minimums,
        folder=folder,
        processes=join_processes(cpu=device.type == "cpu"),
    )


def _beside(shards: Path) -> Path:
    """Where findings go unless told: `set` -> `set-audit`, also for `set/manifest.json` and for `.` in it."""
    root = root_of(shards)
    if root.name in ("", ".."):
        root = root.resolve()
    return root.with_name(f"{root.name or 'shards'}-audit")


def _check_kept(kept: Path, out: Path, settings: AuditSettings) -> None:
    """Raises ShardError for a folder that kept images cannot go to, before hours of scoring."""
    for given in (settings.shards, settings.reference):
        if given is not None:
            refuse_target(kept, given)
    if kept.resolve() == out.resolve():
        raise ShardError(f"--write-kept {kept}: is where the findings go\n  choose another folder")


def load_scorer(settings: AuditSettings, *, device: torch.device) -> Scorer:
    """All networks an image is shown to. Raises ModelError for what cannot be loaded."""
    suite = RewardSuite({name: load_reward(name, backend, device=device) for name, backend in settings.judges.items()})
    folder = family_folder(settings.family)
    if folder is None:
        raise ModelError(
            f"--family {settings.family}: not a family of judges\n  expected: nano, nano-judge, or a folder"
        )
    check_family(folder)
    posture = PostureRegressor.from_pretrained(folder / "posture").eval().to(device)
    extractor = load_extractor(settings.features, device=device)
    return Scorer(
        suite=suite,
        checks=QualityChecks(Likeness.load(folder, device)),
        extractor=extractor,
        register=to_canonical(posture),
        device=device,
        identity={
            "version": __version__,
            "image_size": IMAGE_SIZE,
            "judges": {
                name: {"backend": backend, "digest": backend_digest(name, backend), "unit": suite.rewards[name].unit}
                for name, backend in settings.judges.items()
            },
            "family": {
                "backend": settings.family,
                "digest": backend_digest("posture", settings.family),
                "mean_chests": file_sha256(folder / TEMPLATES_FILE),
            },
            "features": {"name": extractor.name, "digest": extractor.digest, "width": extractor.width},
        },
    )


def _examined(
    collection: Collection, folder: AuditFolder, scorer: Scorer, settings: AuditSettings, *, probes: int = 0
) -> Examined:
    # Columns decide what is read of a table; probes, how many images are kept whole.
    identity = scorer.identity | {"columns": dict(sorted(settings.columns.items())), "probes": probes}
    return Examined(collection, Parts(folder.parts, collection, identity))
