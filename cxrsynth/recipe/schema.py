"""What a recipe of `cxrsynth tune` may say: every section and key, in the order of a recipe file.

The descriptions here are what `recipe_reference` prints and what editors show (recipes/recipe.schema.json).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.reports.template import PromptFormat, parse_template
from cxrsynth.rewards.backends import REWARDS
from cxrsynth.settings import TUNING_FAMILY, Additions, Device, Precision, PromptStyle, Sampler, parse_lora


class Section(BaseModel):
    """A section of a recipe. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _refuse_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"found {str(value).lower()}, expected a number")
    return value


def _refuse_extreme(value: float) -> float:
    size = abs(value)
    if size > _LARGEST:
        raise ValueError(f"found {value:g}, expected at most {_LARGEST:g}")
    if 0 < size < 1 / _LARGEST:
        raise ValueError(f"found {value:g}, expected {1 / _LARGEST:g} or more")
    return value


def _check_roles(columns: dict[str, str]) -> dict[str, str]:
    known = ColumnNames.__dataclass_fields__
    unknown = sorted(set(columns) - set(known))
    if unknown:
        raise ValueError(f"unknown role {unknown[0]!r}\n  known roles: {', '.join(known)}")
    return columns


# What is computed with larger or smaller numbers soon leaves float32: sums become infinite, steps zero.
_LARGEST = 1e30

# Counts and switches are strict. A float may also be text that spells a number, since YAML reads 1e-5 as text.
_REFUSE_SWITCH, _REFUSE_EXTREME = BeforeValidator(_refuse_switch), AfterValidator(_refuse_extreme)
_Switch = Annotated[bool, Field(strict=True)]
_Count = Annotated[int, Field(strict=True)]
_AtLeastOne = Annotated[_Count, Field(ge=1)]
_AtLeastZero = Annotated[_Count, Field(ge=0)]
# What is held in memory at once, for each report or in one forward pass.
_AFew = Annotated[_Count, Field(ge=1, le=1000)]
_PassSize = Annotated[_Count, Field(ge=1, le=10_000)]
_Positive = Annotated[float, Field(gt=0), _REFUSE_SWITCH, _REFUSE_EXTREME]
_NotNegative = Annotated[float, Field(ge=0), _REFUSE_SWITCH, _REFUSE_EXTREME]
_Fraction = Annotated[float, Field(gt=0, le=1), _REFUSE_SWITCH, _REFUSE_EXTREME]
_Probability = Annotated[float, Field(ge=0, lt=1), _REFUSE_SWITCH, _REFUSE_EXTREME]
_Decay = Annotated[float, Field(gt=0, lt=1), _REFUSE_SWITCH, _REFUSE_EXTREME]
_Columns = Annotated[dict[str, str], AfterValidator(_check_roles)]


def _lora(text: str) -> str:
    parse_lora(text)
    return text


def _template(text: str) -> str:
    parse_template(text)
    return text


class ModelSection(Section):
    """The model to tune."""

    checkpoint: str = Field(
        default="nano",
        description="`nano`, `nano-fast`, a model folder in diffusers' layout, or a Hugging Face model"
        " `owner/name[@revision]`.",
    )
    unet: Path | None = Field(
        default=None, description="Folder of a UNet or transformer to start from in place of the checkpoint's."
    )
    vae: Path | None = Field(default=None, description="Folder of an autoencoder in place of the checkpoint's.")
    scheduler: Path | None = Field(
        default=None, description="Folder of a scheduler, or of a model with one, in place of the checkpoint's."
    )
    lora: tuple[Annotated[str, AfterValidator(_lora)], ...] = Field(
        default=(), description="LoRA weights of diffusers or peft to start with: `PATH` or `PATH=SCALE`."
    )
    embeddings: tuple[Path, ...] = Field(
        default=(), description="Words that the text encoder learned by textual inversion (safetensors), or a hub id."
    )
    prompt: PromptStyle | None = Field(
        default=None,
        description="Prompt format, as `generate --prompt` takes it; default: the model's own, see `cxrsynth.json`. The"
        " tuned model's `cxrsynth.json` records it.",
    )
    prompt_template: Annotated[str, AfterValidator(_template)] | None = Field(
        default=None,
        description="A template in place of `prompt`, or the name of a preset, as `--prompt-template` of `generate`.",
    )
    precision: Precision = Field(
        default=Precision.AUTO,
        description="Floating-point type of forward passes. Latents and log-probabilities are always float32;"
        " `fp16` is refused, because policy gradients are known to collapse in it.",
    )
    device: Device = Field(default=Device.AUTO, description="Where the networks run.")
    gradient_checkpointing: _Switch = Field(
        default=False, description="Use less memory in updates, at about a third more time."
    )

    @model_validator(mode="after")
    def _check_one_format(self) -> "ModelSection":
        if self.prompt is not None and self.prompt_template is not None:
            raise ValueError("prompt and prompt_template: found both\n  expected: one of them")
        return self

    @property
    def prompt_format(self) -> PromptFormat | None:
        """The prompt format that the recipe asks for, None for the model's own."""
        return self.prompt if self.prompt_template is None else parse_template(self.prompt_template)

    @property
    def additions(self) -> Additions:
        """What is laid over the checkpoint."""
        loras = tuple(parse_lora(text) for text in self.lora)
        return Additions(
            denoiser=self.unet, vae=self.vae, scheduler=self.scheduler, loras=loras, embeddings=self.embeddings
        )


