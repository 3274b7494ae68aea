"""Stable Diffusion: a UNet with cross-attention to the embeddings of one text encoder, of any kind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from cxrsynth.diffusion.condition import TEXT, Condition
from cxrsynth.diffusion.families.base import Components, Family, TextWidth, text_width
from cxrsynth.errors import ModelError
from cxrsynth.runtime.files import read_json


class StableDiffusion(Family):
    """Stable Diffusion 1 and 2 and what is fine-tuned from them, with whatever text encoder they have.

    Source: Rombach et al., arXiv:2112.10752.
    """

    name = "stable_diffusion"
    title = "a Stable Diffusion model"
    denoiser = "unet"
    learns_text = True
    learns_words = True
    encoder_classes: ClassVar[Mapping[str, str]] = {"text_encoder": "(?!CLIPTextModelWithProjection$).*"}
    pipeline_class = StableDiffusionPipeline
    denoiser_class = UNet2DConditionModel

    def pipeline_arguments(self, components: Components) -> dict[str, Any]:
        """No safety checker: it knows photographs."""
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    def settled_scheduler(self, config: dict[str, Any]) -> dict[str, Any]:
        """As in `Family`: the pipeline corrects what early configurations have, or lack."""
        return {**config, "steps_offset": 1, "clip_sample": False}

    def any_scheduler(self) -> Any:
        """DDIM without its defaults that the pipeline warns of."""
        return DDIMScheduler(steps_offset=1, clip_sample=False)

    def encode(self, pipeline: Any, prompts: Sequence[str], *, negative: str = "") -> tuple[Condition, Condition]:
        """The last hidden states; no prompt is an empty one."""
        text, _ = pipeline.encode_prompt([negative, *prompts], pipeline.text_encoder.device, 1, False)
        return Condition({TEXT: text[1:]}), Condition({TEXT: text[:1]})

    def predict(self, denoiser: Any, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """As in `Family`."""
        return denoiser(latents, timesteps, condition.text, return_dict=False)[0]  # type: ignore[no-any-return]

    def text_size(self, folder: Path) -> tuple[int, int] | None:
        """As in `Family`: those of CLIP; others name them differently."""
        try:
            config = read_json(folder / "text_encoder" / "config.json")
            if not str(config.get("model_type", "clip")).startswith("clip"):
                return None
            return int(config["max_position_embeddings"]), int(config["hidden_size"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{folder / 'text_encoder'}: config.json does not give the text encoder's size") from None

    def text_widths(self, denoiser: Any, encoders: Mapping[str, Any]) -> Sequence[TextWidth]:
        """As in `Family`."""
        width = denoiser.config.cross_attention_dim
        wanted = {width} if isinstance(width, int) else set(width or ())
        if denoiser.config.encoder_hid_dim is not None:
            wanted = {int(denoiser.config.encoder_hid_dim)}
        given = text_width(encoders["text_encoder"])
        return [TextWidth("text embeddings", int(one), given) for one in sorted(wanted)]

    def check(self, denoiser: Any, components: Components) -> None:
        """As in `Family`."""
        check_unet(denoiser, components, further_condition=None)
        super().check(denoiser, components)


def check_unet(unet: Any, components: Components, *, further_condition: str | None) -> None:
    """Refuse UNets that take more than noisy latents and text, or give more than a prediction.

    Args:
        unet: the network.
        components: the other parts.
        further_condition: the `addition_embed_type` of the family.

    Raises:
        ModelError: saying what the UNet is for.
    """
    config, where = unet.config, components.folders["unet"] / "config.json"
    if config.get("time_cond_proj_dim") is not None:
        raise ModelError(
            f"{where}: time_cond_proj_dim {config.time_cond_proj_dim}: a latent consistency model that takes its"
            " guidance as an input\n  expected: a model without it, such as the one it was distilled from"
        )
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        raise ModelError(f"{where}: a UNet with class labels\n  expected: one with text alone")
    for key, wanted in (("addition_embed_type", further_condition), ("dual_cross_attention", False)):
        if (config.get(key) or None) != (wanted or None):
            raise ModelError(
                f"{where}: {key} {config.get(key)!r}: a UNet of another kind of model, with other conditions\n"
                f"  expected: {repr(wanted) if wanted else 'a UNet without it'}"
            )
    if config.get("encoder_hid_dim_type") not in (None, "text_proj"):
        raise ModelError(
            f"{where}: encoder_hid_dim_type {config.encoder_hid_dim_type!r}: a UNet conditioned on images, too\n"
            "  expected: one with text alone"
        )
    taken = int(config.in_channels)
    if int(config.out_channels) != taken and taken == int(components.vae.config.latent_channels):
        raise ModelError(
            f"{where}: out_channels {config.out_channels}, but latents have {taken} channels: a UNet that predicts"
            " its variance, too\n  expected: one that predicts noise, velocity or clean latents"
        )
