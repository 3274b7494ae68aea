"""Settings of a nano build, read from one YAML file."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from cxrsynth.settings import Sampler


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AutoencoderSettings(_Strict):
    """AutoencoderKL: factor `2 ** (len(channels) - 1)`, trained on crops of `crop` pixels."""

    channels: tuple[int, ...]
    latent_channels: int
    steps: int
    batch_size: int
    crop: int
    learning_rate: float
    kl_weight: float


class DecoderSettings(_Strict):
    """The decoder trained further, against a discriminator whose first layer has `width` channels.

    `blend` is how far from the plain decoder (0) to the one trained further (1) the exported weights lie.
    """

    steps: int
    batch_size: int
    crop: int
    learning_rate: float
    width: int
    feature_weight: float
    adversarial_weight: float
    blend: float


class AlignSettings(_Strict):
    """Registration of the images to their mean, and the frame in which they are shown.

    `stay` weighs the cost of moving; `zoom` is the part of the mean image's width that is shown around `centre` (in
    half
    widths from the middle); `beyond` is the largest share of a frame that may lie beyond an image's edge.
    """

    rounds: int
    steps: int
    learning_rate: float
    stay: float
    zoom: float
    centre: tuple[float, float]
    beyond: float


class TextSettings(_Strict):
    """Tokenizer and CLIP text encoder."""

    vocab_size: int
    max_tokens: int
    width: int
    layers: int
    heads: int


class DenoiserSettings(_Strict):
    """UNet, trained on cached latents of augmented images; `share` is how often a group is drawn, 1 where not named.

    `more_steps` are those of a denoiser that goes on from a model folder. `varied` is the share of captions in words of
    our grammar in place of the canonical prompt.
    """

    channels: tuple[int, ...]
    share: dict[str, float]
    steps: int
    more_steps: int
    batch_size: int
    learning_rate: float
    ema_decay: float
    variants: int
    captions: int
    varied: float
    unconditional: float
    rotation_deg: float
    zoom: float
    shift: float


class FitSettings(_Strict):
    """Training of one judging network. Shifts in half widths, zoom and gamma as log factors."""

    size: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    shift: float
    zoom: float
    rotation_rad: float
    gamma: float


class TrunkSettings(_Strict):
    """Arguments of `cxrsynth.rewards.networks.Trunk`, without the size."""

    kind: Literal["densenet", "resnet"]
    widths: list[int]
    depths: list[int]


class JudgeSettings(_Strict):
    """Both families; `trunks` in the order of `FAMILIES`, `least_shown` images of a finding in each half for a head."""

    trunks: tuple[TrunkSettings, TrunkSettings]
    least_shown: int
    posture_reach: tuple[float, float, float, float, float]
    text: TextSettings
    classifier: FitSettings
    posture: FitSettings
    dual_encoder: FitSettings


class MeasureSettings(_Strict):
    """How many images, and pairs of images, the generator is measured on."""

    images: int
    pairs: int


class GenerationDefaults(_Strict):
    """What `generate` uses when the user does not say."""

    steps: int
    guidance: float
    sampler: Sampler


class BuildConfig(_Strict):
    """The whole truth of a build."""

    seed: int
    image_size: int
    save_every: int
    parts: int
    autoencoder: AutoencoderSettings
    align: AlignSettings
    text: TextSettings
    denoiser: DenoiserSettings
    judges: JudgeSettings
    decoder: DecoderSettings
    measure: MeasureSettings
    min_shown: int
    defaults: GenerationDefaults


def load_config(path: Path) -> BuildConfig:
    """Read and check a build file; raises pydantic.ValidationError naming every wrong field."""
    return BuildConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
