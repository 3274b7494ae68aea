"""`cxrsynth.json`: the description in a model folder. No torch here."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cxrsynth.errors import ModelError
from cxrsynth.reports.labels import NO_FINDING, OBSERVATIONS
from cxrsynth.reports.prompt import Depicts
from cxrsynth.reports.template import PromptFormat, PromptTemplate, parse_template
from cxrsynth.runtime.files import read_json
from cxrsynth.settings import PromptStyle, Sampler

SPEC_FILE = "cxrsynth.json"
LONGEST_SIDE = 16_384  # pixels; no radiograph has more, and an image of as many fills the memory of most machines


_Pixels = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]


class SamplingDefaults(BaseModel):
    """What `generate` uses unless the user says otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=50, ge=1)
    guidance: float = Field(default=4.0, ge=0, allow_inf_nan=False)
    sampler: Sampler = Sampler.DDIM


class ModelSpec(BaseModel):
    """Prompt format, sampling defaults and training findings of a model.

    A folder without the file gets the defaults, and prompts made from the impression. `prompt_template` is a template
    or the name of a preset (`cxrsynth.reports.template`), in place of `prompt`. `negative_prompt` takes the place of
    the empty prompt in classifier-free guidance. `image_size` is for networks without a size of their own: pixels, or
    height and width in pixels. `classes` are the findings that a class-conditional model is conditioned on, in the
    order of its classes. `depicts_from` is the digest of the model as it made the images that `depicts` was measured
    on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(max_length=256)] | None = None
    prompt: PromptStyle = PromptStyle.IMPRESSION
    prompt_template: str | None = None
    negative_prompt: str = ""
    depicts_from: str | None = None
    defaults: SamplingDefaults = SamplingDefaults()
    depicts: Depicts | None = None
    image_size: _Pixels | tuple[_Pixels, _Pixels] | None = None
    classes: tuple[str, ...] = ()

    @field_validator("classes")
    @classmethod
    def _are_findings(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in classes if name not in OBSERVATIONS]
        if unknown:
            raise ValueError(f"unknown: {', '.join(unknown)}; known: {', '.join(OBSERVATIONS)}")
        if len(set(classes)) < len(classes):
            raise ValueError("a finding is named twice")
        if classes and NO_FINDING not in classes:
            raise ValueError(f"{NO_FINDING} is missing, the class of reports without any of the others")
        return classes

    @field_validator("prompt_template")
    @classmethod
    def _check_template(cls, text: str | None) -> str | None:
        if text is not None:
            parse_template(text)
        return text

    @model_validator(mode="after")
    def _check_one_format(self) -> "ModelSpec":
        if self.prompt_template is not None and "prompt" in self.model_fields_set:
            raise ValueError("prompt and prompt_template: found both\n  expected: one of them")
        return self

    @property
    def prompt_format(self) -> PromptFormat:
        """How the model is prompted unless the user says otherwise."""
        return self.prompt if self.prompt_template is None else parse_template(self.prompt_template)

    @property
    def names_prompts(self) -> bool:
        """Whether the prompt format is named, not the default."""
        return bool({"prompt", "prompt_template"} & self.model_fields_set)

    def prompted(self, prompt_format: PromptFormat) -> "ModelSpec":
        """The same with another prompt format."""
        # Without the field: a description that has both is refused.
        fields = {name: getattr(self, name) for name in self.model_fields_set - {"prompt", "prompt_template"}}
        if isinstance(prompt_format, PromptTemplate):
            return ModelSpec(**fields, prompt_template=prompt_format.text)
        return ModelSpec(**fields, prompt=prompt_format)


def read_spec(folder: Path) -> ModelSpec:
    """Read `folder/cxrsynth.json`; raises ModelError naming each wrong field."""
    path = folder / SPEC_FILE
    if not path.exists():
        return ModelSpec()
    try:
        return ModelSpec.model_validate(read_json(path))
    except ValidationError as error:
        wrong = [(".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")) for one in error.errors()]
        lines = (f"{place}: {message}" if place else message for place, message in wrong)
        raise ModelError(f"{path}: not a valid model description\n  " + "\n  ".join(lines)) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a valid model description\n  {error}") from None
