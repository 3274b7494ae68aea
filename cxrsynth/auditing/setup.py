"""One `audit` run made ready: inputs opened, networks loaded, rules and thresholds checked before hours of scoring."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cxrsynth import __version__, console
from cxrsynth.address import Address, Location
from cxrsynth.auditing.autoencoder import Autoencoder, load_autoencoder
from cxrsynth.auditing.compare import read_summary
from cxrsynth.auditing.decide import Rules
from cxrsynth.auditing.depicts import check_model, check_origin
from cxrsynth.auditing.examined import Examined
from cxrsynth.auditing.fail_under import Threshold, known_metrics, parse_thresholds
from cxrsynth.auditing.folder import OWN_FOLDERS, AuditFolder
from cxrsynth.auditing.membership import Membership, load_membership
from cxrsynth.auditing.read import mixed_ranges, unclear_cells
from cxrsynth.auditing.reader_study.answers import Answered, read_answers
from cxrsynth.auditing.reader_study.choose import fewer_pairs
from cxrsynth.auditing.score_cache import ScoreCache
from cxrsynth.auditing.scorer import IMAGE_SIZE, PIXEL_COLUMNS, Scorer, finding_heads
from cxrsynth.auditing.write_kept import refuse_target, root_of
from cxrsynth.console import counted
from cxrsynth.diffusion.model import choose_device
from cxrsynth.errors import ModelError, ReportsError, ShardError
from cxrsynth.images.collection import Collection, open_collection
from cxrsynth.images.decode import IMAGE_EXTENSIONS
from cxrsynth.images.folder import LINKED_FOLDER
from cxrsynth.images.table import Matches
from cxrsynth.metrics.features import load_extractor
from cxrsynth.metrics.membership.inference import LEAST
from cxrsynth.metrics.memorization.planted import ALTERATIONS
from cxrsynth.metrics.memorization.registration import load_posture, to_canonical
from cxrsynth.metrics.quality.checks import CHECKS, QualityChecks
from cxrsynth.metrics.quality.framing import framing_digest, load_framing
from cxrsynth.metrics.quality.likeness import TEMPLATES_FILE, Likeness
from cxrsynth.metrics.reidentification.verifier import load_verifier
from cxrsynth.metrics.utility.network import Classifier, load_classifier
from cxrsynth.reports.findings.labeler import labeler_record, load_labeler
from cxrsynth.reports.request import Reader
from cxrsynth.reports.table.columns import ColumnNames, column_names, listed
from cxrsynth.reports.table.source import checked
from cxrsynth.rewards.backends import family_folder, load_reward
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rewards.digests import backend_digest
from cxrsynth.rewards.nano import check_family
from cxrsynth.runtime.files import file_sha256
from cxrsynth.runtime.processes import ProcessGroup, join_processes, read_launch
from cxrsynth.settings import AuditSettings
from cxrsynth.shards.sample import key_fingerprint, load_id_key


@dataclass(frozen=True)
class AuditRun:
    """What all parts of `audit` share.

    `autoencoder` is None without a reference, `membership` without members to attack the model with, `answers` where
    none are scored, `utility_model` where utility is that of a probe, `other` (a summary)
    without an audit to compare with.
    """

    settings: AuditSettings
    images: Examined
    reference: Examined | None
    scorer: Scorer
    autoencoder: Autoencoder | None
    membership: Membership | None
    utility_model: Classifier | None
    rules: Rules
    thresholds: tuple[Threshold, ...]
    folder: AuditFolder
    answers: Answered | None
    other: Mapping[str, Any] | None
    processes: ProcessGroup


def open_audit(settings: AuditSettings) -> AuditRun:
    """Check every input that can be checked before work starts, and load every network once.

    Raises:
        RecipeError, ReportsError, ModelError, ShardError: for what the user can mend.
    """
    folder = AuditFolder(settings.out or _beside(settings.shards))
    folder.check(settings)
    _check_options(settings, folder.path)
    rules = Rules(
        at_least=settings.rules.thresholds,
        percentile=settings.rules.percentiles,
        keep_fraction=settings.rules.keep_fraction,
        ignored_checks=frozenset(settings.rules.ignored_checks),
    )
    rewards = tuple(settings.judges)
    known = known_metrics(rewards, ALTERATIONS)
    thresholds = parse_thresholds(settings.fail_under, known)
    answers = read_answers(settings.reader_answers, folder.parts) if settings.reader_answers else None
    other = None if settings.compare is None else read_summary(settings.compare, known)
    device = choose_device(settings.device, local_rank=read_launch().local_rank)
    labeler = load_labeler(settings.labeler, device=device)
    images, reference = _open_collections(settings, labeler)
    if settings.reader_study is not None:
        for collection in filter(None, (images, reference)):
            _refuse_few(collection, settings.reader_study)
    attacked = _open_attacked(settings, labeler)
    if settings.write_depicts is not None:
        check_origin(settings.write_depicts, images.manifest, folder.depicts)
    scorer = load_scorer(settings, device=device, id_key=load_id_key(settings.id_key))
    rules.check(rewards, rewards if reference else (), scorer.checks.names)
    autoencoder = load_autoencoder(settings.generator, images.manifest, device) if reference else None
    membership = load_membership(settings, *attacked, scorer, folder.parts, labeler) if attacked else None
    utility_model = None
    if settings.utility_model is not None:
        utility_model = load_classifier(settings.utility_model, device=device, seed=settings.seed)
    return AuditRun(
        settings=settings,
        images=_examined(images, folder, scorer, settings),
        reference=_examined(reference, folder, scorer, settings, probes=settings.probes) if reference else None,
        scorer=scorer,
        autoencoder=autoencoder,
        membership=membership,
        utility_model=utility_model,
        rules=rules,
        thresholds=thresholds,
        folder=folder,
        answers=answers,
        other=other,
        processes=join_processes(cpu=device.type == "cpu"),
    )


def _beside(shards: Location) -> Path:
    """Where the results go by default: `set` -> `set-audit`, also for `set/manifest.json` and for `.` inside it.

    An audit of an object store writes into the working directory.
    """
    root = root_of(shards)
    if isinstance(root, Address):
        return Path(f"{root.name or 'shards'}-audit")
    if root.name in ("", ".."):
        root = root.resolve()
    return root.with_name(f"{root.name or 'shards'}-audit")


def _check_options(settings: AuditSettings, out: Path) -> None:
    """Raises ShardError for options that do not go together, or a folder that kept images cannot go to."""
    if settings.reference is None and settings.utility:
        raise ShardError("--utility: needs real images to test on\n  name them with --reference")
    if settings.utility_model is not None and not settings.utility:
        raise ShardError("--utility-model: names what --utility trains\n  add --utility, or leave it out")
    if settings.reference is None and settings.protocol is not None:
        raise ShardError(f"--protocol {settings.protocol}: needs real images\n  name them with --reference")
    if settings.reference is None and settings.verifier != AuditSettings.verifier:
        raise ShardError(f"--verifier {settings.verifier}: nobody to recognize\n  name real images with --reference")
    if settings.reference is None and settings.show_real:
        raise ShardError("--show-real: there are no real images to show\n  name them with --reference")
    _refuse_without_images(settings)
    _check_membership_options(settings)
    if settings.reader_study is not None:
        if settings.reference is None:
            raise ShardError("--reader-study: needs real images\n  name them with --reference")
        if settings.reader_study % 2:
            raise ShardError(f"--reader-study {settings.reader_study}: half are real, expected an even number")
    if settings.write_depicts is not None:
        check_model(settings.write_depicts)
    if settings.write_kept is None:
        return
    for given in (settings.shards, settings.reference, settings.members, settings.non_members):
        if given is not None:
            refuse_target(settings.write_kept, given)
    kept, findings = settings.write_kept.resolve(), out.resolve()
    if kept == findings or kept in findings.parents or (kept.parent == findings and kept.name in OWN_FOLDERS):
        where = "is" if kept == findings else "holds" if kept in findings.parents else "is a part of"
        raise ShardError(f"--write-kept {settings.write_kept}: {where} where the findings go\n  choose another folder")


def _refuse_without_images(settings: AuditSettings) -> None:
    """Raises ShardError for an option about real images where none are given: a slip in its value would never show."""
    if settings.reference is not None:
        return
    about: dict[str, object] = {
        "--reference-table": settings.reference_table,
        "--reference-split": settings.reference_split,
        "--keep-reference-pixels": settings.keep_reference_pixels or None,
    }
    for option, given in about.items():
        if given is not None:
            raise ShardError(f"{option}: has no effect without --reference\n  add --reference, or leave it out")


def _known_count(collection: Collection) -> int | None:
    """How many images a collection has, where that is known without reading it; damaged ones are counted."""
    known: int | None = (collection.manifest or {}).get("counts", {}).get("samples")
    if known is None and all(unit.files for unit in collection.units):
        known = sum(len(unit.files) for unit in collection.units)
    return known


def _refuse_few(collection: Collection, count: int) -> None:
    """Raises ShardError for a collection known beforehand to have too few images for a reader study."""
    known = _known_count(collection)
    if known is not None and known < count // 2:
        raise ShardError(
            f"--reader-study {count}: {counted(known, 'image')} in {collection.path}, {count // 2} are needed\n"
            f"  {fewer_pairs(known)}give more images"
        )


def _check_membership_options(settings: AuditSettings) -> None:
    """Raises ShardError for a model that nothing is done with, or an attack that lacks one of its three parts."""
    if settings.members is None and settings.non_members is None:
        if settings.reference is None and settings.generator is not None:
            raise ShardError(
                "--model: needed only where images are compared with real ones, or the model itself is attacked\n"
                "  name real images with --reference, or its training images with --members, or leave --model out"
            )
        alone: tuple[tuple[str, object], ...] = (
            ("--members-table", settings.members_table),
            ("--non-members-table", settings.non_members_table),
            ("--members-split", settings.members_split),
            ("--non-members-split", settings.non_members_split),
        )
        for option, given in alone:
            if given is not None:
                raise ShardError(f"{option}: there are no images that it is about\n  name them, or leave it out")
        return
    parts: tuple[tuple[str, object, str], ...] = (
        ("--model", settings.generator, "the model that is attacked"),
        ("--members", settings.members, "images that the model was trained on"),
        ("--non-members", settings.non_members, "images of other patients, which it never saw"),
    )
    for option, given, what in parts:
        if given is None:
            raise ShardError(f"{option}: missing\n  membership inference needs {what}")


def _open_collections(settings: AuditSettings, labeler: Reader | None) -> tuple[Collection, Collection | None]:
    """The audited images and the reference."""
    _check_file_column(settings)
    images = _open(settings.shards, settings.table, settings.split, settings, labeler)
    if settings.reference is None:
        return images, None
    return images, _open(settings.reference, settings.reference_table, settings.reference_split, settings, labeler)


def _open_attacked(settings: AuditSettings, labeler: Reader | None) -> tuple[Collection, Collection] | None:
    """Members and non-members; None where the model is not attacked."""
    if settings.members is None or settings.non_members is None:
        return None
    if (settings.members, settings.members_split) == (settings.non_members, settings.non_members_split):
        raise ShardError(
            f"--non-members {settings.non_members}: the same images as --members\n"
            "  expected: images of other patients, which the model never saw"
        )
    found = (
        _open(settings.members, settings.members_table, settings.members_split, settings, labeler),
        _open(settings.non_members, settings.non_members_table, settings.non_members_split, settings, labeler),
    )
    for option, collection in zip(("--members", "--non-members"), found, strict=True):
        known = _known_count(collection)
        if known is not None and known < LEAST:
            raise ShardError(
                f"{option} {collection.path}: {counted(known, 'image')}, expected those of at least {LEAST} patients"
            )
    _warn_of_one_table(settings, found)
    return found


def _warn_of_one_table(settings: AuditSettings, attacked: tuple[Collection, Collection]) -> None:
    """Say before the attack that reports of one side alone would leave hardly anything to compare."""
    given = (settings.members_table, settings.non_members_table)
    described = [
        table is not None or collection.manifest is not None or bool(collection.layout and collection.layout.tables)
        for table, collection in zip(given, attacked, strict=True)
    ]
    if any(described) and not all(described) and read_launch().rank == 0:
        option = "--non-members" if described[0] else "--members"
        console.warn(
            f"{option} {attacked[described[0]].path}: no table, but the other side has one: with reports or labels on"
            f" one side alone, membership is not measured\n  name one with {option}-table, or leave out both"
        )


def _check_file_column(settings: AuditSettings) -> None:
    """Raises ReportsError if no table has the column of file names that was asked for."""
    named = settings.columns.get("file")
    given = (settings.table, settings.reference_table, settings.members_table, settings.non_members_table)
    tables = [table for table in given if table is not None]
    if named is not None and not any(named in column_names(checked(table)) for table in tables):
        where = ", ".join(map(str, tables)) or "no table is given"
        raise ReportsError(f"--file-column {named}: no such column ({where})")


def _open(
    path: Location, table: Location | None, split: str | None, settings: AuditSettings, labeler: Reader | None
) -> Collection:
    """A collection, or a split of it, having said what of it is not read."""
    asked = dict(settings.columns)
    file_column = asked.pop("file", None)
    collection = open_collection(
        path, table=table, columns=ColumnNames(**asked), file_column=file_column, split=split, labeler=labeler
    )
    _tell(collection, table)
    return collection


def _tell(collection: Collection, table: Location | None) -> None:
    """Say what is read of a collection, and what is not."""
    if read_launch().rank == 0:
        _tell_passed_over(collection)
        _tell_layout(collection)
        _tell_table(collection, table)


def _tell_passed_over(collection: Collection) -> None:
    """Name what looks like images and is not read."""
    if not collection.passed_over:
        return
    kinds = {kind.removeprefix(".") for kind in collection.passed_over}
    advice = []
    if kinds - {LINKED_FOLDER, *IMAGE_EXTENSIONS}:
        advice.append(f"convert them to one of: {', '.join(IMAGE_EXTENSIONS)}")
    if kinds & set(IMAGE_EXTENSIONS):
        advice.append("pictures beside a data set are no part of it: to read them, name a folder that holds them alone")
    if LINKED_FOLDER in kinds:
        advice.append("name a linked folder itself, or put its files in its place")
    console.warn("\n  ".join([f"{collection.path}: passed over: {said_of(collection.passed_over)}", *advice]))


def said_of(passed_over: Mapping[str, int]) -> str:
    """`2 .bmp, 1 linked folder`."""
    return ", ".join(
        counted(number, kind) if kind == LINKED_FOLDER else f"{number:,} {kind}" for kind, number in passed_over.items()
    )


def tell_read(run: AuditRun) -> None:
    """Say how the images were read, as far as only scoring could tell."""
    attacked = () if run.membership is None else (run.membership.members, run.membership.others)
    for examined in filter(None, (run.images, run.reference, *attacked)):
        collection, matches = examined.collection, examined.matches
        if matches is not None and collection.matches is None:
            _tell_matches(collection, matches)
        if (mixed := mixed_ranges(examined.reading.ranges)) is not None:
            console.warn(f"{collection.path}: {mixed}")


def _tell_matches(collection: Collection, matches: Matches) -> None:
    said = f"{collection.table}: {matches} in {collection.path}"
    (console.say if matches.is_whole else console.warn)(said)


def _tell_table(collection: Collection, table: Location | None) -> None:
    """Say what is read from a table, and of how many images neither it nor a layout's tables say anything."""
    if table is not None:
        console.say(f"{table}: {collection.columns_used}")
    for what, advice in unclear_cells(collection.unclear):
        console.warn(f"{table}: {what}\n  {advice}")
    if collection.matches is not None:
        _tell_matches(collection, collection.matches)
    elif collection.described is not None:
        images, found = collection.described
        if found < images:
            missing = f"{images - found} of {counted(images, 'image')} in {collection.path}"
            console.warn(f"{missing} have no row in its tables")


