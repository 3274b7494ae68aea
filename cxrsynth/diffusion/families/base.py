"""What every family of models answers: its parts, conditions, predictions, latents and adapters."""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from cxrsynth.diffusion.condition import MASK, TEXT, Condition
from cxrsynth.diffusion.spec import LONGEST_SIDE, ModelSpec, SamplingDefaults
from cxrsynth.errors import ModelError

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
# Activations in memory at once, in feature maps of the first level: a generous estimate from the architecture, not
# measured.
_LIVE_MAPS_UNET = 80
# The same of a transformer, in values of its width for each token.
_LIVE_VALUES_TRANSFORMER = 48


class TextWidth(NamedTuple):
    """Width of embeddings: what they are, how wide the denoiser takes them, and how wide text encoders give them."""

    what: str
    taken: int
    given: int


def _no_advice_on_masks(record: logging.LogRecord) -> bool:
    return "attention_mask" not in str(record.msg)


@dataclass(frozen=True)
class Components:
    """The networks and tokenizers of one model, by the names of their folders, and what else its folder says.

    `vae` is None in pixel space. `scheduler_config` is its scheduler's configuration, `spec` its `cxrsynth.json`,
    `index` the content of its `model_index.json`. `folders` says where each part came from, the denoiser among them.
    The denoiser itself is apart: it is the one that is tuned, and a policy and its baseline have one each.
    """

    vae: Any
    encoders: Mapping[str, Any]
    tokenizers: Mapping[str, Any]
    scheduler_config: dict[str, Any]
    spec: ModelSpec
    folders: Mapping[str, Path]
    index: Mapping[str, Any] = field(default_factory=dict)


