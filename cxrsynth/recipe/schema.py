"""A recipe of `cxrsynth tune`: the whole truth of a run, read strictly, all errors told at once."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.rewards.backends import REWARDS
from cxrsynth.settings import Device, Precision


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"found {str(value).lower()}, expected a number")
    return value


# Numbers may be text that is one: YAML reads 1e-5 as text.
_PLAIN = BeforeValidator(_no_switch)
_Count = Annotated[int, Field(strict=True)]
_Switch = Annotated[bool, Field(strict=True)]
_Positive = Annotated[_Count, Field(ge=1)]
_Rate = Annotated[float, Field(gt=0), _PLAIN]
_Weight = Annotated[float, Field(ge=0), _PLAIN]


def _known_roles(columns: dict[str, str]) -> dict[str, str]:
    known = ColumnNames.__dataclass_fields__
    unknown = sorted(set(columns) - set(known))
    if unknown:
        raise ValueError(f"unknown role {unknown[0]!r}\n  known roles: {', '.join(known)}")
    return columns


_Columns = Annotated[
    dict[str, str],
    AfterValidator(_known_roles),
    Field(description="role -> column name, as generate's --*-column options"),
]


class _Section(BaseModel):
    # Strict where it counts: no key is passed over. Types are YAML's own, but 1 is a fine 1.0.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(_Section):
    """Which model is tuned. `precision` is that of its forward passes; latents and log-probabilities are float32."""

    checkpoint: str = Field(default="nano", description="nano, a Stable Diffusion folder, or a hub id")
    precision: Precision = Precision.AUTO
    device: Device = Device.AUTO
    gradient_checkpointing: _Switch = Field(
        default=False, description="less memory in updates, about a third more time"
    )


class ReportsSection(_Section):
    """Where reports come from. Held-out reports are never trained on."""

    table: Path = Field(description="CSV, JSONL or Parquet of reports; relative to the recipe")
    columns: _Columns = {}
    limit: _Positive | None = None
    held_out: Path | _Positive = Field(default=100, description="a table of its own, or how many reports of `table`")


class LoraSection(_Section):
    """Low-rank adapters on the UNet's attention (Hu et al., arXiv:2106.09685)."""

    rank: _Positive = 16
    alpha: _Positive | None = Field(default=None, description="scale times rank; default: the rank")


class AceSection(_Section):
    """Adaptive condition embeddings."""

    tokens: _Positive | None = Field(
        default=None, description="positions of the condition that blocks are added to; default, without subspace: 16"
    )
    subspace: _Positive | None = Field(
        default=None,
        description="in place of tokens: learn so many coordinates along the directions in which the reports' prompts"
        " differ most: half of them as a whole, half the same at every position",
    )
    exploration_std: _Rate | None = Field(
        default=None,
        description="each trajectory draws its own shift along those directions, so wide (1: as the prompts spread),"
        " and the embeddings learn from the shifts alone, without a backward pass",
    )

    @model_validator(mode="after")
    def _one_form(self) -> "AceSection":
        if self.subspace is not None and self.tokens is not None:
            raise ValueError("tokens and subspace are two forms of the embeddings: give one of them")
        if self.exploration_std is not None and self.subspace is None:
            raise ValueError("exploration_std needs subspace, the number of directions to explore, as in subspace: 32")
        return self


class TrainSection(_Section):
    """What is trained."""

    unet: Literal["full", "lora", "frozen"] = "full"
    lora: LoraSection = LoraSection()
    ace: _Switch | AceSection = Field(default=True, description="true: {subspace: 32, exploration_std: 0.3}")
    learning_rate: _Rate = Field(default=1.0e-5, description="of the UNet; adapters want far more (nano: 5e-3)")
    ace_learning_rate: _Rate = 1.0e-2
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="cosine: both learning rates fall to zero over the stage's iterations"
    )
    weight_decay: _Weight = 0.0
    ema_decay: Annotated[float, Field(gt=0, lt=1), _PLAIN] | None = Field(
        default=None, description="averaged weights are evaluated"
    )

    @model_validator(mode="after")
    def _something(self) -> "TrainSection":
        if self.unet == "frozen" and not self.ace:
            raise ValueError("nothing is trained: unet is frozen and ace is off")
        return self

    @property
    def ace_section(self) -> AceSection | None:
        """Settings of ACE, None where it is off."""
        if isinstance(self.ace, AceSection):
            return self.ace
        return AceSection(subspace=32, exploration_std=0.3) if self.ace else None


