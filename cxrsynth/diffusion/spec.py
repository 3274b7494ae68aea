"""`cxrsynth.json`: the description in a model folder. No torch here."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cxrsynth.errors import ModelError
from cxrsynth.reports.labels import NO_FINDING, OBSERVATIONS
from cxrsynth.reports.prompt import Depicts
from cxrsynth.settings import PromptStyle, Sampler

SPEC_FILE = "cxrsynth.json"


_Pixels = Annotated[int, Field(ge=1)]


class SamplingDefaults(BaseModel):
    """What `generate` uses unless the user says otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=50, ge=1)
    guidance: float = Field(default=4.0, ge=0, allow_inf_nan=False)
    sampler: Sampler = Sampler.DDIM


class ModelSpec(BaseModel):
    """Prompt format, sampling defaults and training findings of a model.

    A folder without the file gets the defaults, and prompts made from the impression. `image_size` is for networks
    without a size of their own: pixels, or height and width in pixels. `classes` are the findings that a
    class-conditional model is asked by, in the order of its classes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    prompt: PromptStyle = PromptStyle.IMPRESSION
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


def read_spec(folder: Path) -> ModelSpec:
    """Read `folder/cxrsynth.json`; raises ModelError naming each wrong field."""
    path = folder / SPEC_FILE
    if not path.exists():
        return ModelSpec()
    try:
        return ModelSpec.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValidationError, ValueError) as error:
        raise ModelError(f"{path}: not a valid model description\n  {error}") from None
