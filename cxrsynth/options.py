"""The command line's arguments and options: types, names, help and panels, and how their texts are parsed."""

import math
import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from cxrsynth import settings
from cxrsynth.settings import DEFAULT_FAMILY, REWARDS, TUNING_FAMILY

_COLUMNS, _SAMPLING, _OUTPUT, _PRIVACY = "Columns", "Sampling", "Output", "Privacy"
_REWARD_MODELS, _SELECTION, _METRICS = "Reward models", "Selection", "Metrics"

# generate: what to make.
Reports = Annotated[
    str | None,
    Argument(
        metavar="[REPORTS]",
        help="CSV, JSON, Parquet or Excel table of reports: a path, or s3://, gs://...",
        show_default=False,
    ),
]
Example = Annotated[bool, Option("--example", help="Use the example table that comes with cxrsynth as REPORTS.")]
DatasetFolder = Annotated[
    str,
    Option(
        "--out",
        metavar="PATH",
        help="Folder for the data set: new, empty, or an unfinished run to resume. Or a prefix in an object store:"
        " s3://BUCKET/PREFIX, gs://, az://, hf://.",
    ),
]
Model = Annotated[
    str,
    Option(
        help="nano, nano-fast (4 steps without guidance), a model folder in diffusers' layout, or a Hugging Face model:"
        " owner/name or owner/name@revision."
    ),
]
Unet = Annotated[
    Path | None,
    Option(help="Folder or hub id of a UNet or transformer to use in place of the model's."),
]
Vae = Annotated[Path | None, Option(help="Folder or hub id of an autoencoder to use in place of the model's.")]
SchedulerFolder = Annotated[
    Path | None,
    Option(
        "--scheduler", help="Folder or hub id of a scheduler, or of a model with one, to use in place of the model's."
    ),
]
LoraWeights = Annotated[
    list[str] | None,
    Option("--lora", metavar="PATH[=SCALE]", help="LoRA weights of diffusers or peft to merge in; may be repeated."),
]
Embeddings = Annotated[
    list[Path] | None, Option(help="Words learned by textual inversion (safetensors), or a hub id; may be repeated.")
]
Ace = Annotated[Path | None, Option(help="Adaptive condition embeddings in place of the model's: file or folder.")]
Prompt = Annotated[
    settings.PromptStyle | None, Option(help="Prompt format. Default: the format that the model folder names.")
]
PromptTemplate = Annotated[
    str | None,
    Option(
        help="Prompt format as text with fields in braces, as '[{sex}. ]{impression}', or a preset: roentgen,"
        " roentgen-v2, chexgenbench, radedit. See the documentation of generate.",
    ),
]
ImagesPerReport = Annotated[int, Option(min=1, max=100, help="Images for each report.")]
Limit = Annotated[int | None, Option(min=1, help="Use only the first N usable reports.")]
StrictRows = Annotated[bool, Option("--strict", help="Stop at the first unusable row instead of setting it aside.")]
Labeler = Annotated[
    Path | None,
    Option(
        help="Folder of a BERT labeler in CheXbert's layout (safetensors), or a hub id owner/name@revision, that reads"
        " findings in place of the rules."
    ),
]
PerImage = Annotated[
    bool,
    Option(
        "--per-image",
        help="The table has a row for each image, as MIMIC-CXR's and CheXpert's: a row with the id of an earlier one is"
        " another image of its report.",
    ),
]
KeepOrder = Annotated[
    bool,
    Option(
        "--keep-order",
        help="Put samples in the order of the table, not of their keys: whoever has the table can then line them up.",
        rich_help_panel=_PRIVACY,
    ),
]
DryRun = Annotated[bool, Option("--dry-run", help="Print counts, disk space and time, then stop. Writes nothing.")]

PartOfSet = Annotated[
    str | None,
    Option(
        "--part",
        metavar="I/N",
        help="Make only every N-th shard, for jobs that know nothing of each other: 1/4 to 4/4 into one --out.",
    ),
]
Finish = Annotated[
    bool,
    Option(
        "--finish",
        help="Make no image: write the manifest and its companions, once all parts are there. The last part to end does"
        " so itself.",
    ),
]
EncodingWorkers = Annotated[
    int | None,
    Option(
        "--workers",
        min=0,
        max=settings.MOST_WORKERS,
        help="Processes that encode images beside the one that draws and writes; they change no byte. Default: 0, with"
        " a CUDA device up to 4, as cores allow.",
        rich_help_panel=_OUTPUT,
    ),
]

