"""The commands as functions: keyword arguments in, frozen results out. The command line calls these as well.

Progress goes to standard error. Torch is imported by the first call, not by importing this module.

Exceptions, all subclasses of `CxrsynthError`, carry one message that says where, what was found and what to do:
`ReportsError` for a table of reports, `RecipeError` for a recipe or a threshold, `ModelError` for a model, a reward
model, a device or a precision, `ShardError` for a folder or file that cannot be read or written. An argument outside
its range is a `ValueError`. Report text never appears in a message.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cxrsynth.address import Location, parse_location, parse_path
from cxrsynth.recipe.packaged import EXAMPLE_REPORTS, find_recipe, packaged_folder
from cxrsynth.runtime.importing import quick_imports
from cxrsynth.settings import (
    DEFAULT_FAMILY,
    FEWEST_READ,
    MOST_READ,
    MOST_SEED,
    MOST_WORKERS,
    REWARDS,
    TUNING_FAMILY,
    AcceptSettings,
    Additions,
    AuditSettings,
    ConvertSettings,
    Deid,
    Device,
    GenerateSettings,
    ImageFormat,
    IncludeText,
    Precision,
    PromptStyle,
    Protocol,
    RuleSettings,
    Sampler,
    SamplingSettings,
    ShardFormat,
    ShardSettings,
    SopClass,
    TuneSettings,
    parse_lora,
    parse_part,
)

if TYPE_CHECKING:
    from cxrsynth.auditing.audit import AuditReport
    from cxrsynth.conversion.convert import Converted
    from cxrsynth.generation.generate import Generated
    from cxrsynth.tuning.tune import Tuned

_Choice = TypeVar("_Choice", bound=StrEnum)
_ROLES = frozenset({"report", "findings", "impression", "report_id", "view", "sex", "age", "race"})


def generate(
    reports: str | PathLike[str],
    out: str | PathLike[str],
    *,
    model: str = GenerateSettings.model,
    unet: str | PathLike[str] | None = None,
    vae: str | PathLike[str] | None = None,
    scheduler: str | PathLike[str] | None = None,
    lora: Sequence[str | PathLike[str]] | None = None,
    embeddings: Sequence[str | PathLike[str]] | None = None,
    ace: str | PathLike[str] | None = GenerateSettings.ace,
    prompt: str | None = GenerateSettings.prompt,
    prompt_template: str | None = GenerateSettings.prompt_template,
    negative_prompt: str | None = GenerateSettings.negative_prompt,
    columns: Mapping[str, str] | None = None,
    images_per_report: int = GenerateSettings.images_per_report,
    limit: int | None = GenerateSettings.limit,
    strict: bool = GenerateSettings.strict,
    keep_order: bool = GenerateSettings.keep_order,
    per_image: bool = GenerateSettings.per_image,
    labeler: str | PathLike[str] | None = GenerateSettings.labeler,
    dry_run: bool = GenerateSettings.dry_run,
    steps: int | None = SamplingSettings.steps,
    guidance: float | None = SamplingSettings.guidance,
    sampler: str | None = SamplingSettings.sampler,
    seed: int = GenerateSettings.seed,
    batch_size: int | None = SamplingSettings.batch_size,
    threads_per_batch: int = SamplingSettings.threads_per_batch,
    compiled: bool = SamplingSettings.compiled,
    device: str = SamplingSettings.device,
    precision: str = SamplingSettings.precision,
    shard_format: str = ShardSettings.format,
    shard_size: int = ShardSettings.size,
    image_format: str = ShardSettings.image_format,
    sop_class: str = ShardSettings.sop_class,
    unpacked: bool = ShardSettings.unpacked,
    study_date: str | None = ShardSettings.study_date,
    workers: int | None = GenerateSettings.workers,
    include_text: str = ShardSettings.include_text,
    accept: bool = False,
    thresholds: Mapping[str, float] | None = None,
    judges: str | Mapping[str, str] = TUNING_FAMILY,
    ignored_checks: Iterable[str] = AcceptSettings.ignored_checks,
    attempts: int = AcceptSettings.attempts,
    only_accepted: bool = AcceptSettings.only_accepted,
    deid: str | None = GenerateSettings.deid,
    deid_model: str | PathLike[str] | None = GenerateSettings.deid_model,
    id_key: str | PathLike[str] | None = GenerateSettings.id_key,
    id_map: str | PathLike[str] | None = GenerateSettings.id_map,
    rejected: str | PathLike[str] | None = GenerateSettings.rejected,
    part: str | None = None,
    finish: bool = GenerateSettings.finish,
) -> "Generated":
    """Turn a table of radiology reports into shards of synthetic chest X-rays.

    The same arguments give the same bytes on the same kind of hardware. A run that was interrupted resumes when it is
    called again.

    Args:
        reports: CSV, JSON, Parquet or Excel table of reports; `example_reports()` is the one in the package.
        out: folder for the data set: new, empty, or an unfinished run to resume.
        model: `nano`, `nano-fast`, a model folder in diffusers' layout, or a model on the Hugging Face Hub.
        unet: folder of a UNet or transformer to use in place of the model's.
        vae: folder of an autoencoder to use in place of the model's.
        scheduler: folder of a scheduler, or of a model with one, to use in place of the model's.
        lora: LoRA weights of diffusers or peft to merge in: paths, or `PATH=SCALE`.
        embeddings: words learned by textual inversion (safetensors files, folders or hub ids).
        ace: adaptive condition embeddings to use with the model (safetensors).
        prompt: `impression`, `findings`, `report`, `canonical` or `class`; None for the format that the model folder
            names.
        prompt_template: in place of `prompt`, a template with fields in braces, or a preset: `roentgen`, `roentgen-v2`,
            `chexgenbench`, `radedit`.
        negative_prompt: what guidance leads away from, "" for nothing; None for the model's.
        columns: role (`report`, `findings`, `impression`, `report_id`, `view`, `sex`, `age`, `race`) -> column name,
            for columns without a usual name.
        images_per_report: 1 to 100.
        limit: use only the first so many usable reports.
        strict: stop at the first unusable row instead of setting it aside (see `rejected`).
        per_image: the table has a row for each image: one with the id of an earlier row is another image of its report.
        labeler: folder of a BERT labeler in CheXbert's layout, or a hub id `owner/name@revision`, that reads findings;
            None for rules.
        keep_order: put samples in the order of the table, not of their keys; whoever has the table can line them up.
        dry_run: write nothing; the result's `estimate` holds counts, disk space and time.
        steps: denoising steps; None for the model's.
        guidance: classifier-free guidance scale, 1 turns it off, below it the empty prompt takes part; None for the
            model's.
        sampler: `ddim`, `dpm++`, `euler` or `model`; None for the model's.
        seed: seed of the starting noise, 0 or more.
        batch_size: images per batch; None for 8, on a CPU 4.
        threads_per_batch: CPU cores per batch; changes the last bits of the pixels.
        compiled: compile the network with `torch.compile` before the first image; changes the last bits of the pixels.
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        shard_format: `webdataset` or `dicom`.
        shard_size: images per shard.
        image_format: `png`, `jpg` or `png16`, in WebDataset shards.
        sop_class: `sc` (Secondary Capture) or `cr` (Computed Radiography), of DICOM objects.
        unpacked: write a DICOM file-set with a DICOMDIR instead of tars; needs `shard_format="dicom"`.
        study_date: YYYYMMDD for StudyDate of DICOM objects, for archives that need one; None leaves it empty.
        workers: processes that encode images beside this one; they change no byte. None for 0, with a CUDA device for
            up to 4, as cores allow.
        include_text: `none` or `sanitized`: report text to store with each image.
        accept: draw an image again until it passes the quality checks of `audit` and `thresholds`.
        thresholds: with `accept`: reward -> lowest accepted score; `view`, `sex` and `age` stand for agreement with the
            report, in log-odds by a classifier.
        judges: with `accept`: backend of all reward models, or reward -> backend; each must serve a threshold.
        ignored_checks: with `accept`: names of quality checks that must not reject images.
        attempts: with `accept`: draws of one image at most, the first included; 1 to 100.
        only_accepted: with `accept`: leave out images that never pass; else they are written with `accepted: false`.
        deid: `standard` or `strict` (see `sanitize`), for prompts and stored text; None for `strict` where text is
            stored, else `standard`.
        deid_model: folder of a spaCy or transformers model of named entities, or a hub id `owner/name@revision`, that
            removes what it finds on top of the rules; needs `pip install 'cxrsynth[presidio]'`.
        id_key: file with the secret key for sample keys; None for a key created once in the user data folder.
        id_map: write the mapping from report ids to sample keys to this file, outside `out`.
        rejected: write line and reason of rows that were not used to this file; None: `OUT.rejected.csv` beside `out`.
        part: `I/N`: make only every N-th shard, from number I on (1 to N). Parts may run at the same time, and in any
            order; the last to end completes the data set.
        finish: make no image; complete a data set of which all parts are made.

    Returns:
        Counts of reports, rejected rows, images and shards of the whole data set; the same in every process of a
        distributed run. Its main process knows if the set is complete (`finished`), how many shards are missing, and
        how many images were accepted.

    Raises:
        RecipeError, ReportsError, ModelError, ShardError: for what the user can mend.
        ValueError: for an argument outside its range.
    """
    _check_range("images_per_report", images_per_report, low=1, high=100)
    counts = {"limit": limit, "steps": steps, "batch_size": batch_size, "threads_per_batch": threads_per_batch}
    for name, value in (counts | {"shard_size": shard_size}).items():
        _check_range(name, value, low=1)
    _check_range("workers", workers, low=0, high=MOST_WORKERS)
    _check_range("attempts", attempts, low=1, high=100)
    _check_range("guidance", guidance, low=0)
    _check_range("seed", seed, low=0, high=MOST_SEED)
    shards = ShardSettings(
        size=shard_size,
        format=_choice("shard_format", ShardFormat, shard_format),
        image_format=_choice("image_format", ImageFormat, image_format),
        include_text=_choice("include_text", IncludeText, include_text),
        sop_class=_choice("sop_class", SopClass, sop_class),
        unpacked=unpacked,
        study_date=study_date,
    )
    if unpacked and shards.format is not ShardFormat.DICOM:
        raise ValueError("unpacked: needs shard_format='dicom'")
    accepting = AcceptSettings(
        thresholds=dict(thresholds or {}),
        judges=judges if isinstance(judges, str) else dict(judges),
        ignored_checks=tuple(ignored_checks),
        attempts=attempts,
        only_accepted=only_accepted,
    )
    if not accept and accepting != AcceptSettings():
        raise ValueError("thresholds, judges, ignored_checks, attempts and only_accepted need accept=True")
    if part is not None and finish:
        raise ValueError("finish: found `part` as well, expected one of the two")
    settings = GenerateSettings(
        reports=parse_location(reports),
        out=parse_location(out),
        model=model,
        additions=Additions(
            denoiser=_path(unet),
            vae=_path(vae),
            scheduler=_path(scheduler),
            loras=tuple(parse_lora(str(weights)) for weights in lora or ()),
            embeddings=tuple(Path(words) for words in embeddings or ()),
        ),
        ace=_path(ace),
        prompt=None if prompt is None else _choice("prompt", PromptStyle, prompt),
        prompt_template=prompt_template,
        negative_prompt=negative_prompt,
        columns=_columns(columns, _ROLES),
        images_per_report=images_per_report,
        seed=seed,
        limit=limit,
        keep_order=keep_order,
        per_image=per_image,
        labeler=_path(labeler),
        strict=strict,
        dry_run=dry_run,
        deid=None if deid is None else _choice("deid", Deid, deid),
        deid_model=_path(deid_model),
        id_key=_path(id_key),
        id_map=_path(id_map),
        rejected=_path(rejected),
        part=None if part is None else parse_part(part),
        finish=finish,
        workers=workers,
        sampling=SamplingSettings(
            steps=steps,
            guidance=guidance,
            sampler=None if sampler is None else _choice("sampler", Sampler, sampler),
            batch_size=batch_size,
            threads_per_batch=threads_per_batch,
            compiled=compiled,
            device=_choice("device", Device, device),
            precision=_choice("precision", Precision, precision),
        ),
        shards=shards,
        accept=accepting if accept else None,
    )
    with quick_imports():
        from cxrsynth.generation.generate import generate as run

    return run(settings)


def tune(
    recipe: str | PathLike[str],
    out: str | PathLike[str] | None = TuneSettings.out,
    *,
    overrides: Mapping[str, Any] | Sequence[str] = TuneSettings.overrides,
    dry_run: bool = TuneSettings.dry_run,
    export: bool = TuneSettings.export,
    from_best: bool = TuneSettings.from_best,
    max_wait_minutes: float = TuneSettings.max_wait_minutes,
) -> "Tuned":
    """Tune a model by reinforcement learning with comparative feedback, or by the stages that a recipe lists.

    A run that was interrupted resumes when it is called again.

    Args:
        recipe: recipe file, or the name of a packaged recipe, as `smoke`.
        out: folder for the run: new, or an unfinished run to resume; None for runs/ and the recipe's name.
        overrides: dotted recipe key -> value, as `{"stages.0.iterations": 5}`; or texts `KEY=VALUE`, as `--set` takes.
        dry_run: train nothing; the result's `estimate` holds time and memory.
        export: write the model of an unfinished run, from its best checkpoint, else its newest; train nothing.
        from_best: go on from the best checkpoint with other iterations, learning rates or schedule.
        max_wait_minutes: with several processes, how long one waits for the others before the run ends.

    Returns:
        The folder of the tuned model.

    Raises:
        RecipeError, ReportsError, ModelError, ShardError: for what the user can mend.
    """
    settings = TuneSettings(
        recipe=find_recipe(Path(recipe)),
        out=_path(out),
        overrides=tuple(_assignments(overrides)),
        dry_run=dry_run,
        export=export,
        from_best=from_best,
        max_wait_minutes=max_wait_minutes,
    )
    with quick_imports():
        from cxrsynth.tuning.tune import tune as run

    return run(settings)


def audit(
    images: str | PathLike[str],
    out: str | PathLike[str] | None = AuditSettings.out,
    *,
    reference: str | PathLike[str] | None = None,
    table: str | PathLike[str] | None = None,
    reference_table: str | PathLike[str] | None = None,
    split: str | None = AuditSettings.split,
    reference_split: str | None = AuditSettings.reference_split,
    columns: Mapping[str, str] | None = None,
    labeler: str | PathLike[str] | None = AuditSettings.labeler,
    judges: str | Mapping[str, str] = DEFAULT_FAMILY,
    features: str = AuditSettings.features,
    verifier: str = AuditSettings.verifier,
    family: str = AuditSettings.family,
    thresholds: Mapping[str, float] | None = None,
    beat_reference: Mapping[str, float] | None = None,
    keep_fraction: float | None = RuleSettings.keep_fraction,
    ignored_checks: Iterable[str] = RuleSettings.ignored_checks,
    write_kept: str | PathLike[str] | None = AuditSettings.write_kept,
    write_depicts: str | PathLike[str] | None = AuditSettings.write_depicts,
    shard_size: int = AuditSettings.shard_size,
    utility: bool = AuditSettings.utility,
    utility_model: str | None = AuditSettings.utility_model,
    probes: int = AuditSettings.probes,
    generator: str | None = AuditSettings.generator,
    members: str | PathLike[str] | None = None,
    non_members: str | PathLike[str] | None = None,
    members_table: str | PathLike[str] | None = None,
    non_members_table: str | PathLike[str] | None = None,
    members_split: str | None = AuditSettings.members_split,
    non_members_split: str | None = AuditSettings.non_members_split,
    attacked: int = AuditSettings.attacked,
    keep_reference_pixels: bool = AuditSettings.keep_reference_pixels,
    show_real: bool = AuditSettings.show_real,
    protocol: str | None = AuditSettings.protocol,
    reader_study: int | None = AuditSettings.reader_study,
    reader_answers: Sequence[str | PathLike[str]] | None = None,
    id_key: str | PathLike[str] | None = AuditSettings.id_key,
    fail_under: Mapping[str, float] | Sequence[str] = AuditSettings.fail_under,
    compare: str | PathLike[str] | None = AuditSettings.compare,
    strict: bool = AuditSettings.strict,
    seed: int = AuditSettings.seed,
    batch_size: int = AuditSettings.batch_size,
    workers: int = AuditSettings.workers,
    device: str = AuditSettings.device,
) -> "AuditReport | None":
    """Score every image, decide which to keep, and report the metrics. The images are only read.

    Args:
        images: data set made by cxrsynth, WebDataset shards, or a folder of images or DICOM files.
        out: folder for the results; None for a folder beside `images` whose name ends in -audit.
        reference: real images to compare with, in any form that `images` can have.
        table: CSV, JSON, Parquet or Excel table that describes the files in `images`.
        reference_table: the same for the reference.
        split: of a public data set whose splits are known, only this one: train, val, test, or a name of its own.
        reference_split: the same for the reference.
        columns: role (`report`, `findings`, `impression`, `view`, `sex`, `age`, `patient_id`, `file`) -> column name.
        labeler: folder of a BERT labeler in CheXbert's layout, or a hub id `owner/name@revision`, that reads findings
            from reports; None for rules. Data sets of cxrsynth have their findings.
        judges: backend of all reward models, or reward -> backend; only the rewards of a mapping are measured.
        features: feature space for fidelity: a family of reward models, `xrv:NAME` of torchxrayvision's weights, or an
            image encoder: its folder, or a hub id `owner/name@revision`.
        verifier: what recognizes patients of the reference: nano's verifier, a folder of another, or an image encoder:
            its folder, or a hub id `owner/name@revision`.
        family: family of reward models that aligns images for the quality checks and the near-duplicate search.
        thresholds: reward -> lowest accepted score.
        beat_reference: reward -> percentile (0 to 100) of the reference's scores that an image must reach.
        keep_fraction: keep only this share of each finding's images, the best; above 0, at most 1.
        ignored_checks: names of quality checks that must not reject images.
        write_kept: also write the kept images as shards to this folder.
        write_depicts: folder of the model that made the images; the findings they were measured to show are written
            into its cxrsynth.json.
        shard_size: images per shard in `write_kept`.
        utility: train classifiers on synthetic and real images and test them on real ones.
        utility_model: network to train for `utility`: `nano` or `nano-judge` (from random weights), or any that
            `features` takes (from its own weights). None: a linear probe on the features.
        probes: reference images to plant near-duplicates of, which measures how well the search finds them.
        generator: model that made the images; near-duplicates are also planted with its autoencoder. None: nano's.
        members: images that the generator was trained on, which are attacked (membership inference).
        non_members: images of other patients, held out of its training.
        members_table: table that describes the members.
        non_members_table: the same for the non-members.
        members_split: one split of the members, where a data set's are known.
        non_members_split: the same for the non-members.
        attacked: about how many images of each of the two the attacks are tried on.
        keep_reference_pixels: leave the pixels of the reference in `.cxrsynth-audit` when the audit is complete.
        show_real: show small pictures of the real images that are nearest to audited ones in report.html.
        protocol: also report under the names of a published benchmark, `chexgenbench`; needs a reference.
        reader_study: make reader-study.html with so many images, half of them real, an even number from 4 to 500.
        reader_answers: files that readers saved from that page, to be scored.
        id_key: file with the secret key for pseudonyms of patients; None for the one in the user data folder.
        fail_under: metric -> value that it must reach (or, for a distance, not pass); or texts `METRIC=VALUE`.
        compare: summary.json of another audit, or its folder, whose numbers stand beside this one's.
        strict: stop at the first file that cannot be read instead of counting it as damaged.
        seed: seed for subsampling and confidence intervals, 0 or more.
        batch_size: images per batch.
        workers: threads that decode images.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Returns:
        What summary.json holds, and whether all of `fail_under` was met. In a distributed run the main process alone
        gets a report, the others None.

    Raises:
        RecipeError, ReportsError, ModelError, ShardError: for what the user can mend.
        ValueError: for an argument outside its range.
    """
    for name, value in {
        "shard_size": shard_size,
        "probes": probes,
        "batch_size": batch_size,
        "workers": workers,
    }.items():
        _check_range(name, value, low=1)
    _check_range("attacked", attacked, low=20)
    _check_range("keep_fraction", keep_fraction, low=0, high=1)
    _check_range("seed", seed, low=0, high=MOST_SEED)
    _check_range("reader_study", reader_study, low=FEWEST_READ, high=MOST_READ)
    for reward, percentile in (beat_reference or {}).items():
        _check_range(f"beat_reference[{reward!r}]", percentile, low=0, high=100)
    settings = AuditSettings(
        shards=parse_location(images),
        reference=_location(reference),
        out=_path(out),
        table=_location(table),
        reference_table=_location(reference_table),
        split=split,
        reference_split=reference_split,
        columns=_columns(columns, (_ROLES - {"report_id", "race"}) | {"patient_id", "file"}),
        labeler=_path(labeler),
        judges=_judges(judges),
        family=family,
        features=features,
        verifier=verifier,
        rules=RuleSettings(
            thresholds=dict(thresholds or {}),
            percentiles=dict(beat_reference or {}),
            keep_fraction=keep_fraction,
            ignored_checks=tuple(ignored_checks),
        ),
        write_kept=_path(write_kept),
        write_depicts=_path(write_depicts),
        shard_size=shard_size,
        utility=utility,
        utility_model=utility_model,
        probes=probes,
        generator=generator,
        members=_location(members),
        non_members=_location(non_members),
        members_table=_location(members_table),
        non_members_table=_location(non_members_table),
        members_split=members_split,
        non_members_split=non_members_split,
        attacked=attacked,
        keep_reference_pixels=keep_reference_pixels,
        show_real=show_real,
        protocol=None if protocol is None else _choice("protocol", Protocol, protocol),
        reader_study=reader_study,
        reader_answers=tuple(map(parse_path, reader_answers or ())),
        id_key=_path(id_key),
        fail_under=tuple(_assignments(fail_under)),
        compare=_path(compare),
        strict=strict,
        seed=seed,
        batch_size=batch_size,
        workers=workers,
        device=_choice("device", Device, device),
    )
    with quick_imports():
        from cxrsynth.auditing.audit import audit as run

    return run(settings)


def convert(
    source: str | PathLike[str],
    out: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = ConvertSettings.base,
    original_config: str | PathLike[str] | None = ConvertSettings.original_config,
    ema: bool = ConvertSettings.ema,
    name: str | None = ConvertSettings.name,
) -> "Converted":
    """Turn a model with pickled weights, or in one file, into a model folder with safetensors.

    No code in a file is run: pickles that hold more than tensors are refused. Nothing is downloaded. The result is
    loaded once before it gets its name.

    Args:
        source: model folder in diffusers' layout with `.bin` weights, one file (`.ckpt`, `.pt`, `.pth`, `.bin`,
            `.safetensors`) in the layout of latent diffusion, or the folder of BioViL-T as published.
        out: folder for the model; it must not exist. A name that ends in `.safetensors` takes the tensors of one
            pickled file as they are: LoRA weights, words of textual inversion, one network.
        base: for one file: model folder of the same architecture, for its settings, tokenizers and scheduler, and for
            parts that the file lacks.
        original_config: for one file: the YAML file it was trained with, if its sizes are not those of `base`.
        ema: for one file: take the averaged weights of the U-Net.
        name: name of the model, written to its cxrsynth.json; None for the folder's.

    Returns:
        The folder, its family and its digest.

    Raises:
        ModelError, ShardError: for what the user can mend; nothing is left of the folder then.
    """
    settings = ConvertSettings(
        source=Path(source),
        out=Path(out),
        base=_path(base),
        original_config=_path(original_config),
        ema=ema,
        name=name,
    )
    with quick_imports():
        from cxrsynth.conversion.convert import convert as run

    return run(settings)


def example_reports() -> Path:
    """Path of the example table: made-up reports, which `cxrsynth generate --example` uses."""
    return packaged_folder() / EXAMPLE_REPORTS


def _location(text: str | PathLike[str] | None) -> Location | None:
    return None if text is None else parse_location(text)


def _path(path: str | PathLike[str] | None) -> Path | None:
    return None if path is None else parse_path(path)


def _columns(given: Mapping[str, str] | None, roles: Set[str]) -> dict[str, str]:
    unknown = sorted((given or {}).keys() - roles)
    if unknown:
        raise ValueError(f"columns: {unknown[0]!r}, expected roles among {', '.join(sorted(roles))}")
    return dict(given or {})


def _judges(given: str | Mapping[str, str]) -> dict[str, str]:
    return dict.fromkeys(REWARDS, given) if isinstance(given, str) else dict(given)


def _assignments(given: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Texts `KEY=VALUE`; a value is written as JSON, which YAML reads alike."""
    if not isinstance(given, Mapping):
        return list(given)
    import json

    return [f"{key}={json.dumps(value, default=str)}" for key, value in given.items()]


def _choice(name: str, choices: type[_Choice], value: str) -> _Choice:
    try:
        return choices(value)
    except ValueError:
        raise ValueError(f"{name}: {value!r}, expected one of {', '.join(choices)}") from None


def _check_range(name: str, value: float | None, *, low: float, high: float = float("inf")) -> None:
    if value is not None and not low <= value <= high:
        span = f"{low:g} or more" if high == float("inf") else f"{low:g} to {high:g}"
        raise ValueError(f"{name}: {value!r}, expected {span}")
