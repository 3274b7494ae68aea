"""Sana: a linear-attention transformer on strongly compressed latents, with Gemma's embeddings, by flow matching."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

from diffusers import SanaPipeline, SanaTransformer2DModel
from torch import Tensor

from cxrsynth.diffusion.condition import MASK, Condition
from cxrsynth.diffusion.families.base import Family, batched, cut_learned_variance, masked_conditions
from cxrsynth.diffusion.spec import SamplingDefaults
from cxrsynth.settings import Sampler

_INSTRUCTION = signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class Sana(Family):
    """Sana. Prompts come after the instruction to Gemma that the pipeline gives by default, as in its training.

    Source: Xie et al., arXiv:2410.10629.
    """

    name = "sana"
    title = "a Sana model"
    defaults = SamplingDefaults(steps=20, guidance=4.5, sampler=Sampler.DPMPP)
    large_encoders = True
    prompt_tokens = 300
    pipeline_class = SanaPipeline
    denoiser_class = SanaTransformer2DModel

    def encode(self, pipeline: Any, prompts: Sequence[str], *, negative: str = "") -> tuple[Condition, Condition]:
        """Gemma's hidden states and which of them belong to words; no prompt is an empty one."""
        return masked_conditions(
            pipeline, prompts, negative=negative, length=self.prompt_tokens, complex_human_instruction=_INSTRUCTION
        )

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