# generate: how to sample.
Steps = Annotated[int | None, Option(min=1, help="Denoising steps. Default: the model's.", rich_help_panel=_SAMPLING)]
Guidance = Annotated[
    float | None,
    Option(
        min=0,
        help="Classifier-free guidance scale; 1 turns it off, and below it the empty prompt takes part."
        " Default: the model's.",
        rich_help_panel=_SAMPLING,
    ),
]
NegativePrompt = Annotated[
    str | None,
    Option(
        help="What guidance leads away from, the same for all images; '' for nothing. Default: the model's.",
        rich_help_panel=_SAMPLING,
    ),
]
SamplerName = Annotated[settings.Sampler | None, Option(help="Default: the model's.", rich_help_panel=_SAMPLING)]
Seed = Annotated[
    int, Option(min=0, max=settings.MOST_SEED, help="Seed of the starting noise.", rich_help_panel=_SAMPLING)
]
SamplingBatch = Annotated[
    int | None, Option(min=1, help="Images per batch. Default: 8, on a CPU 4.", rich_help_panel=_SAMPLING)
]
ThreadsPerBatch = Annotated[
    int,
    Option(
        min=1,
        help="CPU cores per batch; other cores work on other batches. More is faster for a few images of a large"
        " model, but changes the last bits of the pixels.",
        rich_help_panel=_SAMPLING,
    ),
]
SamplingDevice = Annotated[settings.Device, Option("--device", help="Where the model runs.", rich_help_panel=_SAMPLING)]
ModelPrecision = Annotated[
    settings.Precision,
    Option("--precision", help="Floating-point type of the model.", rich_help_panel=_SAMPLING),
]
Compile = Annotated[
    bool,
    Option(
        "--compile",
        help="Compile the network with torch.compile before the first image. That takes a minute or more, and a"
        " compiler on this machine; it changes the last bits of the pixels.",
        rich_help_panel=_SAMPLING,
    ),
]

# generate: what to write.
Format = Annotated[settings.ShardFormat, Option("--format", help="Shard format.", rich_help_panel=_OUTPUT)]
ShardSize = Annotated[int, Option(min=1, help="Images per shard.", rich_help_panel=_OUTPUT)]
ImageEncoding = Annotated[
    settings.ImageFormat, Option("--image-format", help="Image format in WebDataset shards.", rich_help_panel=_OUTPUT)
]
SopClassName = Annotated[
    settings.SopClass,
    Option(
        "--sop-class",
        help="SOP class of DICOM objects: Secondary Capture or Computed Radiography.",
        rich_help_panel=_OUTPUT,
    ),
]
StudyDate = Annotated[
    str | None,
    Option(
        metavar="YYYYMMDD",
        help="StudyDate of DICOM objects, for archives that need one; the same for all, and best one that nobody takes"
        " for a day of an exam: 19000101. Empty by default.",
        rich_help_panel=_OUTPUT,
    ),
]
Unpacked = Annotated[
    bool,
    Option("--unpacked", help="Write a DICOM file-set with a DICOMDIR instead of tars.", rich_help_panel=_OUTPUT),
]
Text = Annotated[
    settings.IncludeText,
    Option(
        "--include-text", help="Report text to store with each image; often not shareable.", rich_help_panel=_PRIVACY
    ),
]
Deid = Annotated[
    settings.Deid | None,
    Option(
        "--deid",
        help="De-identification of prompts and stored text. strict drops sentences with words or numbers that are not"
        " known to be clinical. Default: strict with --include-text sanitized, else standard.",
        rich_help_panel=_PRIVACY,
    ),
]
DeidModel = Annotated[
    Path | None,
    Option(
        "--deid-model",
        help="Folder of a spaCy or transformers model of named entities, or a hub id owner/name@revision, that removes"
        " what it finds on top of the rules. Needs the extra: presidio.",
        rich_help_panel=_PRIVACY,
    ),
]
IdKey = Annotated[
    Path | None,
    Option(
        help="File with the secret key for sample keys. Default: a key created once in your user data folder.",
        rich_help_panel=_PRIVACY,
    ),
]
IdMap = Annotated[
    Path | None,
    Option(
        help="Write the mapping from report ids to sample keys to this file, outside --out.", rich_help_panel=_PRIVACY
    ),
]

