"""The command line: parse, load, call, render, exit code. Torch is imported inside the commands only."""

from pathlib import Path
from typing import Annotated

import typer

from cxrsynth import __version__
from cxrsynth.settings import (
    AuditSettings,
    Device,
    GenerateSettings,
    ImageFormat,
    IncludeText,
    Precision,
    PromptStyle,
    RuleSettings,
    Sampler,
    SamplingSettings,
    ShardFormat,
    ShardSettings,
    SopClass,
    TuneSettings,
)

app = typer.Typer(
    help="Synthetic chest X-rays you may share.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
_COLUMNS, _SAMPLING, _OUTPUT, _PRIVACY = "Columns", "Sampling", "Output", "Privacy"
_JUDGES, _KEEPING, _EVIDENCE = "Judges", "Who is kept", "Evidence"


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
    """Synthetic chest X-rays you may share."""


@app.command()
def generate(
    reports: Annotated[Path, typer.Argument(help="CSV, JSONL or Parquet table of reports.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the data set: new, empty, or one to go on with.")],
    model: Annotated[str, typer.Option(help="nano, a Stable Diffusion folder, or a hub id.")] = "nano",
    ace: Annotated[Path | None, typer.Option(help="Adaptive condition embeddings (safetensors).")] = None,
    prompt: Annotated[PromptStyle | None, typer.Option(help="How to ask; default: as the model folder says.")] = None,
    images_per_report: Annotated[int, typer.Option(min=1, max=100)] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N usable reports.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be used.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and stop.")] = False,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Denoising steps; default: the model's.", rich_help_panel=_SAMPLING),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(min=0, help="Classifier-free guidance scale, 1 = none.", rich_help_panel=_SAMPLING),
    ] = None,
    sampler: Annotated[Sampler | None, typer.Option(help="Default: the model's.", rich_help_panel=_SAMPLING)] = None,
    seed: Annotated[int, typer.Option(min=0, rich_help_panel=_SAMPLING)] = 0,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Default: 8, on a CPU 4.", rich_help_panel=_SAMPLING)
    ] = None,
    threads_per_batch: Annotated[
        int,
        typer.Option(
            min=1,
            help="CPU cores for one batch; the others take the next. Raise it for few images; it changes the bytes.",
            rich_help_panel=_SAMPLING,
        ),
    ] = 1,
    device: Annotated[Device, typer.Option(rich_help_panel=_SAMPLING)] = Device.AUTO,
    precision: Annotated[Precision, typer.Option(rich_help_panel=_SAMPLING)] = Precision.AUTO,
    format: Annotated[ShardFormat, typer.Option(rich_help_panel=_OUTPUT)] = ShardFormat.WEBDATASET,
    shard_size: Annotated[int, typer.Option(min=1, help="Images per shard.", rich_help_panel=_OUTPUT)] = 1000,
    image_format: Annotated[
        ImageFormat, typer.Option(help="Of WebDataset shards.", rich_help_panel=_OUTPUT)
    ] = ImageFormat.PNG,
    sop_class: Annotated[
        SopClass,
        typer.Option(help="Of DICOM shards: Secondary Capture or Computed Radiography.", rich_help_panel=_OUTPUT),
    ] = SopClass.SC,
    unpacked: Annotated[
        bool,
        typer.Option(
            "--unpacked", help="A plain DICOM file-set with DICOMDIR instead of tars.", rich_help_panel=_OUTPUT
        ),
    ] = False,
    include_text: Annotated[
        IncludeText, typer.Option(help="Report texts are often not shareable.", rich_help_panel=_PRIVACY)
    ] = IncludeText.NONE,
    id_key: Annotated[
        Path | None,
        typer.Option(
            help="Secret key of the sample keys; default: made once in your user data folder.",
            rich_help_panel=_PRIVACY,
        ),
    ] = None,
    id_map: Annotated[
        Path | None,
        typer.Option(help="Write report id -> sample key here, outside --out.", rich_help_panel=_PRIVACY),
    ] = None,
    report_column: Annotated[str | None, typer.Option(rich_help_panel=_COLUMNS)] = None,
    findings_column: Annotated[str | None, typer.Option(rich_help_panel=_COLUMNS)] = None,
    impression_column: Annotated[str | None, typer.Option(rich_help_panel=_COLUMNS)] = None,
    id_column: Annotated[str | None, typer.Option(rich_help_panel=_COLUMNS)] = None,
    view_column: Annotated[str | None, typer.Option(rich_help_panel=_COLUMNS)] = None,
    sex_column: Annotated[str | None, typer.Option(rich_help_panel=_COLUMNS)] = None,
    age_column: Annotated[str | None, typer.Option(rich_help_panel=_COLUMNS)] = None,
) -> None:
    """Turn a table of radiology reports into shards of synthetic chest X-rays."""
    if unpacked and format is not ShardFormat.DICOM:
        raise typer.BadParameter("needs --format dicom", param_hint="--unpacked")
    columns = {
        "report": report_column,
        "findings": findings_column,
        "impression": impression_column,
        "report_id": id_column,
        "view": view_column,
        "sex": sex_column,
        "age": age_column,
    }
    settings = GenerateSettings(
        reports=reports,
        out=out,
        model=model,
        ace=ace,
        prompt=prompt,
        columns={role: name for role, name in columns.items() if name is not None},
        images_per_report=images_per_report,
        seed=seed,
        limit=limit,
        strict=strict,
        dry_run=dry_run,
        id_key=id_key,
        id_map=id_map,
        sampling=SamplingSettings(
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            batch_size=batch_size,
            threads_per_batch=threads_per_batch,
            device=device,
            precision=precision,
        ),
        shards=ShardSettings(
            size=shard_size,
            format=format,
            image_format=image_format,
            include_text=include_text,
            sop_class=sop_class,
            unpacked=unpacked,
        ),
    )
    from cxrsynth.commands import run_generate

    run_generate(settings)