class Family(ABC):
    """One kind of model, loaded from a folder in diffusers' layout. Stateless: networks are arguments.

    Prompts are encoded by the family's own pipeline in diffusers, so that they become what the model was trained with.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # for messages: "a Stable Diffusion model"
    denoiser: ClassVar[str] = "transformer"  # its folder, and its name in the pipeline
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    optional: ClassVar[frozenset[str]] = frozenset()  # parts that a model may do without
    # What the classes of its text encoders are called, as patterns, where its pipeline does not take any.
    encoder_classes: ClassVar[Mapping[str, str]] = {}
    defaults: ClassVar[SamplingDefaults] = SamplingDefaults()
    adapted_layers: ClassVar[tuple[str, ...]] = _ATTENTION  # those that low-rank adapters go on
    # A text encoder of billions of weights is kept in the precision of the denoiser.
    large_encoders: ClassVar[bool] = False
    learns_words: ClassVar[bool] = False  # whether its tokenizer and text encoder take words of textual inversion
    learns_text: ClassVar[bool] = False  # whether its text encoder can be fine-tuned
    prompt_tokens: ClassVar[int | None] = None  # the pipeline's limit, where it is not the tokenizer's
    # The tokenizers that have to take a whole prompt, None for all; what others leave out of it is lost to them alone.
    limiting: ClassVar[tuple[str, ...] | None] = None
    vae_class: ClassVar[str] = "AutoencoderKL"
    in_pixels: ClassVar[bool] = False  # no autoencoder: latents are images in [-1, 1]
    # Without text there are no empty prompt, no classifier-free guidance and no adaptive condition embeddings.
    has_text: ClassVar[bool] = True
    flow_only: ClassVar[bool] = False  # all that are published learned by flow matching, never by a discrete schedule
    takes_image_size: ClassVar[bool] = False  # whether `image_size` of cxrsynth.json decides the size of images

    @property
    @abstractmethod
    def pipeline_class(self) -> type[DiffusionPipeline]:
        """The pipeline in diffusers."""

    @property
    @abstractmethod
    def denoiser_class(self) -> type[nn.Module]:
        """The class of the denoiser."""

    @property
    def denoiser_title(self) -> str:
        """What the denoiser is, for messages."""
        return "UNet" if self.denoiser == "unet" else "transformer"

    @property
    def networks(self) -> tuple[str, ...]:
        """Folders that hold weights."""
        return (self.denoiser, *(() if self.in_pixels else ("vae",)), *self.encoders)

    @property
    def parts(self) -> tuple[str, ...]:
        """All folders of a model."""
        return (*self.networks, *self.tokenizers, "scheduler")

    def pipeline(self, denoiser: Any, components: Components) -> Any:
        """What `encode` encodes prompts with: the pipeline of diffusers around the networks."""
        kind = self.pipeline_class
        # It prints what it cuts of a prompt, which is report text.
        logging.getLogger(kind.__module__).setLevel(logging.ERROR)
        # Before transformers 5, encoders advise a mask of padding, which these pipelines do without.
        logging.getLogger("transformers.modeling_utils").addFilter(_no_advice_on_masks)
        parts = dict.fromkeys(self.optional) | {
            self.denoiser: denoiser,
            "vae": components.vae,
            **components.encoders,
            **components.tokenizers,
            "scheduler": self.any_scheduler(),
        }
        return kind(**parts, **self.pipeline_arguments(components))

    def pipeline_arguments(self, components: Components) -> dict[str, Any]:
        """Further arguments of the pipeline's constructor."""
        return {}

    def settled_scheduler(self, config: dict[str, Any]) -> dict[str, Any]:
        """A scheduler's configuration as the pipeline uses it."""
        return config

    def longest_prompt(self, components: Components) -> int | None:
        """Tokens that the pipeline takes; None where its tokenizer alone decides."""
        return self.prompt_tokens

    def defaults_of(self, folder: Path) -> SamplingDefaults:
        """Sampling defaults of the model in a folder; no weights are read."""
        return self.defaults

    def any_scheduler(self) -> Any:
        """A scheduler that the pipeline takes; it samples nothing."""
        return FlowMatchEulerDiscreteScheduler()

    @abstractmethod
    def encode(self, pipeline: Any, prompts: Sequence[str], *, negative: str = "") -> tuple[Condition, Condition]:
        """Conditions of B prompts, and of the negative prompt, for guidance (B = 1).

        Args:
            pipeline: from `pipeline`.
            prompts: B texts.
            negative: what guidance leads away from; empty for no prompt.
        """

    def tokenized(self, pipeline: Any, prompt: str) -> str:
        """What the tokenizer is given for a prompt."""
        return prompt

    @abstractmethod
    def predict(self, denoiser: Any, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """The denoiser's prediction without guidance, [B, C, h, w].

        Args:
            denoiser: the network.
            latents: [B, C, h, w], in the type the network runs in.
            timesteps: scalar or [B], as the scheduler has them.
            condition: of B samples.
        """

    def takes_guidance(self, denoiser: Any) -> bool:
        """Whether the guidance scale is an input of the network, in place of classifier-free guidance."""
        return False

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
        """The guided prediction of two predictions [B, C, h, w] float32, at a scale other than 1."""
        return classifier_free(unconditional, conditional, guidance)

    def tokens(self, denoiser: Any, shape: tuple[int, int, int]) -> int:
        """Tokens that a transformer makes of one latent (C, h, w)."""
        _, height, width = shape
        patch = int(getattr(denoiser.config, "patch_size", 1) or 1)
        return (height // patch) * (width // patch)

    def shift_length(self, denoiser: Any, shape: tuple[int, int, int]) -> int:
        """The number that decides the shift of noise levels, for schedulers that shift by the image's size."""
        return self.tokens(denoiser, shape)

    def noise_levels(self, steps: int) -> list[float] | None:
        """Noise levels in [0, 1] before any shift, for flow matching's own schedulers; None for the scheduler's."""
        return None

    def latent_shape(self, denoiser: Any, components: Components) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        size = denoiser.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(denoiser.config.in_channels), int(height), int(width)

    def text_size(self, folder: Path) -> tuple[int, int] | None:
        """Positions and width of the text embeddings, if the folder's configurations say; no weights are read.

        Raises:
            ModelError: if they should, and do not.
        """
        return None

    def latent_channels(self, denoiser: Any) -> int:
        """Channels of the latents that the denoiser takes."""
        return int(denoiser.config.in_channels)

    def text_widths(self, denoiser: Any, encoders: Mapping[str, Any]) -> Sequence[TextWidth]:
        """Widths of embeddings that the denoiser takes, beside those that its text encoders give."""
        return ()

    def check(self, denoiser: Any, components: Components) -> None:
        """Refuse what loads, and fails or goes wrong later.

        Raises:
            ModelError: naming the file that cannot be used.
        """
        where = components.folders[self.denoiser] / "config.json"
        if not self.takes_image_size:
            size = getattr(denoiser.config, "sample_size", None)
            sizes = [size] if isinstance(size, int) else size
            if not isinstance(sizes, list | tuple) or not all(isinstance(one, int) for one in sizes) or len(sizes) > 2:
                raise ModelError(f"{where}: sample_size {size}, expected the latents' height and width")
            if not all(1 <= one <= LONGEST_SIDE for one in sizes):
                raise ModelError(f"{where}: sample_size {size}, expected 1 to {LONGEST_SIDE:,} in height and width")
        self._check_latents(where, denoiser, components)
        self._check_encoders(where, denoiser, components)

    def _check_latents(self, where: Path, denoiser: Any, components: Components) -> None:
        if components.vae is None:
            return
        kind = type(components.vae).__name__
        # A tiny autoencoder is distilled from that of a model, for the same latents.
        stands_in = isinstance(components.vae, AutoencoderTiny) and self.vae_class == "AutoencoderKL"
        if kind != self.vae_class and not stands_in:
            raise ModelError(
                f"{components.folders['vae']}: an {kind}, but {self.title} has an {self.vae_class}\n"
                "  expected: the autoencoder that the model was trained with"
            )
        given, taken = int(components.vae.config.latent_channels), self.latent_channels(denoiser)
        if given != taken:
            raise ModelError(
                f"{where}: latents of {taken} channels (in_channels {denoiser.config.in_channels}), but those of"
                f" {components.folders['vae']} have {given}: a model for inpainting, for editing or enlarging images,"
                " for control by another image, or with the autoencoder of another model\n"
                "  expected: a text-to-image model with the autoencoder that it was trained with"
            )

    def _check_encoders(self, where: Path, denoiser: Any, components: Components) -> None:
        for part, encoder in components.encoders.items():
            wanted, found = self.encoder_classes.get(part, ".*"), type(encoder).__name__
            if not re.fullmatch(wanted, found):
                raise ModelError(
                    f"{components.folders[part]}: a {found}, which is not what {self.title} has as {part}\n"
                    "  expected: the text encoder that the model was trained with"
                )
        for what, taken, made in self.text_widths(denoiser, components.encoders):
            if taken != made:
                raise ModelError(
                    f"{where}: takes {what} of width {taken}, but the text encoders give {made}\n"
                    "  expected: the text encoders that it was trained with"
                )

    def live_values(self, denoiser: Any, shape: tuple[int, int, int]) -> int:
        """Numbers in memory at once while the denoiser runs on one latent: a rough estimate."""
        _, height, width = shape
        config = denoiser.config
        if "block_out_channels" in config:
            return height * width * int(config.block_out_channels[0]) * _LIVE_MAPS_UNET
        inner = int(getattr(config, "hidden_size", 0) or config.num_attention_heads * config.attention_head_dim)
        return self.tokens(denoiser, shape) * inner * _LIVE_VALUES_TRANSFORMER


def text_width(encoder: Any) -> int:
    """Width of a text encoder's hidden states."""
    config = encoder.config
    return int(getattr(config, "hidden_size", None) or config.d_model)


def spatial_factor(vae: AutoencoderKL | AutoencoderDC | AutoencoderTiny | None) -> int:
    """Pixels per side of a latent; 1 without an autoencoder."""
    if vae is None:
        return 1
    if isinstance(vae, AutoencoderDC):
        return int(vae.spatial_compression_ratio)
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def decoder_width(vae: AutoencoderKL | AutoencoderDC | AutoencoderTiny | None) -> int:
    """Channels of the decoder's largest maps; 0 without an autoencoder."""
    if vae is None:
        return 0
    config = vae.config
    widths = config.decoder_block_out_channels if isinstance(vae, AutoencoderDC) else config.block_out_channels
    return int(widths[0])


def to_decoder(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the denoiser has them, to what the decoder takes: scale, and shift or mean and deviation."""
    scale, offset = _scale_and_offset(vae, latents)
    decodable: Tensor = latents / scale + offset
    return decodable


def from_encoder(vae: Any, latents: Tensor) -> Tensor:
    """What the encoder gives, to latents as the denoiser has them."""
    scale, offset = _scale_and_offset(vae, latents)
    scaled: Tensor = (latents - offset) * scale
    return scaled


def _scale_and_offset(vae: Any, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
    config = vae.config
    scale = float(config.scaling_factor)
    means, stds = config.get("latents_mean"), config.get("latents_std")
    if means is not None and stds is not None:
        mean, std = (latents.new_tensor(values)[None, :, None, None] for values in (means, stds))
        return scale / std, mean
    return scale, float(config.get("shift_factor") or 0.0)


def classifier_free(unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance, [B, C, h, w].

    Source: Ho and Salimans, arXiv:2207.12598, in the form of Stable Diffusion (scale 1 = conditional alone).
    """
    return unconditional + guidance * (conditional - unconditional)


def linear_levels(steps: int) -> list[float]:
    """Noise levels from 1 in equal steps, the last of which leads to 0."""
    return [float(level) for level in np.linspace(1.0, 1 / steps, steps)]


def masked_conditions(
    pipeline: Any, prompts: Sequence[str], *, negative: str | list[str], length: int | None, **further: Any
) -> tuple[Condition, Condition]:
    """As `Family.encode`, for pipelines that give hidden states and which of them belong to words.

    Args:
        pipeline: with a text encoder.
        prompts: B of them.
        negative: what guidance leads away from; some pipelines want it once for each prompt.
        length: tokens that a prompt is padded and cut to.
        further: arguments of the pipeline's `encode_prompt`.
    """
    text, mask, no_text, no_mask = pipeline.encode_prompt(
        list(prompts),
        do_classifier_free_guidance=True,
        negative_prompt=negative,
        device=pipeline.text_encoder.device,
        max_sequence_length=length,
        **further,
    )
    return Condition({TEXT: text, MASK: mask}), Condition({TEXT: no_text[:1], MASK: no_mask[:1]})


def cut_learned_variance(prediction: Tensor, channels: int) -> Tensor:
    """Without the variance that some transformers predict beside the rest."""
    return prediction.chunk(2, dim=1)[0] if prediction.shape[1] == 2 * channels else prediction


def batched(timesteps: Tensor, count: int) -> Tensor:
    """Timesteps, scalar or [B], as [B]."""
    return timesteps.expand(count)
