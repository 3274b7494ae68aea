"""UNets without text: unconditional, or conditional on a class; in pixels, without an autoencoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, UNet2DModel
from torch import Tensor

from cxrsynth.diffusion.condition import Condition
from cxrsynth.diffusion.families.base import Components, Family
from cxrsynth.diffusion.spec import SPEC_FILE, SamplingDefaults
from cxrsynth.errors import ModelError

_LABELS = "class_labels"


class Unconditional(Family):
    """DDPM and DDIM in pixel space: a latent is the image itself, in [-1, 1], gray or RGB.

    A class-conditional UNet is given the place of the prompt among the `classes` of `cxrsynth.json`; the prompt of a
    report is the name of its class. An unconditional one makes the same image of every prompt. Neither has a null
    class, so there is no guidance, and no text, so there are no adaptive condition embeddings.

    Source: Ho et al., arXiv:2006.11239; Song et al., arXiv:2010.02502.
    """

    name = "unconditional"
    title = "a model without text"
    denoiser = "unet"
    encoders = ()
    tokenizers = ()
    defaults = SamplingDefaults(guidance=1.0)
    in_pixels = True
    has_text = False
    pipeline_class = DDPMPipeline
    denoiser_class = UNet2DModel

    def pipeline(self, denoiser: Any, components: Components) -> Any:
        """What prompts are encoded with: the names of the classes, none without classes."""
        return components.spec.classes

    def encode(self, pipeline: Any, prompts: Sequence[str], *, negative: str = "") -> tuple[Condition, Condition]:
        """The places of the classes that the prompts name, int64 [B], 0 without classes. That of no prompt is unused.

        Raises:
            ModelError: if a prompt is not the name of a class.
        """
        for prompt in prompts:
            if pipeline and prompt not in pipeline:
                raise ModelError(f"a prompt that is not one of the model's classes\n  expected: {', '.join(pipeline)}")
        places = torch.tensor([pipeline.index(prompt) if pipeline else 0 for prompt in prompts])
        return Condition({_LABELS: places}), Condition({_LABELS: places.new_zeros(1)})

    def predict(self, denoiser: Any, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """As in `Family`."""
        labels = None if denoiser.class_embedding is None else condition.tensors[_LABELS]
        return denoiser(latents, timesteps, labels, return_dict=False)[0]  # type: ignore[no-any-return]

    def check(self, denoiser: Any, components: Components) -> None:
        """As in `Family`."""
        super().check(denoiser, components)
        folder = components.folders[self.denoiser]
        config, where = denoiser.config, folder / "config.json"
        channels = int(config.in_channels)
        if channels not in (1, 3):
            raise ModelError(
                f"{where}: in_channels {channels}: not a UNet in pixel space\n  expected: 1, gray, or 3, RGB"
            )
        if int(config.out_channels) != channels:
            raise ModelError(
                f"{where}: out_channels {config.out_channels}, but images have {channels}: a UNet that predicts its"
                " variance, too\n  expected: one that predicts noise, velocity or clean images"
            )
        kind = config.class_embed_type
        if kind not in (None, "timestep"):
            raise ModelError(
                f"{where}: class_embed_type {kind!r}: conditions that are not numbers of classes\n"
                "  expected: num_class_embeds alone, or class_embed_type 'timestep'"
            )
        self._check_classes(folder.parent, denoiser, components.spec.classes)

    def _check_classes(self, folder: Path, denoiser: Any, classes: Sequence[str]) -> None:
        embedding, spec = denoiser.class_embedding, folder / SPEC_FILE
        if embedding is None and classes:
            raise ModelError(f"{spec}: classes, but the UNet has none\n  leave classes out")
        if embedding is None:
            return
        count = getattr(embedding, "num_embeddings", None)
        if not classes or count not in (None, len(classes)):
            raise ModelError(
                f"{spec}: the UNet has {'' if count is None else f'{count} '}classes, {len(classes)} are named\n"
                '  expected: "classes", the finding of each in their order, "No Finding" among them'
            )
