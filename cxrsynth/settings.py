"""What a user chooses for each command, with the defaults. Light, so that `--help` answers at once."""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from cxrsynth.address import Location

PACKAGED_MODELS = {"nano": "assets", "nano-fast": "fast"}  # and their folders
REWARDS = ("posture", "diagnosis", "consistency")
TUNING_FAMILY = "nano"  # of reward models, to tune with
DEFAULT_FAMILY = "nano-judge"  # of reward models, to audit with
DEFAULT_VERIFIER = "nano"  # of patients

FEWEST_READ, MOST_READ = 4, 500  # images of a reader study
MOST_WORKERS = 64  # processes that encode images
MOST_SEED = 2**63 - 1  # of torch's generators, and of the manifest's readers


class Sampler(StrEnum):
    """DDIM (arXiv:2010.02502), DPM-Solver++ 2M (arXiv:2211.01095), which needs fewer steps, Euler, or the model's own.

    Models that learned by flow matching take Euler and DPM-Solver++. `model` is the scheduler that the model's folder
    names, with all its settings; any noise it draws comes from each image's own noise.
    """

    DDIM = "ddim"
    DPMPP = "dpm++"
    EULER = "euler"
    MODEL = "model"


class Device(StrEnum):
    """Where the networks run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Protocol(StrEnum):
    """Published benchmarks under whose names an audit can report."""

    CHEXGENBENCH = "chexgenbench"


class Precision(StrEnum):
    """Floating-point type of the networks; latents stay float32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class PromptStyle(StrEnum):
    """Prompt format; see `cxrsynth.reports.prompt`."""

    IMPRESSION = "impression"
    FINDINGS = "findings"
    REPORT = "report"
    CANONICAL = "canonical"
    CLASS = "class"


class ShardFormat(StrEnum):
    """Format of a shard."""

    WEBDATASET = "webdataset"
    DICOM = "dicom"


class ImageFormat(StrEnum):
    """Image format in WebDataset shards."""

    PNG = "png"
    JPG = "jpg"
    PNG16 = "png16"


class IncludeText(StrEnum):
    """Whether report text is stored with each image."""

    NONE = "none"
    SANITIZED = "sanitized"


class Deid(StrEnum):
    """How much is removed from report text (see `cxrsynth.sanitize`)."""

    STANDARD = "standard"
    STRICT = "strict"


class SopClass(StrEnum):
    """Secondary Capture, or Computed Radiography Image Storage."""

    SC = "sc"
    CR = "cr"


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How images are sampled. `steps`, `guidance` and `sampler` None: as the model folder recommends.

    `batch_size` None: by device. `threads_per_batch`: CPU threads for each of the batches that run in parallel.
    `compiled`: by `torch.compile`.
    """

    steps: int | None = None
    guidance: float | None = None
    sampler: Sampler | None = None
    batch_size: int | None = None
    threads_per_batch: int = 1
    device: Device = Device.AUTO
    precision: Precision = Precision.AUTO
    compiled: bool = False


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """How samples are written. `size` is images per shard."""

    size: int = 1000
    format: ShardFormat = ShardFormat.WEBDATASET
    image_format: ImageFormat = ImageFormat.PNG
    include_text: IncludeText = IncludeText.NONE
    sop_class: SopClass = SopClass.SC
    unpacked: bool = False
    study_date: str | None = None


@dataclass(frozen=True, kw_only=True)
class AcceptSettings:
    """Which images `generate` accepts; the others are drawn again.

    `thresholds` maps a reward, or an agreement (`view`, `sex`, `age`: log-odds by the classifier of diagnosis), to its
    lowest accepted score. `judges` is the backend of all rewards, or maps rewards to backends. `attempts`: draws of one
    image at most. `only_accepted`: images that never pass are left out. The family that tunes judges here too, so that
    an audit's own stays independent of the selection.
    """

    thresholds: dict[str, float] = field(default_factory=dict)
    judges: str | dict[str, str] = TUNING_FAMILY
    ignored_checks: tuple[str, ...] = ()
    attempts: int = 4
    only_accepted: bool = False


@dataclass(frozen=True)
class Lora:
    """Low-rank weights in a file or folder of diffusers or peft, added `scale` times."""

    path: Path
    scale: float = 1.0


def parse_lora(text: str) -> Lora:
    """`PATH` or `PATH=SCALE`. A path may hold `=`: what exists as a whole is a path.

    Raises:
        ValueError: if the scale is no finite number.
    """
    path, equals, scale = text.rpartition("=")
    if not equals or Path(text).exists():
        return Lora(Path(text))
    try:
        number = float(scale)
    except ValueError:
        number = math.nan
    if not path or not math.isfinite(number):
        raise ValueError(f"{text!r}: expected PATH or PATH=SCALE, the scale a number")
    return Lora(Path(path), number)


@dataclass(frozen=True)
class Additions:
    """What is laid over a model's folder, each in place of or on top of its own part.

    `denoiser` and `vae` are folders of networks, `scheduler` is one with a `scheduler_config.json`: they are used in
    place of the model's, which may lack them. `loras` are merged into the weights of denoiser and text encoders, in
    their order. `embeddings` are safetensors files of words that the text encoder learned (textual inversion).
    """

    denoiser: Path | None = None
    vae: Path | None = None
    scheduler: Path | None = None
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        return self != Additions()


@dataclass(frozen=True)
class Part:
    """One of `count` parts of a data set, numbered from 1: every `count`-th shard, from shard `number` - 1 on."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, shard: int) -> bool:
        """Whether a shard, by its index from 0, belongs to this part."""
        return shard % self.count == self.number - 1


