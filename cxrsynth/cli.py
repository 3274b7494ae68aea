"""The command line: parse, load, call, render, exit code. Torch is imported inside the commands only."""

from pathlib import Path
from typing import Annotated

import typer

from cxrsynth import __version__
from cxrsynth.settings import (
    Device,
    GenerateSettings,
    ImageFormat,
    IncludeText,
    Precision,
    PromptStyle,
    Sampler,
    SamplingSettings,
    ShardFormat,
    ShardSettings,
    SopClass,
)

app = typer.Typer(
    help="Synthetic chest X-rays you may share.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
_COLUMNS, _SAMPLING, _OUTPUT, _PRIVACY = "Columns", "Sampling", "Output", "Privacy"


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
    sampler: Annotated[Sampler, typer.Option(rich_help_panel=_SAMPLING)] = Sampler.DDIM,
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


def main() -> None:
    """Entry point of the console script."""
    app()
