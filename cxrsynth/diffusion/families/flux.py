"""Flux: a transformer over text and image together, CLIP's pooled embedding and T5's sequence, by flow matching."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from cxrsynth.diffusion.condition import GUIDANCE, TEXT, Condition
from cxrsynth.diffusion.families.base import (
    Components,
    Family,
    TextWidth,
    batched,
    linear_levels,
    spatial_factor,
    text_width,
)
from cxrsynth.diffusion.spec import SPEC_FILE, SamplingDefaults
from cxrsynth.errors import ModelError
from cxrsynth.runtime.files import read_json
from cxrsynth.settings import Sampler

_POOLED = "pooled_projections"
_PATCH = 2  # latents per side of a token
_TIMESTEPS = 1000


class Flux(Family):
    """Flux.1.

    Two kinds. In guidance-distilled models (Flux-dev, `guidance_embeds`) the guidance scale is an input of the network:
    there is no classifier-free guidance, and a scale of 1 is one like any other. In the others (Flux-schnell, and
    models from before distillation) it is classifier-free guidance with an empty prompt, the `true_cfg_scale` of the
    pipeline; by default there is none.

    The network has no size of its own. Images have the `image_size` of `cxrsynth.json`, else the `sample_size` of the
    autoencoder.

    Source: Black Forest Labs; the pipeline of diffusers. Flow matching as in Esser et al., arXiv:2403.03206.
    """

    name = "flux"
    title = "a Flux model"
    flow_only = True
    encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")
    encoder_classes: ClassVar[Mapping[str, str]] = {
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "U?M?T5EncoderModel",
    }
    # CLIP gives one pooled embedding, from the first 77 tokens; T5 reads the whole prompt.
    limiting = ("tokenizer_2",)
    defaults = SamplingDefaults(steps=28, guidance=3.5, sampler=Sampler.EULER)
    adapted_layers = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    large_encoders = True
    prompt_tokens = 512
    takes_image_size = True
    pipeline_class = FluxPipeline
    denoiser_class = FluxTransformer2DModel

    def defaults_of(self, folder: Path) -> SamplingDefaults:
        """As in `Family`: without guidance where it is not an input."""
        try:
            config = read_json(folder / self.denoiser / "config.json")
        except (OSError, ValueError):
            return self.defaults  # loading says better what is wrong
        return self.defaults if config.get("guidance_embeds") else self.defaults.model_copy(update={"guidance": 1.0})

    def takes_guidance(self, denoiser: Any) -> bool:
        """As in `Family`."""
        return bool(denoiser.config.guidance_embeds)

    def encode(self, pipeline: Any, prompts: Sequence[str], *, negative: str = "") -> tuple[Condition, Condition]:
        """T5's hidden states and CLIP's pooled ones; no prompt is an empty one."""
        text, pooled, _ = pipeline.encode_prompt(
            [negative, *prompts],
            None,
            device=pipeline.text_encoder.device,
            max_sequence_length=self.prompt_tokens,
        )
        both = Condition({TEXT: text, _POOLED: pooled})
        return both[1:], both[:1]

    def predict(self, denoiser: Any, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """As in `Family`."""
        count, channels, height, width = latents.shape
        packed = FluxPipeline._pack_latents(latents.contiguous(), count, channels, height, width)
        places = FluxPipeline._prepare_latent_image_ids(
            count, height // _PATCH, width // _PATCH, latents.device, latents.dtype
        )
        predicted = denoiser(
            hidden_states=packed,
            timestep=batched(timesteps, count) / _TIMESTEPS,
            guidance=condition.tensors.get(GUIDANCE),
            pooled_projections=condition.tensors[_POOLED],
            encoder_hidden_states=condition.text,
            txt_ids=torch.zeros(condition.text.shape[1], 3, device=latents.device, dtype=latents.dtype),
            img_ids=places,
            return_dict=False,
        )[0]
        return FluxPipeline._unpack_latents(predicted, height, width, 1)  # type: ignore[no-any-return]

    def latent_shape(self, denoiser: Any, components: Components) -> tuple[int, int, int]:
        """As in `Family`."""
        height, width = _image_size(components)
        factor = spatial_factor(components.vae)
        return self.latent_channels(denoiser), height // factor, width // factor

    def tokens(self, denoiser: Any, shape: tuple[int, int, int]) -> int:
        """As in `Family`."""
        _, height, width = shape
        return (height // _PATCH) * (width // _PATCH)

    def noise_levels(self, steps: int) -> list[float]:
        """As in `Family`."""
        return linear_levels(steps)

    def latent_channels(self, denoiser: Any) -> int:
        """As in `Family`."""
        return int(denoiser.config.in_channels) // _PATCH**2

    def text_widths(self, denoiser: Any, encoders: Mapping[str, Any]) -> Sequence[TextWidth]:
        """As in `Family`."""
        config = denoiser.config
        return [
            TextWidth("text embeddings", int(config.joint_attention_dim), text_width(encoders["text_encoder_2"])),
            TextWidth("pooled embeddings", int(config.pooled_projection_dim), text_width(encoders["text_encoder"])),
        ]

    def check(self, denoiser: Any, components: Components) -> None:
        """As in `Family`."""
        super().check(denoiser, components)
        config = denoiser.config
        if (config.out_channels or config.in_channels) != config.in_channels:
            raise ModelError(
                f"{components.folders[self.denoiser] / 'config.json'}: in_channels {config.in_channels}, out_channels"
                f" {config.out_channels}: a model for inpainting, or for control by another image\n"
                "  expected: a text-to-image model"
            )
        folder = components.folders[self.denoiser].parent
        try:
            size = _image_size(components)
        except ValueError:
            raise ModelError(
                f"{folder}: nothing gives the size of its images: {self.title} has none of its own, and"
                " vae/config.json has no sample_size\n"
                f'  expected: "image_size" in {SPEC_FILE}, in pixels: a number, or [height, width]'
            ) from None
        multiple = spatial_factor(components.vae) * _PATCH
        if any(side % multiple for side in size):
            given = SPEC_FILE if components.spec.image_size else "vae/config.json"
            raise ModelError(
                f"{folder / given}: images of {size[0]} x {size[1]} pixels\n"
                f"  expected: height and width that are multiples of {multiple}"
            )


def _image_size(components: Components) -> tuple[int, int]:
    """Height and width of the images in pixels.

    Raises:
        ValueError: if neither the description nor the autoencoder gives it.
    """
    config = components.vae.config
    size = components.spec.image_size
    if size is None and "sample_size" not in config.get("_use_default_values", ()):
        size = config.get("sample_size")  # a tiny autoencoder has none
    if size is None:
        raise ValueError("no image size")
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
