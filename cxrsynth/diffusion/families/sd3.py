"""Stable Diffusion 3: a transformer over text and image together, three text encoders, by flow matching."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from cxrsynth.diffusion.condition import TEXT, Condition
from cxrsynth.diffusion.families.base import Family, TextWidth, batched, text_width
from cxrsynth.diffusion.spec import SamplingDefaults
from cxrsynth.settings import Sampler

_POOLED = "pooled_projections"


class StableDiffusion3(Family):
    """Stable Diffusion 3 and 3.5.

    Source: Esser et al., arXiv:2403.03206.
    """

    name = "sd3"
    title = "a Stable Diffusion 3 model"
    flow_only = True
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    tokenizers = ("tokenizer", "tokenizer_2", "tokenizer_3")
    optional = frozenset({"text_encoder_3", "tokenizer_3"})
    encoder_classes: ClassVar[Mapping[str, str]] = {
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "U?M?T5EncoderModel",
    }
    defaults = SamplingDefaults(steps=28, guidance=7.0, sampler=Sampler.EULER)
    adapted_layers = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    large_encoders = True
    prompt_tokens = 256
    pipeline_class = StableDiffusion3Pipeline
    denoiser_class = SD3Transformer2DModel

    def text_widths(self, denoiser: Any, encoders: Mapping[str, Any]) -> Sequence[TextWidth]:
        """As in `Family`; CLIP's embeddings, side by side, are filled up to the width of T5's."""
        config, clip = denoiser.config, [encoders[part] for part in ("text_encoder", "text_encoder_2")]
        width, both = int(config.joint_attention_dim), sum(map(text_width, clip))
        third = encoders.get("text_encoder_3")
        pooled = sum(int(encoder.config.projection_dim) for encoder in clip)
        return [
            TextWidth("text embeddings", width, width if third is None else text_width(third)),
            TextWidth("text embeddings", width, max(width, both)),
            TextWidth("pooled embeddings", int(config.pooled_projection_dim), pooled),
        ]

    def encode(self, pipeline: Any, prompts: Sequence[str], *, negative: str = "") -> tuple[Condition, Condition]:
        """Hidden states of CLIP's encoders beside those of T5 in one sequence, and CLIP's pooled ones."""
        text, no_text, pooled, no_pooled = pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            device=pipeline.text_encoder.device,
            do_classifier_free_guidance=True,
            negative_prompt=negative or None,
            max_sequence_length=self.prompt_tokens,
        )
        return Condition({TEXT: text, _POOLED: pooled}), Condition({TEXT: no_text[:1], _POOLED: no_pooled[:1]})

    def predict(self, denoiser: Any, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """As in `Family`."""
        return denoiser(  # type: ignore[no-any-return]
            hidden_states=latents,
            timestep=batched(timesteps, len(latents)),
            encoder_hidden_states=condition.text,
            pooled_projections=condition.tensors[_POOLED],
            return_dict=False,
        )[0]
