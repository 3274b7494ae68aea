"""Families of models: what differs between Stable Diffusion, SDXL, PixArt, Sana, Flux, and so on.

`family_of` says which one a folder holds. Samplers, guidance, learning and export know only what `Family` answers.
"""

from pathlib import Path

from cxrsynth.diffusion.families.base import Family
from cxrsynth.diffusion.families.flux import Flux
from cxrsynth.diffusion.families.lumina2 import Lumina2
from cxrsynth.diffusion.families.pixart import PixArt
from cxrsynth.diffusion.families.sana import Sana
from cxrsynth.diffusion.families.sd3 import StableDiffusion3
from cxrsynth.diffusion.families.sdxl import StableDiffusionXL
from cxrsynth.diffusion.families.stable_diffusion import StableDiffusion
from cxrsynth.diffusion.families.unconditional import Unconditional
from cxrsynth.errors import ModelError
from cxrsynth.runtime.files import read_json

_SDXL = StableDiffusionXL()
_BY_DENOISER: dict[str, Family] = {
    "UNet2DConditionModel": StableDiffusion(),
    "UNet2DModel": Unconditional(),
    "PixArtTransformer2DModel": PixArt(),
    "SanaTransformer2DModel": Sana(),
    "SD3Transformer2DModel": StableDiffusion3(),
    "FluxTransformer2DModel": Flux(),
    "Lumina2Transformer2DModel": Lumina2(),
}
DENOISERS = ("unet", "transformer")
FAMILIES: dict[str, Family] = {family.name: family for family in (*_BY_DENOISER.values(), _SDXL)}


def family_of(folder: Path, *, denoiser: Path | None = None) -> Family:
    """The family of the model in a folder, by the class of its denoiser.

    Args:
        folder: of the model.
        denoiser: folder of a denoiser that is used with it, and counts where the model has none of its own.

    Raises:
        ModelError: if there is no denoiser, or one of an unknown class.
    """
    own = next((folder / part for part in DENOISERS if (folder / part).is_dir()), None)
    found = own or denoiser
    if found is None:
        raise ModelError(
            f"{folder}: not a model folder, missing unet/ or transformer/\n"
            "  expected: a text-to-image model in diffusers' layout, with model_index.json and a folder for each part;"
            " --unet takes the network from another folder"
        )
    config = found / "config.json"
    try:
        content = read_json(config)
        named = str(content.get("_class_name", None if found.name == "transformer" else "UNet2DConditionModel"))
    except (OSError, ValueError, AttributeError) as error:
        problem = "no JSON object" if isinstance(error, AttributeError) else error
        raise ModelError(f"{config}: cannot be loaded as a network's configuration: {problem}") from None
    family = _BY_DENOISER.get(named)
    if family is None:
        raise ModelError(f"{config}: a {named}, which is not supported\n  expected: one of {', '.join(_BY_DENOISER)}")
    return _SDXL if content.get("addition_embed_type") == "text_time" else family