def parse_part(text: str) -> Part:
    """`I/N`, with I from 1 to N.

    Raises:
        ValueError: for anything else.
    """
    number, slash, count = text.strip().partition("/")
    if slash and all(number.isascii() and number.isdecimal() for number in (number, count)):
        part = Part(int(number), int(count))
        if 1 <= part.number <= part.count:
            return part
    raise ValueError(f"{text!r}: expected I/N, such as 1/4 for the first of four parts; I is 1 to N")


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """All choices of one `generate` run.

    `prompt` or `prompt_template` (a template, or the name of a preset) None: as the model folder says. The same holds
    for `negative_prompt`; an empty one is none. `deid` None: strict where text is stored, else standard. `deid_model`
    None: rules alone. `labeler` None: findings are read by rules. `accept` None: each image is drawn once. `part` None:
    all shards. `finish` makes no image: it completes a folder in which all shards are. `workers`: processes that encode
    images; None: by device.
    """

    reports: Location
    out: Location
    model: str = "nano"
    additions: Additions = Additions()
    ace: Path | None = None
    prompt: PromptStyle | None = None
    prompt_template: str | None = None
    negative_prompt: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    images_per_report: int = 1
    seed: int = 0
    limit: int | None = None
    strict: bool = False
    keep_order: bool = False
    per_image: bool = False
    dry_run: bool = False
    deid: Deid | None = None
    deid_model: Path | None = None
    labeler: Path | None = None
    id_key: Path | None = None
    id_map: Path | None = None
    rejected: Path | None = None
    part: Part | None = None
    finish: bool = False
    workers: int | None = None
    sampling: SamplingSettings = SamplingSettings()
    shards: ShardSettings = ShardSettings()
    accept: AcceptSettings | None = None

    @property
    def strength(self) -> Deid:
        """Of the de-identification, of prompts and of text that is stored alike."""
        if self.deid is not None:
            return self.deid
        return Deid.STANDARD if self.shards.include_text is IncludeText.NONE else Deid.STRICT


@dataclass(frozen=True, kw_only=True)
class RuleSettings:
    """Which images are kept. `percentiles` (0 to 100) are those of the reference's own rewards."""

    thresholds: dict[str, float] = field(default_factory=dict)
    percentiles: dict[str, float] = field(default_factory=dict)
    keep_fraction: float | None = None
    ignored_checks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """All choices of one `audit` run.

    `judges` maps rewards to backends. The posture regressor of `family` aligns images for the quality checks and the
    near-duplicate search. `verifier` recognizes patients of the reference. Near-duplicates of `probes` reference images
    are planted to measure how well the search finds them; the kind `autoencoded` with the autoencoder of `generator` (a
    model as `generate` takes it), None for nano's.
    About `attacked` images of `members`, which the model was trained on, and of `non_members` are attacked with it.
    `write_depicts` is a model's folder whose description gets the findings that the images were measured to show.
    `keep_reference_pixels` leaves the pixels of the reference in the audit's state folder. `show_real` shows small
    pictures of the real images that are nearest to audited ones on the page. `protocol` is a benchmark
    whose names and published rows are reported. `utility_model` is a network that `utility` trains in place of a probe.
    `reader_study` is how many images a reader study is made of, half of them real; `reader_answers` are the files its
    readers saved. `id_key` None: the key in the user's data folder. `out` None: beside the input. `labeler` None: rules
    read findings from reports. `split` and `reference_split` are parts of data sets whose splits are known; None for
    all.
    """

    shards: Location
    reference: Location | None = None
    out: Path | None = None
    table: Location | None = None
    reference_table: Location | None = None
    split: str | None = None
    reference_split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    labeler: Path | None = None
    judges: dict[str, str] = field(default_factory=dict)
    family: str = DEFAULT_FAMILY
    features: str = DEFAULT_FAMILY
    verifier: str = DEFAULT_VERIFIER
    rules: RuleSettings = RuleSettings()
    write_kept: Path | None = None
    write_depicts: Path | None = None
    shard_size: int = 1000
    utility: bool = False
    utility_model: str | None = None
    probes: int = 100
    generator: str | None = None
    members: Location | None = None
    non_members: Location | None = None
    members_table: Location | None = None
    non_members_table: Location | None = None
    members_split: str | None = None
    non_members_split: str | None = None
    attacked: int = 500
    keep_reference_pixels: bool = False
    show_real: bool = False
    protocol: Protocol | None = None
    reader_study: int | None = None
    reader_answers: tuple[Path, ...] = ()
    id_key: Path | None = None
    fail_under: tuple[str, ...] = ()
    compare: Path | None = None
    strict: bool = False
    seed: int = 0
    batch_size: int = 16
    workers: int = 2
    device: Device = Device.AUTO


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """All choices of one `convert` run.

    `base` is a model folder of the same architecture as a single file, for its settings, tokenizers and scheduler, and
    for parts that the file lacks. `original_config` is the YAML file that the checkpoint was trained with; sizes are
    then read from it. `ema` takes the averaged weights of the U-Net. `name` None: the folder's.
    """

    source: Path
    out: Path
    base: Path | None = None
    original_config: Path | None = None
    ema: bool = False
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """All choices of one `tune` run. `out` None: runs/ and the recipe's name.

    `export` writes the model of an unfinished run and trains nothing; `from_best` goes on from the best checkpoint with
    other learning rates or iterations. `max_wait_minutes`: how long a process waits for the others.
    """

    recipe: Path
    out: Path | None = None
    overrides: tuple[str, ...] = ()
    dry_run: bool = False
    export: bool = False
    from_best: bool = False
    max_wait_minutes: float = 30.0
