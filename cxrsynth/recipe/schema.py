"""A recipe of `cxrsynth tune`: the whole truth of a run, read strictly, all errors told at once."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from cxrsynth.errors import RecipeError
from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.rewards.backends import FAMILIES, REWARDS
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
    explore: _Rate | None = Field(
        default=None,
        description="each trajectory draws its own shift along those directions, so wide (1: as the prompts spread),"
        " and the embeddings learn from the shifts alone, without a backward pass",
    )

    @model_validator(mode="after")
    def _one_form(self) -> "AceSection":
        if self.subspace is not None and self.tokens is not None:
            raise ValueError("tokens and subspace are two forms of the embeddings: give one of them")
        if self.explore is not None and self.subspace is None:
            raise ValueError("explore needs subspace, the number of directions to explore, as 32")
        return self


class TrainSection(_Section):
    """What is trained."""

    unet: Literal["full", "lora", "frozen"] = "full"
    lora: LoraSection = LoraSection()
    ace: _Switch | AceSection = Field(default=True, description="true: {subspace: 32, explore: 0.3}")
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
        return AceSection(subspace=32, explore=0.3) if self.ace else None


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
    least: _Positive = Field(default=8, description="fewer than this: the batch's statistics stand in")


class UpdateSection(_Section):
    """The policy-gradient update. Log-probabilities are means over latent elements; `clip_range` is chosen for that."""

    updates: _Positive = Field(default=2, description="optimizer steps an iteration")
    inner_epochs: _Positive = 1
    timesteps: Annotated[float, Field(gt=0, le=1), _PLAIN] = Field(
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
        return section is not None and section.explore is not None

    @model_validator(mode="after")
    def _consistent(self) -> "_RLStage":
        if not any(reward.weight > 0 for reward in self.rewards.values()):
            raise ValueError("rewards: none has a weight above zero")
        if self.trajectories % self.update.updates:
            raise ValueError(
                f"update.updates {self.update.updates}: does not divide the {self.trajectories} trajectories of an"
                " iteration (reports_per_iteration x images_per_report)"
            )
        if self.mirrored and self.images_per_report % 2:
            raise ValueError(
                f"images_per_report {self.images_per_report}: expected an even number, as train.ace.explore draws"
                " every shift with both signs"
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
    """Supervised denoising on pairs of report and film. Films of held-out reports are left out."""

    stage: Literal["sft"]
    data: Path = Field(description="films with reports: WebDataset, folder or DICOM; relative to the recipe")
    table: Path | None = Field(default=None, description="table that tells of the films; relative to the recipe")
    columns: _Columns = {}
    steps: Annotated[_Count, Field(ge=1, le=999_999)]
    batch_size: _Positive = 16
    micro_batch: _Positive | None = Field(default=None, description="films a forward pass; default: 8, on a CPU 4")
    unconditional: Annotated[float, Field(ge=0, lt=1), _PLAIN] = Field(
        default=0.1, description="share of empty prompts"
    )
    min_snr: _Rate | None = Field(
        default=None, description="gamma of min-SNR weights (arXiv:2303.09556), as 5; default: no weights"
    )
    train: SftTrainSection = SftTrainSection()
    checkpoint_every: _Positive = Field(default=500, description="steps")
    cache_gib: _Rate = Field(default=16.0, description="room in the run's folder for the films' latents, while it runs")

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
    judge: str | Annotated[dict[str, str], Field(min_length=1)] = Field(
        default="nano-judge", description="backend of the judge's three rewards, or reward -> backend"
    )
    features: str = Field(default="nano-judge", description="where the Frechet distance is measured, as audit's")
    reference: Path | None = Field(
        default=None, description="real films for the Frechet distance; else the baseline's images"
    )
    sheet: Annotated[_Count, Field(ge=0)] = Field(default=12, description="pairs on the contact sheet")
    on_hacking: Literal["warn", "stop"] = Field(default="warn", description="stop: the stage ends with the best so far")
    hacking_margin: _Rate = Field(default=0.1, description="fall of the judge, in spreads of the baseline's rewards")

    @property
    def judges(self) -> dict[str, str]:
        """Backend of each reward the judge gives."""
        return dict.fromkeys(REWARDS, self.judge) if isinstance(self.judge, str) else self.judge


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


_TAGS: dict[str, type[_Section]] = {"rlcf": RlcfStage, "ddpo": DdpoStage, "sft": SftStage}


class _Loader(yaml.SafeLoader):
    """Safe YAML that does not let the second of two equal keys win in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As SafeLoader's; a key that is there twice is an error. Here what is merged is not yet put in."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    told = f"key {key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError("in a section", node.start_mark, told, key.start_mark)
                seen.add((key.tag, key.value))
        return node


