"""Stable Diffusion: a UNet with cross-attention to the embeddings of one text encoder, of any kind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from cxrsynth.diffusion.condition import TEXT, Condition
from cxrsynth.diffusion.families.base import Components, Family
from cxrsynth.errors import ModelError


class StableDiffusion(Family):
    """Stable Diffusion 1 and 2 and what is fine-tuned from them, with whatever text encoder they have.

    Source: Rombach et al., arXiv:2112.10752.
    """

    name = "stable_diffusion"
    title = "a Stable Diffusion model"
    denoiser = "unet"
    learns_text = True
    learns_words = True
    pipeline_class = StableDiffusionPipeline
    denoiser_class = UNet2DConditionModel

    def pipeline_arguments(self) -> dict[str, Any]:
        """No safety checker: it knows photographs."""
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

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
            config = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
            if not str(config.get("model_type", "clip")).startswith("clip"):
                return None
            return int(config["max_position_embeddings"]), int(config["hidden_size"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{folder / 'text_encoder'}: config.json does not give the text encoder's size") from None

    def check(self, folder: Path, denoiser: Any, components: Components) -> None:
        """As in `Family`."""
        super().check(folder, denoiser, components)
        check_unet(folder, denoiser, components)
        width, given = denoiser.config.cross_attention_dim, _width(components.encoders["text_encoder"].config)
        wanted = {width} if isinstance(width, int) else set(width or ())
        if denoiser.config.encoder_hid_dim is None and wanted and given is not None and wanted != {given}:
            raise ModelError(
                f"{folder}: the UNet expects text embeddings of width {', '.join(map(str, sorted(wanted)))}, the text"
                f" encoder gives {given}\n  expected: the text encoder that the UNet was trained with"
            )


def _width(config: Any) -> int | None:
    """Width of a text encoder's hidden states."""
    found = getattr(config, "hidden_size", None) or getattr(config, "d_model", None)
    return None if found is None else int(found)


def check_unet(folder: Path, unet: Any, components: Components) -> None:
    """Refuse UNets that take more than noisy latents and text, or give more than a prediction.

    Raises:
        ModelError: saying what the UNet is for.
    """
    config, where = unet.config, folder / "unet" / "config.json"
    if config.get("time_cond_proj_dim") is not None:
        raise ModelError(
            f"{where}: time_cond_proj_dim {config.time_cond_proj_dim}: a latent consistency model that takes its"
            " guidance as an input\n  expected: a model without it, such as the one it was distilled from"
        )
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        raise ModelError(f"{where}: a UNet with class labels\n  expected: one with text alone")
    latents = int(components.vae.config.latent_channels)
    if int(config.in_channels) != latents:
        raise ModelError(
            f"{where}: in_channels {config.in_channels}, but the autoencoder's latents have {latents} channels: a model"
            " for inpainting, or for editing or enlarging images\n  expected: a text-to-image model"
        )
    if int(config.out_channels) != latents:
        raise ModelError(
            f"{where}: out_channels {config.out_channels}, but latents have {latents} channels: a UNet that predicts"
            " its variance, too\n  expected: one that predicts noise, velocity or clean latents"
        )