Rejected = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="Where to list rows that were not used, by line and reason; OUT.rejected.csv beside --out by default.",
        rich_help_panel=_PRIVACY,
    ),
]

# generate: what to accept.
Accept = Annotated[
    bool,
    Option(
        "--accept",
        help="Draw an image again until it passes the quality checks of audit and the thresholds given with --min:"
        " rewards, or view=0, sex=0, age=0 for agreement with the report by a classifier.",
        rich_help_panel=_SELECTION,
    ),
]
Attempts = Annotated[
    int,
    Option(
        min=1,
        max=100,
        help="With --accept: draws of one image at most, the first included.",
        rich_help_panel=_SELECTION,
    ),
]
AcceptJudge = Annotated[
    list[str] | None,
    Option(
        "--judge",
        help="With --accept: BACKEND of all reward models, or REWARD=BACKEND of one. Repeatable. Default:"
        f" {TUNING_FAMILY}, so that the reward models of audit stay independent.",
        rich_help_panel=_SELECTION,
    ),
]
OnlyAccepted = Annotated[
    bool,
    Option(
        "--only-accepted",
        help="With --accept: leave out images that never pass. By default they are written with `accepted: false`.",
        rich_help_panel=_SELECTION,
    ),
]

# generate and audit: names of columns.
ReportColumn = Annotated[str | None, Option(help="Column with the whole report.", rich_help_panel=_COLUMNS)]
FindingsColumn = Annotated[str | None, Option(help="Column with the findings section.", rich_help_panel=_COLUMNS)]
ImpressionColumn = Annotated[str | None, Option(help="Column with the impression section.", rich_help_panel=_COLUMNS)]
IdColumn = Annotated[str | None, Option(help="Column with the report id.", rich_help_panel=_COLUMNS)]
ViewColumn = Annotated[str | None, Option(help="Column with the view (PA, AP, lateral).", rich_help_panel=_COLUMNS)]
SexColumn = Annotated[str | None, Option(help="Column with the patient's sex.", rich_help_panel=_COLUMNS)]
AgeColumn = Annotated[str | None, Option(help="Column with the patient's age in years.", rich_help_panel=_COLUMNS)]
PatientColumn = Annotated[
    str | None, Option(help="Column with the patient: images of one are kept together.", rich_help_panel=_COLUMNS)
]
FileColumn = Annotated[
    str | None, Option(help="Column with the image's file name or path, in either table.", rich_help_panel=_COLUMNS)
]
RaceColumn = Annotated[
    str | None, Option(help="Column with the patient's race, for prompt templates.", rich_help_panel=_COLUMNS)
]

# tune.
Recipe = Annotated[
    Path, Argument(help="Recipe file, or the name of a recipe that `cxrsynth recipes list` shows.", show_default=False)
]
RunFolder = Annotated[
    Path | None,
    Option(
        "--out", help="Folder for the run: new, or an unfinished run to resume. Default: runs/ and the recipe's name."
    ),
]
Export = Annotated[
    bool,
    Option(
        "--export",
        help="Write the model of an unfinished run to its folder `export`, from the best checkpoint (else the newest),"
        " and train nothing.",
    ),
]
FromBest = Annotated[
    bool,
    Option(
        "--from-best",
        help="Go on from the best checkpoint of the stage under way, with other iterations, learning rates or schedule"
        " than the run has. Later checkpoints are removed.",
    ),
]
MaxWait = Annotated[
    float,
    Option(
        "--max-wait",
        metavar="MINUTES",
        min=0.01,
        max=60 * 24 * 365,
        help="With several processes: how long one waits for the others before the run ends.",
    ),
]
Override = Annotated[
    list[str] | None,
    Option("--set", help="KEY=VALUE replaces a value of the recipe, as stages.0.iterations=5. Repeatable."),
]

