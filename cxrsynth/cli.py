"""The command line: parse, load, call, render, exit code. Torch is imported inside the commands only."""

import errno
import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import environ
from pathlib import Path
from typing import Annotated

import typer

from cxrsynth import __version__, api, console, options
from cxrsynth.errors import CxrsynthError
from cxrsynth.recipe.packaged import copy_recipe, packaged_recipes, packaged_scripts, read_recipe
from cxrsynth.rewards.installed import describe_rewards
from cxrsynth.runtime.interrupt import Terminated, kept_interrupts, terminated_as_interrupted
from cxrsynth.runtime.processes import Launch, read_launch
from cxrsynth.settings import (
    TUNING_FAMILY,
    AcceptSettings,
    AuditSettings,
    ConvertSettings,
    Device,
    GenerateSettings,
    RuleSettings,
    SamplingSettings,
    ShardSettings,
    TuneSettings,
    parse_lora,
    parse_part,
)

_SUMMARY = "Synthetic chest X-rays you can share."

app = typer.Typer(
    help=_SUMMARY,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
recipes_app = typer.Typer(
    help="List, show and copy the recipes and job scripts that come with cxrsynth.", no_args_is_help=True
)
app.add_typer(recipes_app, name="recipes")
rewards_app = typer.Typer(help="List the rewards that can be used, and check one of your own.", no_args_is_help=True)
app.add_typer(rewards_app, name="rewards")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cxrsynth {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


_root.__doc__ = _SUMMARY


@app.command()
def generate(
    out: options.DatasetFolder,
    reports: options.Reports = None,
    example: options.Example = False,
    model: options.Model = GenerateSettings.model,
    unet: options.Unet = None,
    vae: options.Vae = None,
    scheduler: options.SchedulerFolder = None,
    lora: options.LoraWeights = None,
    embeddings: options.Embeddings = None,
    ace: options.Ace = GenerateSettings.ace,
    prompt: options.Prompt = GenerateSettings.prompt,
    prompt_template: options.PromptTemplate = GenerateSettings.prompt_template,
    images_per_report: options.ImagesPerReport = GenerateSettings.images_per_report,
    limit: options.Limit = GenerateSettings.limit,
    strict: options.StrictRows = GenerateSettings.strict,
    keep_order: options.KeepOrder = GenerateSettings.keep_order,
    per_image: options.PerImage = GenerateSettings.per_image,
    labeler: options.Labeler = GenerateSettings.labeler,
    dry_run: options.DryRun = GenerateSettings.dry_run,
    steps: options.Steps = SamplingSettings.steps,
    guidance: options.Guidance = SamplingSettings.guidance,
    negative_prompt: options.NegativePrompt = GenerateSettings.negative_prompt,
    sampler: options.SamplerName = SamplingSettings.sampler,
    seed: options.Seed = GenerateSettings.seed,
    batch_size: options.SamplingBatch = SamplingSettings.batch_size,
    threads_per_batch: options.ThreadsPerBatch = SamplingSettings.threads_per_batch,
    compiled: options.Compile = SamplingSettings.compiled,
    device: options.SamplingDevice = SamplingSettings.device,
    precision: options.ModelPrecision = SamplingSettings.precision,
    shard_format: options.Format = ShardSettings.format,
    shard_size: options.ShardSize = ShardSettings.size,
    image_format: options.ImageEncoding = ShardSettings.image_format,
    sop_class: options.SopClassName = ShardSettings.sop_class,
    unpacked: options.Unpacked = ShardSettings.unpacked,
    study_date: options.StudyDate = ShardSettings.study_date,
    workers: options.EncodingWorkers = GenerateSettings.workers,
    include_text: options.Text = ShardSettings.include_text,
    accept: options.Accept = False,
    threshold: options.Threshold = None,
    min_posture: options.MinPosture = None,
    min_diagnosis: options.MinDiagnosis = None,
    min_consistency: options.MinConsistency = None,
    judge: options.AcceptJudge = None,
    ignore_check: options.IgnoreCheck = None,
    attempts: options.Attempts = AcceptSettings.attempts,
    only_accepted: options.OnlyAccepted = False,
    deid: options.Deid = GenerateSettings.deid,
    deid_model: options.DeidModel = GenerateSettings.deid_model,
    id_key: options.IdKey = GenerateSettings.id_key,
    id_map: options.IdMap = GenerateSettings.id_map,
    rejected: options.Rejected = GenerateSettings.rejected,
    part: options.PartOfSet = None,
    finish: options.Finish = GenerateSettings.finish,
    report_column: options.ReportColumn = None,
    findings_column: options.FindingsColumn = None,
    impression_column: options.ImpressionColumn = None,
    id_column: options.IdColumn = None,
    view_column: options.ViewColumn = None,
    sex_column: options.SexColumn = None,
    age_column: options.AgeColumn = None,
    race_column: options.RaceColumn = None,
) -> None:
    """Turn a table of radiology reports into shards of synthetic chest X-rays."""
    if unpacked and shard_format != "dicom":
        raise typer.BadParameter("needs --format dicom", param_hint="--unpacked")
    for text in lora or ():
        try:
            parse_lora(text)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--lora") from None
    if part is not None:
        if finish:
            raise typer.BadParameter("found --part as well; give one of the two", param_hint="--finish")
        try:
            parse_part(part)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--part") from None
    columns = {
        "report": report_column,
        "findings": findings_column,
        "impression": impression_column,
        "report_id": id_column,
        "view": view_column,
        "sex": sex_column,
        "age": age_column,
        "race": race_column,
    }
    thresholds = options.parse_thresholds(
        threshold or [], posture=min_posture, diagnosis=min_diagnosis, consistency=min_consistency
    )
    _needs_accept(
        accept,
        {
            "--min": thresholds,
            "--judge": judge,
            "--ignore-check": ignore_check,
            "--attempts": attempts != AcceptSettings.attempts,
            "--only-accepted": only_accepted,
        },
    )
    with _user_errors():
        done = api.generate(
            _table(reports, example=example),
            out,
            model=model,
            unet=unet,
            vae=vae,
            scheduler=scheduler,
            lora=lora,
            embeddings=embeddings,
            ace=ace,
            prompt=prompt,
            prompt_template=prompt_template,
            negative_prompt=negative_prompt,
            columns=_named(columns),
            images_per_report=images_per_report,
            limit=limit,
            keep_order=keep_order,
            per_image=per_image,
            labeler=labeler,
            strict=strict,
            dry_run=dry_run,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            seed=seed,
            batch_size=batch_size,
            threads_per_batch=threads_per_batch,
            compiled=compiled,
            device=device,
            precision=precision,
            shard_format=shard_format,
            shard_size=shard_size,
            image_format=image_format,
            sop_class=sop_class,
            unpacked=unpacked,
            study_date=study_date,
            workers=workers,
            include_text=include_text,
            accept=accept,
            thresholds=thresholds,
            judges=options.parse_accept_judges(judge or [], thresholds.keys()),
            ignored_checks=ignore_check or (),
            attempts=attempts,
            only_accepted=only_accepted,
            deid=deid,
            deid_model=deid_model,
            id_key=id_key,
            id_map=id_map,
            rejected=rejected,
            part=part,
            finish=finish,
        )
        if done.estimate is not None:
            console.say(done.estimate)
            if done.first_prompt is not None:
                _show_prompt(done.first_prompt)
        elif _is_main_process() and not done.finished:
            left = f"{_count(done.missing, 'shard')} of other parts missing" if done.missing else "others are at work"
            console.say(f"{out}: part {part} is made; {left}")
        elif _is_main_process():
            unused = f", {_count(done.rejected, 'row')} not used" if done.rejected else ""
            accepted = "" if done.accepted is None else f", {done.accepted} of them accepted"
            if done.left_out:
                accepted = (
                    f", all accepted; {done.left_out} of {done.samples + done.left_out} never were and are left out"
                    " (not_accepted.csv)"
                )
            made = f"{out}: {_count(done.samples, 'image')} in {_count(done.shards, 'shard')}{accepted}{unused}"
            again = f"{out}: already complete ({done.samples} images), nothing to do"
            console.say(again if done.already_complete else made)


def _show_prompt(prompt: str) -> None:
    """The first prompt, which may hold words of a report, for who sits at a terminal; never for the log of a job."""
    shown = prompt if console.is_terminal() else "shown on a terminal only, since it may hold words of the report"
    console.say(f"  first prompt: {shown}")


def _needs_accept(accept: bool, given: dict[str, object]) -> None:
    """Raises BadParameter for a rule of acceptance where nothing is judged."""
    for option, value in given.items():
        if value and not accept:
            raise typer.BadParameter("needs --accept", param_hint=option)


@app.command()
def tune(
    recipe: options.Recipe,
    out: options.RunFolder = TuneSettings.out,
    override: options.Override = None,
    dry_run: options.DryRun = TuneSettings.dry_run,
    export: options.Export = TuneSettings.export,
    from_best: options.FromBest = TuneSettings.from_best,
    max_wait: options.MaxWait = TuneSettings.max_wait_minutes,
) -> None:
    """Tune a model by reinforcement learning with comparative feedback."""
    with _user_errors():
        done = api.tune(
            recipe,
            out,
            overrides=override or (),
            dry_run=dry_run,
            export=export,
            from_best=from_best,
            max_wait_minutes=max_wait,
        )
        if not _is_main_process():
            return
        if done.estimate is not None:
            console.say(done.estimate)
        elif done.already_complete:
            console.say(f"{done.model}: already complete, nothing to do")
        else:
            what = "exported" if done.exported else "tuned"
            console.say(f"{done.model}: {what}; use it with cxrsynth generate --model {done.model}")


@app.command()
def audit(
    images: options.Images,
    reference: options.Reference = None,
    out: options.AuditFolder = AuditSettings.out,
    table: options.ImageTable = None,
    reference_table: options.ReferenceTable = None,
    split: options.Split = AuditSettings.split,
    reference_split: options.ReferenceSplit = AuditSettings.reference_split,
    labeler: options.Labeler = AuditSettings.labeler,
    judge: options.Judge = None,
    features: options.Features = AuditSettings.features,
    verifier: options.Verifier = AuditSettings.verifier,
    family: options.Family = AuditSettings.family,
    threshold: options.Threshold = None,
    min_posture: options.MinPosture = None,
    min_diagnosis: options.MinDiagnosis = None,
    min_consistency: options.MinConsistency = None,
    beat_reference: options.BeatReference = None,
    keep_fraction: options.KeepFraction = RuleSettings.keep_fraction,
    ignore_check: options.IgnoreCheck = None,
    write_kept: options.WriteKept = AuditSettings.write_kept,
    write_depicts: options.WriteDepicts = AuditSettings.write_depicts,
    shard_size: options.ShardSize = AuditSettings.shard_size,
    utility: options.Utility = AuditSettings.utility,
    utility_model: options.UtilityModel = AuditSettings.utility_model,
    probes: options.Probes = AuditSettings.probes,
    generator: options.Generator = AuditSettings.generator,
    members: options.Members = None,
    non_members: options.NonMembers = None,
    members_table: options.MembersTable = None,
    non_members_table: options.NonMembersTable = None,
    members_split: options.MembersSplit = None,
    non_members_split: options.NonMembersSplit = None,
    attacked: options.Attacked = AuditSettings.attacked,
    keep_reference_pixels: options.KeepReferencePixels = AuditSettings.keep_reference_pixels,
    show_real: options.ShowReal = AuditSettings.show_real,
    protocol: options.AuditProtocol = AuditSettings.protocol,
    reader_study: options.ReaderStudy = AuditSettings.reader_study,
    reader_answers: options.ReaderAnswers = None,
    id_key: options.PatientKey = AuditSettings.id_key,
    fail_under: options.FailUnder = None,
    compare: options.CompareWith = None,
    strict: options.StrictFiles = AuditSettings.strict,
    seed: options.AuditSeed = AuditSettings.seed,
    batch_size: options.AuditBatch = AuditSettings.batch_size,
    workers: options.Workers = AuditSettings.workers,
    device: options.AuditDevice = AuditSettings.device,
    report_column: options.ReportColumn = None,
    findings_column: options.FindingsColumn = None,
    impression_column: options.ImpressionColumn = None,
    view_column: options.ViewColumn = None,
    sex_column: options.SexColumn = None,
    age_column: options.AgeColumn = None,
    patient_column: options.PatientColumn = None,
    file_column: options.FileColumn = None,
) -> None:
    """Score every image, decide which to keep, and report the metrics. Exit code 3: a --fail-under value is missed."""
    columns = {
        "report": report_column,
        "findings": findings_column,
        "impression": impression_column,
        "view": view_column,
        "sex": sex_column,
        "age": age_column,
        "patient_id": patient_column,
        "file": file_column,
    }
    judges = options.parse_judges(judge or [])
    thresholds = options.parse_thresholds(
        threshold or [], posture=min_posture, diagnosis=min_diagnosis, consistency=min_consistency
    )
    percentiles = options.parse_numbers("--beat-reference", beat_reference or [], low=0, high=100)
    with _user_errors():
        done = api.audit(
            images,
            out,
            reference=reference,
            table=table,
            reference_table=reference_table,
            split=split,
            reference_split=reference_split,
            columns=_named(columns),
            labeler=labeler,
            judges=judges,
            features=features,
            verifier=verifier,
            family=family,
            thresholds=thresholds,
            beat_reference=percentiles,
            keep_fraction=keep_fraction,
            ignored_checks=ignore_check or (),
            write_kept=write_kept,
            write_depicts=write_depicts,
            shard_size=shard_size,
            utility=utility,
            utility_model=utility_model,
            probes=probes,
            generator=generator,
            members=members,
            non_members=non_members,
            members_table=members_table,
            non_members_table=non_members_table,
            members_split=members_split,
            non_members_split=non_members_split,
            attacked=attacked,
            keep_reference_pixels=keep_reference_pixels,
            show_real=show_real,
            protocol=protocol,
            reader_study=reader_study,
            reader_answers=reader_answers,
            id_key=id_key,
            fail_under=fail_under or (),
            compare=compare,
            strict=strict,
            seed=seed,
            batch_size=batch_size,
            workers=workers,
            device=device,
        )
        if done is None:
            return  # not the main process
        console.print_audit(done.summary, done.out)
        if not done.passed:
            raise typer.Exit(3)


@app.command()
def convert(
    source: options.Source,
    out: options.ModelOut,
    base: options.Base = ConvertSettings.base,
    original_config: options.OriginalConfig = ConvertSettings.original_config,
    ema: options.Ema = ConvertSettings.ema,
    name: options.ModelName = ConvertSettings.name,
) -> None:
    """Turn a model with pickled weights, or in one file, into a model folder with safetensors. Runs no code in it."""
    with _user_errors():
        done = api.convert(source, out, base=base, original_config=original_config, ema=ema, name=name)
        use = f"{done.family}; use it with {done.use}" if done.family else "weights as safetensors"
        console.say(f"{out}: {use}")


@recipes_app.command("list")
def list_recipes() -> None:
    """List the recipes and job scripts, and what each one does."""
    console.print_recipes(packaged_recipes(), packaged_scripts())


@recipes_app.command("show")
def show_recipe(name: options.RecipeName) -> None:
    """Print a recipe or job script."""
    with _user_errors():
        typer.echo(read_recipe(name), nl=False)


@recipes_app.command("copy")
def copy(name: options.RecipeName, folder: options.CopyFolder) -> None:
    """Copy a recipe with its tables, or a job script, to a folder of yours. Existing files are not replaced."""
    with _user_errors():
        for path in copy_recipe(name, folder):
            console.say(str(path))


@rewards_app.command("list")
def list_rewards() -> None:
    """List the built-in rewards with their backends, and those of installed packages."""
    console.print_rewards(describe_rewards())


@rewards_app.command("check")
def check_reward(
    name: options.RewardName,
    backend: options.RewardBackend = TUNING_FAMILY,
    device: options.RewardDevice = Device.AUTO,
) -> None:
    """Try out a reward's contract on images of nano. Exit code 2: a promise is not kept."""
    with _user_errors():
        from cxrsynth.tuning.reward_check import check_reward as check

        kept = True
        for found in check(name, backend, device=device):
            console.print_finding(found.name, found.problem, found.detail)
            kept = kept and found.problem is None
        if not kept:
            raise typer.Exit(2)


def _table(reports: str | None, *, example: bool) -> str | Path:
    """The table to read: the user's, or the example.

    Raises:
        BadParameter: unless exactly one of the two is asked for.
    """
    if example and reports is not None:
        raise typer.BadParameter(f"found a table as well ({reports}); give one of the two", param_hint="--example")
    if example:
        return api.example_reports()
    if reports is None:
        raise typer.BadParameter("missing; give a table, or --example for the one in the package", param_hint="REPORTS")
    return reports


def _named(columns: dict[str, str | None]) -> dict[str, str]:
    return {role: name for role, name in columns.items() if name is not None}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _is_main_process() -> bool:
    return read_launch().rank == 0


@contextmanager
def _user_errors() -> Iterator[None]:
    """One message and exit code 2 for what the user can fix; Ctrl-C says how to resume."""
    _quiet_libraries()
    launch = Launch()
    try:
        launch = read_launch()  # before any work
        with terminated_as_interrupted(), kept_interrupts():
            yield
    except CxrsynthError as error:
        console.fail(f"[rank {launch.rank}] {error}" if launch.world_size > 1 else str(error))
        raise typer.Exit(2) from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        console.fail(f"{str(error.filename)[:80]}...: too long for this file system\n  choose a shorter name")
        raise typer.Exit(2) from None
    except KeyboardInterrupt as stopped:
        console.say("stopped; finished work is kept. Run the same command again to resume.")
        # As shells count: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
        raise typer.Exit(128 + (stopped.number if isinstance(stopped, Terminated) else signal.SIGINT)) from None


def _quiet_libraries() -> None:
    """Model loading prints progress bars and advice that have nothing to do with the user's work."""
    environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", module=r"(diffusers|peft|transformers|torch|spacy|negspacy)\b")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # advice where no home folder can be written to


def main() -> None:
    """Entry point of the console script."""
    app()
