"""Sana: a linear-attention transformer on strongly compressed latents, with Gemma's embeddings, by flow matching."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, ClassVar

from diffusers import SanaPipeline, SanaTransformer2DModel
from torch import Tensor

from cxrsynth.diffusion.condition import MASK, Condition
from cxrsynth.diffusion.families.base import (
    Components,
    Family,
    TextWidth,
    batched,
    cut_learned_variance,
    masked_conditions,
    text_width,
)
from cxrsynth.diffusion.spec import SamplingDefaults
from cxrsynth.errors import ModelError
from cxrsynth.settings import Sampler

_INSTRUCTION = signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class Sana(Family):
    """Sana. Prompts come after the instruction to Gemma that the pipeline gives by default, as in its training.

    Source: Xie et al., arXiv:2410.10629.
    """

    name = "sana"
    title = "a Sana model"
    flow_only = True
    defaults = SamplingDefaults(steps=20, guidance=4.5, sampler=Sampler.DPMPP)
    large_encoders = True
    encoder_classes: ClassVar[Mapping[str, str]] = {"text_encoder": "(?!CLIP).*"}
    prompt_tokens = 300
    vae_class = "AutoencoderDC"
    pipeline_class = SanaPipeline
    denoiser_class = SanaTransformer2DModel

    def text_widths(self, denoiser: Any, encoders: Mapping[str, Any]) -> Sequence[TextWidth]:
        """As in `Family`."""
        given = text_width(encoders["text_encoder"])
        return [TextWidth("text embeddings", int(denoiser.config.caption_channels), given)]

    def encode(self, pipeline: Any, prompts: Sequence[str], *, negative: str = "") -> tuple[Condition, Condition]:
        """Gemma's hidden states and which of them belong to words; no prompt is an empty one."""
        return masked_conditions(
            pipeline, prompts, negative=negative, length=self.prompt_tokens, complex_human_instruction=_INSTRUCTION
        )

    def check(self, denoiser: Any, components: Components) -> None:
        """As in `Family`."""
        if denoiser.config.get("guidance_embeds"):
            raise ModelError(
                f"{components.folders[self.denoiser] / 'config.json'}: guidance_embeds: a distilled model (Sana-Sprint)"
                " that takes its guidance as an input\n  expected: a Sana model without it"
            )
        super().check(denoiser, components)

    def predict(self, denoiser: Any, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """As in `Family`."""
        predicted = denoiser(
            latents,
            encoder_hidden_states=condition.text,
            encoder_attention_mask=condition.tensors[MASK],
            timestep=batched(timesteps, len(latents)) * denoiser.config.timestep_scale,
            return_dict=False,
        )[0]
        return cut_learned_variance(predicted, latents.shape[1])
