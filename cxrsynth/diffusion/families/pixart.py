"""PixArt-alpha and PixArt-Sigma: a transformer with cross-attention to T5's embeddings."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor

from cxrsynth.diffusion.condition import MASK, Condition
from cxrsynth.diffusion.families.base import Family, batched, cut_learned_variance, masked_conditions
from cxrsynth.diffusion.spec import SamplingDefaults
from cxrsynth.settings import Sampler

# PixArt-alpha at 1024 pixels is conditioned on the image's size and aspect ratio, too.
_SIZED = 128


class PixArt(Family):
    """PixArt-alpha and PixArt-Sigma.

    Source: Chen et al., arXiv:2310.00426 and arXiv:2403.04692.
    """

    name = "pixart"
    title = "a PixArt model"
    defaults = SamplingDefaults(steps=20, guidance=4.5, sampler=Sampler.DPMPP)
    large_encoders = True
    prompt_tokens = 300
    pipeline_class = PixArtSigmaPipeline
    denoiser_class = PixArtTransformer2DModel

    def any_scheduler(self) -> Any:
        """DDIM."""
        return DDIMScheduler()

    def encode(self, pipeline: Any, prompts: Sequence[str], *, negative: str = "") -> tuple[Condition, Condition]:
        """T5's hidden states and which of them belong to words; no prompt is an empty one."""
        return masked_conditions(pipeline, prompts, negative=negative, length=self.prompt_tokens)

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