def _tell_layout(collection: Collection) -> None:
    """Name the layout that was recognized, what is read of it, and which of its labels are lost."""
    layout = collection.layout
    if layout is None:
        return
    read = [f"{gives} from {file}" for file, gives in layout.tables.items()]
    splits = ", ".join(f"{name} {count}" for name, count in layout.splits.items())
    if layout.read:
        read.append(f"columns read: {', '.join(layout.read)}")
    if layout.left:
        read.append(f"not read: {listed(layout.left, among=(*layout.read, *layout.left))}")
    chosen = f"split {layout.split} of {splits}" if layout.split else f"splits: {splits}"
    console.say("; ".join([f"{collection.path}: {layout.name}", *read, *([chosen] if splits else [])]))
    for caveat in layout.caveats:
        console.warn(f"{collection.path}: {caveat}")


def load_scorer(settings: AuditSettings, *, device: torch.device, id_key: bytes) -> Scorer:
    """All networks that score an image, each loaded once. Raises ModelError for what cannot be loaded."""
    suite = RewardSuite({name: load_reward(name, backend, device=device) for name, backend in settings.judges.items()})
    folder = family_folder(settings.family)
    if folder is None:
        raise ModelError(
            f"--family {settings.family}: not a family of reward models\n  expected: nano, nano-judge, or a folder"
        )
    check_family(folder)
    posture = load_posture(folder, device)
    extractor = load_extractor(settings.features, device=device)
    checks = QualityChecks(Likeness.load(folder, posture), load_framing(device))
    verifier = None if settings.reference is None else load_verifier(settings.verifier, device=device)
    return Scorer(
        suite=suite,
        checks=checks,
        extractor=extractor,
        register=to_canonical(posture),
        device=device,
        id_key=id_key,
        identity={
            "version": __version__,
            "image_size": IMAGE_SIZE,
            "pictures": list(PIXEL_COLUMNS),
            "id_key_fingerprint": key_fingerprint(id_key),
            "reward_models": {
                name: {"backend": backend, "digest": backend_digest(name, backend), "unit": suite.rewards[name].unit}
                for name, backend in settings.judges.items()
            },
            "family": {
                "backend": settings.family,
                "digest": backend_digest("posture", settings.family),
                "mean_chests": file_sha256(folder / TEMPLATES_FILE),
            },
            "framing": framing_digest(),
            "findings": list(finding_heads(suite)),
            "checks": {name: asdict(CHECKS[name]) for name in checks.names},
            "features": extractor.as_json(),
            "verifier": None if verifier is None else verifier.embed.as_json() | {"settings": verifier.settings},
            **labeler_record(settings.labeler),
        },
        verifier=verifier,
    )


def _examined(
    collection: Collection, folder: AuditFolder, scorer: Scorer, settings: AuditSettings, *, probes: int = 0
) -> Examined:
    # Columns decide what is read of a table; probes, how many images keep their full pixels.
    identity = scorer.identity | {"columns": dict(sorted(settings.columns.items())), "probes": probes}
    # Twice as many, so that units whose size is not known, or several images of a patient, still give `probes` in all.
    full = collection.per_unit(2 * probes) if probes else 0
    return Examined(collection, ScoreCache(folder.parts, collection, identity), full)