@app.command()
def audit(
    shards: Annotated[
        Path,
        typer.Argument(help="Data set of cxrsynth, WebDataset, or folder of pictures or DICOM.", show_default=False),
    ],
    reference: Annotated[
        Path | None, typer.Option(help="Real images to compare with: as SHARDS.", rich_help_panel=_EVIDENCE)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the findings; default: SHARDS with -audit.")] = None,
    table: Annotated[Path | None, typer.Option(help="CSV, JSONL or Parquet table that tells of SHARDS' files.")] = None,
    reference_table: Annotated[
        Path | None, typer.Option(help="The same of the reference.", rich_help_panel=_EVIDENCE)
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="BACKEND for all rewards, or REWARD=BACKEND; repeatable. Default: nano-judge.", rich_help_panel=_JUDGES
        ),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            help="Where fidelity is measured: a family, xrv:NAME, or an encoder folder.", rich_help_panel=_JUDGES
        ),
    ] = "nano-judge",
    family: Annotated[
        str, typer.Option(help="Judges that register images for checks and copies.", rich_help_panel=_JUDGES)
    ] = "nano-judge",
    minimum: Annotated[
        list[str] | None,
        typer.Option("--min", help="REWARD=VALUE: reject below it; repeatable.", rich_help_panel=_KEEPING),
    ] = None,
    min_posture: Annotated[float | None, typer.Option(rich_help_panel=_KEEPING)] = None,
    min_diagnosis: Annotated[float | None, typer.Option(rich_help_panel=_KEEPING)] = None,
    min_consistency: Annotated[float | None, typer.Option(rich_help_panel=_KEEPING)] = None,
    beat_reference: Annotated[
        list[str] | None,
        typer.Option(
            help="REWARD=PERCENTILE of the reference's own rewards to beat; repeatable.", rich_help_panel=_KEEPING
        ),
    ] = None,
    keep_fraction: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Keep the best share of every finding.", rich_help_panel=_KEEPING),
    ] = None,
    ignore_check: Annotated[
        list[str] | None,
        typer.Option(help="A quality check that shall not reject; repeatable.", rich_help_panel=_KEEPING),
    ] = None,
    write_kept: Annotated[
        Path | None, typer.Option(help="Write the kept images again, as shards, here.", rich_help_panel=_OUTPUT)
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Images per shard written.", rich_help_panel=_OUTPUT)] = 1000,
    utility: Annotated[
        bool,
        typer.Option("--utility", help="Train on synthetic and real images, test on real.", rich_help_panel=_EVIDENCE),
    ] = False,
    probes: Annotated[
        int,
        typer.Option(
            min=1,
            help="Reference images that near-duplicates are planted of, to measure the search.",
            rich_help_panel=_EVIDENCE,
        ),
    ] = 100,
    generator: Annotated[
        str | None,
        typer.Option(
            help="Model that made SHARDS: near-duplicates are planted with its autoencoder. Default: nano's.",
            rich_help_panel=_EVIDENCE,
        ),
    ] = None,
    keep_reference_pixels: Annotated[
        bool,
        typer.Option(
            "--keep-reference-pixels",
            help="Leave the pixels of real images in .cxrsynth-audit when the audit is complete.",
            rich_help_panel=_EVIDENCE,
        ),
    ] = False,
    id_key: Annotated[
        Path | None,
        typer.Option(help="Key of patient pseudonyms; default: the one in your data folder.", rich_help_panel=_OUTPUT),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(help="METRIC=VALUE: exit 3 when it is missed; repeatable.", rich_help_panel=_EVIDENCE),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first thing that cannot be read.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of samples and intervals.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode.")] = 2,
    device: Annotated[Device, typer.Option()] = Device.AUTO,
    report_column: Annotated[str | None, typer.Option(rich_help_panel=_COLUMNS)] = None,
    findings_column: Annotated[str | None, typer.Option(rich_help_panel=_COLUMNS)] = None,
    impression_column: Annotated[str | None, typer.Option(rich_help_panel=_COLUMNS)] = None,
    view_column: Annotated[str | None, typer.Option(rich_help_panel=_COLUMNS)] = None,
    sex_column: Annotated[str | None, typer.Option(rich_help_panel=_COLUMNS)] = None,
    age_column: Annotated[str | None, typer.Option(rich_help_panel=_COLUMNS)] = None,
) -> None:
    """Score every image, keep what is good enough, and show the evidence."""
    from cxrsynth.commands import by_name, judges_by_reward, run_audit

    columns = {
        "report": report_column,
        "findings": findings_column,
        "impression": impression_column,
        "view": view_column,
        "sex": sex_column,
        "age": age_column,
    }
    short = {"posture": min_posture, "diagnosis": min_diagnosis, "consistency": min_consistency}
    settings = AuditSettings(
        shards=shards,
        reference=reference,
        out=out,
        table=table,
        reference_table=reference_table,
        columns={role: name for role, name in columns.items() if name is not None},
        judges=judges_by_reward(judge or []),
        family=family,
        features=features,
        rules=RuleSettings(
            minimum=by_name("--min", minimum or [])
            | {name: value for name, value in short.items() if value is not None},
            beat=by_name("--beat-reference", beat_reference or [], low=0, high=100),
            keep_fraction=keep_fraction,
            ignored_checks=tuple(ignore_check or ()),
        ),
        write_kept=write_kept,
        shard_size=shard_size,
        utility=utility,
        probes=probes,
        generator=generator,
        keep_reference_pixels=keep_reference_pixels,
        id_key=id_key,
        fail_under=tuple(fail_under or ()),
        strict=strict,
        seed=seed,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    run_audit(settings)


@app.command()
def tune(
    recipe: Annotated[Path, typer.Argument(help="Recipe, as those under recipes/.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run: new, or one to go on with. Default: runs/ and its name.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE over the recipe, as stages.0.iterations=5; repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and what it takes.")] = False,
) -> None:
    """Tune a model by reinforcement learning with comparative feedback."""
    from cxrsynth.commands import run_tune

    run_tune(TuneSettings(recipe=recipe, out=out, overrides=tuple(override or ()), dry_run=dry_run))


def main() -> None:
    """Entry point of the console script."""
    app()
