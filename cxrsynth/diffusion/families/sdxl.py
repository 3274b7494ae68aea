"""Stable Diffusion XL: two text encoders, a pooled embedding, and sizes as conditions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor

from cxrsynth.diffusion.condition import TEXT, Condition
from cxrsynth.diffusion.families.base import Components, Family, spatial_factor
from cxrsynth.diffusion.families.stable_diffusion import check_unet
from cxrsynth.diffusion.spec import SamplingDefaults


class StableDiffusionXL(Family):
    """Stable Diffusion XL.

    Source: Podell et al., arXiv:2307.01952.
    """

    name = "sdxl"
    title = "a Stable Diffusion XL model"
    denoiser = "unet"
    encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")
    defaults = SamplingDefaults(steps=50, guidance=5.0)
    pipeline_class = StableDiffusionXLPipeline
    denoiser_class = UNet2DConditionModel

    def pipeline_arguments(self) -> dict[str, Any]:
        """Without a watermark: it would be in the pixels before shards mark them."""
        return {"add_watermarker": False}

    def any_scheduler(self) -> Any:
        """DDIM without its defaults that the pipeline warns of."""
        return DDIMScheduler(steps_offset=1, clip_sample=False)

    def encode(self, pipeline: Any, prompts: Sequence[str], *, negative: str = "") -> tuple[Condition, Condition]:
        """Hidden states of both encoders side by side, pooled ones of the second, and the model's own image size."""
        # Whether no prompt is an embedded empty one, or zero, is a setting of the folder.
        text, no_text, pooled, no_pooled = pipeline.encode_prompt(
            list(prompts),
            device=pipeline.text_encoder_2.device,
            do_classifier_free_guidance=True,
            negative_prompt=[negative] * len(prompts) if negative else None,
        )
        size = pipeline.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        factor = spatial_factor(pipeline.vae)
        shape = (height * factor, width * factor)
        sizes = pipeline._get_add_time_ids(
            shape,
            (0, 0),
            shape,
            dtype=text.dtype,
            text_encoder_projection_dim=int(pipeline.text_encoder_2.config.projection_dim),
        ).to(text.device)
        given = {TEXT: text, "text_embeds": pooled, "time_ids": sizes.expand(len(text), -1)}
        return Condition(given), Condition({TEXT: no_text[:1], "text_embeds": no_pooled[:1], "time_ids": sizes})

    def predict(self, denoiser: Any, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """As in `Family`."""
        further = {name: condition.tensors[name] for name in ("text_embeds", "time_ids")}
        predicted = denoiser(latents, timesteps, condition.text, added_cond_kwargs=further, return_dict=False)
        return predicted[0]  # type: ignore[no-any-return]

    def check(self, folder: Path, denoiser: Any, components: Components) -> None:
        """As in `Family`."""
        super().check(folder, denoiser, components)
        check_unet(folder, denoiser, components)