# audit: what to read and how to score it.
Images = Annotated[
    str,
    Argument(
        metavar="SHARDS",
        help="Data set made by cxrsynth, WebDataset shards, or a folder of images or DICOM files; a path, or an address"
        " as s3://BUCKET/PREFIX.",
        show_default=False,
    ),
]
Reference = Annotated[
    str | None,
    Option(metavar="PATH", help="Real images to compare with, in any form SHARDS can have.", rich_help_panel=_METRICS),
]
AuditFolder = Annotated[Path | None, Option("--out", help="Folder for the results. Default: SHARDS with -audit.")]
ImageTable = Annotated[
    str | None,
    Option("--table", metavar="PATH", help="CSV, JSON, Parquet or Excel table that describes the files in SHARDS."),
]
ReferenceTable = Annotated[
    str | None, Option(metavar="PATH", help="Table that describes the reference images.", rich_help_panel=_METRICS)
]
Split = Annotated[
    str | None, Option(metavar="NAME", help="Only one split, where a data set's are known: train, val or test.")
]
ReferenceSplit = Annotated[
    str | None, Option(metavar="NAME", help="The same for the reference images.", rich_help_panel=_METRICS)
]
Judge = Annotated[
    list[str] | None,
    Option(
        help=f"BACKEND of all reward models, or REWARD=BACKEND of one. Repeatable. Default: {DEFAULT_FAMILY}.",
        rich_help_panel=_REWARD_MODELS,
    ),
]
Features = Annotated[
    str,
    Option(
        help="Feature space for fidelity: a family of reward models, xrv:NAME of torchxrayvision's weights, or an image"
        " encoder: its folder, or a hub id owner/name@revision.",
        rich_help_panel=_REWARD_MODELS,
    ),
]
Verifier = Annotated[
    str,
    Option(
        help="What recognizes patients of the reference: nano's verifier, a folder of another, or an image encoder: its"
        " folder, or a hub id owner/name@revision.",
        rich_help_panel=_REWARD_MODELS,
    ),
]
Family = Annotated[
    str,
    Option(
        help="Family of reward models that aligns images for the quality checks and the near-duplicate search.",
        rich_help_panel=_REWARD_MODELS,
    ),
]
Threshold = Annotated[
    list[str] | None,
    Option("--min", help="REWARD=VALUE: reject images that score lower. Repeatable.", rich_help_panel=_SELECTION),
]
MinPosture = Annotated[float | None, Option(help="Short for --min posture=VALUE.", rich_help_panel=_SELECTION)]
MinDiagnosis = Annotated[float | None, Option(help="Short for --min diagnosis=VALUE.", rich_help_panel=_SELECTION)]
MinConsistency = Annotated[float | None, Option(help="Short for --min consistency=VALUE.", rich_help_panel=_SELECTION)]
BeatReference = Annotated[
    list[str] | None,
    Option(
        help="REWARD=PERCENTILE: reject images that score below this percentile of the reference. Repeatable.",
        rich_help_panel=_SELECTION,
    ),
]


def _refuse_no_share(value: float | None) -> float | None:
    """A range of Option holds both its ends; this one has no 0."""
    if value is not None and not 0 < value <= 1:
        raise BadParameter(f"{value:g}: expected above 0, at most 1")
    return value