class ReportsSection(Section):
    """The reports to train on, those held out, and those of the test. The last two are never trained on.

    The sets are kept apart by patient where a column of patient ids is known, else by report. No report text stands in
    two sets, whatever its case, white space and punctuation.
    """

    table: Path = Field(description="CSV, JSON, Parquet or Excel table of reports; relative to the recipe.")
    columns: _Columns = Field(
        default={},
        description="Role -> column name, as in the `--*-column` options of `generate`, and `patient_id`; by default,"
        " `patient_id`, `subject_id`, `patient`, `subject`, `pid`, `person_id` or `mrn` is the column of patients.",
    )
    limit: _AtLeastOne | None = Field(default=None, description="Use only the first so many usable rows of the table.")
    held_out: Path | _AtLeastOne = Field(
        default=100,
        description="A table of held-out reports, or how many reports of `table` to hold out. They select the"
        " checkpoint.",
    )
    test: Path | _AtLeastZero | None = Field(
        default=None,
        description="A table of test reports, or how many reports of `table` to take; 0: none. They are looked at once,"
        " with the weights that the last stage of reinforcement learning has chosen, and the model card shows the"
        " result. Default: as many as are evaluated of those held out, but at most a quarter of the other reports, and"
        " none if that is fewer than 2.",
    )
    labeler: Path | None = Field(
        default=None,
        description="Folder of a BERT labeler in CheXbert's layout, or a hub id `owner/name@revision`, that reads the"
        " labels of all reports, those of the images of a stage `sft`, too; default: rules.",
    )


class LoraSection(Section):
    """Low-rank adapters on the attention of the UNet or transformer (Hu et al., arXiv:2106.09685)."""

    rank: _AtLeastOne = Field(default=16, description="Rank of each adapter.")
    alpha: Annotated[_Count, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Scale times rank; default: the rank."
    )


_LOWER_NEXT = "; then train.unet: lora in place of full, and model.gradient_checkpointing: true"


class SftTrainSection(Section):
    """What supervised fine-tuning trains, and how fast."""

    unet: Literal["full", "lora"] = Field(default="full", description="Train all weights, or low-rank adapters.")
    lora: LoraSection = Field(default=LoraSection(), description="Adapters, with `unet: lora`.")
    text_encoder: _Switch = Field(default=False, description="Train the text encoder too.")
    learning_rate: _Positive = Field(
        default=1.0e-5, description="Learning rate; adapters want about ten times as much."
    )
    warmup: _AtLeastZero | None = Field(
        default=None,
        description="Steps over which the learning rate rises; default: a tenth of all steps, at most 500.",
    )
    weight_decay: _NotNegative = Field(default=0.01, description="Weight decay of AdamW.")
    grad_norm: _Positive = Field(default=1.0, description="Gradients are clipped to this norm.")
    ema_decay: _Decay | None = Field(
        default=0.999,
        description="Decay of the averaged weights, which become the model, at most (1 + n)/(10 + n)"
        " after n steps; null: no averaging.",
    )