class SamplingSection(_Section):
    """How trajectories are sampled. `guidance` None: what the model folder recommends."""

    steps: Annotated[_Count, Field(ge=2)] = 10
    eta: Annotated[float, Field(gt=0, le=1), _PLAIN] = Field(
        default=1.0, description="0 is deterministic: no log-probabilities"
    )
    guidance: Annotated[float, Field(ge=0), _PLAIN] | None = None
    batch_size: _Positive | None = Field(default=None, description="default: 8, on a CPU 4")


class RewardSection(_Section):
    """One reward. `augment`: mean over so many slightly moved views of each image."""

    weight: _Weight = 1.0
    backend: str = "nano"
    augment: _Positive = 1


class ComparisonSection(_Section):
    """How an image is judged against the baseline's."""

    kind: Literal["margin", "sigmoid", "sign"] = "margin"
    beta: _Rate = Field(default=1.0, description="steepness of sigmoid; margins are in the baseline's own spreads")
    baseline_images: _Positive = Field(default=1, description="per report and x_T; their rewards are averaged")
    pool: _Positive = Field(
        default=4, description="starting noises x_T per report; the baseline's rewards for them are kept"
    )


class AdvantageSection(_Section):
    """How feedback becomes an advantage."""

    clip: _Rate = 5.0
    centre: _Switch = Field(default=True, description="subtract the mean of the report's, or batch's, feedback")
    buffer: _Positive = Field(default=32, description="latest values kept of each report")
    min_count: _Positive = Field(default=8, description="fewer than this: the batch's statistics stand in")


class UpdateSection(_Section):
    """The policy-gradient update. Log-probabilities are means over latent elements; `clip_range` is chosen for that."""

    num_minibatches: _Positive = Field(default=2, description="optimizer steps an iteration")
    inner_epochs: _Positive = 1
    timestep_fraction: Annotated[float, Field(gt=0, le=1), _PLAIN] = Field(
        default=1.0, description="share of each trajectory's steps used"
    )
    clip_range: _Rate = 1.0e-4
    grad_norm: _Rate = 1.0
    kl_weight: _Weight = Field(default=0.0, description="of the divergence from the baseline, closed form")
    micro_batch: _Positive | None = Field(
        default=None, description="denoising steps a forward pass; default: batch_size"
    )


_LOWER_THEN = "; then train.unet: lora in place of full, and model.gradient_checkpointing: true"


class _RLStage(_Section):
    iterations: _Positive
    reports_per_iteration: _Positive = 16
    images_per_report: _Positive = 4
    train: TrainSection = TrainSection()
    sampling: SamplingSection = SamplingSection()
    rewards: dict[str, RewardSection] = Field(
        default_factory=lambda: {name: RewardSection() for name in ("posture", "diagnosis", "consistency")}
    )
    advantage: AdvantageSection = AdvantageSection()
    update: UpdateSection = UpdateSection()

    @property
    def length(self) -> int:
        """Rows of metrics the stage writes, its first evaluation not counted."""
        return self.iterations

    @property
    def memory_advice(self) -> str:
        """What to lower when memory runs out."""
        return f"lower sampling.batch_size and update.micro_batch first{_LOWER_THEN}"

    @property
    def trajectories(self) -> int:
        """Images an iteration samples."""
        return self.reports_per_iteration * self.images_per_report

    @property
    def mirrored(self) -> bool:
        """Whether images come in pairs that differ in the sign of the condition's shift alone."""
        section = self.train.ace_section
        return section is not None and section.exploration_std is not None

    @model_validator(mode="after")
    def _consistent(self) -> "_RLStage":
        if not any(reward.weight > 0 for reward in self.rewards.values()):
            raise ValueError("rewards: none has a weight above zero")
        if self.trajectories % self.update.num_minibatches:
            raise ValueError(
                f"update.num_minibatches {self.update.num_minibatches}: does not divide the {self.trajectories}"
                " trajectories of an iteration (reports_per_iteration x images_per_report)"
            )
        if self.mirrored and self.images_per_report % 2:
            raise ValueError(
                f"images_per_report {self.images_per_report}: expected an even number, as"
                " train.ace.exploration_std uses every shift with both signs"
            )
        return self


class RlcfStage(_RLStage):
    """Reinforcement learning with comparative feedback."""

    stage: Literal["rlcf"]
    comparison: ComparisonSection = ComparisonSection()