KeepFraction = Annotated[
    float | None,
    Option(
        metavar="X",
        callback=_refuse_no_share,
        help="Keep only this share of each finding's images, the best: above 0, at most 1.",
        rich_help_panel=_SELECTION,
    ),
]
IgnoreCheck = Annotated[
    list[str] | None,
    Option(help="Name of a quality check that must not reject images. Repeatable.", rich_help_panel=_SELECTION),
]
WriteKept = Annotated[
    Path | None, Option(help="Also write the kept images as shards to this folder.", rich_help_panel=_OUTPUT)
]
WriteDepicts = Annotated[
    Path | None,
    Option(
        help="Folder of the model that made the images: write the findings they were measured to show into its"
        " cxrsynth.json.",
        rich_help_panel=_OUTPUT,
    ),
]
Utility = Annotated[
    bool,
    Option(
        "--utility",
        help="Train classifiers on synthetic and real images, test them on real ones.",
        rich_help_panel=_METRICS,
    ),
]
UtilityModel = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="Network that --utility trains on pixels, in place of a linear probe on features: nano or nano-judge (from"
        " random weights), or any that --features takes (from its own weights).",
        rich_help_panel=_METRICS,
    ),
]
Probes = Annotated[
    int,
    Option(
        min=1,
        help="Reference images to plant near-duplicates of, which measures how well the search finds them.",
        rich_help_panel=_METRICS,
    ),
]
Generator = Annotated[
    str | None,
    Option(
        "--model",
        "--generator",
        help="Model that made the images: near-duplicates are also planted with its autoencoder (default: nano's), and"
        " it is attacked with --members and --non-members.",
        rich_help_panel=_METRICS,
    ),
]
AuditProtocol = Annotated[
    settings.Protocol | None,
    Option(
        help="Also report under the names of a published benchmark, beside its rows where the features are the same.",
        rich_help_panel=_METRICS,
    ),
]
ReaderStudy = Annotated[
    int | None,
    Option(
        metavar="N",
        min=settings.FEWEST_READ,
        max=settings.MOST_READ,
        help="Make reader-study.html: N images, half of them real, for readers to tell apart, blinded. It holds real"
        " radiographs: treat it as the reference.",
        rich_help_panel=_METRICS,
    ),
]
ReaderAnswers = Annotated[
    list[Path] | None,
    Option(
        metavar="FILE",
        help="Answers that a reader saved from reader-study.html, to be scored. Repeatable, one file of each reader.",
        rich_help_panel=_METRICS,
    ),
]
Members = Annotated[
    str | None,
    Option(
        metavar="PATH",
        help="Images that --model was trained on: can they be told from --non-members by who has its weights?",
        rich_help_panel=_METRICS,
    ),
]
NonMembers = Annotated[
    str | None,
    Option(
        metavar="PATH",
        help="Images of other patients from the same source, held out of training.",
        rich_help_panel=_METRICS,
    ),
]
MembersTable = Annotated[
    str | None, Option(metavar="PATH", help="Table that describes the members.", rich_help_panel=_METRICS)
]
NonMembersTable = Annotated[
    str | None, Option(metavar="PATH", help="Table that describes the non-members.", rich_help_panel=_METRICS)
]
MembersSplit = Annotated[
    str | None,
    Option(metavar="NAME", help="Only one split of the members, as train.", rich_help_panel=_METRICS),
]
NonMembersSplit = Annotated[
    str | None,
    Option(metavar="NAME", help="Only one split of the non-members, as test.", rich_help_panel=_METRICS),
]
Attacked = Annotated[
    int,
    Option(min=20, help="About how many images of each of the two the attacks are tried on.", rich_help_panel=_METRICS),
]
KeepReferencePixels = Annotated[
    bool,
    Option(
        "--keep-reference-pixels",
        help="Leave the pixels of the reference in .cxrsynth-audit when the audit is complete.",
        rich_help_panel=_PRIVACY,
    ),
]
ShowReal = Annotated[
    bool,
    Option(
        "--show-real",
        help="Show the real images that are nearest to audited ones in report.html, which nobody else should then see.",
        rich_help_panel=_PRIVACY,
    ),
]
PatientKey = Annotated[
    Path | None,
    Option(
        "--id-key",
        help="File with the secret key for pseudonyms. Default: a key created once in your user data folder.",
        rich_help_panel=_PRIVACY,
    ),
]
FailUnder = Annotated[
    list[str] | None,
    Option(help="METRIC=VALUE: exit with code 3 if the metric misses the value. Repeatable.", rich_help_panel=_METRICS),
]
CompareWith = Annotated[
    Path | None,
    Option(
        "--compare",
        metavar="PATH",
        help="summary.json of another audit, or its folder: its numbers stand beside this one's.",
        rich_help_panel=_METRICS,
    ),
]
StrictFiles = Annotated[bool, Option("--strict", help="Stop at the first file that cannot be read.")]
AuditSeed = Annotated[
    int, Option("--seed", min=0, max=settings.MOST_SEED, help="Seed for subsampling and confidence intervals.")
]
AuditBatch = Annotated[int, Option("--batch-size", min=1, help="Images per batch.")]
Workers = Annotated[int, Option(min=1, help="Threads that decode images.")]
AuditDevice = Annotated[settings.Device, Option("--device", help="Where the reward models run.")]

# convert.
Source = Annotated[
    Path,
    Argument(
        metavar="SOURCE",
        help="Model folder with pickled weights (.bin), one file (.ckpt, .pt, .safetensors) in the layout of latent"
        " diffusion, or BioViL-T's folder, for --judge.",
        show_default=False,
    ),
]
ModelOut = Annotated[
    Path,
    Argument(
        metavar="OUT",
        help="Folder for the model, or FILE.safetensors for pickled LoRA weights or words; it must not exist yet.",
        show_default=False,
    ),
]
Base = Annotated[
    Path | None,
    Option(
        help="For one file: model folder of the same architecture, for its settings, tokenizers and scheduler, and for"
        " parts that the file lacks."
    ),
]
OriginalConfig = Annotated[
    Path | None,
    Option(help="For one file: the YAML file it was trained with, if its sizes are not those of --base."),
]
Ema = Annotated[bool, Option("--ema", help="For one file: take the averaged weights of the U-Net.")]
ModelName = Annotated[str | None, Option("--name", help="Name of the model, for data sets. Default: the folder's.")]