def load_recipe(path: Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `--set key=value` overrides; paths in it are relative to the recipe's folder.

    Raises:
        RecipeError: naming every unknown key, wrong type and bad value at once.
    """
    data = _read(path)
    for given in overrides:
        _override(data, given)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {told}" for told in _told(error, data))) from None
    return _resolved(recipe, path.parent)


def recipe_schema() -> str:
    """JSON Schema of a recipe, for editors."""
    return json.dumps(Recipe.model_json_schema(), indent=1) + "\n"


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; every default is written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}\n  expected: a YAML file") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not UTF-8 text\n  expected: a YAML file") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise RecipeError(f"{path}: line {line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):  # a date or number that is none; far too deep
        raise RecipeError(f"{path}: not valid YAML\n  expected: a recipe, as those under recipes/") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: holds {type(data).__name__}, expected sections such as reports: and stages:")
    return data


def _override(data: dict[str, Any], given: str) -> None:
    """`stages.0.iterations=5`: a dotted path, numbers for places in lists; the value is read as YAML."""
    key, sign, text = given.partition("=")
    names = key.split(".")
    if not sign or not all(names):
        raise RecipeError(f"--set {given}: expected key=value, as stages.0.iterations=5")
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError(f"--set {key}: the value is not valid YAML") from None
    place: Any = data
    for name in names[:-1]:
        place = _step_into(place, name, given)
    if isinstance(place, list):
        place[_index(place, names[-1], given)] = value
    elif isinstance(place, dict):
        place[names[-1]] = value
    else:
        raise RecipeError(f"--set {given}: {'.'.join(names[:-1])} holds no sections")


def _step_into(place: Any, name: str, given: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, name, given)]
    if isinstance(place, dict):
        if not isinstance(place.get(name), dict | list):
            place[name] = {}
        return place[name]
    raise RecipeError(f"--set {given}: {name} is inside a plain value")


def _index(place: list[Any], name: str, given: str) -> int:
    if not name.isdecimal() or int(name) >= len(place):
        raise RecipeError(f"--set {given}: {name!r} is no place in a list of {len(place)}, counted from 0")
    return int(name)


def _told(error: ValidationError, data: Mapping[str, Any]) -> Iterator[str]:
    """One paragraph an error: where, what was found, what was expected."""
    found_errors = error.errors(include_url=False)
    for one in found_errors:
        if _is_beside(one, found_errors):
            continue
        where = _where(one["loc"], data)
        match one["type"]:
            case "extra_forbidden":
                known = sorted(_known_keys(one["loc"], data))
                close = difflib.get_close_matches(str(one["loc"][-1]), known, n=1)
                meant = f"\n  did you mean: {close[0]}" if close else ""
                yield f"{where}: unknown key\n  known keys: {', '.join(known)}{meant}"
            case "missing":
                yield f"{where}: missing"
            case "union_tag_not_found":
                yield f"{where}: has no stage\n  expected: stage: sft, rlcf or ddpo"
            case "union_tag_invalid":
                yield f"{where}: stage {one['ctx']['tag']!r}\n  expected: sft, rlcf or ddpo"
            case "value_error":
                yield f"{where}: {one['ctx']['error']}"
            case _:
                found = one["input"]
                shown = repr(found) if isinstance(found, str | int | float | bool | None) else type(found).__name__
                yield f"{where}: found {shown}\n  expected: {one['msg'].removeprefix('Input should be ')}"


def _is_beside(one: Any, others: Sequence[Any]) -> bool:
    """Whether an error only says that the other kind of value was not given, or follows from another."""
    other_kind = {"bool_type": dict, "path_type": int}.get(one["type"])
    if other_kind is not None and isinstance(one["input"], other_kind):
        return len(others) > 1
    if one["type"] == "model_type":
        return any(o["type"] == "bool_type" and o["loc"][:-1] == one["loc"][:-1] for o in others)
    return one["type"] == "too_short" and any(o is not one and o["loc"][:1] == one["loc"] for o in others)


def _where(loc: tuple[int | str, ...], data: Any) -> str:
    """The path as it is written in the file: pydantic also names the member of a union it tried."""
    names: list[str] = []
    place = data
    for step in loc:
        if isinstance(place, list) and isinstance(step, int) and step < len(place):
            place = place[step]
        elif isinstance(place, dict):
            if step not in place and (step != loc[-1] or step in _TAGS or "[" in str(step)):
                continue
            place = place.get(str(step))
        else:
            continue
        names.append(str(step))
    return ".".join(names) or "recipe"


def _known_keys(loc: tuple[int | str, ...], data: Any) -> set[str]:
    """Fields of the section an unknown key stands in."""
    section: Any = Recipe
    for step in loc[:-1]:
        section = _field(section, step)
    return set(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else set()


def _field(section: Any, step: int | str) -> Any:
    """The section one step further down."""
    if step in _TAGS:
        return _TAGS[str(step)]
    if isinstance(section, type) and issubclass(section, BaseModel):
        if step in section.model_fields:
            return section.model_fields[str(step)].annotation
        return section
    for inner in getattr(section, "__args__", ()):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return section


def _resolved(recipe: Recipe, folder: Path) -> Recipe:
    """Paths made absolute; so are names of models and judges where they are folders beside the recipe."""

    def absolute(path: Any) -> Any:
        return (folder / path).resolve() if isinstance(path, Path) else path

    def beside(name: str) -> str:
        own = name in ("nano", *FAMILIES)
        return str((folder / name).resolve()) if (folder / name).is_dir() and not own else name

    def resolved(stage: Stage) -> Stage:
        if isinstance(stage, SftStage):
            return stage.model_copy(update={"data": absolute(stage.data), "table": absolute(stage.table)})
        rewards = {
            name: section.model_copy(update={"backend": beside(section.backend)})
            for name, section in stage.rewards.items()
        }
        return stage.model_copy(update={"rewards": rewards})

    def features(name: str) -> str:
        kind, colon, rest = name.partition(":")
        return f"{kind}:{beside(rest)}" if colon else beside(name)

    reports, evaluation, judge = recipe.reports, recipe.evaluation, recipe.evaluation.judge
    judges = beside(judge) if isinstance(judge, str) else {name: beside(one) for name, one in judge.items()}
    return recipe.model_copy(
        update={
            "reports": reports.model_copy(
                update={"table": absolute(reports.table), "held_out": absolute(reports.held_out)}
            ),
            "evaluation": evaluation.model_copy(
                update={
                    "reference": absolute(evaluation.reference),
                    "judge": judges,
                    "features": features(evaluation.features),
                }
            ),
            "stages": tuple(map(resolved, recipe.stages)),
            "model": recipe.model.model_copy(update={"checkpoint": beside(recipe.model.checkpoint)}),
        }
    )
