"""PixArt-alpha and PixArt-Sigma: a transformer with cross-attention to T5's embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
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
from cxrsynth.settings import Sampler

# PixArt-alpha at 1024 pixels is conditioned on the image's size and aspect ratio, too.
_SIZED = 128
_ALPHA_TOKENS = 120


class PixArt(Family):
    """PixArt-alpha and PixArt-Sigma.

    Source: Chen et al., arXiv:2310.00426 and arXiv:2403.04692.
    """

    name = "pixart"
    title = "a PixArt model"
    defaults = SamplingDefaults(steps=20, guidance=4.5, sampler=Sampler.DPMPP)
    large_encoders = True
    prompt_tokens = 300
    encoder_classes: ClassVar[Mapping[str, str]] = {"text_encoder": "U?M?T5EncoderModel"}
    pipeline_class = PixArtSigmaPipeline
    denoiser_class = PixArtTransformer2DModel

    def any_scheduler(self) -> Any:
        """DDIM."""
        return DDIMScheduler()

    def pipeline(self, denoiser: Any, components: Components) -> Any:
        """As in `Family`: PixArt-alpha's where the folder names it, else PixArt-Sigma's."""
        made = super().pipeline(denoiser, components)
        return PixArtAlphaPipeline(**made.components) if _is_alpha(components) else made

    def longest_prompt(self, components: Components) -> int | None:
        """As in `Family`: PixArt-alpha was trained with shorter prompts."""
        return _ALPHA_TOKENS if _is_alpha(components) else self.prompt_tokens

    def text_widths(self, denoiser: Any, encoders: Mapping[str, Any]) -> Sequence[TextWidth]:
        """As in `Family`."""
        given = text_width(encoders["text_encoder"])
        return [TextWidth("text embeddings", int(denoiser.config.caption_channels), given)]

    def encode(self, pipeline: Any, prompts: Sequence[str], *, negative: str = "") -> tuple[Condition, Condition]:
        """T5's hidden states and which of them belong to words; no prompt is an empty one."""
        length = _ALPHA_TOKENS if isinstance(pipeline, PixArtAlphaPipeline) else self.prompt_tokens
        return masked_conditions(pipeline, prompts, negative=negative, length=length)

    def predict(self, denoiser: Any, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """As in `Family`."""
        further: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if denoiser.config.sample_size == _SIZED and denoiser.use_additional_conditions:
            side = float(_SIZED * 8)
            further["resolution"] = latents.new_tensor([[side, side]]).expand(len(latents), -1)
            further["aspect_ratio"] = torch.ones_like(latents[:, :1, 0, 0])
        predicted = denoiser(
            latents,
            encoder_hidden_states=condition.text,
            encoder_attention_mask=condition.tensors[MASK],
            timestep=batched(timesteps, len(latents)),
            added_cond_kwargs=further,
            return_dict=False,
        )[0]
        return cut_learned_variance(predicted, latents.shape[1])


def _is_alpha(components: Components) -> bool:
    return bool(components.index.get("_class_name") == PixArtAlphaPipeline.__name__)