# recipes.
RecipeName = Annotated[str, Argument(metavar="NAME", help="Name that `cxrsynth recipes list` shows.")]
CopyFolder = Annotated[Path, Argument(metavar="DIR", help="Folder to copy to; it is created if it is missing.")]

# rewards.
RewardName = Annotated[str, Argument(metavar="NAME", help="Name that `cxrsynth rewards list` shows.")]
RewardBackend = Annotated[
    str, Option("--backend", help="Family, folder, or whatever the reward takes; the same as in a recipe.")
]
RewardDevice = Annotated[settings.Device, Option("--device", help="Where nano and the reward run.")]

_REWARD_NAME = re.compile(r"[A-Za-z_][\w.-]*")


def parse_judges(given: Sequence[str]) -> dict[str, str]:
    """`BACKEND` for all rewards, `REWARD=BACKEND` for one: reward -> backend; an audit's family for those not given.

    A path may hold `=`: `REWARD=` is read only before a built-in reward, or before another name that a reward can have
    where the whole text is no existing path.

    Raises:
        BadParameter: where a reward or a backend is empty, or a reward has two backends.
    """
    shared, own = _shared_and_own(given, DEFAULT_FAMILY)
    return dict.fromkeys(REWARDS, shared) | own


def parse_accept_judges(given: Sequence[str], rules: Set[str]) -> str | dict[str, str]:
    """As `parse_judges`, for `--accept`: of the rewards that are not named, only those that the rules need.

    What is left shows whether each named one decides something. Without any, the backend of all rewards.

    Args:
        given: as on the command line.
        rules: names with a threshold.

    Raises:
        BadParameter: as `parse_judges` does.
    """
    shared, own = _shared_and_own(given, TUNING_FAMILY)
    if not own:
        return shared
    # View, sex and age are judged by the classifier of diagnosis.
    needed = rules | ({"diagnosis"} if rules - set(REWARDS) - own.keys() else set())
    return {name: shared for name in REWARDS if name in needed} | own


def _shared_and_own(given: Sequence[str], default: str) -> tuple[str, dict[str, str]]:
    """The backend of the rewards that are not named, and those of the others, by name."""
    shared, own = default, dict[str, str]()
    for text in given:
        name, equals, backend = text.partition("=")
        is_assignment = bool(equals) and (
            name in REWARDS or not (Path(text).exists() or (name and not _REWARD_NAME.fullmatch(name)))
        )
        if not is_assignment:
            shared = text
        elif not name or not backend:
            raise BadParameter(f"{text!r}: expected BACKEND or REWARD=BACKEND", param_hint="--judge")
        elif name in own:
            raise BadParameter(f"{name}: given twice", param_hint="--judge")
        else:
            own[name] = backend
    return shared, own


def parse_numbers(
    option: str, given: Sequence[str], *, low: float = -math.inf, high: float = math.inf
) -> dict[str, float]:
    """`REWARD=NUMBER` of a repeatable option: reward -> number. The number follows the last `=`.

    Raises:
        BadParameter: for another form, a number outside [low, high], or a reward that is given twice.
    """
    found: dict[str, float] = {}
    for text in given:
        name, _, written = text.rpartition("=")
        try:
            value = float(written)
        except ValueError:
            value = math.nan
        if not name or not low <= value <= high:
            span = f" from {low:g} to {high:g}" if math.isfinite(low) else ""
            raise BadParameter(f"{text!r}: expected REWARD=NUMBER{span}, as diagnosis=5", param_hint=option)
        if name in found:
            raise BadParameter(f"{name}: given twice", param_hint=option)
        found[name] = value
    return found


def parse_thresholds(given: Sequence[str], **short: float | None) -> dict[str, float]:
    """`--min REWARD=VALUE` and the short forms `--min-posture VALUE`: reward -> lowest accepted score.

    Raises:
        BadParameter: as `parse_numbers` does, and where both forms name a reward.
    """
    found = parse_numbers("--min", given)
    for name, value in short.items():
        if value is not None:
            if name in found:
                raise BadParameter(f"{name}: given by --min as well", param_hint=f"--min-{name}")
            found[name] = value
    return found