class DdpoStage(_RLStage):
    """The same engine on the rewards themselves (DDPO)."""

    stage: Literal["ddpo"]

    @model_validator(mode="after")
    def _centred(self) -> "DdpoStage":
        if not self.advantage.centre:
            raise ValueError("advantage.centre: false keeps the sign of a comparison, and ddpo makes none")
        return self


class SftTrainSection(_Section):
    """What supervised fine-tuning trains."""

    unet: Literal["full", "lora"] = "full"
    lora: LoraSection = LoraSection()
    text_encoder: _Switch = False
    learning_rate: _Rate = Field(default=1.0e-5, description="with adapters about ten times as much")
    warmup: Annotated[_Count, Field(ge=0)] | None = Field(
        default=None, description="steps in which the learning rate rises; default: a tenth of all, at most 500"
    )
    weight_decay: _Weight = 0.01
    grad_norm: _Rate = 1.0
    ema_decay: Annotated[float, Field(gt=0, lt=1), _PLAIN] | None = Field(
        default=0.999, description="averaged weights are kept"
    )


class SftStage(_Section):
    """Supervised denoising on pairs of report and image. Images of held-out reports are left out."""

    stage: Literal["sft"]
    data: Path = Field(description="images with reports: WebDataset, folder or DICOM; relative to the recipe")
    table: Path | None = Field(default=None, description="table that tells of the images; relative to the recipe")
    columns: _Columns = {}
    steps: Annotated[_Count, Field(ge=1, le=999_999)]
    batch_size: _Positive = 16
    micro_batch: _Positive | None = Field(default=None, description="images a forward pass; default: 8, on a CPU 4")
    cond_dropout_prob: Annotated[float, Field(ge=0, lt=1), _PLAIN] = Field(
        default=0.1, description="share of empty prompts"
    )
    min_snr: _Rate | None = Field(
        default=None, description="gamma of min-SNR weights (arXiv:2303.09556), as 5; default: no weights"
    )
    train: SftTrainSection = SftTrainSection()
    checkpoint_every: _Positive = Field(default=500, description="steps")
    cache_gib: _Rate = Field(
        default=16.0, description="room in the run's folder for the images' latents, while it runs"
    )

    @property
    def length(self) -> int:
        """Rows of metrics the stage writes."""
        return self.steps

    @property
    def memory_advice(self) -> str:
        """What to lower when memory runs out."""
        return f"lower micro_batch first{_LOWER_THEN}"

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return min(500, self.steps // 10) if self.train.warmup is None else self.train.warmup


Stage = Annotated[RlcfStage | DdpoStage | SftStage, Field(discriminator="stage")]


class EvaluationSection(_Section):
    """The independent judge, on held-out reports with fixed noise."""

    every: _Positive = Field(default=10, description="iterations between evaluations; the last is always judged")
    reports: _Positive | None = Field(default=None, description="first so many held-out reports; default: all")
    images_per_report: _Positive = 1
    steps: _Positive | None = Field(default=None, description="default: what the model folder recommends, as generate")
    guidance: Annotated[float, Field(ge=0), _PLAIN] | None = None
    evaluator: str | Annotated[dict[str, str], Field(min_length=1)] = Field(
        default="nano-judge", description="backend of the judge's three rewards, or reward -> backend"
    )
    features: str = Field(default="nano-judge", description="where the Frechet distance is measured, as audit's")
    reference: Path | None = Field(
        default=None, description="real images for the Frechet distance; else the baseline's images"
    )
    sheet: Annotated[_Count, Field(ge=0)] = Field(default=12, description="pairs on the contact sheet")
    on_hacking: Literal["warn", "stop"] = Field(default="warn", description="stop: the stage ends with the best so far")
    hacking_margin: _Rate = Field(default=0.1, description="fall of the judge, in spreads of the baseline's rewards")

    @property
    def evaluators(self) -> dict[str, str]:
        """Backend of each reward the judge gives."""
        return dict.fromkeys(REWARDS, self.evaluator) if isinstance(self.evaluator, str) else self.evaluator


class CheckpointSection(_Section):
    """Checkpoints, for going on after a stop."""

    every: _Positive = 10
    keep: _Positive = 2


class Recipe(_Section):
    """Everything one `tune` run does."""

    seed: Annotated[_Count, Field(ge=0, lt=2**62)] = 0  # generators take 64 bits
    model: ModelSection = ModelSection()
    reports: ReportsSection
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    evaluation: EvaluationSection = EvaluationSection()
    checkpoints: CheckpointSection = CheckpointSection()
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