class SftStage(Section):
    """Supervised fine-tuning on pairs of report and image.

    Images of held-out and test reports are left out, as are other images of their patients and of the same report text.
    """

    stage: Literal["sft"] = Field(description="Kind of stage.")
    data: Path = Field(description="Images with reports: WebDataset shards, a folder or DICOM; relative to the recipe.")
    table: Path | None = Field(
        default=None, description="Table with the metadata and reports of the images; relative to the recipe."
    )
    columns: _Columns = Field(default={}, description="Role -> column name in that table.")
    steps: Annotated[_Count, Field(ge=1, le=999_999)] = Field(description="Optimizer steps.")
    batch_size: _AtLeastOne = Field(default=16, description="Images per step.")
    micro_batch: _PassSize | None = Field(default=None, description="Images per forward pass; default: 8, on a CPU 4.")
    cond_dropout_prob: _Probability | None = Field(
        default=None,
        description="Probability of an empty prompt, which classifier-free guidance needs; default: 0.1, 0 for models"
        " without text.",
    )
    min_snr: _Positive | None = Field(
        default=None, description="Gamma of min-SNR weights (arXiv:2303.09556), for example 5; default: no weights."
    )
    train: SftTrainSection = Field(default=SftTrainSection(), description="What is trained.")
    checkpoint_every: _AtLeastOne = Field(default=500, description="Steps between checkpoints.")
    cache_gib: _Positive = Field(
        default=16.0, description="Disk space in the run folder for encoded images (GiB), freed when the stage ends."
    )

    @property
    def length(self) -> int:
        """Rows of metrics the stage writes."""
        return self.steps

    @property
    def memory_advice(self) -> str:
        """What to lower when memory runs out."""
        return f"lower micro_batch first{_LOWER_NEXT}"

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return min(500, self.steps // 10) if self.train.warmup is None else self.train.warmup


class DistillTrainSection(Section):
    """What distillation trains, and how fast."""

    unet: Literal["full", "lora"] = Field(default="full", description="Train all weights, or low-rank adapters.")
    lora: LoraSection = Field(default=LoraSection(), description="Adapters, with `unet: lora`.")
    learning_rate: _Positive = Field(
        default=1.0e-4, description="Learning rate; adapters want about ten times as much."
    )
    warmup: _AtLeastZero | None = Field(
        default=None,
        description="Steps over which the learning rate rises; default: a tenth of all steps, at most 100.",
    )
    cooldown: _AtLeastZero | None = Field(
        default=None,
        description="Steps at the end over which the learning rate falls to zero; default: a third of all steps.",
    )
    weight_decay: _NotNegative = Field(default=0.0, description="Weight decay of AdamW.")
    grad_norm: _Positive = Field(default=1.0, description="Gradients are clipped to this norm.")
    ema_decay: _Decay | None = Field(
        default=0.995,
        description="Decay of the averaged weights, which become the model, at most (1 + n)/(10 + n)"
        " after n steps; null: no averaging.",
    )


class TeacherSection(Section):
    """How the model that is distilled samples: the one that the stage starts from, as `generate` would use it."""

    steps: _AtLeastOne | None = Field(
        default=None,
        description="Denoising steps, which must visit the noise levels of the distilled model: mostly a multiple of"
        " its steps. Default: what the model folder recommends, or the nearest count that visits them.",
    )
    sampler: Literal["ddim", "dpm++", "euler"] | None = Field(
        default=None,
        description="Sampler; default: what the model folder recommends, `dpm++` where that is `model`, which may draw"
        " noise at each step.",
    )
    guidance: _NotNegative | None = Field(
        default=None,
        description="Classifier-free guidance scale, which the distilled model has learned and no longer needs;"
        " default: what the model folder recommends.",
    )


class DistillStage(Section):
    """Distillation: a model that needs a few denoising steps without guidance, in place of many with it.

    The teacher samples trajectories of the training reports; no real images are needed. The distilled model learns to
    land, from where the teacher was, where the teacher went many steps later. With `data`, each of its steps begins at
    an image with noise, in place of where the one before it ended.
    """

    stage: Literal["distill"] = Field(description="Kind of stage.")
    sampling_steps: Annotated[_Count, Field(ge=1, le=16)] = Field(
        default=4, description="Denoising steps of the distilled model."
    )
    teacher: TeacherSection = Field(default=TeacherSection(), description="How trajectories are sampled.")
    data: Path | None = Field(
        default=None,
        description="Images with reports to learn from, as for `sft`: each of the distilled model's steps begins at a"
        " noised image. Default: none, the teacher starts from noise. Relative to the recipe.",
    )
    table: Path | None = Field(
        default=None, description="With `data`: table with the images' metadata and reports; relative to the recipe."
    )
    columns: _Columns = Field(default={}, description="With `data`: role -> column name in that table.")
    trajectories: _AtLeastOne = Field(
        default=4096,
        description="Trajectories that the teacher samples, in turn of the training reports or, with `data`, of the"
        " images; each is learned from many times.",
    )
    steps: Annotated[_Count, Field(ge=1, le=999_999)] = Field(description="Optimizer steps.")
    batch_size: _AtLeastOne = Field(default=32, description="Denoising steps of trajectories per optimizer step.")
    micro_batch: _PassSize | None = Field(default=None, description="Latents per forward pass; default: 8, on a CPU 4.")
    train: DistillTrainSection = Field(default=DistillTrainSection(), description="What is trained.")
    checkpoint_every: _AtLeastOne = Field(default=500, description="Steps between checkpoints.")
    cache_gib: _Positive = Field(
        default=16.0,
        description="Disk space in the run folder for trajectories, and as much for encoded images (GiB), freed when"
        " the stage ends.",
    )

    @model_validator(mode="after")
    def _check_one_pass_of_the_batch(self) -> "DistillStage":
        if self.batch_size > self.trajectories:
            raise ValueError(
                f"batch_size {self.batch_size}: more than the {self.trajectories} trajectories\n"
                "  expected: at most as many"
            )
        if self.data is None and (self.table is not None or self.columns):
            raise ValueError(f"{'columns' if self.table is None else 'table'}: of no images\n  expected: data, too")
        return self

    @property
    def length(self) -> int:
        """Rows of metrics the stage writes, its evaluation not counted."""
        return self.steps

    @property
    def memory_advice(self) -> str:
        """What to lower when memory runs out."""
        return f"lower micro_batch first{_LOWER_NEXT}"

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return min(100, self.steps // 10) if self.train.warmup is None else self.train.warmup

    def decay(self, step: int) -> float:
        """Share of the learning rate at a step, counted from 0: 1, then falling to zero."""
        over = self.steps // 3 if self.train.cooldown is None else self.train.cooldown
        return min(1.0, (self.steps - step) / max(1, over))


class AceSection(Section):
    """Adaptive condition embeddings (ACE), added to the text embeddings: either free `tokens` or a `subspace`."""

    tokens: _AtLeastOne | None = Field(
        default=None,
        description="How many positions of the condition learned embeddings are added to; default, without `subspace`:"
        " 16.",
    )
    subspace: _AtLeastOne | None = Field(
        default=None,
        description="In place of `tokens`: learn this many coordinates along the directions in which the prompts of"
        " the reports differ most. Half of the directions are of the whole condition, half are the same at every"
        " position.",
    )
    exploration_std: _Positive | None = Field(
        default=None,
        description="Give each trajectory a random shift along those directions, with this standard deviation (1: as"
        " the prompts themselves vary). The embeddings then learn from the shifts alone, without a backward pass.",
    )
    kl_weight: _NotNegative | None = Field(
        default=None,
        description="With `exploration_std`: weight of the KL divergence of the shifts to none, the baseline's;"
        " default: that of `forward` or `update`.",
    )

    @model_validator(mode="after")
    def _check_form(self) -> "AceSection":
        if self.subspace is not None and self.tokens is not None:
            raise ValueError("tokens and subspace are two forms of the embeddings: give one of them")
        if self.exploration_std is not None and self.subspace is None:
            raise ValueError("exploration_std needs subspace, the number of directions to explore, as in subspace: 32")
        if self.kl_weight is not None and self.exploration_std is None:
            raise ValueError("kl_weight is of shifts, and none are explored: give exploration_std, as in 0.3")
        return self


class TrainSection(Section):
    """What reinforcement learning trains, and how fast."""

    unet: Literal["full", "lora", "frozen"] = Field(
        default="full", description="Train all weights, low-rank adapters, or nothing of the UNet or transformer."
    )
    lora: LoraSection = Field(default=LoraSection(), description="Adapters, with `unet: lora`.")
    ace: _Switch | AceSection = Field(
        default=True, description="true: {subspace: 32, exploration_std: 0.3}; false: no embeddings."
    )
    learning_rate: _Positive = Field(
        default=1.0e-5, description="Learning rate of the UNet or transformer; adapters want far more (nano: 5e-3)."
    )
    ace_learning_rate: _Positive = Field(default=1.0e-2, description="Learning rate of ACE.")
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="`cosine`: both learning rates fall to zero over the stage's iterations."
    )
    weight_decay: _NotNegative = Field(default=0.0, description="Weight decay of AdamW.")
    ema_decay: _Decay | None = Field(
        default=None,
        description="Decay of the averaged weights, which are then evaluated, at most (1 + n)/(10 + n)"
        " after n optimizer steps; null: no averaging.",
    )

    @model_validator(mode="after")
    def _check_something_trains(self) -> "TrainSection":
        if self.unet == "frozen" and not self.ace:
            raise ValueError("nothing is trained: unet is frozen and ace is off")
        return self

    @property
    def ace_section(self) -> AceSection | None:
        """Settings of ACE, None where it is off."""
        if isinstance(self.ace, AceSection):
            return self.ace
        return AceSection(subspace=32, exploration_std=0.3) if self.ace else None


class SamplingSection(Section):
    """How the images that are learned from are sampled."""

    steps: Annotated[_Count, Field(ge=2)] = Field(default=10, description="Denoising steps.")
    sampler: Sampler | None = Field(
        default=None, description="With `objective: forward`: the sampler; default: what the model folder recommends."
    )
    eta: _Fraction | None = Field(
        default=None,
        description="With `objective: policy_gradient`: noise of each DDIM step; default: 1. 0 is deterministic, has no"
        " log-probabilities, and is refused.",
    )
    guidance: _NotNegative | None = Field(
        default=None,
        description="Classifier-free guidance scale, 1: none; default: what the model folder recommends.",
    )
    batch_size: _PassSize | None = Field(default=None, description="Images per forward pass; default: 8, on a CPU 4.")


class RewardSection(Section):
    """One reward, under its name: `posture`, `diagnosis`, `consistency`, or your own."""

    weight: Annotated[float, Field(ge=0, le=1e6), _REFUSE_SWITCH, _REFUSE_EXTREME] = Field(
        default=1.0, description="Weight in the total; 0 leaves the reward out."
    )
    backend: str | Annotated[tuple[str, ...], Field(min_length=2)] = Field(
        default=TUNING_FAMILY,
        description="Reward model: a name, or a folder relative to the recipe. A list of several is an ensemble: the"
        " mean of their values, which must have the same unit.",
    )
    std_weight: _NotNegative | None = Field(
        default=None,
        description="Of an ensemble: subtract this many standard deviations between its models, so that images on which"
        " they disagree are worth less; default: 0.5.",
    )
    augment: Annotated[_Count, Field(ge=1, le=100)] = Field(
        default=1, description="Average the reward over this many slightly shifted views of each image."
    )

    @property
    def backends(self) -> tuple[str, ...]:
        """The reward models, one or several."""
        return (self.backend,) if isinstance(self.backend, str) else self.backend

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        """Write out the default of an ensemble."""
        several = isinstance(data, dict) and isinstance(data.get("backend"), list | tuple)
        return data | {"std_weight": 0.5} if several and data.get("std_weight") is None else data

    @model_validator(mode="after")
    def _check_ensemble(self) -> "RewardSection":
        if len(set(self.backends)) < len(self.backends):
            raise ValueError("backend names a reward model twice, expected different ones")
        if self.std_weight is not None and len(self.backends) == 1:
            raise ValueError("std_weight is of an ensemble, and backend is a single reward model\n  expected: a list")
        return self


class ComparisonSection(Section):
    """How an image's rewards are compared."""

    kind: Literal["win_probability", "margin", "group", "sigmoid", "sign"] | None = Field(
        default=None,
        description="With `objective: forward`: the probability that the image beats one of the frozen baseline's"
        " (`win_probability`, the default), the clipped mean difference (`margin`), or the difference from the other"
        " images of the report, without a baseline (`group`). With `objective: policy_gradient`: the difference from"
        " the baseline's image in standard deviations (`margin`, the default), its `sigmoid`, scaled to (-1, 1), or its"
        " `sign`.",
    )
    temperature: _Positive | None = Field(
        default=None,
        description="Of `win_probability`: the difference, in standard deviations of the baseline's rewards, that wins"
        " with a probability of 0.73; default: 0.5.",
    )
    centre: _Switch | None = Field(
        default=None,
        description="Of `win_probability` and `margin` with `objective: forward`: subtract the mean of the report's"
        " other images, by default. `false` keeps what the report's images have in common, which is mostly how strong"
        " the few images of the baseline are: an image better than the baseline's then counts as good, however good the"
        " others are. Without effect where a report has one image, or one mirrored pair.",
    )
    beta: _Positive | None = Field(default=None, description="Steepness of `sigmoid`; default: 1.")
    baseline_images: _AFew | None = Field(
        default=None,
        description="With `objective: forward`: images of the baseline for each report, 4 by default. With `objective:"
        " policy_gradient`: for each report and x_T, 1 by default; their rewards are averaged.",
    )
    pool: _AFew | None = Field(
        default=None,
        description="With `objective: policy_gradient`: different starting noises x_T per report, 4 by default. The"
        " baseline's rewards for each are computed once.",
    )


class AdvantageSection(Section):
    """How feedback becomes an advantage: normalized by the latest feedback of the same report."""

    clip: _Positive = Field(default=5.0, description="Advantages are clipped to plus or minus this.")
    centre: _Switch = Field(default=True, description="Subtract the mean feedback of the report, or of the batch.")
    buffer: _AtLeastOne = Field(default=32, description="Latest values kept for each report.")
    min_count: _AtLeastOne = Field(
        default=8, description="With fewer values of a report, the statistics of the batch are used; at most `buffer`."
    )

    @model_validator(mode="after")
    def _check_buffer_suffices(self) -> "AdvantageSection":
        if self.min_count > self.buffer:
            raise ValueError(
                f"min_count {self.min_count}: more than the buffer of {self.buffer} values ever holds\n"
                "  expected: min_count of at most buffer"
            )
        return self


class ForwardSection(Section):
    """The update of `objective: forward`: sampled images are noised again, and the prediction is moved."""

    num_minibatches: _AtLeastOne = Field(
        default=4, description="Minibatches an iteration's images are split into: one optimizer step each."
    )
    timesteps: _AFew = Field(default=4, description="Noise levels at which each image is learned from.")
    common_noise: _Switch = Field(
        default=True,
        description="Whether a report's images are learned from at the same noise levels and with the same noise: what"
        " they have in common then cancels out of the gradient.",
    )
    strength: _Positive = Field(
        default=1.0, description="How far the implicit good and bad policies stand from the one that sampled."
    )
    weighting: Literal["velocity", "adaptive"] = Field(
        default="velocity",
        description="Unit of the error: that of the velocity, or the squared error of the clean latents divided by its"
        " mean absolute value, as published, which was not measured here.",
    )
    old_decay: Annotated[float, Field(ge=0, lt=1), _REFUSE_SWITCH, _REFUSE_EXTREME] = Field(
        default=0.3, description="How much of itself the policy that samples keeps after an iteration."
    )
    old_warmup: _AtLeastZero = Field(
        default=0, description="Iterations over which that share rises from 0; the first are then on-policy."
    )
    kl_weight: _NotNegative = Field(
        default=0.3,
        description="Weight of the squared distance of the prediction to the baseline's and, where ACE explores, of the"
        " KL divergence of its shifts to the baseline's, which has none.",
    )
    max_norm_ratio: Annotated[float, Field(ge=1), _REFUSE_SWITCH, _REFUSE_EXTREME] | None = Field(
        default=None,
        description="Guided predictions longer than the baseline's by more than this factor are penalized; null: no"
        " bound, and two forward passes fewer for each image and noise level.",
    )
    grad_norm: _Positive = Field(default=1.0, description="Gradients are clipped to this norm.")
    micro_batch: _PassSize | None = Field(
        default=None, description="Noisy images per forward pass; default: `sampling.batch_size`."
    )


class UpdateSection(Section):
    """The update of `objective: policy_gradient`."""

    num_minibatches: _AtLeastOne = Field(
        default=2, description="Minibatches an iteration's trajectories are split into: one optimizer step each."
    )
    inner_epochs: _AtLeastOne = Field(default=1, description="Passes over the trajectories of an iteration.")
    timestep_fraction: _Fraction = Field(
        default=1.0, description="Fraction of each trajectory's denoising steps used in the update."
    )
    clip_range: _Positive = Field(
        default=1.0e-4,
        description="Ratios are clipped to 1 plus or minus this. Log-probabilities are means over latent elements, so"
        " it is small.",
    )
    grad_norm: _Positive = Field(default=1.0, description="Gradients are clipped to this norm.")
    kl_weight: _NotNegative = Field(
        default=0.0, description="Weight of the KL divergence from the baseline, computed in closed form."
    )
    micro_batch: _PassSize | None = Field(
        default=None, description="Denoising steps per forward pass; default: `sampling.batch_size`."
    )


_MOST_IMAGES = 1_000_000  # of an iteration: all are planned at once


class ReinforcementStage(Section):
    """Keys that the stages `rlcf` and `ddpo` share."""

    objective: Literal["forward", "policy_gradient"] = Field(
        default="forward",
        description="`forward`: noise the sampled images again and move the prediction towards good and away from bad"
        " ones (DiffusionNFT). `policy_gradient`: raise the log-probability of good denoising steps (DDPO, and the"
        " published method of CXRL).",
    )
    iterations: Annotated[_Count, Field(ge=1, le=999_999)] = Field(description="Rounds of sampling and updating.")
    reports_per_iteration: _AtLeastOne = Field(default=16, description="Reports sampled in an iteration.")
    images_per_report: _AtLeastOne = Field(default=4, description="Images of each report.")
    train: TrainSection = Field(default=TrainSection(), description="What is trained.")
    sampling: SamplingSection = Field(default=SamplingSection(), description="How images are sampled.")
    rewards: dict[str, RewardSection] = Field(
        default_factory=lambda: {name: RewardSection() for name in ("posture", "diagnosis", "consistency")},
        description="Rewards by name; default: all three, with weight 1.",
    )
    forward: ForwardSection | None = Field(default=None, description="The update of `objective: forward`.")
    advantage: AdvantageSection | None = Field(
        default=None, description="With `objective: policy_gradient`: how feedback becomes an advantage."
    )
    update: UpdateSection | None = Field(default=None, description="The update of `objective: policy_gradient`.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        """Write out the defaults that depend on the objective."""
        if not isinstance(data, dict):
            return data
        filled = dict(data)
        forward = filled.get("objective", "forward") == "forward"

        def default(section: str, **values: Any) -> None:
            given = filled.get(section)
            if given is None or isinstance(given, dict):
                filled[section] = values | {key: value for key, value in (given or {}).items() if value is not None}

        default(*("forward",) if forward else ("update",))
        if not forward:
            default("advantage")
            default("sampling", eta=1.0)
        if "comparison" in cls.model_fields:
            given = filled.get("comparison")
            kind = given.get("kind") if isinstance(given, dict) else None
            default("comparison", **_comparison_defaults(forward=forward, kind=kind))
        return filled

    @property
    def length(self) -> int:
        """Rows of metrics the stage writes, its first evaluation not counted."""
        return self.iterations

    @property
    def memory_advice(self) -> str:
        """What to lower when memory runs out."""
        section = "forward" if self.forward is not None else "update"
        return f"lower sampling.batch_size and {section}.micro_batch first{_LOWER_NEXT}"

    @property
    def images(self) -> int:
        """Images an iteration samples."""
        return self.reports_per_iteration * self.images_per_report

    @property
    def mirrored(self) -> bool:
        """Whether images come in pairs that differ only in the sign of the condition's shift."""
        section = self.train.ace_section
        return section is not None and section.exploration_std is not None

    def _alone(self) -> Iterator[str]:
        """A message if an image has no others of its report to be compared with."""
        if self.images_per_report > (2 if self.mirrored else 1):
            return
        least = "4, because its mirror image (train.ace.exploration_std) does not count" if self.mirrored else "2"
        yield (
            f"images_per_report {self.images_per_report}: an image is compared with the others of its report\n"
            f"  expected: at least {least}"
        )

    @property
    def num_minibatches(self) -> int:
        """Optimizer steps of one pass over an iteration's images."""
        return next(one.num_minibatches for one in (self.forward, self.update) if one is not None)

    @model_validator(mode="after")
    def _check_objective(self) -> "ReinforcementStage":
        problems = list(self._contradictions())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _contradictions(self) -> Iterator[str]:
        """What does not go together, one message each."""
        forward = self.objective == "forward"
        misplaced = {
            "forward": (self.forward is not None, "forward"),
            "sampling.sampler": (self.sampling.sampler is not None, "forward"),
            "update": (self.update is not None, "policy_gradient"),
            "advantage": (self.advantage is not None, "policy_gradient"),
            "sampling.eta": (self.sampling.eta is not None, "policy_gradient"),
        }
        for key, (given, owner) in misplaced.items():
            if given and owner != self.objective:
                yield f"{key}: belongs to objective: {owner}, and this stage has objective: {self.objective}"
        if forward and (self.update is not None or self.advantage is not None):
            yield "  before version 0.3.0, objective: policy_gradient was the only one: add it to keep what was done"
        if not any(reward.weight > 0 for reward in self.rewards.values()):
            yield "rewards: none has a weight above zero"
        if self.images > _MOST_IMAGES:
            yield (
                f"reports_per_iteration {self.reports_per_iteration} x images_per_report {self.images_per_report}:"
                f" {self.images:,} images an iteration\n  expected: at most {_MOST_IMAGES:,}"
            )
        section = "forward" if forward else "update"
        if self.images % self.num_minibatches:
            yield (
                f"{section}.num_minibatches {self.num_minibatches}: does not divide the {self.images} images of an"
                " iteration (reports_per_iteration x images_per_report)"
            )
        if self.mirrored and self.images_per_report % 2:
            yield (
                f"images_per_report {self.images_per_report}: expected an even number, because"
                " train.ace.exploration_std uses every shift with both signs"
            )


def _comparison_defaults(*, forward: bool, kind: Any) -> dict[str, Any]:
    if not forward:
        return {"kind": "margin", "baseline_images": 1, "pool": 4} | ({"beta": 1.0} if kind == "sigmoid" else {})
    compared = {"baseline_images": 4, "centre": True}
    of_kind: dict[str, dict[str, Any]] = {"group": {}, "margin": compared}
    return {"kind": "win_probability"} | of_kind.get(str(kind), compared | {"temperature": 0.5})


# Which keys of `comparison` go with which objective and kind.
_KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "forward": {
        "win_probability": ("temperature", "baseline_images", "centre"),
        "margin": ("baseline_images", "centre"),
        "group": (),
    },
    "policy_gradient": {
        "margin": ("baseline_images", "pool"),
        "sigmoid": ("beta", "baseline_images", "pool"),
        "sign": ("baseline_images", "pool"),
    },
}


class RlcfStage(ReinforcementStage):
    """Reinforcement learning with comparative feedback: rewards relative to the baseline's image (CXRL)."""

    stage: Literal["rlcf"] = Field(description="Kind of stage.")
    comparison: ComparisonSection = Field(
        default=ComparisonSection(), description="How rewards are compared with the baseline's."
    )

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        kinds, kind = _KINDS[self.objective], self.comparison.kind
        if kind not in kinds:
            yield (f"comparison.kind {kind}: not one of objective: {self.objective}\n  expected: {', '.join(kinds)}")
        used = kinds[kind] if kind in kinds else tuple(key for keys in kinds.values() for key in keys)
        by = f"kind: {kind} of " if kind in kinds else ""
        for key in ("temperature", "beta", "baseline_images", "pool", "centre"):
            if getattr(self.comparison, key) is not None and key not in used:
                yield f"comparison.{key}: not used by {by}objective: {self.objective}, leave it out or set it to null"
        if kind == "group":
            yield from self._alone()


class DdpoStage(ReinforcementStage):
    """Reinforcement learning on the rewards themselves, without a baseline (DDPO).

    With `objective: forward`, each image is compared with the others of its report.
    """

    stage: Literal["ddpo"] = Field(description="Kind of stage.")

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        if self.advantage is not None and not self.advantage.centre:
            yield "advantage.centre: false keeps the sign of a comparison, and ddpo makes none"
        if self.objective == "forward":
            yield from self._alone()


Stage = Annotated[SftStage | DistillStage | RlcfStage | DdpoStage, Field(discriminator="stage")]
# By the value of `stage`.
STAGES: dict[str, type[Section]] = {
    "sft": SftStage,
    "distill": DistillStage,
    "rlcf": RlcfStage,
    "ddpo": DdpoStage,
}


class EvaluationSection(Section):
    """The independent evaluation: held-out reports, fixed noise, reward models that take no part in training."""

    every: _AtLeastOne = Field(
        default=10, description="Iterations between evaluations; the last iteration is always evaluated."
    )
    reports: _AtLeastOne | None = Field(
        default=None, description="Evaluate only the first so many held-out reports; default: all."
    )
    images_per_report: _AFew = Field(default=1, description="Images of each held-out report.")
    steps: _AtLeastOne | None = Field(
        default=None, description="Denoising steps; default: what the model folder recommends, as `generate` uses."
    )
    guidance: _NotNegative | None = Field(
        default=None, description="Classifier-free guidance scale; default: what the model folder recommends."
    )
    evaluator: str | Annotated[dict[str, str], Field(min_length=1)] = Field(
        default="nano-judge",
        description="Backend of the evaluator's three rewards, or reward -> backend. Choose another one than for"
        " training.",
    )
    features: str = Field(
        default="nano-judge", description="Features in which the Frechet distance is measured, as in `audit`."
    )
    reference: Path | None = Field(
        default=None,
        description="Real images for the Frechet distance; default: the distance to the baseline's images is measured.",
    )
    sheet: _AtLeastZero = Field(default=12, description="Pairs of images on each contact sheet.")
    on_hacking: Literal["warn", "stop"] = Field(
        default="warn",
        description="What to do when the evaluator's margin falls while that of the tuning rewards rises and is above"
        " the baseline's. `stop` ends the stage with the best weights so far.",
    )
    hacking_margin: _Positive = Field(
        default=0.1,
        description="How far the evaluator's margin must fall, in standard deviations of the baseline's rewards.",
    )
    patience: _AtLeastOne | None = Field(
        default=None,
        description="End the stage when the evaluator's margin has not improved for this many evaluations, and keep the"
        " best weights; null: never.",
    )

    @property
    def evaluators(self) -> dict[str, str]:
        """Backend of each reward the evaluator gives."""
        return dict.fromkeys(REWARDS, self.evaluator) if isinstance(self.evaluator, str) else self.evaluator


class CheckpointSection(Section):
    """Checkpoints, from which the same command resumes. Stages `sft` and `distill` have an interval of their own."""

    every: _AtLeastOne = Field(default=10, description="Iterations between checkpoints.")
    keep: _AtLeastOne = Field(default=2, description="Newest checkpoints to keep; the best one is kept besides.")


class Recipe(Section):
    """Everything one `tune` run does."""

    # Random generators take 64 bits.
    seed: Annotated[_Count, Field(ge=0, lt=2**62)] = Field(default=0, description="Seed of all random numbers.")
    model: ModelSection = Field(default=ModelSection(), description="The model to tune.")
    reports: ReportsSection = Field(description="The reports to train on and those held out.")
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] = Field(
        description="Stages in order, each starting from the model the one before left."
    )
    evaluation: EvaluationSection = Field(default=EvaluationSection(), description="The independent evaluation.")
    checkpoints: CheckpointSection = Field(
        default=CheckpointSection(), description="How often to save, and how much to keep."
    )
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=(), description="Experiment trackers that also receive the metrics."
    )
