"""Lumina-Image 2.0: a transformer over Gemma's embeddings and image together, by flow matching."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel
from torch import Tensor

from cxrsynth.diffusion.condition import MASK, Condition
from cxrsynth.diffusion.families.base import (
    Family,
    TextWidth,
    batched,
    classifier_free,
    linear_levels,
    masked_conditions,
    text_width,
)
from cxrsynth.diffusion.spec import SamplingDefaults
from cxrsynth.settings import Sampler

_TIMESTEPS = 1000


class Lumina2(Family):
    """Lumina-Image 2.0. Prompts come after the system prompt that the pipeline gives by default; no prompt does not.

    Guidance is that of the pipeline at its defaults: on at all steps, and scaled back to the length of the conditional
    prediction.

    Source: Qin et al., arXiv:2503.21758.
    """

    name = "lumina2"
    title = "a Lumina-Image 2 model"
    flow_only = True
    defaults = SamplingDefaults(steps=30, guidance=4.0, sampler=Sampler.EULER)
    large_encoders = True
    encoder_classes: ClassVar[Mapping[str, str]] = {"text_encoder": "(?!CLIP).*"}
    prompt_tokens = 256
    pipeline_class = Lumina2Pipeline
    denoiser_class = Lumina2Transformer2DModel

    def tokenized(self, pipeline: Any, prompt: str) -> str:
        """As in `Family`: the system prompt counts, too."""
        return f"{pipeline.system_prompt} <Prompt Start> {prompt}"

    def text_widths(self, denoiser: Any, encoders: Mapping[str, Any]) -> Sequence[TextWidth]:
        """As in `Family`."""
        given = text_width(encoders["text_encoder"])
        return [TextWidth("text embeddings", int(denoiser.config.cap_feat_dim), given)]

    def encode(self, pipeline: Any, prompts: Sequence[str], *, negative: str = "") -> tuple[Condition, Condition]:
        """Gemma's hidden states and which of them belong to words; no prompt is an empty one."""
        return masked_conditions(pipeline, prompts, negative=[negative] * len(prompts), length=self.prompt_tokens)

    def predict(self, denoiser: Any, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """As in `Family`. The network's time runs from noise, 0, to image, 1, and so does its velocity."""
        predicted: Tensor = denoiser(
            hidden_states=latents.contiguous(),
            timestep=1 - batched(timesteps, len(latents)) / _TIMESTEPS,
            encoder_hidden_states=condition.text,
            encoder_attention_mask=condition.tensors[MASK],
            return_dict=False,
        )[0]
        return -predicted

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
        """As in `Family`; each row of latents is as long as the conditional prediction's."""
        guided = classifier_free(unconditional, conditional, guidance)
        scaled: Tensor = guided * (conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return scaled

    def shift_length(self, denoiser: Any, shape: tuple[int, int, int]) -> int:
        """As in `Family`: the pipeline takes the channels of latents for their number of tokens."""
        return shape[0]

    def noise_levels(self, steps: int) -> list[float]:
        """As in `Family`."""
        return linear_levels(steps)
