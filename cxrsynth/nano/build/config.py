"""Settings of a nano build, read from one YAML file."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from cxrsynth.settings import Sampler


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AutoencoderSettings(_Strict):
    """AutoencoderKL with downsampling factor `2 ** (len(channels) - 1)`, trained on crops of `crop` pixels."""

    channels: tuple[int, ...]
    latent_channels: int
    steps: int
    batch_size: int
    crop: int
    learning_rate: float
    kl_weight: float


class DecoderSettings(_Strict):
    """Further training of the decoder against a discriminator whose first layer has `width` channels.

    `blend` interpolates the exported weights between the plain decoder (0) and the one trained further (1).
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
    """Registration of the images to their mean, and the canonical frame.

    `stay` weighs the penalty on moving; `zoom` is the share of the mean image's width that the frame shows around
    `centre` (in half widths from the middle); `beyond` is the largest share of a frame that may lie beyond the image.
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
    """UNet, trained on cached latents of augmented images.

    `share` is the sampling weight of a group, 1 unless named. `more_steps` replaces `steps` for a denoiser that
    continues from a model folder. `varied` is the share of captions in the wording of the build's grammar instead of
    the canonical prompt.
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
    """Training of one reward network.

    Shifts in half widths, zoom and gamma as log factors; `noise` is the largest standard deviation of noise added to
    gray levels in [0, 1], `erase` the probability that a rectangle is blanked.
    """

    size: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    shift: float
    zoom: float
    rotation_rad: float
    gamma: float
    noise: float = 0.0
    erase: float = 0.0


class TrunkSettings(_Strict):
    """Arguments of `cxrsynth.rewards.networks.Trunk`, without the size."""

    kind: Literal["densenet", "resnet"]
    widths: list[int]
    depths: list[int]


class DistillationSettings(_Strict):
    """How the classifier and dual encoder of family nano learn from an ensemble.

    Its first member is trained as the networks of the other family are, the others on `trunks`, each with a seed of its
    own; `classifier` and `dual_encoder` say how the networks that replace them are trained.
    """

    trunks: tuple[TrunkSettings, ...]
    classifier: FitSettings
    dual_encoder: FitSettings


class RewardModelSettings(_Strict):
    """Both reward families.

    `trunks` are in the order of `FAMILIES`; a finding gets a head if `least_shown` images of each half show it.
    """

    trunks: tuple[TrunkSettings, TrunkSettings]
    least_shown: int
    posture_reach: tuple[float, float, float, float, float]
    text: TextSettings
    classifier: FitSettings
    posture: FitSettings
    dual_encoder: FitSettings
    distillation: DistillationSettings


class MeasureSettings(_Strict):
    """Number of images, and of image pairs, on which the generator is measured."""

    images: int
    pairs: int


class GenerationDefaults(_Strict):
    """Defaults of `generate` for this model."""

    steps: int
    guidance: float
    sampler: Sampler


class BuildConfig(_Strict):
    """All settings of a build."""

    seed: int
    image_size: int
    save_every: int
    parts: int
    autoencoder: AutoencoderSettings
    align: AlignSettings
    text: TextSettings
    denoiser: DenoiserSettings
    reward_models: RewardModelSettings
    decoder: DecoderSettings
    measure: MeasureSettings
    min_shown: int
    defaults: GenerationDefaults


def load_config(path: Path) -> BuildConfig:
    """Read and check a build file; raises pydantic.ValidationError that names every wrong field."""
    return BuildConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
