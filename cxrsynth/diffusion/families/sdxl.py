"""Stable Diffusion XL: two text encoders, a pooled embedding, and sizes as conditions."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor

from cxrsynth.diffusion.condition import TEXT, Condition
from cxrsynth.diffusion.families.base import Components, Family, TextWidth, spatial_factor, text_width
from cxrsynth.diffusion.families.stable_diffusion import check_unet
from cxrsynth.diffusion.spec import SamplingDefaults

_SIZES = 6  # numbers that say how an image was scaled and cropped


class StableDiffusionXL(Family):
    """Stable Diffusion XL.

    Source: Podell et al., arXiv:2307.01952.
    """

    name = "sdxl"
    title = "a Stable Diffusion XL model"
    denoiser = "unet"
    encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")
    encoder_classes: ClassVar[Mapping[str, str]] = {
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    }
    defaults = SamplingDefaults(steps=50, guidance=5.0)
    pipeline_class = StableDiffusionXLPipeline
    denoiser_class = UNet2DConditionModel

    def pipeline_arguments(self, components: Components) -> dict[str, Any]:
        """Without a watermark: it would be in the pixels before shards mark them."""
        # Whether no prompt is zeros, or an encoded empty text.
        zeros = components.index.get("force_zeros_for_empty_prompt", True)
        return {"add_watermarker": False, "force_zeros_for_empty_prompt": zeros}

    def any_scheduler(self) -> Any:
        """DDIM without its defaults that the pipeline warns of."""
        return DDIMScheduler(steps_offset=1, clip_sample=False)

    def encode(self, pipeline: Any, prompts: Sequence[str], *, negative: str = "") -> tuple[Condition, Condition]:
        """Hidden states of both encoders side by side, pooled ones of the second, and the model's own image size."""
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

    def text_widths(self, denoiser: Any, encoders: Mapping[str, Any]) -> Sequence[TextWidth]:
        """As in `Family`."""
        config, second = denoiser.config, encoders["text_encoder_2"]
        both = text_width(encoders["text_encoder"]) + text_width(second)
        pooled = int(config.projection_class_embeddings_input_dim) - _SIZES * int(config.addition_time_embed_dim)
        return [
            TextWidth("text embeddings", int(config.cross_attention_dim), both),
            TextWidth("pooled embeddings", pooled, int(second.config.projection_dim)),
        ]

    def check(self, denoiser: Any, components: Components) -> None:
        """As in `Family`."""
        check_unet(denoiser, components, further_condition="text_time")
        super().check(denoiser, components)
